//! Output that was committed and may not have left.

use super::{frames, pure_ack};
use crate::HEADER;
use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

/// For so long after a backup has heard that output left, it keeps it nevertheless: a frame that is in the primary's card or
/// its switch when the power goes is lost there, and the primary cannot know.
const TAIL: Duration = Duration::from_millis(50);

#[derive(Debug)]
struct Epoch {
    number: u64,
    /// As [`frames`] has them.
    bytes: Vec<u8>,
    /// When it was heard that they have left.
    released: Option<u64>,
}

/// The output of committed epochs, at the backup. Times are nanoseconds since any origin.
#[derive(Debug)]
pub struct KeptOutput {
    limit: usize,
    bytes: usize,
    epochs: VecDeque<Epoch>,
}

impl KeptOutput {
    /// Keeps `limit` bytes at most: what is oldest gives way first.
    pub fn new(limit: usize) -> KeptOutput {
        KeptOutput {
            limit,
            bytes: 0,
            epochs: VecDeque::new(),
        }
    }

    /// An epoch was committed with this output; all output of epochs up to `released_through` has left the primary.
    pub fn committed(&mut self, epoch: u64, output: &[u8], released_through: u64, now: u64) {
        if !output.is_empty() {
            self.bytes += output.len();
            self.epochs.push_back(Epoch {
                number: epoch,
                bytes: output.to_vec(),
                released: None,
            });
        }
        for epoch in &mut self.epochs {
            if epoch.number <= released_through && epoch.released.is_none() {
                epoch.released = Some(now);
            }
        }
        while self.epochs.front().is_some_and(|epoch| {
            self.bytes > self.limit || epoch.released.is_some_and(|at| is_over(at, now))
        }) {
            if let Some(epoch) = self.epochs.pop_front() {
                self.bytes -= epoch.bytes.len();
            }
        }
    }

    /// Everything that may not have left, oldest first, each frame with its card. Of TCP acknowledgements that carry nothing
    /// else only the last of each connection is there: the same one three times would tell the other end that a segment was
    /// lost (RFC 5681, section 3.2).
    pub fn frames(&self, now: u64) -> Vec<(usize, &[u8])> {
        let all = || {
            let epochs = self.epochs.iter();
            epochs
                .filter(move |epoch| epoch.released.is_none_or(|at| !is_over(at, now)))
                .flat_map(|epoch| frames::read(&epoch.bytes))
        };
        let connection = |(card, frame): (usize, &[u8])| {
            let connection = frame.get(HEADER..).and_then(pure_ack::of)?;
            Some((card, connection))
        };
        let mut last = HashMap::new();
        for (number, frame) in all().enumerate() {
            if let Some(connection) = connection(frame) {
                last.insert(connection, number);
            }
        }
        all()
            .enumerate()
            .filter(|(number, frame)| {
                connection(*frame).is_none_or(|connection| last.get(&connection) == Some(number))
            })
            .map(|(_, frame)| frame)
            .collect()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.epochs.clear();
        self.bytes = 0;
    }
}

fn is_over(released: u64, now: u64) -> bool {
    Duration::from_nanos(now.saturating_sub(released)) > TAIL
}

#[cfg(test)]
mod tests {
    use super::{super::pure_ack::tests::segment, *};

    const LATER: u64 = 50_000_001;

    fn output(marks: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for mark in marks {
            frames::put(&mut bytes, 0, &[*mark; 60]);
        }
        bytes
    }

    fn marks(kept: &KeptOutput, now: u64) -> Vec<u8> {
        kept.frames(now).iter().map(|(_, frame)| frame[0]).collect()
    }

    #[test]
    fn what_may_not_have_left_is_sent_again_in_order() {
        let mut kept = KeptOutput::new(1 << 20);
        kept.committed(1, &output(&[1, 2]), 0, 0);
        kept.committed(2, &[], 0, 10);
        kept.committed(3, &output(&[3]), 0, 20);
        assert_eq!(marks(&kept, 30 * LATER), [1, 2, 3]);
    }

    #[test]
    fn what_has_left_is_kept_for_a_moment() {
        let mut kept = KeptOutput::new(1 << 20);
        kept.committed(1, &output(&[1]), 0, 0);
        kept.committed(2, &output(&[2]), 1, 1000);
        assert_eq!(marks(&kept, 1000), [1, 2]);
        assert_eq!(marks(&kept, 1000 + LATER), [2], "at a takeover");
        kept.committed(3, &output(&[3]), 1, 1000 + LATER);
        assert_eq!(kept.epochs.len(), 2, "and it takes no memory");
        assert_eq!(marks(&kept, 1000 + LATER), [2, 3]);
    }

    #[test]
    fn it_is_bounded_and_the_oldest_gives_way() {
        let one = output(&[1]).len();
        let mut kept = KeptOutput::new(3 * one);
        for epoch in 1..=9 {
            kept.committed(u64::from(epoch), &output(&[epoch]), 0, 0);
        }
        assert_eq!(marks(&kept, 0), [7, 8, 9]);
        kept.clear();
        assert_eq!(marks(&kept, 0), []);
        kept.committed(1, &output(&[1, 2, 3]), 0, 0);
        assert_eq!(marks(&kept, 0), [1, 2, 3], "nothing of the past counts");
    }

    #[test]
    fn of_pure_acknowledgements_the_last_of_each_connection_is_sent_again() {
        let mut kept = KeptOutput::new(1 << 20);
        let put = |out: &mut Vec<u8>, card, frame: Vec<u8>| {
            let mut whole = vec![0; HEADER];
            whole.extend_from_slice(&frame);
            frames::put(out, card, &whole);
        };
        let (here, there) = ([5060, 4000], [5060, 4001]);
        let mut first = Vec::new();
        put(&mut first, 0, segment(here, 1, 0));
        put(&mut first, 0, segment(here, 1, 10));
        put(&mut first, 0, segment(there, 5, 0));
        put(&mut first, 1, segment(here, 9, 0));
        let mut second = Vec::new();
        put(&mut second, 0, segment(here, 2, 0));
        put(&mut second, 0, segment(here, 2, 10));
        put(&mut second, 0, segment(here, 3, 0));
        kept.committed(1, &first, 0, 0);
        kept.committed(2, &second, 0, 0);
        let expected = [
            (0, segment(here, 1, 10)),
            (0, segment(there, 5, 0)),
            (1, segment(here, 9, 0)),
            (0, segment(here, 2, 10)),
            (0, segment(here, 3, 0)),
        ];
        let frames = kept.frames(0);
        let frames: Vec<_> = frames
            .iter()
            .map(|(c, f)| (*c, f[HEADER..].to_vec()))
            .collect();
        assert_eq!(frames, expected);
    }
}
