//! Primary: epochs, output commit, and the naming and letting go of heirs.

use crate::guards::{Guard, Guards};
use crate::id::{Epoch, Incarnation, SessionId, Term};
use crate::message::{Checkpoint, Message};
use crate::record::{Phase, Record, Right};
use crate::time::Time;

use super::seat::Why;
use super::switchover::Rest;
use super::{Action, Host, Role, Sealed, Stays};

/// A connected incarnation that could be filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Candidate {
    pub(super) incarnation: Incarnation,
    /// A session with it failed: not again before this.
    pub(super) not_before: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Stage {
    /// `Begin` is sent, `Ready` is not here.
    Offered,
    /// The first full copy is under way.
    Copying,
    /// The replica is whole.
    Whole,
    /// It was loaded on trial.
    Tried,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Session {
    id: SessionId,
    peer: Incarnation,
    stage: Stage,
    offered: Time,
    offers: u32,
    /// The newest epoch that the peer has, whole or not: for back-pressure.
    received: Epoch,
    /// The newest epoch that the whole replica has.
    committed: Epoch,
    /// The epoch that ran when all output was held again: all that ever left before is in it.
    cover: Option<Epoch>,
}

/// The machine that this host runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Primary {
    pub(super) term: Term,
    /// The epoch that runs.
    pub(super) running: Epoch,
    session: Option<Session>,
    /// Guards removed: commits that came outside of their session.
    stray: Epoch,
    /// When the last session ended.
    ended: Time,
    /// The guest is to be stopped for good.
    pub(super) stopping: bool,
    /// A switchover is on its way.
    pub(super) rest: Option<Rest>,
    /// When the term began, or a switchover was last tried in it.
    pub(super) moved: Time,
}

/// How many times an offer is repeated before another candidate gets its turn.
const OFFERS_MAX: u32 = 10;

impl Primary {
    pub(super) fn new(term: Term, now: Time) -> Primary {
        Primary {
            term,
            running: Epoch(1),
            session: None,
            stray: Epoch(0),
            ended: Time(0),
            stopping: false,
            rest: None,
            moved: now,
        }
    }

    /// The newest epoch whose held output may leave.
    pub(super) fn committed(&self) -> Epoch {
        self.session
            .as_ref()
            .map_or(Epoch(0), |s| s.committed)
            .max(self.stray)
    }

    /// Sealed epochs without an answer.
    pub(super) fn lag(&self) -> u64 {
        let received = self.session.as_ref().map_or(Epoch(0), |s| s.received);
        (self.running.0 - 1).saturating_sub(received.0)
    }

    /// Whether it fills a backup, or has filled one.
    pub(super) fn fills(&self) -> bool {
        self.session.is_some()
    }

    pub(super) fn may_seal(&self, id: SessionId, guards: Guards) -> bool {
        let Some(session) = self.session.as_ref().filter(|s| s.id == id) else {
            return false;
        };
        let ended = self.rest.is_some_and(|rest| !rest.may_seal());
        session.stage >= Stage::Copying
            && !ended
            && (self.lag() == 0 || !guards.on(Guard::Backpressure))
    }

    /// The session, whom it fills, and the newest epoch that it has committed.
    pub(super) fn filled(&self) -> Option<(SessionId, Incarnation, Epoch)> {
        let session = self.session.as_ref()?;
        Some((session.id, session.peer, session.committed))
    }

    fn holds(&self) -> bool {
        self.session.as_ref().is_some_and(|s| s.cover.is_some())
    }
}

#[cfg(test)]
impl Candidate {
    pub(super) fn rebase(&mut self, clocks: &crate::model::Clocks) {
        clocks.own(&mut self.not_before);
    }
}

#[cfg(test)]
impl Primary {
    pub(super) fn rebase(&mut self, clocks: &crate::model::Clocks) {
        clocks.own(&mut self.ended);
        // Only uplinks depend on it.
        self.moved = Time(0);
        if let Some(rest) = &mut self.rest {
            rest.rebase(clocks);
        }
        if let Some(session) = &mut self.session {
            clocks.own(&mut session.offered);
            if clocks.is_coarse() {
                session.offers = 1;
            }
        }
    }
}

