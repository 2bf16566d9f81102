//! What may happen in a state, and the state after it.

use std::collections::VecDeque;

use stateright::{Model, Property};

use crate::arbiter::{self, Answer, Arbiter};
use crate::heartbeat::Heartbeat;
use crate::host::{Event, RoleName};
use crate::lanes::Lane;

use super::MACHINE;
use super::calm::Calm;
use super::world::{Link, World};

/// How many heartbeats a silence lasts: longer than any time-out.
const SILENCE: u32 = 22;
/// Rounds of heartbeats: the last tick sees the echo of what the first one sent.
const ROUNDS: u32 = 3;

/// How far the model looks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Faults in all, of any kind, at any time.
    pub(super) faults: u8,
    /// The record's generations after the first state.
    pub(super) generations: u64,
    /// What a guest does in one term.
    pub(super) operations: usize,
    /// Epochs in one term.
    pub(super) epochs: u8,
    /// Sessions that one process offers.
    pub(super) sessions: u64,
    /// Processes of one host.
    pub(super) lives: u8,
}

/// What may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A change reaches the arbiter; whether its sender hears the answer.
    Request { at: usize, heard: bool },
    /// A change reaches the arbiter, which dies before it is durable.
    ArbiterDies { at: usize },
    /// A host is told the record.
    Read { host: usize },
    /// What it is told is kept back.
    Delay { host: usize },
    /// … and arrives after all.
    Late { host: usize },
    /// Both hear each other's heartbeats, and the echoes of their own.
    Meet,
    /// The same, for longer than any time-out.
    Wait,
    /// A host hears nothing for longer than any time-out.
    Silence { host: usize },
    /// A message arrives.
    Deliver { host: usize },
    /// The link breaks.
    Break,
    /// One end learns that it is closed.
    Closed { host: usize },
    /// There is a link again.
    Connect,
    /// The guest does something.
    Execute { host: usize },
    /// An epoch ends.
    Seal { host: usize },
    /// A process dies.
    Kill { host: usize },
    /// The next one starts.
    Start { host: usize },
    /// From now on this process can load nothing.
    CannotLoad { host: usize },
    /// The replica turns out broken.
    ReplicaLost { host: usize },
    /// The operator asks for a switchover.
    Switchover { host: usize },
}

/// The model.
pub(super) struct Pair {
    pub(super) bounds: Bounds,
    pub(super) calm: Calm,
    pub(super) first: Vec<World>,
}

impl World {
    fn change(&mut self, at: usize, heard: bool, durable: bool) {
        let request = self.requests.remove(at);
        let host = usize::try_from(request.from.get() & 0xff).unwrap_or(0);
        let here = self.process(host).is_some_and(|p| p.me == request.from);
        let mut arbiter = Arbiter::new([self.record]).with_guards(self.guards);
        arbiter.handle(arbiter::Event::Request { client: 0, request });
        while let Some(action) = arbiter.poll() {
            match action {
                arbiter::Action::Store(record) if durable => {
                    self.check_record(&record);
                    self.record = record;
                    arbiter.handle(arbiter::Event::Stored(MACHINE));
                }
                arbiter::Action::Answer { answer, .. } if heard && here => {
                    self.handle(host, Event::Arbiter(answer));
                }
                arbiter::Action::Store(_) | arbiter::Action::Answer { .. } => {}
            }
        }
    }

    fn tell(&mut self, host: usize, record: crate::record::Record) {
        let Some(to) = self.process(host).map(|p| p.me) else {
            return;
        };
        let answer = Answer {
            machine: MACHINE,
            to,
            number: 0,
            record: Some(record),
            refusal: None,
        };
        self.handle(host, Event::Arbiter(answer));
    }

    pub(super) fn read(&mut self, host: usize) {
        self.tell(host, self.record);
    }

    pub(super) fn heard(&mut self, at: usize) {
        self.change(at, true, true);
    }

