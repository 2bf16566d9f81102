//! Which pages stay writable from epoch to epoch.
//!
//! A page whose writes are noted costs the guest an exit at its first write in each epoch. A page that stays writable costs
//! no exit, but has to be copied in each pause and compared, changed or not. Which is cheaper depends on how often the page
//! changes, as it does for one who may rent or buy without knowing for how long: a page that is copied in vain for as long
//! as an exit would have taken is given up, so that at worst twice the least is paid.

use crate::{Memory, PageSet};
use std::time::Duration;

/// What an exit costs, as a multiple of its own time: after it the guest finds its translations and caches cold. Where the
/// processor is emulated, 27 first writes more in the time of a request made it 1.7 ms longer, 63 us each, while a tiny
/// guest lost 35 by one.
const AFTERMATH: u32 = 2;
/// Epochs from one look at all warm pages to the next. Those that no harvest has in it are found by nothing else.
const SWEEP: u32 = 64;

/// The pages that stay writable: those that were written in two epochs close to each other, until their content rests.
///
/// Of a page that is not warm, a harvest tells that it was written; many are, and change nothing (page tables, in which the
/// processor notes accesses). Of a warm one only its content can tell.
///
/// It is told after each epoch which pages were harvested and which of them had changed ([`Self::judge`]), and says which
/// to leave writable at the next harvest ([`Self::pages`]). Whatever it says, no change is missed.
#[derive(Debug)]
pub struct WarmPages {
    pages: PageSet,
    /// The epoch of each page's last known write. It comes round after 2^32 epochs: then a page may be warm in vain.
    written: Vec<u32>,
    epoch: u32,
    patience: u32,
    limit: usize,
}

impl WarmPages {
    /// None yet of `memory`. A page is kept at most `patience` epochs after its last known write ([`Self::patience`]), and at most
    /// `limit` pages are kept: each is copied in every pause.
    pub fn new(memory: &Memory, patience: u32, limit: usize) -> Self {
        Self {
            pages: PageSet::new(memory),
            written: vec![0; memory.pages()],
            // No page was written lately.
            epoch: patience.saturating_add(1),
            patience,
            limit,
        }
    }

    /// For how many epochs a page is worth keeping in vain where the exit of a first write takes `first_write` and copying
    /// and comparing a page takes `copy`: at least 1, at most 64.
    pub fn patience(first_write: Duration, copy: Duration) -> u32 {
        let exit = first_write.saturating_mul(AFTERMATH);
        let epochs = exit.as_nanos() / copy.as_nanos().max(1);
        u32::try_from(epochs).unwrap_or(u32::MAX).clamp(1, 64)
    }

    /// The pages to leave writable.
    pub fn pages(&self) -> &PageSet {
        &self.pages
    }

    /// An epoch has ended: `harvested` are its pages, rising, and `changed` those of them whose content was not what it
    /// had been before, rising too.
    pub fn judge(&mut self, harvested: &[u32], changed: &[u32]) {
        self.epoch = self.epoch.wrapping_add(1);
        let mut changed = changed.iter().copied().peekable();
        for &page in harvested {
            let moved = changed.next_if_eq(&page).is_some();
            let page = page as usize;
            let Some(&last) = self.written.get(page) else {
                continue;
            };
            let rested = self.epoch.wrapping_sub(last) > self.patience;
            if moved || !self.pages.contains(page) {
                self.written[page] = self.epoch;
                if !rested && self.pages.count() < self.limit {
                    self.pages.insert(page);
                }
            } else if rested {
                self.pages.remove(page);
            }
        }
        if self.epoch.is_multiple_of(SWEEP) {
            self.sweep();
        }
    }

    /// Gives up all that has rested.
    fn sweep(&mut self) {
        let rested = |page: &usize| self.epoch.wrapping_sub(self.written[*page]) > self.patience;
        let rested: Vec<usize> = self.pages.iter().filter(rested).collect();
        for page in rested {
            self.pages.remove(page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn warm(patience: u32, limit: usize) -> WarmPages {
        WarmPages::new(&Memory::new(128 * MIB).unwrap(), patience, limit)
    }

    fn pages(warm: &WarmPages) -> Vec<usize> {
        warm.pages().iter().collect()
    }

    #[test]
    fn a_page_is_warm_from_its_second_change_until_it_rests() {
        let mut warm = warm(4, 100);
        warm.judge(&[7], &[7]);
        assert_eq!(pages(&warm), [0usize; 0], "it may never change again");
        warm.judge(&[7, 9], &[7, 9]);
        assert_eq!(pages(&warm), [7]);
        for _ in 0..4 {
            warm.judge(&[7], &[]);
            assert_eq!(pages(&warm), [7]);
        }
        warm.judge(&[7], &[]);
        assert_eq!(pages(&warm), [0usize; 0]);
    }

    /// A page table, for one. Given up, it costs two more exits before it is warm again.
    #[test]
    fn a_page_that_is_written_and_never_changes_is_warm_most_of_the_time() {
        let mut warm = warm(4, 100);
        let mut exits = 0;
        for _ in 0..70 {
            exits += u32::from(!warm.pages().contains(7));
            warm.judge(&[7], &[]);
        }
        assert_eq!(exits, 20, "two of seven");
    }

    #[test]
    fn a_page_that_changes_seldom_is_never_warm() {
        let mut warm = warm(4, 100);
        for _ in 0..20 {
            warm.judge(&[7], &[7]);
            for _ in 0..4 {
                warm.judge(&[], &[]);
            }
            assert_eq!(pages(&warm), [0usize; 0]);
        }
    }

    #[test]
    fn what_no_harvest_has_is_given_up_in_the_end() {
        let mut warm = warm(4, 100);
        warm.judge(&[7], &[7]);
        warm.judge(&[7], &[7]);
        for _ in 0..SWEEP {
            warm.judge(&[], &[]);
        }
        assert_eq!(pages(&warm), [0usize; 0]);
    }

    #[test]
    fn they_are_bounded_and_a_page_that_does_not_exist_is_none() {
        let mut warm = warm(4, 2);
        for _ in 0..3 {
            warm.judge(&[1, 2, 3, u32::MAX], &[1, 2, 3, u32::MAX]);
        }
        assert_eq!(pages(&warm), [1, 2]);
    }

    #[test]
    fn the_dearer_an_exit_the_longer_the_patience() {
        let us = Duration::from_micros;
        assert_eq!(WarmPages::patience(us(20), us(1)), 40);
        assert_eq!(WarmPages::patience(us(1), us(2)), 1);
        assert_eq!(WarmPages::patience(us(300), us(1)), 64);
        assert_eq!(WarmPages::patience(us(300), Duration::ZERO), 64);
    }
}
