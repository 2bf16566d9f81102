//! The thread that holds the machine, with the tiny guest and without a partner: what it is told,
//! it does, and nothing else. Where there is no KVM, these tests say so and pass.

mod filling;
mod replica;

use super::*;
use crate::{
    Builder, Ended, Report, Settings, Shape,
    backup::{
        Backup,
        testing::{Blank, MACHINE, World, backup, incarnation, session, term, tiny, until, world},
    },
    disks::{WritableDisk, WriteLog},
    driver::Driver,
    identity::Secret,
    link::{LinkError, Listener, Terms},
    node::Node,
    outbox::Outbox,
    settings::{ArbiterAddress, HostAddress},
};
use romulus_machine::{
    CableEnd, DiskLog as _, Memory, Outlet as _, Ports, TapWriter, TrackingCosts, tiny::Tiny,
};
use romulus_network::{Mode, in_flight::Keep};
use romulus_protocol::{
    arbiter::Answer,
    control::Limits,
    host::{Event, Pass, Permit, RoleName},
    id::{Epoch, Generation, Term},
    message::Message,
    record::{Phase, Record},
    timing::Timing,
};
use std::{
    fs::{self, File},
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};
use tempfile::TempDir;

const LONG: Duration = Duration::from_secs(30);
/// How long what must not happen is waited for.
const NEVER: Duration = Duration::from_millis(300);

/// The tiny guest, seen from outside.
struct Watched {
    tiny: Tiny,
    memory: Mutex<Option<Memory>>,
    made: AtomicUsize,
    disks: Vec<WritableDisk>,
    tap: TapWriter,
}

impl Watched {
    fn see(&self, made: Result<Paused, Error>) -> Result<Paused, Error> {
        let paused = made?;
        *self.memory.lock().unwrap() = Some(paused.memory().clone());
        self.made.fetch_add(1, Ordering::SeqCst);
        Ok(paused)
    }
}

impl Builder for Watched {
    fn boot(&self, ports: &Ports) -> Result<Paused, Error> {
        self.see(self.tiny.boot_with(ports))
    }

    fn prepare(&self, ports: &Ports) -> Result<Paused, Error> {
        self.see(Builder::prepare(&self.tiny, ports))
    }

    fn rehearse(&self, memory: Memory) -> Result<(Paused, Vec<CableEnd>), Error> {
        self.tiny.rehearse(memory)
    }

    fn shape(&self) -> Result<Shape, Error> {
        self.tiny.shape()
    }

    fn disks(&self) -> Vec<WritableDisk> {
        self.disks.clone()
    }

    fn taps(&self, _: &Paused) -> Vec<TapWriter> {
        vec![self.tap.clone()]
    }
}

/// A driver at work.
struct Bench {
    world: World,
    builder: Arc<Watched>,
    backup: Arc<Backup>,
    log: Arc<WriteLog>,
    cable: UnixDatagram,
    directory: TempDir,
    thread: Option<JoinHandle<Ended>>,
}

fn settings(state: &Path) -> Settings {
    let identity = *Secret::from_seed(&[7; 32]).public();
    let address = ([127, 0, 0, 1], 9).into();
    let host = || HostAddress {
        name: "host".into(),
        identity,
        replication: address,
        control: None,
    };
    Settings {
        machine: MACHINE,
        name: "tiny".into(),
        me: 0,
        hosts: [host(), host()],
        arbiter: ArbiterAddress { address, identity },
        timing: Timing::default(),
        limits: Limits::default(),
        mode: Mode::Net,
        keep: Keep::default(),
        insecure: true,
        state: state.into(),
        shadow: 1 << 20,
        queue: 1 << 20,
        lock_memory: false,
        uplink: Vec::new(),
        rehearse: None,
        reboot: true,
        tracking: TrackingCosts {
            first_write: Duration::from_micros(1),
            copy: Duration::from_micros(1),
        },
    }
}

