//! What an engine is told once, when it starts.

use crate::{disks::WritableDisk, identity::Public};
use romulus_machine::{
    CableEnd, Error, Likeness, Memory, Paused, Ports, TapWriter, TrackingCosts, config::Config,
    likeness, tiny::Tiny,
};
use romulus_network::{Mode, in_flight::Keep};
use romulus_protocol::{control::Limits, id::MachineId, timing::Timing};
use std::{io::Write, net::SocketAddr, path::PathBuf, time::Duration};

/// All that does not change in a process's life. The binary reads it from the machine file.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The machine's uuid.
    pub machine: MachineId,
    /// Its name, for logs and threads.
    pub name: String,
    /// Which of [`Self::hosts`] this is.
    pub me: usize,
    /// The two hosts. A new machine starts on the first.
    pub hosts: [HostAddress; 2],
    /// Who keeps the record.
    pub arbiter: ArbiterAddress,
    /// The protocol's time-outs.
    pub timing: Timing,
    /// When epochs end.
    pub limits: Limits,
    /// Which output is held.
    pub mode: Mode,
    /// What is kept of what is on its way when a host dies.
    pub keep: Keep,
    /// The link is plain text: for a cable between the two hosts that nobody else can reach.
    pub insecure: bool,
    /// The directory of the sidecar.
    pub state: PathBuf,
    /// Bytes of last sent versions that are kept to send differences only.
    pub shadow: u64,
    /// Bytes of output that are held at most; the guest's next frames are lost.
    pub queue: u64,
    /// Memory is locked.
    pub lock_memory: bool,
    /// Interfaces of this host whose carrier the machine's service needs.
    pub uplink: Vec<String>,
    /// How often a backup rehearses its replica; nothing: never.
    pub rehearse: Option<Duration>,
    /// A guest that resets is started anew, as a computer is; else the machine ends.
    pub reboot: bool,
    /// What tracking the guest's pages costs on this host: for the control law, and to choose the
    /// pages that stay writable.
    pub tracking: TrackingCosts,
}

impl Settings {
    /// The host that this is.
    pub fn own(&self) -> &HostAddress {
        &self.hosts[self.me]
    }

    /// The other host.
    pub fn partner(&self) -> &HostAddress {
        &self.hosts[1 - self.me]
    }
}

/// One of the two hosts.
#[derive(Clone, Debug)]
pub struct HostAddress {
    /// For people.
    pub name: String,
    /// Its public keys.
    pub identity: Public,
    /// The link (TCP) and the first path of heartbeats (UDP).
    pub replication: SocketAddr,
    /// The second path of heartbeats, and the local end towards the arbiter.
    pub control: Option<SocketAddr>,
}

/// The arbiter.
#[derive(Clone, Debug)]
pub struct ArbiterAddress {
    /// Where it listens (UDP).
    pub address: SocketAddr,
    /// Its public keys.
    pub identity: Public,
}

/// What two hosts must have in common, and what the network needs to know of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Guest memory in bytes.
    pub memory: u64,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Digests of processor and devices.
    pub likeness: Likeness,
    /// The MAC address of each card.
    pub cards: Vec<[u8; 6]>,
}

/// Makes the machine: the real one, or the tiny guest of tests and benchmarks.
pub trait Builder: Send + Sync {
    /// A machine from its disk, paused before its first instruction.
    ///
    /// # Errors
    /// As [`Paused::boot_with`].
    fn boot(&self, ports: &Ports) -> Result<Paused, Error>;

    /// A machine that stands ready for captured state.
    ///
    /// # Errors
    /// As [`Paused::prepare`].
    fn prepare(&self, ports: &Ports) -> Result<Paused, Error>;

    /// A machine that stands ready for captured state in `memory`, and reaches nothing outside of it; with the other ends of its cards'
    /// cables.
    ///
    /// # Errors
    /// As [`Paused::rehearse`].
    fn rehearse(&self, memory: Memory) -> Result<(Paused, Vec<CableEnd>), Error>;

    /// What it is.
    ///
    /// # Errors
    /// KVM or a disk cannot be asked.
    fn shape(&self) -> Result<Shape, Error>;

    /// The disks that the guest may write.
    fn disks(&self) -> Vec<WritableDisk> {
        Vec::new()
    }

    /// Where its frames go.
    fn taps(&self, machine: &Paused) -> Vec<TapWriter> {
        machine.taps()
    }
}

/// Gives a machine what it writes its console to.
pub type Console = Box<dyn Fn() -> Box<dyn Write + Send> + Send + Sync>;

/// The builder of real machines.
pub struct Real {
    config: Config,
    console: Console,
}

impl Real {
    /// Machines as `config` describes them; each writes its console to a writer from `console`.
    pub fn new(config: Config, console: Console) -> Real {
        Real { config, console }
    }
}

impl std::fmt::Debug for Real {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Real")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

fn shape(config: &Config) -> Result<Shape, Error> {
    Ok(Shape {
        memory: config.memory,
        vcpus: config.vcpus,
        likeness: likeness(config)?,
        cards: config.nics.iter().map(|nic| nic.mac).collect(),
    })
}

impl Builder for Real {
    fn boot(&self, ports: &Ports) -> Result<Paused, Error> {
        Paused::boot_with(&self.config, (self.console)(), ports)
    }

    fn prepare(&self, ports: &Ports) -> Result<Paused, Error> {
        Paused::prepare(&self.config, (self.console)(), ports)
    }

    fn rehearse(&self, memory: Memory) -> Result<(Paused, Vec<CableEnd>), Error> {
        Paused::rehearse(&self.config, memory)
    }

    fn shape(&self) -> Result<Shape, Error> {
        shape(&self.config)
    }

    fn disks(&self) -> Vec<WritableDisk> {
        let writable = (0..).zip(&self.config.disks).filter(|(_, d)| !d.read_only);
        writable
            .map(|(disk, configured)| WritableDisk {
                disk,
                path: configured.path.clone(),
            })
            .collect()
    }
}

impl Builder for Tiny {
    fn boot(&self, ports: &Ports) -> Result<Paused, Error> {
        self.boot_with(ports)
    }

    fn prepare(&self, ports: &Ports) -> Result<Paused, Error> {
        Paused::prepare(&self.config(), Box::new(std::io::sink()), ports)
    }

    fn rehearse(&self, memory: Memory) -> Result<(Paused, Vec<CableEnd>), Error> {
        Paused::rehearse(&self.config(), memory)
    }

    fn shape(&self) -> Result<Shape, Error> {
        shape(&self.config())
    }
}
