//! Times relative to now.

use std::time::Duration;

use crate::id::Incarnation;
use crate::time::Time;

/// What every clock shows in a state that is told apart from others.
pub(crate) const NOW: Time = Time(1_000_000_000);

/// Where time-outs may expire whenever they like, a time is either recent or longer ago than any
/// time-out.
const RECENT: Duration = Duration::from_millis(1);

/// The clocks of all live processes at the moment when a state is put into its normal form.
pub(crate) struct Clocks<'a> {
    /// The clock of the process that is put into it.
    pub(super) own: Time,
    /// All.
    pub(super) all: &'a [(Incarnation, Time)],
    /// Ages below this are all the same, and so are all others; nothing when each one counts.
    pub(super) coarse: Option<Duration>,
    /// Longer than any time-out: what is longer ago, or longer to come, makes no difference.
    pub(super) horizon: Duration,
    /// Nobody starts from cold.
    pub(super) warm: bool,
}

impl Clocks<'_> {
    /// A time on the process's own clock.
    pub(crate) fn own(&self, time: &mut Time) {
        *time = self.relative(self.own, *time);
    }

    /// A time on another's clock. That of one who lives no longer is never compared again.
    pub(crate) fn of(&self, incarnation: Incarnation, time: &mut Time) {
        let clock = self.all.iter().find(|(i, _)| *i == incarnation);
        *time = clock.map_or(Time(0), |(_, now)| self.relative(*now, *time));
    }

    /// Whether patience that is counted in tries has no end, either.
    pub(crate) fn is_coarse(&self) -> bool {
        self.coarse.is_some()
    }

    /// Whether nobody starts from cold: then it makes no difference when one was heard at all.
    pub(crate) fn is_warm(&self) -> bool {
        self.warm
    }

    /// Whether this process lives.
    pub(crate) fn lives(&self, incarnation: Incarnation) -> bool {
        self.all.iter().any(|(i, _)| *i == incarnation)
    }

    /// Whether a time that is in its normal form may still count.
    pub(crate) fn recent(&self, time: Time) -> bool {
        time > NOW - self.horizon
    }

    fn relative(&self, now: Time, time: Time) -> Time {
        let (ahead, age) = (time.since(now), now.since(time));
        let ahead_of_now = time > now;
        match self.coarse {
            None if ahead_of_now => NOW + ahead.min(self.horizon),
            None => NOW - age.min(self.horizon),
            Some(_) if ahead_of_now => NOW + RECENT,
            Some(limit) if age < limit => NOW - RECENT,
            Some(_) => NOW - self.horizon,
        }
    }
}
