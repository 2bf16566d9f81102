//! The state: two hosts' processes, what they run and hold, their link, and the record.

use std::collections::VecDeque;
use std::time::Duration;

use crate::arbiter::{Ask, Request};
use crate::guards::Guards;
use crate::heartbeat::Heartbeat;
use crate::host::{Action, Config, Event, Host, Notice, RoleName, Sealed, Source};
use crate::id::{Epoch, Incarnation, SessionId, Term};
use crate::message::Message;
use crate::record::{Record, Refusal};
use crate::sidecar::Sidecar;
use crate::time::Time;
use crate::timing::Timing;

use super::check::Broken;
use super::clocks::NOW;
use super::{MACHINE, incarnation};

/// What a machine has lived through: for each thing that it did, the term in which it did it and
/// the host. Two machines are of one history if one's is the other's beginning.
pub(super) type Life = Vec<u8>;

/// The machine on the host that runs it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Guest {
    pub(super) term: Term,
    pub(super) life: Life,
    /// The epoch of each thing that it did in this term, from which all older output counts as
    /// epoch 1's.
    pub(super) epochs: Vec<u8>,
    pub(super) epoch: u8,
    /// The session whose epochs end.
    pub(super) session: Option<SessionId>,
    pub(super) paused: bool,
    /// It is to rest with the end of the running epoch.
    pub(super) resting: bool,
}

/// A replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Replica {
    pub(super) session: SessionId,
    pub(super) life: Life,
    pub(super) whole: bool,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Process {
    pub(super) host: Host,
    pub(super) me: Incarnation,
    pub(super) now: Time,
    pub(super) guest: Option<Guest>,
    pub(super) replica: Option<Replica>,
    /// It cannot load what it holds.
    pub(super) broken: bool,
    /// It has loaded it.
    pub(super) loaded: bool,
}

/// A host, with or without a process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Computer {
    pub(super) process: Option<Process>,
    pub(super) lives: u8,
    pub(super) sidecar: Sidecar,
    pub(super) image: Life,
    /// The image is part old, part new.
    pub(super) mixed: bool,
}

/// A message, and what a checkpoint carries.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Parcel {
    pub(super) message: Message,
    pub(super) life: Life,
}

/// The connection of the two.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Link {
    pub(super) ends: [Incarnation; 2],
    /// What is on the way to each.
    pub(super) to: [VecDeque<Parcel>; 2],
    /// Whose end is open.
    pub(super) open: [bool; 2],
    /// It is broken: each end may learn of it from now on.
    pub(super) broken: bool,
}

/// What does not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Setting {
    pub(super) timing: Timing,
    pub(super) unheld: bool,
    /// By how much each host's clock advances from one tick to the next.
    pub(super) ticks: [Duration; 2],
    /// Longer ago, or longer to come, makes no difference.
    pub(super) horizon: Duration,
}

/// All.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) guards: Guards,
    pub(super) setting: Setting,
    pub(super) record: Record,
    /// Changes on their way to the arbiter, each once: a copy of one would only be refused.
    pub(super) requests: Vec<Request>,
    /// An answer that is late, to each.
    pub(super) late: [Option<Record>; 2],
    pub(super) computers: [Computer; 2],
    pub(super) link: Option<Link>,
    /// All held output that ever left: the longest life of which some did.
    pub(super) released: Life,
    /// The newest term that began.
    pub(super) newest: Term,
    /// The newest term that the record decided, begun or not.
    pub(super) decided: Term,
    /// Faults that are still to come.
    pub(super) faults: u8,
    /// Switchovers that are still to be asked for.
    pub(super) switchovers: u8,
    pub(super) broke: Option<Broken>,
}

impl World {
    /// A new machine: the first host's disk is its creator's, nothing runs.
    pub(super) fn new(guards: Guards, setting: &Setting) -> World {
        let creator = incarnation(0x7f, 1);
        let computer = |sidecar, mixed| Computer {
            process: None,
            lives: 0,
            sidecar,
            image: Life::new(),
            mixed,
        };
        let mut world = World {
            guards,
            setting: *setting,
            record: Record::new(MACHINE, creator),
            requests: Vec::new(),
            late: [None; 2],
            computers: [
                computer(Sidecar::of(MACHINE, creator), false),
                computer(Sidecar::empty(MACHINE), true),
            ],
            link: None,
            released: Life::new(),
            newest: Term::default(),
            decided: Term::default(),
            faults: 0,
            switchovers: 0,
            broke: None,
        };
        world.start(0);
        world.start(1);
        world
    }

