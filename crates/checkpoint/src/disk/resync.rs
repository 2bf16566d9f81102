//! Which blocks of a disk differ from another copy of it: so that a full copy sends only those.
//!
//! The backup reads its image and tells the [`digests`] of its blocks; the primary reads its own and finds what is
//! [`differing`]. What differs is read again and given to [`DiskEpoch::fill`](super::DiskEpoch::fill).

use super::Image;
use crate::bytes::size;
use std::io;
use std::ops::Range;

/// Bytes in a block.
pub const BLOCK: usize = 64 << 10;

/// The digest of a block: 96 bits, of which 64 depend on a seed.
///
/// It tells apart what accidents make. The seed is new in every session, so that a guest cannot prepare two blocks of
/// one digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockDigest {
    mixed: u64,
    checksum: u32,
}

impl BlockDigest {
    /// The length of [`bytes`](Self::bytes).
    pub const LENGTH: usize = 12;

    /// The digest of one block.
    pub fn of(seed: u64, block: &[u8]) -> Self {
        Self {
            mixed: mix(seed, block),
            checksum: crc32c::crc32c(block),
        }
    }

    /// As it is sent.
    pub fn bytes(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..8].copy_from_slice(&self.mixed.to_le_bytes());
        bytes[8..].copy_from_slice(&self.checksum.to_le_bytes());
        bytes
    }

    /// What [`bytes`](Self::bytes) made.
    pub fn from_bytes(bytes: [u8; Self::LENGTH]) -> Self {
        let mixed = bytes.first_chunk().expect("8 of 12 bytes");
        let checksum = bytes.last_chunk().expect("4 of 12 bytes");
        Self {
            mixed: u64::from_le_bytes(*mixed),
            checksum: u32::from_le_bytes(*checksum),
        }
    }
}

/// Odd numbers with about as many ones as zeroes (fractions of the golden ratio and of square roots).
const ODD: [u64; 4] = [
    0x9e37_79b9_7f4a_7c15,
    0xb504_f333_f9de_6485,
    0xbb67_ae85_84ca_a73b,
    0x8d12_7f6a_09e6_67f3,
];

/// Four lanes of multiply and fold (the high half of a 128-bit product into the low one), joined at the end.
fn mix(seed: u64, block: &[u8]) -> u64 {
    let fold = |a: u64, b: u64| {
        let product = (u128::from(a) * u128::from(b)).to_le_bytes();
        let [low, high] = [0, 8]
            .map(|at| u64::from_le_bytes(*product[at..].first_chunk().expect("8 of 16 bytes")));
        low ^ high
    };
    let mut lanes = ODD.map(|odd| seed.wrapping_mul(odd) ^ odd);
    let mut step = |words: &[u8; 32]| {
        for ((lane, word), odd) in lanes.iter_mut().zip(words.as_chunks::<8>().0).zip(ODD) {
            let word = u64::from_le_bytes(*word);
            // Adding the word keeps one that makes the product vanish from being lost.
            *lane = fold(*lane ^ word, odd ^ seed.rotate_left(32)).wrapping_add(word);
            *lane = lane.rotate_left(29);
        }
    };
    let (chunks, rest) = block.as_chunks::<32>();
    for chunk in chunks {
        step(chunk);
    }
    if !rest.is_empty() {
        let mut last = [0; 32];
        last[..rest.len()].copy_from_slice(rest);
        step(&last);
    }
    lanes.into_iter().fold(block.len() as u64, |sum, lane| {
        fold(sum ^ lane, ODD[0]) ^ lane
    })
}

/// How many blocks a disk of `length` bytes has. The last may be shorter.
pub fn blocks(length: u64) -> u64 {
    length.div_ceil(BLOCK as u64)
}

/// Reads the blocks in `range` (their numbers) of an image, and gives their digests. Blocks behind the image's end are left out;
/// the first error is the last item.
pub fn digests<I: Image>(
    image: &I,
    seed: u64,
    range: Range<u64>,
) -> impl Iterator<Item = io::Result<BlockDigest>> {
    let mut buffer = vec![0; BLOCK];
    let mut length = None;
    let mut failed = false;
    range.map_while(move |number| {
        if failed {
            return None;
        }
        let mut read = || {
            let end = match length {
                Some(end) => end,
                None => *length.insert(image.length()?),
            };
            let start = number.saturating_mul(BLOCK as u64);
            if start >= end {
                return Ok(None);
            }
            let block = &mut buffer[..size((end - start).min(BLOCK as u64))];
            image.read_at(start, block)?;
            Ok(Some(BlockDigest::of(seed, block)))
        };
        let result = read().transpose();
        failed = matches!(result, Some(Err(_)));
        result
    })
}

