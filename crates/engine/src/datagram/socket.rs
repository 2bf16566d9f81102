//! A UDP socket that never waits.

mod stamp;

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use stamp::Control;

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

    /// From now on the kernel notes when each datagram arrives.
    pub(crate) fn stamp(&self) -> io::Result<()> {
        stamp::enable(self.as_fd())
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
        let received = self.receive_stamped(buffer)?;
        Ok(received.map(|Stamped { length, from, .. }| (length, from)))
    }

    /// [`Socket::receive`], and when it arrived, on `CLOCK_REALTIME`, where that was noted
    /// ([`Socket::stamp`]).
    pub(crate) fn receive_stamped(&self, buffer: &mut [u8]) -> io::Result<Option<Stamped>> {
        let mut control = Control::new();
        let received = retry_on_intr(|| {
            let into = &mut [IoSliceMut::new(&mut *buffer)];
            rustix::net::recvmsg(&self.0, into, &mut control.room(), RecvFlags::DONTWAIT)
        });
        match received {
            Ok(message) => Ok(Some(Stamped {
                length: message.bytes,
                // Without a sender it is nobody's.
                from: message
                    .address
                    .ok_or(io::ErrorKind::AddrNotAvailable)?
                    .try_into()?,
                wall: control.stamp(),
            })),
            Err(Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// A datagram that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamped {
    /// Its length, in bytes.
    pub(crate) length: usize,
    /// Who sent it.
    pub(crate) from: SocketAddr,
    /// When it arrived, on `CLOCK_REALTIME`.
    pub(crate) wall: Option<Duration>,
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
