//! Switchover: primary and backup change roles on purpose, and nothing is lost.
//!
//! ```text
//!   runner                                           heir
//!     │  the guest comes to rest with an epoch's end    │
//!     │ ── Part …, Checkpoint ────────────────────▶     │
//!     │ ◀──────────────────────────────── Commit ──     │
//!     │  lets out what that commit covers, freezes      │
//!     │ ── Yield ─────────────────────────────────▶     │  freezes, claims, loads
//!     │                                                 │  sets `running`, runs
//!     │  sees `running`: drops all, is filled           │
//! ```
//!
//! The record moves as it does after a failure: the heir claims and sets `running`. What is new is
//! only that it need not wait for silence, and that the newest commit is all there is. Whatever
//! goes wrong on the way leads to a known place: before it has yielded, the runner lets its guest
//! go on; after that it is frozen, and goes on only after a claim that it won itself. An heir that
//! cannot start hands the record back, as any winner does.

use std::time::Duration;

use crate::guards::Guard;
use crate::heartbeat::Uplink;
use crate::id::{Epoch, Incarnation, SessionId};
use crate::message::Message;
use crate::time::Time;

use super::{Action, Host, Notice, Role, Stays, Switch};

/// On the runner: the guest rests for a switchover, or is about to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Rest {
    /// Since when what comes next is waited for.
    since: Time,
    /// The epoch with whose end the guest came to rest.
    last: Option<Epoch>,
}

impl Rest {
    /// Whether an epoch may still end: the one with which the guest comes to rest.
    pub(super) fn may_seal(&self) -> bool {
        self.last.is_none()
    }

    #[cfg(test)]
    pub(super) fn rebase(&mut self, clocks: &crate::model::Clocks) {
        clocks.own(&mut self.since);
    }
}

/// How many of this host's uplinks carry, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct OwnUplink {
    pub(super) state: Uplink,
    since: Time,
}

impl OwnUplink {
    pub(super) fn new(now: Time) -> OwnUplink {
        OwnUplink {
            state: Uplink::default(),
            since: now,
        }
    }

    /// Nobody watches any in the model.
    #[cfg(test)]
    pub(super) fn rebase(&mut self) {
        self.since = Time(0);
    }
}

impl Host {
    /// How long the runner waits for each step of the other side before it goes on by itself.
    /// Twice as long as a silence may last that is no failure.
    fn patience(&self) -> Duration {
        self.detector.t_b() * 2
    }

    /// Begins to hand the machine over, if that can be.
    pub(super) fn switch_over(&mut self, now: Time, why: Switch) {
        let covered = self.is_protected(now) || !self.guards.on(Guard::SwitchProtected);
        let changes_mode = self.wanted_mode.is_some();
        let Role::Primary(primary) = &mut self.role else {
            return self.notice(Notice::Stays(Stays::NotHere));
        };
        if primary.rest.is_some() {
            // One is on its way: that is what was asked for.
            return;
        }
        if primary.stopping {
            return self.notice(Notice::Stays(Stays::Ends));
        }
        if !covered || changes_mode {
            return self.notice(Notice::Stays(Stays::NotProtected));
        }
        primary.moved = now;
        primary.rest = Some(Rest {
            since: now,
            last: None,
        });
        self.notice(Notice::SwitchesOver(why));
        if self.guards.on(Guard::SwitchAtRest) {
            self.act(Action::Rest);
        }
    }

    /// An epoch has ended, and the guest rests since (or a guard is removed).
    pub(super) fn rests(&mut self, now: Time, epoch: Epoch, rests: bool) {
        let rests = rests || !self.guards.on(Guard::SwitchAtRest);
        if let Role::Primary(primary) = &mut self.role
            && let Some(rest) = &mut primary.rest
            && rest.last.is_none()
            && rests
        {
            rest.last = Some(epoch);
            rest.since = now;
            self.switchover_tick(now);
        }
    }