impl Host {
    /// Whether all output may leave: no heir, none asked for, none about to be.
    pub(super) fn is_alone(&self, primary: &Primary) -> bool {
        let Some(record) = self.seat.view() else {
            return false;
        };
        if record.phase != Phase::Running || !self.is_me(record.runner) {
            return false;
        }
        if !self.guards.on(Guard::NoneBeforeRelease) && primary.session.is_none() {
            return true;
        }
        if !self.guards.on(Guard::HoldBeforeNaming) {
            return record.heir.is_none()
                && (self.seat.is_idle() || self.seat.waits_for(Why::Name));
        }
        record.heir.is_none() && self.seat.is_idle() && !primary.holds()
    }

    pub(super) fn is_protected(&self, now: Time) -> bool {
        let (Role::Primary(primary), Some(record)) = (&self.role, self.seat.view()) else {
            return false;
        };
        let (Some(heir), Some(session)) = (record.heir, &primary.session) else {
            return false;
        };
        let age = self.detector.echo_age(now, heir);
        let fresh = age.is_some_and(|age| age < self.detector.t_a());
        self.seat.is_idle() && session.peer == heir && fresh && self.says_whole(heir)
    }

    /// Whether `peer`'s newest heartbeat says that it is whole. Its `Bye` may be stuck in a
    /// connection that is cut, when its heartbeats still come.
    fn says_whole(&self, peer: Incarnation) -> bool {
        self.detector.peer(peer).is_some_and(|p| p.whole) || !self.guards.on(Guard::HeirWhole)
    }

    pub(super) fn primary_tick(&mut self, now: Time) {
        let Some(record) = self.seat.view().copied() else {
            return;
        };
        let Role::Primary(primary) = &self.role else {
            return;
        };
        // A stalled loop is this host's own failure, and no reason to ask for anything.
        if !self.detector.moves(now) && self.guards.on(Guard::OwnLoop) {
            return;
        }
        if primary.rest.is_some() {
            self.switchover_tick(now);
        } else {
            self.watch_uplink(now);
        }
        let Role::Primary(primary) = &self.role else {
            return;
        };
        let session = primary.session.as_ref();
        if !self.seat.is_idle() {
            // A naming whose session is gone is settled by its opposite.
            if self.seat.waits_for(Why::Name)
                && session.is_none()
                && self.guards.on(Guard::FenceNaming)
            {
                self.let_go(now);
            }
            return;
        }
        let filled =
            session.is_some_and(|s| Some(s.peer) == record.heir && self.says_whole(s.peer));
        match record.heir {
            Some(heir) => {
                if self.detector.heir_failed(now, heir) {
                    self.freeze();
                    self.claim(now, &record);
                } else if primary.session.is_none()
                    && !primary.stopping
                    && !self.detector.turned_since(primary.ended)
                    && self.guards.on(Guard::OwnLoop)
                {
                    // The heir is let go only by a loop that still turns: one that has just
                    // stalled, and lost its connection, would leave nobody to take over.
                } else if !filled || primary.stopping {
                    if self.guards.on(Guard::NoneBeforeResync) || primary.stopping {
                        self.let_go(now);
                    } else {
                        self.fill(now);
                    }
                }
            }
            None if primary.stopping => self.ended(),
            None => self.fill(now),
        }
    }

    pub(super) fn primary_learned(&mut self, now: Time, record: &Record) {
        if !self.is_me(record.runner) || record.phase == Phase::Claimed {
            self.freeze();
            self.frozen_learned(now, record);
            return;
        }
        let Role::Primary(primary) = &mut self.role else {
            return;
        };
        if record.heir.is_none() && !self.seat.waits_for(Why::Name) {
            // Let go: what that replica committed counts no more.
            if primary.session.as_ref().is_some_and(|s| s.cover.is_some()) {
                self.close_session(now, true);
            }
        }
        self.primary_tick(now);
    }

