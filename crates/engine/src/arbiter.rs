//! The arbiter over the network: a host's [`Client`], and the [`Server`] in front of its
//! [`Records`], which lie in a durable store of its own ([`Files`]) or elsewhere.
//!
//! One request is one UDP datagram, one answer another; whoever hears nothing asks again. Both
//! carry a tag under a key that only this host and this arbiter share. In front of a request
//! stands the sender's name, so that the server finds the key without trying them all:
//!
//! ```text
//!   request:  name (8 bytes) · frame · tag          answer:  frame · tag
//! ```
//!
//! An answer names the incarnation and the number that it answers, so none passes for another.
//! A datagram that is sent again by somebody else does nothing new: every change names the
//! generation that it expects, and that was used up the first time.

mod client;
mod disk;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod records;
mod server;
mod store;
#[cfg(test)]
mod tests;

use ring::digest::{SHA256, digest};

use crate::identity::Public;

pub use client::{Client, ClientError};
pub use records::{Files, Outcome, Records, changed};
pub use server::{Server, ServerConfig, ServerError};
pub use store::StoreError;

/// What the keys between hosts and arbiters are for.
const PURPOSE: &str = "arbiter";
/// The length of a client's name in bytes.
const NAME: usize = 8;

/// What a client is called in its datagrams: the beginning of its identity's SHA-256.
type Name = [u8; NAME];

fn name(client: &Public) -> Name {
    let digest = digest(&SHA256, client.bytes());
    *digest.as_ref().first_chunk().expect("32 bytes")
}
