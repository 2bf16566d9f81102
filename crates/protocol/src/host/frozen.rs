//! Frozen: a claim is under way, ours or the other side's. Nothing commits, nothing leaves,
//! everything is kept until the record says `running`.

use std::time::Duration;

use crate::guards::Guard;
use crate::id::Term;
use crate::message::Message;
use crate::record::{Phase, Record};
use crate::time::Time;

use super::backup::Replica;
use super::primary::Primary;
use super::seat::Why;
use super::waiting::Load;
use super::{Action, Host, Notice, Role, Source, Stays};

/// What a frozen host keeps.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kept {
    /// The machine that it ran, paused.
    Machine(Primary),
    /// The replica.
    Replica(Replica),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Frozen {
    kept: Kept,
    load: Load,
    failed_at: Time,
    /// When this runner yielded to its heir: nobody's claim is under way yet.
    pub(super) yielded: Option<Time>,
}

impl Frozen {
    pub(super) fn new(kept: Kept, load: Load) -> Frozen {
        Frozen {
            kept,
            load,
            failed_at: Time(0),
            yielded: None,
        }
    }

    pub(super) fn term(&self) -> Term {
        match &self.kept {
            Kept::Machine(primary) => primary.term,
            Kept::Replica(replica) => replica.term,
        }
    }

    /// Whether what is kept can still be started from.
    pub(super) fn usable(&self) -> bool {
        self.load != Load::Failed && self.replica().is_none_or(Replica::is_whole)
    }

    pub(super) fn is_loaded(&self) -> bool {
        self.load == Load::Done
    }

    pub(super) fn machine(&self) -> Option<&Primary> {
        match &self.kept {
            Kept::Machine(primary) => Some(primary),
            Kept::Replica(_) => None,
        }
    }

    pub(super) fn machine_mut(&mut self) -> Option<&mut Primary> {
        match &mut self.kept {
            Kept::Machine(primary) => Some(primary),
            Kept::Replica(_) => None,
        }
    }

    fn replica(&self) -> Option<&Replica> {
        match &self.kept {
            Kept::Replica(replica) => Some(replica),
            Kept::Machine(_) => None,
        }
    }

    pub(super) fn replica_mut(&mut self) -> Option<&mut Replica> {
        match &mut self.kept {
            Kept::Replica(replica) => Some(replica),
            Kept::Machine(_) => None,
        }
    }

    pub(super) fn loaded(&mut self, now: Time, load: Load) {
        if self.load == Load::Going {
            self.load = load;
            self.failed_at = now;
        }
    }

    pub(super) fn lost(&mut self) {
        self.load = Load::Failed;
    }

    /// Whether a replica that could not be loaded is worth another try.
    fn may_retry(&self, now: Time, after: Duration) -> bool {
        now.since(self.failed_at) >= after && self.replica().is_some_and(Replica::is_whole)
    }

    fn source(&self) -> Source {
        match &self.kept {
            Kept::Machine(_) => Source::Paused,
            Kept::Replica(replica) => replica.source(),
        }
    }
}

#[cfg(test)]
impl Frozen {
    pub(super) fn rebase(&mut self, clocks: &crate::model::Clocks) {
        clocks.own(&mut self.failed_at);
        self.yielded.iter_mut().for_each(|at| clocks.own(at));
        if let Kept::Machine(primary) = &mut self.kept {
            primary.rebase(clocks);
        }
    }
}

impl Host {
    pub(super) fn frozen_tick(&mut self, now: Time) {
        let Some(record) = self.seat.view().copied() else {
            return;
        };
        let Role::Frozen(frozen) = &self.role else {
            return;
        };
        if !self.seat.is_idle() {
            return;
        }
        if record.phase == Phase::Running {
            if self.is_me(record.runner) && self.takes_back(now, frozen.yielded) {
                self.claim(now, &record);
            }
            return;
        }
        if self.is_me(record.runner) {
            match frozen.load {
                Load::Done => self.ask_running(now, &record),
                // Nobody else is left to start it.
                Load::Failed if record.heir.is_none() => {
                    if frozen.may_retry(now, self.config.timing.t_c) {
                        let source = frozen.source();
                        if let Role::Frozen(frozen) = &mut self.role {
                            frozen.load = Load::Going;
                        }
                        self.act(Action::Load(source));
                    }
                }
                Load::Failed => self.hand_back(now, &record),
                Load::Going | Load::No => {}
            }
        } else if self.is_heir(&record)
            && (frozen.usable() || !self.guards.on(Guard::ClaimWhole))
            && self.seat.stood(now) >= self.config.timing.t_c
            && self.guards.on(Guard::StaleClaim)
        {
            self.claim(now, &record);
        }
    }

    pub(super) fn frozen_learned(&mut self, now: Time, record: &Record) {
        let Role::Frozen(frozen) = &self.role else {
            return;
        };
        let mine = self.is_me(record.runner);
        match record.phase {
            // Only this incarnation writes that, and only after its claim.
            Phase::Running if mine => {
                let (source, yielded) = (frozen.source(), frozen.yielded);
                self.launch(now, record, source);
                if yielded.is_some() {
                    self.notice(Notice::Stays(Stays::NotTaken));
                }
            }
            Phase::Claimed if mine && !self.guards.on(Guard::ReadNever) => {
                let source = frozen.source();
                self.launch(now, record, source);
            }
            Phase::Running => self.lost(now, record),
            Phase::Claimed if !mine && !self.guards.on(Guard::KeepUntilRunning) => {
                self.drop_all(now);
            }
            Phase::Claimed => self.frozen_tick(now),
        }
    }

    /// The record is `running` and not ours.
    fn lost(&mut self, now: Time, record: &Record) {
        let Role::Frozen(frozen) = &mut self.role else {
            return;
        };
        match &mut frozen.kept {
            // The runner changed the record before the claim arrived, and this replica is still
            // of its session: the record names it, or may yet. It missed checkpoints while frozen,
            // so the session ends.
            Kept::Replica(replica) if replica.session.runner == record.runner => {
                let session = replica.session;
                let frozen = self.guards.on(Guard::Freeze);
                if frozen {
                    replica.stop_flow();
                }
                let replica = replica.clone();
                self.role = Role::Backup(replica);
                if frozen {
                    self.send(session.runner, Message::Bye(session));
                }
            }
            Kept::Replica(_) | Kept::Machine(_) => self.drop_all(now),
        }
    }

    /// A weakened protocol takes a request for lost and goes back to what it did.
    pub(super) fn gave_up(&mut self, now: Time, why: Why) {
        if why == Why::Name {
            self.close_session(now, true);
            return;
        }
        let Some(record) = self.seat.view().copied() else {
            return;
        };
        if record.phase != Phase::Running {
            return;
        }
        match std::mem::replace(&mut self.role, Role::Ended) {
            Role::Frozen(Frozen {
                kept: Kept::Machine(primary),
                ..
            }) => {
                self.role = Role::Primary(primary);
                self.act(Action::Thaw);
            }
            Role::Frozen(Frozen {
                kept: Kept::Replica(replica),
                ..
            }) => {
                self.role = Role::Backup(replica);
                self.act(Action::Thaw);
            }
            other => self.role = other,
        }
    }
}
