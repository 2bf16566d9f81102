//! When each step of a takeover was, out of the logs of the host that took over and of the arbiter.

use std::time::{Duration, SystemTime};

/// Seconds of the clock that dates the logs, since 1970.
pub(crate) type UnixSeconds = f64;

/// The steps of one takeover, in seconds since the cut. A step that no log tells of is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Steps {
    /// The host that lives has noticed and asks for the machine.
    pub(crate) detected: Option<f64>,
    /// The arbiter has written its claim down.
    pub(crate) claimed: Option<f64>,
    /// The replica is loaded.
    pub(crate) loaded: Option<f64>,
    /// The machine runs.
    pub(crate) running: Option<f64>,
}

impl Steps {
    /// Reads the steps after `cut`. `host` is the log of the host that took over, whose clock is ahead of ours by
    /// `ahead` seconds; `arbiter` is the arbiter's, with our clock.
    pub(crate) fn read(host: &str, ahead: f64, arbiter: &str, cut: UnixSeconds) -> Self {
        // Clocks of two hosts agree to some milliseconds only.
        let slack = 0.05;
        let find = |log: &str, ahead: f64, text: &str| {
            log.lines()
                .filter(|line| line.contains(text))
                .filter_map(time)
                .map(|at| at - ahead - cut)
                .find(|after| *after > -slack)
        };
        Self {
            detected: find(host, ahead, "claims the machine"),
            claimed: find(arbiter, 0.0, "phase=Claimed"),
            loaded: find(host, ahead, "the replica is loaded"),
            running: find(host, ahead, "runs the machine here"),
        }
    }
}

/// The time at the beginning of a log's line (RFC 3339).
pub(crate) fn time(line: &str) -> Option<UnixSeconds> {
    let stamp = line.split_whitespace().next()?;
    let time = humantime::parse_rfc3339(stamp).ok()?;
    Some(unix_seconds(time))
}

/// Seconds since 1970.
pub(crate) fn unix_seconds(time: SystemTime) -> UnixSeconds {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::{Steps, time};

    const HOST: &str = "\
1970-01-01T00:01:30.000000Z  INFO runs the machine here, in term 1
1970-01-01T00:01:50.100000Z  INFO claims the machine
1970-01-01T00:01:50.150000Z  INFO the replica is loaded took=40ms
1970-01-01T00:01:50.200000Z  INFO runs the machine here, in term 2
";
    const ARBITER: &str = "\
1970-01-01T00:01:40.120000Z  INFO the record has changed machine=m generation=4 runner=a heir=Some(b) phase=Claimed
";

    #[test]
    fn steps_are_those_after_the_cut_by_one_clock() {
        let steps = Steps::read(HOST, 10.0, ARBITER, 100.0);
        let near = |value: Option<f64>, wanted: f64| (value.unwrap() - wanted).abs() < 1e-6;
        assert!(near(steps.detected, 0.1), "{steps:?}");
        assert!(near(steps.claimed, 0.12), "{steps:?}");
        assert!(near(steps.loaded, 0.15), "{steps:?}");
        assert!(near(steps.running, 0.2), "{steps:?}");
    }

    #[test]
    fn what_no_log_tells_of_is_unknown() {
        assert_eq!(Steps::read("", 0.0, "noise\n", 1.0), Steps::default());
        assert_eq!(time("no time here"), None);
        assert_eq!(time(""), None);
    }
}
