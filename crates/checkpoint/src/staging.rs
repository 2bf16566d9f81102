//! What is copied while the machine is paused.

use crate::disk::DiskEpoch;
use crate::pages::{PAGE, Pages};
use std::sync::{Mutex, PoisonError};

/// Pages in one piece of the buffer: 1 MiB.
const CHUNK: usize = 256;

/// Pages that one thread copies before it takes more: some microseconds, so that the last to be done is not waited for
/// much longer than that.
const PIECE: usize = 32;

/// A page that begins where a page of the host begins: [`Pages::stage`] is fast only where the copy's lines lie as the
/// processor's do.
#[derive(Clone, Debug)]
#[repr(align(4096))]
struct Aligned([u8; PAGE]);

/// The copy of what changed in one epoch: pages, the machine's state, disk writes; and its held output. Used again from epoch to epoch.
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
    output: Vec<u8>,
}

impl Staging {
    /// Room for `pages` pages. Disk writes are bounded as [`DiskEpoch::default`] is.
    pub fn new(pages: usize) -> Self {
        let mut staging = Self {
            chunks: Vec::new(),
            numbers: Vec::new(),
            state: Vec::with_capacity(64 << 10),
            disk: DiskEpoch::default(),
            output: Vec::new(),
        };
        staging.reserve(pages);
        staging
    }

    /// Forgets the epoch and keeps the memory.
    pub fn clear(&mut self) {
        self.numbers.clear();
        self.state.clear();
        self.disk.clear();
        self.output.clear();
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
    pub fn copy(&mut self, memory: &(impl Pages + Sync), dirty: impl Iterator<Item = usize>) {
        self.copy_together(memory, dirty, |work| work());
    }

    /// As [`copy`](Self::copy), by several threads: `together` calls what it is given in each, and returns when all have
    /// returned. It is not called for a few pages.
    ///
    /// # Panics
    /// As [`copy`](Self::copy).
    pub fn copy_together(
        &mut self,
        memory: &(impl Pages + Sync),
        dirty: impl Iterator<Item = usize>,
        together: impl FnOnce(&(dyn Fn() + Sync)),
    ) {
        let before = self.numbers.len();
        self.numbers.extend(
            dirty.map(|page| u32::try_from(page).expect("a machine has fewer pages than 2^32")),
        );
        while self.chunks.len() * CHUNK < self.numbers.len() {
            self.grow();
        }
        let rooms = self.chunks.iter_mut().flat_map(|c| c.chunks_mut(PIECE));
        let pieces = self.numbers.chunks(PIECE).zip(rooms).enumerate();
        let pieces = Mutex::new(pieces.skip(before / PIECE));
        let next = || pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = || {
            while let Some((piece, (numbers, room))) = next() {
                let there = before.saturating_sub(piece * PIECE);
                for (number, room) in numbers.iter().zip(room).skip(there) {
                    memory.stage(*number as usize, &mut room.0);
                }
            }
        };
        if self.numbers.len() - before > 2 * PIECE {
            together(&work);
        } else {
            work();
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

    /// Where the epoch's held output goes, in the caller's form. It changes no more once the epoch is sealed, so that it may be
    /// copied when the guest runs again.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
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

    pub(crate) fn held_output(&self) -> &[u8] {
        &self.output
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };

    /// Pages that hold nothing but their number.
    struct Numbered;

    impl Pages for Numbered {
        fn count(&self) -> usize {
            1 << 20
        }

        fn read(&self, page: usize, into: &mut [u8; PAGE]) {
            let number = u32::try_from(page).unwrap().to_le_bytes();
            into.as_chunks_mut::<4>().0.fill(number);
        }

        fn write(&self, _: usize, _: &[u8; PAGE]) {}
    }

    #[test]
    fn each_page_is_where_its_number_is_however_many_copy() {
        for first in [0, 1, PIECE - 1, PIECE, 3 * PIECE + 7] {
            for more in [0, 1, PIECE, 2 * PIECE + 1, CHUNK, 3 * CHUNK + 5] {
                let mut staging = Staging::new(PIECE);
                staging.copy(&Numbered, (0..first).map(|n| 3 * n));
                let calls = AtomicUsize::new(0);
                let dirty = (0..more).map(|n| 100_000 + 7 * n);
                staging.copy_together(&Numbered, dirty.clone(), |work| {
                    thread::scope(|scope| {
                        for _ in 0..3 {
                            scope.spawn(|| {
                                calls.fetch_add(1, Ordering::Relaxed);
                                work();
                            });
                        }
                    });
                });
                let many = more > 2 * PIECE;
                assert_eq!(calls.load(Ordering::Relaxed), if many { 3 } else { 0 });
                let expected = (0..first).map(|n| 3 * n).chain(dirty);
                let mut copied = 0;
                for ((number, page), expected) in staging.copied().zip(expected) {
                    let mut content = [0; PAGE];
                    Numbered.read(expected, &mut content);
                    assert_eq!((number as usize, page), (expected, &content));
                    copied += 1;
                }
                assert_eq!(copied, first + more);
            }
        }
    }
}
