//! What happened to a machine's record, out of the arbiter's log: who took it over, and when nobody covered it.

use crate::pair::{UnixSeconds, log_time};

/// What a log tells of one machine.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Seen {
    /// Another process than before runs the machine.
    pub(super) takeovers: usize,
    /// The runner went on alone: it let its heir go, or won the record against it.
    pub(super) cover_lost: usize,
    /// Claims, whoever won.
    pub(super) claims: usize,
    /// For how many seconds the record named somebody to take over.
    pub(super) covered: f64,
}

impl Seen {
    /// Reads a log from its beginning to the present.
    pub(super) fn read(log: &str, now: UnixSeconds) -> Self {
        let mut seen = Self::default();
        let mut runner = None;
        let mut covered = false;
        let mut since = now;
        for change in log.lines().filter_map(Change::parse) {
            if covered {
                seen.covered += change.at - since;
            }
            since = change.at;
            if !change.running {
                seen.claims += 1;
                continue;
            }
            let another = runner.is_some_and(|runner| runner != change.runner);
            if another {
                seen.takeovers += 1;
            } else if covered && !change.has_heir {
                seen.cover_lost += 1;
            }
            covered = change.has_heir;
            runner = Some(change.runner);
        }
        if covered {
            seen.covered += now - since;
        }
        seen
    }

    /// What came after `earlier`, an earlier reading of the same log.
    pub(super) fn since(self, earlier: Self) -> Self {
        Self {
            takeovers: self.takeovers - earlier.takeovers,
            cover_lost: self.cover_lost - earlier.cover_lost,
            claims: self.claims - earlier.claims,
            covered: self.covered - earlier.covered,
        }
    }
}

/// One change of the record.
struct Change<'a> {
    at: UnixSeconds,
    runner: &'a str,
    has_heir: bool,
    running: bool,
}

impl<'a> Change<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let field = |name: &str| {
            line.split_whitespace()
                .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        };
        Some(Self {
            at: log_time(line)?,
            runner: field("runner")?,
            has_heir: field("heir")? != "None",
            running: field("phase")? == "Running",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Seen;

    fn line(second: u32, runner: &str, heir: &str, phase: &str) -> String {
        format!(
            "1970-01-01T00:00:{second:02}Z  INFO the record has changed machine=m generation=4 runner={runner} heir={heir} phase={phase}\n"
        )
    }

    #[test]
    fn takeovers_are_told_from_cover_that_was_lost() {
        let mut log = "1970-01-01T00:00:00Z  INFO the arbiter listens\n".to_owned();
        log += &line(1, "a", "None", "Running");
        log += &line(10, "a", "Some(b)", "Running");
        let begin = Seen::read(&log, 12.0);
        assert_eq!(
            begin,
            Seen {
                covered: 2.0,
                ..Seen::default()
            }
        );
        // It is let go, and named again.
        log += &line(20, "a", "None", "Running");
        log += &line(25, "a", "Some(b)", "Running");
        // It wins the record against its heir, which is let go by that.
        log += &line(30, "a", "Some(b)", "Claimed");
        log += &line(30, "a", "None", "Running");
        log += &line(35, "a", "Some(b)", "Running");
        let alone = Seen::read(&log, 40.0);
        assert_eq!(
            alone,
            Seen {
                takeovers: 0,
                cover_lost: 2,
                claims: 1,
                covered: 20.0
            }
        );
        // The heir wins, and fills its former runner.
        log += &line(45, "b", "Some(a)", "Claimed");
        log += &line(46, "b", "None", "Running");
        log += &line(50, "b", "Some(a)", "Running");
        let after = Seen::read(&log, 52.0).since(alone);
        assert_eq!(
            after,
            Seen {
                takeovers: 1,
                cover_lost: 0,
                claims: 1,
                // Who loses a claim stays the heir until the winner runs.
                covered: 8.0
            }
        );
    }

    #[test]
    fn a_log_without_a_record_tells_nothing() {
        assert_eq!(Seen::read("", 5.0), Seen::default());
        assert_eq!(Seen::read("a line\nphase=Running\n", 5.0), Seen::default());
    }
}