    /// Moves a switchover on.
    pub(super) fn switchover_tick(&mut self, now: Time) {
        let (Role::Primary(primary), Some(record)) = (&self.role, self.seat.view()) else {
            return;
        };
        let Some(rest) = primary.rest else { return };
        let heir = primary
            .filled()
            .filter(|(_, peer, _)| record.heir == Some(*peer));
        if let (Some(last), Some((session, peer, committed)), true) =
            (rest.last, heir, self.seat.is_idle())
            && (committed >= last || !self.guards.on(Guard::SwitchCommitted))
        {
            return self.yield_to(now, session, peer);
        }
        if now.since(rest.since) >= self.patience() && self.guards.on(Guard::SwitchGivesUp) {
            self.go_on(Stays::NoCommit);
        }
    }

    fn yield_to(&mut self, now: Time, session: SessionId, heir: Incarnation) {
        // What the last commit covers leaves before nothing may any more.
        self.publish();
        if self.guards.on(Guard::SwitchFreezes) {
            self.freeze();
            if let Role::Frozen(frozen) = &mut self.role {
                frozen.yielded = Some(now);
            }
        } else if let Role::Primary(primary) = &mut self.role {
            primary.rest = Some(Rest {
                since: now,
                last: None,
            });
        }
        self.send(heir, Message::Yield(session));
    }

    /// The switchover comes to nothing: the guest goes on where it rested. Only before the runner
    /// has yielded.
    pub(super) fn go_on(&mut self, why: Stays) {
        if let Role::Primary(primary) = &mut self.role
            && primary.rest.take().is_some()
        {
            self.act(Action::Thaw);
            self.notice(Notice::Stays(why));
        }
    }

    /// Whether it is time to claim what was yielded: the heir has not.
    pub(super) fn takes_back(&self, now: Time, yielded: Option<Time>) -> bool {
        yielded.is_some_and(|at| now.since(at) >= self.patience())
            && self.guards.on(Guard::SwitchTakesBack)
    }

    /// The runner yields to this host.
    pub(super) fn yielded(&mut self, now: Time, from: Incarnation, session: SessionId) {
        let Role::Backup(replica) = &mut self.role else {
            return;
        };
        let of_session = replica.session == session && session.runner == from;
        if !of_session && self.guards.on(Guard::YieldOfSession) {
            return;
        }
        replica.yielded = true;
        if !self.seat.view().is_some_and(|record| self.is_heir(record)) {
            // It was named only just before.
            self.read(now);
        }
        self.backup_tick(now);
    }

    /// The edge has looked at this host's uplinks.
    pub(super) fn uplink_seen(&mut self, now: Time, state: Uplink) {
        if state != self.uplink.state {
            self.uplink = OwnUplink { state, since: now };
        }
    }

    /// The service uplink is gone here and there on the other side: switch over (DESIGN,
    /// "Detection"). Where it is gone on both, moving would help nobody.
    pub(super) fn watch_uplink(&mut self, now: Time) {
        let (Role::Primary(primary), Some(record)) = (&self.role, self.seat.view()) else {
            return;
        };
        let (own, timing) = (self.uplink, &self.config.timing);
        let Some(other) = record.heir.and_then(|heir| self.detector.peer(heir)) else {
            return;
        };
        let better = other.uplink.is_watched() && other.uplink.missing() < own.state.missing();
        let worse = own.state.missing() > 0 && (better || !self.guards.on(Guard::UplinkThere));
        let since = own.since.max(other.uplink_since);
        let steady = now.since(since) >= timing.t_uplink || !self.guards.on(Guard::UplinkSteady);
        let rested =
            now.since(primary.moved) >= timing.t_hold || !self.guards.on(Guard::UplinkHold);
        let idle = primary.rest.is_none() && !primary.stopping && self.wanted_mode.is_none();
        if worse && steady && rested && idle && self.is_protected(now) {
            self.switch_over(now, Switch::Uplink);
        }
    }
}
