//! Backup: a replica is filled, committed to, and kept until it is certain to be stale.

use crate::detector::Watch;
use crate::guards::Guard;
use crate::id::{Epoch, Incarnation, SessionId, Term};
use crate::message::{Checkpoint, Message};
use crate::record::{Phase, Record, Right};
use crate::sidecar::Sidecar;
use crate::time::Time;

use super::frozen::{Frozen, Kept};
use super::seat::Why;
use super::storing::Then;
use super::waiting::Load;
use super::{Action, Host, Notice, Role, Source};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// The sidecar is not yet durably `resyncing`.
    Preparing,
    /// The first full copy arrives.
    Copying,
    /// It is complete; the sidecar is not yet durably `in-sync`.
    Completing,
    /// Whole: every received epoch is a commit.
    Whole,
    /// Broken: nothing but a new session helps.
    Lost,
}

/// A replica and the session that fills it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Replica {
    pub(super) session: SessionId,
    pub(super) term: Term,
    /// The newest epoch that is here whole and verified.
    pub(super) received: Epoch,
    released_through: Epoch,
    stage: Stage,
    /// Whether the stream that fills it still can: false after a gap or a closed link.
    flows: bool,
    /// Whether the runner may pass output before its commit while this session lasts.
    unheld: bool,
    /// The runner has come to rest and freezes: its silence need not be waited for.
    pub(super) yielded: bool,
}

impl Replica {
    pub(super) fn new(session: SessionId, term: Term, unheld: bool) -> Replica {
        Replica {
            session,
            term,
            received: Epoch(0),
            released_through: Epoch(0),
            stage: Stage::Preparing,
            flows: true,
            unheld,
            yielded: false,
        }
    }

    pub(super) fn is_whole(&self) -> bool {
        self.stage == Stage::Whole
    }

    pub(super) fn is_ready(&self) -> bool {
        self.stage != Stage::Preparing
    }

    pub(super) fn source(&self) -> Source {
        Source::Replica {
            term: self.term,
            epoch: self.received,
            released_through: self.released_through,
        }
    }

    pub(super) fn stop_flow(&mut self) {
        self.flows = false;
    }

    pub(super) fn lose(&mut self) {
        self.stage = Stage::Lost;
    }
}

impl Host {
    pub(super) fn backup_tick(&mut self, now: Time) {
        let Some(record) = self.seat.view().copied() else {
            return;
        };
        let Role::Backup(replica) = &self.role else {
            return;
        };
        let whole = replica.is_whole() || !self.guards.on(Guard::ClaimWhole);
        if !self.is_heir(&record) || !whole || !self.seat.is_idle() {
            return;
        }
        let timing = &self.config.timing;
        let unheld = self.replica_unheld(replica);
        let may = match record.phase {
            // The replica must be the one that this runner filled and named.
            Phase::Running => {
                (replica.session.runner == record.runner || !self.guards.on(Guard::SessionCommits))
                    && (self.detector.runner_failed(now, record.runner, unheld)
                        || (replica.yielded && self.detector.moves(now)))
            }
            Phase::Claimed => {
                self.seat.stood(now) >= timing.t_c && self.guards.on(Guard::StaleClaim)
            }
        };
        if may {
            self.freeze();
            self.claim(now, &record);
        }
    }

    /// Whether the runner that fills this replica leaves output unheld: as it said when it began,
    /// whatever this host's own file says by now.
    pub(super) fn replica_unheld(&self, replica: &Replica) -> bool {
        if self.guards.on(Guard::ModeOfSession) {
            replica.unheld
        } else {
            self.config.unheld
        }
    }

    pub(super) fn backup_learned(&mut self, now: Time, record: &Record) {
        let Role::Backup(replica) = &self.role else {
            return;
        };
        let runner = replica.session.runner;
        if self.is_me(record.runner) {
            // Handed back, or let through by a cold claimant.
            if record.phase == Phase::Claimed {
                self.freeze();
                self.frozen_learned(now, record);
            }
            return;
        }
        let replaced = match record.phase {
            Phase::Running => record.runner != runner,
            // Kept until the claim's winner runs.
            Phase::Claimed => !self.guards.on(Guard::KeepUntilRunning),
        };
        if replaced {
            self.drop_all(now);
        }
    }

    /// Neither commits nor releases from here on, and keeps all it has.
    pub(super) fn freeze(&mut self) {
        let kept = match std::mem::replace(&mut self.role, Role::Ended) {
            Role::Backup(replica) => Kept::Replica(replica),
            Role::Primary(primary) => Kept::Machine(primary),
            other => {
                self.role = other;
                return;
            }
        };
        let whole = |r: &Replica| r.is_whole() || !self.guards.on(Guard::ClaimWhole);
        let (load, replica) = match &kept {
            Kept::Replica(replica) if whole(replica) => (Load::Going, Some(replica.source())),
            Kept::Replica(_) => (Load::Failed, None),
            Kept::Machine(_) => (Load::Done, None),
        };
        self.role = Role::Frozen(Frozen::new(kept, load));
        self.publish();
        if self.guards.on(Guard::Freeze) {
            self.act(Action::Freeze);
        }
        // Loading touches nothing but the prepared machine, so it need not wait for the answer.
        if let Some(source) = replica {
            self.act(Action::Load(source));
        }
    }

