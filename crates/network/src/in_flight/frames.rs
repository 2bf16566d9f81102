//! Frames one after the other as bytes, as a checkpoint carries them.
//!
//! ```text
//!   0      2            6
//!   │ card │ length     │ the frame, its virtio-net header first … │ card │ …
//! ```
//!
//! Numbers are little-endian.

use crate::{HEADER, queue::FRAME_MAX};
use thiserror::Error;

/// Bytes in front of each frame.
const PREFIX: usize = 2 + 4;
/// The shortest frame: its virtio-net header and Ethernet's.
pub const FRAME_MIN: usize = HEADER + 14;

/// Bytes that are no frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// The last frame is not whole.
    #[error("the frames end in the middle of one")]
    Short,
    /// A frame has a length that no frame has.
    #[error("a frame of {0} bytes")]
    Length(usize),
    /// The machine has fewer cards.
    #[error("a frame of card {0}, which the machine does not have")]
    Card(usize),
}

/// Appends a frame that `card` sent.
pub fn put(out: &mut Vec<u8>, card: usize, frame: &[u8]) {
    // A machine has a few dozen cards, and a frame fits into a chunk of the queue.
    out.extend_from_slice(&u16::try_from(card).unwrap_or(u16::MAX).to_le_bytes());
    out.extend_from_slice(&u32::try_from(frame.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(frame);
}

/// Whether all of `bytes` is frames of a machine with so many cards.
///
/// # Errors
/// What is wrong with them.
pub fn check(mut bytes: &[u8], cards: usize) -> Result<(), Malformed> {
    while !bytes.is_empty() {
        let (card, _, rest) = first(bytes)?;
        if card >= cards {
            return Err(Malformed::Card(card));
        }
        bytes = rest;
    }
    Ok(())
}

/// The frames in `bytes`, each with the card that sent it. What is malformed ends them.
pub fn read(mut bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    std::iter::from_fn(move || {
        let (card, frame, rest) = first(bytes).ok()?;
        bytes = rest;
        Some((card, frame))
    })
}

fn first(bytes: &[u8]) -> Result<(usize, &[u8], &[u8]), Malformed> {
    let Some(([c0, c1, l0, l1, l2, l3], rest)) = bytes.split_first_chunk::<PREFIX>() else {
        return Err(Malformed::Short);
    };
    let card = u16::from_le_bytes([*c0, *c1]);
    let length = u32::from_le_bytes([*l0, *l1, *l2, *l3]) as usize;
    if !(FRAME_MIN..=FRAME_MAX).contains(&length) {
        return Err(Malformed::Length(length));
    }
    let (frame, rest) = rest.split_at_checked(length).ok_or(Malformed::Short)?;
    Ok((card.into(), frame, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    proptest! {
        #[test]
        fn frames_come_back(frames in vec((0usize..4, vec(any::<u8>(), FRAME_MIN..300)), 0..8)) {
            let mut bytes = Vec::new();
            for (card, frame) in &frames {
                put(&mut bytes, *card, frame);
            }
            prop_assert_eq!(check(&bytes, 4), Ok(()));
            let back: Vec<_> = read(&bytes).map(|(card, frame)| (card, frame.to_vec())).collect();
            prop_assert_eq!(&back, &frames);
            if !bytes.is_empty() {
                prop_assert!(check(&bytes[..bytes.len() - 1], 4).is_err());
                prop_assert_eq!(read(&bytes[..bytes.len() - 1]).count(), frames.len() - 1);
            }
        }

        #[test]
        fn no_bytes_are_too_bad(bytes in vec(any::<u8>(), 0..200)) {
            let well = check(&bytes, 2);
            let read: usize = read(&bytes).map(|(_, frame)| frame.len() + PREFIX).sum();
            prop_assert!(read <= bytes.len());
            prop_assert!(well.is_err() || read == bytes.len());
        }
    }

    #[test]
    fn what_no_card_could_have_sent_is_refused() {
        let frame = |card, length| {
            let mut bytes = Vec::new();
            put(&mut bytes, card, &vec![0; length]);
            bytes
        };
        assert_eq!(check(&frame(1, FRAME_MIN), 2), Ok(()));
        assert_eq!(check(&frame(2, FRAME_MIN), 2), Err(Malformed::Card(2)));
        let short = FRAME_MIN - 1;
        assert_eq!(check(&frame(0, short), 2), Err(Malformed::Length(short)));
        let long = FRAME_MAX + 1;
        assert_eq!(check(&frame(0, long), 2), Err(Malformed::Length(long)));
    }
}
