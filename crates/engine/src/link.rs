//! The link: the one ordered connection between primary and backup.
//!
//! It carries all of a guest's memory, so it is TLS 1.3 (RFC 8446) from the first byte, with raw
//! public keys (RFC 7250) on both sides, each pinned to the partner's identity. Nobody else gets
//! past the handshake, and nothing is resumed. Plain TCP has to be asked for ([`Terms::insecure`]).
//!
//! Everything blocks. A connection is split in two halves for two threads; neither waits for the
//! other: only one half writes to the socket, only the other reads from it, and what they share,
//! the connection's keys and counters, is locked for no longer than some records take to encrypt.
//!
//! ```text
//!   Sender ── encrypt ──▶┐                      ┌◀── decrypt ── Receiver
//!      │                 └── state, locked ─────┘                   ▲
//!      └───── send ─────▶ socket ──────── recv, outside the lock ───┘
//! ```

mod handshake;
mod listen;
mod socket;
mod split;
#[cfg(test)]
mod tests;
mod tls;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use romulus_protocol::wire::WireError;
use rustix::net::Shutdown;
use thiserror::Error;

use crate::identity::{Public, Secret};

pub use listen::Listener;
pub use split::{Receiver, Sender};

use handshake::Handshake;
use tls::Tls;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(2);
/// How long a sender bears that the other side takes nothing.
const STALL: Duration = Duration::from_secs(2);

/// Why a connection cannot be made or goes on no longer.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The other side closed the connection, or this side did ([`Closer`]).
    #[error("the connection was closed")]
    Closed,
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(#[source] io::Error),
    /// The other side took too long.
    #[error("the other side took too long to {0}")]
    TimedOut(&'static str),
    /// The other side has another key than its pinned one.
    #[error(
        "wrong key: the other side is not the partner that this host was paired with; `romulus pair` exchanges keys"
    )]
    WrongKey,
    /// The other side refuses this side's key.
    #[error(
        "the other side refuses this host's key: it was paired with another host; `romulus pair` exchanges keys"
    )]
    Refused,
    /// One side speaks TLS, the other does not; or the other is no Romulus at all.
    #[error("the other side does not speak as this one does: `insecure` must be alike on both")]
    Mixed,
    /// The other side speaks TLS wrongly, or what arrived was forged.
    #[error("TLS: {0}")]
    Tls(#[source] rustls::Error),
    /// What arrived is no message.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A handshake failed; the listener goes on.
    #[error("{peer} connected, and was turned away: {why}")]
    Stranger {
        /// Who it was.
        peer: SocketAddr,
        /// Why.
        why: Box<LinkError>,
    },
    /// A socket cannot be made.
    #[error("cannot {verb} {address}: {error}")]
    Socket {
        /// What was tried.
        verb: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why it failed.
        error: io::Error,
    },
}

impl LinkError {
    /// Whether the other side was only too slow, or was not there in time.
    pub fn is_timeout(&self) -> bool {
        match self {
            LinkError::TimedOut(_) => true,
            LinkError::Stranger { why, .. } => why.is_timeout(),
            _ => false,
        }
    }
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> LinkError {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return LinkError::Closed;
        }
        match error.downcast::<rustls::Error>() {
            Ok(error) => tls::explain(error),
            Err(error) => LinkError::Broken(error),
        }
    }
}

impl From<rustix::io::Errno> for LinkError {
    fn from(error: rustix::io::Errno) -> LinkError {
        io::Error::from(error).into()
    }
}

/// What a connection must be like.
#[derive(Clone, Debug)]
pub struct Terms {
    /// TLS; nothing for plain TCP.
    tls: Option<Arc<Tls>>,
    /// How long a handshake may take.
    pub handshake: Duration,
    /// How long a sender bears that the other side takes nothing.
    pub stall: Duration,
}

impl Terms {
    /// TLS between this host and its partner.
    ///
    /// # Errors
    /// When the TLS library refuses the keys.
    pub fn tls(secret: &Secret, partner: &Public) -> Result<Terms, LinkError> {
        let tls = Tls::new(secret, partner).map_err(LinkError::Tls)?;
        Ok(Terms {
            tls: Some(Arc::new(tls)),
            ..Terms::insecure()
        })
    }

    /// Plain TCP: whoever can reach this host can read and change the guest's memory.
    pub fn insecure() -> Terms {
        Terms {
            tls: None,
            handshake: HANDSHAKE,
            stall: STALL,
        }
    }
}

/// Connects to a listening partner, from the local address `from` if it matters. `timeout` covers
/// all of it, the handshake too.
///
/// # Errors
/// When it cannot be reached, or is not the partner.
pub fn connect(
    address: SocketAddr,
    from: Option<IpAddr>,
    terms: &Terms,
    timeout: Duration,
) -> Result<Connection, LinkError> {
    let until = Instant::now() + timeout;
    let socket = socket::dial(address, from, until)?;
    Handshake::client(socket, address, terms, until)?.finish()
}

/// What both halves share of the connection's state.
type Channel = Option<Arc<Mutex<rustls::Connection>>>;

/// A connection to the partner, whose identity is proven unless the terms are insecure.
#[derive(Debug)]
pub struct Connection {
    socket: Arc<OwnedFd>,
    channel: Channel,
    peer: SocketAddr,
    stall: Duration,
}

impl Connection {
    /// The partner's address.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Whether it is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.channel.is_some()
    }

    /// Two halves for two threads. When either is dropped the connection is shut down; what was
    /// sent before still arrives.
    pub fn split(self) -> (Sender, Receiver) {
        let Connection {
            socket,
            channel,
            stall,
            ..
        } = self;
        let sender = Sender::new(Arc::clone(&socket), channel.clone(), stall);
        (sender, Receiver::new(socket, channel))
    }

    /// A handle that ends the connection from any thread.
    pub fn closer(&self) -> Closer {
        Closer::new(&self.socket)
    }
}

/// Ends a connection or a listener from any thread: whoever waits in one of its calls returns
/// with [`LinkError::Closed`].
#[derive(Clone, Debug)]
pub struct Closer(Weak<OwnedFd>);

impl Closer {
    fn new(socket: &Arc<OwnedFd>) -> Closer {
        Closer(Arc::downgrade(socket))
    }

    /// Ends it. Does nothing if it has ended.
    pub fn close(&self) {
        if let Some(socket) = self.0.upgrade() {
            shut(&socket);
        }
    }
}

fn shut(socket: &OwnedFd) {
    // It fails only if the connection is gone already.
    let _ = rustix::net::shutdown(socket, Shutdown::Both);
}
