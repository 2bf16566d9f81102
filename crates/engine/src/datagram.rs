//! Heartbeats over every path that there is: small authenticated UDP packets, one socket a path.
//!
//! Nothing here waits, and no path can hold up another. What does not come from the partner's
//! address, is damaged or is not authentic is counted and dropped.

mod limit;
mod socket;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use romulus_protocol::heartbeat::Heartbeat;
use romulus_protocol::wire::{decode_heartbeat, encode_heartbeat};
use thiserror::Error;

use crate::identity::Key;

pub use limit::Limit;
use socket::Stamped;
pub(crate) use socket::{LONGEST, Socket};

/// Far longer than any heartbeat, in bytes.
const HEARTBEAT_MAX: usize = 1024;
/// The most datagrams that one call looks at for one that is good. A flood then costs time, but
/// does not keep the caller for ever.
const FLOOD: usize = 4096;

/// One path between two hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// What it is called in logs and figures: `replication`, `control`.
    pub name: &'static str,
    /// This host's address on it.
    pub local: SocketAddr,
    /// The partner's.
    pub peer: SocketAddr,
}

/// What happened on a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Heartbeats sent.
    pub sent: u64,
    /// Heartbeats that could not be sent.
    pub unsent: u64,
    /// Heartbeats received.
    pub received: u64,
    /// Datagrams dropped: from another address, damaged or not authentic.
    pub dropped: u64,
}

/// A heartbeat that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The index of the path that it came on.
    pub path: usize,
    /// What it says.
    pub beat: Heartbeat,
    /// When it arrived, on `CLOCK_REALTIME`, where the kernel told.
    pub wall: Option<Duration>,
}

/// A path's socket cannot be made.
#[derive(Debug, Error)]
#[error("cannot use {local} for heartbeats on the {name} path: {error}")]
pub struct PathError {
    /// The path.
    pub name: &'static str,
    /// This host's address on it, as given.
    pub local: SocketAddr,
    /// Why it failed.
    #[source]
    pub error: io::Error,
}

#[derive(Debug)]
struct Lane {
    path: Path,
    socket: Socket,
    counts: Counts,
    unsent: Limit,
    dropped: Limit,
}

/// All paths to one partner.
#[derive(Debug)]
pub struct Paths {
    lanes: Vec<Lane>,
    key: Key,
    out: Vec<u8>,
    buffer: Box<[u8; HEARTBEAT_MAX]>,
    /// The newest datagram that was authentic, and what it said. The same comes on every path.
    newest: Vec<u8>,
    said: Option<Heartbeat>,
    /// The paths before this one were found empty in the round that goes on.
    round: usize,
}

impl Paths {
    /// Opens a socket on every path.
    ///
    /// # Errors
    /// When a local address is not this host's or is in use.
    pub fn open(paths: &[Path], key: Key) -> Result<Paths, PathError> {
        let lanes = paths.iter().map(|path| {
            let socket = Socket::bind(path.local).map_err(|error| PathError {
                name: path.name,
                local: path.local,
                error,
            })?;
            // A wish: without, a heartbeat counts from when it is read.
            let _ = socket.stamp();
            Ok(Lane {
                path: path.clone(),
                socket,
                counts: Counts::default(),
                unsent: Limit::default(),
                dropped: Limit::default(),
            })
        });
        Ok(Paths {
            lanes: lanes.collect::<Result<_, _>>()?,
            key,
            out: Vec::with_capacity(HEARTBEAT_MAX),
            buffer: Box::new([0; HEARTBEAT_MAX]),
            newest: Vec::with_capacity(HEARTBEAT_MAX),
            said: None,
            round: 0,
        })
    }

    /// Sends a heartbeat on every path. A path that fails is counted and logged, and tried again
    /// with the next heartbeat.
    pub fn send(&mut self, beat: &Heartbeat) {
        self.out.clear();
        encode_heartbeat(beat, &self.key, &mut self.out);
        for lane in &mut self.lanes {
            match lane.socket.send(&self.out, lane.path.peer) {
                Ok(()) => lane.counts.sent += 1,
                Err(error) => lane.unsent(&error),
            }
        }
    }

    /// The next heartbeat that has arrived; nothing when every socket was found empty once since that was answered last: then a
    /// new round begins. No socket is asked again that was empty in this round: that would be a third of all system calls of an
    /// idle pair.
    pub fn receive(&mut self) -> Option<Received> {
        let Paths {
            lanes,
            key,
            buffer,
            newest,
            said,
            round,
            ..
        } = self;
        for (index, lane) in lanes.iter_mut().enumerate().skip(*round) {
            *round = index;
            for _ in 0..FLOOD {
                match lane.socket.receive_stamped(&mut buffer[..]) {
                    Ok(Some(Stamped { length, from, wall })) => {
                        let received = |beat| Received {
                            path: index,
                            beat,
                            wall,
                        };
                        let bytes = &buffer[..length];
                        if let Some(beat) = said
                            && bytes == newest
                            && lane.is_peer(from)
                        {
                            // Byte by byte what was found authentic on another path.
                            lane.counts.received += 1;
                            return Some(received(beat.clone()));
                        }
                        if let Some(beat) = lane.admit(bytes, from, key) {
                            newest.clear();
                            newest.extend_from_slice(bytes);
                            *said = Some(beat.clone());
                            return Some(received(beat));
                        }
                    }
                    Ok(None) => break,
                    // The network's opinion of what was sent earlier.
                    Err(error) => lane.unsent(&error),
                }
            }
        }
        *round = 0;
        None
    }

    /// The sockets, in the order of the paths, for `poll`: readable when a heartbeat has arrived.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.lanes.iter().map(|lane| lane.socket.as_fd())
    }

    /// The paths, and what happened on each.
    pub fn counts(&self) -> impl Iterator<Item = (&Path, Counts)> {
        self.lanes.iter().map(|lane| (&lane.path, lane.counts))
    }
}

impl Lane {
    fn is_peer(&self, from: SocketAddr) -> bool {
        let peer = self.path.peer;
        (from.ip(), from.port()) == (peer.ip(), peer.port())
    }

    fn admit(&mut self, bytes: &[u8], from: SocketAddr, key: &Key) -> Option<Heartbeat> {
        let why = if self.is_peer(from) {
            match decode_heartbeat(bytes, key) {
                Ok(beat) => {
                    self.counts.received += 1;
                    return Some(beat);
                }
                Err(why) => why.to_string(),
            }
        } else {
            "it is not from the partner's address".to_owned()
        };
        self.counts.dropped += 1;
        if let Some(silenced) = self.dropped.event() {
            tracing::warn!(path = self.path.name, %from, silenced, "a datagram was dropped: {why}");
        }
        None
    }

    fn unsent(&mut self, error: &io::Error) {
        self.counts.unsent += 1;
        if let Some(silenced) = self.unsent.event() {
            tracing::warn!(
                path = self.path.name, to = %self.path.peer, silenced,
                "a heartbeat could not be sent: {error}"
            );
        }
    }
}
