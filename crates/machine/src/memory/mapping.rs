//! Mappings for a guest's memory: anonymous, shareable, or a private copy of a shareable one.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, RawFd},
    ptr,
};

/// Huge pages of the host are this big and this aligned.
const HUGE: usize = 2 << 20;

/// A mapping, aligned for huge pages. Unmapped when dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    address: *mut u8,
    length: usize,
    /// What private copies are made of. It can only be read through this.
    file: Option<File>,
}

// SAFETY: a mapping belongs to the process, not to a thread.
unsafe impl Send for Mapping {}
// SAFETY: it gives out no references, only its address.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `length` bytes of zeroes that are this process's alone.
    ///
    /// Huge pages are asked for: until dirty logging is on, KVM maps the guest with them and the guest faults 512 times
    /// less while it starts. With logging on, KVM maps 4 KiB pages whatever lies underneath.
    pub(super) fn new(length: usize) -> io::Result<Self> {
        Self::aligned(length, None)
    }

    /// Maps `length` bytes of zeroes of which [`Self::private_copy`] can be made: shared memory without a name. The host need not
    /// have huge pages for that, unless [`Self::make_huge`] gets them.
    pub(super) fn shareable(length: usize) -> io::Result<Self> {
        let name = c"guest memory";
        // SAFETY: the name ends with a zero, and the descriptor that is made belongs to nobody else.
        let file = unsafe {
            let fd = libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            File::from_raw_fd(fd)
        };
        file.set_len(length as u64)?;
        // Nobody can make it shorter, which would take pages away under a guest.
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
        // SAFETY: no pointers are involved.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut mapping = Self::aligned(length, Some((file.as_raw_fd(), libc::MAP_SHARED)))?;
        // Another opening of the same file, by which the kernel lets nobody write: a copy cannot be anything but private.
        mapping.file = Some(File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?);
        Ok(mapping)
    }

    /// Maps what this mapping holds once more, so that each page is shared until it is written through the new one: then that one has
    /// its own. Nothing where this mapping is not shareable.
    pub(super) fn private_copy(&self) -> io::Result<Option<Self>> {
        let Some(file) = &self.file else {
            return Ok(None);
        };
        Self::aligned(self.length, Some((file.as_raw_fd(), libc::MAP_PRIVATE))).map(Some)
    }

    /// Gives the huge page number `index` of a shareable mapping, as far as the host has one, whatever its settings for shared
    /// memory are.
    ///
    /// # Errors
    /// `EINVAL` where the kernel cannot do that (before Linux 6.1), others where it has none at the moment.
    pub(super) fn make_huge(&self, index: usize) -> io::Result<()> {
        /// `include/uapi/asm-generic/mman-common.h`; libc has it for some targets only.
        const MADV_COLLAPSE: libc::c_int = 25;
        let start = index * HUGE;
        assert!(start + HUGE <= self.length, "a huge page of this mapping");
        // SAFETY: the range lies inside of the mapping. The first byte is written as it is (nobody else writes a mapping
        // that is being made), so that there is something to put into the huge page; advice changes no content.
        unsafe {
            let page = self.address.add(start);
            ptr::write_volatile(page, ptr::read_volatile(page));
            if libc::madvise(page.cast(), HUGE, MADV_COLLAPSE) < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }

    /// How many huge pages it could have.
    pub(super) fn huge_pages(&self) -> usize {
        self.length / HUGE
    }

    /// Maps `length` bytes of a file, or of zeroes.
    fn aligned(length: usize, of: Option<(RawFd, libc::c_int)>) -> io::Result<Self> {
        let (access, anonymous) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        );
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe { libc::mmap(ptr::null_mut(), length + HUGE, access, anonymous, -1, 0) };
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
            address
        };
        let mapping = Self {
            address: address.cast(),
            length,
            file: None,
        };
        if let Some((fd, kind)) = of {
            let flags = kind | libc::MAP_NORESERVE | libc::MAP_FIXED;
            // SAFETY: what is replaced is the mapping that was made just now.
            let placed = unsafe { libc::mmap(address, length, access, flags, fd, 0) };
            if placed == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: advice about a mapping of ours.
        unsafe {
            // A host without huge pages refuses; the memory is as good.
            libc::madvise(address, length, libc::MADV_HUGEPAGE);
            // Guest memory in a core dump would be a leak, and hundreds of megabytes.
            libc::madvise(address, length, libc::MADV_DONTDUMP);
        }
        Ok(mapping)
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
