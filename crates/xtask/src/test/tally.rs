//! What passed and what failed.

use std::{process::ExitCode, time::Duration};

/// Counts of tests.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tally {
    passed: u32,
    failed: u32,
}

impl Tally {
    /// Counts several outcomes.
    pub(super) fn add(&mut self, passed: u32, failed: u32) {
        self.passed += passed;
        self.failed += failed;
    }

    /// Counts one outcome and prints its line.
    pub(super) fn line(&mut self, name: &str, passed: bool, time: Duration, remark: &str) {
        self.add(u32::from(passed), u32::from(!passed));
        print_line(name, passed, time, remark);
    }

    /// Prints the last line and gives the exit code.
    pub(super) fn finish(self) -> ExitCode {
        println!("{} passed, {} failed", self.passed, self.failed);
        if self.failed == 0 && self.passed > 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// Prints the line of one check or scenario.
pub(super) fn print_line(name: &str, passed: bool, time: Duration, remark: &str) {
    let verdict = if passed { "ok    " } else { "FAILED" };
    let gap = if remark.is_empty() { "" } else { "  " };
    println!(
        "{verdict} {name:<28} {:>6.1} s{gap}{remark}",
        time.as_secs_f64()
    );
}
