//! One process: the host's state machine and the smallest engine that can drive it. The guest is
//! a service that counts ([`super::history`]).

use std::collections::VecDeque;

use crate::host::{Action, Event, Host, Permit};
use crate::id::{Epoch, Incarnation, SessionId, Term};
use crate::message::Message;
use crate::sidecar::Sidecar;

use super::HOSTS;
use super::history::Node;
use super::network::Link;

/// What a disk holds. It outlives processes.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    pub(super) sidecar: Sidecar,
    /// The guest's disk as of this operation, as the process sees it. What a power loss leaves is
    /// this or anything older, down to the last flush.
    pub(super) image: Node,
    /// Part old, part new.
    pub(super) mixed: bool,
}

/// A message on a connection, with what a checkpoint carries.
#[derive(Clone, Debug)]
pub(super) struct Parcel {
    pub(super) message: Message,
    pub(super) state: Node,
    pub(super) held: Vec<(Epoch, Node)>,
}

/// The machine that runs, or is paused.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a state by itself")]
pub(super) struct Guest {
    pub(super) term: Term,
    pub(super) tip: Node,
    pub(super) epoch: Epoch,
    pub(super) paused: bool,
    /// The epoch is over but may not end: the guest waits.
    pub(super) waiting: bool,
    /// It is to rest with the end of the running epoch, or rests.
    pub(super) resting: bool,
    /// The running epoch is being ended, and the guest stands.
    pub(super) sealing: bool,
    /// Held output that has not left.
    pub(super) held: VecDeque<(Epoch, Node)>,
    pub(super) session: Option<SessionId>,
    /// Epochs until the full copy is complete.
    pub(super) rounds: u64,
    /// Which start this is: what belongs to an earlier one is void.
    pub(super) version: u64,
    /// Which timer ends the running epoch.
    pub(super) timer: u64,
}

/// The replica that a backup's engine holds.
#[derive(Clone, Debug)]
pub(super) struct Replica {
    pub(super) session: SessionId,
    pub(super) term: Term,
    pub(super) epoch: Epoch,
    pub(super) state: Node,
    pub(super) whole: bool,
    pub(super) held: VecDeque<(Epoch, Node)>,
}

/// One process.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)]
pub(super) struct Process {
    pub(super) host: Host,
    pub(super) me: Incarnation,
    pub(super) permit: Permit,
    pub(super) guest: Option<Guest>,
    pub(super) replica: Option<Replica>,
    /// What was just read from a connection.
    pub(super) arrived: Option<Parcel>,
    /// The newest state that this process ever committed as a backup.
    pub(super) committed: Node,
    pub(super) links: [Option<Link>; HOSTS],
    /// What was loaded last can be run.
    pub(super) loaded: bool,
    /// The operator accepted a loss for it.
    pub(super) promoted: bool,
    /// What the thread that holds the machine has yet to do.
    pub(super) orders: VecDeque<Action>,
    /// This process can load nothing: what a trial is for.
    pub(super) broken: bool,
    /// Since when it calls itself protected although it is not.
    pub(super) lies_since: Option<u64>,
    /// Datagrams that have arrived and are not read.
    pub(super) inbox: Vec<Event>,
    /// Numbers starts and timers.
    pub(super) versions: u64,
}
