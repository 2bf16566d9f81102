//! The kernel's note of when a datagram arrived: `SO_TIMESTAMPNS`, socket(7) and cmsg(3).

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::net::RecvAncillaryBuffer;

/// A `cmsghdr` and a `timespec`, each as long as it is where a pointer has eight bytes.
const HEADER: usize = size_of::<libc::cmsghdr>();
const STAMP: usize = size_of::<libc::timespec>();

/// What comes beside a datagram: room for one note, aligned as its header is.
#[repr(C, align(8))]
pub(super) struct Control([u8; HEADER + STAMP]);

impl Control {
    /// Nothing noted.
    pub(super) fn new() -> Control {
        Control([0; HEADER + STAMP])
    }

    /// Where the kernel may note something.
    pub(super) fn room(&mut self) -> RecvAncillaryBuffer<'_> {
        let (start, length) = (self.0.as_mut_ptr(), self.0.len());
        // SAFETY: the bytes are this value's, and nobody else uses them while the borrow lasts.
        // `RecvAncillaryBuffer` and the kernel only ever write initialised bytes to them.
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(start.cast::<MaybeUninit<u8>>(), length) };
        RecvAncillaryBuffer::new(bytes)
    }

    /// What was noted, since the epoch.
    pub(super) fn stamp(&self) -> Option<Duration> {
        let length = usize::from_ne_bytes(self.field(0)?);
        let level = i32::from_ne_bytes(self.field(8)?);
        let kind = i32::from_ne_bytes(self.field(12)?);
        if (length, level, kind) != (HEADER + STAMP, libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) {
            return None;
        }
        let seconds = i64::from_ne_bytes(self.field(HEADER)?);
        let nanoseconds = i64::from_ne_bytes(self.field(HEADER + 8)?);
        let seconds = Duration::from_secs(seconds.try_into().ok()?);
        seconds.checked_add(Duration::from_nanos(nanoseconds.try_into().ok()?))
    }

    fn field<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..)?.first_chunk().copied()
    }
}

/// From now on each datagram of the socket is noted.
pub(super) fn enable(socket: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(0);
    // SAFETY: the descriptor is open while it is borrowed, and `on` is as long as is said.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_TIMESTAMPNS,
            (&raw const on).cast(),
            length,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
