//! A disk's image, as far as this room needs it.

use crate::bytes::size;
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

/// A disk's image.
#[allow(clippy::missing_errors_doc, reason = "each fails as files do")]
pub trait Image {
    /// Its length in bytes.
    fn length(&self) -> io::Result<u64>;
    /// Fills `into` with what is at `offset`.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes a range read as zeroes.
    fn zero(&self, offset: u64, length: u64) -> io::Result<()>;
    /// Makes durable what was written.
    fn sync(&self) -> io::Result<()>;
}

impl<I: Image + ?Sized> Image for &I {
    fn length(&self) -> io::Result<u64> {
        I::length(self)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        I::read_at(self, offset, into)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        I::write_at(self, offset, bytes)
    }

    fn zero(&self, offset: u64, length: u64) -> io::Result<()> {
        I::zero(self, offset, length)
    }

    fn sync(&self) -> io::Result<()> {
        I::sync(self)
    }
}

/// Zeroes are written in pieces of this length where holes cannot be made.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

impl Image for File {
    fn length(&self) -> io::Result<u64> {
        // The end, not the metadata's length, which a block device does not have.
        (&*self).seek(SeekFrom::End(0))
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(into, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn zero(&self, mut offset: u64, mut length: u64) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(self, hole, offset, length) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
            Err(error) => return Err(error.into()),
        }
        while length > 0 {
            let piece = length.min(ZEROES.len() as u64);
            self.write_all_at(&ZEROES[..size(piece)], offset)?;
            offset += piece;
            length -= piece;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
