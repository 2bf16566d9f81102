//! A page of host memory that holds what a read of each register gives.

use std::{
    io,
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering},
};

/// Length of a register page in bytes.
pub(crate) const LENGTH: usize = 4096;

/// One page, zeroed at first. The guest may read it at any time, so that it is written in whole words.
#[derive(Debug)]
pub(crate) struct Page {
    words: NonNull<AtomicU32>,
}

// SAFETY: the page is only reached through atomic words and lives until the value is dropped.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

impl Page {
    /// Maps a page.
    ///
    /// # Errors
    /// Memory runs out.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                LENGTH,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(address.cast())
            .map(|words| Self { words })
            .ok_or_else(|| io::Error::other("the kernel mapped page 0"))
    }

    /// Its address in this process.
    pub(crate) fn address(&self) -> u64 {
        self.words.as_ptr() as u64
    }

    fn words(&self) -> &[AtomicU32] {
        // SAFETY: the mapping is `LENGTH` bytes long, page-aligned, initialised by the kernel and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), LENGTH / 4) }
    }

    /// The word at an offset; `None` past the end.
    pub(crate) fn word(&self, offset: u32) -> Option<&AtomicU32> {
        self.words().get(offset as usize / 4)
    }

    /// Sets the word at an offset.
    pub(crate) fn set(&self, offset: u32, value: u32) {
        if let Some(word) = self.word(offset) {
            word.store(value, Ordering::Release);
        }
    }

    /// Reads any bytes; those past the end are 0.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = usize::try_from(at / 4)
                .ok()
                .and_then(|index| self.words().get(index))
                .map_or(0, |word| {
                    word.load(Ordering::Acquire).to_le_bytes()[(at % 4) as usize]
                });
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, with no reference left, since every one borrows `self`.
        unsafe { libc::munmap(self.words.as_ptr().cast(), LENGTH) };
    }
}
