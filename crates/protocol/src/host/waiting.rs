//! Waiting: nothing is held, nothing runs. From here a host is filled by the runner, or starts
//! the machine from its disk (DESIGN, "Cold start").

use std::time::Duration;

use crate::guards::Guard;
use crate::heartbeat::Activity;
use crate::id::{Generation, SessionId, Term};
use crate::message::Message;
use crate::record::{Phase, Record, Right};
use crate::sidecar::DiskState;
use crate::time::Time;

use super::backup::Replica;
use super::seat::Why;
use super::storing::Then;
use super::{Action, Host, Role, Source};

/// How far a claimed start has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Load {
    /// Not begun.
    #[default]
    No,
    /// The engine is at it.
    Going,
    /// The machine stands ready to run.
    Done,
    /// It cannot be started here.
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Waiting {
    /// Since when the record's incarnations have been silent and the record unchanged.
    quiet_since: Time,
    load: Load,
    failed_at: Time,
}

impl Waiting {
    pub(super) fn new(now: Time) -> Waiting {
        Waiting {
            quiet_since: now,
            load: Load::No,
            failed_at: now,
        }
    }
}

#[cfg(test)]
impl Waiting {
    pub(super) fn rebase(&mut self, clocks: &crate::model::Clocks) {
        clocks.own(&mut self.quiet_since);
        clocks.own(&mut self.failed_at);
    }
}

impl Host {
    pub(super) fn waiting_tick(&mut self, now: Time) {
        let Some(record) = self.seat.view().copied() else {
            return;
        };
        if self.is_me(record.runner) {
            if record.phase == Phase::Claimed && self.seat.is_idle() {
                self.start_claimed(now, &record);
            }
            return;
        }
        let answered = self.named_answers(&record);
        let Role::Waiting(waiting) = &mut self.role else {
            return;
        };
        if let Some(at) = answered {
            waiting.quiet_since = waiting.quiet_since.max(at);
        }
        let timing = &self.config.timing;
        // A host that the file does not prefer lets the other go first. That one has nothing to wait for when nobody ever
        // ran the machine: there is no newer state than its disk's that could answer.
        let enough = match self.config.preferred {
            true if record.is_new() => Duration::ZERO,
            true => timing.t_cold,
            false => timing.t_cold * 3 / 2,
        };
        let quiet = now.since(waiting.quiet_since) >= enough || !self.guards.on(Guard::ColdSilence);
        if quiet && self.seat.is_idle() && !self.is_storing() && self.may_start_cold(&record) {
            if self.guards.on(Guard::SidecarAdds) && !self.sidecar.valid.contains(&self.me) {
                let sidecar = self.sidecar.with(self.me);
                self.store(sidecar, Then::Claim);
            } else {
                self.cold_claim(now);
            }
        }
    }

    pub(super) fn waiting_learned(&mut self, now: Time, record: &Record, settled: Option<Why>) {
        let mine = self.is_me(record.runner);
        let Role::Waiting(waiting) = &mut self.role else {
            return;
        };
        waiting.quiet_since = now;
        if !mine {
            // A machine that was made for a claim of this host is in the way of the next replica.
            if std::mem::replace(&mut waiting.load, Load::No) != Load::No {
                self.act(Action::Discard);
            }
            return;
        }
        let won = settled.is_some() || !self.guards.on(Guard::ReadNever);
        match record.phase {
            Phase::Running if won || !self.guards.on(Guard::OwnIncarnation) => {
                self.launch(now, record, Source::Cold);
            }
            Phase::Claimed if !self.guards.on(Guard::ReadNever) => {
                self.launch(now, record, Source::Cold);
            }
            _ => self.waiting_tick(now),
        }
    }

    /// When last a named incarnation answered that beats a cold boot: the runner, or the heir if
    /// it is whole. Any other replica is stale.
    fn named_answers(&self, record: &Record) -> Option<Time> {
        if !self.guards.on(Guard::HeirBeatsCold) {
            return None;
        }
        let runner = self.detector.peer(record.runner).map(|p| p.heard);
        let heir = record.heir.and_then(|heir| self.detector.peer(heir));
        let heir = heir.filter(|p| p.whole).map(|p| p.heard);
        let any = if self.guards.on(Guard::OnlyHeirBeats) {
            None
        } else {
            self.detector
                .peers()
                .filter(|p| p.activity != Activity::Waiting)
                .map(|p| p.heard)
                .max()
        };
        runner.max(heir).max(any)
    }

    fn may_start_cold(&self, record: &Record) -> bool {
        let sidecar = self.coming_sidecar();
        sidecar.matches(record)
            || (!self.guards.on(Guard::SidecarMatches) && sidecar.state == DiskState::InSync)
    }

