//! Messages of the link between primary and backup. Its transport is authenticated (TLS), so they
//! carry no tag.

use crate::message::{Checkpoint, Hello, Message};

use super::body::Write;
use super::frame::{self, Insecure};
use super::{Kind, WireError};

/// Appends a message to `out`. Parts and frames must be shorter than
/// [`super::LENGTH_MAX`] − 64 bytes.
pub fn encode_message(message: &Message, out: &mut Vec<u8>) {
    frame::encode(kind(message), &Insecure, out, |out| body(message, out));
}

fn kind(message: &Message) -> Kind {
    match message {
        Message::Hello(_) => Kind::Hello,
        Message::Begin { .. } => Kind::Begin,
        Message::Ready(_) => Kind::Ready,
        Message::Part { .. } => Kind::Part,
        Message::Frame { .. } => Kind::Frame,
        Message::Checkpoint(_) => Kind::Checkpoint,
        Message::Received(..) => Kind::Received,
        Message::Commit(..) => Kind::Commit,
        Message::Tried(_) => Kind::Tried,
        Message::Bye(_) => Kind::Bye,
        Message::Yield(_) => Kind::Yield,
        Message::Stopped => Kind::Stopped,
        Message::Digests { .. } => Kind::Digests,
    }
}

fn body(message: &Message, out: &mut Vec<u8>) {
    match message {
        Message::Hello(hello) => {
            out.u128(hello.machine.0);
            out.incarnation(hello.from);
            out.u64(hello.memory);
            out.u32(hello.vcpus);
            out.u128(hello.processor);
            out.u128(hello.devices);
            out.bool(hello.unheld);
        }
        Message::Begin {
            session,
            term,
            generation,
            unheld,
        } => {
            out.session(*session);
            out.u64(term.0.0);
            out.u64(generation.0);
            out.bool(*unheld);
        }
        Message::Part {
            session,
            epoch,
            index,
            bytes,
        } => {
            out.session(*session);
            out.u64(epoch.0);
            out.u32(*index);
            out.bytes(bytes);
        }
        Message::Frame {
            session,
            number,
            card,
            bytes,
        } => {
            out.session(*session);
            out.u64(*number);
            out.u32((*card).into());
            out.bytes(bytes);
        }
        Message::Checkpoint(checkpoint) => {
            out.session(checkpoint.session);
            out.u64(checkpoint.term.0.0);
            out.u64(checkpoint.epoch.0);
            out.bool(checkpoint.complete);
            out.u64(checkpoint.released_through.0);
            out.u64(checkpoint.rx_next);
            out.u32(checkpoint.parts);
            out.u32(checkpoint.digest);
        }
        Message::Received(session, epoch) | Message::Commit(session, epoch) => {
            out.session(*session);
            out.u64(epoch.0);
        }
        Message::Ready(session)
        | Message::Tried(session)
        | Message::Bye(session)
        | Message::Yield(session) => {
            out.session(*session);
        }
        Message::Digests {
            session,
            disk,
            first,
            bytes,
            last,
        } => {
            out.session(*session);
            out.u32((*disk).into());
            out.u64(*first);
            out.bool(*last);
            out.bytes(bytes);
        }
        Message::Stopped => {}
    }
}

/// The message that `bytes` are: one whole frame, [`super::Header::frame`] bytes long.
///
/// # Errors
/// When they are none or are damaged.
pub fn decode_message(bytes: &[u8]) -> Result<Message, WireError> {
    let (kind, mut body) = frame::decode(bytes, &Insecure)?;
    let message = match kind {
        Kind::Hello => Message::Hello(Hello {
            machine: body.machine()?,
            from: body.incarnation()?,
            memory: body.u64()?,
            vcpus: body.u32()?,
            processor: body.u128()?,
            devices: body.u128()?,
            unheld: body.bool()?,
        }),
        Kind::Begin => Message::Begin {
            session: body.session()?,
            term: body.term()?,
            generation: body.generation()?,
            unheld: body.bool()?,
        },
        Kind::Ready => Message::Ready(body.session()?),
        Kind::Part => Message::Part {
            session: body.session()?,
            epoch: body.epoch()?,
            index: body.u32()?,
            bytes: body.rest().to_vec(),
        },
        Kind::Frame => Message::Frame {
            session: body.session()?,
            number: body.u64()?,
            card: u16::try_from(body.u32()?).map_err(|_| WireError::Body("too many cards"))?,
            bytes: body.rest().to_vec(),
        },
        Kind::Checkpoint => Message::Checkpoint(Checkpoint {
            session: body.session()?,
            term: body.term()?,
            epoch: body.epoch()?,
            complete: body.bool()?,
            released_through: body.epoch()?,
            rx_next: body.u64()?,
            parts: body.u32()?,
            digest: body.u32()?,
        }),
        Kind::Received => Message::Received(body.session()?, body.epoch()?),
        Kind::Commit => Message::Commit(body.session()?, body.epoch()?),
        Kind::Tried => Message::Tried(body.session()?),
        Kind::Bye => Message::Bye(body.session()?),
        Kind::Yield => Message::Yield(body.session()?),
        Kind::Stopped => Message::Stopped,
        Kind::Digests => Message::Digests {
            session: body.session()?,
            disk: u16::try_from(body.u32()?).map_err(|_| WireError::Body("too many disks"))?,
            first: body.u64()?,
            last: body.bool()?,
            bytes: body.rest().to_vec(),
        },
        Kind::Heartbeat | Kind::Request | Kind::Answer | Kind::Sidecar | Kind::Record => {
            return Err(WireError::Unexpected(kind));
        }
    };
    body.end(message)
}
