//! How one page is sent: the cheapest form in bytes, as long as it is not dear in time.
//!
//! A record begins with a byte that holds its form (low 3 bits) and how many pages it skips (high 5 bits; 31 says that a
//! number to be added follows). Then comes the body of the form.

use crate::bytes::{NUMBER_MAX, put_number};
use crate::pages::{PAGE, ZERO, is_zero};
use crate::runs::{self, Difference};
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

/// How a page is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Form {
    /// A range of zero pages: their number less one.
    Zero = 0,
    /// Where it differs from the last sent version, see [`runs`].
    Delta = 1,
    /// Where it differs from zeroes.
    Sparse = 2,
    /// The page.
    Raw = 3,
    /// The page in LZ4's block format: length as a number, bytes.
    Packed = 4,
    /// The same, of the page XOR its last sent version.
    PackedXor = 5,
}

impl Form {
    pub(crate) fn of(tag: u8) -> Option<Self> {
        [
            Self::Zero,
            Self::Delta,
            Self::Sparse,
            Self::Raw,
            Self::Packed,
            Self::PackedXor,
        ]
        .into_iter()
        .find(|form| *form as u8 == tag & 7)
    }
}

/// From how many skipped pages on a number follows.
pub(crate) const SKIP_LONG: u8 = 31;

/// The most bytes of a record: a whole page, behind a tag and a number.
pub(crate) const RECORD_MAX: usize = 1 + NUMBER_MAX + PAGE + NUMBER_MAX;

/// A difference of up to this length is sent as it is, without a try of LZ4, which takes four times as long.
const DELTA_CHEAP: usize = PAGE / 4;
/// A difference of up to this length is put in place in less time than a page is copied in.
const PATCH: usize = 96;
/// A form has to save at least an eighth of a page; otherwise the page is sent as it is.
const WORTH: usize = PAGE / 8 * 7;

/// Begins a record.
pub(crate) fn tag(out: &mut Vec<u8>, form: Form, skip: u32) {
    match u8::try_from(skip) {
        Ok(short) if short < SKIP_LONG => out.push(form as u8 | short << 3),
        _ => {
            out.push(form as u8 | SKIP_LONG << 3);
            put_number(out, u64::from(skip) - u64::from(SKIP_LONG));
        }
    }
}

/// Tries LZ4 less and less often while it does not pay: data that cannot be packed takes it the longest.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Patience {
    failures: u32,
    skip: u32,
}

impl Patience {
    /// Failures in a row that are borne.
    const BORNE: u32 = 2;
    /// At least one in so many, as a power of two, is tried.
    const RAREST: u32 = 6;

    pub(crate) fn tries(&mut self) -> bool {
        let tries = self.skip == 0;
        self.skip = self.skip.saturating_sub(1);
        tries
    }

    pub(crate) fn paid(&mut self, paid: bool) {
        self.failures = if paid {
            0
        } else {
            (self.failures + 1).min(Self::BORNE + Self::RAREST)
        };
        if self.failures > Self::BORNE {
            self.skip = (1 << (self.failures - Self::BORNE)) - 1;
        }
    }
}

/// Packs with LZ4, again and again into the same memory.
pub(crate) struct Packer {
    table: CompressTable,
    packed: Vec<u8>,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Packer")
    }
}

impl Packer {
    /// For inputs of up to `longest` bytes.
    pub(crate) fn new(longest: usize) -> Self {
        Self {
            table: CompressTable::default(),
            packed: vec![0; get_maximum_output_size(longest)],
        }
    }

    /// `bytes` packed, if that makes them shorter than `worth`.
    pub(crate) fn pack(&mut self, bytes: &[u8], worth: usize) -> Option<&[u8]> {
        let length = compress_into_with_table(bytes, &mut self.packed, &mut self.table).ok()?;
        (length < worth).then(|| &self.packed[..length])
    }
}

/// Chooses the form of pages.
#[derive(Debug)]
pub(crate) struct Coder {
    body: Vec<u8>,
    packer: Packer,
    xor: Box<[u8; PAGE]>,
    whole: Patience,
    changed: Patience,
}

