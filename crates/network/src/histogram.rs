//! How long things took: a histogram of a fixed size.
//!
//! Buckets are log-linear: each power of two is cut into 32 equal parts, so that a quantile is at
//! most 1/32 above the truth, from nanoseconds to more than an hour. Recording is a few
//! instructions and never allocates.

use std::{fmt, time::Duration};

/// Parts of each power of two, as a power of two itself.
const PARTS_BITS: u32 = 5;
const PARTS: u64 = 1 << PARTS_BITS;
/// Values of this many bits and more, about 73 minutes, share the last bucket.
const VALUE_BITS: u32 = 42;
const BUCKETS: usize = ((VALUE_BITS - PARTS_BITS + 1) as usize) << PARTS_BITS;

/// The distribution of some durations. Quantiles are at most 1/32 too high; count, mean and
/// maximum are exact.
#[derive(Clone)]
pub struct Delays {
    buckets: Box<[u64; BUCKETS]>,
    count: u64,
    /// Nanoseconds.
    sum: u128,
    /// Nanoseconds.
    max: u64,
}

impl Default for Delays {
    fn default() -> Delays {
        Delays::new()
    }
}

impl fmt::Debug for Delays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delays")
            .field("count", &self.count)
            .field("p50", &self.quantile(0.5))
            .field("p99", &self.quantile(0.99))
            .field("max", &self.max())
            .finish_non_exhaustive()
    }
}

impl Delays {
    /// An empty one. This allocates, about 10 KiB; nothing later does, but for `clone`.
    pub fn new() -> Delays {
        Delays {
            buckets: Box::new([0; BUCKETS]),
            count: 0,
            sum: 0,
            max: 0,
        }
    }

    /// Adds one duration.
    pub fn record(&mut self, delay: Duration) {
        let ns = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(ns)] += 1;
        self.count += 1;
        self.sum += u128::from(ns);
        self.max = self.max.max(ns);
    }

    /// Adds all that `other` has recorded.
    pub fn merge(&mut self, other: &Delays) {
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets.iter()) {
            *mine += theirs;
        }
        self.count += other.count;
        self.sum += other.sum;
        self.max = self.max.max(other.max);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.buckets.fill(0);
        self.count = 0;
        self.sum = 0;
        self.max = 0;
    }

    /// How many were recorded.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether none was recorded.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The longest; zero if there is none.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }

    /// The sum of all.
    pub fn total(&self) -> Duration {
        Duration::from_nanos(u64::try_from(self.sum).unwrap_or(u64::MAX))
    }

    /// The mean; zero if there is none.
    pub fn mean(&self) -> Duration {
        let mean = self
            .sum
            .checked_div(u128::from(self.count))
            .unwrap_or_default();
        Duration::from_nanos(u64::try_from(mean).unwrap_or(u64::MAX))
    }

    /// The duration that the share `q` of all did not exceed (0.5 is the median); zero if there is
    /// none. A `q` outside of 0 to 1 counts as the nearer of the two.
    pub fn quantile(&self, q: f64) -> Duration {
        let rank = rank(q, self.count);
        let mut seen = 0;
        for (index, &count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank && seen > 0 {
                return Duration::from_nanos(highest(index).min(self.max));
            }
        }
        Duration::ZERO
    }

    /// The buckets in which there is something, in ascending order: the longest duration that belongs to each, and how many are in it.
    /// Of two moments, the differences are the distribution of what came between them.
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> {
        let filled = self.buckets.iter().enumerate();
        filled
            .filter(|(_, count)| **count > 0)
            .map(|(index, count)| (Duration::from_nanos(highest(index)), *count))
    }

    /// The median.
    pub fn p50(&self) -> Duration {
        self.quantile(0.5)
    }

    /// What 99 of 100 did not exceed.
    pub fn p99(&self) -> Duration {
        self.quantile(0.99)
    }

    /// What 999 of 1000 did not exceed.
    pub fn p999(&self) -> Duration {
        self.quantile(0.999)
    }
}

/// Which one in ascending order, from 1, is the `q` quantile of `count` values.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a count beyond 2^53 would only blur the rank, and the product is not negative"
)]
fn rank(q: f64, count: u64) -> u64 {
    ((q.clamp(0.0, 1.0) * count as f64).ceil() as u64).clamp(1, count.max(1))
}

