//! The last sent version of pages, as far as there is room for it.

use crate::pages::PAGE;

/// Slots in one piece of memory: 1 MiB.
const CHUNK: usize = 256;
/// The page was not sent, or its last version had to give way.
const NONE: u32 = u32::MAX;
/// The last version was all zeroes. It needs no slot.
const CLEARED: u32 = u32::MAX - 1;

/// What is known of a page's last sent version.
#[derive(Debug)]
pub(crate) enum Last<'a> {
    /// Nothing.
    Unknown,
    /// It was all zeroes.
    Zero,
    /// It was this. Whatever is sent next has to be written here.
    Page(&'a mut [u8; PAGE]),
}

/// The last sent version of as many pages as a limit allows.
///
/// When it is full a page that was sent only once since the hand came by gives way (the clock, or second-chance, rule): a
/// sweep over much memory does not drive out the pages that change in every epoch.
#[derive(Debug)]
pub(crate) struct Shadow {
    /// For each page its slot, [`NONE`] or [`CLEARED`].
    slots: Vec<u32>,
    /// For each slot its page and whether it was used since the hand came by.
    owners: Vec<(u32, bool)>,
    chunks: Vec<Box<[[u8; PAGE]]>>,
    free: Vec<u32>,
    limit: usize,
    hand: usize,
}

impl Shadow {
    /// A shadow of `pages` pages that keeps at most `limit` of them.
    pub(crate) fn new(pages: usize, limit: usize) -> Self {
        Self {
            slots: vec![NONE; pages],
            owners: Vec::new(),
            chunks: Vec::new(),
            free: Vec::new(),
            limit: limit.min(pages).min(CLEARED as usize),
            hand: 0,
        }
    }

    /// Forgets everything.
    pub(crate) fn forget(&mut self) {
        self.slots.fill(NONE);
        self.owners.clear();
        self.free.clear();
        self.hand = 0;
    }

    /// How many versions are kept.
    #[cfg(test)]
    fn kept(&self) -> usize {
        self.owners.len() - self.free.len()
    }

    /// The last sent version of `page`.
    pub(crate) fn last(&mut self, page: u32) -> Last<'_> {
        match self.slots[page as usize] {
            NONE => Last::Unknown,
            CLEARED => Last::Zero,
            slot => {
                let slot = slot as usize;
                self.owners[slot].1 = true;
                Last::Page(&mut self.chunks[slot / CHUNK][slot % CHUNK])
            }
        }
    }

    /// Notes that `page` was sent as zeroes.
    pub(crate) fn cleared(&mut self, page: u32) {
        let before = std::mem::replace(&mut self.slots[page as usize], CLEARED);
        if before < CLEARED {
            self.free.push(before);
        }
    }

    /// Keeps `sent` as the last version of `page`, which has no slot. Says whether another page had to give way.
    pub(crate) fn keep(&mut self, page: u32, sent: &[u8; PAGE], evict: bool) -> bool {
        debug_assert!(self.slots[page as usize] >= CLEARED);
        self.slots[page as usize] = NONE;
        let (slot, evicted) = if let Some(slot) = self.free.pop() {
            (slot as usize, false)
        } else if self.owners.len() < self.limit {
            let slot = self.owners.len();
            if slot / CHUNK == self.chunks.len() {
                let pages = CHUNK.min(self.limit - slot);
                self.chunks.push(vec![[0; PAGE]; pages].into_boxed_slice());
            }
            self.owners.push((page, false));
            (slot, false)
        } else if evict && self.limit > 0 {
            let slot = self.victim();
            self.slots[self.owners[slot].0 as usize] = NONE;
            (slot, true)
        } else {
            return false;
        };
        self.chunks[slot / CHUNK][slot % CHUNK] = *sent;
        self.owners[slot] = (page, false);
        self.slots[page as usize] = u32::try_from(slot).expect("the limit is lower");
        evicted
    }

    /// The slot whose page gives way. All slots are in use.
    fn victim(&mut self) -> usize {
        loop {
            let slot = self.hand;
            self.hand = (self.hand + 1) % self.owners.len();
            let used = &mut self.owners[slot].1;
            if !std::mem::take(used) {
                return slot;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(shadow: &mut Shadow, page: u32) -> Option<u8> {
        match shadow.last(page) {
            Last::Unknown => None,
            Last::Zero => Some(0),
            Last::Page(bytes) => Some(bytes[0]),
        }
    }

    #[test]
    fn it_is_bounded_and_busy_pages_stay() {
        let mut shadow = Shadow::new(1000, 10);
        for page in 0..10 {
            assert!(!shadow.keep(page, &[1; PAGE], true));
        }
        for round in 0..20u32 {
            for busy in 0..5 {
                assert_eq!(known(&mut shadow, busy), Some(1), "round {round}");
            }
            for page in 0..5 {
                assert!(shadow.keep(100 + round * 5 + page, &[2; PAGE], true));
            }
            assert_eq!(shadow.kept(), 10);
        }
        assert_eq!(shadow.chunks.len(), 1);
        assert_eq!(shadow.chunks[0].len(), 10, "no more memory than the limit");
    }

    #[test]
    fn without_eviction_the_first_stay() {
        let mut shadow = Shadow::new(10, 2);
        for page in 0..4 {
            assert!(!shadow.keep(page, &[9; PAGE], false));
        }
        let kept: Vec<_> = (0..5).map(|page| known(&mut shadow, page)).collect();
        assert_eq!(kept, [Some(9), Some(9), None, None, None]);
    }

    #[test]
    fn zeroes_need_no_room() {
        let mut shadow = Shadow::new(10, 1);
        shadow.keep(0, &[9; PAGE], true);
        shadow.cleared(0);
        shadow.cleared(1);
        assert_eq!(shadow.kept(), 0);
        assert!(!shadow.keep(2, &[8; PAGE], true), "the slot is free again");
        assert_eq!(known(&mut shadow, 0), Some(0));
        assert_eq!(known(&mut shadow, 2), Some(8));
        let mut none = Shadow::new(10, 0);
        assert!(!none.keep(0, &[9; PAGE], true));
        assert_eq!(known(&mut none, 0), None);
    }
}
