//! The server: one thread for the network, in front of the records.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use romulus_protocol::arbiter::{Answer, Request};
use romulus_protocol::wire::{decode_request, encode_answer};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use thiserror::Error;

use crate::datagram::{LONGEST, Limit, Socket};
use crate::identity::{IdentityError, Key, Public, Secret};

use super::records::{Outcome, Records};
use super::{NAME, Name, PURPOSE, name};

/// The most datagrams taken from one socket before the others have their turn.
const TURN: usize = 64;

/// What an arbiter needs.
pub struct ServerConfig {
    /// Where it listens (UDP).
    pub listen: Vec<SocketAddr>,
    /// The records.
    pub records: Box<dyn Records + Send>,
    /// Its secret.
    pub secret: Secret,
    /// The hosts that it answers. Nobody else is answered at all.
    pub allowed: Vec<Public>,
}

/// Why an arbiter cannot start or go on.
#[derive(Debug, Error)]
pub enum ServerError {
    /// A host's identity cannot be used.
    #[error("the host {host} cannot be allowed: {error}")]
    Host {
        /// The host.
        host: Box<Public>,
        /// Why.
        error: IdentityError,
    },
    /// Two hosts' identities begin alike in their digests.
    #[error("the hosts {} and {} cannot be told apart: make a new identity for one of them", .0.0, .0.1)]
    Alike(Box<(Public, Public)>),
    /// It cannot listen.
    #[error("the arbiter cannot listen at {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why it failed.
        error: io::Error,
    },
    /// It cannot wait for datagrams.
    #[error("the arbiter cannot wait for requests: {0}")]
    Wait(#[source] io::Error),
}

#[derive(Debug)]
struct Host {
    public: Public,
    key: Key,
}

/// Where an answer goes.
#[derive(Clone, Copy, Debug)]
struct Asker {
    socket: usize,
    address: SocketAddr,
    name: Name,
}

/// An arbiter with its records open and its sockets bound.
pub struct Server {
    sockets: Vec<Socket>,
    addresses: Vec<SocketAddr>,
    court: Court,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// When an identity is unsafe, or an address is not this computer's.
    pub fn open(config: ServerConfig) -> Result<Server, ServerError> {
        let hosts = hosts(&config.secret, config.allowed)?;
        let (mut sockets, mut addresses) = (Vec::new(), Vec::new());
        for address in config.listen {
            let failed = |error| ServerError::Listen { address, error };
            let socket = Socket::bind(address).map_err(failed)?;
            addresses.push(socket.address().map_err(failed)?);
            sockets.push(socket);
        }
        Ok(Server {
            sockets,
            addresses,
            court: Court::new(hosts, config.records),
        })
    }

    /// Where it listens, in the order of [`ServerConfig::listen`], with the ports that the system
    /// chose.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Sends what answers there are.
    fn tell(&mut self) {
        let sockets = &self.sockets;
        self.court
            .tell(|bytes, to| sockets[to.socket].send(bytes, to.address));
    }

    /// Answers requests until `stop` becomes readable.
    ///
    /// # Errors
    /// When it cannot wait for requests any more.
    pub fn run(mut self, stop: impl AsFd) -> Result<(), ServerError> {
        let mut buffer = vec![0; LONGEST];
        loop {
            let mut fds = vec![PollFd::new(&stop, PollFlags::IN)];
            let sockets = self.sockets.iter();
            fds.extend(sockets.map(|socket| PollFd::new(socket, PollFlags::IN)));
            let news = self.court.records.news();
            fds.extend(news.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(ServerError::Wait(error.into())),
            }
            if !fds[0].revents().is_empty() {
                return Ok(());
            }
            for index in 0..self.sockets.len() {
                self.turn(index, &mut buffer);
            }
            self.tell();
        }
    }

    fn turn(&mut self, index: usize, buffer: &mut [u8]) {
        for _ in 0..TURN {
            match self.sockets[index].receive(buffer) {
                Ok(Some((length, address))) => {
                    self.court.hear(&buffer[..length], index, address);
                    self.tell();
                }
                Ok(None) => return,
                // The network's opinion of an answer sent earlier.
                Err(error) => self.court.unsent(&error),
            }
        }
    }
}

/// The hosts by name, with the keys made beforehand.
fn hosts(secret: &Secret, allowed: Vec<Public>) -> Result<HashMap<Name, Host>, ServerError> {
    let mut hosts: HashMap<Name, Host> = HashMap::new();
    for public in allowed {
        let key = secret
            .shared(&public, PURPOSE)
            .map_err(|error| ServerError::Host {
                host: Box::new(public),
                error,
            })?;
        let old = hosts.insert(name(&public), Host { public, key });
        if let Some(old) = old.filter(|old| old.public != public) {
            return Err(ServerError::Alike(Box::new((old.public, public))));
        }
    }
    Ok(hosts)
}

/// The records and those who may ask; without the network.
struct Court {
    hosts: HashMap<Name, Host>,
    records: Box<dyn Records + Send>,
    askers: HashMap<u64, Asker>,
    next: u64,
    out: Vec<u8>,
    dropped: Limit,
    unsent: Limit,
}

impl Court {
    fn new(hosts: HashMap<Name, Host>, records: Box<dyn Records + Send>) -> Court {
        Court {
            hosts,
            records,
            askers: HashMap::new(),
            next: 0,
            out: Vec::new(),
            dropped: Limit::default(),
            unsent: Limit::default(),
        }
    }

    /// Takes one datagram.
    fn hear(&mut self, bytes: &[u8], socket: usize, address: SocketAddr) {
        let Some((name, request)) = self.admit(bytes, address) else {
            return;
        };
        let client = self.next;
        self.next += 1;
        self.askers.insert(
            client,
            Asker {
                socket,
                address,
                name,
            },
        );
        self.records.ask(client, request);
    }

    /// Sends all answers that there are.
    fn tell(&mut self, mut send: impl FnMut(&[u8], Asker) -> io::Result<()>) {
        while let Some(Outcome { client, answer }) = self.records.outcome() {
            let asker = self.askers.remove(&client);
            if let (Some(asker), Some(answer)) = (asker, answer) {
                self.answer(asker, &answer, &mut send);
            }
        }
    }

    fn admit(&mut self, bytes: &[u8], from: SocketAddr) -> Option<(Name, Request)> {
        let named = bytes.split_first_chunk::<NAME>();
        let host = named.and_then(|(name, frame)| Some((name, frame, self.hosts.get(name)?)));
        let why = match host {
            None => "no host of this name is allowed".to_owned(),
            Some((name, frame, host)) => match decode_request(frame, &host.key) {
                Ok(request) => return Some((*name, request)),
                Err(why) => why.to_string(),
            },
        };
        if let Some(silenced) = self.dropped.event() {
            tracing::warn!(%from, silenced, "a request was dropped: {why}");
        }
        None
    }

    fn answer(
        &mut self,
        asker: Asker,
        answer: &Answer,
        send: &mut impl FnMut(&[u8], Asker) -> io::Result<()>,
    ) {
        let Some(host) = self.hosts.get(&asker.name) else {
            return;
        };
        self.out.clear();
        encode_answer(answer, &host.key, &mut self.out);
        if let Err(error) = send(&self.out, asker) {
            self.unsent(&error);
        }
    }

    fn unsent(&mut self, error: &io::Error) {
        if let Some(silenced) = self.unsent.event() {
            tracing::warn!(silenced, "an answer could not be sent: {error}");
        }
    }
}
