//! One host's process of one machine: its role, and all that changes it.
//!
//! ```text
//!                  Begin (runner fills us)               freeze, claim
//!    ┌─────────┐ ─────────────────────────▶ ┌────────┐ ───────────────▶ ┌────────┐
//!    │ Waiting │                            │ Backup │                  │ Frozen │
//!    └─────────┘ ◀───────────────────────── └────────┘ ◀─────────────── └────────┘
//!      │  ▲  ▲     session or replica lost       the claim failed, still heir  │ ▲
//!      │  │  └──────────────────────────────────────────────────────────────── │ │ freeze,
//!      │  │        the other side is `running`: drop all                       │ │ claim, or
//!      │  │                                                                    │ │ the other
//!      │  └ the other side is `running`: drop all ─┐       won `running`       │ │ side's claim
//!      │                                           │                           ▼ │
//!      │    cold claim, won `running`            ┌─────────┐ ◀─────────────────┘ │
//!      └───────────────────────────────────────▶ │ Primary │ ────────────────────┘
//!                                                └─────────┘
//! ```
//!
//! Nothing but a won `running` leads to *Primary* (`Host::launch`). The files follow the roles:
//! `waiting`, `primary`, `backup`, `frozen`; `seat` keeps the view of the record and the one request
//! whose outcome is unknown; `permit` says what may leave; `storing` writes the sidecar;
//! `switchover` is what the two do on purpose, or for an uplink.
//!
//! # Driving it
//!
//! An engine keeps one [`Host`] behind a mutex. The heartbeat thread gives it [`Event::Tick`] by
//! [`Host::deadline`], after it has read its sockets; the epoch loop gives it
//! [`Event::LoopTurned`] at each turn; what arrives becomes an event. After each event the caller
//! takes [`Host::poll`] until it is empty, before it lets go of the mutex, and hands each action to
//! the thread that owns it. [`Permit`] is published to the thread that writes to the tap, which
//! checks it right before each frame.

mod api;
mod backup;
mod frozen;
mod operator;
mod permit;
mod primary;
mod seat;
mod storing;
mod switchover;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::VecDeque;

pub use api::{Action, Config, Event, Notice, RoleName, Sealed, Source, Status, Stays, Switch};
pub use permit::{Pass, Permit};

use backup::Replica;
use frozen::Frozen;
use primary::Primary;
use seat::{News, Seat, Why};
use storing::Stores;
use switchover::OwnUplink;
use waiting::Waiting;

use crate::arbiter::{Answer, Ask};
use crate::detector::Detector;
use crate::guards::{Guard, Guards};
use crate::heartbeat::{Activity, Heartbeat, Uplink};
use crate::id::{Epoch, Generation, Incarnation, SessionId, Term};
use crate::lanes::Lane;
use crate::record::{Phase, Record, Refusal, Right};
use crate::sidecar::Sidecar;
use crate::time::Time;
use crate::timing::TimingError;

/// Links remembered at a time; the oldest makes room.
const CONNECTED_MAX: usize = 8;

/// What the host is and all that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Role {
    Waiting(Waiting),
    Backup(Replica),
    Frozen(Frozen),
    Primary(Primary),
    Ended,
}

/// The state machine of one process. Give it events, then do what [`Host::poll`] says, in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Host {
    config: Config,
    me: Incarnation,
    guards: Guards,
    role: Role,
    seat: Seat,
    detector: Detector,
    sidecar: Sidecar,
    stores: Stores,
    connected: Vec<primary::Candidate>,
    /// Sessions that this incarnation has offered, over all of its terms.
    sessions: u64,
    actions: VecDeque<Action>,
    permit: Permit,
    protected: Option<Time>,
    unreachable: bool,
    /// What the arbiter's last answer had to complain about.
    trouble: Option<Notice>,
    /// The mode that is wanted: whether some output is unheld.
    wanted_mode: Option<bool>,
    uplink: OwnUplink,
}

impl Host {
    /// A process that has just started. `me` is new and random; `sidecar` is read from beside
    /// the disk.
    ///
    /// # Errors
    /// When the timing is not safe.
    pub fn new(
        config: Config,
        me: Incarnation,
        sidecar: Sidecar,
        now: Time,
    ) -> Result<Host, TimingError> {
        Host::with_guards(config, me, sidecar, now, Guards::default())
    }

    /// [`Host::new`] with guards removed.
    ///
    /// # Errors
    /// When the timing is not safe, unless that guard is removed.
    #[cfg(any(test, feature = "weaken"))]
    pub fn weakened(
        config: Config,
        me: Incarnation,
        sidecar: Sidecar,
        now: Time,
        guards: Guards,
    ) -> Result<Host, TimingError> {
        Host::with_guards(config, me, sidecar, now, guards)
    }

