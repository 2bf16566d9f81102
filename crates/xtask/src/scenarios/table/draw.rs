//! Random moments that a seed repeats.

use std::{ops::Range, time::Duration};

/// A source of random numbers (splitmix64): the same seed gives the same numbers.
#[derive(Debug, Clone)]
pub(crate) struct Draw(u64);

impl Draw {
    /// The source of one run: each row in each round has its own, whichever ran before it.
    pub(crate) fn new(seed: u64, row: &str, round: u32) -> Self {
        let start = row
            .bytes()
            .fold(seed, |sum, byte| Self(sum ^ u64::from(byte)).next_number());
        Self(start ^ u64::from(round))
    }

    /// The next number.
    pub(crate) fn next_number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A time within a range of milliseconds.
    pub(crate) fn milliseconds(&mut self, range: Range<u64>) -> Duration {
        let width = range.end.saturating_sub(range.start).max(1);
        Duration::from_millis(range.start + self.next_number() % width)
    }
}

#[cfg(test)]
mod tests {
    use super::Draw;

    #[test]
    fn a_seed_repeats_a_run_and_rows_and_rounds_differ() {
        let first = |seed, row, round| Draw::new(seed, row, round).next_number();
        assert_eq!(first(7, "cut", 1), first(7, "cut", 1));
        for other in [first(8, "cut", 1), first(7, "hang", 1), first(7, "cut", 2)] {
            assert_ne!(first(7, "cut", 1), other);
        }
    }

    #[test]
    fn times_are_in_their_range() {
        let mut draw = Draw::new(1, "x", 1);
        let times: Vec<u128> = (0..1000)
            .map(|_| draw.milliseconds(5..8).as_millis())
            .collect();
        assert!(times.iter().all(|time| (5..8).contains(time)));
        assert!((5..8).all(|time| times.contains(&time)));
    }
}
