//! The world: its clock, its events, and what carries out the actions of the state machines.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use crate::arbiter::{self, Arbiter, Request};
use crate::guards::{Guard, Guards};
use crate::host::{Action, Config, Event, Host, Notice, Permit, RoleName, Sealed, Source};
use crate::id::{Epoch, Incarnation, MachineId, SessionId, Term};
use crate::message::{Checkpoint, Message};
use crate::record::Record;
use crate::sidecar::Sidecar;
use crate::time::Time;

use super::engine::{Disk, Guest, Parcel, Process, Replica};
use super::faults::Fault;
use super::history::{History, Node};
use super::network::{ARBITER, Link, Network, PATHS, Stream};
use super::random::Random;
use super::{Broken, HOSTS, Happening, MS, Outcome, timing};

pub(super) const MACHINE: MachineId = MachineId(0x0052_6f6d_756c_7573);

/// How far the run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Faults,
    /// Nothing fails any more; since when.
    Calm(u64),
    /// An observer is disturbed, until when.
    Disturbed(u64),
    /// The primary is lost for good: who it was, and since when.
    Lost(usize, u64),
    /// The heir runs; until when the run goes on.
    After(u64),
}

/// A computer.
#[derive(Debug)]
pub(super) struct Computer {
    pub(super) process: Option<Process>,
    pub(super) disk: Disk,
    /// Counts processes: events of an earlier one are void.
    pub(super) life: u64,
    offset: u64,
    /// Parts per million that its clock runs fast.
    rate: i64,
    pub(super) hung_until: u64,
    pub(super) backlog_until: u64,
    pub(super) stuck_until: u64,
    load_fails_until: u64,
    sidecar_fails_until: u64,
    pub(super) off_for_good: bool,
    /// When it was last in any trouble of its own.
    pub(super) trouble: u64,
}

pub(super) struct World<'a> {
    pub(super) now: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    counter: u64,
    pub(super) random: Random,
    pub(super) guards: Guards,
    pub(super) unheld: bool,
    pub(super) computers: Vec<Computer>,
    pub(super) network: Network,
    streams: BTreeMap<u64, Stream>,
    connections: u64,
    pub(super) arbiter: Option<Arbiter>,
    arbiter_life: u64,
    arbiter_full_until: u64,
    pub(super) stored: Record,
    /// The newest term that was decided, started or not.
    pub(super) decided: u64,
    /// The record before the present one.
    pub(super) before: Record,
    pub(super) history: History,
    pub(super) unheld_passed: Vec<Node>,
    pub(super) stage: Stage,
    /// When any path between two hosts was last in trouble.
    pub(super) path_trouble: u64,
    pub(super) outcome: Outcome,
    trace: Option<&'a mut dyn FnMut(String)>,
}

/// When the faults stop.
const FAULTS_END: u64 = 4_000 * MS;

