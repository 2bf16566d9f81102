//! What the tests of a pair stand on.

use romulus_engine::{
    ArbiterAddress, Builder, Ended, Engine, HostAddress, Report, Settings, Shape, Status,
    WritableDisk,
    arbiter::{Client, Files, Server, ServerConfig},
    identity::{Public, Secret},
    sidecar,
};
use romulus_machine::{CableEnd, Error, Memory, Outlet, Paused, Ports, TapWriter, tiny::Tiny};
use romulus_network::{Mode, in_flight::Keep};
use romulus_protocol::{
    arbiter::{Ask, Request},
    control::Limits,
    host::RoleName,
    id::{Incarnation, MachineId},
    sidecar::Sidecar,
    timing::Timing,
};
use std::{
    net::{Ipv4Addr, SocketAddr},
    os::unix::net::UnixStream,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// How often a condition is looked at.
const STEP: Duration = Duration::from_millis(5);

/// The tiny guest, whose memory the test can see, and whose card is somebody else.
struct Watched {
    tiny: Tiny,
    disks: Vec<WritableDisk>,
    memory: Mutex<Option<Memory>>,
    outlet: Mutex<Option<Arc<dyn Outlet>>>,
    whole: Mutex<Option<Result<(), String>>>,
    /// The guest's count when it began to run here.
    began: Mutex<u64>,
    wire: Option<TapWriter>,
}

/// The address of the card that there is where frames go anywhere.
const CARD: [u8; 6] = [2, 0, 0, 0, 0, 1];

impl Watched {
    fn see(&self, made: Result<Paused, Error>) -> Result<Paused, Error> {
        let paused = made?;
        *self.memory.lock().unwrap() = Some(paused.memory().clone());
        Ok(paused)
    }
}

impl Builder for Watched {
    fn boot(&self, ports: &Ports) -> Result<Paused, Error> {
        self.outlet.lock().unwrap().clone_from(&ports.outlet);
        self.see(self.tiny.boot_with(ports))
    }

    fn prepare(&self, ports: &Ports) -> Result<Paused, Error> {
        self.see(Builder::prepare(&self.tiny, ports))
    }

    fn rehearse(&self, memory: Memory) -> Result<(Paused, Vec<CableEnd>), Error> {
        self.tiny.rehearse(memory)
    }

    fn shape(&self) -> Result<Shape, Error> {
        let mut shape = self.tiny.shape()?;
        // Its frames are a card's, or the backup would refuse them.
        shape.cards.extend(self.wire.iter().map(|_| CARD));
        Ok(shape)
    }

    fn disks(&self) -> Vec<WritableDisk> {
        self.disks.clone()
    }

    fn taps(&self, paused: &Paused) -> Vec<TapWriter> {
        // It is about to run.
        *self.whole.lock().unwrap() = Some(self.tiny.check_whole(paused.memory()));
        *self.began.lock().unwrap() = self.tiny.rounds(paused.memory(), 0);
        self.wire.iter().cloned().collect()
    }
}

/// What may differ from one bench to another.
pub(crate) struct Options {
    pub(crate) tiny: Tiny,
    pub(crate) insecure: bool,
    pub(crate) timing: Timing,
    /// Where the guest's frames go.
    pub(crate) wire: Option<TapWriter>,
    /// How often the replica is rehearsed.
    pub(crate) rehearse: Option<Duration>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            tiny: Tiny {
                vcpus: 1,
                memory: 128 << 20,
                pages: 50,
                stride: 3,
                first_page: 1024,
                wait: 100_000,
            },
            insecure: false,
            // A computer that does many things at once: what is tested here is not the speed.
            timing: Timing {
                heartbeat: Duration::from_millis(20),
                t_p: Duration::from_millis(350),
                t_a: Duration::from_millis(400),
                t_b: Duration::from_millis(500),
                stall: Duration::from_millis(250),
                t_cold: Duration::from_millis(1500),
                ..Timing::default()
            },
            wire: None,
            // Whatever else a test looks at, this happens beside.
            rehearse: Some(Duration::from_secs(1)),
        }
    }
}

/// Two hosts' worth of settings, and a running arbiter.
pub(crate) struct Bench {
    options: Options,
    hosts: [HostAddress; 2],
    secrets: [Secret; 2],
    arbiter: ArbiterAddress,
    directory: TempDir,
    /// Dropped to end the arbiter.
    stop: Option<UnixStream>,
    server: Option<JoinHandle<()>>,
}

/// An address on the loopback interface that nobody else uses: a host number made of this
/// process's id, and a port below those that the kernel gives to clients. One that was only found
/// free could be taken, by any other process, before it is listened at.
fn address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(10_000);
    let [_, b, c, d] = std::process::id().to_be_bytes();
    let host = Ipv4Addr::new(127, b + 1, c, d);
    (host, NEXT.fetch_add(1, Ordering::Relaxed)).into()
}