    fn with_guards(
        config: Config,
        me: Incarnation,
        sidecar: Sidecar,
        now: Time,
        guards: Guards,
    ) -> Result<Host, TimingError> {
        config.timing.check_with(guards)?;
        let mut host = Host {
            me,
            guards,
            role: Role::Waiting(Waiting::new(now)),
            seat: Seat::new(config.machine, me, guards),
            detector: Detector::with_guards(config.timing, now, guards),
            sidecar,
            stores: Stores::default(),
            connected: Vec::new(),
            sessions: 0,
            actions: VecDeque::new(),
            permit: Permit::nothing(),
            protected: None,
            unreachable: false,
            trouble: None,
            wanted_mode: None,
            uplink: OwnUplink::new(now),
            config,
        };
        host.read(now);
        host.settle(now);
        Ok(host)
    }

    /// Takes an event.
    pub fn handle(&mut self, now: Time, event: Event) {
        match event {
            Event::Tick { drained } => self.tick(now, drained),
            Event::LoopTurned => self.detector.loop_turned(now),
            Event::Heartbeat {
                beat,
                lane,
                arrived,
            } => self.heard(now, arrived, &beat, lane),
            Event::Arbiter(answer) => self.answered(now, &answer),
            Event::Connected(peer) => self.connection(now, peer, true),
            Event::Closed(peer) => self.connection(now, peer, false),
            Event::Message { from, message } => {
                self.detector.link_moved(now, from);
                self.message(now, from, &message);
            }
            Event::Sealed(sealed) => self.sealed(now, sealed),
            Event::Tried { session, loaded } => self.tried(session, loaded),
            Event::ReplicaLost => self.replica_lost(),
            Event::SidecarStored(durable) => self.sidecar_stored(now, durable),
            Event::Loaded(ok) => self.loaded(now, ok),
            Event::Stop => self.stop(now),
            Event::Promote => self.promote(now),
            Event::Switchover => self.switch_over(now, Switch::Operator),
            Event::Uplink(state) => self.uplink_seen(now, state),
            Event::Mode { unheld } => self.wanted_mode = Some(unheld),
        }
        self.settle(now);
    }

    /// The next thing to do, oldest first.
    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When the next [`Event::Tick`] is due at the latest: with the next heartbeat, or when the
    /// silence of the other side is long enough to claim, should nothing be read by then.
    pub fn deadline(&self, now: Time) -> Time {
        let beat = self.detector.due().unwrap_or(now);
        self.claim_due(now).map_or(beat, |claim| claim.min(beat))
    }

    fn claim_due(&self, now: Time) -> Option<Time> {
        let record = self.seat.view()?;
        match &self.role {
            Role::Backup(replica) => {
                let unheld = self.replica_unheld(replica);
                self.detector.runner_due(now, record.runner, unheld)
            }
            Role::Primary(_) => self.detector.heir_due(now, record.heir?),
            _ => None,
        }
    }

    /// What may leave now. Check it right before each frame.
    pub fn permit(&self) -> Permit {
        self.permit
    }

    /// Whether the engine may end the running epoch for this session. When not, the guest waits: at most one
    /// epoch is uncommitted behind the running one.
    pub fn may_seal(&self, session: SessionId) -> bool {
        match &self.role {
            Role::Primary(primary) => primary.may_seal(session, self.guards),
            _ => false,
        }
    }

    /// Whether some output is not held.
    pub fn unheld(&self) -> bool {
        self.config.unheld
    }

    /// Whether another mode is wanted that is not in force yet.
    pub fn changes_mode(&self) -> bool {
        self.wanted_mode.is_some()
    }

    /// What `romulus status` shows.
    pub fn status(&self) -> Status {
        let (role, term, epoch, lag, whole) = match &self.role {
            Role::Waiting(_) => (RoleName::Waiting, None, Epoch(0), 0, false),
            Role::Backup(r) => (RoleName::Backup, Some(r.term), r.received, 0, r.is_whole()),
            Role::Frozen(f) => (RoleName::Frozen, Some(f.term()), Epoch(0), 0, f.usable()),
            Role::Primary(p) => (RoleName::Primary, Some(p.term), p.running, p.lag(), true),
            Role::Ended => (RoleName::Ended, None, Epoch(0), 0, false),
        };
        Status {
            role,
            term,
            epoch,
            lag,
            whole,
            record: self.seat.view().copied(),
            protected_since: self.protected,
            t_b: self.detector.t_b(),
            arbiter_answers: !self.unreachable,
            uplink: self.uplink.state,
            partner_uplink: self.partner_uplink(),
        }
    }

    fn partner_uplink(&self) -> Option<Uplink> {
        let record = self.seat.view()?;
        let partner = if self.is_me(record.runner) {
            record.heir?
        } else {
            record.runner
        };
        Some(self.detector.peer(partner)?.uplink)
    }

