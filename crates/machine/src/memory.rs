//! Guest memory: where it lies, and which of its pages the machine's own writes have changed.

mod log;
mod mapping;

pub use log::WriteLog;

use crate::Error;
use mapping::Mapping;
use std::{
    arch::x86_64::{_mm_sfence, _mm_stream_si64},
    io,
    ops::Range,
    sync::Arc,
};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    mmap::MmapRegionBuilder,
};

/// Guest memory as devices see it: every write through it marks its page in the [`WriteLog`], because KVM's own log
/// does not see what user space writes.
pub type Ram = GuestMemoryMmap<WriteLog>;

/// Bytes in a page, the unit of dirty tracking.
pub const PAGE: usize = 4096;

/// Bytes in a cache line.
const LINE: usize = 64;

/// Where low memory ends at the latest. Device registers, the I/O APIC and the local APICs lie between here and
/// [`HIGH_START`].
pub const LOW_END: u64 = 0xc000_0000;
/// Where the memory goes on that does not fit below [`LOW_END`].
pub const HIGH_START: u64 = 1 << 32;

/// Bytes that are locked with one call. While the kernel provides them, other threads of the process cannot touch new
/// memory: gigabytes at once would stop the heartbeats for seconds.
const LOCKED_AT_ONCE: usize = 8 << 20;

/// One stretch of guest memory, which is one memory slot of KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Region {
    /// KVM's slot number.
    pub(crate) slot: u32,
    /// First guest-physical address.
    pub(crate) start: u64,
    /// Length in bytes.
    pub(crate) length: u64,
    /// Address in this process.
    pub(crate) host: *mut u8,
    /// Number of its first page in the count of all pages.
    pub(crate) first_page: usize,
}

impl Region {
    /// Number of pages.
    pub(crate) fn pages(&self) -> usize {
        pages(self.length)
    }
}

// SAFETY: `host` is only an address; every access through it says for itself why it is sound.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

/// The guest-physical ranges of a machine with `size` bytes of memory.
pub(crate) fn layout(size: u64) -> Vec<Range<u64>> {
    if size <= LOW_END {
        std::iter::once(0..size).collect()
    } else {
        vec![0..LOW_END, HIGH_START..HIGH_START + (size - LOW_END)]
    }
}

/// All memory of one machine. Its pages are numbered from 0 without the gap below 4 GiB.
///
/// A clone is another handle to the same memory, cheap, and usable from any thread: it keeps the memory mapped, even
/// beyond the machine's end. While the guest runs, or another thread writes, a page that is read may be torn (some of its
/// bytes old, some new); only a pause makes it whole.
#[derive(Debug, Clone)]
pub struct Memory {
    ram: Ram,
    regions: Arc<[Region]>,
    pages: usize,
}

impl Memory {
    /// Maps `size` bytes of zeroes (a multiple of 2 MiB). The host gives a page when it is first touched.
    ///
    /// # Errors
    /// The host has not that much address space to give.
    pub fn new(size: u64) -> Result<Self, Error> {
        Self::of_mappings(size, |_, bytes| Mapping::new(bytes))
    }

