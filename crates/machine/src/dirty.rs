//! Which pages have changed since the last harvest.

use crate::memory::Memory;

/// A reusable set of page numbers: a harvest fills it, and nothing is allocated after it was made.
///
/// Pages are numbered as in [`Memory`]: contiguous over both of its ranges.
#[derive(Debug)]
pub struct DirtyPages {
    /// For each range of memory, the number of its first page and one bit for each of its pages.
    ranges: Vec<(usize, Vec<u64>)>,
    count: usize,
}

impl DirtyPages {
    /// An empty set for the pages of `memory`.
    pub fn new(memory: &Memory) -> Self {
        Self {
            ranges: memory
                .regions()
                .iter()
                .map(|r| (r.first_page, vec![0; r.pages().div_ceil(64)]))
                .collect(),
            count: 0,
        }
    }

    /// How many pages are in it.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether no page is in it.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether page number `page` is in it.
    pub fn contains(&self, page: usize) -> bool {
        self.ranges
            .iter()
            .rev()
            .find(|(first, _)| page >= *first)
            .and_then(|(first, words)| {
                words
                    .get((page - first) / 64)
                    .map(|w| w >> ((page - first) % 64))
            })
            .is_some_and(|bits| bits & 1 != 0)
    }

    /// The numbers of its pages, rising.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.ranges.iter().flat_map(|(first, words)| {
            words
                .iter()
                .enumerate()
                .filter(|(_, word)| **word != 0)
                .flat_map(move |(n, word)| {
                    let mut left = *word;
                    std::iter::from_fn(move || {
                        (left != 0).then(|| {
                            let bit = left.trailing_zeros() as usize;
                            left &= left - 1;
                            first + n * 64 + bit
                        })
                    })
                })
        })
    }

    /// The words of range number `index`, to be filled; then [`Self::recount`].
    pub(crate) fn words(&mut self, index: usize) -> &mut [u64] {
        &mut self.ranges[index].1
    }

    /// Whether it was made for memory like `memory`.
    pub(crate) fn fits(&self, memory: &Memory) -> bool {
        let shape = memory
            .regions()
            .iter()
            .map(|r| (r.first_page, r.pages().div_ceil(64)));
        self.ranges
            .iter()
            .map(|(first, words)| (*first, words.len()))
            .eq(shape)
    }

    /// Counts again after words were changed.
    pub(crate) fn recount(&mut self) {
        self.count = self
            .ranges
            .iter()
            .flat_map(|(_, words)| words)
            .map(|w| w.count_ones() as usize)
            .sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_both_ranges_come_out_in_order() {
        let memory = Memory::new(3074 << 20).unwrap();
        let mut dirty = DirtyPages::new(&memory);
        assert!(dirty.is_empty());
        dirty.words(0)[0] = 0b101;
        *dirty.words(0).last_mut().unwrap() = 1 << 63;
        dirty.words(1)[1] = 1 << 3;
        dirty.recount();
        let first = 0xc_0000;
        assert_eq!(
            dirty.iter().collect::<Vec<_>>(),
            [0, 2, first - 1, first + 67]
        );
        assert_eq!(dirty.count(), 4);
        for page in [0, 2, first - 1, first + 67] {
            assert!(dirty.contains(page));
        }
        for page in [1, first, first + 66, memory.pages(), usize::MAX] {
            assert!(!dirty.contains(page));
        }
        assert!(dirty.fits(&memory));
        assert!(!dirty.fits(&Memory::new(128 << 20).unwrap()));
    }
}
