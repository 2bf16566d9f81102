//! The thread of signalling: all user agents of a run, their lines, and what they do when.

use super::{
    Connections, Plan, Shared,
    course::{Course, Side, Step},
    line::{Line, Lines},
    outcome::{CallOutcome, Outcome, StreamOutcome},
};
use crate::{
    call::{Agent, Event, Failure, Identity, Message, Method, Out, Record, Registration, Session},
    media::stream::{Media, Streams},
};
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
};
use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::OwnedFd,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

/// REGISTER requests that wait for their answers at a time.
const WINDOW: usize = 16;
/// How soon an event, or the end, is noticed.
const NOTICE: Duration = Duration::from_millis(5);

/// How far the calls of a run are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Callees whose registration has been answered.
    pub registered: usize,
    /// Calls whose INVITE was sent.
    pub invited: usize,
    /// Calls that ring now, as far as the caller knows.
    pub ringing: usize,
    /// Calls that are up now.
    pub up: usize,
    /// Calls that are over, well or not.
    pub over: usize,
    /// Calls of which something went wrong.
    pub failed: usize,
    /// Everything is over.
    pub done: bool,
}

/// One call with both its ends.
struct Call {
    course: Course,
    caller: Option<Agent>,
    callee: Option<Agent>,
    registration: Option<Registration>,
    /// Media of the caller and of the callee.
    ends: [Option<usize>; 2],
    /// Where they send it.
    targets: [Option<SocketAddr>; 2],
    failure: Option<Failure>,
}

/// All telephones of a run.
pub(super) struct Phones {
    plan: Plan,
    shared: Arc<Shared>,
    media: Media,
    poll: OwnedFd,
    /// The callers', then the callees'.
    lines: Vec<Line>,
    calls: Vec<Call>,
    by_id: HashMap<String, usize>,
    /// When all callees had registered.
    start: Option<Duration>,
}

impl Phones {
    pub(super) fn new(plan: Plan, shared: Arc<Shared>, media: Media) -> io::Result<Self> {
        let each = match plan.connections {
            Connections::Shared => 1,
            Connections::Each => plan.scripts.len(),
        };
        let lines = Lines::new(plan.server, plan.local, plan.transport)?;
        let lines: Vec<Line> = (0..2 * each)
            .map(|_| lines.open())
            .collect::<io::Result<_>>()?;
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (number, line) in lines.iter().enumerate() {
            let data = epoll::EventData::new_u64(number as u64);
            epoll::add(&poll, line, data, epoll::EventFlags::IN)?;
        }
        let calls = plan.scripts.iter().map(|_| Call {
            course: Course::default(),
            caller: None,
            callee: None,
            registration: None,
            ends: [None, None],
            targets: [None, None],
            failure: None,
        });
        Ok(Self {
            calls: calls.collect(),
            plan,
            shared,
            media,
            poll,
            lines,
            by_id: HashMap::new(),
            start: None,
        })
    }

    /// Runs to the end.
    pub(super) fn run(mut self) -> Outcome {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(256);
        let mut due = Duration::ZERO;
        while !self.shared.stop.load(Ordering::Acquire) {
            let now = self.shared.clock.now();
            if events.is_empty() && now < due {
                let wait = due.saturating_sub(now).min(NOTICE);
                let wait = Timespec::try_from(wait).ok();
                // An error can only be a signal's interruption; the next turn asks again.
                let _ = epoll::wait(&self.poll, spare_capacity(&mut events), wait.as_ref());
            }
            for event in events.drain(..) {
                let number = usize::try_from({ event.data }.u64()).unwrap_or(usize::MAX);
                self.receive(number);
            }
            due = self.act();
        }
        self.outcome()
    }

    /// Who a user agent is.
    fn identity(&self, call: usize, side: Side) -> Identity {
        let name = match side {
            Side::Caller => "caller",
            Side::Callee => "callee",
        };
        Identity {
            transport: self.plan.transport,
            local: self.lines[self.line(call, side)].local(),
            domain: domain(self.plan.server.ip()),
            user: format!("{name}-{:08x}-{call}", self.plan.run),
        }
    }

    /// The line of an end of a call.
    fn line(&self, call: usize, side: Side) -> usize {
        let half = self.lines.len() / 2;
        let first = match side {
            Side::Caller => 0,
            Side::Callee => half,
        };
        first + call % half.max(1)
    }