    fn tick(&mut self, now: Time, drained: bool) {
        if let Some(t_b) = self.detector.tick(now, drained) {
            let noise = self.detector.noise();
            self.notice(Notice::Adapted { t_b, noise });
        }
        while let Some(peer) = self.detector.dead_link(now) {
            self.notice(Notice::LinkDead);
            self.act(Action::CloseLink(peer));
        }
        self.beat(now);
        self.retry_store();
        let timing = self.config.timing;
        if let Some(request) = self.seat.retry(now, timing.retry) {
            self.act(Action::Arbiter(request));
        }
        let unsettled = match &self.role {
            Role::Frozen(_) | Role::Waiting(_) => true,
            Role::Backup(_) => self.seat.view().is_none_or(|r| r.phase == Phase::Claimed),
            Role::Primary(_) | Role::Ended => false,
        };
        let every = if unsettled { timing.retry } else { timing.poll };
        if self.seat.read_due(now, every) {
            self.read(now);
        }
        self.reachable(now);
        match self.role {
            Role::Waiting(_) => self.waiting_tick(now),
            Role::Backup(_) => self.backup_tick(now),
            Role::Frozen(_) => self.frozen_tick(now),
            Role::Primary(_) => self.primary_tick(now),
            Role::Ended => {}
        }
    }

    fn beat(&mut self, now: Time) {
        if self.detector.due().is_some_and(|due| due > now) {
            return;
        }
        let (activity, whole, moves) = match &self.role {
            Role::Waiting(_) => (Activity::Waiting, false, true),
            Role::Backup(replica) => (Activity::Backup, replica.is_whole(), true),
            Role::Frozen(f) => (Activity::Frozen, f.usable(), !self.guards.on(Guard::Freeze)),
            Role::Primary(_) => (Activity::Primary, true, true),
            Role::Ended => return,
        };
        let record = self.seat.view().copied();
        let (me, careless) = (self.me, !self.guards.on(Guard::VouchForRunner));
        // A runner vouches for those that it fills or could fill, all others for the runner. A
        // frozen host keeps nobody going: losing the other side is not permission.
        let vouch = |peer: &crate::detector::Peer| {
            let fillable = matches!(peer.activity, Activity::Waiting | Activity::Backup);
            let runner = record.map(|r| r.runner);
            let right = if runner == Some(me) {
                fillable
            } else {
                runner == Some(peer.incarnation)
            };
            moves && (right || careless)
        };
        let say = Heartbeat {
            machine: self.config.machine,
            from: self.me,
            sent: now,
            moves,
            activity,
            whole,
            uplink: self.uplink.state,
            generation: self.seat.view().map_or(Generation(0), |r| r.generation),
            echoes: Vec::new(),
        };
        let beat = self.detector.beat(now, say, vouch);
        self.act(Action::Heartbeat(beat));
    }

    fn heard(&mut self, now: Time, arrived: Time, beat: &Heartbeat, lane: Lane) {
        if beat.machine != self.config.machine || beat.from == self.me {
            return;
        }
        self.detector.heard(now, arrived, beat, lane, self.me);
        if self
            .seat
            .view()
            .is_some_and(|r| r.generation < beat.generation)
            && self.seat.read_due(now, self.config.timing.heartbeat)
        {
            self.read(now);
        }
    }

    fn connection(&mut self, now: Time, peer: Incarnation, open: bool) {
        self.detector.connection(now, peer, open);
        self.connected.retain(|c| c.incarnation != peer);
        if open {
            if self.connected.len() == CONNECTED_MAX {
                self.connected.remove(0);
            }
            self.connected.push(primary::Candidate {
                incarnation: peer,
                not_before: now,
            });
        }
        // A new connection too: what the old one carried is gone.
        match self.role {
            Role::Primary(_) => self.session_closed(now, peer),
            Role::Backup(_) => self.stream_closed(now, peer),
            _ => {}
        }
    }

    fn answered(&mut self, now: Time, answer: &Answer) {
        if answer.machine != self.config.machine || answer.to != self.me {
            return;
        }
        let news = self.seat.learn(now, answer);
        // Said once, not at every try.
        let trouble = match (news, answer.refusal) {
            (News::Lower { record }, _) => Some(Notice::RecordLost { record }),
            (_, None | Some(Refusal::Generation)) => None,
            (_, Some(refusal)) => Some(Notice::Refused(refusal)),
        };
        if trouble != self.trouble {
            self.trouble = trouble;
            if let Some(trouble) = trouble {
                self.notice(trouble);
            }
        }
        match news {
            News::None | News::Lower { .. } => {}
            News::Record { settled } => self.learned(now, settled),
            News::GaveUp(why) => self.gave_up(now, why),
        }
    }