const MACHINE: MachineId = MachineId(0x6f);

impl Bench {
    /// Nothing where there is no KVM.
    pub(crate) fn new() -> Option<Bench> {
        // Shown for a test that fails.
        let _ = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_test_writer()
            .try_init();
        Bench::with(Options::default())
    }

    /// [`Self::new`] with other options, and silent.
    pub(crate) fn with(options: Options) -> Option<Bench> {
        if !std::path::Path::new("/dev/kvm").exists() {
            eprintln!("skipped: there is no /dev/kvm here");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let secret = |name: &str| Secret::create(&directory.path().join(name)).unwrap();
        let (secrets, judge) = ([secret("alba"), secret("berta")], secret("judge"));
        let host = |name: &str, secret: &Secret| HostAddress {
            name: name.into(),
            identity: *secret.public(),
            replication: address(),
            control: Some(address()),
        };
        let hosts = [host("alba", &secrets[0]), host("berta", &secrets[1])];
        let arbiter = ArbiterAddress {
            address: address(),
            identity: *judge.public(),
        };
        let allowed: Vec<Public> = hosts.iter().map(|h| h.identity).collect();
        let server = Server::open(ServerConfig {
            listen: vec![arbiter.address],
            records: Box::new(Files::open(&directory.path().join("records")).expect("opened")),
            secret: judge,
            allowed,
        })
        .unwrap();
        let (stop, ended) = UnixStream::pair().unwrap();
        let server = thread::spawn(move || server.run(ended).unwrap());
        let bench = Bench {
            options,
            hosts,
            secrets,
            arbiter,
            directory,
            stop: Some(stop),
            server: Some(server),
        };
        bench.create();
        Some(bench)
    }

    /// What `romulus create` does.
    fn create(&self) {
        let mut client = Client::open(
            self.arbiter.address,
            None,
            &self.secrets[0],
            &self.arbiter.identity,
        )
        .unwrap();
        let creator = Incarnation::new(77).unwrap();
        let request = Request {
            machine: MACHINE,
            from: creator,
            number: 1,
            ask: Ask::Create,
        };
        let until = Instant::now() + Duration::from_secs(10);
        let answer = loop {
            assert!(Instant::now() < until, "the arbiter does not answer");
            client.send(&request);
            thread::sleep(STEP);
            if let Some(answer) = client.receive() {
                break answer;
            }
        };
        assert!(answer.record.is_some(), "{answer:?}");
        sidecar::store(&self.state(0), &Sidecar::of(MACHINE, creator)).unwrap();
    }

    /// The state directory of host number `index`.
    pub(crate) fn state(&self, index: usize) -> std::path::PathBuf {
        self.directory.path().join(format!("state{index}"))
    }

    /// Where host number `index` takes its link.
    #[allow(dead_code, reason = "each test uses its part")]
    pub(crate) fn link(&self, index: usize) -> SocketAddr {
        self.hosts[index].replication
    }

    /// Starts an engine as host number `index`.
    pub(crate) fn start(&self, index: usize) -> Life {
        self.start_with(index, self.options.tiny.clone(), Vec::new())
    }

    /// [`Self::start`] with a machine and disks of its own.
    pub(crate) fn start_with(&self, index: usize, tiny: Tiny, disks: Vec<WritableDisk>) -> Life {
        self.start_as(index, tiny, disks, Mode::Net)
    }

    /// [`Self::start_with`], which holds all output, in another mode.
    pub(crate) fn start_as(
        &self,
        index: usize,
        tiny: Tiny,
        disks: Vec<WritableDisk>,
        mode: Mode,
    ) -> Life {
        let settings = Settings {
            machine: MACHINE,
            name: format!("tiny{index}"),
            me: index,
            hosts: self.hosts.clone(),
            arbiter: self.arbiter.clone(),
            timing: self.options.timing,
            limits: Limits::default(),
            mode,
            keep: Keep::default(),
            insecure: self.options.insecure,
            state: self.state(index),
            shadow: 64 << 20,
            queue: 1 << 20,
            lock_memory: false,
            uplink: Vec::new(),
            rehearse: self.options.rehearse,
            reboot: true,
            tracking: romulus_machine::tracking_costs().unwrap(),
        };
        let builder = Arc::new(Watched {
            tiny,
            disks,
            memory: Mutex::default(),
            outlet: Mutex::default(),
            whole: Mutex::default(),
            began: Mutex::default(),
            wire: self.options.wire.clone(),
        });
        let (sender, reports) = mpsc::channel();
        let engine = Engine::start(
            settings,
            &self.secrets[index],
            Arc::clone(&builder) as Arc<dyn Builder>,
            sender,
        )
        .unwrap();
        Life {
            engine,
            reports,
            builder,
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(server) = self.server.take() {
            server.join().unwrap();
        }
    }
}

/// One life of one engine.
pub(crate) struct Life {
    engine: Engine,
    reports: mpsc::Receiver<Report>,
    builder: Arc<Watched>,
}

impl Life {
    /// Waits for a report.
    pub(crate) fn until(&self, at_most: Duration, wanted: impl Fn(&Report) -> bool) -> Report {
        let until = Instant::now() + at_most;
        let mut seen = Vec::new();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.reports.recv_timeout(left) {
                Ok(report) if wanted(&report) => return report,
                Ok(report) => seen.push(format!("{report:?}")),
                Err(error) => panic!(
                    "not reported ({error}); seen: {seen:#?}; {:#?}",
                    self.status()
                ),
            }
        }
    }

    /// Waits until the machine runs here: its term, and whether it was taken over.
    pub(crate) fn running(&self, at_most: Duration) -> (u64, bool) {
        match self.until(at_most, |r| matches!(r, Report::Running { .. })) {
            Report::Running {
                term, taken_over, ..
            } => (term, taken_over),
            other => unreachable!("{other:?}"),
        }
    }

    /// Waits for the end.
    pub(crate) fn ended(self, at_most: Duration) -> Ended {
        let report = self.until(at_most, |r| matches!(r, Report::Ended(_)));
        self.engine.join();
        match report {
            Report::Ended(ended) => ended,
            other => unreachable!("{other:?}"),
        }
    }

    pub(crate) fn status(&self) -> Status {
        self.engine.status()
    }

    /// Waits until the status is as wanted.
    pub(crate) fn wait(&self, at_most: Duration, wanted: impl Fn(&Status) -> bool) {
        let until = Instant::now() + at_most;
        while !wanted(&self.status()) {
            assert!(Instant::now() < until, "{:#?}", self.status());
            thread::sleep(STEP);
        }
    }

    /// The engine itself.
    #[allow(dead_code, reason = "only what measures asks")]
    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Where a card of the guest would send its frames.
    #[allow(dead_code, reason = "only what measures asks")]
    pub(crate) fn outlet(&self) -> Arc<dyn Outlet> {
        let outlet = self.builder.outlet.lock().unwrap();
        outlet.clone().expect("a machine was booted")
    }

    /// The guest's count of rounds.
    pub(crate) fn rounds(&self) -> u64 {
        let memory = self.builder.memory.lock().unwrap();
        let memory = memory.as_ref().expect("a machine was made");
        self.builder.tiny.rounds(memory, 0)
    }

    /// Counts the rounds of the guest whose memory was made last, also when another is made.
    #[allow(dead_code, reason = "each test uses its part")]
    pub(crate) fn counter(&self) -> impl Fn() -> u64 + use<> {
        let memory = self.builder.memory.lock().unwrap();
        let memory = memory.clone().expect("a machine was made");
        let tiny = self.builder.tiny.clone();
        move || tiny.rounds(&memory, 0)
    }

    /// The operator's switchover.
    #[allow(dead_code, reason = "each test uses its part")]
    pub(crate) fn switch_over(&self) {
        self.engine.switch_over();
    }

    /// Waits until the guest has gone beyond `rounds`.
    pub(crate) fn wait_rounds(&self, at_most: Duration, rounds: u64) {
        let until = Instant::now() + at_most;
        while self.rounds() <= rounds {
            assert!(Instant::now() < until, "{} of {rounds}", self.rounds());
            thread::sleep(STEP);
        }
    }

    /// Whether the guest's memory was what an instant of its life leaves, when it began to run here.
    #[allow(dead_code, reason = "each test uses its part")]
    pub(crate) fn began_whole(&self) -> Result<(), String> {
        let whole = self.builder.whole.lock().unwrap();
        whole.clone().expect("a machine runs")
    }

    /// The guest's count of rounds when it began to run here.
    #[allow(dead_code, reason = "each test uses its part")]
    pub(crate) fn began_at(&self) -> u64 {
        *self.builder.began.lock().unwrap()
    }

    /// Whether it holds a whole replica and runs nothing.
    pub(crate) fn is_backup(&self) -> bool {
        let status = self.status().host;
        status.role == RoleName::Backup && status.whole
    }

    /// Whether nothing runs here for all of this time.
    pub(crate) fn stays_idle(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.reports.recv_timeout(left) {
                Ok(Report::Running { .. }) => return false,
                Ok(_) => {}
                Err(_) => return true,
            }
        }
    }

    /// The operator's stop.
    pub(crate) fn stop(&self) {
        self.engine.stop();
    }

    /// Ends it without a word to anybody.
    pub(crate) fn vanish(self) {
        self.engine.join();
    }
}
