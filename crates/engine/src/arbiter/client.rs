//! A host's side.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use romulus_protocol::arbiter::{Answer, Request};
use romulus_protocol::wire::{decode_answer, encode_request};
use thiserror::Error;

use crate::datagram::{Limit, Socket};
use crate::identity::{IdentityError, Key, Public, Secret};

use super::{Name, PURPOSE, name};

/// Far longer than any answer, in bytes.
const ANSWER_MAX: usize = 1024;
/// The most datagrams that one call looks at for one that is good.
const FLOOD: usize = 4096;

/// Why a host cannot speak to an arbiter.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The arbiter's identity cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// There is no socket for it.
    #[error("cannot make a socket at {local} to reach the arbiter {arbiter}: {error}")]
    Socket {
        /// The local address.
        local: IpAddr,
        /// The arbiter's.
        arbiter: SocketAddr,
        /// Why it failed.
        error: io::Error,
    },
}

/// Sends requests to one arbiter and takes its answers. Never waits. Either may be lost: the
/// protocol asks again.
#[derive(Debug)]
pub struct Client {
    socket: Socket,
    arbiter: SocketAddr,
    key: Key,
    name: Name,
    out: Vec<u8>,
    buffer: Box<[u8; ANSWER_MAX]>,
    unsent: Limit,
    dropped: Limit,
}

impl Client {
    /// Opens a socket to the arbiter at `arbiter` whose identity is `identity`, at the local
    /// address `from` if it matters.
    ///
    /// # Errors
    /// When the identity is unsafe or the local address is not this host's.
    pub fn open(
        arbiter: SocketAddr,
        from: Option<IpAddr>,
        secret: &Secret,
        identity: &Public,
    ) -> Result<Client, ClientError> {
        let key = secret.shared(identity, PURPOSE)?;
        let local = from.unwrap_or(match arbiter {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        });
        let socket =
            Socket::bind(SocketAddr::new(local, 0)).map_err(|error| ClientError::Socket {
                local,
                arbiter,
                error,
            })?;
        Ok(Client {
            socket,
            arbiter,
            key,
            name: name(secret.public()),
            out: Vec::with_capacity(ANSWER_MAX),
            buffer: Box::new([0; ANSWER_MAX]),
            unsent: Limit::default(),
            dropped: Limit::default(),
        })
    }

    /// Sends a request. That it cannot be sent is logged, and otherwise the same as its loss.
    pub fn send(&mut self, request: &Request) {
        self.out.clear();
        self.out.extend_from_slice(&self.name);
        encode_request(request, &self.key, &mut self.out);
        if let Err(error) = self.socket.send(&self.out, self.arbiter) {
            self.unsent(&error);
        }
    }

    /// The next answer that has arrived; nothing when there is none. Where it came from does not
    /// matter: its tag says that it is the arbiter's.
    pub fn receive(&mut self) -> Option<Answer> {
        for _ in 0..FLOOD {
            match self.socket.receive(&mut self.buffer[..]) {
                Ok(Some((length, from))) => {
                    match decode_answer(&self.buffer[..length], &self.key) {
                        Ok(answer) => return Some(answer),
                        Err(why) => {
                            if let Some(silenced) = self.dropped.event() {
                                tracing::warn!(%from, silenced, "an answer was dropped: {why}");
                            }
                        }
                    }
                }
                Ok(None) => return None,
                Err(error) => self.unsent(&error),
            }
        }
        None
    }

    /// The socket, for `poll`: readable when an answer has arrived.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn unsent(&mut self, error: &io::Error) {
        if let Some(silenced) = self.unsent.event() {
            tracing::warn!(arbiter = %self.arbiter, silenced, "cannot ask the arbiter: {error}");
        }
    }
}