    /// Claims the record; the other side stays in it as heir.
    pub(super) fn claim(&mut self, now: Time, record: &Record) {
        let other = if self.is_me(record.runner) {
            record.heir
        } else {
            Some(record.runner)
        };
        let keep = if self.guards.on(Guard::LoserStaysHeir) {
            other
        } else {
            None
        };
        let phase = self.claim_phase();
        let keep = if phase == Phase::Running { None } else { keep };
        let watch = if self.is_me(record.runner) {
            Watch::Heir
        } else {
            Watch::Runner
        };
        let silence = other.and_then(|other| self.detector.silence(now, other, watch));
        let t_b = self.detector.t_b();
        self.notice(Notice::Claims { silence, t_b });
        self.ask(now, Why::Claim, Right::Named, self.me, keep, phase);
    }

    /// The sidecar says `resyncing`: blocks may come.
    pub(super) fn ready(&mut self, session: SessionId) {
        if let Role::Backup(replica) = &mut self.role
            && replica.session == session
            && replica.stage == Stage::Preparing
        {
            replica.stage = Stage::Copying;
            self.send(session.runner, Message::Ready(session));
        }
    }

    pub(super) fn checkpoint(&mut self, from: Incarnation, checkpoint: &Checkpoint) {
        let thawed = !self.guards.on(Guard::Freeze);
        let replica = match &mut self.role {
            Role::Backup(replica) => replica,
            Role::Frozen(frozen) if thawed => match frozen.replica_mut() {
                Some(replica) => replica,
                None => return,
            },
            _ => return,
        };
        let session = replica.session;
        if checkpoint.session != session || from != session.runner || !replica.flows {
            return;
        }
        let next = replica.received == Epoch(0) || checkpoint.epoch == replica.received.next();
        let expected = checkpoint.term == replica.term && next;
        match replica.stage {
            Stage::Copying | Stage::Completing | Stage::Whole if expected => {}
            Stage::Lost => return,
            _ => {
                // A gap: what is here stays what it is, and nothing more can be added to it.
                replica.flows = false;
                return self.send(session.runner, Message::Bye(session));
            }
        }
        replica.received = checkpoint.epoch;
        replica.released_through = checkpoint.released_through;
        let (epoch, stage) = (checkpoint.epoch, replica.stage);
        if stage == Stage::Copying && checkpoint.complete {
            replica.stage = Stage::Completing;
        }
        self.act(Action::Apply { session, epoch });
        match stage {
            Stage::Whole => self.send(from, Message::Commit(session, epoch)),
            Stage::Copying if checkpoint.complete => {
                let sidecar = Sidecar::of(self.config.machine, self.me);
                self.store(sidecar, Then::Whole(session));
            }
            Stage::Copying => self.send(from, Message::Received(session, epoch)),
            _ => {}
        }
    }

    /// The sidecar says `in-sync`: the replica is whole, and is now tried.
    pub(super) fn whole(&mut self, session: SessionId) {
        if let Role::Backup(replica) = &mut self.role
            && replica.session == session
            && replica.stage == Stage::Completing
        {
            replica.stage = Stage::Whole;
            let epoch = replica.received;
            self.send(session.runner, Message::Commit(session, epoch));
            self.act(Action::Try(session));
        }
    }

    pub(super) fn tried(&mut self, session: SessionId, loaded: bool) {
        let Role::Backup(replica) = &mut self.role else {
            return;
        };
        if replica.session != session || !replica.is_whole() {
            return;
        }
        if loaded {
            self.send(session.runner, Message::Tried(session));
        } else {
            self.notice(Notice::ReplicaBroken);
            self.send(session.runner, Message::Bye(session));
        }
    }

    pub(super) fn replica_lost(&mut self) {
        let replica = match &mut self.role {
            Role::Backup(replica) => replica,
            // Once loaded, the machine no longer needs the replica.
            Role::Frozen(frozen) if !frozen.is_loaded() => match frozen.replica_mut() {
                Some(replica) => replica,
                None => return,
            },
            _ => return,
        };
        let session = replica.session;
        replica.lose();
        replica.stop_flow();
        if let Role::Frozen(frozen) = &mut self.role {
            frozen.lost();
        }
        let sidecar = self.coming_sidecar().resyncing();
        self.store(sidecar, Then::Nothing);
        self.notice(Notice::ReplicaBroken);
        self.send(session.runner, Message::Bye(session));
    }

    /// The link that fills the replica is closed.
    pub(super) fn stream_closed(&mut self, now: Time, peer: Incarnation) {
        let Role::Backup(replica) = &mut self.role else {
            return;
        };
        if replica.session.runner != peer {
            return;
        }
        replica.flows = false;
        // A whole replica stays: the record may name it. Part of one is worth nothing.
        if matches!(
            replica.stage,
            Stage::Preparing | Stage::Copying | Stage::Completing
        ) {
            self.drop_all(now);
        }
    }

    pub(super) fn stopped(&mut self, now: Time, from: Incarnation) {
        if let Role::Backup(replica) = &self.role
            && replica.session.runner == from
        {
            self.drop_all(now);
        }
    }
}
