//! What primary and backup say to each other over the link, in order.
//!
//! ```text
//!   runner                                  backup
//!     │ ── Begin ─────────────────────────▶   │  sidecar: resyncing (durable)
//!     │ ◀───────────────────────── Ready ──   │
//!     │ ── Part … Part, Checkpoint ───────▶   │  first full copy, in rounds
//!     │ ◀────────────────────── Received ──   │
//!     │ ── Part …, Checkpoint (complete) ─▶   │  sidecar: in-sync (durable)
//!     │ ◀──────────────────────── Commit ──   │  loads the state on trial
//!     │ ◀───────────────────────── Tried ──   │
//!     │   (holds output, waits, names it)     │
//!     │ ── Part …, Frame …, Checkpoint ───▶   │
//!     │ ◀──────────────────────── Commit ──   │
//! ```

use crate::id::{Epoch, Generation, Incarnation, MachineId, SessionId, Term};

/// The first message in each direction: who is it, and can the two work together?
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Hello {
    /// The machine.
    pub machine: MachineId,
    /// The sender.
    pub from: Incarnation,
    /// Guest memory in bytes.
    pub memory: u64,
    /// Number of virtual processors.
    pub vcpus: u32,
    /// Digest of the processor features that the guest sees.
    pub processor: u128,
    /// Digest of the devices and of the form of their state.
    pub devices: u128,
    /// Some output is not held: then a closed connection alone is no sign of an end.
    pub unheld: bool,
}

/// What differs between two [`Hello`]s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The other side is about another machine.
    #[error("the other host has machine {1}, this one {0}: check the machine files' uuids")]
    Machine(MachineId, MachineId),
    /// Guest memory differs.
    #[error(
        "the other host gives the machine {1} bytes of memory, this one {0}: use the same file on both"
    )]
    Memory(u64, u64),
    /// The number of virtual processors differs.
    #[error("the other host gives the machine {1} vCPUs, this one {0}: use the same file on both")]
    Vcpus(u32, u32),
    /// The guest would see another processor there.
    #[error(
        "the two hosts' processors (or their kernels) offer guests different features: compare `romulus doctor` of both"
    )]
    Processor,
    /// Network cards, disks or the form of their state differ.
    #[error(
        "the two hosts' devices differ (network cards, disk sizes) or their Romulus releases do: use the same file, images and release on both"
    )]
    Devices,
    /// One side holds all output, the other does not.
    #[error("one host holds all output, the other does not (`mode`): use the same file on both")]
    Mode,
}

impl Hello {
    /// Whether `other` can be this host's partner.
    ///
    /// # Errors
    /// Says the first thing that differs.
    pub fn fits(&self, other: &Hello) -> Result<(), Mismatch> {
        if self.machine != other.machine {
            Err(Mismatch::Machine(self.machine, other.machine))
        } else if self.memory != other.memory {
            Err(Mismatch::Memory(self.memory, other.memory))
        } else if self.vcpus != other.vcpus {
            Err(Mismatch::Vcpus(self.vcpus, other.vcpus))
        } else if self.processor != other.processor {
            Err(Mismatch::Processor)
        } else if self.devices != other.devices {
            Err(Mismatch::Devices)
        } else if self.unheld != other.unheld {
            Err(Mismatch::Mode)
        } else {
            Ok(())
        }
    }
}

/// The end of one epoch's checkpoint. It follows all of its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Checkpoint {
    /// The session it belongs to.
    pub session: SessionId,
    /// The runner's term.
    pub term: Term,
    /// The epoch that ended.
    pub epoch: Epoch,
    /// Whether the replica is whole with it: false while the first full copy is under way.
    pub complete: bool,
    /// All output of epochs up to this one has left the primary.
    pub released_through: Epoch,
    /// The number of the first frame from the tap that the guest had not taken.
    pub rx_next: u64,
    /// How many [`Message::Part`]s it has. The state machine leaves this and the digest zero; the
    /// edge fills them in behind the parts that it sent, and checks them where they arrive.
    pub parts: u32,
    /// The CRC-32C of all parts' bytes in order.
    pub digest: u32,
}

/// A message on the link.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    /// See [`Hello`]. For the edge: the state machines are told of a connection only after it.
    Hello(Hello),
    /// The runner offers to fill the other side's replica.
    Begin {
        /// The new session.
        session: SessionId,
        /// The runner's term.
        term: Term,
        /// The record's generation as the runner knows it; its heir is none in it.
        generation: Generation,
        /// Whether the runner may pass output before its commit while this session lasts.
        unheld: bool,
    },
    /// The backup has dropped what it held and is ready to be filled.
    Ready(SessionId),
    /// What a backup's disk holds at the beginning of a session, so that only what differs is
    /// sent. For the edge.
    Digests {
        /// The session.
        session: SessionId,
        /// Which of the machine's disks, counted from 0.
        disk: u16,
        /// The number of the first block.
        first: u64,
        /// A digest for each block from there on; fewer than there are blocks left, and this
        /// host holds no more.
        bytes: Vec<u8>,
        /// No digests of this disk follow.
        last: bool,
    },
    /// A piece of a checkpoint. For the edge: gathered until the checkpoint ends.
    Part {
        /// The session.
        session: SessionId,
        /// The epoch.
        epoch: Epoch,
        /// Counts the epoch's parts from 0.
        index: u32,
        /// Encoded content.
        bytes: Vec<u8>,
    },
    /// A frame that the primary read from its tap. For the edge.
    Frame {
        /// The session.
        session: SessionId,
        /// Counts the frames of a term as they are read.
        number: u64,
        /// The card from whose tap it was read, in the order of the machine file.
        card: u16,
        /// The frame, with its virtio-net header.
        bytes: Vec<u8>,
    },
    /// A checkpoint ended. The state machine is given it only when all of it has arrived, was
    /// verified, and is durable as far as it contains a guest's flush.
    Checkpoint(Checkpoint),
    /// The backup has this epoch, but is not whole yet: not a commit.
    Received(SessionId, Epoch),
    /// The backup has a whole, verified replica of this epoch.
    Commit(SessionId, Epoch),
    /// The backup has loaded the replica on trial.
    Tried(SessionId),
    /// This session is over.
    Bye(SessionId),
    /// The runner has come to rest in this session's newest commit and is frozen: the heir may
    /// claim at once.
    Yield(SessionId),
    /// The guest was stopped on purpose: never resurrect it.
    Stopped,
}
