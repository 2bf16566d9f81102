//! Which pages the machine's own code (devices, boot) has written.

use super::{PAGE, mapping::Mapping};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use vm_memory::bitmap::{Bitmap, NewBitmap, RefSlice, WithBitmapSlice};

/// A bitmap of written pages with a second level above it, so that taking it costs what was written, not what could
/// have been, and allocates nothing.
///
/// Marks may come from any thread. A mark and [`Self::take`] must not overlap in time; the machine takes the log only
/// while its devices are quiesced.
#[derive(Debug, Default)]
pub struct WriteLog {
    /// One bit a page.
    words: Box<[AtomicU64]>,
    /// One bit for every word that may be other than zero.
    summary: Box<[AtomicU64]>,
    /// The memory that is logged: it lives as long as the region that owns this log.
    mapping: Option<Mapping>,
}

impl WriteLog {
    pub(super) fn of_mapping(mapping: Mapping) -> Self {
        let mut log = Self::with_len(mapping.length());
        log.mapping = Some(mapping);
        log
    }

    /// The memory that is logged.
    pub(super) fn mapping(&self) -> Option<&Mapping> {
        self.mapping.as_ref()
    }

    /// Marks page number `page`; beyond the end nothing happens.
    pub fn mark(&self, page: usize) {
        let Some(word) = self.words.get(page / 64) else {
            return;
        };
        let bit = 1 << (page % 64);
        // Most writes hit a page that is marked already: reading is cheaper than an exchange between processors.
        if word.load(Relaxed) & bit == 0 {
            word.fetch_or(bit, Relaxed);
            self.summary[page / 4096].fetch_or(1 << (page / 64 % 64), Relaxed);
        }
    }

    /// Clears the log and gives what was in it: `with(n, bits)` for each word with bits set, of which bit `b` stands
    /// for page `64 n + b`, in rising order.
    pub fn take(&self, mut with: impl FnMut(usize, u64)) {
        for (s, summary) in self.summary.iter().enumerate() {
            if summary.load(Relaxed) == 0 {
                continue;
            }
            let mut left = summary.swap(0, Relaxed);
            while left != 0 {
                let word = s * 64 + left.trailing_zeros() as usize;
                left &= left - 1;
                let bits = self.words[word].swap(0, Relaxed);
                if bits != 0 {
                    with(word, bits);
                }
            }
        }
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.take(|_, _| {});
    }
}

impl NewBitmap for WriteLog {
    fn with_len(bytes: usize) -> Self {
        let words = bytes.div_ceil(PAGE * 64);
        let zeroes = |n: usize| std::iter::repeat_with(AtomicU64::default).take(n).collect();
        Self {
            words: zeroes(words),
            summary: zeroes(words.div_ceil(64)),
            mapping: None,
        }
    }
}

impl<'a> WithBitmapSlice<'a> for WriteLog {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for WriteLog {
    fn mark_dirty(&self, offset: usize, length: usize) {
        if length == 0 {
            return;
        }
        let last = offset.saturating_add(length - 1) / PAGE;
        // Offsets come from vm-memory, which has checked them; the limit keeps a wrong one from looping for hours.
        for page in offset / PAGE..=last.min(self.words.len() * 64) {
            self.mark(page);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset / PAGE;
        self.words
            .get(page / 64)
            .is_some_and(|w| w.load(Relaxed) & 1 << (page % 64) != 0)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const PAGES: usize = 3 * 4096 + 70;

    fn taken(log: &WriteLog) -> BTreeSet<usize> {
        let mut pages = BTreeSet::new();
        log.take(|word, bits| {
            pages.extend(
                (0..64)
                    .filter(|b| bits & 1 << b != 0)
                    .map(|b| word * 64 + b),
            );
        });
        pages
    }

    proptest! {
        #[test]
        fn what_is_marked_is_taken_once(ranges in prop::collection::vec((0..PAGES * PAGE, 0..5 * PAGE), 0..20)) {
            let log = WriteLog::with_len(PAGES * PAGE);
            let mut expected = BTreeSet::new();
            for &(offset, length) in &ranges {
                log.mark_dirty(offset, length);
                if length > 0 {
                    expected.extend((offset / PAGE..=(offset + length - 1) / PAGE).filter(|p| *p < PAGES.next_multiple_of(64)));
                }
            }
            for page in 0..PAGES {
                prop_assert_eq!(log.dirty_at(page * PAGE), expected.contains(&page));
            }
            prop_assert_eq!(taken(&log), expected);
            prop_assert!(taken(&log).is_empty());
        }
    }

    #[test]
    fn a_length_beyond_everything_marks_to_the_end_and_returns() {
        let log = WriteLog::with_len(100 * PAGE);
        log.mark_dirty(99 * PAGE, usize::MAX);
        assert!(taken(&log).contains(&99));
    }
}
