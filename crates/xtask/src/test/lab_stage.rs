//! Runs the lab scenarios, each in a process and a lab of its own, a few at a time.

use super::tally::Tally;
use crate::{
    assets::{Assets, Wanted},
    compile::target_folder,
    process::{self, THIS_PROGRAM},
    scenarios::{self, Scenario},
};
use anyhow::{Context as _, Result};
use images::Progress;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

/// How long a lab may take to start, and a scenario that is late to keep its logs.
const LAB_START: Duration = Duration::from_mins(2);

/// How one scenario ended.
struct Ended<'a> {
    scenario: &'a Scenario,
    /// Why it failed, if it did.
    failure: Option<String>,
    /// Why it failed at the first try, if it was tried twice.
    first_failure: Option<String>,
    time: Duration,
}

/// Prepares what the scenarios need and runs them, at most `jobs` at once.
///
/// # Errors
/// What they need could not be prepared.
pub(super) fn run(scenarios: &[&Scenario], jobs: usize, tally: &mut Tally) -> Result<()> {
    let wanted = Wanted {
        audit: scenarios::need_audit(scenarios),
        witness: false,
        softphone: scenarios::need_softphone(scenarios),
        images: &scenarios::images(scenarios),
    };
    let assets = Assets::prepare(wanted, &Progress::new())?;
    let folder = tempfile::Builder::new().prefix("romulus-test-").tempdir()?;
    let list = folder.path().join("assets.json");
    assets.write(&list)?;
    let (pairs, singles): (Vec<&Scenario>, Vec<&Scenario>) =
        scenarios.iter().partition(|scenario| scenario.hosts > 1);
    run_some(singles, jobs, &list, tally);
    // Two hosts that watch each other's time take all of a small computer.
    run_some(pairs, 1, &list, tally);
    Ok(())
}

/// Runs these scenarios, at most `jobs` at once.
fn run_some(mut waiting: Vec<&Scenario>, jobs: usize, list: &Path, tally: &mut Tally) {
    let jobs = jobs.min(waiting.len());
    // The longest first, so that none of them is left to run alone at the end.
    waiting.sort_by_key(|scenario| scenario.limit);
    let waiting = Mutex::new(waiting);
    let (sender, ended) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..jobs {
            let (waiting, sender) = (&waiting, sender.clone());
            scope.spawn(move || {
                loop {
                    let next = waiting.lock().ok().and_then(|mut waiting| waiting.pop());
                    let Some(scenario) = next else { break };
                    if sender.send(run_one(scenario, list)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        for ended in ended {
            tell(&ended, tally);
        }
    });
}

/// Runs a scenario; a second time if it fails, for a shared computer may stand still for longer than any limit bears. Both
/// outcomes are told, so that a test that fails now and then is seen.
fn run_one<'a>(scenario: &'a Scenario, list: &Path) -> Ended<'a> {
    let start = Instant::now();
    let folder = logs(scenario.name);
    let mut failure = try_one(scenario, list, &folder);
    let mut first_failure = None;
    if failure.is_some() {
        let kept = first_try(&folder);
        // What cannot be kept is lost; the failure itself is told all the same.
        let _ = fs::remove_dir_all(&kept);
        let _ = fs::rename(&folder, &kept);
        first_failure = failure;
        failure = try_one(scenario, list, &folder);
    }
    Ended {
        scenario,
        failure,
        first_failure,
        time: start.elapsed(),
    }
}

/// Runs a scenario once: why it failed, if it did.
fn try_one(scenario: &Scenario, list: &Path, folder: &Path) -> Option<String> {
    let log = folder.join("output.log");
    match spawn_and_wait(scenario, list, folder, &log) {
        Ok(true) => None,
        Ok(false) => {
            let said = fs::read_to_string(log).unwrap_or_default();
            let error = said.lines().rev().find(|line| line.starts_with("Error: "));
            Some(error.unwrap_or("it ended without a reason").to_owned())
        }
        Err(error) => Some(format!("{error:#}")),
    }
}

/// Whether the scenario passed.
fn spawn_and_wait(scenario: &Scenario, list: &Path, folder: &Path, log: &Path) -> Result<bool> {
    if folder.exists() {
        fs::remove_dir_all(folder)
            .with_context(|| format!("removing old logs in {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let output = File::create(log)?;
    let folder_name = folder
        .to_str()
        .context("the target folder's path is not UTF-8")?;
    let mut child = Command::new(THIS_PROGRAM)
        .args(["scenario", scenario.name, "--logs", folder_name, "--assets"])
        .arg(list)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .context("starting the scenario")?;
    let Some(status) = process::wait_within(&mut child, scenario.limit + LAB_START)? else {
        // The lab's namespaces and all in them end with this process.
        process::kill(&mut child);
        anyhow::bail!(
            "not even ended {} s after its deadline",
            LAB_START.as_secs()
        );
    };
    Ok(status.success())
}

/// Prints a scenario's line, and where to look if it failed.
fn tell(ended: &Ended<'_>, tally: &mut Tally) {
    let name = ended.scenario.name;
    let remark = match (&ended.failure, &ended.first_failure) {
        (Some(failure), _) => format!("twice; {failure}"),
        (None, Some(first)) => format!("at the second try; at the first: {first}"),
        (None, None) => String::new(),
    };
    tally.line(name, ended.failure.is_none(), ended.time, &remark);
    let folder = logs(name);
    if ended.failure.is_some() {
        tally.say(&format!("       consoles and logs: {}", folder.display()));
    }
    if ended.first_failure.is_some() {
        tally.say(&format!(
            "       consoles and logs of the first try: {}",
            first_try(&folder).display()
        ));
    }
}

/// Where the logs of a scenario's first try are kept, if there was a second.
fn first_try(folder: &Path) -> PathBuf {
    folder.with_extension("first")
}

/// Where a scenario's logs are kept.
fn logs(name: &str) -> PathBuf {
    target_folder().join("lab-logs").join(name)
}
