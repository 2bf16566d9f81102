//! What `romulus status` and `romulus status --timing` say, as far as jobs look at it.

use serde::Deserialize;
use std::time::Duration;

/// One process's word about its machine.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Status {
    /// `running`, `standby` and so on.
    pub(crate) state: String,
    /// The process's number.
    pub(crate) pid: i32,
    /// How often the guest was started anew in this process.
    pub(crate) restarts: u32,
    /// How it is protected.
    pub(crate) protection: Option<Cover>,
}

/// The part about protection.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Cover {
    /// The mode in force.
    pub(crate) mode: String,
    /// Another one was asked for and is not in force yet.
    pub(crate) mode_changes: bool,
    /// `waiting`, `backup`, `frozen`, `primary` or `ended`.
    pub(crate) role: String,
    /// The loss of the host that runs the machine is covered now.
    pub(crate) protected: bool,
    /// The term of what runs or is held here.
    pub(crate) term: Option<u64>,
    /// The running epoch of a primary, the newest received one of a backup.
    pub(crate) epoch: u64,
    /// `T_b` as it is now, in microseconds.
    pub(crate) t_b_us: u64,
    /// This host's uplinks.
    #[serde(default)]
    pub(crate) uplinks: Vec<Uplink>,
    /// How many of the other host's are up.
    #[serde(default)]
    pub(crate) partner_uplinks: Option<Uplinks>,
    /// How far a full copy is.
    pub(crate) copied: Option<Copied>,
    /// Epochs that the process has sealed.
    pub(crate) epochs: u64,
    /// Mean of the pages that an epoch dirtied.
    pub(crate) dirty_pages_mean: u64,
    /// Mean of those of them whose first write left the guest.
    pub(crate) first_writes_mean: u64,
    /// Frames that did not wait for a commit, because the mode lets them pass at once.
    pub(crate) at_once_frames: u64,
    /// Output that was sent again at the takeover.
    pub(crate) sent_again_frames: u64,
    /// Input that the guest was given again at the takeover.
    pub(crate) given_again_frames: u64,
}

/// One uplink.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Uplink {
    /// It has a carrier.
    pub(crate) up: bool,
}

/// Some uplinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) struct Uplinks {
    /// So many have a carrier.
    pub(crate) up: u8,
}

/// How far a full copy is, in pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) struct Copied {
    /// Copied.
    pub(crate) done: u64,
    /// All.
    pub(crate) all: u64,
}

/// One phase of an epoch.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Phase {
    /// Its name.
    #[serde(rename = "phase")]
    pub(crate) name: String,
    /// How often it was measured.
    pub(crate) count: u64,
    total_ns: u64,
    p50_ns: u64,
    p99_ns: u64,
    /// How many took at most so many nanoseconds, and more than the entry before says.
    buckets: Vec<(u64, u64)>,
}

impl Status {
    /// Whether the machine runs in this process.
    pub(crate) fn runs(&self) -> bool {
        self.state == "running" && self.cover().is_none_or(|cover| cover.role == "primary")
    }

    /// The part about protection, if there is one.
    pub(crate) fn cover(&self) -> Option<&Cover> {
        self.protection.as_ref()
    }

    /// Whether the machine runs here and is protected.
    pub(crate) fn is_protected_here(&self) -> bool {
        self.runs() && self.cover().is_some_and(|cover| cover.protected)
    }

    /// Whether this process is the backup of a protected machine.
    pub(crate) fn is_backup(&self) -> bool {
        self.cover().is_some_and(|cover| cover.role == "backup")
    }
}

impl Cover {
    /// `T_b` as it is now.
    pub(crate) fn t_b(&self) -> Duration {
        Duration::from_micros(self.t_b_us)
    }

    /// The mean of the epochs since `before`, from `of`, which is the mean of all epochs. That is a whole number, so that what is told
    /// may be off by as much as there are epochs in all for each new one.
    pub(crate) fn mean_since(&self, before: &Cover, of: impl Fn(&Cover) -> u64) -> Option<f64> {
        let whole = |number: u64| u32::try_from(number).ok().map(f64::from);
        let all = |cover: &Cover| Some(whole(cover.epochs)? * whole(of(cover))?);
        let new = whole(self.epochs.checked_sub(before.epochs)?)?;
        (new > 0.0).then_some((all(self)? - all(before)?) / new)
    }
}

impl Phase {
    /// The median in milliseconds, if it was measured at all.
    pub(crate) fn p50_ms(&self) -> Option<f64> {
        self.measured(self.p50_ns)
    }

    /// 99 of 100 took at most this many milliseconds.
    pub(crate) fn p99_ms(&self) -> Option<f64> {
        self.measured(self.p99_ns)
    }

