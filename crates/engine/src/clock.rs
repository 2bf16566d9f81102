//! The one clock of this room.

use romulus_protocol::time::Time;
use rustix::time::ClockId;
use std::time::Duration;

/// `CLOCK_BOOTTIME`: it goes on while a host sleeps, so that silence during sleep counts.
pub(crate) fn now() -> Time {
    let now = rustix::time::clock_gettime(ClockId::Boottime);
    // Both are not negative: the clock counts from the boot.
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
    Time(seconds.saturating_mul(1_000_000_000) + nanoseconds)
}

/// `CLOCK_REALTIME`, since its epoch: for what others note on it. It may be set at any time.
pub(crate) fn wall() -> Duration {
    let now = rustix::time::clock_gettime(ClockId::Realtime);
    Duration::try_from(now).unwrap_or_default()
}

/// The processor time that this thread has had.
pub(crate) fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(ClockId::ThreadCPUTime);
    // Neither is negative, and the second is below a second.
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), nanoseconds)
}
