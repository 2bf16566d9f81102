//! From a TCP connection to a connection with the partner.
//!
//! After the TLS handshake each side greets the other. A client has no other way to learn, before
//! it says anything, that the server refused its key (RFC 8446, section 4.4.4); and on plain TCP
//! the greeting tells Romulus from strangers. The client's greeting follows its part of the
//! handshake at once, so that this costs no round trip.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::socket::{Direct, wait};
use super::{Connection, LinkError, Terms, tls};

/// What each side says first.
const GREETING: &[u8; 15] = b"romulus-link-1\n";

/// A handshake under way. It never waits by itself, so that one thread can see to several.
#[derive(Debug)]
pub(super) struct Handshake {
    socket: OwnedFd,
    peer: SocketAddr,
    tls: Option<rustls::Connection>,
    /// How much of the greeting is on its way: with TLS, all of it or nothing.
    said: usize,
    heard: usize,
    until: Instant,
    stall: Duration,
}

/// How far a handshake is.
pub(super) enum Step {
    /// It waits for the socket to be ready for this.
    Waits(PollFlags),
    /// It is done.
    Done,
}

impl Handshake {
    pub(super) fn client(
        socket: OwnedFd,
        peer: SocketAddr,
        terms: &Terms,
        until: Instant,
    ) -> Result<Handshake, LinkError> {
        let tls = terms.tls.as_ref().map(|tls| tls.client()).transpose();
        let tls = tls.map_err(LinkError::Tls)?;
        Ok(Handshake::new(socket, peer, tls, terms, until))
    }

    pub(super) fn server(
        socket: OwnedFd,
        peer: SocketAddr,
        terms: &Terms,
    ) -> Result<Handshake, LinkError> {
        let tls = terms.tls.as_ref().map(|tls| tls.server()).transpose();
        let tls = tls.map_err(LinkError::Tls)?;
        let until = Instant::now() + terms.handshake;
        Ok(Handshake::new(socket, peer, tls, terms, until))
    }

    fn new(
        socket: OwnedFd,
        peer: SocketAddr,
        tls: Option<rustls::Connection>,
        terms: &Terms,
        until: Instant,
    ) -> Handshake {
        Handshake {
            socket,
            peer,
            tls,
            said: 0,
            heard: 0,
            until,
            stall: terms.stall,
        }
    }

    pub(super) fn peer(&self) -> SocketAddr {
        self.peer
    }

    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// When it is given up.
    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// Goes as far as it can at once.
    pub(super) fn step(&mut self) -> Result<Step, LinkError> {
        match self.advance() {
            Ok(()) => Ok(Step::Done),
            Err(LinkError::Broken(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                let writes = match &self.tls {
                    Some(tls) => tls.wants_write(),
                    None => self.said < GREETING.len(),
                };
                Ok(Step::Waits(if writes {
                    PollFlags::OUT
                } else {
                    PollFlags::IN
                }))
            }
            Err(error) => Err(error),
        }
    }

    fn advance(&mut self) -> Result<(), LinkError> {
        let mut socket = Direct(self.socket.as_fd());
        let Some(tls) = &mut self.tls else {
            while self.said < GREETING.len() {
                self.said += socket.write(&GREETING[self.said..])?;
            }
            return greeted(&mut self.heard, |bytes| Ok(socket.read(bytes)?));
        };
        while tls.is_handshaking() {
            match tls.complete_io(&mut socket) {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(LinkError::Closed);
                }
                result => result?,
            };
        }
        if self.said == 0 {
            tls.writer().write_all(GREETING)?;
            self.said = GREETING.len();
        }
        while tls.wants_write() {
            tls.write_tls(&mut socket)?;
        }
        greeted(&mut self.heard, |bytes| {
            loop {
                match tls.reader().read(bytes) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                    result => return Ok(result?),
                }
                tls.read_tls(&mut socket)?;
                tls.process_new_packets().map_err(tls::explain)?;
            }
        })
    }

    /// The connection, once [`Handshake::step`] said that it is done.
    pub(super) fn connection(self) -> Result<Connection, LinkError> {
        // From here on the receiver waits in the socket itself; a sender never does.
        rustix::io::ioctl_fionbio(&self.socket, false)?;
        Ok(Connection {
            socket: Arc::new(self.socket),
            channel: self.tls.map(|tls| Arc::new(Mutex::new(tls))),
            peer: self.peer,
            stall: self.stall,
        })
    }

    /// Goes all the way, waiting where it must.
    pub(super) fn finish(mut self) -> Result<Connection, LinkError> {
        loop {
            match self.step()? {
                Step::Done => return self.connection(),
                Step::Waits(what) if wait(self.socket.as_fd(), what, self.until)? => {}
                Step::Waits(_) => return Err(self.too_late()),
            }
        }
    }

    /// Why it is given up when its time has passed.
    #[expect(clippy::unused_self, reason = "reads well where it is used")]
    pub(super) fn too_late(&self) -> LinkError {
        LinkError::TimedOut("shake hands: look at its log, and at `insecure` on both")
    }
}

/// Reads the rest of the other side's greeting, and not a byte more.
fn greeted(
    heard: &mut usize,
    mut read: impl FnMut(&mut [u8]) -> Result<usize, LinkError>,
) -> Result<(), LinkError> {
    while *heard < GREETING.len() {
        let mut bytes = [0; GREETING.len()];
        let bytes = &mut bytes[*heard..];
        let length = read(bytes)?;
        if length == 0 {
            return Err(LinkError::Closed);
        }
        let bytes = &bytes[..length];
        if bytes != &GREETING[*heard..*heard + length] {
            return Err(LinkError::Mixed);
        }
        *heard += length;
    }
    Ok(())
}
