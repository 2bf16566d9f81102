//! Input that the replica has not seen.

use std::{collections::VecDeque, time::Duration};

/// What is older is dropped: whoever sent it has given up or has sent it again.
const OLD: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Frame {
    number: u64,
    card: usize,
    arrived: u64,
    bytes: Vec<u8>,
}

/// Frames for the guest, at the backup: those that the primary has read and that the newest commit does not contain. Times
/// are nanoseconds since any origin.
#[derive(Debug)]
pub struct KeptInput {
    limit: usize,
    bytes: usize,
    /// The highest number that came.
    newest: Option<u64>,
    frames: VecDeque<Frame>,
}

impl KeptInput {
    /// Keeps `limit` bytes at most: what is oldest gives way first.
    pub fn new(limit: usize) -> KeptInput {
        KeptInput {
            limit,
            bytes: 0,
            newest: None,
            frames: VecDeque::new(),
        }
    }

    /// The primary has read this frame, with its virtio-net header, from the tap of `card`. Numbers rise, and some may be
    /// missing; one that does not rise is not taken.
    pub fn arrived(&mut self, number: u64, card: usize, bytes: Vec<u8>, now: u64) {
        if self.newest.is_some_and(|newest| number <= newest) {
            return;
        }
        self.newest = Some(number);
        self.bytes += bytes.len();
        self.frames.push_back(Frame {
            number,
            card,
            arrived: now,
            bytes,
        });
        self.forget_while(|kept, frame| kept.bytes > kept.limit || is_old(frame, now));
    }

    /// An epoch was committed whose guest has taken every frame before number `rx_next`.
    pub fn committed(&mut self, rx_next: u64) {
        self.forget_while(|_, frame| frame.number < rx_next);
    }

    /// Takes out what the guest has not seen, in order, each frame with its card.
    pub fn take(&mut self, now: u64) -> Vec<(usize, Vec<u8>)> {
        let frames = std::mem::take(&mut self.frames);
        self.bytes = 0;
        let young = frames.into_iter().filter(|frame| !is_old(frame, now));
        young.map(|frame| (frame.card, frame.bytes)).collect()
    }

    /// What [`Self::take`] would take out.
    pub fn look(&self, now: u64) -> Vec<(usize, Vec<u8>)> {
        let young = self.frames.iter().filter(|frame| !is_old(frame, now));
        young
            .map(|frame| (frame.card, frame.bytes.clone()))
            .collect()
    }

    /// Forgets everything, and begins to count anew.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.bytes = 0;
        self.newest = None;
    }

    fn forget_while(&mut self, forget: impl Fn(&KeptInput, &Frame) -> bool) {
        while self.frames.front().is_some_and(|frame| forget(self, frame)) {
            if let Some(frame) = self.frames.pop_front() {
                self.bytes -= frame.bytes.len();
            }
        }
    }
}

fn is_old(frame: &Frame, now: u64) -> bool {
    Duration::from_nanos(now.saturating_sub(frame.arrived)) > OLD
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATER: u64 = 2_000_000_001;

    fn arrive(kept: &mut KeptInput, number: u8, now: u64) {
        kept.arrived(number.into(), 0, vec![number; 60], now);
    }

    fn marks(kept: &mut KeptInput, now: u64) -> Vec<u8> {
        kept.take(now).iter().map(|(_, bytes)| bytes[0]).collect()
    }

    #[test]
    fn what_the_commit_does_not_contain_is_there_in_order() {
        let mut kept = KeptInput::new(1 << 20);
        for number in 0..6 {
            arrive(&mut kept, number, 0);
        }
        kept.committed(3);
        kept.committed(2);
        let seen = kept.look(0);
        assert_eq!(marks(&mut kept, 0), [3, 4, 5]);
        assert_eq!(
            seen.iter().map(|(_, bytes)| bytes[0]).collect::<Vec<_>>(),
            [3, 4, 5]
        );
        assert_eq!(marks(&mut kept, 0), [], "once");
        arrive(&mut kept, 7, 0);
        kept.committed(8);
        assert_eq!(marks(&mut kept, 0), []);
    }

    #[test]
    fn a_number_that_came_does_not_come_again() {
        let mut kept = KeptInput::new(1 << 20);
        for number in [2, 1, 2, 4, 3, 4] {
            arrive(&mut kept, number, 0);
        }
        assert_eq!(marks(&mut kept, 0), [2, 4]);
        kept.arrived(u64::MAX, 0, vec![9; 60], 0);
        kept.arrived(u64::MAX, 0, vec![9; 60], 0);
        assert_eq!(marks(&mut kept, 0), [9]);
        kept.clear();
        arrive(&mut kept, 1, 0);
        assert_eq!(
            marks(&mut kept, 0),
            [1],
            "another primary counts for itself"
        );
    }

    #[test]
    fn what_is_old_is_nobodys_use() {
        let mut kept = KeptInput::new(1 << 20);
        arrive(&mut kept, 1, 0);
        arrive(&mut kept, 2, LATER);
        assert_eq!(kept.frames.len(), 1, "it takes no memory");
        arrive(&mut kept, 3, LATER + 1);
        assert_eq!(marks(&mut kept, 2 * LATER - 1), [2, 3]);
        arrive(&mut kept, 4, 0);
        assert_eq!(marks(&mut kept, LATER), []);
    }

    #[test]
    fn it_is_bounded_and_the_oldest_gives_way() {
        let mut kept = KeptInput::new(150);
        for number in 0..5 {
            arrive(&mut kept, number, 0);
        }
        assert_eq!(marks(&mut kept, 0), [3, 4]);
    }
}