    pub(super) fn cold_claim(&mut self, now: Time) {
        let Some(record) = self.seat.view().copied() else {
            return;
        };
        let waits = matches!(self.role, Role::Waiting(_)) && self.seat.is_idle();
        if !waits || self.is_me(record.runner) || !self.may_start_cold(&record) {
            return;
        }
        // The other host's named incarnation stays, heir first: it may yet turn out to be alive.
        let others = [record.heir, Some(record.runner)].into_iter().flatten();
        let mut others = others.filter(|i| !self.sidecar.valid.contains(i));
        let keep = if self.guards.on(Guard::ColdKeepsHeir) {
            others.next()
        } else {
            None
        };
        let right = Right::Cold(self.sidecar.valid.clone());
        let phase = self.claim_phase();
        self.ask(now, Why::Claim, right, self.me, keep, phase);
    }

    pub(super) fn promote_stored(&mut self, now: Time) {
        if matches!(self.role, Role::Waiting(_)) {
            self.ask(
                now,
                Why::Claim,
                Right::Operator,
                self.me,
                None,
                Phase::Claimed,
            );
        }
    }

    /// The record names this incarnation in a claim.
    fn start_claimed(&mut self, now: Time, record: &Record) {
        let disk = self.coming_sidecar();
        let own = disk.state == DiskState::InSync
            && (disk.valid.contains(&self.me) || !self.guards.on(Guard::SidecarAdds));
        let Role::Waiting(waiting) = &mut self.role else {
            return;
        };
        match waiting.load {
            Load::No if own => {
                waiting.load = Load::Going;
                self.act(Action::Load(Source::Cold));
            }
            Load::Done => self.ask_running(now, record),
            Load::Failed
                if record.heir.is_none()
                    && now.since(waiting.failed_at) >= self.config.timing.t_c =>
            {
                waiting.load = Load::Going;
                self.act(Action::Load(Source::Cold));
            }
            Load::No | Load::Failed => self.hand_back(now, record),
            Load::Going => {}
        }
    }

    pub(super) fn loaded(&mut self, now: Time, ok: bool) {
        let load = if ok { Load::Done } else { Load::Failed };
        match &mut self.role {
            Role::Waiting(waiting) if waiting.load == Load::Going => {
                waiting.load = load;
                waiting.failed_at = now;
                self.waiting_tick(now);
            }
            Role::Frozen(frozen) => {
                frozen.loaded(now, load);
                self.frozen_tick(now);
            }
            _ => {}
        }
    }

    /// The second step of a claim, before the first instruction or frame.
    pub(super) fn ask_running(&mut self, now: Time, record: &Record) {
        let keep = if self.guards.on(Guard::RunningClearsHeir) {
            None
        } else {
            record.heir
        };
        self.ask(now, Why::Run, Right::Named, self.me, keep, Phase::Running);
    }

    /// A winner that cannot start hands the record back; not at once when it was only just
    /// handed over, or two hosts that both cannot start would do nothing else.
    pub(super) fn hand_back(&mut self, now: Time, record: &Record) {
        if let Some(heir) = record.heir
            && self.seat.stood(now) >= self.config.timing.retry
            && self.guards.on(Guard::HandBack)
        {
            self.ask(
                now,
                Why::HandBack,
                Right::Named,
                heir,
                Some(self.me),
                Phase::Claimed,
            );
        }
    }

    /// A claim's phase: the first of two steps.
    pub(super) fn claim_phase(&self) -> Phase {
        if self.guards.on(Guard::TwoSteps) {
            Phase::Claimed
        } else {
            Phase::Running
        }
    }

    /// A runner offers to fill this host.
    pub(super) fn begin(
        &mut self,
        now: Time,
        session: SessionId,
        term: Term,
        generation: Generation,
        unheld: bool,
    ) {
        // The runner's mode is another one than this host's file says: one of the two is about to change.
        if unheld != self.config.unheld {
            return;
        }
        let view = self.seat.view().copied();
        if view.is_some_and(|r| generation < r.generation || self.is_me(r.runner)) {
            return;
        }
        if let Role::Backup(replica) = &self.role {
            let same_runner = replica.session.runner == session.runner;
            if same_runner && session.number == replica.session.number {
                if replica.is_ready() {
                    self.send(session.runner, Message::Ready(session));
                }
                return;
            }
            // A straggler from before; or from a runner that has not let this heir go.
            let named = view.is_some_and(|r| r.generation == generation && self.is_heir(&r));
            let stale = same_runner && session.number < replica.session.number;
            if stale || (named && self.guards.on(Guard::NoneBeforeResync)) {
                return;
            }
        }
        if !matches!(self.role, Role::Waiting(_) | Role::Backup(_)) || !self.seat.is_idle() {
            return;
        }
        if view.is_none_or(|r| r.generation < generation) {
            self.seat.heard_of(generation);
            self.read(now);
        }
        self.role = Role::Backup(Replica::new(session, term, unheld));
        self.act(Action::Prepare(session));
        if self.guards.on(Guard::ResyncMark) {
            let sidecar = self.coming_sidecar().resyncing();
            self.store(sidecar, Then::Ready(session));
        } else {
            self.ready(session);
        }
    }
}
