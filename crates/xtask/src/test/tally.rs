//! What passed and what failed.

use std::{process::ExitCode, time::Duration};

/// Counts of tests.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tally {
    passed: u32,
    failed: u32,
    /// Standard output is for something else.
    quiet: bool,
}

impl Tally {
    /// Nothing yet. If it is `quiet`, its lines go to standard error.
    pub(super) fn new(quiet: bool) -> Self {
        Self {
            quiet,
            ..Self::default()
        }
    }

    /// Prints a line of text.
    pub(super) fn say(self, text: &str) {
        if self.quiet {
            eprintln!("{text}");
        } else {
            println!("{text}");
        }
    }

    /// Counts several outcomes.
    pub(super) fn add(&mut self, passed: u32, failed: u32) {
        self.passed += passed;
        self.failed += failed;
    }

    /// Counts one outcome and prints its line.
    pub(super) fn line(&mut self, name: &str, passed: bool, time: Duration, remark: &str) {
        self.add(u32::from(passed), u32::from(!passed));
        self.print_line(name, passed, time, remark);
    }

    /// Prints the line of one check or scenario.
    pub(super) fn print_line(self, name: &str, passed: bool, time: Duration, remark: &str) {
        let verdict = if passed { "ok    " } else { "FAILED" };
        let gap = if remark.is_empty() { "" } else { "  " };
        let seconds = time.as_secs_f64();
        self.say(&format!(
            "{verdict} {name:<28} {seconds:>6.1} s{gap}{remark}"
        ));
    }

    /// Prints the last line and gives the exit code.
    pub(super) fn finish(self) -> ExitCode {
        self.say(&format!("{} passed, {} failed", self.passed, self.failed));
        if self.failed == 0 && self.passed > 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}