impl<'a> World<'a> {
    pub(super) fn new(seed: u64, guards: Guards, trace: Option<&'a mut dyn FnMut(String)>) -> World<'a> {
        let mut random = Random::new(seed);
        let creator = Incarnation::new(0x1fe).unwrap_or_else(|| unreachable!("not zero"));
        let record = Record::new(MACHINE, creator);
        let computers = (0..HOSTS).map(|host| {
            let first = host == 0;
            let sidecar = if first { Sidecar::of(MACHINE, creator) } else { Sidecar::empty(MACHINE) };
            Computer {
                process: None,
                disk: Disk { sidecar, image: 0, mixed: !first },
                life: 0,
                offset: random.between(1, 1 << 40),
                rate: [-49_000, 0, 10, 49_000][random.index(4)],
                hung_until: 0,
                backlog_until: 0,
                stuck_until: 0,
                load_fails_until: 0,
                sidecar_fails_until: 0,
                off_for_good: false,
                trouble: 0,
            }
        });
        let computers = computers.collect();
        let mut world = World {
            now: 0,
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            counter: 0,
            guards,
            unheld: seed % 2 == 1,
            computers,
            network: Network::new(),
            streams: BTreeMap::new(),
            connections: 0,
            arbiter: None,
            arbiter_life: 0,
            arbiter_full_until: 0,
            stored: record,
            before: record,
            decided: 0,
            history: History::new(),
            unheld_passed: Vec::new(),
            stage: Stage::Faults,
            path_trouble: 0,
            outcome: Outcome::default(),
            trace,
            random,
        };
        world.at(0, Happening::StartArbiter);
        for host in 0..HOSTS {
            let at = world.random.between(0, 20) * MS;
            world.at(at, Happening::Start { host });
            for b in host + 1..HOSTS {
                world.at(5 * MS, Happening::Connect { a: host, b });
            }
        }
        for (at, fault) in Fault::schedule(&mut world.random, 600 * MS, FAULTS_END - 300 * MS) {
            world.at(at, Happening::Fault(fault));
        }
        world
    }

    pub(super) fn run(mut self) -> Outcome {
        while self.outcome.broken.is_none() {
            let Some(Reverse((at, number))) = self.queue.pop() else { break };
            self.now = at;
            if self.stage == Stage::Faults && at >= FAULTS_END {
                self.heal();
            }
            let Some(happening) = self.happenings.remove(&number) else { continue };
            self.outcome.steps += 1;
            self.happen(happening);
            if self.progress() {
                break;
            }
        }
        self.outcome.at = self.now;
        self.outcome
    }

    pub(super) fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            #[allow(clippy::cast_precision_loss)]
            let at = self.now as f64 / 1e6;
            trace(format!("{at:10.3} ms  {}", line()));
        }
    }

    pub(super) fn broke(&mut self, broken: Broken) {
        self.tell(|| format!("*** {broken} ***"));
        self.outcome.broken.get_or_insert(broken);
    }

    pub(super) fn at(&mut self, at: u64, happening: Happening) {
        self.counter += 1;
        self.queue.push(Reverse((at.max(self.now), self.counter)));
        self.happenings.insert(self.counter, happening);
    }

    fn soon(&mut self, low: u64, high: u64, happening: Happening) {
        let at = self.now + self.random.between(low, high);
        self.at(at, happening);
    }

    fn clock(&self, host: usize) -> Time {
        let computer = &self.computers[host];
        let drift = i128::from(self.now) * i128::from(computer.rate) / 1_000_000;
        Time(u64::try_from(i128::from(computer.offset) + i128::from(self.now) + drift).unwrap_or(0))
    }

    pub(super) fn alive(&self, host: usize, life: u64) -> bool {
        self.computers[host].process.is_some() && self.computers[host].life == life
    }

    pub(super) fn process(&mut self, host: usize) -> Option<&mut Process> {
        self.computers[host].process.as_mut()
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Tick { host, life } if self.alive(host, life) => self.tick(host, life),
            Happening::Datagram { host, life, event } if self.alive(host, life) => {
                let computer = &self.computers[host];
                if self.now < computer.hung_until.max(computer.backlog_until) {
                    let happening = Happening::Datagram { host, life, event };
                    if let Some(process) = self.process(host) {
                        process.inbox.push(happening);
                    }
                } else {
                    self.handle(host, *event);
                }
            }
            Happening::Done { host, life, event } if self.alive(host, life) => {
                let hung = self.computers[host].hung_until;
                if self.now < hung {
                    self.at(hung + MS / 5, Happening::Done { host, life, event });
                } else {
                    self.handle(host, *event);
                }
            }
            Happening::Wake { host, life } if self.alive(host, life) => {
                let computer = &self.computers[host];
                if self.now < computer.hung_until.max(computer.backlog_until) {
                    return;
                }
                let inbox = self.process(host).map(|p| std::mem::take(&mut p.inbox)).unwrap_or_default();
                for happening in inbox {
                    self.happen(happening);
                }
            }
            Happening::Request(request) => self.request(*request),
            Happening::Stored { life, record, ok } => self.arbiter_stored(life, &record, ok),
            Happening::Operation { host, life, version } if self.alive(host, life) => {
                self.operation(host, life, version);
            }
            Happening::EpochEnds { host, life, version } if self.alive(host, life) => {
                self.epoch_ends(host, life, version);
            }
            Happening::Pump { stream } => self.pump(stream),
            Happening::Connect { a, b } => self.connect(a, b),
            Happening::Closed { host, life, number } if self.alive(host, life) => {
                self.closed(host, number);
            }
            Happening::Fault(fault) => self.fault(fault),
            Happening::Start { host } => self.start(host),
            Happening::StartArbiter => {
                if self.arbiter.is_none() {
                    self.tell(|| "arbiter starts".into());
                    self.arbiter_life += 1;
                    self.arbiter = Some(Arbiter::new([self.stored]).with_guards(self.guards));
                }
            }
            Happening::Promote { host } => {
                let others = (0..HOSTS).filter(|&other| other != host);
                let alone = others.into_iter().all(|other| self.computers[other].process.is_none());
                let ready = matches!(self.role(host), Some(RoleName::Waiting | RoleName::Backup));
                if alone && ready && self.now >= self.computers[host].hung_until {
                    if let Some(process) = self.process(host) {
                        process.promoted = true;
                    }
                    self.handle(host, Event::Promote);
                }
            }
            Happening::Sidecar { host, life, sidecar } if self.alive(host, life) => {
                let ok = self.now >= self.computers[host].sidecar_fails_until;
                if ok {
                    self.computers[host].disk.sidecar = *sidecar;
                }
                let event = Box::new(Event::SidecarStored(ok));
                self.soon(MS / 10, 2 * MS, Happening::Done { host, life, event });
            }
            _ => {}
        }
    }

    fn start(&mut self, host: usize) {
        if self.computers[host].process.is_some() || self.computers[host].off_for_good {
            return;
        }
        self.computers[host].life += 1;
        let life = self.computers[host].life;
        let random = u128::from(self.random.next() >> 8 | 1) << 8;
        let Some(me) = Incarnation::new(random | host as u128) else { return };
        let config = Config {
            machine: MACHINE,
            unheld: self.unheld,
            preferred: host == 0,
            timing: timing(self.guards),
        };
        let sidecar = self.computers[host].disk.sidecar.clone();
        let now = self.clock(host);
        let built = Host::weakened(config, me, sidecar, now, self.guards);
        let Ok(machine) = built else { return self.broke(Broken::NobodyRuns) };
        let broken = self.stage == Stage::Faults && self.random.chance(8);
        self.tell(|| format!("{host} starts as {me}{}", if broken { ", can load no replica" } else { "" }));
        self.computers[host].process = Some(Process {
            permit: Permit::nothing(),
            host: machine,
            me,
            guest: None,
            replica: None,
            arrived: None,
            committed: 0,
            links: [None; HOSTS],
            loaded: false,
            promoted: false,
            frozen: false,
            broken,
            lies_since: None,
            inbox: Vec::new(),
            versions: 0,
        });
        self.at(self.now, Happening::Tick { host, life });
        self.drive(host);
    }

    pub(super) fn kill(&mut self, host: usize, power: bool) {
        let Some(process) = self.computers[host].process.take() else { return };
        self.tell(|| format!("{host} {}", if power { "loses power" } else { "is killed" }));
        self.computers[host].hung_until = 0;
        self.computers[host].backlog_until = 0;
        self.computers[host].stuck_until = 0;
        if power {
            // What was not synced may be gone, in whole or in part.
            let image = self.computers[host].disk.image;
            let floor = self.history.get(image).flushed;
            let between = self.history.back(image, 64).take_while(|n| *n != floor).count();
            let keep = self.random.index(between + 1);
            let image = self.history.back(image, 65).nth(keep).unwrap_or(floor);
            self.computers[host].disk.image = image;
            return;
        }
        for other in 0..HOSTS {
            if let Some(link) = process.links[other]
                && !self.network.paths[0][host][other].is_cut(self.now)
            {
                let life = self.computers[other].life;
                self.soon(MS / 10, 3 * MS, Happening::Closed { host: other, life, number: link.number });
            }
        }
    }

    fn tick(&mut self, host: usize, life: u64) {
        let computer = &self.computers[host];
        if self.now < computer.hung_until {
            let at = computer.hung_until;
            return self.at(at, Happening::Tick { host, life });
        }
        let stuck = self.now < computer.stuck_until;
        let drained = computer.process.as_ref().is_none_or(|p| p.inbox.is_empty());
        self.handle(host, Event::Tick { drained });
        if !stuck {
            self.handle(host, Event::LoopTurned);
        }
        self.check_cover(host);
        let now = self.clock(host);
        let Some(process) = self.process(host) else { return };
        let wait = process.host.deadline(now).since(now).max(Duration::from_millis(1));
        let wait = u64::try_from(wait.as_nanos()).unwrap_or(MS);
        let at = self.now + wait + self.random.between(0, MS / 2);
        self.at(at, Happening::Tick { host, life });
    }

    fn handle(&mut self, host: usize, event: Event) {
        let now = self.clock(host);
        if let Some(process) = self.process(host) {
            process.host.handle(now, event);
            self.drive(host);
        }
    }

    fn drive(&mut self, host: usize) {
        while let Some(action) = self.process(host).and_then(|p| p.host.poll()) {
            self.perform(host, action);
        }
        self.seal_if_allowed(host);
    }

    fn perform(&mut self, host: usize, action: Action) {
        let life = self.computers[host].life;
        if !matches!(action, Action::Heartbeat(_) | Action::Permit(_) | Action::Apply { .. })
            && !matches!(&action, Action::Arbiter(r) if r.ask == arbiter::Ask::Read)
            && !matches!(&action, Action::Send { message: Message::Checkpoint(_) | Message::Commit(..), .. })
        {
            self.tell(|| format!("{host}: {action:?}"));
        }
        match action {
            Action::Arbiter(request) => self.to_arbiter(host, &request),
            Action::Heartbeat(beat) => {
                let paths = if self.guards.on(Guard::EveryPath) { PATHS } else { 1 };
                for other in (0..HOSTS).filter(|&other| other != host) {
                    for path in 0..paths {
                        let event = Event::Heartbeat(beat.clone());
                        self.datagram(path, host, other, &event);
                    }
                }
            }
            Action::Send { to, message } => self.send(host, to, message),
            Action::Permit(permit) => {
                if let Some(process) = self.process(host) {
                    process.permit = permit;
                }
                self.release(host);
            }
            Action::Copy(session) => self.copy(host, session),
            Action::EndCopy(session) => {
                if let Some(guest) = self.process(host).and_then(|p| p.guest.as_mut())
                    && guest.session == Some(session)
                {
                    guest.session = None;
                    guest.waiting = false;
                }
            }
            Action::Freeze | Action::Thaw => {
                let frozen = action == Action::Freeze;
                let Some(process) = self.process(host) else { return };
                process.frozen = frozen;
                if let Some(guest) = &mut process.guest {
                    guest.paused = frozen;
                }
            }
            Action::Load(source) => {
                let flaky = self.now < self.computers[host].load_fails_until;
                let broken = self.process(host).is_some_and(|p| p.broken) && source != Source::Cold;
                let ok = !flaky && !broken;
                if let Some(process) = self.process(host) {
                    process.loaded = ok;
                }
                let event = Box::new(Event::Loaded(ok));
                self.soon(MS, 20 * MS, Happening::Done { host, life, event });
            }
            Action::Run { source, term } => self.run_term(host, source, term),
            Action::Discard => {
                self.check_drop(host);
                let Some(process) = self.process(host) else { return };
                process.guest = None;
                process.replica = None;
                process.frozen = false;
            }
            Action::Prepare(session) => {
                self.check_prepare(host);
                let Some(process) = self.process(host) else { return };
                process.guest = None;
                process.frozen = false;
                process.replica = Some(Replica {
                    session,
                    term: Term::default(),
                    epoch: Epoch(0),
                    state: 0,
                    whole: false,
                    held: std::collections::VecDeque::new(),
                });
            }
            Action::Apply { session, epoch } => self.apply(host, session, epoch),
            Action::Try(session) => {
                let loaded = self.process(host).is_some_and(|p| !p.broken);
                let event = Box::new(Event::Tried { session, loaded });
                self.soon(MS, 10 * MS, Happening::Done { host, life, event });
            }
            Action::StoreSidecar(sidecar) => {
                let sidecar = Box::new(sidecar);
                self.soon(MS / 5, 5 * MS, Happening::Sidecar { host, life, sidecar });
            }
            Action::Notice(Notice::Claims) => self.check_claim(host),
            Action::Notice(_) | Action::End => {}
        }
    }

    // The network.

    fn datagram(&mut self, path: usize, from: usize, to: usize, event: &Event) {
        let life = self.computers[to].life;
        for at in self.network.datagram(self.now, path, from, to, &mut self.random).into_iter().flatten() {
            self.at(at, Happening::Datagram { host: to, life, event: Box::new(event.clone()) });
        }
    }

    fn send(&mut self, host: usize, to: Incarnation, message: Message) {
        let Some(process) = &self.computers[host].process else { return };
        let Some(link) = process.links.iter().flatten().find(|l| l.peer == to).copied() else { return };
        let (state, held) = match (&message, &process.guest) {
            (Message::Checkpoint(cp), Some(guest)) => {
                let of_epoch = guest.held.iter().filter(|(epoch, _)| *epoch <= cp.epoch);
                (guest.tip, of_epoch.copied().collect())
            }
            _ => (0, Vec::new()),
        };
        let parcel = Parcel { message, state, held };
        let Some(number) = self.stream_from(link.number, host) else { return };
        let Some(stream) = self.streams.get(&number) else { return };
        let to = stream.to;
        let at = self.now + self.network.delay(self.now, host, to, &mut self.random);
        let Some(stream) = self.streams.get_mut(&number) else { return };
        let at = stream.queue.back().map_or(at, |(last, _)| at.max(*last));
        stream.queue.push_back((at, parcel));
        if !std::mem::replace(&mut stream.pumping, true) {
            self.at(at, Happening::Pump { stream: number });
        }
    }

    fn stream_from(&self, connection: u64, host: usize) -> Option<u64> {
        [connection * 2, connection * 2 + 1]
            .into_iter()
            .find(|number| self.streams.get(number).is_some_and(|s| s.from == host))
    }

    fn pump(&mut self, number: u64) {
        let now = self.now;
        let Some(stream) = self.streams.get(&number) else { return };
        let (from, to, receiver) = (stream.from, stream.to, stream.receiver);
        let computer = &self.computers[to];
        let Some(process) = computer.process.as_ref().filter(|p| p.me == receiver) else {
            self.streams.remove(&number);
            return;
        };
        let open = process.links[from].is_some_and(|l| l.number == stream.number);
        // What an engine had already read of a connection that has since been closed.
        if !open && !stream.straggles {
            self.streams.remove(&number);
            return;
        }
        let blocked = computer.hung_until.max(computer.stuck_until);
        if now < blocked {
            return self.at(blocked, Happening::Pump { stream: number });
        }
        if self.network.paths[0][from][to].is_cut(now) {
            return self.at(now + 5 * MS, Happening::Pump { stream: number });
        }
        let Some(stream) = self.streams.get_mut(&number) else { return };
        let sender = stream.sender;
        match stream.queue.front() {
            None => stream.pumping = false,
            Some((at, _)) if *at > now => {
                let at = *at;
                self.at(at, Happening::Pump { stream: number });
            }
            Some(_) => {
                let Some((_, parcel)) = stream.queue.pop_front() else { return };
                self.at(now, Happening::Pump { stream: number });
                let message = parcel.message.clone();
                if let Some(process) = self.process(to) {
                    process.arrived = Some(parcel);
                }
                self.handle(to, Event::Message { from: sender, message });
            }
        }
    }

    fn connect(&mut self, a: usize, b: usize) {
        self.soon(20 * MS, 60 * MS, Happening::Connect { a, b });
        let cut = [(a, b), (b, a)].iter().any(|&(x, y)| self.network.paths[0][x][y].is_cut(self.now));
        let hung = [a, b].iter().any(|&h| self.now < self.computers[h].hung_until);
        let ends = (&self.computers[a].process, &self.computers[b].process);
        let live = match ends {
            (Some(x), Some(y)) => {
                let link = (x.links[b], y.links[a]);
                let (Some(p), Some(q)) = link else { return self.reconnect(a, b, cut || hung) };
                p.number == q.number && p.peer == y.me && q.peer == x.me
            }
            _ => true,
        };
        if !live {
            return self.reconnect(a, b, cut || hung);
        }
        if cut || hung || self.computers[a].process.is_none() || self.computers[b].process.is_none() {
            // Each end gives up by itself, in its own time.
            for (host, other) in [(a, b), (b, a)] {
                let life = self.computers[host].life;
                let link = self.computers[host].process.as_ref().and_then(|p| p.links[other]);
                if let Some(link) = link
                    && self.random.chance(6)
                {
                    self.at(self.now, Happening::Closed { host, life, number: link.number });
                }
            }
        }
    }

    fn reconnect(&mut self, a: usize, b: usize, impossible: bool) {
        if impossible {
            return;
        }
        let (Some(x), Some(y)) = (&self.computers[a].process, &self.computers[b].process) else { return };
        let (x, y) = (x.me, y.me);
        self.connections += 1;
        let number = self.connections;
        for (index, from, to, sender, receiver) in [(0, a, b, x, y), (1, b, a, y, x)] {
            let straggles = self.random.chance(30);
            let queue = std::collections::VecDeque::new();
            let stream = Stream { number, from, to, sender, receiver, queue, pumping: false, straggles };
            self.streams.insert(number * 2 + index, stream);
        }
        for (host, other, peer) in [(a, b, y), (b, a, x)] {
            if let Some(process) = self.process(host) {
                process.links[other] = Some(Link { number, peer });
            }
            self.handle(host, Event::Connected(peer));
        }
    }

    fn closed(&mut self, host: usize, number: u64) {
        if self.now < self.computers[host].hung_until {
            let (at, life) = (self.computers[host].hung_until, self.computers[host].life);
            return self.at(at, Happening::Closed { host, life, number });
        }
        let Some(process) = self.process(host) else { return };
        let Some(slot) = process.links.iter_mut().find(|l| l.is_some_and(|l| l.number == number)) else {
            return;
        };
        let Some(link) = slot.take() else { return };
        self.tell(|| format!("{host}: link to {} closes", link.peer));
        self.handle(host, Event::Closed(link.peer));
    }

    // The arbiter.

    fn to_arbiter(&mut self, host: usize, request: &Request) {
        let arrivals = self.network.datagram(self.now, 1, host, ARBITER, &mut self.random);
        for at in arrivals.into_iter().flatten() {
            self.at(at, Happening::Request(Box::new(request.clone())));
        }
    }

    fn request(&mut self, request: Request) {
        let Some(arbiter) = &mut self.arbiter else { return };
        let client = u64::try_from(request.from.get() & 0xff).unwrap_or(0);
        arbiter.handle(arbiter::Event::Request { client, request });
        self.drive_arbiter();
    }

    fn drive_arbiter(&mut self) {
        while let Some(action) = self.arbiter.as_mut().and_then(Arbiter::poll) {
            match action {
                arbiter::Action::Store(record) => {
                    let ok = self.now >= self.arbiter_full_until;
                    let life = self.arbiter_life;
                    let record = Box::new(record);
                    self.soon(MS / 10, 3 * MS, Happening::Stored { life, record, ok });
                }
                arbiter::Action::Answer { client, answer } => {
                    let host = usize::try_from(client).unwrap_or(0);
                    self.datagram_from_arbiter(host, answer);
                }
            }
        }
    }

    fn datagram_from_arbiter(&mut self, host: usize, answer: arbiter::Answer) {
        let life = self.computers[host].life;
        let arrivals = self.network.datagram(self.now, 1, ARBITER, host, &mut self.random);
        for at in arrivals.into_iter().flatten() {
            let event = Box::new(Event::Arbiter(answer));
            self.at(at, Happening::Datagram { host, life, event });
        }
    }

    fn arbiter_stored(&mut self, life: u64, record: &Record, ok: bool) {
        if life != self.arbiter_life || self.arbiter.is_none() {
            return;
        }
        // A write that was reported as failed may yet be found after a restart.
        if ok || self.random.chance(50) {
            self.tell(|| format!("arbiter: {record:?}{}", if ok { "" } else { " (reported as failed)" }));
            if let Some(before) = self.arbiter.as_ref().and_then(|a| a.record(MACHINE)) {
                self.before = *before;
            }
            self.stored = *record;
            self.check_record();
        }
        let event = if ok { arbiter::Event::Stored(MACHINE) } else { arbiter::Event::NotStored(MACHINE) };
        // It may also crash between the write and the answer.
        if self.stage == Stage::Faults && self.random.chance(1) {
            return self.fault(Fault::ArbiterDown { returns: 30 * MS });
        }
        if let Some(arbiter) = &mut self.arbiter {
            arbiter.handle(event);
        }
        self.drive_arbiter();
    }

    // The guest and its epochs.

    fn run_term(&mut self, host: usize, source: Source, term: Term) {
        let Some(tip) = self.check_start(host, source, term) else { return };
        let life = self.computers[host].life;
        let Some(process) = self.computers[host].process.as_mut() else { return };
        process.versions += 1;
        let version = process.versions;
        let held = match source {
            Source::Cold => std::collections::VecDeque::new(),
            Source::Replica { .. } => process.replica.take().map(|r| r.held).unwrap_or_default(),
            Source::Paused => process.guest.take().map(|g| g.held).unwrap_or_default(),
        };
        process.replica = None;
        process.frozen = false;
        process.guest = Some(Guest {
            term,
            tip,
            epoch: Epoch(1),
            paused: false,
            waiting: false,
            // Sent again before any new output.
            held: held.into_iter().map(|(_, node)| (Epoch(1), node)).collect(),
            session: None,
            rounds: 0,
            version,
            timer: 0,
        });
        self.computers[host].disk.image = tip;
        self.soon(MS, 3 * MS, Happening::Operation { host, life, version });
    }

    fn operation(&mut self, host: usize, life: u64, version: u64) {
        let blocked = self.computers[host].hung_until.max(self.computers[host].stuck_until);
        let (flush, held) = (self.random.chance(15), !self.unheld || self.random.chance(60));
        let Some(guest) = self.computers[host].process.as_mut().and_then(|p| p.guest.as_mut()) else { return };
        if guest.version != version {
            return;
        }
        let next = if self.now < blocked { blocked } else { self.now + self.random.between(2 * MS, 12 * MS) };
        if self.now >= blocked && !guest.paused && !guest.waiting {
            let (term, epoch) = (guest.term.0.0, guest.epoch);
            let node = self.history.add(guest.tip, term, epoch.0, held, flush);
            guest.tip = node;
            if held {
                guest.held.push_back((epoch, node));
            }
            self.computers[host].disk.image = node;
            if !held {
                self.pass_unheld(host, node);
            }
            self.release(host);
        }
        self.at(next, Happening::Operation { host, life, version });
    }

    fn pass_unheld(&mut self, host: usize, node: Node) {
        let now = self.clock(host);
        let Some(process) = &self.computers[host].process else { return };
        let epoch = Epoch(self.history.get(node).epoch);
        if process.permit.allows(now, epoch, true) {
            self.check_sender(node);
            self.history.pass_unheld(node);
            self.unheld_passed.push(node);
        }
    }

    fn release(&mut self, host: usize) {
        loop {
            let now = self.clock(host);
            if self.now < self.computers[host].hung_until {
                return;
            }
            let Some(process) = self.computers[host].process.as_mut() else { return };
            let permit = process.permit;
            let Some(guest) = process.guest.as_mut() else { return };
            let Some((epoch, node)) = guest.held.front().copied() else { return };
            if !permit.allows(now, epoch, false) {
                return;
            }
            guest.held.pop_front();
            self.check_release(host, node);
        }
    }

    fn copy(&mut self, host: usize, session: SessionId) {
        let rounds = self.random.between(1, 4);
        if let Some(guest) = self.process(host).and_then(|p| p.guest.as_mut()) {
            guest.session = Some(session);
            guest.rounds = rounds;
            guest.waiting = false;
            self.plan_epoch(host);
        }
    }

    fn plan_epoch(&mut self, host: usize) {
        let life = self.computers[host].life;
        let Some(process) = self.process(host) else { return };
        process.versions += 1;
        let version = process.versions;
        if let Some(guest) = &mut process.guest {
            guest.timer = version;
            self.soon(5 * MS, 25 * MS, Happening::EpochEnds { host, life, version });
        }
    }

    fn epoch_ends(&mut self, host: usize, life: u64, version: u64) {
        let blocked = self.computers[host].hung_until.max(self.computers[host].stuck_until);
        if self.now < blocked {
            return self.at(blocked, Happening::EpochEnds { host, life, version });
        }
        let Some(guest) = self.process(host).and_then(|p| p.guest.as_mut()) else { return };
        if guest.timer != version || guest.session.is_none() || guest.paused {
            return;
        }
        guest.waiting = true;
        self.seal_if_allowed(host);
    }

    fn seal_if_allowed(&mut self, host: usize) {
        let blocked = self.computers[host].hung_until.max(self.computers[host].stuck_until);
        if self.now < blocked {
            return;
        }
        let Some(process) = self.process(host) else { return };
        let allowed = process.host.may_seal();
        let Some(guest) = &mut process.guest else { return };
        if !guest.waiting || guest.paused || guest.session.is_none() || !allowed {
            return;
        }
        guest.waiting = false;
        guest.rounds = guest.rounds.saturating_sub(1);
        let complete = guest.rounds == 0;
        let released_through = guest.held.front().map_or(guest.epoch, |(e, _)| Epoch(e.0 - 1));
        let sealed = Sealed { complete, released_through, rx_next: 0, parts: 1, digest: 0 };
        self.handle(host, Event::Sealed(sealed));
        let Some(process) = self.process(host) else { return };
        let lag = process.host.status().lag;
        if let Some(guest) = &mut process.guest {
            guest.epoch = guest.epoch.next();
        }
        if lag > 1 {
            self.broke(Broken::Unbounded);
        }
        self.plan_epoch(host);
    }

    fn apply(&mut self, host: usize, session: SessionId, epoch: Epoch) {
        let computer = &mut self.computers[host];
        let Some(process) = &mut computer.process else { return };
        let Some(parcel) = process.arrived.take() else { return };
        let Message::Checkpoint(Checkpoint { complete, released_through, term, .. }) = parcel.message else {
            return;
        };
        let Some(replica) = process.replica.as_mut().filter(|r| r.session == session) else { return };
        replica.epoch = epoch;
        replica.term = term;
        replica.state = parcel.state;
        // A checkpoint carries what its primary still holds: all that an earlier one had and more.
        replica.held.extend(parcel.held.into_iter().filter(|(e, _)| *e == epoch || !replica.whole));
        replica.held.retain(|(e, _)| *e > released_through);
        computer.disk.mixed = !(replica.whole || complete);
        replica.whole |= complete;
        if replica.whole {
            process.committed = parcel.state;
        }
        computer.disk.image = parcel.state;
    }

    // Faults.

    pub(super) fn hang(&mut self, host: usize, until: u64) {
        let life = self.computers[host].life;
        let computer = &mut self.computers[host];
        computer.hung_until = computer.hung_until.max(until);
        computer.trouble = computer.trouble.max(until);
        if let Some(process) = &mut computer.process {
            process.lies_since = None;
        }
        self.at(until + MS / 20, Happening::Wake { host, life });
    }

    pub(super) fn backlog(&mut self, host: usize, until: u64) {
        let life = self.computers[host].life;
        let computer = &mut self.computers[host];
        computer.backlog_until = computer.backlog_until.max(until);
        computer.trouble = computer.trouble.max(until);
        self.at(until + MS / 20, Happening::Wake { host, life });
    }

    pub(super) fn cut(&mut self, path: usize, from: usize, to: usize, until: u64) {
        let direction = &mut self.network.paths[path][from][to];
        direction.cut_until = direction.cut_until.max(until);
        if from != ARBITER && to != ARBITER {
            self.path_trouble = self.path_trouble.max(until);
        }
    }

    pub(super) fn split(&mut self, a: usize, b: usize, until: u64) {
        for path in 0..PATHS {
            self.cut(path, a, b, until);
            self.cut(path, b, a, until);
        }
    }

    pub(super) fn reset(&mut self, host: usize) {
        let Some(process) = &self.computers[host].process else { return };
        let links: Vec<(usize, u64)> =
            (0..HOSTS).filter_map(|other| process.links[other].map(|l| (other, l.number))).collect();
        for (other, number) in links {
            for end in [host, other] {
                let life = self.computers[end].life;
                self.soon(0, 20 * MS, Happening::Closed { host: end, life, number });
            }
        }
    }

    fn heal(&mut self) {
        self.tell(|| "--- the faults stop ---".into());
        self.stage = Stage::Calm(self.now);
        self.network = Network::new();
        self.arbiter_full_until = 0;
        self.at(self.now, Happening::StartArbiter);
        for host in 0..HOSTS {
            let life = self.computers[host].life;
            let computer = &mut self.computers[host];
            computer.hung_until = self.now.min(computer.hung_until);
            computer.backlog_until = self.now.min(computer.backlog_until);
            computer.stuck_until = self.now.min(computer.stuck_until);
            computer.load_fails_until = 0;
            computer.sidecar_fails_until = 0;
            if let Some(process) = &mut computer.process {
                process.broken = false;
            }
            self.at(self.now + MS / 20, Happening::Wake { host, life });
            self.at(self.now, Happening::Tick { host, life });
            self.soon(0, 50 * MS, Happening::Start { host });
        }
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        self.tell(|| format!("fault: {fault:?}"));
        let now = self.now;
        match fault {
            Fault::PowerOff { host, returns } | Fault::Kill { host, returns } => {
                self.kill(host, matches!(fault, Fault::PowerOff { .. }));
                self.at(now + returns, Happening::Start { host });
            }
            Fault::Hang { host, lasts } => self.hang(host, now + lasts),
            Fault::Backlog { host, lasts } => self.backlog(host, now + lasts),
            Fault::Stuck { host, lasts } => {
                self.computers[host].stuck_until = now + lasts;
                self.computers[host].trouble = self.computers[host].trouble.max(now + lasts);
            }
            Fault::Cut { path, from, to, lasts } => self.cut(path, from, to, now + lasts),
            Fault::Split { a, b, lasts } => self.split(a, b, now + lasts),
            Fault::Isolate { host, lasts } => {
                for other in (0..=HOSTS).filter(|&other| other != host) {
                    self.split(host, other, now + lasts);
                }
            }
            Fault::Slow { from, to, slow, lasts } => {
                for path in 0..PATHS {
                    let direction = &mut self.network.paths[path][from][to];
                    direction.slow_until = now + lasts;
                    direction.slow = slow;
                }
                self.path_trouble = self.path_trouble.max(now + lasts);
            }
            Fault::Lossy { lasts } => {
                for direction in self.network.paths.iter_mut().flatten().flatten() {
                    direction.lossy_until = now + lasts;
                }
                self.path_trouble = self.path_trouble.max(now + lasts);
            }
            Fault::Reset { host } => self.reset(host),
            Fault::ArbiterDown { returns } => {
                self.arbiter = None;
                self.at(now + returns, Happening::StartArbiter);
            }
            Fault::ArbiterFull { lasts } => self.arbiter_full_until = now + lasts,
            Fault::SidecarFull { host, lasts } => self.computers[host].sidecar_fails_until = now + lasts,
            Fault::ReplicaLost { host } => {
                if self.now < self.computers[host].hung_until || self.role(host) != Some(RoleName::Backup) {
                    return;
                }
                let Some(process) = self.process(host) else { return };
                if let Some(replica) = &mut process.replica {
                    replica.whole = false;
                    self.computers[host].disk.mixed = true;
                    self.handle(host, Event::ReplicaLost);
                }
            }
            Fault::Abandon { host, returns } => {
                for other in (0..HOSTS).filter(|&other| other != host) {
                    self.kill(other, true);
                    self.at(now + returns, Happening::Start { host: other });
                }
                for wait in [40, 200, 400] {
                    self.at(now + wait * MS, Happening::Promote { host });
                }
            }
            Fault::LoadFails { host, lasts } => self.computers[host].load_fails_until = now + lasts,
        }
    }

    pub(super) fn role(&self, host: usize) -> Option<RoleName> {
        self.computers[host].process.as_ref().map(|p| p.host.status().role)
    }
}