    pub(super) fn meet(&mut self, rounds: u32) {
        for _ in 0..rounds {
            let beats = [self.tick(0), self.tick(1)];
            for (from, beat) in beats.into_iter().enumerate() {
                if let Some(beat) = beat {
                    self.hear(1 - from, beat);
                }
            }
        }
    }

    /// A heartbeat arrives and is read at once. One that is read with the next tick differs only
    /// in that its echo goes out then in any case.
    pub(super) fn hear(&mut self, host: usize, beat: Heartbeat) {
        let Some(arrived) = self.process(host).map(|p| p.now) else {
            return;
        };
        let lane = Lane::Link;
        self.handle(
            host,
            Event::Heartbeat {
                beat,
                lane,
                arrived,
            },
        );
    }

    pub(super) fn closed(&mut self, host: usize) {
        let Some(link) = &mut self.link else { return };
        link.open[host] = false;
        link.to[host].clear();
        let peer = link.ends[1 - host];
        link.broken = true;
        self.forget_link();
        self.handle(host, Event::Closed(peer));
    }

    pub(super) fn connect(&mut self) {
        let (Some(a), Some(b)) = (self.process(0), self.process(1)) else {
            return;
        };
        let ends = [a.me, b.me];
        self.link = Some(Link {
            ends,
            to: [VecDeque::new(), VecDeque::new()],
            open: [true; 2],
            broken: false,
        });
        self.handle(0, Event::Connected(ends[1]));
        self.handle(1, Event::Connected(ends[0]));
    }

    /// Whether both live: then to hear nothing is a fault.
    fn both_live(&self) -> bool {
        self.process(0).is_some() && self.process(1).is_some()
    }

    /// Whether the step is one of the faults that are counted.
    fn is_fault(&self, step: Step) -> bool {
        match step {
            Step::ArbiterDies { .. }
            | Step::Delay { .. }
            | Step::Break
            | Step::Kill { .. }
            | Step::CannotLoad { .. }
            | Step::ReplicaLost { .. } => true,
            Step::Silence { .. } => self.both_live(),
            _ => false,
        }
    }

    fn step(&mut self, step: Step) {
        if self.is_fault(step) {
            self.faults -= 1;
        }
        match step {
            Step::Request { at, heard } => self.change(at, heard, true),
            Step::ArbiterDies { at } => self.change(at, true, false),
            Step::Read { host } => self.read(host),
            Step::Delay { host } => self.late[host] = Some(self.record),
            Step::Late { host } => {
                if let Some(record) = self.late[host].take() {
                    self.tell(host, record);
                }
            }
            Step::Meet => self.meet(ROUNDS),
            Step::Wait => self.meet(SILENCE),
            Step::Silence { host } => {
                for _ in 0..SILENCE {
                    self.tick(host);
                }
            }
            Step::Deliver { host } => self.deliver(host),
            Step::Break => {
                if let Some(link) = &mut self.link {
                    link.broken = true;
                }
            }
            Step::Closed { host } => self.closed(host),
            Step::Connect => self.connect(),
            Step::Execute { host } => self.execute(host),
            Step::Seal { host } => self.seal(host),
            Step::Kill { host } => self.kill(host),
            Step::Switchover { host } => {
                self.switchovers -= 1;
                self.handle(host, Event::Switchover);
            }
            Step::Start { host } => self.start(host),
            Step::CannotLoad { host } => {
                if let Some(process) = &mut self.computers[host].process {
                    process.broken = true;
                }
            }
            Step::ReplicaLost { host } => {
                let computer = &mut self.computers[host];
                computer.mixed = true;
                if let Some(replica) = computer.process.as_mut().and_then(|p| p.replica.as_mut()) {
                    replica.whole = false;
                }
                self.handle(host, Event::ReplicaLost);
            }
        }
    }

