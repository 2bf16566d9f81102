//! The world: its clock, its events, and what carries out the actions of the state machines.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Duration;

use crate::arbiter::Arbiter;
use crate::guards::Guards;
use crate::host::{Config, Event, Host, Permit, RoleName};
use crate::id::{Incarnation, MachineId, SessionId};
use crate::record::Record;
use crate::sidecar::Sidecar;
use crate::time::Time;
use crate::timing::Timing;

use super::engine::{Disk, Process};
use super::faults::Fault;
use super::history::{History, Node};
use super::muted::Muted;
use super::network::{Network, Stream};
use super::random::Random;
use super::switching::{Cable, Switching};
use super::{Broken, HOSTS, Happening, MS, Outcome, timing};

pub(super) const MACHINE: MachineId = MachineId(0x0052_6f6d_756c_7573);

/// How far the run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Faults,
    /// Nothing fails any more; since when.
    Calm(u64),
    /// A switchover is asked for, or is not to come.
    Switching(Switching),
    /// An observer is disturbed, until when.
    Disturbed(u64),
    /// Only the link's path is cut.
    Muted(Muted),
    /// The primary is lost for good: who it was, and since when.
    Lost(usize, u64),
    /// The heir runs; until when the run goes on.
    After(u64),
    /// The guest was stopped on purpose: until when nothing may run.
    Stopped(u64),
}

/// A computer.
#[derive(Debug)]
pub(super) struct Computer {
    pub(super) process: Option<Process>,
    pub(super) disk: Disk,
    /// Counts processes: events of an earlier one are void.
    pub(super) life: u64,
    pub(super) offset: u64,
    /// Parts per million that its clock runs fast.
    pub(super) rate: i64,
    pub(super) hung_until: u64,
    pub(super) backlog_until: u64,
    pub(super) stuck_until: u64,
    pub(super) load_fails_until: u64,
    pub(super) sidecar_fails_until: u64,
    pub(super) off_for_good: bool,
    /// The mode in this host's machine file: whether some output is unheld.
    pub(super) unheld: bool,
    /// When it was last in any trouble of its own.
    pub(super) trouble: u64,
    pub(super) uplink: Cable,
}

pub(super) struct World<'a> {
    pub(super) now: u64,
    pub(super) queue: BinaryHeap<Reverse<(u64, u64)>>,
    pub(super) happenings: BTreeMap<u64, Happening>,
    pub(super) counter: u64,
    pub(super) random: Random,
    pub(super) guards: Guards,
    pub(super) timing: Timing,
    /// Some output may be unheld.
    pub(super) unheld: bool,
    /// The mode that the operator wants: whether some output is unheld.
    pub(super) mode: bool,
    pub(super) computers: Vec<Computer>,
    pub(super) network: Network,
    pub(super) streams: BTreeMap<u64, Stream>,
    pub(super) connections: u64,
    pub(super) arbiter: Option<Arbiter>,
    pub(super) arbiter_life: u64,
    pub(super) arbiter_full_until: u64,
    /// Heartbeats are read when the next one is due, and not when they arrive.
    pub(super) reads_late: bool,
    pub(super) stored: Record,
    /// The newest term that was decided, started or not.
    pub(super) decided: u64,
    /// The record before the present one.
    pub(super) before: Record,
    pub(super) history: History,
    /// Whom the operator promoted, and where it lives.
    pub(super) promoted: Vec<(Incarnation, usize)>,
    pub(super) unheld_passed: Vec<Node>,
    /// In what state the guest was yielded to the heir; until the next start.
    pub(super) yielded: Option<Node>,
    /// The newest term of which a host was told that it is its runner's.
    pub(super) launched: u64,
    /// The session of the epoch whose end a host is being told.
    pub(super) sealed_for: Option<SessionId>,
    /// When the machine was last switched over for an uplink.
    pub(super) switched_at: Option<u64>,
    pub(super) stage: Stage,
    /// When any path between two hosts was last in trouble.
    pub(super) path_trouble: u64,
    pub(super) outcome: Outcome,
    pub(super) trace: Option<&'a mut dyn FnMut(String)>,
}

