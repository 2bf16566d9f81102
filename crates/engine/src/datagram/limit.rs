//! Logs that an adversary cannot fill.

use std::time::{Duration, Instant};

/// The least time between two lines about one thing.
const PAUSE: Duration = Duration::from_secs(10);

/// Lets one of many like events be logged now and then, and counts the others.
#[derive(Debug, Default)]
pub struct Limit {
    last: Option<Instant>,
    silenced: u64,
}

impl Limit {
    /// Whether this event may be logged: then how many before it were not.
    pub fn event(&mut self) -> Option<u64> {
        self.event_at(Instant::now())
    }

    fn event_at(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now < last + PAUSE) {
            self.silenced += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.silenced))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_in_a_while() {
        let mut limit = Limit::default();
        let start = Instant::now();
        assert_eq!(limit.event_at(start), Some(0));
        assert_eq!(limit.event_at(start), None);
        assert_eq!(limit.event_at(start + PAUSE / 2), None);
        assert_eq!(limit.event_at(start + PAUSE), Some(2));
        assert_eq!(limit.event_at(start + 2 * PAUSE), Some(0));
    }
}
