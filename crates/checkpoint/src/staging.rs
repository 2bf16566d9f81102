//! What is copied while the machine is paused.

use crate::disk::DiskEpoch;
use crate::pages::{PAGE, Pages};

/// Pages in one piece of the buffer: 1 MiB.
const CHUNK: usize = 256;

/// A page that begins where a page of the host begins: [`Pages::stage`] is fast only where the copy's lines lie as the
/// processor's do.
#[derive(Clone, Debug)]
#[repr(align(4096))]
struct Aligned([u8; PAGE]);

/// The copy of what changed in one epoch: pages, the machine's state, disk writes. Used again from epoch to epoch.
///
/// Between [`clear`](Self::clear) and [`copy`](Self::copy) nothing is allocated as long as there is [room](Self::room):
/// call [`reserve`](Self::reserve) while the guest runs. Where an epoch is larger than that it still fits, at the price of an allocation
/// in the pause; what was copied before is never moved.
#[derive(Debug)]
pub struct Staging {
    chunks: Vec<Box<[Aligned]>>,
    numbers: Vec<u32>,
    state: Vec<u8>,
    disk: DiskEpoch,
}

impl Staging {
    /// Room for `pages` pages. Disk writes are bounded as [`DiskEpoch::default`] is.
    pub fn new(pages: usize) -> Self {
        let mut staging = Self {
            chunks: Vec::new(),
            numbers: Vec::new(),
            state: Vec::with_capacity(64 << 10),
            disk: DiskEpoch::default(),
        };
        staging.reserve(pages);
        staging
    }

    /// Forgets the epoch and keeps the memory.
    pub fn clear(&mut self) {
        self.numbers.clear();
        self.state.clear();
        self.disk.clear();
    }

    /// For how many pages there is room without an allocation.
    pub fn room(&self) -> usize {
        (self.chunks.len() * CHUNK).min(self.numbers.capacity())
    }

    /// Makes room for `pages` pages in all, touched, so that the copy meets no page fault. Not to be called in the pause.
    pub fn reserve(&mut self, pages: usize) {
        while self.chunks.len() * CHUNK < pages {
            self.grow();
        }
        self.numbers
            .reserve(pages.saturating_sub(self.numbers.len()));
    }

    /// Gives back what exceeds room for `pages` pages: after a burst. Keeps what is in use.
    pub fn shrink(&mut self, pages: usize) {
        let keep = pages.max(self.numbers.len());
        self.chunks.truncate(keep.div_ceil(CHUNK));
        self.numbers.shrink_to(keep);
    }

    /// Copies the pages that `dirty` names. Called in the pause.
    ///
    /// # Panics
    /// A page that `memory` does not have.
    pub fn copy(&mut self, memory: &impl Pages, dirty: impl Iterator<Item = usize>) {
        for page in dirty {
            let at = self.numbers.len();
            if at / CHUNK == self.chunks.len() {
                self.grow();
            }
            memory.stage(page, &mut self.chunks[at / CHUNK][at % CHUNK].0);
            self.numbers
                .push(u32::try_from(page).expect("a machine has fewer pages than 2^32"));
        }
    }

    /// Where the captured state of the machine goes, in the caller's form. Cleared by [`clear`](Self::clear).
    pub fn state(&mut self) -> &mut Vec<u8> {
        &mut self.state
    }

    /// The epoch's disk writes. In the pause they are best exchanged with the ones collected (`std::mem::swap`), which
    /// copies nothing.
    pub fn disk(&mut self) -> &mut DiskEpoch {
        &mut self.disk
    }

    /// How many pages were copied.
    pub fn pages(&self) -> usize {
        self.numbers.len()
    }

    /// Their numbers, in the order of copying.
    pub fn page_numbers(&self) -> &[u32] {
        &self.numbers
    }

    /// The copied pages with their numbers, in the order of copying.
    pub(crate) fn copied(&self) -> impl Iterator<Item = (u32, &[u8; PAGE])> {
        let pages = self.chunks.iter().flat_map(|chunk| chunk.iter());
        let pages = pages.map(|page| &page.0);
        self.numbers.iter().copied().zip(pages)
    }

    pub(crate) fn machine_state(&self) -> &[u8] {
        &self.state
    }

    pub(crate) fn disk_writes(&self) -> &DiskEpoch {
        &self.disk
    }

    fn grow(&mut self) {
        // Not zeroes: those would come as pages that are made only when they are touched.
        self.chunks
            .push(vec![Aligned([0xff; PAGE]); CHUNK].into_boxed_slice());
    }
}
