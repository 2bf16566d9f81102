//! The checks and tests that need no lab.

use super::tally::Tally;
use crate::{assets::Etcd, compile::cargo, fuzz};
use anyhow::{Context as _, Result};
use images::{Progress, ensure_packages};
use std::{
    env,
    ffi::OsString,
    iter,
    path::PathBuf,
    process::{Command, Output, Stdio},
    time::Instant,
};

/// The Debian packages whose programs the native tests compare with: what we write ourselves, others must be able to read.
const COMPARED_WITH: [&str; 7] = [
    "cpio",
    "e2fsprogs",
    "iproute2",
    "kmod",
    "openssl",
    "tshark",
    "xz-utils",
];

/// What installs the program that reads deny.toml: the newest version may refuse a configuration that this one takes.
const CARGO_DENY: &str = "cargo-deny@0.20.2";

/// One check.
pub(super) struct Check {
    /// Its name on the command line.
    pub(super) name: &'static str,
    /// What it checks.
    pub(super) what: &'static str,
    run: fn() -> Result<Verdict>,
}

/// What came of a check.
struct Verdict {
    passed: u32,
    failed: u32,
    remark: String,
    /// Shown if something failed.
    output: String,
}

/// All checks, in the order in which they run: the quick ones first.
pub(super) const ALL: [Check; 5] = [
    Check {
        name: "format",
        what: "cargo fmt --check",
        run: format,
    },
    Check {
        name: "lints",
        what: "clippy, pedantic, warnings denied, all targets",
        run: lints,
    },
    Check {
        name: "dependencies",
        what: "cargo deny: bans, licences, sources, advisories",
        run: dependencies,
    },
    Check {
        name: "native",
        what: "unit and integration tests of all crates",
        run: native,
    },
    Check {
        name: "fuzz",
        what: "every fuzz target for some seconds",
        run: fuzzed,
    },
];

impl Check {
    /// Runs the check and prints its line; what it printed is shown if it failed.
    pub(super) fn run(&self, tally: &mut Tally) {
        let start = Instant::now();
        let verdict = (self.run)().unwrap_or_else(|error| Verdict {
            passed: 0,
            failed: 1,
            remark: String::new(),
            output: format!("{error:#}"),
        });
        if verdict.failed > 0 {
            eprintln!("{}", verdict.output.trim_end());
        }
        tally.add(verdict.passed, verdict.failed);
        tally.print_line(
            self.name,
            verdict.failed == 0,
            start.elapsed(),
            &verdict.remark,
        );
    }
}

impl Verdict {
    fn of(output: &Output) -> Self {
        let passed = output.status.success();
        Self {
            passed: u32::from(passed),
            failed: u32::from(!passed),
            remark: String::new(),
            output: text(output),
        }
    }
}

fn format() -> Result<Verdict> {
    Ok(Verdict::of(&output(
        cargo().args(["fmt", "--all", "--check"]),
    )?))
}

fn lints() -> Result<Verdict> {
    let arguments = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ];
    Ok(Verdict::of(&output(cargo().args(arguments))?))
}

fn dependencies() -> Result<Verdict> {
    if !cargo()
        .args(["deny", "--version"])
        .output()
        .is_ok_and(|output| output.status.success())
    {
        eprintln!("installing cargo-deny (once; some minutes)");
        let installed = cargo()
            .args(["install", "--locked", "--quiet", CARGO_DENY])
            .status()?;
        anyhow::ensure!(
            installed.success(),
            "cargo-deny can't be installed; try: cargo install --locked {CARGO_DENY}"
        );
    }
    let mut verdict = Verdict::of(&output(
        cargo().args(["deny", "check", "bans", "licenses", "sources"]),
    )?);
    if verdict.failed > 0 {
        return Ok(verdict);
    }
    let advisories = output(cargo().args(["deny", "check", "advisories"]))?;
    if advisories.status.success() {
        return Ok(verdict);
    }
    let said = text(&advisories);
    if database_is_out_of_reach(&said) {
        verdict.remark =
            "bans, licences, sources; NOT advisories: their database can't be fetched from here"
                .into();
        return Ok(verdict);
    }
    Ok(Verdict::of(&advisories))
}

fn native() -> Result<Verdict> {
    let progress = Progress::new();
    ensure_packages(&COMPARED_WITH, &progress)?;
    let etcd = Etcd::folder(&progress)?;
    let output = output(cargo().env("PATH", path_with(etcd)?).args([
        "test",
        "--workspace",
        "--quiet",
        "--no-fail-fast",
    ]))?;
    let said = text(&output);
    let (passed, mut failed) = count_tests(&said);
    if !output.status.success() && failed == 0 {
        // It did not compile, or a test took the whole process with it.
        failed = 1;
    }
    Ok(Verdict {
        passed,
        failed,
        remark: format!("{passed} passed, {failed} failed"),
        output: said,
    })
}

/// Where programs are looked for, with `folder` before all others.
fn path_with(folder: PathBuf) -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = iter::once(folder).chain(env::split_paths(&path));
    env::join_paths(folders).context("the cache's path has a colon in it")
}

fn fuzzed() -> Result<Verdict> {
    let short = fuzz::short()?;
    Ok(Verdict {
        passed: short.passed,
        failed: short.failed,
        remark: short.remark,
        output: short.failures,
    })
}

/// Whether cargo-deny failed only because it could not get the advisories.
fn database_is_out_of_reach(said: &str) -> bool {
    said.contains("failed to fetch advisory database")
        || said.contains("failed to load advisory database")
}

/// Sums the lines `test result: ok. 3 passed; 0 failed; …` of all test programs.
fn count_tests(said: &str) -> (u32, u32) {
    let number = |line: &str, what: &str| -> u32 {
        line.split([';', '.'])
            .find_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok())
            .unwrap_or(0)
    };
    said.lines()
        .filter(|line| line.starts_with("test result:"))
        .fold((0, 0), |(passed, failed), line| {
            (
                passed + number(line, "passed"),
                failed + number(line, "failed"),
            )
        })
}

fn output(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .context("running cargo")
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[cfg(test)]
mod tests {
    use super::count_tests;

    #[test]
    fn results_of_all_test_programs_are_summed() {
        let said = "running 3 tests\n...\n\
            test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
            test result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s\n";
        assert_eq!(count_tests(said), (13, 2));
        assert_eq!(count_tests("error: could not compile"), (0, 0));
    }
}
