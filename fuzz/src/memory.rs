//! How much memory something takes: hostile bytes must not make it much more than they are.

use peak_alloc::PeakAlloc;

/// An allocator that counts. A program that has it as its own can tell what [`bounded`] asks; in others all is in bounds.
pub type Counter = PeakAlloc;

/// The one counter.
pub const COUNTER: Counter = PeakAlloc;

/// What the standard library and test harnesses may take meanwhile, in bytes.
const SLACK: usize = 16 << 10;

/// Does `work`, which may take so many bytes of memory more than there were, at its peak.
///
/// # Panics
/// It took more.
#[track_caller]
pub fn bounded<T>(most: usize, work: impl FnOnce() -> T) -> T {
    COUNTER.reset_peak_usage();
    let before = COUNTER.current_usage();
    let result = work();
    let took = COUNTER.peak_usage().saturating_sub(before);
    assert!(
        took <= most + SLACK,
        "{took} bytes of memory where {most} are enough"
    );
    result
}
