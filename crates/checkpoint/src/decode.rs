//! Reading the records of pages, which nobody vouches for.

use crate::ReplicaError;
use crate::bytes::Reader;
use crate::coder::{Form, SKIP_LONG};
use crate::pages::PAGE;
use crate::runs;

/// What is done to a page. Offsets are into the bytes that are kept beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// This page and those behind it become zeroes.
    Zero { pages: u32 },
    /// Stretches are put in place.
    Runs {
        at: usize,
        length: usize,
        over_zeroes: bool,
    },
    /// The page is replaced.
    Whole { at: usize },
    /// The page is taken XOR.
    Xor { at: usize },
}

/// One change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) page: u32,
    pub(crate) change: Change,
}

/// Changes, and the bytes that they need: bounded, checked, ready to be applied.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) bytes: Vec<u8>,
    pub(crate) limit: usize,
}

impl Kept {
    /// Appends `more` bytes and says where they are.
    pub(crate) fn push(&mut self, more: &[u8]) -> Result<usize, ReplicaError> {
        let at = self.room(more.len())?;
        self.bytes.extend_from_slice(more);
        Ok(at)
    }

    /// Unpacks LZ4 that has to give exactly `length` bytes, and says where they are.
    pub(crate) fn unpack(&mut self, packed: &[u8], length: usize) -> Result<usize, ReplicaError> {
        let at = self.room(length)?;
        self.bytes.resize(at + length, 0);
        match lz4_flex::block::decompress_into(packed, &mut self.bytes[at..]) {
            Ok(got) if got == length => Ok(at),
            _ => Err(ReplicaError::Malformed("packed bytes are damaged")),
        }
    }

    fn room(&self, length: usize) -> Result<usize, ReplicaError> {
        if length > self.limit.saturating_sub(self.bytes.len()) {
            return Err(ReplicaError::Memory(self.limit));
        }
        Ok(self.bytes.len())
    }

    /// The page at `at`.
    pub(crate) fn page(&self, at: usize) -> &[u8; PAGE] {
        self.bytes[at..]
            .first_chunk()
            .expect("a whole page was pushed")
    }
}

/// Reads all records of a section about `pages` pages.
pub(crate) fn records(
    reader: &mut Reader<'_>,
    pages: u32,
    kept: &mut Kept,
    steps: &mut Vec<Step>,
) -> Result<(), ReplicaError> {
    let mut next = 0u64;
    while !reader.rest().is_empty() {
        let tag = reader.byte()?;
        let form = Form::of(tag).ok_or(ReplicaError::Malformed("a page of unknown form"))?;
        let mut page = next + u64::from(tag >> 3);
        if tag >> 3 == SKIP_LONG {
            page = page.saturating_add(reader.number()?);
        }
        let mut last = page;
        if form == Form::Zero {
            last = page.saturating_add(reader.number()?);
        }
        if last >= u64::from(pages) {
            return Err(ReplicaError::Page {
                page: last,
                pages: pages.into(),
            });
        }
        next = last + 1;
        let [page, count] = [page, next - page]
            .map(|number| u32::try_from(number).expect("not more than there are pages"));
        let change = match form {
            Form::Zero => Change::Zero { pages: count },
            Form::Delta | Form::Sparse => {
                let stretches = runs::check(reader)?;
                Change::Runs {
                    at: kept.push(stretches)?,
                    length: stretches.len(),
                    over_zeroes: form == Form::Sparse,
                }
            }
            Form::Raw => Change::Whole {
                at: kept.push(reader.take(PAGE)?)?,
            },
            Form::Packed | Form::PackedXor => {
                let length = usize::try_from(reader.number()?).unwrap_or(usize::MAX);
                let at = kept.unpack(reader.take(length)?, PAGE)?;
                if form == Form::Packed {
                    Change::Whole { at }
                } else {
                    Change::Xor { at }
                }
            }
        };
        if steps.len() >= kept.limit / size_of::<Step>() {
            return Err(ReplicaError::Memory(kept.limit));
        }
        steps.push(Step { page, change });
    }
    Ok(())
}

/// Changes one page. `Zero` is the caller's, because it may be about many.
pub(crate) fn apply(change: Change, kept: &Kept, page: &mut [u8; PAGE]) {
    match change {
        Change::Zero { .. } => page.fill(0),
        Change::Runs {
            at,
            length,
            over_zeroes,
        } => {
            if over_zeroes {
                page.fill(0);
            }
            runs::apply(&kept.bytes[at..at + length], page);
        }
        Change::Whole { at } => *page = *kept.page(at),
        Change::Xor { at } => {
            for (to, with) in page.iter_mut().zip(kept.page(at)) {
                *to ^= with;
            }
        }
    }
}
