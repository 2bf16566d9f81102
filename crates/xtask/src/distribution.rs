//! Percentiles of a set of measurements.

/// Measurements in ascending order.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Distribution(Vec<f64>);

impl Distribution {
    /// Sorts `values`. Values that are no numbers are left out: they can't be ordered.
    pub(crate) fn new(mut values: Vec<f64>) -> Self {
        values.retain(|value| !value.is_nan());
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// The smallest value that at least `percent` of all values do not exceed (nearest rank), or `None` if there are none.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a rank is a small whole number once it is rounded up"
    )]
    pub(crate) fn percentile(&self, percent: f64) -> Option<f64> {
        let rank = (percent / 100.0 * self.0.len() as f64).ceil() as usize;
        self.0.get(rank.clamp(1, self.0.len().max(1)) - 1).copied()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The middle value.
    pub(crate) fn median(&self) -> Option<f64> {
        self.percentile(50.0)
    }

    /// The largest value.
    pub(crate) fn max(&self) -> Option<f64> {
        self.0.last().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::Distribution;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let hundred = Distribution::new((1..=100).rev().map(f64::from).collect());
        assert_eq!(hundred.percentile(50.0), Some(50.0));
        assert_eq!(hundred.percentile(99.0), Some(99.0));
        assert_eq!(hundred.percentile(99.5), Some(100.0));
        assert_eq!(hundred.percentile(0.0), Some(1.0));
        assert_eq!(hundred.max(), Some(100.0));
    }

    #[test]
    fn few_or_no_values_have_percentiles_too() {
        assert_eq!(Distribution::new(vec![]).median(), None);
        assert_eq!(Distribution::new(vec![f64::NAN]).max(), None);
        let one = Distribution::new(vec![7.0]);
        assert_eq!(
            (one.percentile(1.0), one.percentile(99.0)),
            (Some(7.0), Some(7.0))
        );
    }

    #[test]
    fn the_median_of_an_even_number_is_the_lower_middle() {
        assert_eq!(
            Distribution::new(vec![4.0, 1.0, 3.0, 2.0]).median(),
            Some(2.0)
        );
    }
}
