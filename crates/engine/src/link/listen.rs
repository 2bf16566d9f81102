//! Waiting for the partner to connect.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use super::handshake::{Handshake, Step};
use super::socket::{enlarge, left, tune};
use super::{Closer, Connection, LinkError, Terms};

/// The most handshakes under way. One more, and the oldest is given up.
const PENDING_MAX: usize = 16;

/// Takes connections. Handshakes go on side by side, so that a stranger who connects and says
/// nothing does not keep the partner waiting.
#[derive(Debug)]
pub struct Listener {
    socket: Arc<OwnedFd>,
    address: SocketAddr,
    pending: Mutex<Vec<Handshake>>,
}

impl Listener {
    /// Listens at `address`; port 0 lets the system choose one.
    ///
    /// # Errors
    /// When the address is not this host's or is in use.
    pub fn bind(address: SocketAddr) -> Result<Listener, LinkError> {
        let failed = |error| LinkError::Socket {
            verb: "listen at",
            address,
            error,
        };
        let listener = TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let socket = OwnedFd::from(listener);
        // Connections take the size after their listener, from the first packet on.
        enlarge(&socket);
        Ok(Listener {
            socket: Arc::new(socket),
            address,
            pending: Mutex::default(),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A handle that ends the listening from any thread.
    pub fn closer(&self) -> Closer {
        Closer::new(&self.socket)
    }

    /// Waits for the next connection, or for the next that fails its handshake. Meant for one
    /// thread.
    ///
    /// # Errors
    /// [`LinkError::Stranger`] when somebody was turned away: call again. [`LinkError::Closed`]
    /// after [`Closer::close`].
    pub fn accept(&self, terms: &Terms) -> Result<Connection, LinkError> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(result) = advance(&mut pending)? {
                return Ok(result);
            }
            self.wait(&pending)?;
            while let Some((socket, peer)) = self.next()? {
                tune(&socket)?;
                if pending.len() == PENDING_MAX {
                    tracing::warn!(peer = %pending[0].peer(), "too many connect at once; the oldest is turned away");
                    pending.remove(0);
                }
                pending.push(Handshake::server(socket, peer, terms)?);
            }
        }
    }

    /// Waits until somebody connects, or something happens to a handshake.
    fn wait(&self, pending: &[Handshake]) -> Result<(), LinkError> {
        let mut fds = vec![PollFd::new(&self.socket, PollFlags::IN)];
        // What a handshake has to say is far less than a socket takes at once, so they only
        // listen.
        let sockets = pending.iter().map(Handshake::socket);
        fds.extend(sockets.map(|socket| PollFd::new(socket, PollFlags::IN)));
        let until = pending.iter().map(Handshake::until).min().map(left);
        match poll(&mut fds, until.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn next(&self) -> Result<Option<(OwnedFd, SocketAddr)>, LinkError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match rustix::net::acceptfrom_with(self.socket.as_fd(), flags) {
            Ok((socket, peer)) => {
                let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                Ok(peer.map(|peer| (socket, peer)))
            }
            // It was shut down.
            Err(Errno::INVAL) => Err(LinkError::Closed),
            // Nobody is there; or whoever was is gone.
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(error) => Err(LinkError::Socket {
                verb: "take a connection at",
                address: self.address,
                error: error.into(),
            }),
        }
    }
}

/// Takes every handshake as far as it goes; the first that ends is the result.
fn advance(pending: &mut Vec<Handshake>) -> Result<Option<Connection>, LinkError> {
    for index in 0..pending.len() {
        let why = match pending[index].step() {
            Ok(Step::Done) => return pending.remove(index).connection().map(Some),
            Ok(Step::Waits(_)) if Instant::now() < pending[index].until() => continue,
            Ok(Step::Waits(_)) => pending[index].too_late(),
            Err(why) => why,
        };
        let peer = pending.remove(index).peer();
        let why = Box::new(why);
        return Err(LinkError::Stranger { peer, why });
    }
    Ok(None)
}
