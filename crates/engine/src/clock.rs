//! The one clock of this room.

use romulus_protocol::time::Time;

/// `CLOCK_BOOTTIME`: it goes on while a host sleeps, so that silence during sleep counts.
pub(crate) fn now() -> Time {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    // Both are not negative: the clock counts from the boot.
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
    Time(seconds.saturating_mul(1_000_000_000) + nanoseconds)
}