    /// Whether an epoch may end here.
    pub(super) fn may_seal(&self, host: usize) -> bool {
        self.process(host).is_some_and(|p| {
            let guest = p.guest.as_ref().filter(|g| !g.paused);
            let session = guest.and_then(|g| g.session);
            session.is_some_and(|session| p.host.may_seal(session))
        })
    }

    /// Whether the guest runs here.
    pub(super) fn runs(&self, host: usize) -> bool {
        let guest = self.process(host).and_then(|p| p.guest.as_ref());
        guest.is_some_and(|g| !g.paused)
    }
}

impl Pair {
    fn host_steps(&self, world: &World, host: usize, steps: &mut Vec<Step>) {
        let Some(process) = world.process(host) else {
            if world.computers[host].lives < self.bounds.lives {
                steps.push(Step::Start { host });
            }
            return;
        };
        steps.push(Step::Read { host });
        steps.push(Step::Silence { host });
        if world.late[host].is_some() {
            steps.push(Step::Late { host });
        }
        if let Some(link) = &world.link {
            if !link.to[host].is_empty() {
                steps.push(Step::Deliver { host });
            }
            if link.broken && link.open[host] {
                steps.push(Step::Closed { host });
            }
        }
        if let Some(guest) = &process.guest {
            let here = guest.epochs.len();
            if world.runs(host) && here < self.bounds.operations {
                steps.push(Step::Execute { host });
            }
            if world.may_seal(host) && guest.epoch < self.bounds.epochs {
                steps.push(Step::Seal { host });
            }
        }
        steps.push(Step::Kill { host });
        if world.switchovers > 0 && world.role(host) == Some(RoleName::Primary) {
            steps.push(Step::Switchover { host });
        }
        if world.late[host].is_none() {
            steps.push(Step::Delay { host });
        }
        if !process.broken && world.role(host) != Some(RoleName::Primary) {
            steps.push(Step::CannotLoad { host });
        }
        // Once it is loaded, it is not needed any more.
        let needed = !process.loaded || world.role(host) == Some(RoleName::Backup);
        if needed && process.replica.as_ref().is_some_and(|r| r.whole) {
            steps.push(Step::ReplicaLost { host });
        }
    }
}

impl Model for Pair {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        self.first.clone()
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if world.broke.is_some() {
            return;
        }
        for at in 0..world.requests.len() {
            steps.push(Step::Request { at, heard: true });
            steps.push(Step::Request { at, heard: false });
            steps.push(Step::ArbiterDies { at });
        }
        if world.both_live() {
            steps.push(Step::Meet);
            steps.push(Step::Wait);
            match &world.link {
                None => steps.push(Step::Connect),
                Some(link) if !link.broken => steps.push(Step::Break),
                Some(_) => {}
            }
        }
        for host in 0..2 {
            self.host_steps(world, host, steps);
        }
        steps.retain(|step| world.faults > 0 || !world.is_fault(*step));
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        next.step(step);
        next.normalise(true);
        // Only a request that was answered before it was durable makes a difference.
        if let Step::ArbiterDies { at } = step {
            let mut lost = world.clone();
            lost.requests.remove(at);
            lost.faults -= 1;
            lost.normalise(true);
            if lost == next {
                return None;
            }
        }
        (next != *world).then_some(next)
    }

    fn within_boundary(&self, world: &World) -> bool {
        let first = self.first.iter().map(|w| w.record.generation.0).max();
        let sessions = |w: &World, host| w.process(host).map_or(0, |p| p.host.sessions());
        world.record.generation.0 <= first.unwrap_or(0) + self.bounds.generations
            && (0..2).all(|host| sessions(world, host) <= self.bounds.sessions)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("one history", |_, world: &World| world.broke.is_none()),
            Property::always("somebody runs", |pair: &Pair, world: &World| {
                world.broke.is_some() || pair.calm.somebody_runs(world)
            }),
            Property::sometimes("takeover", |_, world: &World| {
                world.role(1) == Some(RoleName::Primary)
            }),
        ]
    }
}