impl Coder {
    pub(crate) fn new() -> Self {
        Self {
            body: Vec::with_capacity(2 * PAGE),
            packer: Packer::new(PAGE),
            xor: Box::new(ZERO),
            whole: Patience::default(),
            changed: Patience::default(),
        }
    }

    /// The body of the form that was chosen last, for this page.
    pub(crate) fn body<'a>(&'a self, form: Form, page: &'a [u8; PAGE]) -> &'a [u8] {
        match form {
            Form::Raw => page,
            _ => &self.body,
        }
    }

    /// The form of a page whose last version is not known, or was zeroes.
    pub(crate) fn fresh(&mut self, page: &[u8; PAGE]) -> Form {
        self.body.clear();
        if is_zero(page) {
            return Form::Zero;
        }
        if runs::write(&ZERO, page, DELTA_CHEAP, &mut self.body) == Difference::Written {
            return Form::Sparse;
        }
        self.whole(page)
    }

    /// The form of a page whose last version was `last`; none if it is the same.
    pub(crate) fn again(&mut self, last: &[u8; PAGE], page: &[u8; PAGE]) -> Option<Form> {
        self.body.clear();
        match runs::write(last, page, DELTA_CHEAP, &mut self.body) {
            Difference::Same => return None,
            // Zeroes are shorter than any difference, and free the page's room in the shadow.
            Difference::Written if is_zero(page) => return Some(Form::Zero),
            Difference::Written => return Some(Form::Delta),
            Difference::Large => {}
        }
        self.body.clear();
        if is_zero(page) {
            return Some(Form::Zero);
        }
        // A page that became another one packs better alone.
        if take_xor(last, page, &mut self.xor) < PAGE / 2 {
            return Some(self.whole(page));
        }
        if self.changed.tries() {
            let packed = self.packer.pack(self.xor.as_slice(), WORTH);
            self.changed.paid(packed.is_some());
            if let Some(packed) = packed {
                put_number(&mut self.body, packed.len() as u64);
                self.body.extend_from_slice(packed);
                return Some(Form::PackedXor);
            }
        }
        if runs::write(last, page, WORTH, &mut self.body) == Difference::Written {
            return Some(Form::Delta);
        }
        Some(Form::Raw)
    }

    /// Makes `last`, the last sent version, that of `page`, for which this form was chosen last.
    pub(crate) fn follow(&self, form: Option<Form>, last: &mut [u8; PAGE], page: &[u8; PAGE]) {
        match form {
            None => {}
            Some(Form::Delta) if self.body.len() <= PATCH => runs::apply(&self.body, last),
            Some(_) => *last = *page,
        }
    }

    fn whole(&mut self, page: &[u8; PAGE]) -> Form {
        self.body.clear();
        if self.whole.tries() {
            let packed = self.packer.pack(page, WORTH);
            self.whole.paid(packed.is_some());
            if let Some(packed) = packed {
                put_number(&mut self.body, packed.len() as u64);
                self.body.extend_from_slice(packed);
                return Form::Packed;
            }
        }
        Form::Raw
    }
}

/// Takes the XOR of two pages and counts the bytes that are the same.
fn take_xor(last: &[u8; PAGE], page: &[u8; PAGE], xor: &mut [u8; PAGE]) -> usize {
    // A counter for each byte of a line: no more than 64 lines, so that a byte is enough and the processor counts all at
    // once.
    const LINE: usize = 64;
    let mut same = [0u8; LINE];
    let lines = last
        .as_chunks::<LINE>()
        .0
        .iter()
        .zip(page.as_chunks::<LINE>().0);
    for ((old, new), to) in lines.zip(xor.as_chunks_mut::<LINE>().0) {
        for at in 0..LINE {
            to[at] = old[at] ^ new[at];
            same[at] += u8::from(to[at] == 0);
        }
    }
    same.into_iter().map(usize::from).sum()
}
