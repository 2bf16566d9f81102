//! Requests that come at random, as those of many users do who know nothing of each other: a Poisson process.

use crate::random::Random;

/// The times of `count` arrivals in milliseconds since the start, `rate` a second on the average. A `rate` that is not
/// above 0 gives none.
pub fn poisson_ms(random: &mut Random, rate: f64, count: usize) -> Vec<f64> {
    if rate.is_nan() || rate <= 0.0 {
        return Vec::new();
    }
    let mut now = 0.0;
    (0..count)
        .map(|_| {
            now += random.exponential(1e3 / rate);
            now
        })
        .collect()
}

/// How long each call has to wait after it was made so that it begins at its time in `arrivals_ms`, where a load generator
/// makes all of them at an even pace within `made_within_ms`. All wait for that time, and then for their own; so nobody has
/// to begin before it was made. In whole milliseconds.
pub fn waits_ms(arrivals_ms: &[f64], made_within_ms: f64) -> Vec<u64> {
    #[allow(clippy::cast_precision_loss, reason = "numbers of calls")]
    let each = made_within_ms / arrivals_ms.len().max(1) as f64;
    let mut made = 0.0;
    arrivals_ms
        .iter()
        .map(|arrival| {
            let wait = arrival + made_within_ms - made;
            made += each;
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "times of a load of minutes, not negative"
            )]
            let wait = wait.max(0.0).round() as u64;
            wait
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{poisson_ms, waits_ms};
    use crate::random::Random;

    #[test]
    fn a_seed_gives_the_same_arrivals_again() {
        let arrivals = |seed| poisson_ms(&mut Random::new(seed), 50.0, 100);
        assert_eq!(arrivals(7), arrivals(7));
        assert_ne!(arrivals(7), arrivals(8));
    }

    #[test]
    fn arrivals_have_the_rate_and_the_spread_of_a_poisson_process() {
        let arrivals = poisson_ms(&mut Random::new(1), 100.0, 20_000);
        assert!(arrivals.windows(2).all(|pair| pair[0] <= pair[1]));
        let gaps: Vec<f64> = arrivals.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let count = f64::from(u32::try_from(gaps.len()).unwrap());
        let mean = gaps.iter().sum::<f64>() / count;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / count;
        // Of exponential gaps the deviation is the mean; even gaps would have none.
        assert!((9.7..10.3).contains(&mean), "{mean}");
        assert!((0.95..1.05).contains(&(variance.sqrt() / mean)));
        // A third of all gaps (1 - 1/e are shorter) are longer than the mean.
        let longer = gaps.iter().filter(|gap| **gap > mean).count();
        let share = f64::from(u32::try_from(longer).unwrap()) / count;
        assert!((0.35..0.39).contains(&share), "{share}");
    }

    #[test]
    fn no_rate_has_no_arrivals() {
        for rate in [0.0, -1.0, f64::NAN] {
            assert!(poisson_ms(&mut Random::new(1), rate, 5).is_empty());
        }
    }

    #[test]
    fn calls_made_at_an_even_pace_begin_at_their_times() {
        let arrivals = [3.0, 4.0, 700.0, 701.0];
        let waits = waits_ms(&arrivals, 400.0);
        // They are made after 0, 100, 200 and 300 ms.
        assert_eq!(waits, [403, 304, 900, 801]);
        assert!(waits_ms(&[], 400.0).is_empty());
    }
}
