//! Sockets: how they are made, tuned and waited for.

use std::io::{self, IoSlice, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags, SocketType, sockopt,
};

use super::LinkError;

/// A connection whose partner acknowledges nothing for this long is dead.
const DEAD: Duration = Duration::from_secs(2);
/// Room for a checkpoint of a thousand pages in the kernel, in bytes.
const BUFFER: usize = 4 << 20;

/// A socket that never waits: what cannot be done at once is [`io::ErrorKind::WouldBlock`].
pub(super) struct Direct<'a>(pub(super) BorrowedFd<'a>);

const SEND: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);

impl Read for Direct<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        receive(self.0, buffer, RecvFlags::DONTWAIT)
    }
}

impl Write for Direct<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| {
            rustix::net::send(self.0, bytes, SEND)
        })?)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(self.0, slices, &mut SendAncillaryBuffer::default(), SEND)
        })?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Receives some bytes; 0 when the other side has ended.
pub(super) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    flags: RecvFlags,
) -> io::Result<usize> {
    let (length, _) = rustix::io::retry_on_intr(|| rustix::net::recv(socket, &mut *buffer, flags))?;
    Ok(length)
}

/// The time until `until`, as `poll` wants it.
pub(super) fn left(until: Instant) -> Timespec {
    let left = until.saturating_duration_since(Instant::now());
    Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    }
}

/// Waits until the socket is ready for `what` or broken; false when it was not until `until`.
pub(super) fn wait(socket: BorrowedFd<'_>, what: PollFlags, until: Instant) -> io::Result<bool> {
    loop {
        let mut fds = [PollFd::from_borrowed_fd(socket, what)];
        match poll(&mut fds, Some(&left(until))) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sets what every connection needs.
pub(super) fn tune(socket: &OwnedFd) -> rustix::io::Result<()> {
    // A commit is a small message, and output waits for it.
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, Duration::from_secs(1))?;
    sockopt::set_tcp_keepintvl(socket, Duration::from_secs(1))?;
    sockopt::set_tcp_keepcnt(socket, 2)?;
    let dead = u32::try_from(DEAD.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(socket, dead)
}

/// Makes large buffers. Without the right to, the kernel's own sizing is better than what it
/// would grant: asking for a size ends it.
pub(super) fn enlarge(socket: &OwnedFd) {
    let _ = sockopt::set_socket_send_buffer_size_force(socket, BUFFER);
    let _ = sockopt::set_socket_recv_buffer_size_force(socket, BUFFER);
}

/// Connects by `until`.
pub(super) fn dial(
    address: SocketAddr,
    from: Option<IpAddr>,
    until: Instant,
) -> Result<OwnedFd, LinkError> {
    let failed = |verb| {
        move |error: Errno| LinkError::Socket {
            verb,
            address,
            error: error.into(),
        }
    };
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)
        .map_err(failed("make a socket for"))?;
    tune(&socket).map_err(failed("tune a socket for"))?;
    enlarge(&socket);
    if let Some(from) = from {
        rustix::net::bind(&socket, &SocketAddr::new(from, 0))
            .map_err(failed("use the local address to reach"))?;
    }
    match rustix::net::connect(&socket, &address) {
        Err(Errno::INPROGRESS) => {
            if !wait(socket.as_fd(), PollFlags::OUT, until)? {
                return Err(LinkError::TimedOut("take a connection"));
            }
            sockopt::socket_error(&socket)
                .and_then(|result| result)
                .map_err(failed("connect to"))?;
        }
        result => result.map_err(failed("connect to"))?,
    }
    Ok(socket)
}
