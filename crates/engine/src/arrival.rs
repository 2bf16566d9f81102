//! When a datagram arrived that is read later.
//!
//! The kernel notes it on `CLOCK_REALTIME` (`SO_TIMESTAMPNS`, socket(7)), which may be set at any
//! time; the protocol counts on `CLOCK_BOOTTIME`, which may not. Both run at one rate.

use std::time::Duration;

use romulus_protocol::time::Time;

use crate::clock;

/// Both clocks, read at about the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Clocks {
    /// `CLOCK_REALTIME`, since its epoch.
    wall: Duration,
    /// `CLOCK_BOOTTIME`.
    boot: Time,
}

impl Clocks {
    /// What they say now.
    pub(crate) fn now() -> Clocks {
        // In this order: what comes between the two readings makes an arrival later, which is
        // safe.
        let wall = clock::wall();
        Clocks {
            wall,
            boot: clock::now(),
        }
    }

    /// What `CLOCK_BOOTTIME` says.
    pub(crate) fn boot(&self) -> Time {
        self.boot
    }

    /// When it was `wall` on the one clock, on the other, if neither was set since or until then.
    fn at(&self, wall: Duration) -> Time {
        // One of the two is nothing.
        self.boot + wall.saturating_sub(self.wall) - self.wall.saturating_sub(wall)
    }
}

/// When something arrived that the kernel stamped with `wall`, and that was not there before
/// `before` and was there at `after`. At the latest that can be: if the clock was set once between
/// the two, it was not between one of them and the arrival, and that one tells the truth.
pub(crate) fn arrival(wall: Duration, before: &Clocks, after: &Clocks) -> Time {
    before.at(wall).max(after.at(wall)).min(after.boot)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// The clocks `ms` after the first look, when the one had been set by `set` milliseconds.
    fn clocks(ms: u32, set: i32) -> Clocks {
        let wall = MS * (1_000_000 + ms).saturating_add_signed(set);
        Clocks {
            wall,
            boot: Time(0) + MS * (7000 + ms),
        }
    }

    #[test]
    fn an_arrival_is_told_on_the_other_clock() {
        let stamp = clocks(20, 0).wall;
        let told = arrival(stamp, &clocks(0, 0), &clocks(50, 0));
        assert_eq!(told, clocks(20, 0).boot);
    }

    #[test]
    fn no_setting_of_the_clock_makes_an_arrival_earlier() {
        for set in [-900_000, -3000, -30, -1, 1, 30, 3000, 900_000] {
            let (before, after) = (clocks(0, 0), clocks(50, set));
            for arrived in 1..50 {
                // It was set after the arrival, or before.
                for stamp in [clocks(arrived, 0).wall, clocks(arrived, set).wall] {
                    let told = arrival(stamp, &before, &after);
                    assert!(told >= clocks(arrived, 0).boot, "set by {set} ms");
                    assert!(told <= after.boot);
                }
            }
        }
    }

    #[test]
    fn a_stamp_that_makes_no_sense_is_taken_for_now() {
        let (before, after) = (clocks(0, 0), clocks(50, 0));
        let told = arrival(Duration::MAX, &before, &after);
        assert_eq!(told, after.boot);
    }
}
