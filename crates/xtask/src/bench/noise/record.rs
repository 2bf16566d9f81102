//! What happened to a machine's record, out of the arbiter's log: who took it over, and when nobody covered it.

/// What a log tells of one machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Another process than before runs the machine.
    pub(super) takeovers: usize,
    /// The runner went on alone: it let its heir go, or won the record against it.
    pub(super) cover_lost: usize,
    /// Claims, whoever won.
    pub(super) claims: usize,
}

impl Seen {
    /// Reads a log from its beginning.
    pub(super) fn read(log: &str) -> Self {
        let mut seen = Self::default();
        let mut runner = None;
        let mut covered = false;
        for change in log.lines().filter_map(Change::parse) {
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
        seen
    }

    /// What came after `earlier`, an earlier reading of the same log.
    pub(super) fn since(self, earlier: Self) -> Self {
        Self {
            takeovers: self.takeovers - earlier.takeovers,
            cover_lost: self.cover_lost - earlier.cover_lost,
            claims: self.claims - earlier.claims,
        }
    }
}

/// One change of the record.
struct Change<'a> {
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
            runner: field("runner")?,
            has_heir: field("heir")? != "None",
            running: field("phase")? == "Running",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Seen;

    fn line(runner: &str, heir: &str, phase: &str) -> String {
        format!(
            "1970-01-01T00:01:40.1Z  INFO the record has changed machine=m generation=4 runner={runner} heir={heir} phase={phase}\n"
        )
    }

    #[test]
    fn takeovers_are_told_from_cover_that_was_lost() {
        let mut log = "1970-01-01T00:01:40.1Z  INFO the arbiter listens\n".to_owned();
        let first = [("a", "None"), ("a", "Some(b)")];
        for (runner, heir) in first {
            log += &line(runner, heir, "Running");
        }
        let begin = Seen::read(&log);
        assert_eq!(begin, Seen::default());
        // It is let go, and named again.
        log += &line("a", "None", "Running");
        log += &line("a", "Some(b)", "Running");
        // It wins the record against its heir, which is let go by that.
        log += &line("a", "Some(b)", "Claimed");
        log += &line("a", "None", "Running");
        log += &line("a", "Some(b)", "Running");
        let alone = Seen::read(&log);
        assert_eq!(
            alone,
            Seen {
                takeovers: 0,
                cover_lost: 2,
                claims: 1
            }
        );
        // The heir wins, and fills its former runner.
        log += &line("b", "Some(a)", "Claimed");
        log += &line("b", "None", "Running");
        log += &line("b", "Some(a)", "Running");
        let after = Seen::read(&log).since(alone);
        assert_eq!(
            after,
            Seen {
                takeovers: 1,
                cover_lost: 0,
                claims: 1
            }
        );
    }
}
