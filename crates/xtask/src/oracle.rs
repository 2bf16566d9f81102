//! The outside oracle: a client asks the guest's witness over UDP and over one TCP connection, the wire of both hosts is
//! watched, and what was seen is judged. It knows nothing of what Romulus says of itself.

mod ask;
mod handed;
mod judge;
mod wire;

pub(crate) use ask::{Oracle, PORT, connect, order, start};
pub(crate) use handed::{Handed, Hung};
pub(crate) use judge::{Exchange, Fault, Seen, judge, missing_on_disk};
pub(crate) use wire::{Frame, Wire, out_of_turn};