    /// As [`Self::new`], but memory of which [`Self::private_copy`] can be made. If it is to be `huge`, it gets huge pages at once, and
    /// where the kernel cannot give shared memory any (before Linux 6.1) this is [`Self::new`]: a guest that runs on small
    /// pages is slower, which is worse than not to have copies.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn shareable(size: u64, huge: bool) -> Result<Self, Error> {
        let memory = Self::of_mappings(size, |_, bytes| Mapping::shareable(bytes))?;
        if !huge {
            return Ok(memory);
        }
        for index in 0..memory.regions.len() {
            let Some(mapping) = memory.log(index).mapping() else {
                continue;
            };
            for page in 0..mapping.huge_pages() {
                match mapping.make_huge(page) {
                    Ok(()) => {}
                    Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                        return Self::new(size);
                    }
                    // Memory in small pieces: it would not have had this one otherwise, either.
                    Err(error) => tracing::debug!(page, %error, "no huge page"),
                }
            }
        }
        Ok(memory)
    }

    /// The same content in other memory, nothing of which is copied yet: a page is shared until it is written in the copy, which then
    /// has its own. What is written here meanwhile shows there, but in pages that the copy has of its own already
    /// ([`Self::own`]). Nothing if this memory was not made by [`Self::shareable`].
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn private_copy(&self) -> Result<Option<Self>, Error> {
        let mut missing = false;
        let copy = Self::of_mappings(self.size(), |index, bytes| {
            let of = self.log(index).mapping();
            let copy = of.map_or(Ok(None), Mapping::private_copy)?;
            missing |= copy.is_none();
            copy.map_or_else(|| Mapping::new(bytes), Ok)
        })?;
        Ok((!missing).then_some(copy))
    }

    /// Gives a private copy page number `page` of its own, with what it holds now; it may be in use meanwhile. One that is its own
    /// already stays as it is.
    ///
    /// # Errors
    /// The host has no memory left.
    ///
    /// # Panics
    /// There is no such page.
    pub fn own(&self, page: usize) -> io::Result<()> {
        // SAFETY: the page lies inside of a mapping of ours, and the call changes no content: it does what a write would have the
        // kernel do before it.
        let done =
            unsafe { libc::madvise(self.host(page).cast(), PAGE, libc::MADV_POPULATE_WRITE) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    fn of_mappings(
        size: u64,
        mut map: impl FnMut(usize, usize) -> io::Result<Mapping>,
    ) -> Result<Self, Error> {
        let mut regions = Vec::new();
        let mut maps = Vec::new();
        let mut first_page = 0;
        for (range, slot) in layout(size).into_iter().zip(0..) {
            let length = range.end - range.start;
            let bytes = usize::try_from(length).expect("x86-64 addresses fit");
            let host_error = |source| Error::Host {
                what: format!("{} MiB of guest memory", length >> 20),
                source,
            };
            let mapping = map(regions.len(), bytes).map_err(host_error)?;
            let host = mapping.address();
            let builder = MmapRegionBuilder::new_with_bitmap(bytes, WriteLog::of_mapping(mapping))
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
            // SAFETY: the mapping is `bytes` long and belongs to the log that the region owns, so it lives as long as
            // the region.
            let region = unsafe { builder.with_raw_mmap_pointer(host) }
                .build()
                .map_err(|e| Error::Invalid(format!("guest memory: {e}")))?;
            maps.push(
                GuestRegionMmap::new(region, GuestAddress(range.start)).ok_or_else(|| {
                    Error::Invalid(format!(
                        "guest memory of {size} bytes ends beyond all addresses"
                    ))
                })?,
            );
            regions.push(Region {
                slot,
                start: range.start,
                length,
                host,
                first_page,
            });
            first_page += pages(length);
        }
        let ram =
            Ram::from_regions(maps).map_err(|e| Error::Invalid(format!("guest memory: {e}")))?;
        Ok(Self {
            ram,
            regions: regions.into(),
            pages: first_page,
        })
    }

    /// Locks all of it into the host's memory. The host gives every page at once, huge ones where it has them.
    ///
    /// # Errors
    /// The host has not that much memory, or this process may not lock it; the text says what to do.
    pub fn lock(&self) -> Result<(), Error> {
        for region in self.regions.iter() {
            let bytes = usize::try_from(region.length).expect("x86-64 addresses fit");
            for start in (0..bytes).step_by(LOCKED_AT_ONCE) {
                let length = LOCKED_AT_ONCE.min(bytes - start);
                // SAFETY: the range lies inside of a mapping of ours; locking changes none of its content.
                if unsafe { libc::mlock(region.host.add(start).cast(), length) } < 0 {
                    return Err(Error::Host {
                        what: format!(
                            "locking {} MiB of guest memory: the host needs that much free, and the process a limit \
                             RLIMIT_MEMLOCK above it (\"LimitMEMLOCK=infinity\" in its systemd unit, \"ulimit -l \
                             unlimited\" in a shell) or the capability CAP_IPC_LOCK",
                            self.size() >> 20
                        ),
                        source: io::Error::last_os_error(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Number of pages.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Bytes in all.
    pub fn size(&self) -> u64 {
        self.pages as u64 * PAGE as u64
    }

    /// The memory as devices see it.
    pub fn ram(&self) -> &Ram {
        &self.ram
    }

    /// Guest-physical address of page number `page`, if there is such a page.
    pub fn address(&self, page: usize) -> Option<u64> {
        let region = &self.regions[self.index_of(page)?];
        Some(region.start + (page - region.first_page) as u64 * PAGE as u64)
    }

    /// Number of the page that holds a guest-physical address, if that is memory.
    pub fn page_at(&self, address: u64) -> Option<usize> {
        let region = self
            .regions
            .iter()
            .find(|r| address >= r.start && address - r.start < r.length)?;
        Some(region.first_page + pages(address - region.start))
    }

    /// Copies page number `page` out. While the guest runs the copy may be torn.
    ///
    /// # Panics
    /// There is no such page.
    #[inline]
    pub fn read_page(&self, page: usize, into: &mut [u8; PAGE]) {
        let from = self.host(page);
        // SAFETY: `host` points at a whole mapped page of guest memory, which no Rust reference ever points into.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), PAGE) }
    }

    /// [`Self::read_page`] past the caches, for a copy that is not read soon: its lines are written without being fetched
    /// first, and push nothing out. Where `into` does not begin at a cache line it is an ordinary copy.
    ///
    /// # Panics
    /// There is no such page.
    #[inline]
    pub fn stage_page(&self, page: usize, into: &mut [u8; PAGE]) {
        /// What one store takes. Wider ones are no faster, for a whole line leaves the processor in either case, and where
        /// it is emulated they take three times as long.
        const STORE: usize = size_of::<i64>();
        let from = self.host(page);
        let to = into.as_mut_ptr();
        if !to.addr().is_multiple_of(LINE) {
            return self.read_page(page, into);
        }
        for line in (0..PAGE).step_by(LINE) {
            for at in (line..line + LINE).step_by(STORE) {
                // SAFETY: `host` points at a whole mapped page of guest memory, which no Rust reference ever points into,
                // `to` at one that nobody else can see, aligned for the store. SSE2 is a part of x86-64.
                unsafe {
                    let bytes = from.add(at).cast::<i64>().read_unaligned();
                    _mm_stream_si64(to.add(at).cast(), bytes);
                }
            }
        }
        // Such stores keep no order with others: who sees that the copy is there must see what is in it.
        // SAFETY: it has no conditions.
        unsafe { _mm_sfence() }
    }

    /// Whether page number `page` holds exactly `other`. While the guest runs the answer may be of no instant.
    ///
    /// # Panics
    /// There is no such page.
    #[inline]
    pub fn page_is(&self, page: usize, other: &[u8; PAGE]) -> bool {
        let from = self.host(page);
        // SAFETY: both are whole pages; memcmp makes no reference to guest memory.
        unsafe { libc::memcmp(from.cast(), other.as_ptr().cast(), PAGE) == 0 }
    }

    /// Whether page number `page` holds zeroes alone. While the guest runs the answer may be of no instant.
    ///
    /// # Panics
    /// There is no such page.
    #[inline]
    pub fn is_zero(&self, page: usize) -> bool {
        /// Compared at once: few enough to stop early, enough for the processor's widest registers.
        const WORDS: usize = 32;
        const BYTES: usize = WORDS * size_of::<u64>();
        let from = self.host(page);
        (0..PAGE / BYTES).all(|n| {
            let mut words = [0u64; WORDS];
            // SAFETY: `host` points at a whole mapped page of guest memory, of which these are some bytes.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    from.add(n * BYTES),
                    words.as_mut_ptr().cast(),
                    BYTES,
                );
            }
            words.iter().fold(0, |all, word| all | word) == 0
        })
    }

    /// Writes page number `page`. The write counts as the machine's own.
    ///
    /// # Panics
    /// There is no such page.
    #[inline]
    pub fn write_page(&self, page: usize, from: &[u8; PAGE]) {
        let (index, to) = self.locate(page);
        // SAFETY: `locate` points at a whole mapped page of guest memory, which no Rust reference ever points into.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, PAGE) }
        self.log(index).mark(page - self.regions[index].first_page);
    }

    /// Makes page number `page` zeroes. One that is zeroes already is not touched, so that the host need not give it.
    /// A write counts as the machine's own.
    ///
    /// # Panics
    /// There is no such page.
    pub fn zero_page(&self, page: usize) {
        if self.is_zero(page) {
            return;
        }
        let (index, to) = self.locate(page);
        // SAFETY: `locate` points at a whole mapped page of guest memory, which no Rust reference ever points into.
        unsafe { std::ptr::write_bytes(to, 0, PAGE) }
        self.log(index).mark(page - self.regions[index].first_page);
    }

    pub(crate) fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The log of own writes to region number `index`.
    pub(crate) fn log(&self, index: usize) -> &WriteLog {
        let region = self.ram.iter().nth(index).expect("as many as regions");
        debug_assert_eq!(region.start_addr().0, self.regions[index].start);
        vm_memory::mmap::MmapRegion::bitmap(region)
    }

    /// Number of the region that holds page number `page`. There are at most two.
    #[inline]
    fn index_of(&self, page: usize) -> Option<usize> {
        if page >= self.pages {
            return None;
        }
        self.regions.iter().rposition(|r| page >= r.first_page)
    }

    /// Where page number `page` lies: the number of its region, and its address here.
    #[inline]
    fn locate(&self, page: usize) -> (usize, *mut u8) {
        let index = self
            .index_of(page)
            .unwrap_or_else(|| panic!("page {page} of {} does not exist", self.pages));
        let region = &self.regions[index];
        // SAFETY: the page lies inside of the region's mapping.
        (index, unsafe {
            region.host.add((page - region.first_page) * PAGE)
        })
    }

    #[inline]
    fn host(&self, page: usize) -> *mut u8 {
        self.locate(page).1
    }
}

/// Whole pages in `bytes`.
fn pages(bytes: u64) -> usize {
    usize::try_from(bytes / PAGE as u64).expect("x86-64 addresses fit")
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    const MIB: u64 = 1 << 20;

    #[test]
    fn small_memory_is_one_range() {
        for size in [128 * MIB, 3072 * MIB] {
            let ranges = layout(size);
            assert_eq!((ranges.len(), &ranges[0]), (1, &(0..size)));
        }
    }

    #[test]
    fn memory_beyond_the_gap_goes_on_at_4_gib() {
        assert_eq!(
            layout(3074 * MIB),
            [0..0xc000_0000, 0x1_0000_0000..0x1_0020_0000]
        );
    }

    #[test]
    fn pages_are_counted_without_the_gap() {
        let memory = Memory::new(3074 * MIB).unwrap();
        let last_low = 0xc_0000 - 1;
        assert_eq!(memory.pages(), 3074 * 256);
        assert_eq!(memory.address(last_low), Some(0xbfff_f000));
        assert_eq!(memory.address(last_low + 1), Some(0x1_0000_0000));
        assert_eq!(memory.address(memory.pages()), None);
        assert_eq!(memory.page_at(0xbfff_ffff), Some(last_low));
        assert_eq!(memory.page_at(0xc000_0000), None);
        assert_eq!(memory.page_at(0x1_0000_0fff), Some(last_low + 1));
        assert_eq!(memory.page_at(0x1_0020_0000), None);
    }

    #[test]
    fn a_page_goes_in_and_comes_out_on_both_sides_of_the_gap() {
        let memory = Memory::new(3074 * MIB).unwrap();
        for page in [0, 1, 0xc_0000 - 1, 0xc_0000, memory.pages() - 1] {
            let pattern = [u8::try_from(page % 251).unwrap() + 1; PAGE];
            memory.write_page(page, &pattern);
            let mut out = [0; PAGE];
            memory.read_page(page, &mut out);
            assert_eq!(out, pattern);
            assert!(memory.page_is(page, &pattern));
            let address = memory.address(page).unwrap();
            assert_eq!(
                memory.ram().read_obj::<u8>(GuestAddress(address)).unwrap(),
                pattern[0]
            );
        }
    }

    #[test]
    fn zeroes_are_known_and_written_only_where_there_were_none() {
        let memory = Memory::new(3074 * MIB).unwrap();
        for page in [0, 0xc_0000 - 1, 0xc_0000, memory.pages() - 1] {
            let mut bytes = [0; PAGE];
            for at in [0, 8, 255, 256, 4095] {
                assert!(memory.is_zero(page));
                bytes[at] = 1;
                memory.write_page(page, &bytes);
                assert!(!memory.is_zero(page), "byte {at} of page {page}");
                bytes[at] = 0;
                memory.zero_page(page);
            }
            assert!(memory.page_is(page, &[0; PAGE]));
        }
        for index in 0..2 {
            memory.log(index).clear();
        }
        memory.zero_page(5);
        memory.log(0).take(|_, _| panic!("it was zero already"));
        memory.write_page(5, &[1; PAGE]);
        memory.log(0).clear();
        memory.zero_page(5);
        let mut found = Vec::new();
        memory.log(0).take(|word, bits| found.push((word, bits)));
        assert_eq!(found, [(0, 1 << 5)]);
    }

    #[test]
    fn a_staged_page_is_the_whole_page_wherever_it_goes() {
        let memory = Memory::new(128 * MIB).unwrap();
        let mut page = [0; PAGE];
        for (at, byte) in (0u32..).zip(&mut page) {
            *byte = at.wrapping_mul(2_654_435_761).to_le_bytes()[3];
        }
        memory.write_page(7, &page);
        let mut room = [0xaa; 3 * PAGE];
        let start = room.as_ptr().align_offset(PAGE);
        for shift in [0, LINE, 1, 16] {
            room.fill(0xaa);
            let at = start + shift;
            let into = room[at..].first_chunk_mut().unwrap();
            memory.stage_page(7, into);
            assert_eq!(*into, page, "moved by {shift}");
            assert_eq!((room[at + PAGE], room[PAGE * 3 - 1]), (0xaa, 0xaa));
            assert!(room[..at].iter().all(|byte| *byte == 0xaa));
        }
    }

    #[test]
    #[should_panic(expected = "does not exist")]
    fn a_page_beyond_the_end_is_no_page() {
        let memory = Memory::new(3074 * MIB).unwrap();
        memory.is_zero(memory.pages());
    }

    #[test]
    fn a_clone_is_the_same_memory_and_keeps_it() {
        let memory = Memory::new(128 * MIB).unwrap();
        let other = memory.clone();
        memory.write_page(9, &[3; PAGE]);
        drop(memory);
        assert!(other.page_is(9, &[3; PAGE]));
    }

    #[test]
    fn a_private_copy_shows_what_was_there_and_keeps_its_own_writes() {
        let memory = Memory::shareable(3074 * MIB, false).unwrap();
        let last = memory.pages() - 1;
        let page = |memory: &Memory, page| {
            let mut bytes = [0; PAGE];
            memory.read_page(page, &mut bytes);
            bytes[9]
        };
        for at in [0, 7, last] {
            memory.write_page(at, &[1; PAGE]);
        }
        let copy = memory.private_copy().unwrap().expect("it is shareable");
        copy.write_page(7, &[2; PAGE]);
        copy.write_page(8, &[2; PAGE]);
        copy.own(last).unwrap();
        assert_eq!([0, 7, 8, last].map(|at| page(&memory, at)), [1, 1, 0, 1]);
        memory.write_page(last, &[3; PAGE]);
        copy.own(last).unwrap();
        assert_eq!([0, 7, 8, last].map(|at| page(&copy, at)), [1, 2, 2, 1]);
        let second = memory.private_copy().unwrap().unwrap();
        assert_eq!([0, 7, 8, last].map(|at| page(&second, at)), [1, 1, 0, 3]);
        drop(memory);
        assert_eq!(page(&copy, 0), 1, "it keeps what it shares");
        assert!(copy.private_copy().unwrap().is_none(), "one is enough");
    }

    #[test]
    fn ordinary_memory_has_no_copy() {
        let memory = Memory::new(128 * MIB).unwrap();
        assert!(memory.private_copy().unwrap().is_none());
    }

    /// Where the kernel cannot give shared memory huge pages there is no copy, and a guest as fast as without.
    #[test]
    fn huge_memory_is_huge_or_ordinary() {
        let memory = Memory::shareable(128 * MIB, true).unwrap();
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:x}-", memory.regions()[0].host as usize);
        let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&start));
        let mapped = lines.find_map(|line| line.strip_prefix("ShmemPmdMapped:"));
        let kilobytes = mapped.and_then(|text| text.trim().split(' ').next()?.parse::<u64>().ok());
        if memory.private_copy().unwrap().is_none() {
            eprintln!("not shareable: this kernel has no huge pages for shared memory");
            return;
        }
        // A host whose memory is in pieces has some.
        assert!(
            kilobytes.is_some_and(|kilobytes| kilobytes > 0),
            "{kilobytes:?}"
        );
    }

    #[test]
    fn locked_memory_is_there_or_the_error_says_what_to_do() {
        let memory = Memory::new(128 * MIB).unwrap();
        let resident = || {
            let bytes = usize::try_from(memory.size()).unwrap();
            let mut pages = vec![0u8; memory.pages()];
            let start = memory.regions()[0].host.cast();
            // SAFETY: the range is mapped, and the kernel writes a byte for each of its pages.
            let done = unsafe { libc::mincore(start, bytes, pages.as_mut_ptr()) };
            assert_eq!(done, 0);
            pages.iter().filter(|page| **page & 1 != 0).count()
        };
        assert_eq!(resident(), 0);
        match memory.lock() {
            Ok(()) => assert_eq!(resident(), memory.pages()),
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("RLIMIT_MEMLOCK"), "{text}");
                eprintln!("not locked: {text}");
            }
        }
    }

    #[test]
    fn writes_of_devices_and_of_pages_are_logged() {
        let memory = Memory::new(3074 * MIB).unwrap();
        memory
            .ram()
            .write_slice(&[1; PAGE], GuestAddress(0x1_0000_0800))
            .unwrap();
        memory.write_page(7, &[1; PAGE]);
        let collect = |index| {
            let mut found = Vec::new();
            memory
                .log(index)
                .take(|word, bits| found.push((word, bits)));
            found
        };
        assert_eq!(collect(0), [(0, 1 << 7)]);
        assert_eq!(collect(1), [(0, 0b11)]);
        assert!(collect(1).is_empty(), "taken once");
    }
}