    /// Finds somebody to fill, fills, and names when all conditions hold.
    fn fill(&mut self, now: Time) {
        let retry = self.config.timing.retry;
        let Role::Primary(primary) = &mut self.role else {
            return;
        };
        let Some(session) = &mut primary.session else {
            return self.offer(now);
        };
        // A host that lost its power closes no connection. While output waits for it, less
        // patience is due.
        let patience = if session.cover.is_some() {
            self.detector.t_a()
        } else {
            self.config.timing.t_b_max
        };
        let age = self.detector.echo_age(now, session.peer);
        if age.is_none_or(|age| age >= patience) {
            self.close_session(now, true);
            return;
        }
        let needed = match (
            self.guards.on(Guard::HeirWhole),
            self.guards.on(Guard::HeirTried),
        ) {
            (false, _) => Stage::Copying,
            (_, false) => Stage::Whole,
            _ => Stage::Tried,
        };
        if session.stage == Stage::Offered && now.since(session.offered) >= retry {
            session.offered = now;
            session.offers += 1;
            if session.offers > OFFERS_MAX {
                self.close_session(now, false);
            } else {
                self.send_offer();
            }
        } else if session.stage >= needed {
            let peer = session.peer;
            if session.cover.is_none() {
                let fresh = age.is_some_and(|age| age < self.config.timing.t_p);
                if !fresh || !self.says_whole(peer) {
                    return;
                }
                let Role::Primary(primary) = &mut self.role else {
                    return;
                };
                let running = primary.running;
                if let Some(session) = &mut primary.session {
                    session.cover = Some(running);
                }
                self.publish();
            }
            self.name(now);
        }
    }

    fn name(&mut self, now: Time) {
        let Role::Primary(primary) = &self.role else {
            return;
        };
        let Some(session) = &primary.session else {
            return;
        };
        let Some(cover) = session.cover else { return };
        let covered = if self.guards.on(Guard::HeirWhole) {
            session.committed >= cover || !self.guards.on(Guard::NameCovers)
        } else {
            session.received >= cover
        };
        if covered && self.seat.is_idle() {
            let peer = session.peer;
            self.ask(
                now,
                Why::Name,
                Right::Named,
                self.me,
                Some(peer),
                Phase::Running,
            );
        }
    }

    fn let_go(&mut self, now: Time) {
        self.ask(now, Why::LetGo, Right::Named, self.me, None, Phase::Running);
    }

    fn offer(&mut self, now: Time) {
        let lives = |c: &Candidate| {
            let age = self.detector.echo_age(now, c.incarnation);
            c.not_before <= now && age.is_some_and(|age| age < self.detector.t_a())
        };
        let Some(at) = self.connected.iter().position(lives) else {
            return;
        };
        // To the end of the queue, so that a spare gets its turn.
        let candidate = self.connected.remove(at);
        self.connected.push(candidate);
        let Role::Primary(primary) = &mut self.role else {
            return;
        };
        self.sessions += 1;
        primary.session = Some(Session {
            id: SessionId {
                runner: self.me,
                number: self.sessions,
            },
            peer: candidate.incarnation,
            stage: Stage::Offered,
            offered: now,
            offers: 1,
            received: Epoch(0),
            committed: Epoch(0),
            cover: None,
        });
        self.send_offer();
    }

    fn send_offer(&mut self) {
        let (Role::Primary(primary), Some(record)) = (&self.role, self.seat.view()) else {
            return;
        };
        let Some(session) = &primary.session else {
            return;
        };
        let (to, generation) = (session.peer, record.generation);
        let begin = Message::Begin {
            session: session.id,
            term: primary.term,
            generation,
            unheld: self.config.unheld,
        };
        self.send(to, begin);
    }

    /// A message arrived on the link.
    pub(super) fn message(&mut self, now: Time, from: Incarnation, message: &Message) {
        match *message {
            Message::Begin {
                session,
                term,
                generation,
                unheld,
            } if session.runner == from => {
                self.begin(now, session, term, generation, unheld);
            }
            Message::Checkpoint(ref checkpoint) => self.checkpoint(from, checkpoint),
            Message::Ready(session) => {
                if let Some(s) = self.session(from, session)
                    && s.stage == Stage::Offered
                {
                    s.stage = Stage::Copying;
                    self.copying(session);
                }
            }
            Message::Received(session, epoch) => {
                self.acknowledged(now, from, session, epoch, false);
            }
            Message::Commit(session, epoch) => self.acknowledged(now, from, session, epoch, true),
            Message::Tried(session) => {
                if let Some(s) = self.session(from, session)
                    && s.stage == Stage::Whole
                {
                    s.stage = Stage::Tried;
                    self.primary_tick(now);
                }
            }
            Message::Bye(session) => {
                if self.session(from, session).is_some() {
                    self.close_session(now, false);
                    self.primary_tick(now);
                }
            }
            Message::Yield(session) => self.yielded(now, from, session),
            Message::Stopped => self.stopped(now, from),
            Message::Begin { .. }
            | Message::Hello(_)
            | Message::Digests { .. }
            | Message::Part { .. }
            | Message::Frame { .. } => {}
        }
    }

