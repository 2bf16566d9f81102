//! What the control interface says and takes, in JSON.

use crate::{console::hub::Hub, exit::Code};
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};
use tokio::sync::oneshot;

/// What a machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    /// It is being made.
    Starting,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs are parked.
    Paused,
    /// It runs on the other host, or nowhere; this process stands by.
    Standby,
    /// It was asked to stop.
    Stopping,
    /// Its process is gone and left the socket behind. Only `romulus status` says this.
    Gone,
}

impl State {
    /// The word for people; the same as in JSON.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Standby => "standby",
            Self::Stopping => "stopping",
            Self::Gone => "gone",
        }
    }
}

/// Everything about a running machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) name: String,
    pub(crate) pid: u32,
    pub(crate) version: String,
    pub(crate) state: State,
    /// When it came into this state, RFC 3339 in UTC.
    pub(crate) since: String,
    /// When this process started it first.
    pub(crate) started: String,
    /// How often the guest has been started anew in this process.
    pub(crate) restarts: u32,
    pub(crate) vcpus: u8,
    /// Guest memory in bytes.
    pub(crate) memory: u64,
    /// Resident memory of the process beyond the guest's, in bytes.
    pub(crate) overhead: Option<u64>,
    /// Exits from KVM to user space since the guest was started.
    pub(crate) exits: u64,
    pub(crate) nics: Vec<NicStatus>,
    pub(crate) disks: Vec<DiskStatus>,
    /// How a second host protects it; `None` where its file has no `[protection]`.
    #[serde(default)]
    pub(crate) protection: Option<Protection>,
}

/// How a machine is protected, as this host sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each says something of its own"
)]
pub(crate) struct Protection {
    /// This host's name.
    pub(crate) host: String,
    /// The other host's.
    pub(crate) partner_host: String,
    /// `waiting`, `backup`, `frozen`, `primary` or `ended`.
    pub(crate) role: String,
    /// The loss of the host that runs the machine is covered now.
    pub(crate) protected: bool,
    /// Since when that is so, or not so; RFC 3339 in UTC. `None` where this host cannot know.
    pub(crate) since: Option<String>,
    /// Which output is held: `net`, `split` or `no-net`.
    #[serde(default)]
    pub(crate) mode: String,
    /// Another mode was asked for and is not in force yet.
    #[serde(default)]
    pub(crate) mode_changes: bool,
    /// The term of what runs or is held here.
    pub(crate) term: Option<u64>,
    /// The generation of the arbiter's record, as far as it is known.
    pub(crate) generation: Option<u64>,
    /// The record's phase: `claimed` or `running`.
    pub(crate) phase: Option<String>,
    /// The running epoch of a primary, the newest received one of a backup.
    pub(crate) epoch: u64,
    /// Epochs that are sealed and not committed.
    pub(crate) lag: u64,
    /// This host holds whole state that it could run from.
    pub(crate) whole: bool,
    /// The other process's incarnation, while the link to it is up.
    pub(crate) partner: Option<String>,
    /// `T_b` as it is now, in microseconds.
    pub(crate) t_b_us: u64,
    /// Whether the arbiter answers.
    pub(crate) arbiter_answers: bool,
    /// The interfaces of this host that carry the machine's service; empty where none is watched.
    #[serde(default)]
    pub(crate) uplinks: Vec<Uplink>,
    /// How many of the other host's have a carrier, as far as it has told.
    #[serde(default)]
    pub(crate) partner_uplinks: Option<Uplinks>,
    /// How far the first full copy is, until the machine is protected.
    pub(crate) copied: Option<Copied>,
    /// Frames that wait for their epoch's commit, and their bytes.
    pub(crate) held_frames: u64,
    pub(crate) held_bytes: u64,
    /// Frames that were to be held and were lost: the queue was full, or the tap did not take them.
    pub(crate) dropped_frames: u64,
    /// Frames that did not wait for a commit because the mode lets them pass at once.
    #[serde(default)]
    pub(crate) at_once_frames: u64,
    /// Frames that the guest got and that were passed on to the backup.
    #[serde(default)]
    pub(crate) passed_on_frames: u64,
    /// Those that were not, because the link did not keep up.
    #[serde(default)]
    pub(crate) skipped_frames: u64,
    /// At a takeover: output that was sent again, and input that the guest was given again.
    #[serde(default)]
    pub(crate) sent_again_frames: u64,
    #[serde(default)]
    pub(crate) given_again_frames: u64,
    /// How often the replica was rehearsed here.
    #[serde(default)]
    pub(crate) rehearsals: u64,
    /// Epochs that this process has sealed.
    pub(crate) epochs: u64,
    /// Mean of pages that an epoch may have dirtied.
    pub(crate) dirty_pages_mean: u64,
    /// Mean of those whose first write left the guest; the others stay writable.
    pub(crate) first_writes_mean: u64,
    /// Bytes that were sent to the other host.
    pub(crate) sent_bytes: u64,
}

