//! A UDP socket that never waits.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

/// The class of network control (RFC 4594, CS6), which queues serve before bulk data.
const CLASS: u8 = 48 << 2;

/// Room for the longest message, in bytes.
pub(crate) const LONGEST: usize = 64 << 10;

/// A UDP socket.
#[derive(Debug)]
pub(crate) struct Socket(OwnedFd);

impl Socket {
    /// A socket at a local address; port 0 lets the system choose one.
    pub(crate) fn bind(address: SocketAddr) -> io::Result<Socket> {
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
        // A wish: the network works without, too.
        let _ = match address {
            SocketAddr::V4(_) => sockopt::set_ip_tos(&socket, CLASS),
            SocketAddr::V6(_) => sockopt::set_ipv6_tclass(&socket, CLASS.into()),
        };
        rustix::net::bind(&socket, &address)?;
        Ok(Socket(socket))
    }

    /// Where it is.
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        Ok(rustix::net::getsockname(&self.0)?.try_into()?)
    }

    /// Sends one datagram.
    pub(crate) fn send(&self, bytes: &[u8], to: SocketAddr) -> io::Result<()> {
        let flags = SendFlags::DONTWAIT;
        retry_on_intr(|| rustix::net::sendto(&self.0, bytes, flags, &to))?;
        Ok(())
    }

    /// Takes the next datagram: its length and sender. A longer one than `buffer` is cut, so that
    /// its checksum is wrong. Nothing when there is none.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<(usize, SocketAddr)>> {
        let flags = RecvFlags::DONTWAIT;
        match retry_on_intr(|| rustix::net::recvfrom(&self.0, &mut *buffer, flags)) {
            Ok((length, _, Some(from))) => Ok(Some((length, from.try_into()?))),
            // Without a sender it is nobody's.
            Ok((_, _, None)) => Err(io::ErrorKind::AddrNotAvailable.into()),
            Err(Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
