//! Guest memory as this room sees it.

/// Bytes in a page, the unit of dirty tracking.
pub const PAGE: usize = 4096;

/// All zeroes.
pub(crate) static ZERO: [u8; PAGE] = [0; PAGE];

/// Guest memory as this room sees it: pages numbered from 0.
///
/// None of it may fail. A page that does not exist is a fault of the caller and may panic.
pub trait Pages {
    /// How many pages there are.
    fn count(&self) -> usize;
    /// Copies a page out. It may be torn where the guest runs meanwhile.
    fn read(&self, page: usize, into: &mut [u8; PAGE]);
    /// [`read`](Self::read) for a copy that nobody looks at soon.
    fn stage(&self, page: usize, into: &mut [u8; PAGE]) {
        self.read(page, into);
    }
    /// Writes a page.
    fn write(&self, page: usize, from: &[u8; PAGE]);
    /// Fills a page with zeroes.
    fn zero(&self, page: usize) {
        self.write(page, &ZERO);
    }
}

impl<P: Pages> Pages for &P {
    fn count(&self) -> usize {
        P::count(self)
    }

    fn read(&self, page: usize, into: &mut [u8; PAGE]) {
        P::read(self, page, into);
    }

    fn stage(&self, page: usize, into: &mut [u8; PAGE]) {
        P::stage(self, page, into);
    }

    fn write(&self, page: usize, from: &[u8; PAGE]) {
        P::write(self, page, from);
    }

    fn zero(&self, page: usize) {
        P::zero(self, page);
    }
}

impl Pages for romulus_machine::Memory {
    fn count(&self) -> usize {
        self.pages()
    }

    fn read(&self, page: usize, into: &mut [u8; PAGE]) {
        self.read_page(page, into);
    }

    fn stage(&self, page: usize, into: &mut [u8; PAGE]) {
        self.stage_page(page, into);
    }

    fn write(&self, page: usize, from: &[u8; PAGE]) {
        self.write_page(page, from);
    }

    fn zero(&self, page: usize) {
        self.zero_page(page);
    }
}

/// Whether a page is all zeroes. It stops at the first 64 bytes that are not, so that other pages cost little.
#[inline]
pub(crate) fn is_zero(page: &[u8; PAGE]) -> bool {
    page.as_chunks::<64>().0.iter().all(|chunk| {
        chunk
            .as_chunks::<8>()
            .0
            .iter()
            .fold(0, |any, word| any | u64::from_ne_bytes(*word))
            == 0
    })
}
