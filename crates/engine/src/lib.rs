//! A protected machine's engine: the threads, sockets and timers around the pure rooms.
//!
//! | thread | does |
//! | --- | --- |
//! | *pulse* | heartbeats, the arbiter's answers, time for the protocol |
//! | *driver* | holds the machine, ends its epochs |
//! | *link* | calls or listens, then reads: commits on a primary, checkpoints on a backup |
//! | *sender* | encodes and sends what a link is to carry |
//! | *sidecar* | makes sidecars durable |
//! | *uplink* | hears from the kernel whether the uplinks carry |
//!
//! All of them tell one `Host` of `romulus-protocol` what happens, and what it answers is carried
//! out by whoever told it, or handed to the thread that owns it (`node.rs`).

pub mod arbiter;
mod arrival;
mod backup;
mod clock;
pub mod datagram;
mod disks;
mod driver;
mod epoch;
mod full_copy;
pub mod identity;
mod input;
pub mod link;
mod node;
mod orders;
mod outbox;
mod output;
mod peers;
mod phases;
mod pulse;
pub mod random;
mod rehearsal;
mod settings;
pub mod sidecar;
mod uplink;

pub use disks::{DiskError, WritableDisk};
pub use input::InputFigures;
pub use output::OutputFigures;
pub use phases::{Phase, PhaseTimes};
pub use settings::{ArbiterAddress, Builder, Console, HostAddress, Real, Settings, Shape};

use backup::Backup;
use datagram::{Path, Paths};
use disks::{Replicas, WriteLog};
use driver::Driver;
use identity::Secret;
use node::Node;
use orders::{Order, Orders};
use output::Output;
use peers::{Links, Way};
use romulus_machine::{Exit, Handle, Ports};
use romulus_network::Mode;
use romulus_protocol::{
    host::{self, Host, Stays},
    id::Incarnation,
    message::Hello,
    timing::TimingError,
};
use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, atomic::Ordering, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};
use uplink::Watch;

/// What the binary is told.
#[derive(Debug)]
pub enum Report {
    /// The machine runs here from now on.
    Running {
        /// The term.
        term: u64,
        /// It was taken over from the other host.
        taken_over: bool,
        /// What may be asked of it.
        handle: Handle,
    },
    /// No machine runs here any more.
    Idle,
    /// The machine is protected, or no longer.
    Protected(bool),
    /// A switchover that was asked for, or begun, came to nothing.
    Stays(Stays),
    /// A line that people should see.
    Notice(String),
    /// The engine has ended.
    Ended(Ended),
}

/// Why an engine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It was told to.
    Stopped,
    /// The guest ended.
    Guest(Exit),
    /// Something that cannot be mended here.
    Failed(String),
}