/// The ranges in bytes, adjoining blocks joined, in which `ours` differ from `theirs`: digests of the blocks from number
/// `first` on, of a disk of `length` bytes. Blocks that only we have differ.
///
/// An error of ours is passed on and ends it.
pub fn differing(
    first: u64,
    length: u64,
    ours: impl Iterator<Item = io::Result<BlockDigest>>,
    theirs: impl Iterator<Item = BlockDigest>,
) -> impl Iterator<Item = io::Result<Range<u64>>> {
    // Ours decide how far it goes: after the last possible number there is none to count on to.
    let mut numbered = ours.zip(first..);
    let mut theirs = theirs;
    let mut after = None;
    std::iter::from_fn(move || {
        if let Some(error) = after.take() {
            return Some(Err(error));
        }
        let mut range: Option<Range<u64>> = None;
        for (ours, number) in numbered.by_ref() {
            let ours = match ours {
                Ok(ours) => ours,
                Err(error) if range.is_none() => return Some(Err(error)),
                Err(error) => {
                    after = Some(error);
                    break;
                }
            };
            if theirs.next() == Some(ours) {
                if range.is_some() {
                    break;
                }
                continue;
            }
            let start = number * BLOCK as u64;
            let end = (start + BLOCK as u64).min(length);
            range.get_or_insert(start..end).end = end;
        }
        range.map(Ok)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs::File;

    fn image(blocks: &[u8], tail: usize) -> File {
        let file = tempfile::tempfile().unwrap();
        for (number, fill) in (0u64..).zip(blocks) {
            file.write_at(number * BLOCK as u64, &vec![*fill; BLOCK])
                .unwrap();
        }
        file.write_at(blocks.len() as u64 * BLOCK as u64, &vec![9; tail])
            .unwrap();
        file
    }

    fn changed(ours: &File, theirs: &File) -> Vec<Range<u64>> {
        let length = ours.length().unwrap();
        let theirs: Vec<_> = digests(theirs, 7, 0..u64::MAX)
            .map(Result::unwrap)
            .map(|digest| BlockDigest::from_bytes(digest.bytes()))
            .collect();
        differing(0, length, digests(ours, 7, 0..u64::MAX), theirs.into_iter())
            .map(Result::unwrap)
            .collect()
    }

    #[test]
    fn only_what_differs_is_found_and_neighbours_are_joined() {
        const B: u64 = BLOCK as u64;
        let ours = image(&[1, 2, 3, 4, 5], 512);
        assert!(changed(&ours, &image(&[1, 2, 3, 4, 5], 512)).is_empty());
        let theirs = image(&[0, 2, 0, 0, 5], 1024);
        assert_eq!(
            changed(&ours, &theirs),
            [0..B, 2 * B..4 * B, 5 * B..5 * B + 512]
        );
        let shorter = image(&[1, 2], 0);
        assert_eq!(changed(&ours, &shorter), vec![2 * B..5 * B + 512; 1]);
        assert_eq!(blocks(ours.length().unwrap()), 6);
    }

    #[test]
    fn an_error_comes_after_what_was_found() {
        let digest = BlockDigest::of(0, &[1]);
        let ours = [Ok(digest), Err(io::Error::other("disk"))];
        let mut found = differing(0, 1 << 20, ours.into_iter(), std::iter::empty());
        assert_eq!(found.next().unwrap().unwrap(), 0..BLOCK as u64);
        assert!(found.next().unwrap().is_err());
        assert!(found.next().is_none());
    }

    #[test]
    fn what_is_told_of_blocks_behind_the_end_differs_in_nothing() {
        let digest = BlockDigest::of(0, &[1]);
        for first in [6, u64::MAX - 1, u64::MAX] {
            let found = differing(first, 1 << 20, std::iter::empty(), [digest; 3].into_iter());
            assert_eq!(found.count(), 0);
        }
    }

    proptest! {
        #[test]
        fn any_change_of_a_block_changes_both_halves(
            seed: u64,
            length in 1usize..600,
            at: prop::sample::Index,
            bit in 0u8..8,
        ) {
            let mut block = vec![0; length];
            let before = BlockDigest::of(seed, &block);
            block[at.index(length)] ^= 1 << bit;
            let after = BlockDigest::of(seed, &block);
            prop_assert!(before.mixed != after.mixed);
            prop_assert!(before.checksum != after.checksum);
            block.push(0);
            prop_assert!(after.mixed != BlockDigest::of(seed, &block).mixed);
        }
    }
}
