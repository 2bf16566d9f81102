//! Random moments that a seed repeats.

use romulus_telephony::random::Random;
use std::{ops::Range, time::Duration};

/// A source of random numbers: the same seed gives the same numbers.
#[derive(Debug, Clone)]
pub(crate) struct Draw(Random);

impl Draw {
    /// The source of one run: each row in each round has its own, whichever ran before it.
    pub(crate) fn new(seed: u64, row: &str, round: u32) -> Self {
        Self(Random::named(seed, &format!("{row} {round}")))
    }

    /// The next number.
    pub(crate) fn next_number(&mut self) -> u64 {
        self.0.number()
    }

    /// A time within a range of milliseconds.
    pub(crate) fn milliseconds(&mut self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.0.between(range.start, range.end))
    }
}

#[cfg(test)]
mod tests {
    use super::Draw;

    #[test]
    fn a_seed_repeats_a_run_and_rows_and_rounds_differ() {
        let first = |seed, row, round| Draw::new(seed, row, round).milliseconds(0..1 << 40);
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