/// Why an engine cannot start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The time-outs are not safe together.
    #[error("the time-outs are not safe: {0}")]
    Timing(#[from] TimingError),
    /// The sidecar.
    #[error(transparent)]
    Sidecar(#[from] sidecar::SidecarError),
    /// A disk or its journal.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// What the host offers.
    #[error("cannot make the machine here: {0}")]
    Machine(#[from] romulus_machine::Error),
    /// The link's keys, or its listening socket.
    #[error("no link with the other host: {0}")]
    Link(#[from] link::LinkError),
    /// The keys.
    #[error("the keys cannot be used: {0}")]
    Identity(#[from] identity::IdentityError),
    /// The uplinks.
    #[error("the uplinks cannot be watched (`uplink`): {0}")]
    Uplink(#[source] io::Error),
    /// The heartbeats' sockets.
    #[error(transparent)]
    Path(#[from] datagram::PathError),
    /// The arbiter's identity or the socket towards it.
    #[error(transparent)]
    Arbiter(#[from] arbiter::ClientError),
    /// A thread, or random numbers.
    #[error("cannot start: {0}")]
    Host(#[from] io::Error),
}

/// What people are shown.
#[derive(Debug, Clone)]
pub struct Status {
    /// What the protocol says.
    pub host: host::Status,
    /// This process's incarnation.
    pub incarnation: Incarnation,
    /// The incarnation at the other end of the link.
    pub partner: Option<Incarnation>,
    /// The first full copy: pages done, pages in all.
    pub copied: Option<(u64, u64)>,
    /// Which output is held.
    pub mode: Mode,
    /// Another mode is wanted that is not in force yet.
    pub changes_mode: bool,
    /// Held output.
    pub output: OutputFigures,
    /// Input.
    pub input: InputFigures,
    /// Epochs sealed by this process.
    pub epochs: u64,
    /// Pages that they may have changed.
    pub dirty_pages: u64,
    /// Of these, pages whose first write left the guest.
    pub first_writes: u64,
    /// Pages sent in epochs.
    pub sent_pages: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Whether each of [`Settings::uplink`] has a carrier.
    pub uplinks: Vec<bool>,
    /// How often this process has rehearsed a replica.
    pub rehearsals: u64,
    /// For how long the machine has been protected.
    pub protected_for: Option<Duration>,
}

/// A running engine.
pub struct Engine {
    node: Arc<Node>,
    incarnation: Incarnation,
    /// Ends the listening for the other host.
    listener: Option<link::Closer>,
    threads: Vec<JoinHandle<()>>,
}

impl Engine {
    /// Starts it. What happens is told through `reports`, the end as well.
    ///
    /// # Errors
    /// Something is missing on this host, or the settings are not safe. Nothing runs then.
    pub fn start(
        settings: Settings,
        secret: &Secret,
        builder: Arc<dyn Builder>,
        reports: mpsc::Sender<Report>,
    ) -> Result<Engine, EngineError> {
        let settings = Arc::new(settings);
        let shape = builder.shape()?;
        let me = random::incarnation()?;
        let disks = builder.disks();
        let replicas = Replicas::open(&disks, &settings.state)?;
        let stored = sidecar::load(&settings.state, settings.machine)?;
        let config = host::Config {
            machine: settings.machine,
            unheld: settings.mode.leaves_unheld(),
            preferred: settings.me == 0,
            timing: settings.timing,
        };
        let host = Host::new(config, me, stored, clock::now())?;

        let orders = Arc::new(Orders::default());
        let limit = usize::try_from(settings.queue).unwrap_or(usize::MAX);
        let output = Arc::new(Output::new(
            limit,
            shape.cards.clone(),
            settings.mode.clone(),
            Arc::clone(&orders),
        ));
        let (paths, arbiter, polled) = sockets(&settings, secret)?;
        let (sidecars, to_store) = mpsc::channel();
        let node = Arc::new(Node::new(
            host,
            orders,
            Arc::clone(&output),
            paths,
            arbiter,
            sidecars,
            reports,
        ));
        let backup = Arc::new(Backup::new(replicas, shape.cards.len()));
        let log = Arc::new(WriteLog::default());
        let sealed = Arc::new(Mutex::new(None));
        let ports = Ports {
            outlet: Some(output),
            inlet: Some(Arc::clone(&node.input) as Arc<_>),
            disks: (!disks.is_empty()).then(|| Arc::clone(&log) as Arc<_>),
            lock_memory: settings.lock_memory,
            shareable: settings.rehearse.is_some(),
        };
        let links = Links {
            node: Arc::clone(&node),
            backup: Arc::clone(&backup),
            terms: terms(&settings, secret)?,
            hello: Hello {
                machine: settings.machine,
                from: me,
                memory: shape.memory,
                vcpus: shape.vcpus.into(),
                processor: shape.likeness.processor,
                devices: shape.likeness.devices,
                unheld: settings.mode.leaves_unheld(),
            },
            sealed: Arc::clone(&sealed),
            name: settings.name.clone(),
        };
        let way = way(&settings)?;
        let watch = match &settings.uplink[..] {
            [] => None,
            names => Some(Watch::open(names).map_err(EngineError::Uplink)?),
        };
        if let Some(watch) = &watch {
            node.watch_uplinks(&settings.uplink, &watch.up());
        }
        let driver = Driver::new(
            Arc::clone(&node),
            backup,
            Arc::clone(&settings),
            builder,
            shape,
            ports,
            log,
            sealed,
        );
        let mut engine = Engine {
            node: Arc::clone(&node),
            incarnation: me,
            listener: match &way {
                Way::Listen(listener) => Some(listener.closer()),
                Way::Call(..) => None,
            },
            threads: Vec::new(),
        };
        let spawned = engine.spawn(&settings, driver, links, way, to_store, polled, watch);
        if let Err(error) = spawned {
            engine.join();
            return Err(error.into());
        }
        Ok(engine)
    }

    #[allow(clippy::too_many_arguments, reason = "what each thread is given")]
    fn spawn(
        &mut self,
        settings: &Arc<Settings>,
        driver: Driver,
        links: Links,
        way: Way,
        to_store: mpsc::Receiver<romulus_protocol::sidecar::Sidecar>,
        polled: OwnedFd,
        watch: Option<Watch>,
    ) -> io::Result<()> {
        let named = |what: &str| thread::Builder::new().name(format!("{} {what}", settings.name));
        let (node, state) = (Arc::clone(&self.node), settings.state.clone());
        self.threads.push(named("sidecar").spawn(move || {
            while let Ok(sidecar) = to_store.recv() {
                if node.is_ending() {
                    break;
                }
                let result = sidecar::store(&state, &sidecar);
                if let Err(error) = &result {
                    tracing::error!("{error}");
                }
                node.handle(host::Event::SidecarStored(result.is_ok()));
            }
        })?);
        if let Some(watch) = watch {
            let node = Arc::clone(&self.node);
            self.threads
                .push(named("uplink").spawn(move || watch.run(&node))?);
        }
        let node = Arc::clone(&self.node);
        self.threads
            .push(named("pulse").spawn(move || pulse::run(&node, &polled))?);
        self.threads
            .push(named("links").spawn(move || links.run(&way))?);
        let node = Arc::clone(&self.node);
        self.threads.push(named("driver").spawn(move || {
            let ended = driver.run();
            node.end();
            node.close_links();
            node.report(Report::Ended(ended));
        })?);
        Ok(())
    }

    /// What people are shown.
    pub fn status(&self) -> Status {
        let figures = &self.node.figures;
        let host = self.node.status();
        let all = figures.to_copy.load(Ordering::Relaxed);
        let done = figures.copied.load(Ordering::Relaxed);
        Status {
            host,
            incarnation: self.incarnation,
            partner: self.node.partners().last().copied(),
            copied: (all > 0).then_some((done, all)),
            mode: self.node.output.mode(),
            changes_mode: self.node.changes_mode(),
            output: self.node.output.figures(),
            input: self.node.input.figures(),
            epochs: figures.epochs.load(Ordering::Relaxed),
            dirty_pages: figures.dirty_pages.load(Ordering::Relaxed),
            first_writes: figures.first_writes.load(Ordering::Relaxed),
            sent_pages: figures.sent_pages.load(Ordering::Relaxed),
            sent_bytes: figures.sent_bytes.load(Ordering::Relaxed),
            uplinks: self.node.uplinks(),
            rehearsals: figures.rehearsals.load(Ordering::Relaxed),
            protected_for: host.protected_since.map(|since| clock::now().since(since)),
        }
    }

    /// How long each phase of the epochs takes.
    pub fn timing(&self) -> Vec<PhaseTimes> {
        let mut times = self.node.phases.times();
        times.push(PhaseTimes::of(Phase::Release, &self.node.output.delays()));
        times
    }

    /// Forgets the times so far.
    pub fn clear_timing(&self) {
        self.node.phases.clear();
        self.node.output.clear_delays();
    }

    /// Ends it for good: the guest is not resurrected. It takes an arbiter that answers, or the
    /// backup would take the silence for a failure.
    pub fn stop(&self) {
        self.node.orders.push(Order::Stop);
    }

    /// Asks for the machine to be handed over to the other host. It has been when
    /// [`Report::Idle`] comes; [`Report::Stays`] says that it will not be.
    pub fn switch_over(&self) {
        self.node.handle(host::Event::Switchover);
    }

    /// From now on this output is held. If that decides whether any output is unheld, the machine loses its cover until the
    /// other host has the same mode and is filled anew; it runs on meanwhile.
    pub fn set_mode(&self, mode: Mode) {
        self.node.set_mode(mode);
    }

    /// The operator accepts the loss of whatever the other host holds.
    pub fn promote(&self) {
        self.node.handle(host::Event::Promote);
    }

    /// Waits for its end. To be called when [`Report::Ended`] has come, or to end at once without
    /// telling the other host.
    pub fn join(self) {
        self.node.end();
        if let Some(listener) = &self.listener {
            listener.close();
        }
        self.node.close_links();
        self.node.orders.push(Order::End);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the engine panicked");
            }
        }
    }
}

fn terms(settings: &Settings, secret: &Secret) -> Result<link::Terms, link::LinkError> {
    if settings.insecure {
        tracing::warn!(
            "the link is plain text: all of the guest's memory can be read and changed on it"
        );
        Ok(link::Terms::insecure())
    } else {
        link::Terms::tls(secret, &settings.partner().identity)
    }
}

/// The first host listens, the second calls it.
fn way(settings: &Settings) -> Result<Way, link::LinkError> {
    let own = settings.own().replication;
    if settings.me == 0 {
        Ok(Way::Listen(link::Listener::bind(own)?))
    } else {
        Ok(Way::Call(settings.partner().replication, own.ip()))
    }
}

/// The heartbeats' sockets and the arbiter's, and a copy of this one to wait on.
fn sockets(
    settings: &Settings,
    secret: &Secret,
) -> Result<(Paths, arbiter::Client, OwnedFd), EngineError> {
    let (own, partner) = (settings.own(), settings.partner());
    let key = secret.shared(&partner.identity, "heartbeats")?;
    let mut lanes = vec![Path {
        name: "replication",
        local: own.replication,
        peer: partner.replication,
    }];
    if let (Some(local), Some(peer)) = (own.control, partner.control) {
        lanes.push(Path {
            name: "control",
            local,
            peer,
        });
    }
    let paths = Paths::open(&lanes, key)?;
    let arbiter = arbiter::Client::open(
        settings.arbiter.address,
        own.control.map(|control| control.ip()),
        secret,
        &settings.arbiter.identity,
    )?;
    let polled = arbiter.fd().try_clone_to_owned()?;
    Ok((paths, arbiter, polled))
}