    /// A new machine that the first host runs and the second protects; and the state in which it
    /// had only just started.
    pub(super) fn beginnings(guards: Guards, setting: &Setting) -> Option<[World; 2]> {
        let mut world = World::new(guards, setting);
        let mut alone = None;
        for _ in 0..60 {
            world.round();
            world.normalise(false);
            if world.runs(0) && alone.is_none() {
                alone = Some(world.clone());
            }
            if world.good_and_protected() {
                return Some([world, alone?]);
            }
        }
        None
    }

    pub(super) fn start(&mut self, host: usize) {
        let computer = &mut self.computers[host];
        computer.lives += 1;
        let me = incarnation(host, computer.lives);
        let config = Config {
            machine: MACHINE,
            unheld: self.setting.unheld,
            preferred: host == 0,
            timing: self.setting.timing,
        };
        let sidecar = computer.sidecar.clone();
        let Ok(built) = Host::weakened(config, me, sidecar, NOW, self.guards) else {
            unreachable!("the timing is safe");
        };
        computer.process = Some(Process {
            host: built,
            me,
            now: NOW,
            guest: None,
            replica: None,
            broken: false,
            loaded: false,
        });
        self.drive(host, None);
    }

    /// The process dies, and with it its end of the link.
    pub(super) fn kill(&mut self, host: usize) {
        self.computers[host].process = None;
        self.late[host] = None;
        if let Some(link) = &mut self.link {
            link.broken = true;
            link.open[host] = false;
            link.to[host].clear();
        }
        self.forget_link();
    }

    pub(super) fn forget_link(&mut self) {
        self.link.take_if(|link| link.open == [false; 2]);
    }

    pub(super) fn process(&self, host: usize) -> Option<&Process> {
        self.computers[host].process.as_ref()
    }

    pub(super) fn role(&self, host: usize) -> Option<RoleName> {
        self.process(host).map(|p| p.host.status().role)
    }

    pub(super) fn handle(&mut self, host: usize, event: Event) {
        if let Some(process) = &mut self.computers[host].process {
            process.host.handle(process.now, event);
            self.drive(host, None);
        }
    }

    /// One turn of the heartbeat thread and the epoch loop. Says which heartbeat it sent.
    pub(super) fn tick(&mut self, host: usize) -> Option<Heartbeat> {
        let process = self.computers[host].process.as_mut()?;
        process.now = process.now + self.setting.ticks[host];
        process.host.handle(process.now, Event::LoopTurned);
        process
            .host
            .handle(process.now, Event::Tick { drained: true });
        self.drive(host, None)
    }

    /// Carries out what the host wants. `arrived` is what came with the event's checkpoint.
    fn drive(&mut self, host: usize, arrived: Option<&(Life, bool)>) -> Option<Heartbeat> {
        let mut beat = None;
        while let Some(action) = self.computers[host]
            .process
            .as_mut()
            .and_then(|p| p.host.poll())
        {
            match action {
                Action::Heartbeat(heartbeat) => beat = Some(heartbeat),
                Action::Arbiter(request) => self.asked(request),
                Action::Send { to, message } => {
                    if let Message::Yield(_) = message {
                        self.yields(host);
                    }
                    self.send(host, to, message);
                }
                Action::Notice(Notice::Refused(Refusal::Shape | Refusal::NotNamed)) => {
                    self.broke(Broken::Refused);
                }
                Action::Notice(_) | Action::Permit(_) => {}
                Action::End => self.kill(host),
                Action::Apply { session, .. } => {
                    if let Some((life, complete)) = arrived {
                        self.apply(host, session, life, *complete);
                    }
                }
                other => self.perform(host, other),
            }
        }
        self.release(host);
        beat
    }

    /// Reads are not kept: one may be answered at any time.
    fn asked(&mut self, mut request: Request) {
        request.number = 0;
        if matches!(request.ask, Ask::Change(..)) && !self.requests.contains(&request) {
            self.requests.push(request);
        }
    }

    /// All that the guest has done is to be kept, as if it had left.
    fn yields(&mut self, host: usize) {
        let guest = self.process(host).and_then(|p| p.guest.as_ref());
        if let Some(life) = guest.map(|guest| guest.life.clone()) {
            self.released = life;
        }
    }

    fn send(&mut self, host: usize, to: Incarnation, message: Message) {
        let other = 1 - host;
        let there = self.process(other).is_some_and(|p| p.me == to);
        let life = match message {
            Message::Checkpoint(_) => self.computers[host]
                .process
                .as_ref()
                .and_then(|p| p.guest.as_ref())
                .map_or(Life::new(), |g| g.life.clone()),
            _ => Life::new(),
        };
        if let Some(link) = &mut self.link
            && link.open == [true; 2]
            && there
        {
            let parcel = Parcel { message, life };
            // What is said twice says no more.
            if link.to[other].back() != Some(&parcel) {
                link.to[other].push_back(parcel);
            }
        }
    }

