//! Frames into a tap beside its card: held output that is released, announcements.

use super::link::HEADER;
use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

/// The shortest frame: its virtio-net header and Ethernet's.
const FRAME_MIN: usize = HEADER + 14;

/// Writes frames to a card's tap, as the card itself would, from any thread.
///
/// It keeps the tap open, so that no other process can have it, as long as it lives: drop it with the machine.
#[derive(Debug, Clone)]
pub struct TapWriter {
    file: Arc<File>,
}

impl TapWriter {
    /// A writer to an open tap, or (for measuring) to anything else that takes a frame with each write.
    pub fn new(file: File) -> Self {
        Self {
            file: Arc::new(file),
        }
    }

    /// The tap itself.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Writes one frame, its virtio-net header (12 bytes) first. It never blocks.
    ///
    /// # Errors
    /// `InvalidInput` if it is shorter than its two headers; `EIO` while the tap is shut; else what the tap says, for
    /// example of a header that does not fit its frame.
    pub fn write(&self, frame: &[u8]) -> io::Result<()> {
        if frame.len() < FRAME_MIN {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a frame shorter than its headers",
            ));
        }
        loop {
            match (&*self.file).write(frame) {
                Ok(written) if written == frame.len() => return Ok(()),
                // One write is one frame: the rest cannot follow.
                Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
