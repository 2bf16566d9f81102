//! The other side of an audit.

use romulus_machine::{Memory, PageSet, memory::PAGE};

/// A copy of memory that only ever gets what harvests say.
pub(crate) struct Replica {
    bytes: Vec<u8>,
}

impl Replica {
    /// A whole copy.
    pub(crate) fn of(memory: &Memory) -> Self {
        let mut replica = Self {
            bytes: vec![0; memory.pages() * PAGE],
        };
        for page in 0..memory.pages() {
            replica.take(memory, page);
        }
        replica
    }

    fn page(&mut self, page: usize) -> &mut [u8; PAGE] {
        (&mut self.bytes[page * PAGE..][..PAGE]).try_into().unwrap()
    }

    /// Copies one page, unless it is the same already (so that untouched pages stay untouched).
    pub(crate) fn take(&mut self, memory: &Memory, page: usize) {
        if !memory.page_is(page, self.page(page)) {
            memory.read_page(page, self.page(page));
        }
    }

    /// Copies what a harvest found, then compares everything: the pages that differ were missed.
    pub(crate) fn epoch(&mut self, memory: &Memory, dirty: &PageSet) -> Vec<usize> {
        for page in dirty.iter() {
            self.take(memory, page);
        }
        (0..memory.pages())
            .filter(|page| !memory.page_is(*page, self.page(*page)))
            .collect()
    }
}