    fn perform(&mut self, host: usize, action: Action) {
        let Some(process) = &mut self.computers[host].process else {
            return;
        };
        match action {
            Action::Copy(session) => {
                if let Some(guest) = &mut process.guest {
                    guest.session = Some(session);
                }
            }
            Action::EndCopy(session) => {
                if let Some(guest) = &mut process.guest {
                    guest.session.take_if(|s| *s == session);
                }
            }
            Action::Rest => {
                if let Some(guest) = &mut process.guest {
                    guest.resting = true;
                }
            }
            Action::Freeze | Action::Thaw => {
                if let Some(guest) = &mut process.guest {
                    guest.paused = action == Action::Freeze;
                    guest.resting = false;
                }
            }
            Action::Load(source) => {
                let ok = !process.broken || source == Source::Cold;
                let now = process.now;
                process.loaded = ok;
                process.host.handle(now, Event::Loaded(ok));
            }
            Action::Try(session) => {
                let (now, loaded) = (process.now, !process.broken);
                process.host.handle(now, Event::Tried { session, loaded });
            }
            Action::StoreSidecar(sidecar) => {
                let now = process.now;
                process.host.handle(now, Event::SidecarStored(true));
                self.computers[host].sidecar = sidecar;
            }
            Action::Discard => {
                self.check_drop(host);
                let Some(process) = &mut self.computers[host].process else {
                    return;
                };
                process.loaded = false;
                process.guest = None;
                process.replica = None;
            }
            Action::Prepare(session) => {
                process.guest = None;
                process.replica = Some(Replica {
                    session,
                    life: Life::new(),
                    whole: false,
                });
            }
            Action::Run { source, term } => self.run(host, source, term),
            _ => {}
        }
    }

    fn run(&mut self, host: usize, source: Source, term: Term) {
        let Some(life) = self.check_start(host, source, term) else {
            return;
        };
        let computer = &mut self.computers[host];
        computer.image.clone_from(&life);
        computer.mixed = false;
        if let Some(process) = &mut computer.process {
            process.replica = None;
            process.loaded = false;
            process.guest = Some(Guest {
                term,
                life,
                epochs: Vec::new(),
                epoch: 1,
                session: None,
                paused: false,
                resting: false,
            });
        }
    }

    /// A message arrives. What a checkpoint carries is applied if the host accepts it.
    pub(super) fn deliver(&mut self, host: usize) {
        let Some(link) = &mut self.link else { return };
        let from = link.ends[1 - host];
        let Some(Parcel { message, life }) = link.to[host].pop_front() else {
            return;
        };
        let Some(process) = &mut self.computers[host].process else {
            return;
        };
        let complete = matches!(&message, Message::Checkpoint(c) if c.complete);
        let event = Event::Message { from, message };
        process.host.handle(process.now, event);
        self.drive(host, Some(&(life, complete)));
    }

    fn apply(&mut self, host: usize, session: SessionId, life: &Life, complete: bool) {
        let computer = &mut self.computers[host];
        let Some(replica) = computer.process.as_mut().and_then(|p| p.replica.as_mut()) else {
            return;
        };
        if replica.session == session {
            replica.life.clone_from(life);
            replica.whole |= complete;
            computer.image.clone_from(life);
            computer.mixed = !replica.whole;
        }
    }

    /// The guest does something, and what it says leaves at once if it may.
    pub(super) fn execute(&mut self, host: usize) {
        let computer = &mut self.computers[host];
        let Some(guest) = computer.process.as_mut().and_then(|p| p.guest.as_mut()) else {
            return;
        };
        let tag = u8::try_from(guest.term.0.0 * 2 + host as u64).unwrap_or(u8::MAX);
        guest.life.push(tag);
        guest.epochs.push(guest.epoch);
        computer.image.clone_from(&guest.life);
        self.release(host);
    }

    /// The running epoch ends. The first one of a session makes the copy complete.
    pub(super) fn seal(&mut self, host: usize) {
        let Some(process) = &mut self.computers[host].process else {
            return;
        };
        let Some(guest) = &mut process.guest else {
            return;
        };
        let Some(session) = guest.session else {
            return;
        };
        let sealed = Sealed {
            term: guest.term,
            session,
            complete: true,
            released_through: Epoch(0),
            rx_next: 0,
            rests: guest.resting,
        };
        guest.paused |= std::mem::take(&mut guest.resting);
        process.host.handle(process.now, Event::Sealed(sealed));
        guest.epoch += 1;
        self.drive(host, None);
    }
}