    /// Takes what has come over a line.
    fn receive(&mut self, number: usize) {
        let mut messages = Vec::new();
        let Some(line) = self.lines.get_mut(number) else {
            return;
        };
        line.receive(|message| messages.push(message));
        let lost = line.is_lost();
        let side = if number < self.lines.len() / 2 {
            Side::Caller
        } else {
            Side::Callee
        };
        for message in messages {
            self.deliver(side, &message);
        }
        if lost {
            // A connection that is closed is ready to be read for ever.
            let _ = epoll::delete(&self.poll, &self.lines[number]);
            for call in 0..self.calls.len() {
                if self.line(call, side) == number {
                    self.with(call, side, |agent, _, out| agent.connection_lost(out));
                    let call = &mut self.calls[call];
                    call.failure.get_or_insert(Failure::ConnectionLost);
                }
            }
        }
    }

    /// Gives a message to whom it is for.
    fn deliver(&mut self, side: Side, message: &Message) {
        let known = message.call_id().and_then(|id| self.by_id.get(id)).copied();
        let Some(call) = known else {
            return;
        };
        let now = self.shared.clock.now();
        if message
            .cseq()
            .is_some_and(|cseq| cseq.method == Method::Register)
        {
            if let Some(registration) = &mut self.calls[call].registration {
                registration.receive(now, message);
            }
            return;
        }
        let is_new = side == Side::Callee
            && self.calls[call].callee.is_none()
            && message.method() == Some(&Method::Invite);
        if is_new {
            self.ring(call, message, now);
        } else {
            self.with(call, side, |agent, now, out| {
                agent.receive(now, message, out);
            });
        }
    }

    /// A callee's telephone rings.
    fn ring(&mut self, call: usize, invite: &Message, now: Duration) {
        let Some(session) = self.open(call, Side::Callee) else {
            return;
        };
        let tag = format!("{:08x}-{call}-b", self.plan.run);
        let mut out = Out::default();
        let me = self.identity(call, Side::Callee);
        self.calls[call].callee = Agent::called(me, invite, &tag, session, now, &mut out);
        self.take(call, Side::Callee, out);
    }

    /// The media socket of an end, and its description.
    fn open(&mut self, call: usize, side: Side) -> Option<Session> {
        let (sends, expects) = streams(call, side);
        let opened = rtp_socket(self.plan.local).and_then(|socket| {
            let rtp = socket.local_addr()?;
            Ok((rtp, self.media.open(socket, sends, expects)?))
        });
        let Ok((rtp, end)) = opened else {
            // No file descriptors are left, or no ports.
            self.calls[call]
                .failure
                .get_or_insert(Failure::Incompatible);
            return None;
        };
        self.calls[call].ends[usize::from(side == Side::Callee)] = Some(end);
        Some(Session {
            id: u64::from(self.plan.run) << 20 | call as u64,
            version: 1,
            rtp,
            codecs: vec![self.plan.codec],
        })
    }

    /// Lets an end's agent act, and does what comes out of it.
    fn with(&mut self, call: usize, side: Side, act: impl FnOnce(&mut Agent, Duration, &mut Out)) {
        let now = self.shared.clock.now();
        let mut out = Out::default();
        let agent = match side {
            Side::Caller => &mut self.calls[call].caller,
            Side::Callee => &mut self.calls[call].callee,
        };
        if let Some(agent) = agent {
            act(agent, now, &mut out);
            self.take(call, side, out);
        }
    }

    /// Sends what is to be sent, and takes note of what has happened.
    fn take(&mut self, call: usize, side: Side, out: Out) {
        let line = self.line(call, side);
        for message in &out.messages {
            self.lines[line].send(message);
        }
        let now = self.shared.clock.now();
        for event in out.events {
            let own = &mut self.calls[call];
            match (event, side) {
                (Event::Ringing, Side::Callee) => own.course.rings = Some(now),
                (Event::Ringing, Side::Caller) => own.course.heard = true,
                (Event::Up(to), side) => {
                    if side == Side::Callee {
                        own.course.up = true;
                    }
                    self.send_media(call, side, &to);
                }
                (Event::Changed(to), side) => {
                    if own.course.hushed.is_none() {
                        self.send_media(call, side, &to);
                    }
                }
                (Event::Ended | Event::Cancelled, _) => self.hush(call),
                (Event::Failed(failure), _) => {
                    own.failure.get_or_insert(failure);
                }
            }
        }
    }