/// One interface that carries the machine's service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Uplink {
    /// Its name.
    pub(crate) interface: String,
    /// Whether it has a carrier.
    pub(crate) up: bool,
}

/// How many interfaces have a carrier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Uplinks {
    /// So many of them.
    pub(crate) up: u8,
    /// All that are watched.
    pub(crate) of: u8,
}

/// Progress of a full copy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Copied {
    /// Pages that are copied.
    pub(crate) done: u64,
    /// All that there are to copy.
    pub(crate) all: u64,
}

/// How long one phase of an epoch takes, in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PhaseTiming {
    /// Its name.
    pub(crate) phase: String,
    /// How often it was measured.
    pub(crate) count: u64,
    /// The sum of all: of two answers, the differences give the mean of what came between them.
    pub(crate) total_ns: u64,
    pub(crate) p50_ns: u64,
    pub(crate) p99_ns: u64,
    pub(crate) p999_ns: u64,
    pub(crate) max_ns: u64,
    /// How many took at most so many nanoseconds, and more than the entry before says; those without any are left out. Of two answers,
    /// the differences give any quantile of what came between them.
    #[serde(default)]
    pub(crate) buckets: Vec<(u64, u64)>,
}

/// One network card.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NicStatus {
    pub(crate) tap: String,
    pub(crate) bridge: Option<String>,
    pub(crate) mac: String,
    pub(crate) mtu: u16,
    /// Sent by the guest.
    pub(crate) tx_frames: u64,
    pub(crate) tx_bytes: u64,
    /// Received by the guest.
    pub(crate) rx_frames: u64,
    pub(crate) rx_bytes: u64,
}

/// One disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskStatus {
    pub(crate) path: String,
    pub(crate) read_only: bool,
    pub(crate) reads: u64,
    pub(crate) read_bytes: u64,
    pub(crate) writes: u64,
    pub(crate) written_bytes: u64,
    pub(crate) flushes: u64,
    pub(crate) errors: u64,
}

/// What `PUT /v1/stop` takes.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StopRequest {
    /// How long the guest may take, such as "30 s"; the machine's own `stop_timeout` where it is left out.
    pub(crate) timeout: Option<String>,
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// Exit code of its process.
    pub(crate) code: u8,
    /// What happened.
    pub(crate) text: String,
}

impl Ended {
    /// An end with its exit code.
    pub(crate) fn new(code: Code, text: impl Into<String>) -> Self {
        Self {
            code: code as u8,
            text: text.into(),
        }
    }
}

/// What came of reading the machine file again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each says something of its own"
)]
pub(crate) struct Reloaded {
    /// The mode that the file asks for.
    pub(crate) mode: String,
    /// It was another one before.
    pub(crate) mode_changes: bool,
    /// Until the other host has it, too, and is filled anew, the machine is not protected.
    pub(crate) cover_lost: bool,
    /// Something else differs from what is in force; that takes effect when the process is started anew.
    pub(crate) restart_needed: bool,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refusal {
    pub(crate) error: String,
}

impl Refusal {
    /// A refusal with its reason.
    pub(crate) fn new(error: impl Into<String>) -> Self {
        Self {
            error: error.into(),
        }
    }
}

/// What may be asked of the thread that holds the machine. The answer comes through the sender.
#[derive(Debug)]
pub(crate) enum Command {
    /// Press the guest's power button.
    PowerButton(Reply<()>),
    /// Stop in order, and by force after the time (the machine's own where it is `None`). Answered at the end.
    Stop(Option<Duration>, Reply<Ended>),
    /// Park the vCPUs.
    Pause(Reply<()>),
    /// Let them run again.
    Resume(Reply<()>),
    /// Run the machine here although newer state may be lost.
    Promote(Reply<()>),
    /// Hand the machine over to the other host. Answered when that runs it, or will not.
    Switchover(Reply<()>),
    /// Read the machine file again.
    Reload(Reply<Reloaded>),
}

/// Where an answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

/// A machine as the control interface sees it; a trait so that the interface is tested without one.
pub(crate) trait Control: Send + Sync + 'static {
    /// Everything about it.
    fn status(&self) -> Status;
    /// How long each phase of an epoch takes; an error where the machine is not protected.
    fn timing(&self) -> Result<Vec<PhaseTiming>, Refusal>;
    /// Hands a command to the thread that holds the machine; an error when that is gone.
    fn send(&self, command: Command) -> Result<(), Refusal>;
    /// Its console's output.
    fn console(&self) -> &Arc<Hub>;
    /// Offers bytes to its serial port; returns how many were taken.
    fn console_input(&self, bytes: &[u8]) -> usize;
}
