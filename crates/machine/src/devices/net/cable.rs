//! A cable whose other end stays in this process: what a card has instead of a tap in a rehearsal.

use super::{
    TapWriter,
    link::{Header, Link, Offload, vectors},
};
use crate::devices::ring::Part;
use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixDatagram,
    },
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// The card's end. Frames go to the card only: there is nothing that could carry one the other way.
pub(crate) struct Cable {
    socket: UnixDatagram,
    sent: Arc<AtomicU64>,
}

/// The other end: it gives the guest frames, and counts those that the guest sends.
#[derive(Debug)]
pub struct CableEnd {
    socket: UnixDatagram,
    sent: Arc<AtomicU64>,
}

impl Cable {
    /// A cable and its other end.
    ///
    /// # Errors
    /// Descriptors run out.
    pub(crate) fn new() -> io::Result<(Self, CableEnd)> {
        let (socket, other) = UnixDatagram::pair()?;
        socket.set_nonblocking(true)?;
        other.set_nonblocking(true)?;
        let sent = Arc::<AtomicU64>::default();
        let end = CableEnd {
            socket: other,
            sent: Arc::clone(&sent),
        };
        Ok((Self { socket, sent }, end))
    }
}

impl CableEnd {
    /// Gives the guest a frame, its virtio-net header (12 bytes) first. It is lost if the guest has not taken the last ones.
    pub fn give(&self, frame: &[u8]) {
        // A cable that is full, or whose card is gone, loses it.
        let _ = self.socket.send(frame);
    }

    /// A frame that came through the cable from the guest.
    #[cfg(test)]
    pub(crate) fn take(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 1 << 16];
        let length = self.socket.recv(&mut frame).ok()?;
        frame.truncate(length);
        Some(frame)
    }

    /// How many frames the guest has sent. They went nowhere.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Link for Cable {
    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    fn writer(&self) -> io::Result<TapWriter> {
        // For the machine's own frames (announcements), which have no more to do outside than the guest's.
        Ok(TapWriter::new(
            File::options().write(true).open("/dev/null")?,
        ))
    }

    fn interface(&self) -> Option<String> {
        None
    }

    fn set_offload(&mut self, _: Offload) -> io::Result<()> {
        Ok(())
    }

    fn send(&mut self, _: &Header, _: &[Part<'_>]) -> io::Result<()> {
        self.sent.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn receive(&mut self, parts: &[Part<'_>]) -> io::Result<usize> {
        let list: Vec<_> = vectors(parts).collect();
        // SAFETY: the vectors are parts of guest memory, which stays mapped as long as they are borrowed and holds plain
        // bytes only.
        let got = unsafe {
            libc::readv(
                self.socket.as_raw_fd(),
                list.as_ptr(),
                list.len() as libc::c_int,
            )
        };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }

    fn receive_copy(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.recv(buffer)
    }
}
