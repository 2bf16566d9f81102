//! Guest memory: where it lies, and which of its pages the machine's own writes have changed.

mod log;
mod mapping;

pub use log::WriteLog;

use crate::Error;
use mapping::Mapping;
use std::ops::Range;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    mmap::MmapRegionBuilder,
};

/// Guest memory as devices see it: every write through it marks its page in the [`WriteLog`], because KVM's own log
/// does not see what user space writes.
pub type Ram = GuestMemoryMmap<WriteLog>;

/// Bytes in a page, the unit of dirty tracking.
pub const PAGE: usize = 4096;

/// Where low memory ends at the latest. Device registers, the I/O APIC and the local APICs lie between here and
/// [`HIGH_START`].
pub const LOW_END: u64 = 0xc000_0000;
/// Where the memory goes on that does not fit below [`LOW_END`].
pub const HIGH_START: u64 = 1 << 32;

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
#[derive(Debug)]
pub struct Memory {
    ram: Ram,
    regions: Vec<Region>,
    pages: usize,
}

impl Memory {
    /// Maps `size` bytes of zeroes (a multiple of 2 MiB). The host gives a page when it is first touched.
    ///
    /// # Errors
    /// The host has not that much address space to give.
    pub fn new(size: u64) -> Result<Self, Error> {
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
            let mapping = Mapping::new(bytes).map_err(host_error)?;
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
            regions,
            pages: first_page,
        })
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
        let region = self.region_of(page)?;
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

    /// Copies page number `page` out. To be called while the guest is paused, or the copy may be torn.
    ///
    /// # Panics
    /// There is no such page.
    pub fn read_page(&self, page: usize, into: &mut [u8; PAGE]) {
        let from = self.host(page);
        // SAFETY: `host` points at a whole mapped page of guest memory, which no Rust reference ever points into.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), PAGE) }
    }

    /// Whether page number `page` holds exactly `other`. To be called while the guest is paused.
    ///
    /// # Panics
    /// There is no such page.
    pub fn page_is(&self, page: usize, other: &[u8; PAGE]) -> bool {
        let from = self.host(page);
        // SAFETY: both are whole pages; memcmp makes no reference to guest memory.
        unsafe { libc::memcmp(from.cast(), other.as_ptr().cast(), PAGE) == 0 }
    }

    /// Writes page number `page`. The write counts as the machine's own.
    ///
    /// # Panics
    /// There is no such page.
    pub fn write_page(&self, page: usize, from: &[u8; PAGE]) {
        let to = self.host(page);
        // SAFETY: `host` points at a whole mapped page of guest memory, which no Rust reference ever points into.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, PAGE) }
        self.mark(page);
    }

    /// Counts page number `page` as written by the machine itself: for writes through raw addresses.
    fn mark(&self, page: usize) {
        let region = self.region_of(page).expect("the caller knows the page");
        let index = self
            .regions
            .iter()
            .position(|r| r.slot == region.slot)
            .expect("it is one of ours");
        self.log(index).mark(page - region.first_page);
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

    fn region_of(&self, page: usize) -> Option<&Region> {
        self.regions
            .iter()
            .find(|r| page >= r.first_page && page - r.first_page < r.pages())
    }

    fn host(&self, page: usize) -> *mut u8 {
        let region = self
            .region_of(page)
            .unwrap_or_else(|| panic!("page {page} of {} does not exist", self.pages));
        // SAFETY: the page lies inside of the region's mapping.
        unsafe { region.host.add((page - region.first_page) * PAGE) }
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
