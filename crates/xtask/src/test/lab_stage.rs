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
    result: Result<bool>,
    time: Duration,
    log: PathBuf,
}

/// Prepares what the scenarios need and runs them, at most `jobs` at once.
///
/// # Errors
/// What they need could not be prepared.
pub(super) fn run(scenarios: &[&Scenario], jobs: usize, tally: &mut Tally) -> Result<()> {
    let wanted = Wanted {
        audit: scenarios::need_audit(scenarios),
        images: &scenarios::images(scenarios),
    };
    let assets = Assets::prepare(wanted, &Progress::new())?;
    let folder = tempfile::Builder::new().prefix("romulus-test-").tempdir()?;
    let list = folder.path().join("assets.json");
    assets.write(&list)?;
    // The longest first, so that none of them is left to run alone at the end.
    let mut waiting: Vec<&Scenario> = scenarios.to_vec();
    waiting.sort_by_key(|scenario| scenario.limit);
    let waiting = Mutex::new(waiting);
    let (sender, ended) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..jobs.min(scenarios.len()) {
            let (waiting, list, sender) = (&waiting, &list, sender.clone());
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
    Ok(())
}

fn run_one<'a>(scenario: &'a Scenario, list: &Path) -> Ended<'a> {
    let start = Instant::now();
    let folder = logs(scenario.name);
    let log = folder.join("output.log");
    let result = spawn_and_wait(scenario, list, &folder, &log);
    Ended {
        scenario,
        result,
        time: start.elapsed(),
        log,
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
    match &ended.result {
        Ok(true) => tally.line(name, true, ended.time, ""),
        Ok(false) => {
            let said = fs::read_to_string(&ended.log).unwrap_or_default();
            let error = said.lines().rev().find(|line| line.starts_with("Error: "));
            tally.line(
                name,
                false,
                ended.time,
                error.unwrap_or("it ended without a reason"),
            );
            println!("       consoles and logs: {}", logs(name).display());
        }
        Err(error) => {
            tally.line(name, false, ended.time, &format!("{error:#}"));
            println!("       consoles and logs: {}", logs(name).display());
        }
    }
}

/// Where a scenario's logs are kept.
fn logs(name: &str) -> PathBuf {
    target_folder().join("lab-logs").join(name)
}
