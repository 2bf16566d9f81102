//! What of this computer's processor time others took while something was measured: a virtual computer shares its
//! processors, and figures from a bad moment say more about the others.

use anyhow::{Context as _, Result};
use std::fs;

/// Processor times since this computer's start, in clock ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProcessorTimes {
    all: u64,
    idle: u64,
    stolen: u64,
}

impl ProcessorTimes {
    /// Reads them.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub(crate) fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
        Self::parse(&text).context("/proc/stat has no times of all processors")
    }

    /// What was stolen since `earlier`, in percent of all time.
    #[allow(clippy::cast_precision_loss, reason = "clock ticks of some minutes")]
    pub(crate) fn stolen_since(&self, earlier: &Self) -> Option<f64> {
        let all = self.all.checked_sub(earlier.all)?;
        let stolen = self.stolen.checked_sub(earlier.stolen)?;
        (all > 0).then(|| stolen as f64 / all as f64 * 100.0)
    }

    /// How long the processors were not idle since `earlier`, in percent of all time.
    #[allow(clippy::cast_precision_loss, reason = "clock ticks of some minutes")]
    pub(crate) fn busy_since(&self, earlier: &Self) -> Option<f64> {
        let all = self.all.checked_sub(earlier.all)?;
        let idle = self.idle.checked_sub(earlier.idle)?;
        (all > 0).then(|| (1.0 - idle as f64 / all as f64) * 100.0)
    }

    /// The first line of `/proc/stat` (proc(5)): user, nice, system, idle, iowait, irq, softirq, steal; those of guests
    /// are in user and nice.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let times = line.split_whitespace().map(str::parse);
        let times = times.collect::<Result<Vec<u64>, _>>().ok()?;
        let counted = times.get(..8)?;
        Some(Self {
            all: counted.iter().sum(),
            idle: counted[3] + counted[4],
            stolen: counted[7],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::ProcessorTimes;

    #[test]
    fn waiting_for_disks_is_not_work() {
        let at = |user: u64, idle: u64, waiting: u64| {
            ProcessorTimes::parse(&format!("cpu {user} 0 0 {idle} {waiting} 0 0 0 0 0\n")).unwrap()
        };
        assert_eq!(at(40, 20, 10).busy_since(&at(10, 15, 5)), Some(75.0));
        assert_eq!(at(10, 10, 10).busy_since(&at(10, 10, 10)), None);
    }

    #[test]
    fn what_is_stolen_is_a_share_of_all_time() {
        let at = |user: u64, steal: u64| {
            let text = format!("cpu  {user} 1 2 3 4 5 6 {steal} 100 0\ncpu0 9 9 9 9 9 9 9 9 9 9\n");
            ProcessorTimes::parse(&text).unwrap()
        };
        assert_eq!(at(90, 30).stolen_since(&at(10, 10)), Some(20.0));
        assert_eq!(at(10, 10).stolen_since(&at(10, 10)), None);
        assert_eq!(at(10, 10).stolen_since(&at(90, 30)), None);
        assert_eq!(ProcessorTimes::parse("cpu 1 2 3\n"), None);
    }
}