    fn send_media(&mut self, call: usize, side: Side, to: &Session) {
        let own = usize::from(side == Side::Callee);
        self.calls[call].targets[own] = Some(to.rtp);
        let end = self.calls[call].ends[own];
        if let Some(end) = end.filter(|_| self.plan.media) {
            self.media.send(end, to.rtp, self.plan.codec);
        }
    }

    fn hush(&self, call: usize) {
        for end in self.calls[call].ends.into_iter().flatten() {
            self.media.hush(end);
        }
    }

    /// Does what is due. Gives when the next thing is.
    fn act(&mut self) -> Duration {
        let now = self.shared.clock.now();
        for line in &mut self.lines {
            line.flush();
        }
        let mut next = now + NOTICE * 4;
        if self.start.is_none() {
            next = next.min(self.register(now));
        }
        let mut progress = Progress::default();
        for call in 0..self.calls.len() {
            for side in [Side::Caller, Side::Callee] {
                let agent = match side {
                    Side::Caller => &self.calls[call].caller,
                    Side::Callee => &self.calls[call].callee,
                };
                let due = agent.as_ref().and_then(Agent::deadline);
                if due.is_some_and(|due| due <= now) {
                    self.with(call, side, Agent::tick);
                } else if let Some(due) = due {
                    next = next.min(due);
                }
            }
            if let Some(start) = self.start {
                let own = &self.calls[call];
                let step = own
                    .course
                    .next(&self.plan.scripts[call], start, self.shared.event());
                match step {
                    Some((due, step)) if due <= now => {
                        self.step(call, step, now);
                        next = now;
                    }
                    Some((due, _)) => next = next.min(due),
                    None => {}
                }
            }
            self.calls[call].count(&mut progress);
        }
        progress.done = progress.over == self.calls.len() && self.start.is_some();
        *self
            .shared
            .progress
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = progress;
        next
    }

    /// Registers callees, some at a time, until all have an answer or none is to be had.
    fn register(&mut self, now: Duration) -> Duration {
        let (mut waiting, mut open) = (0, 0);
        let mut next = now + NOTICE * 4;
        for call in 0..self.calls.len() {
            let line = self.line(call, Side::Callee);
            let Some(registration) = &mut self.calls[call].registration else {
                open += 1;
                if waiting < WINDOW {
                    waiting += 1;
                    let id = format!("{:08x}-r{call}@{}", self.plan.run, self.plan.local);
                    let tag = format!("{:08x}-{call}-r", self.plan.run);
                    let me = self.identity(call, Side::Callee);
                    let (registration, request) = Registration::new(&me, &id, &tag, now);
                    self.by_id.insert(id, call);
                    self.calls[call].registration = Some(registration);
                    self.lines[line].send(&request);
                }
                continue;
            };
            if registration.outcome.is_none() {
                waiting += 1;
                open += 1;
                if let Some(request) = registration.tick(now) {
                    self.lines[line].send(&request);
                }
                next = next.min(registration.deadline().unwrap_or(next));
            }
            if let Some(Err(failure)) = &registration.outcome {
                let failure = failure.clone();
                self.calls[call].failure.get_or_insert(failure);
            }
        }
        if open == 0 {
            self.start = Some(now);
        }
        next
    }

    /// Does one step of a script.
    fn step(&mut self, call: usize, step: Step, now: Duration) {
        let course = &mut self.calls[call].course;
        match step {
            Step::Invite => {
                course.invited = true;
                if self.calls[call].failure.is_none()
                    && let Some(session) = self.open(call, Side::Caller)
                {
                    let id = format!("{:08x}-{call}@{}", self.plan.run, self.plan.local);
                    let tag = format!("{:08x}-{call}-a", self.plan.run);
                    let me = self.identity(call, Side::Caller);
                    let callee = self.identity(call, Side::Callee).user;
                    self.by_id.insert(id.clone(), call);
                    let mut out = Out::default();
                    let agent = Agent::call(me, &callee, &id, &tag, session, now, &mut out);
                    self.calls[call].caller = Some(agent);
                    self.take(call, Side::Caller, out);
                }
            }
            Step::Answer => {
                course.answered = true;
                self.with(call, Side::Callee, Agent::answer);
            }
            Step::Cancel => {
                course.cancelled = true;
                self.with(call, Side::Caller, Agent::cancel);
            }
            Step::Reinvite => {
                course.changed = true;
                self.with(call, Side::Caller, Agent::reinvite);
            }
            Step::Hush => {
                course.hushed = Some(now);
                self.hush(call);
            }
            Step::HangUp(side) => {
                course.hung_up = true;
                self.with(call, side, Agent::hang_up);
            }
        }
    }