impl Bench {
    /// Nothing where there is no KVM. `disk`: the guest has one of 4 KiB.
    fn new(disk: bool) -> Option<Bench> {
        let tiny = tiny()?;
        let directory = tempfile::tempdir().unwrap();
        let mut disks = Vec::new();
        if disk {
            let path = directory.path().join("image");
            fs::write(&path, [0; 4096]).unwrap();
            disks.push(WritableDisk { disk: 0, path });
        }
        let world = world();
        let node = Arc::clone(&world.node);
        let (tap, cable) = UnixDatagram::pair().unwrap();
        cable.set_nonblocking(true).unwrap();
        let state = directory.path().join("state");
        let (backup, _) = backup(&disks, &state);
        backup.no_machine();
        let backup = Arc::new(backup);
        let settings = settings(&state);
        let shape = tiny.shape().unwrap();
        let builder = Arc::new(Watched {
            tiny,
            memory: Mutex::default(),
            made: AtomicUsize::new(0),
            disks,
            tap: TapWriter::new(File::from(OwnedFd::from(tap))),
        });
        let log = Arc::new(WriteLog::default());
        let ports = Ports {
            outlet: Some(Arc::clone(&node.output) as Arc<_>),
            shareable: true,
            ..Ports::default()
        };
        let driver = Driver::new(
            node,
            Arc::clone(&backup),
            Arc::new(settings),
            Arc::clone(&builder) as Arc<dyn Builder>,
            shape,
            ports,
            Arc::clone(&log),
            Arc::default(),
        );
        let thread = thread::spawn(move || driver.run());
        Some(Bench {
            world,
            builder,
            backup,
            log,
            cable,
            directory,
            thread: Some(thread),
        })
    }

    fn node(&self) -> &Arc<Node> {
        &self.world.node
    }

    fn order(&self, order: Order) {
        self.node().orders.push(order);
    }

    /// Waits for a report.
    fn report(&self, wanted: impl Fn(&Report) -> bool) {
        let reports = self.world.reports.lock().unwrap();
        loop {
            let report = reports.recv_timeout(LONG).expect("not reported");
            if wanted(&report) {
                return;
            }
        }
    }

    fn quiet(&self, unwanted: impl Fn(&Report) -> bool) {
        let reports = self.world.reports.lock().unwrap();
        while let Ok(report) = reports.recv_timeout(NEVER) {
            assert!(!unwanted(&report), "{report:?}");
        }
    }

    /// So many machines were made, and the driver has the newest.
    fn made(&self, machines: usize) {
        until("no machine is made", || {
            let made = self.builder.made.load(Ordering::SeqCst) == machines;
            // The test's and the driver's: the thread that made it has handed it over.
            (made && Arc::strong_count(&self.builder) == 2).then_some(())
        });
        self.obeyed();
    }

    /// The machine is started from its disk.
    fn run(&self) {
        self.order(Order::Load(Source::Cold));
        self.made(1);
        self.order(Order::Run {
            source: Source::Cold,
            term: term(),
        });
        self.report(is_running);
    }

    fn rounds(&self) -> u64 {
        let memory = self.builder.memory.lock().unwrap();
        self.builder.tiny.rounds(memory.as_ref().unwrap(), 0)
    }

    fn goes_on(&self) {
        let before = self.rounds();
        until("the guest does not run", || {
            (self.rounds() > before + 1).then_some(())
        });
    }

    fn stands(&self) {
        let before = self.rounds();
        thread::sleep(NEVER);
        assert_eq!(self.rounds(), before);
    }

    /// What has left since the last look.
    fn left(&self) -> usize {
        std::iter::from_fn(|| self.cable.recv(&mut [0; 1024]).ok()).count()
    }

    /// All orders so far are done.
    fn obeyed(&self) {
        // It is with the last of them, perhaps: when these two are taken, it no longer is.
        self.order(Order::Acknowledged);
        self.order(Order::Acknowledged);
        until("the orders are not obeyed", || {
            let inner = self.node().orders.inner.lock().unwrap();
            inner.orders.is_empty().then_some(())
        });
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.node().end();
        self.order(Order::End);
        if let Some(thread) = self.thread.take() {
            // Shown for a test that fails.
            eprintln!("the driver ended: {:?}", thread.join());
        }
    }
}