/// The bucket of a value.
fn bucket(ns: u64) -> usize {
    let index = if ns < PARTS {
        ns
    } else {
        let shift = ns.ilog2() - PARTS_BITS;
        u64::from(shift) * PARTS + (ns >> shift)
    };
    usize::try_from(index).map_or(BUCKETS - 1, |index| index.min(BUCKETS - 1))
}

/// The highest value of a bucket.
fn highest(index: usize) -> u64 {
    let index = index as u64;
    if index < PARTS {
        index
    } else if index >= BUCKETS as u64 - 1 {
        u64::MAX
    } else {
        let shift = index / PARTS - 1;
        ((PARTS + index % PARTS + 1) << shift) - 1
    }
}

#[cfg(test)]
mod tests {
    use super::{BUCKETS, Delays, bucket, highest};
    use proptest::prelude::*;
    use std::time::Duration;

    fn ns(value: u64) -> Duration {
        Duration::from_nanos(value)
    }

    #[test]
    fn an_empty_one_says_zero() {
        let delays = Delays::new();
        assert!(delays.is_empty());
        assert_eq!(delays.quantile(0.5), Duration::ZERO);
        assert_eq!(delays.quantile(f64::NAN), Duration::ZERO);
        assert_eq!(delays.mean(), Duration::ZERO);
        assert_eq!(delays.max(), Duration::ZERO);
    }

    #[test]
    fn buckets_follow_each_other_without_gap() {
        assert_eq!(bucket(0), 0);
        for index in 0..BUCKETS - 1 {
            assert_eq!(bucket(highest(index)), index);
            assert_eq!(bucket(highest(index) + 1), index + 1);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn extremes_keep_their_place() {
        let mut delays = Delays::new();
        delays.record(Duration::MAX);
        delays.record(Duration::ZERO);
        assert_eq!(delays.count(), 2);
        assert_eq!(delays.quantile(0.0), Duration::ZERO);
        assert_eq!(delays.p50(), Duration::ZERO);
        assert_eq!(delays.p99(), ns(u64::MAX));
        assert_eq!(delays.quantile(7.0), delays.max());
        delays.clear();
        assert!(delays.is_empty());
        assert_eq!(delays.max(), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn quantiles_are_within_a_part(
            mut values in proptest::collection::vec(0_u64..1 << 41, 1..200),
            q in 0.0_f64..=1.0,
        ) {
            let mut delays = Delays::new();
            for value in &values {
                delays.record(ns(*value));
            }
            values.sort_unstable();
            let rank = super::rank(q, values.len() as u64);
            let exact = values[usize::try_from(rank).unwrap() - 1];
            let told = u64::try_from(delays.quantile(q).as_nanos()).unwrap();
            prop_assert!(told >= exact && told - exact <= exact / 32, "{told} for {exact}");
            prop_assert_eq!(delays.max(), ns(*values.last().unwrap()));
            prop_assert_eq!(delays.quantile(1.0), delays.max());
            // Counted up to its rank, the buckets say the same, but for the last one, which the maximum cuts off.
            let mut seen = 0;
            let from_buckets = delays.buckets().find(|(_, count)| {
                seen += count;
                seen >= rank
            });
            prop_assert_eq!(from_buckets.map(|(most, _)| most.min(delays.max())), Some(delays.quantile(q)));
            prop_assert_eq!(delays.buckets().map(|(_, count)| count).sum::<u64>(), delays.count());
            prop_assert_eq!(delays.mean(), ns(values.iter().sum::<u64>() / values.len() as u64));
        }

        #[test]
        fn merged_is_as_recorded_by_one(
            left in proptest::collection::vec(any::<u64>(), 0..50),
            right in proptest::collection::vec(any::<u64>(), 0..50),
        ) {
            let (mut a, mut b, mut both) = (Delays::new(), Delays::new(), Delays::new());
            for value in left {
                a.record(ns(value));
                both.record(ns(value));
            }
            for value in right {
                b.record(ns(value));
                both.record(ns(value));
            }
            a.merge(&b);
            prop_assert_eq!(&a.buckets, &both.buckets);
            prop_assert_eq!((a.count, a.sum, a.max), (both.count, both.sum, both.max));
        }
    }
}
