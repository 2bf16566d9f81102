//! Digests of another copy of a disk: which blocks are to be sent?
//!
//! The input is the number of the first block that the other side tells of, whether it tells the end, and for each of
//! its blocks how it differs from ours. What is found must be what a plain comparison finds.

use crate::{input::Input, memory::bounded};
use romulus_checkpoint::disk::{
    Image,
    resync::{BLOCK, BlockDigest, blocks, differing, digests},
};
use std::io;

/// Length of our disk: the last block is short.
const LENGTH: u64 = 5 * BLOCK as u64 + 700;

/// A disk whose every block holds its own number.
struct Numbered;

impl Image for Numbered {
    fn length(&self) -> io::Result<u64> {
        Ok(LENGTH)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        assert!(offset + into.len() as u64 <= LENGTH, "beyond the disk");
        into.fill(u8::try_from(offset / BLOCK as u64).expect("few blocks"));
        Ok(())
    }

    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        unreachable!("it is only compared")
    }

    fn zero(&self, _: u64, _: u64) -> io::Result<()> {
        unreachable!("it is only compared")
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

thread_local! {
    static OURS: Vec<BlockDigest> = digests(&Numbered, 7, 0..blocks(LENGTH))
        .map(|digest| digest.expect("memory"))
        .collect();
}

/// Compares our disk with what is told of another.
///
/// # Panics
/// A promise is broken.
pub fn body(bytes: &[u8]) {
    OURS.with(|ours| compare(ours, bytes));
}

fn compare(ours: &[BlockDigest], bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (first, last) = (input.long(), input.byte() != 0);
    let mut theirs = Vec::new();
    while !input.is_empty() {
        let how = input.byte();
        let number = first.saturating_add(theirs.len() as u64);
        let mut digest = match usize::try_from(number).ok().and_then(|at| ours.get(at)) {
            Some(ours) => ours.bytes(),
            None => [how; BlockDigest::LENGTH],
        };
        // Any one bit of the digest, or none.
        let flipped = usize::from(how >> 1) % (8 * BlockDigest::LENGTH);
        digest[flipped / 8] ^= (how & 1) << (flipped % 8);
        theirs.push(digest);
    }
    let all = blocks(LENGTH);
    let end = if last {
        all
    } else {
        first.saturating_add(theirs.len() as u64).min(all)
    };
    let told = theirs.iter().map(|bytes| BlockDigest::from_bytes(*bytes));
    let found: Vec<_> = bounded(2 * BLOCK, || {
        let ours = digests(&Numbered, 7, first..end);
        let found = differing(first, LENGTH, ours, told).map(|range| range.expect("memory"));
        found.collect()
    });
    let mut before = None;
    for range in &found {
        assert!(range.start < range.end && range.end <= LENGTH, "{range:?}");
        assert!(
            before.is_none_or(|before| before < range.start),
            "{found:?}"
        );
        before = Some(range.end);
    }
    for (number, ours) in (0..).zip(ours) {
        let at = number * BLOCK as u64;
        let sent = found.iter().any(|range| range.contains(&at));
        let mut looked = number >= first && number < end;
        if looked {
            let theirs = usize::try_from(number - first)
                .ok()
                .and_then(|at| theirs.get(at));
            looked = theirs != Some(&ours.bytes());
        }
        assert_eq!(sent, looked, "block {number} of {found:?}");
    }
}

/// The same, another, less, more, and from somewhere else.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let told = |first: u64, last: bool, how: &[u8]| {
        [&first.to_le_bytes()[..], &[u8::from(last)], how].concat()
    };
    [
        ("same", told(0, true, &[0; 6])),
        ("all", told(0, true, &[1; 6])),
        ("some", told(0, true, &[0, 3, 5, 0, 0, 191])),
        ("shorter", told(0, true, &[0, 0])),
        ("longer", told(0, true, &[0; 9])),
        ("batch", told(2, false, &[0, 1])),
        ("end", told(5, true, &[1])),
        ("nothing", told(0, true, &[])),
        ("beyond", told(6, true, &[0])),
        ("far", told(u64::MAX, true, &[0, 0])),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .into()
}
