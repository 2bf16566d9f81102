//! Why a part or a checkpoint is refused.

/// Why a [`Replica`](crate::Replica) refuses what it was given. What it has applied before is not touched by any of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicaError {
    /// A part or checkpoint of another epoch than the next.
    #[error("it belongs to epoch {got}, where {expected} comes next")]
    Epoch {
        /// The epoch that it names.
        got: u64,
        /// The one after the last that was applied, or the one that has begun.
        expected: u64,
    },
    /// A part is missing, comes twice or comes too early.
    #[error("it is part {got}, where {expected} comes next")]
    Order {
        /// The part's number.
        got: u32,
        /// How many parts there are of this epoch.
        expected: u32,
    },
    /// A verified checkpoint has to be applied or discarded before the next begins.
    #[error("epoch {0} is verified, but not yet applied")]
    NotApplied(u64),
    /// An earlier part of this epoch was refused.
    #[error("an earlier part of this epoch was refused")]
    Broken,
    /// A part is longer than [`PART_MAX`](crate::PART_MAX), or empty.
    #[error("a part of {0} bytes")]
    Length(usize),
    /// A section is of a version that this program does not know.
    #[error("a section of kind {kind} in version {version}: the other host runs another Romulus")]
    Version {
        /// The section's kind.
        kind: u8,
        /// The section's version.
        version: u8,
    },
    /// A section is of a kind that this program does not know.
    #[error("a section of unknown kind {0}: the other host runs another Romulus")]
    Kind(u8),
    /// A section does not match its checksum.
    #[error("a section of kind {0} is damaged: its checksum does not match")]
    Checksum(u8),
    /// A section's content breaks the rules.
    #[error("a section is malformed: {0}")]
    Malformed(&'static str),
    /// A page that the machine does not have.
    #[error("it changes page {page}, of {pages}")]
    Page {
        /// The page's number, or that of the last page of a range.
        page: u64,
        /// How many pages there are.
        pages: u64,
    },
    /// A write to a disk that is not there, or beyond its end.
    #[error("it writes to disk {disk} up to byte {end}, which it does not have")]
    Disk {
        /// The disk's number.
        disk: u16,
        /// Where the write ends, in bytes.
        end: u64,
    },
    /// The checkpoint needs more memory than the limit.
    #[error("the checkpoint needs more than the {0} bytes that it may take")]
    Memory(usize),
    /// Parts are missing, or there are too many.
    #[error("the checkpoint has {need} parts, of which {have} came")]
    Missing {
        /// How many came.
        have: u32,
        /// How many the checkpoint says it has.
        need: u32,
    },
    /// The parts together are not what the primary sent.
    #[error("the parts' digest is {have:08x}, where the checkpoint says {need:08x}")]
    Digest {
        /// The digest of what came.
        have: u32,
        /// The digest in the checkpoint.
        need: u32,
    },
}

impl From<crate::bytes::Malformed> for ReplicaError {
    fn from(malformed: crate::bytes::Malformed) -> Self {
        Self::Malformed(malformed.0)
    }
}
