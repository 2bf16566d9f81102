//! Random numbers that a seed repeats.

/// `SplitMix64` (Steele, Lea, Flood, 2014): small, and the same on every computer.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence that belongs to `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The sequence that belongs to `seed` and a name: parts of one run that are drawn in any order, or not at all, do not
    /// change each other's numbers.
    pub fn named(seed: u64, name: &str) -> Self {
        Self(
            name.bytes()
                .fold(seed, |sum, byte| Self(sum ^ u64::from(byte)).number()),
        )
    }

    /// The next number; all are equally likely.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A whole number from `from` on and below `to`; `from` if there is none between them.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.number() % to.saturating_sub(from).max(1)
    }

    /// A number above 0 and at most 1.
    pub fn unit(&mut self) -> f64 {
        // 53 bits are what a float holds.
        #[allow(clippy::cast_precision_loss, reason = "at most 2^53")]
        let number = ((self.number() >> 11) + 1) as f64;
        number / 9_007_199_254_740_992.0
    }

    /// The time to the next of events that come at random, `mean` on the average (exponential distribution).
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -self.unit().ln() * mean
    }
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn it_is_the_published_generator() {
        // The first value for seed 0, from its authors' own code.
        assert_eq!(Random::new(0).number(), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn names_have_sequences_of_their_own() {
        let first = |seed, name| Random::named(seed, name).number();
        assert_eq!(first(7, "a"), first(7, "a"));
        assert_ne!(first(7, "a"), first(7, "b"));
        assert_ne!(first(7, "a"), first(8, "a"));
    }

    #[test]
    fn numbers_are_in_their_range() {
        let mut random = Random::new(1);
        let mut seen = [false; 3];
        for _ in 0..1000 {
            let unit = random.unit();
            assert!(unit > 0.0 && unit <= 1.0);
            let number = random.between(5, 8);
            assert!((5..8).contains(&number));
            seen[usize::try_from(number - 5).unwrap()] = true;
        }
        assert_eq!(seen, [true; 3]);
        assert_eq!(random.between(8, 5), 8);
    }

    #[test]
    fn exponential_times_have_their_mean() {
        let mut random = Random::new(3);
        let mean = (0..10_000).map(|_| random.exponential(4.0)).sum::<f64>() / 10_000.0;
        assert!((3.8..4.2).contains(&mean), "{mean}");
    }
}
