//! Anonymous memory for a guest.

use std::{io, ptr};

/// Huge pages of the host are this big and this aligned.
const HUGE: usize = 2 << 20;

/// A private anonymous mapping, aligned for huge pages. Unmapped when dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    address: *mut u8,
    length: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread.
unsafe impl Send for Mapping {}
// SAFETY: it gives out no references, only its address.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `length` bytes of zeroes.
    ///
    /// Huge pages are asked for: until dirty logging is on, KVM maps the guest with them and the guest faults 512 times
    /// less while it starts. With logging on, KVM maps 4 KiB pages whatever lies underneath.
    pub(super) fn new(length: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length + HUGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let before = start.align_offset(HUGE);
        // SAFETY: `before` is below HUGE, so `length` bytes from there lie inside of the mapping; what is given back
        // are its two ends, which nothing uses yet.
        let address = unsafe {
            let address = start.add(before);
            if before > 0 {
                libc::munmap(start, before);
            }
            libc::munmap(address.add(length), HUGE - before);
            // A host without huge pages refuses; the memory is as good.
            libc::madvise(address, length, libc::MADV_HUGEPAGE);
            // Guest memory in a core dump would be a leak, and hundreds of megabytes.
            libc::madvise(address, length, libc::MADV_DONTDUMP);
            address
        };
        Ok(Self {
            address: address.cast(),
            length,
        })
    }

    /// Bytes.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// Where it starts.
    pub(super) fn address(&self) -> *mut u8 {
        self.address
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone, and who holds its address holds (through the region) this value.
        unsafe { libc::munmap(self.address.cast(), self.length) };
    }
}