    /// The record is newer than what was known, and settled the request that waited.
    fn learned(&mut self, now: Time, settled: Option<Why>) {
        let Some(record) = self.seat.view().copied() else {
            return;
        };
        match self.role {
            Role::Waiting(_) => self.waiting_learned(now, &record, settled),
            Role::Backup(_) => self.backup_learned(now, &record),
            Role::Frozen(_) => self.frozen_learned(now, &record),
            Role::Primary(_) => self.primary_learned(now, &record),
            Role::Ended => {}
        }
    }

    /// Starts the term that `record` began. The only way to become primary.
    fn launch(&mut self, now: Time, record: &Record, source: Source) {
        let term = Term(record.generation);
        // A machine that goes on after it was frozen begins a term in which nobody is filled yet.
        if let Role::Frozen(frozen) = &self.role
            && let Some((session, ..)) = frozen.machine().and_then(Primary::filled)
        {
            self.act(Action::EndCopy(session));
        }
        self.role = Role::Primary(Primary::new(term, now));
        self.seat.forget_pending();
        let sidecar = Sidecar::of(self.config.machine, self.me);
        if self.sidecar != sidecar {
            self.store(sidecar, storing::Then::Nothing);
        }
        self.act(Action::Run { source, term });
        self.notice(Notice::Running { term });
    }

    /// Drops everything and waits for whoever runs to fill this host again.
    fn drop_all(&mut self, now: Time) {
        self.role = Role::Waiting(Waiting::new(now));
        self.act(Action::Discard);
    }

    fn ask(
        &mut self,
        now: Time,
        why: Why,
        right: Right,
        runner: Incarnation,
        heir: Option<Incarnation>,
        phase: Phase,
    ) {
        if let Some(request) = self.seat.ask(now, why, right, runner, heir, phase) {
            self.act(Action::Arbiter(request));
        }
    }

    fn read(&mut self, now: Time) {
        let request = self.seat.request(Ask::Read);
        self.seat.asked(now);
        self.act(Action::Arbiter(request));
    }

    fn reachable(&mut self, now: Time) {
        let limit = self.config.timing.poll * 2 + self.config.timing.retry;
        let unreachable = self.seat.unanswered(now) > limit;
        if unreachable != self.unreachable {
            self.unreachable = unreachable;
            self.notice(Notice::Arbiter {
                answers: !unreachable,
            });
        }
    }

    /// Whether `incarnation` is this process. (A weakened protocol compares hosts.)
    fn is_me(&self, incarnation: Incarnation) -> bool {
        #[cfg(any(test, feature = "weaken"))]
        if !self.guards.on(Guard::OwnIncarnation) {
            return incarnation.same_host(self.me);
        }
        incarnation == self.me
    }

    fn is_heir(&self, record: &Record) -> bool {
        record.heir.is_some_and(|heir| self.is_me(heir))
    }

    fn send(&mut self, to: Incarnation, message: crate::message::Message) {
        self.act(Action::Send { to, message });
    }

    fn notice(&mut self, notice: Notice) {
        self.act(Action::Notice(notice));
    }

    fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    /// Says what may leave, if that has changed. What forbids output does so before any request
    /// that depends on it is sent.
    fn publish(&mut self) {
        let permit = self.current_permit();
        if permit != self.permit {
            self.permit = permit;
            self.act(Action::Permit(permit));
        }
    }

    /// After every event: say what may leave, and whether the machine is protected.
    fn settle(&mut self, now: Time) {
        self.change_mode();
        self.publish();
        let protected = self.is_protected(now);
        if protected != self.protected.is_some() {
            self.protected = protected.then_some(now);
            if matches!(self.role, Role::Primary(_)) || !protected {
                self.notice(Notice::Protected(protected));
            }
        }
    }
}

#[cfg(test)]
impl Host {
    /// The same process with all of its times relative to now, and without what changes nothing
    /// but notices: the model tells two states apart by what matters.
    pub(crate) fn rebase(&mut self, clocks: &crate::model::Clocks) {
        match &mut self.role {
            Role::Waiting(waiting) => waiting.rebase(clocks),
            Role::Frozen(frozen) => frozen.rebase(clocks),
            Role::Primary(primary) => primary.rebase(clocks),
            Role::Backup(_) | Role::Ended => {}
        }
        self.seat.rebase(clocks);
        self.detector.rebase(clocks);
        if clocks.is_warm() && matches!(self.role, Role::Primary(_)) {
            self.detector.forget_vouched();
        }
        for candidate in &mut self.connected {
            candidate.rebase(clocks);
        }
        self.permit.until.iter_mut().for_each(|t| clocks.own(t));
        self.protected = self.protected.map(|_| Time(0));
        (self.unreachable, self.trouble) = (false, None);
        self.uplink.rebase();
    }

    /// How many sessions this process has offered.
    pub(crate) fn sessions(&self) -> u64 {
        self.sessions
    }
}