/// When the faults stop.
pub(super) const FAULTS_END: u64 = 4_000 * MS;

impl<'a> World<'a> {
    pub(super) fn new(
        seed: u64,
        guards: Guards,
        trace: Option<&'a mut dyn FnMut(String)>,
    ) -> World<'a> {
        let mut random = Random::new(seed);
        let creator = Incarnation::new(0x1fe).unwrap_or_else(|| unreachable!("not zero"));
        let record = Record::new(MACHINE, creator);
        let computers = (0..HOSTS).map(|host| {
            let first = host == 0;
            let sidecar = if first {
                Sidecar::of(MACHINE, creator)
            } else {
                Sidecar::empty(MACHINE)
            };
            Computer {
                process: None,
                disk: Disk {
                    sidecar,
                    image: 0,
                    mixed: !first,
                },
                life: 0,
                offset: random.between(1, 1 << 40),
                rate: [-49_000, 0, 10, 49_000][random.index(4)],
                hung_until: 0,
                backlog_until: 0,
                stuck_until: 0,
                load_fails_until: 0,
                sidecar_fails_until: 0,
                off_for_good: false,
                // Decided below.
                unheld: false,
                trouble: 0,
                uplink: Cable::default(),
            }
        });
        let computers = computers.collect();
        let mut world = World {
            now: 0,
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            counter: 0,
            guards,
            timing: timing(guards, seed),
            unheld: seed % 2 == 1,
            mode: false,
            computers,
            network: Network::new(),
            streams: BTreeMap::new(),
            connections: 0,
            arbiter: None,
            arbiter_life: 0,
            arbiter_full_until: 0,
            reads_late: seed / 8 % 2 == 1,
            stored: record,
            before: record,
            decided: 0,
            history: History::new(),
            promoted: Vec::new(),
            unheld_passed: Vec::new(),
            yielded: None,
            launched: 0,
            sealed_for: None,
            switched_at: None,
            stage: Stage::Faults,
            path_trouble: 0,
            outcome: Outcome::default(),
            trace,
            random,
        };
        let first_mode = world.unheld && (!world.changes_mode(seed) || world.random.chance(50));
        world.mode = first_mode;
        for computer in &mut world.computers {
            computer.unheld = first_mode;
        }
        world.at(0, Happening::StartArbiter);
        for host in 0..HOSTS {
            let at = world.random.between(0, 20) * MS;
            world.at(at, Happening::Start { host });
            for b in host + 1..HOSTS {
                world.at(5 * MS, Happening::Connect { a: host, b });
            }
        }
        if world.changes_mode(seed) {
            world.plan_modes(first_mode);
        }
        for (at, fault) in Fault::schedule(&mut world.random, 600 * MS, FAULTS_END - 300 * MS) {
            world.at(at, Happening::Fault(fault));
        }
        world
    }

    pub(super) fn run(mut self) -> Outcome {
        while self.outcome.broken.is_none() {
            let Some(Reverse((at, number))) = self.queue.pop() else {
                break;
            };
            self.now = at;
            if self.stage == Stage::Faults && at >= FAULTS_END {
                self.heal();
            }
            let Some(happening) = self.happenings.remove(&number) else {
                continue;
            };
            self.outcome.steps += 1;
            self.happen(happening);
            if self.progress() {
                break;
            }
        }
        self.outcome.at = self.now;
        self.outcome
    }

    /// Whether the operator changes the machine's mode in the run of this seed.
    fn changes_mode(&self, seed: u64) -> bool {
        self.unheld && seed % 4 == 3
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

    pub(super) fn soon(&mut self, low: u64, high: u64, happening: Happening) {
        let at = self.now + self.random.between(low, high);
        self.at(at, happening);
    }

    /// When the operator changes the mode, and what goes wrong then.
    fn plan_modes(&mut self, first: bool) {
        let mut unheld = first;
        for _ in 0..self.random.between(1, 4) {
            unheld = !unheld;
            let at = self.random.between(600 * MS, FAULTS_END - 900 * MS);
            self.at(at, Happening::Fault(Fault::Mode { unheld }));
            // What makes it go wrong is a fault at the same time.
            if self.random.chance(60) {
                let at = (at + self.random.between(0, 200) * MS).saturating_sub(60 * MS);
                let fault = Fault::any(&mut self.random);
                self.at(at, Happening::Fault(fault));
            }
            // Or one while the hosts differ: a connection that closes just before its host is cut off.
            if self.random.chance(30) {
                let at = at + self.random.between(100, 890) * MS;
                let (host, lasts) = (self.random.index(HOSTS), 200 * MS);
                self.at(at, Happening::Fault(Fault::Reset { host }));
                let at = at + self.random.between(0, 3 * MS);
                self.at(at, Happening::Fault(Fault::Isolate { host, lasts }));
            }
        }
    }

    /// What a host in trouble cannot do happens when its trouble is over, `until` then: all trouble
    /// ends when the faults stop.
    pub(super) fn again(&mut self, until: u64, happening: Happening) {
        let stop = FAULTS_END + 5 * MS;
        let at = if self.now < stop {
            until.min(stop)
        } else {
            until
        };
        self.at(at, happening);
    }

    /// Until when the thread that holds a host's machine does nothing.
    pub(super) fn blocked_until(&self, host: usize) -> u64 {
        let computer = &self.computers[host];
        computer.hung_until.max(computer.stuck_until)
    }

    pub(super) fn clock(&self, host: usize) -> Time {
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
                self.datagram_arrives(host, *event);
            }
            Happening::Done { host, life, event } if self.alive(host, life) => {
                let hung = self.computers[host].hung_until;
                if self.now < hung {
                    self.again(hung + MS / 5, Happening::Done { host, life, event });
                } else {
                    self.handle(host, *event);
                }
            }
            Happening::Wake { host, life } if self.alive(host, life) => {
                let computer = &self.computers[host];
                if self.now < computer.hung_until.max(computer.backlog_until) {
                    return;
                }
                self.read(host);
            }
            Happening::Request(request) => self.request(*request),
            Happening::Stored { life, record, ok } => self.arbiter_stored(life, &record, ok),
            Happening::Operation {
                host,
                life,
                version,
            } if self.alive(host, life) => {
                self.operation(host, life, version);
            }
            Happening::EpochEnds {
                host,
                life,
                version,
            } if self.alive(host, life) => {
                self.epoch_ends(host, life, version);
            }
            Happening::Sealed { host, life, sealed } if self.alive(host, life) => {
                self.sealed(host, life, sealed);
            }
            Happening::Orders { host, life } if self.alive(host, life) => self.orders(host, life),
            Happening::Pump { stream } => self.pump(stream),
            Happening::Connect { a, b } => self.connect(a, b),
            Happening::Closed { host, life, number } if self.alive(host, life) => {
                self.closed(host, number);
            }
            Happening::Fault(fault) => self.fault(fault),
            Happening::Mode { host } => self.change_mode(host),
            Happening::Start { host } => self.start(host),
            Happening::StartArbiter if self.arbiter.is_none() => {
                self.tell(|| "arbiter starts".into());
                self.arbiter_life += 1;
                self.arbiter = Some(Arbiter::new([self.stored]).with_guards(self.guards));
            }
            Happening::Promote { host } => {
                let others = (0..HOSTS).filter(|&other| other != host);
                let alone = others
                    .into_iter()
                    .all(|other| self.computers[other].process.is_none());
                let ready = matches!(self.role(host), Some(RoleName::Waiting | RoleName::Backup));
                if alone && ready && self.now >= self.computers[host].hung_until {
                    if let Some(process) = self.process(host) {
                        process.promoted = true;
                        let me = process.me;
                        self.promoted.push((me, host));
                    }
                    self.handle(host, Event::Promote);
                }
            }
            Happening::Sidecar {
                host,
                life,
                sidecar,
            } if self.alive(host, life) => {
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

    pub(super) fn start(&mut self, host: usize) {
        if self.computers[host].process.is_some() || self.computers[host].off_for_good {
            return;
        }
        self.computers[host].life += 1;
        let life = self.computers[host].life;
        let random = u128::from(self.random.next() >> 8 | 1) << 8;
        let Some(me) = Incarnation::new(random | host as u128) else {
            return;
        };
        let config = Config {
            machine: MACHINE,
            unheld: self.computers[host].unheld,
            preferred: host == 0,
            timing: self.timing,
        };
        let sidecar = self.computers[host].disk.sidecar.clone();
        let now = self.clock(host);
        let built = Host::weakened(config, me, sidecar, now, self.guards);
        let Ok(machine) = built else {
            return self.broke(Broken::NobodyRuns);
        };
        let broken = self.stage == Stage::Faults && self.random.chance(8);
        self.tell(|| {
            format!(
                "{host} starts as {me}{}",
                if broken { ", can load no replica" } else { "" }
            )
        });
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
            orders: VecDeque::new(),
            broken,
            lies_since: None,
            inbox: Vec::new(),
            versions: 0,
        });
        self.at(self.now, Happening::Tick { host, life });
        self.drive(host);
    }

    pub(super) fn kill(&mut self, host: usize, power: bool) {
        let Some(process) = self.computers[host].process.take() else {
            return;
        };
        self.tell(|| format!("{host} {}", if power { "loses power" } else { "is killed" }));
        self.computers[host].hung_until = 0;
        self.computers[host].backlog_until = 0;
        self.computers[host].stuck_until = 0;
        if power {
            // What was not synced may be gone, in whole or in part.
            let image = self.computers[host].disk.image;
            let floor = self.history.get(image).flushed;
            let between = self
                .history
                .back(image, 64)
                .take_while(|n| *n != floor)
                .count();
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
                self.soon(
                    MS / 10,
                    3 * MS,
                    Happening::Closed {
                        host: other,
                        life,
                        number: link.number,
                    },
                );
            }
        }
    }

    pub(super) fn tick(&mut self, host: usize, life: u64) {
        let computer = &self.computers[host];
        if self.now < computer.hung_until {
            let at = computer.hung_until;
            return self.again(at, Happening::Tick { host, life });
        }
        let stuck = self.now < computer.stuck_until;
        if self.now >= computer.backlog_until {
            self.read(host);
        }
        let computer = &self.computers[host];
        let drained = computer.process.as_ref().is_none_or(|p| p.inbox.is_empty());
        let uplink = computer.uplink.state(self.now);
        self.handle(host, Event::Uplink(uplink));
        self.handle(host, Event::Tick { drained });
        if !stuck {
            self.handle(host, Event::LoopTurned);
        }
        self.check_cover(host);
        let now = self.clock(host);
        let Some(process) = self.process(host) else {
            return;
        };
        let wait = process
            .host
            .deadline(now)
            .since(now)
            .max(Duration::from_millis(1));
        let wait = u64::try_from(wait.as_nanos()).unwrap_or(MS);
        let at = self.now + wait + self.random.between(0, MS / 2);
        self.at(at, Happening::Tick { host, life });
    }

    pub(super) fn handle(&mut self, host: usize, event: Event) {
        let now = self.clock(host);
        if let Some(process) = self.process(host) {
            process.host.handle(now, event);
            self.drive(host);
        }
    }

    pub(super) fn drive(&mut self, host: usize) {
        while let Some(action) = self.process(host).and_then(|p| p.host.poll()) {
            self.perform(host, action);
        }
        self.seal_if_allowed(host);
    }

    pub(super) fn role(&self, host: usize) -> Option<RoleName> {
        self.computers[host]
            .process
            .as_ref()
            .map(|p| p.host.status().role)
    }
}
