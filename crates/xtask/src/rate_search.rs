//! The search for the highest rate that a server sustains, free of clocks and sockets: the caller makes the trials.

/// How often a rate must fail to count as too high: on a shared computer one failure may be the computer's.
const FAILURES_THAT_COUNT: u32 = 2;

/// What is known so far about one server. Try [`Self::next_rate`], tell [`Self::record`], until there is no next rate.
///
/// The rate goes up by a fixed factor while trials pass. Where already the first rate is too high, it goes down by the
/// same factor until a trial passes. A search that refines goes on between the highest rate that passed and the lowest that
/// was too high.
#[derive(Debug, Clone)]
pub(crate) struct RateSearch {
    factor: f64,
    limit: u32,
    trials_left: u32,
    next: Option<u32>,
    failures_here: u32,
    refine: Option<f64>,
    too_high: Option<u32>,
    best: Option<u32>,
}

impl RateSearch {
    /// A search from `start` per second in steps of `factor` (more than 1) up to `limit`, with at most `trials` trials.
    pub(crate) fn new(start: u32, factor: f64, limit: u32, trials: u32) -> Self {
        assert!(factor > 1.0, "the rate must grow from step to step");
        Self {
            factor,
            limit,
            trials_left: trials,
            next: Some(start.clamp(1, limit)),
            failures_here: 0,
            refine: None,
            too_high: None,
            best: None,
        }
    }

    /// Goes on until the lowest rate that is too high is at most `ratio` (more than 1) times the highest that passed.
    pub(crate) fn refined_to(mut self, ratio: f64) -> Self {
        assert!(ratio > 1.0, "two rates cannot come closer than being one");
        self.refine = Some(ratio);
        self
    }

    /// The rate to try next, or `None` when the search is over.
    pub(crate) fn next_rate(&self) -> Option<u32> {
        self.next.filter(|_| self.trials_left > 0)
    }

    /// Takes the outcome of a trial at [`Self::next_rate`].
    pub(crate) fn record(&mut self, passed: bool) {
        let Some(rate) = self.next_rate() else { return };
        self.trials_left -= 1;
        if passed {
            self.best = Some(rate);
            self.failures_here = 0;
            self.next = match self.too_high {
                Some(too_high) => self.between(rate, too_high),
                None => Some(self.scaled(rate, self.factor).min(self.limit))
                    .filter(|higher| *higher > rate),
            };
            return;
        }
        self.failures_here += 1;
        if self.failures_here < FAILURES_THAT_COUNT {
            return;
        }
        self.failures_here = 0;
        self.too_high = Some(rate);
        self.next = match self.best {
            Some(best) => self.between(best, rate),
            None => (rate > 1).then(|| self.scaled(rate, 1.0 / self.factor).clamp(1, rate - 1)),
        };
    }

    /// The rate in the midst of two, as far from the one as from the other by its factor, if they are still to come closer.
    fn between(&self, best: u32, too_high: u32) -> Option<u32> {
        let apart = f64::from(too_high) / f64::from(best);
        self.refine.filter(|ratio| apart > *ratio)?;
        Some(self.scaled(best, apart.sqrt())).filter(|rate| (best + 1..too_high).contains(rate))
    }

    /// The highest rate that passed.
    pub(crate) fn best(&self) -> Option<u32> {
        self.best
    }

    /// Whether the search ended because its limit or its number of trials was reached, not because a rate was too high:
    /// then [`Self::best`] is a lower bound.
    pub(crate) fn is_lower_bound(&self) -> bool {
        self.too_high.is_none()
    }

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rates are small positive numbers"
    )]
    fn scaled(&self, rate: u32, factor: f64) -> u32 {
        debug_assert!(self.limit > 0);
        (f64::from(rate) * factor).round() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::RateSearch;

    /// Runs a search against a server that sustains exactly `capacity`; gives the rates that were tried.
    fn run(search: &mut RateSearch, mut passes: impl FnMut(u32) -> bool) -> Vec<u32> {
        let mut tried = Vec::new();
        while let Some(rate) = search.next_rate() {
            tried.push(rate);
            search.record(passes(rate));
        }
        tried
    }

    #[test]
    fn it_climbs_to_the_last_rate_that_passes() {
        let mut search = RateSearch::new(100, 1.5, 10_000, 50);
        assert_eq!(
            run(&mut search, |rate| rate <= 300),
            [100, 150, 225, 338, 338]
        );
        assert_eq!(search.best(), Some(225));
        assert!(!search.is_lower_bound());
    }

    #[test]
    fn it_refines_what_it_found() {
        for capacity in [300, 226, 225, 40] {
            let mut search = RateSearch::new(100, 1.5, 10_000, 50).refined_to(1.1);
            let tried = run(&mut search, |rate| rate <= capacity);
            let best = search.best().expect("some rate passes");
            assert!(best <= capacity && tried.contains(&best));
            let failed = tried.iter().filter(|rate| **rate > capacity).min();
            let failed = *failed.expect("some rate fails");
            assert!(f64::from(failed) <= f64::from(best) * 1.1, "{tried:?}");
        }
    }

    #[test]
    fn rates_next_to_each_other_end_it() {
        let mut search = RateSearch::new(4, 2.0, 10_000, 50).refined_to(1.01);
        assert_eq!(run(&mut search, |rate| rate <= 5), [4, 8, 8, 6, 6, 5]);
        assert_eq!(search.best(), Some(5));
    }

    #[test]
    fn one_failure_alone_does_not_end_it() {
        let mut failed_once = false;
        let mut search = RateSearch::new(100, 2.0, 10_000, 50);
        run(&mut search, |rate| {
            if rate == 200 && !failed_once {
                failed_once = true;
                return false;
            }
            rate <= 400
        });
        assert_eq!(search.best(), Some(400));
    }

    #[test]
    fn it_goes_down_when_the_start_is_too_high() {
        let mut search = RateSearch::new(100, 2.0, 10_000, 50);
        assert_eq!(run(&mut search, |rate| rate <= 30), [100, 100, 50, 50, 25]);
        assert_eq!(search.best(), Some(25));
    }

    #[test]
    fn it_ends_where_nothing_passes() {
        let mut search = RateSearch::new(4, 2.0, 10_000, 50);
        assert_eq!(run(&mut search, |_| false), [4, 4, 2, 2, 1, 1]);
        assert_eq!(search.best(), None);
    }

    #[test]
    fn it_ends_at_its_limit_and_says_so() {
        let mut search = RateSearch::new(100, 2.0, 350, 50);
        assert_eq!(run(&mut search, |_| true), [100, 200, 350]);
        assert_eq!((search.best(), search.is_lower_bound()), (Some(350), true));
    }

    #[test]
    fn it_makes_no_more_trials_than_allowed() {
        let mut search = RateSearch::new(100, 1.01, 1_000_000, 7);
        assert_eq!(run(&mut search, |_| true).len(), 7);
        assert!(search.is_lower_bound());
    }
}
