//! Sets of page numbers: which pages have changed, which are to stay writable.

use crate::memory::Memory;

/// A reusable set of page numbers. Nothing is allocated after it was made.
///
/// Pages are numbered as in [`Memory`]: contiguous over both of its ranges.
#[derive(Debug)]
pub struct PageSet {
    /// For each range of memory, the number of its first page and one bit for each of its pages.
    ranges: Vec<(usize, Vec<u64>)>,
    count: usize,
}

impl PageSet {
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
        let found = self.ranges.iter().rev().find(|(first, _)| page >= *first);
        found.is_some_and(|(first, words)| {
            let word = words.get((page - first) / 64);
            word.is_some_and(|word| word & bit(page - first) != 0)
        })
    }

    /// Puts page number `page` into it; says whether it was not in it before. A page that the memory does not have is
    /// put nowhere.
    pub fn insert(&mut self, page: usize) -> bool {
        let Some((word, bit)) = self.place(page) else {
            return false;
        };
        let new = *word & bit == 0;
        *word |= bit;
        self.count += usize::from(new);
        new
    }

    /// Takes page number `page` out of it; says whether it was in it.
    pub fn remove(&mut self, page: usize) -> bool {
        let Some((word, bit)) = self.place(page) else {
            return false;
        };
        let old = *word & bit != 0;
        *word &= !bit;
        self.count -= usize::from(old);
        old
    }

    /// The word and the bit of a page.
    fn place(&mut self, page: usize) -> Option<(&mut u64, u64)> {
        let mut ranges = self.ranges.iter_mut().rev();
        let (first, words) = ranges.find(|(first, _)| page >= *first)?;
        let word = words.get_mut((page - *first) / 64)?;
        Some((word, bit(page - *first)))
    }

    /// The numbers of its pages, rising.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.ranges.iter().flat_map(|(first, words)| {
            used(words).flat_map(move |(n, word)| {
                let mut left = word;
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

    /// The words of range number `index`.
    pub(crate) fn words(&self, index: usize) -> &[u64] {
        &self.ranges[index].1
    }

    /// The words of range number `index`, to be filled; then [`Self::recount`].
    pub(crate) fn words_mut(&mut self, index: usize) -> &mut [u64] {
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
            .flat_map(|(_, words)| used(words))
            .map(|(_, word)| word.count_ones() as usize)
            .sum();
    }
}

/// Words that are looked at together. Nearly all words of a harvest are zero, and of a large memory there are many.
const BLOCK: usize = 16;

fn is_unused(block: &[u64]) -> bool {
    block.iter().fold(0, |all, word| all | word) == 0
}

/// The words that are not zero, with their numbers.
fn used(words: &[u64]) -> impl Iterator<Item = (usize, u64)> {
    let blocks = words.chunks(BLOCK).enumerate();
    let blocks = blocks.filter(|(_, block)| !is_unused(block));
    blocks.flat_map(|(number, block)| {
        let words = (number * BLOCK..).zip(block.iter().copied());
        words.filter(|(_, word)| *word != 0)
    })
}

/// Calls `each` with every word that is not zero, and its number.
pub(crate) fn for_each_used(words: &mut [u64], mut each: impl FnMut(usize, &mut u64)) {
    for (number, block) in words.chunks_mut(BLOCK).enumerate() {
        if !is_unused(block) {
            let words = (number * BLOCK..).zip(block);
            words
                .filter(|(_, word)| **word != 0)
                .for_each(|(n, word)| each(n, word));
        }
    }
}

/// The bit of page number `page` of a range in its word.
fn bit(page: usize) -> u64 {
    1 << (page % 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_go_in_and_out_one_by_one() {
        let memory = Memory::new(3074 << 20).unwrap();
        let mut set = PageSet::new(&memory);
        let pages = [0, 63, 64, 0xc_0000 - 1, 0xc_0000, memory.pages() - 1];
        for page in pages {
            assert!(!set.remove(page) && set.insert(page) && !set.insert(page));
        }
        assert_eq!(set.iter().collect::<Vec<_>>(), pages);
        assert_eq!(set.count(), pages.len());
        assert!(set.remove(64) && !set.contains(64) && !set.remove(64));
        assert_eq!(set.count(), pages.len() - 1);
        for nowhere in [memory.pages(), usize::MAX] {
            assert!(!set.insert(nowhere) && !set.remove(nowhere));
        }
        assert_eq!(set.count(), pages.len() - 1);
    }

    #[test]
    fn used_words_are_found_wherever_they_are() {
        for length in [1, BLOCK - 1, BLOCK, 3 * BLOCK + 5] {
            for at in 0..length {
                let mut words = vec![0; length];
                words[at] = 5;
                words[length - 1] |= 8;
                let expected: Vec<_> = (0..length)
                    .filter(|n| words[*n] != 0)
                    .map(|n| (n, words[n]))
                    .collect();
                assert_eq!(used(&words).collect::<Vec<_>>(), expected);
                let mut found = Vec::new();
                for_each_used(&mut words, |n, word| {
                    found.push((n, *word));
                    *word = 0;
                });
                assert_eq!(found, expected);
                assert!(is_unused(&words));
            }
        }
    }

    #[test]
    fn pages_of_both_ranges_come_out_in_order() {
        let memory = Memory::new(3074 << 20).unwrap();
        let mut dirty = PageSet::new(&memory);
        assert!(dirty.is_empty());
        dirty.words_mut(0)[0] = 0b101;
        *dirty.words_mut(0).last_mut().unwrap() = 1 << 63;
        dirty.words_mut(1)[1] = 1 << 3;
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