    /// The mean of those that were measured after `earlier`, in milliseconds.
    pub(crate) fn mean_ms_since(&self, earlier: &Self) -> Option<f64> {
        let count = u32::try_from(self.count.checked_sub(earlier.count)?).ok()?;
        let total = Duration::from_nanos(self.total_ns.checked_sub(earlier.total_ns)?);
        (count > 0).then(|| total.as_secs_f64() * 1e3 / f64::from(count))
    }

    /// What `percent` of 100 of those that were measured after `earlier` did not exceed, in milliseconds.
    pub(crate) fn percentile_ms_since(&self, earlier: &Self, percent: u64) -> Option<f64> {
        let new = |&(most, count): &(u64, u64)| {
            let old = earlier.buckets.iter().find(|(other, _)| *other == most);
            Some((most, count.checked_sub(old.map_or(0, |(_, count)| *count))?))
        };
        // A count that has become smaller is another process's.
        let buckets = self.buckets.iter().map(new).collect::<Option<Vec<_>>>()?;
        let all: u64 = buckets.iter().map(|(_, count)| count).sum();
        let mut left = (all * percent).div_ceil(100).max(1);
        let reached = buckets.into_iter().find(|(_, count)| {
            left = left.saturating_sub(*count);
            left == 0
        });
        reached.map(|(most, _)| Duration::from_nanos(most).as_secs_f64() * 1e3)
    }

    fn measured(&self, nanoseconds: u64) -> Option<f64> {
        (self.count > 0).then(|| Duration::from_nanos(nanoseconds).as_secs_f64() * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::{Cover, Phase, Status};
    use serde_json::json;

    fn status(state: &str, role: &str, protected: bool) -> Status {
        serde_json::from_value(json!({
            "state": state, "pid": 7, "restarts": 0, "more": [],
            "protection": {
                "role": role, "protected": protected, "term": 3, "epoch": 12, "t_b_us": 100_000,
                "copied": {"done": 1, "all": 2}, "mode": "net", "mode_changes": false, "epochs": 90, "dirty_pages_mean": 60, "first_writes_mean": 9, "at_once_frames": 0, "sent_again_frames": 0, "given_again_frames": 0,
            },
        }))
        .unwrap()
    }

    #[test]
    fn a_mean_is_told_of_the_new_epochs_alone() {
        let cover = |epochs, mean| Cover {
            epochs,
            dirty_pages_mean: mean,
            ..status("running", "primary", true).cover().unwrap().clone()
        };
        let pages = |c: &Cover| c.dirty_pages_mean;
        let (before, after) = (cover(90, 60), cover(100, 64));
        assert_eq!(after.mean_since(&before, pages), Some(100.0));
        assert_eq!(before.mean_since(&before, pages), None, "no epoch ended");
        assert_eq!(before.mean_since(&after, pages), None, "another process");
    }

    #[test]
    fn only_a_running_primary_is_protected_here() {
        assert!(status("running", "primary", true).is_protected_here());
        assert!(!status("running", "primary", false).is_protected_here());
        let backup = status("standby", "backup", true);
        assert!(!backup.is_protected_here() && !backup.runs() && backup.is_backup());
        assert!(
            !status("running", "frozen", false).runs(),
            "a frozen machine stands still"
        );
    }

    #[test]
    fn a_phase_that_was_never_measured_has_no_median() {
        let phase = |count: u64| -> Phase {
            serde_json::from_value(
                json!({"phase": "pause", "count": count, "total_ns": count * 2_000_000, "p50_ns": 1_500_000, "p99_ns": 2_000_000, "buckets": []}),
            )
            .unwrap()
        };
        assert_eq!(phase(3).p50_ms(), Some(1.5));
        assert_eq!(phase(0).p99_ms(), None);
        assert_eq!(phase(5).mean_ms_since(&phase(3)), Some(2.0));
        assert_eq!(phase(3).mean_ms_since(&phase(3)), None);
    }

    #[test]
    fn a_percentile_is_told_of_the_new_ones_alone() {
        let phase = |buckets: &[(u64, u64)]| -> Phase {
            serde_json::from_value(
                json!({"phase": "pause", "count": 9, "total_ns": 9, "p50_ns": 9, "p99_ns": 9, "buckets": buckets}),
            )
            .unwrap()
        };
        let before = phase(&[(1_000_000, 5), (30_000_000, 7)]);
        let after = phase(&[
            (1_000_000, 5),
            (2_000_000, 98),
            (4_000_000, 1),
            (30_000_000, 8),
        ]);
        let since = |percent| after.percentile_ms_since(&before, percent);
        assert_eq!(
            (since(50), since(98), since(99), since(100)),
            (Some(2.0), Some(2.0), Some(4.0), Some(30.0))
        );
        assert_eq!(after.percentile_ms_since(&after, 99), None, "none is new");
        assert_eq!(
            before.percentile_ms_since(&after, 99),
            None,
            "another process"
        );
    }
}
