//! Whether a link still carries anything, told from the path that it takes.
//!
//! A link whose path is cut without a sign stays open until its transport gives it up, seconds later.
//! All that time the machine's output waits for commits that cannot come, though heartbeats on
//! another path say that the other side lives. Heartbeats take the link's own path, too: where they
//! have passed before, and are missing for 2 · `T_b` while others arrive, and nothing came over
//! the link itself either, it is given up.
//!
//! Each side watches what it is to receive, so that a cut of one direction is noticed by the side
//! that hears nothing; the other hears of it by the way that is left.

use std::time::Duration;

use crate::time::Time;

/// The way that a heartbeat took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// The path of the link between the hosts.
    Link,
    /// Any other.
    Other,
}

/// What one partner's lanes and link have shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Lanes {
    /// Since when there is a link; none while there is none, or it has been given up.
    linked: Option<Time>,
    /// When something last came over the link's path: a heartbeat, or over the link itself.
    on_link: Option<Time>,
    /// When a heartbeat last came over another path.
    on_other: Option<Time>,
    /// A heartbeat has come over the link's path since there is a link: that it can is known.
    passes: bool,
}

impl Lanes {
    pub(crate) fn heard(&mut self, now: Time, lane: Lane) {
        match lane {
            Lane::Link => {
                self.on_link = Some(now);
                self.passes = true;
            }
            Lane::Other => self.on_other = Some(now),
        }
    }

    /// A message came over the link.
    pub(crate) fn link_moved(&mut self, now: Time) {
        self.on_link = Some(now);
    }

    /// The link opened or closed.
    pub(crate) fn link(&mut self, now: Time, open: bool) {
        self.linked = open.then_some(now);
        self.passes = false;
    }

    /// Since when the link's path is silent although it should not be; nothing where the other
    /// paths are silent as well, for then it may be the partner that is.
    pub(crate) fn silent_since(&self, now: Time, t_b: Duration) -> Option<Time> {
        let linked = self.linked?;
        let others = self.on_other.is_some_and(|at| now.since(at) < t_b / 2);
        (self.passes && others).then(|| self.on_link.map_or(linked, |at| at.max(linked)))
    }
}

#[cfg(test)]
impl Lanes {
    pub(crate) fn rebase(&mut self, clocks: &crate::model::Clocks) {
        // One path is all that there is in the model.
        (self.on_link, self.on_other) = (None, None);
        self.linked.iter_mut().for_each(|at| clocks.own(at));
        self.linked = self.linked.map(|_| Time(0));
        self.passes = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const T_B: Duration = Duration::from_millis(100);

    fn at(ms: u32) -> Time {
        Time(1_000_000_000) + MS * ms
    }

    /// Linked at 0; both lanes heard at 10, the other again at `now`.
    fn lanes(now: u32) -> Lanes {
        let mut lanes = Lanes::default();
        lanes.link(at(0), true);
        lanes.heard(at(10), Lane::Link);
        lanes.heard(at(10), Lane::Other);
        lanes.heard(at(now), Lane::Other);
        lanes
    }

    #[test]
    fn a_lane_is_silent_since_it_was_last_heard() {
        assert_eq!(lanes(250).silent_since(at(250), T_B), Some(at(10)));
        let mut moving = lanes(250);
        moving.link_moved(at(200));
        assert_eq!(moving.silent_since(at(250), T_B), Some(at(200)));
        moving.heard(at(240), Lane::Link);
        assert_eq!(moving.silent_since(at(250), T_B), Some(at(240)));
    }

    #[test]
    fn nothing_is_said_where_nothing_can_be_known() {
        // The partner may be gone.
        assert_eq!(lanes(200).silent_since(at(250), T_B), None);
        // There is no link.
        let mut closed = lanes(250);
        closed.link(at(240), false);
        assert_eq!(closed.silent_since(at(250), T_B), None);
        // Heartbeats never passed here since this link came: a firewall may keep them.
        closed.link(at(241), true);
        assert_eq!(closed.silent_since(at(250), T_B), None);
        closed.heard(at(245), Lane::Link);
        assert_eq!(closed.silent_since(at(250), T_B), Some(at(245)));
    }
}