fn is_running(report: &Report) -> bool {
    matches!(report, Report::Running { .. })
}

fn is_idle(report: &Report) -> bool {
    matches!(report, Report::Idle)
}

const ALL: Permit = Permit {
    pass: Pass::All,
    through: Epoch(0),
    until: None,
};

#[test]
fn what_is_discarded_stands_and_sends_nothing_more() {
    let Some(bench) = Bench::new(false) else {
        return;
    };
    bench.run();
    bench.goes_on();
    bench.node().output.send(0, &mut Blank);
    bench.order(Order::Discard);
    bench.report(is_idle);
    bench.stands();
    bench.node().output.permit(ALL);
    assert_eq!(bench.left(), 0, "a frame of a machine that is no more");
}

#[test]
fn who_is_filled_runs_nothing_and_holds_no_old_output() {
    let Some(bench) = Bench::new(false) else {
        return;
    };
    bench.run();
    bench.goes_on();
    bench.node().output.send(0, &mut Blank);
    let before = bench.builder.memory.lock().unwrap().clone().unwrap();
    bench.order(Order::Prepare(session(1)));
    bench.made(2);
    let rounds = || bench.builder.tiny.rounds(&before, 0);
    let stood = rounds();
    thread::sleep(NEVER);
    assert_eq!(rounds(), stood);
    bench.node().output.permit(ALL);
    assert_eq!(bench.left(), 0);
}

#[test]
fn a_frozen_guest_stands_until_it_thaws() {
    let Some(bench) = Bench::new(false) else {
        return;
    };
    bench.run();
    bench.goes_on();
    bench.order(Order::Freeze);
    bench.obeyed();
    bench.stands();
    bench.order(Order::Thaw);
    bench.goes_on();
}

#[test]
fn late_news_of_an_earlier_life_changes_nothing() {
    let Some(bench) = Bench::new(false) else {
        return;
    };
    bench.run();
    bench.order(Order::Exited(0, Exit::PoweredOff));
    let late = bench.builder.tiny.boot().unwrap();
    bench.order(Order::Built(1, Box::new(Ok(late))));
    bench.obeyed();
    bench.quiet(is_idle);
    bench.goes_on();
}

#[test]
fn a_reset_guest_waits_until_everything_may_leave() {
    let Some(bench) = Bench::new(false) else {
        return;
    };
    bench.run();
    bench.goes_on();
    bench.node().output.send(0, &mut Blank);
    // The link over which a backup is filled.
    let listener = Listener::bind(([127, 0, 0, 1], 0).into()).unwrap();
    let outbox = Arc::new(Outbox::new(listener.closer()));
    bench.node().connected(incarnation(2), &outbox);
    // The first life is the one that was made, the second the one that runs.
    bench.order(Order::Exited(2, Exit::Reset));
    bench.report(is_idle);
    bench.made(2);
    bench.quiet(is_running);
    let (closed, is_closed) = mpsc::channel();
    thread::spawn(move || closed.send(listener.accept(&Terms::insecure()).map(drop)));
    // What it was filled with is another guest's.
    let closed = is_closed.recv_timeout(LONG);
    assert!(matches!(closed, Ok(Err(LinkError::Closed))), "{closed:?}");
    bench.node().output.permit(ALL);
    assert_eq!(bench.left(), 0, "a frame of the guest before");
    bench.order(Order::Acknowledged);
    bench.report(is_running);
    bench.goes_on();
}

#[test]
fn a_guest_that_was_frozen_in_its_reset_runs_when_it_is_to() {
    let Some(bench) = Bench::new(false) else {
        return;
    };
    bench.run();
    bench.goes_on();
    bench.order(Order::Exited(2, Exit::Reset));
    // The backup may have claimed the machine just then, and handed it back.
    bench.order(Order::Freeze);
    bench.order(Order::Run {
        source: Source::Paused,
        term: Term(Generation(9)),
    });
    bench.made(2);
    bench.node().output.permit(ALL);
    bench.order(Order::Acknowledged);
    bench.report(|report| matches!(report, Report::Running { term: 9, .. }));
    bench.goes_on();
}
