//! Where a card's frames go: the host's side of the cable.

use super::{super::ring::Part, writer::TapWriter};
use std::{io, os::fd::RawFd};

/// Length of the virtio-net header in bytes, the count of buffers included (virtio 1.2, 5.1.6).
pub(crate) const HEADER: usize = 12;

/// The header in front of every frame.
pub(crate) type Header = [u8; HEADER];

/// What a received frame may leave undone, because the guest said it can do it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a feature of its own"
)]
pub(crate) struct Offload {
    /// Checksums may be missing.
    pub(crate) checksum: bool,
    /// TCP over IPv4 may be longer than the MTU.
    pub(crate) tso4: bool,
    /// TCP over IPv6 may be longer than the MTU.
    pub(crate) tso6: bool,
    /// Those may carry ECN's congestion mark.
    pub(crate) ecn: bool,
}

/// One end of a cable. Frames keep their headers, so that large ones stay whole as far as possible; whoever holds frames
/// back does so behind this.
pub(crate) trait Link: Send {
    /// A descriptor that is readable while a frame waits. It stays the same.
    fn fd(&self) -> RawFd;

    /// A way for frames that do not come from the card.
    fn writer(&self) -> io::Result<TapWriter>;

    /// The name of the interface that is to be brought up before frames pass; `None` where there is none.
    fn interface(&self) -> Option<String>;

    /// Says what received frames may leave undone.
    fn set_offload(&mut self, offload: Offload) -> io::Result<()>;

    /// Sends one frame, which lies in guest memory only as long as this call.
    fn send(&mut self, header: &Header, frame: &[Part<'_>]) -> io::Result<()>;

    /// Receives one frame with its header into guest memory; the rest of a frame that is too long is lost. The caller
    /// marks what was written. The last two bytes of the header may be left as they were.
    ///
    /// # Errors
    /// `WouldBlock` if no frame waits.
    fn receive(&mut self, parts: &[Part<'_>]) -> io::Result<usize>;

    /// Receives one frame with its header into memory of ours.
    ///
    /// # Errors
    /// `WouldBlock` if no frame waits.
    fn receive_copy(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
}

/// The kernel's form of some parts of guest memory.
pub(crate) fn vectors(parts: &[Part<'_>]) -> impl Iterator<Item = libc::iovec> {
    parts.iter().map(|part| libc::iovec {
        iov_base: part.ptr_guard_mut().as_ptr().cast(),
        iov_len: part.len(),
    })
}
