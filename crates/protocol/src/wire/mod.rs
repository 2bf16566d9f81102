//! Messages as bytes.
//!
//! Every message is a **frame**: a fixed header, a body, and where the transport has no
//! authentication of its own (heartbeats and the arbiter's datagrams) a tag.
//!
//! ```text
//!   offset  size  field
//!        0     4  magic "RMLS"
//!        4     2  version of the encoding of this kind's bodies
//!        6     2  kind
//!        8     4  length of the body in bytes
//!       12     4  CRC-32C of bytes 0 to 11 and of the body; of a part's as far as the part begins
//!       16     …  body
//!        …     …  tag over all before it, if there is a key
//! ```
//!
//! A part of a checkpoint is a row of sections with checksums of their own, which whoever takes it
//! checks: to look at the bulk of all that is sent a second time would find nothing more.
//!
//! All numbers are little-endian. The header is outside of the encoding and does not change with
//! its version, so that any release can tell what it was sent and say so. Decoding never panics
//! and never allocates more than the bytes that are there.

mod arbiter;
mod body;
mod frame;
mod heartbeat;
mod link;
mod sidecar;
#[cfg(test)]
mod tests;

use thiserror::Error;

pub use arbiter::{decode_answer, decode_request, encode_answer, encode_request};
pub use frame::{Authenticator, HEADER, Header, Insecure, LENGTH_MAX, VERSION};
pub use heartbeat::{decode_heartbeat, encode_heartbeat};
pub use link::{decode_message, encode_message};
pub use sidecar::{decode_record, decode_sidecar, encode_record, encode_sidecar};

/// What kind of frame it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Kind {
    /// A heartbeat.
    Heartbeat = 1,
    /// A request to the arbiter.
    Request = 2,
    /// The arbiter's answer.
    Answer = 3,
    /// A stored sidecar.
    Sidecar = 4,
    /// A stored record.
    Record = 5,
    /// [`crate::message::Hello`].
    Hello = 16,
    /// [`crate::message::Message::Begin`].
    Begin = 17,
    /// [`crate::message::Message::Ready`].
    Ready = 18,
    /// [`crate::message::Message::Part`].
    Part = 19,
    /// [`crate::message::Message::Frame`].
    Frame = 20,
    /// [`crate::message::Checkpoint`].
    Checkpoint = 21,
    /// [`crate::message::Message::Received`].
    Received = 22,
    /// [`crate::message::Message::Commit`].
    Commit = 23,
    /// [`crate::message::Message::Tried`].
    Tried = 24,
    /// [`crate::message::Message::Bye`].
    Bye = 25,
    /// [`crate::message::Message::Stopped`].
    Stopped = 26,
    /// [`crate::message::Message::Digests`].
    Digests = 27,
    /// [`crate::message::Message::Yield`].
    Yield = 28,
}

impl Kind {
    const ALL: [Kind; 18] = [
        Kind::Heartbeat,
        Kind::Request,
        Kind::Answer,
        Kind::Sidecar,
        Kind::Record,
        Kind::Hello,
        Kind::Begin,
        Kind::Ready,
        Kind::Part,
        Kind::Frame,
        Kind::Checkpoint,
        Kind::Received,
        Kind::Commit,
        Kind::Tried,
        Kind::Bye,
        Kind::Stopped,
        Kind::Digests,
        Kind::Yield,
    ];

    /// The version of this kind's bodies. What the two hosts say to each other has one version,
    /// so that different releases are told apart at once; what is stored, or said to the arbiter,
    /// has not changed since the first.
    const fn version(self) -> u16 {
        match self {
            Kind::Request | Kind::Answer | Kind::Sidecar | Kind::Record => 1,
            _ => VERSION,
        }
    }

    fn from_number(number: u16) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u16 == number)
    }
}

/// Why bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// There are fewer bytes than the header says, or than a header has.
    #[error("the frame is cut short: {have} bytes of {need}")]
    Short {
        /// Bytes that are there.
        have: usize,
        /// Bytes that it should have.
        need: usize,
    },
    /// It does not begin with the magic.
    #[error("this is not a Romulus frame")]
    Magic,
    /// The sender speaks another version.
    #[error(
        "the other side speaks version {0} of the protocol, this one {1}: install the same release on both"
    )]
    Version(u16, u16),
    /// The kind is unknown.
    #[error("unknown kind of frame: {0}")]
    Kind(u16),
    /// It is not of the kind that belongs here.
    #[error("a frame of kind {0:?} does not belong here")]
    Unexpected(Kind),
    /// It is longer than any frame may be.
    #[error("a frame of {0} bytes is longer than the {LENGTH_MAX} allowed")]
    Long(usize),
    /// The checksum is wrong.
    #[error("the frame was damaged on its way: wrong checksum")]
    Checksum,
    /// The tag is wrong.
    #[error("the frame is not authentic: wrong key, or forged; `romulus pair` exchanges keys")]
    Forged,
    /// The body does not say what its kind says.
    #[error("the frame's content is malformed: {0}")]
    Body(&'static str),
    /// There is more than the message.
    #[error("{0} bytes too many in the frame")]
    Trailing(usize),
}
