//! A page as the few stretches in which it differs from an older version.
//!
//! ```text
//!   gap + 1, length, bytes …  |  gap + 1, length, bytes …  |  0
//! ```
//!
//! `gap` counts the equal bytes since the last stretch; the bytes are the new ones, so that the older version need not be
//! read to put them in place.

use crate::bytes::{Malformed, Reader, put_number, size};
use crate::pages::PAGE;

/// How a page differs from an older version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Difference {
    /// Not at all; nothing was written.
    Same,
    /// As was written.
    Written,
    /// By more than the limit; what was written is of no use.
    Large,
}

const WORD: usize = 8;

/// Appends the stretches in which `new` differs from `old` to `out`, unless they need more than `limit` bytes.
pub(crate) fn write(
    old: &[u8; PAGE],
    new: &[u8; PAGE],
    limit: usize,
    out: &mut Vec<u8>,
) -> Difference {
    let begin = out.len();
    let (old_words, _) = old.as_chunks::<WORD>();
    let (new_words, _) = new.as_chunks::<WORD>();
    let xor =
        |word: usize| u64::from_le_bytes(old_words[word]) ^ u64::from_le_bytes(new_words[word]);
    // The end of the last stretch, in bytes.
    let mut end = 0;
    let mut word = 0;
    while word < old_words.len() {
        // Word by word and without a call. Wider comparisons are no faster for a page that comes from memory, and where
        // the processor is emulated take three times as long.
        let pairs = old_words[word..].iter().zip(&new_words[word..]);
        word += pairs.take_while(|(old, new)| old == new).count();
        if word == old_words.len() {
            break;
        }
        let first = xor(word);
        let start = word * WORD + first.trailing_zeros() as usize / 8;
        let mut last = first;
        word += 1;
        while word < old_words.len() {
            let next = xor(word);
            if next == 0 {
                break;
            }
            last = next;
            word += 1;
        }
        let stop = word * WORD - last.leading_zeros() as usize / 8;
        put_number(out, (start - end + 1) as u64);
        put_number(out, (stop - start) as u64);
        if out.len() - begin + (stop - start) >= limit {
            return Difference::Large;
        }
        out.extend_from_slice(&new[start..stop]);
        end = stop;
    }
    if out.len() == begin {
        return Difference::Same;
    }
    out.push(0);
    Difference::Written
}

/// The next stretch: where it begins in the page, and its bytes. None after the last.
fn next<'a>(
    reader: &mut Reader<'a>,
    end: &mut usize,
) -> Result<Option<(usize, &'a [u8])>, Malformed> {
    let gap = reader.number()?;
    if gap == 0 {
        return Ok(None);
    }
    let length = reader.number()?;
    let left = (PAGE - *end) as u64;
    if length == 0 || gap - 1 > left || length > left - (gap - 1) {
        return Err(Malformed("a stretch leaves its page"));
    }
    // Both are less than a page.
    let start = *end + size(gap - 1);
    let length = size(length);
    *end = start + length;
    Ok(Some((start, reader.take(length)?)))
}

/// Reads past the stretches of one page and checks them.
pub(crate) fn check<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], Malformed> {
    let before = reader.rest();
    let mut end = 0;
    while next(reader, &mut end)?.is_some() {}
    Ok(&before[..before.len() - reader.rest().len()])
}

/// Puts stretches that were [checked](check) in place.
pub(crate) fn apply(stretches: &[u8], page: &mut [u8; PAGE]) {
    let mut reader = Reader::new(stretches);
    let mut end = 0;
    while let Ok(Some((start, bytes))) = next(&mut reader, &mut end) {
        page[start..start + bytes.len()].copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_difference_comes_back(
            old in vec(0u8..3, PAGE),
            changes in vec((0..PAGE, vec(any::<u8>(), 1..40)), 0..30),
        ) {
            let old: [u8; PAGE] = old.try_into().unwrap();
            let mut new = old;
            for (at, bytes) in changes {
                let end = (at + bytes.len()).min(PAGE);
                new[at..end].copy_from_slice(&bytes[..end - at]);
            }
            let mut out = vec![7];
            match write(&old, &new, 3 * PAGE, &mut out) {
                Difference::Same => prop_assert!(old == new),
                Difference::Large => prop_assert!(false, "the limit is high"),
                Difference::Written => {
                    let mut reader = Reader::new(&out[1..]);
                    let stretches = check(&mut reader).unwrap();
                    prop_assert!(reader.rest().is_empty());
                    let mut page = old;
                    apply(stretches, &mut page);
                    prop_assert!(page == new);
                    prop_assert!(check(&mut Reader::new(&out[1..out.len() - 1])).is_err());
                }
            }
        }

        #[test]
        fn noise_never_panics(bytes in vec(any::<u8>(), 0..200)) {
            let _ = check(&mut Reader::new(&bytes));
            apply(&bytes, &mut [0; PAGE]);
        }
    }

    #[test]
    fn a_stretch_beyond_the_page_is_refused() {
        for (gap, length) in [(0, 4097), (4096, 1), (u64::MAX - 1, 1), (1, u64::MAX)] {
            let mut bytes = Vec::new();
            put_number(&mut bytes, gap + 1);
            put_number(&mut bytes, length);
            bytes.extend_from_slice(&[1; 2 * PAGE]);
            assert!(check(&mut Reader::new(&bytes)).is_err(), "{gap} {length}");
        }
    }

    #[test]
    fn a_changed_word_costs_its_bytes_and_little_more() {
        let mut new = [0; PAGE];
        new[2000..2008].copy_from_slice(&[1; 8]);
        let mut out = Vec::new();
        assert_eq!(write(&[0; PAGE], &new, 512, &mut out), Difference::Written);
        assert_eq!(out.len(), 2 + 1 + 8 + 1);
    }
}