    /// The session that a message speaks of, if it is the present one.
    fn session(&mut self, from: Incarnation, id: SessionId) -> Option<&mut Session> {
        let primary = match &mut self.role {
            Role::Primary(primary) => primary,
            // Frozen: commits do not count.
            Role::Frozen(frozen) if !self.guards.on(Guard::Freeze) => frozen.machine_mut()?,
            _ => return None,
        };
        primary
            .session
            .as_mut()
            .filter(|s| s.id == id && s.peer == from)
    }

    fn copying(&mut self, session: SessionId) {
        let Role::Primary(primary) = &mut self.role else {
            return;
        };
        let before = Epoch(primary.running.0 - 1);
        if let Some(s) = &mut primary.session {
            // Nothing that was sealed before this session is owed to it.
            s.received = before;
        }
        self.act(Action::Copy(session));
    }

    pub(super) fn sealed(&mut self, now: Time, sealed: Sealed) {
        let Role::Primary(primary) = &mut self.role else {
            return;
        };
        let (term, epoch) = (primary.term, primary.running);
        if term != sealed.term && self.guards.on(Guard::SealOfTerm) {
            // The epochs of this one are counted anew.
            return;
        }
        primary.running = epoch.next();
        let Some(session) = &mut primary.session else {
            return;
        };
        if session.id != sealed.session && self.guards.on(Guard::SealOfSession) {
            // The session for which it was ended has ended itself meanwhile: it goes nowhere, and
            // all that is in it, the next one's full copy has.
            session.received = session.received.max(epoch);
            return;
        }
        let checkpoint = Checkpoint {
            session: session.id,
            term,
            epoch,
            complete: sealed.complete,
            released_through: sealed.released_through,
            rx_next: sealed.rx_next,
            // The epoch is encoded while the next one runs: the edge fills these in when it sends.
            parts: 0,
            digest: 0,
        };
        let to = session.peer;
        self.send(to, Message::Checkpoint(checkpoint));
        self.rests(now, epoch, sealed.rests);
    }

    fn acknowledged(
        &mut self,
        now: Time,
        from: Incarnation,
        id: SessionId,
        epoch: Epoch,
        commit: bool,
    ) {
        if let Role::Primary(primary) = &mut self.role
            && commit
            && !self.guards.on(Guard::SessionCommits)
        {
            primary.stray = primary.stray.max(epoch);
        }
        let sealed = match &self.role {
            Role::Primary(primary) => primary.running.0,
            _ => u64::MAX,
        };
        let Some(session) = self.session(from, id) else {
            return;
        };
        if epoch.0 >= sealed || session.stage < Stage::Copying {
            // It speaks of what was never sent: a broken peer.
            return;
        }
        session.received = session.received.max(epoch);
        if commit {
            session.committed = session.committed.max(epoch);
            session.stage = session.stage.max(Stage::Whole);
        }
        if matches!(self.role, Role::Primary(_)) {
            self.primary_tick(now);
        }
    }

    pub(super) fn session_closed(&mut self, now: Time, peer: Incarnation) {
        let Role::Primary(primary) = &self.role else {
            return;
        };
        if primary.session.as_ref().is_some_and(|s| s.peer == peer) {
            self.close_session(now, false);
            self.primary_tick(now);
        }
    }

    pub(super) fn close_session(&mut self, now: Time, bye: bool) {
        let Role::Primary(primary) = &mut self.role else {
            return;
        };
        let Some(session) = primary.session.take() else {
            return;
        };
        primary.ended = now;
        for candidate in &mut self.connected {
            if candidate.incarnation == session.peer {
                candidate.not_before = now + self.config.timing.retry * 4;
            }
        }
        if bye {
            self.send(session.peer, Message::Bye(session.id));
        }
        self.act(Action::EndCopy(session.id));
        if self.guards.on(Guard::SwitchGivesUp) {
            self.go_on(Stays::NoCommit);
        }
    }

    /// The guest is stopped for good and nobody may resurrect it: the record has no heir.
    fn ended(&mut self) {
        // What the guest said last, nothing holds any more.
        self.publish();
        let peers: Vec<Incarnation> = self.connected.iter().map(|c| c.incarnation).collect();
        for peer in peers {
            self.send(peer, Message::Stopped);
        }
        self.end();
    }
}
