//! Calls: SIP user agents (RFC 3261) with an offer and an answer of G.711 (RFC 3264), as pure state machines over the time
//! and what was received.
//!
//! | | |
//! | --- | --- |
//! | [`Message`], [`Reader`] | bytes to messages, in datagrams and in a stream |
//! | [`Session`] | session descriptions with one line of audio |
//! | [`Client`] | a request until its final answer: timers A, B, E and F |
//! | [`Dialog`] | what two user agents share: tags, sequence numbers, route set |
//! | [`Agent`] | one end of one call: INVITE, ringing, answer, re-INVITE, CANCEL, BYE |
//! | [`Registration`] | one REGISTER |
//!
//! Everything an agent sends goes to its server, as from a phone with an outbound proxy; there is no authentication. Parsing is
//! our own: of the crates for SIP one has slept for years, and the other is a whole asynchronous stack.

mod agent;
mod client;
mod dialog;
mod fields;
mod message;
mod reader;
mod registration;
mod session;

pub use agent::{Agent, Event, Failure, Out, Record};
pub use client::{Client, Fired};
pub use dialog::{Dialog, Identity};
pub use fields::{Address, CSeq, Via};
pub use message::{Malformed, Message, Method, Start};
pub use reader::Reader;
pub use registration::Registration;
pub use session::Session;

use std::time::Duration;

/// An estimate of the round-trip time, after which a request over UDP is sent again (RFC 3261, section 17.1.1.1).
pub const T1: Duration = Duration::from_millis(500);
/// The longest time from one sending to the next, but for INVITE.
pub const T2: Duration = Duration::from_secs(4);
/// 64·T1: how long an answer is waited for (timers B, F and H).
pub const PATIENCE: Duration = Duration::from_secs(32);

/// What messages go over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Datagrams.
    Udp,
    /// A connection.
    Tcp,
    /// A connection with TLS.
    Tls,
}

impl Transport {
    /// Its name in Via (RFC 3261, section 18.1.1).
    pub const fn name(self) -> &'static str {
        match self {
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
            Self::Tls => "TLS",
        }
    }

    /// Whether nothing gets lost on it, so that nothing needs to be sent again.
    pub const fn is_reliable(self) -> bool {
        !matches!(self, Self::Udp)
    }
}