    fn outcome(self) -> Outcome {
        let event = self.shared.event();
        let streams = self.media.finish();
        let wanted = self.plan.media;
        let registered = |call: &Call| {
            let outcome = call.registration.as_ref().and_then(|r| r.outcome.as_ref());
            matches!(outcome, Some(Ok(())))
        };
        let resent = |call: &Call| call.registration.as_ref().map_or(0, |r| r.resent);
        let mut outcome = Outcome {
            event,
            event_unix: event.map(|event| self.shared.clock.unix_seconds(event)),
            pacing: streams.pacing,
            refused: streams.refused,
            strays: streams.strays,
            unregistered: self.calls.iter().filter(|call| !registered(call)).count(),
            registrations_resent: self.calls.iter().map(resent).sum(),
            calls: Vec::new(),
        };
        for (number, (call, script)) in self.calls.iter().zip(&self.plan.scripts).enumerate() {
            let record = |agent: &Option<Agent>| agent.as_ref().map(|agent| agent.record().clone());
            let was_up = call.course.up && wanted;
            let both = [Side::Caller, Side::Callee]
                .map(|side| stream(&streams, streams_of(number, side), &self.plan));
            outcome.calls.push(CallOutcome {
                script: *script,
                caller: record(&call.caller).unwrap_or_else(Record::default),
                callee: record(&call.callee),
                streams: was_up.then_some(both),
                media: call.targets,
                failure: call.failure.clone(),
            });
        }
        outcome
    }
}

impl Call {
    /// Whether nothing more will happen.
    fn is_over(&self) -> bool {
        let over = |agent: &Agent| agent.is_over();
        let caller = self.caller.as_ref().map_or(self.failure.is_some(), over);
        // Where one end has failed, the other may wait for ever.
        caller && (self.failure.is_some() || self.callee.as_ref().is_none_or(over))
    }

    fn count(&self, progress: &mut Progress) {
        let answered = self.registration.as_ref().and_then(|r| r.outcome.as_ref());
        let is = usize::from;
        let up = |agent: &Option<Agent>| agent.as_ref().is_some_and(Agent::is_up);
        progress.registered += is(matches!(answered, Some(Ok(()))));
        progress.invited += is(self.course.invited);
        progress.over += is(self.is_over());
        progress.failed += is(self.failure.is_some());
        progress.up += is(self.course.up && up(&self.caller) && up(&self.callee));
        progress.ringing += is(self.course.heard && !self.course.answered && !self.is_over());
    }
}

/// The streams that an end sends and expects.
fn streams(call: usize, side: Side) -> (u32, u32) {
    let first = u32::try_from(2 * call).unwrap_or(u32::MAX - 1);
    match side {
        Side::Caller => (first, first + 1),
        Side::Callee => (first + 1, first),
    }
}

/// The stream that an end sends.
fn streams_of(call: usize, side: Side) -> usize {
    streams(call, side).0 as usize
}

fn stream(streams: &Streams, number: usize, plan: &Plan) -> StreamOutcome {
    let account = streams.accounts.get(number).cloned().unwrap_or_default();
    let sent = streams.sent.get(number).copied().unwrap_or_default();
    StreamOutcome {
        report: account.report(sent, plan.playout),
        account,
        sent,
    }
}

/// A URI's host.
fn domain(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// A socket with an even port: the odd one above is RTCP's (RFC 3550, section 11).
fn rtp_socket(local: IpAddr) -> io::Result<UdpSocket> {
    loop {
        let socket = UdpSocket::bind((local, 0))?;
        let port = socket.local_addr()?.port();
        if port % 2 == 0 {
            return Ok(socket);
        }
        // Another one may have that.
        if let Ok(socket) = UdpSocket::bind((local, port - 1)) {
            return Ok(socket);
        }
    }
}
