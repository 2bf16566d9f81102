//! Runs the lab scenarios, each in a process and a lab of its own, a few at a time; in the full form round after round.

use super::tally::Tally;
use crate::{
    assets::{Assets, Extra, Wanted},
    compile::target_folder,
    journal::{self, Journal},
    process::{self, THIS_PROGRAM},
    scenarios::{self, Scenario, table::Draw},
};
use anyhow::{Context as _, Result};
use images::Progress;
use serde::{Deserialize, Serialize};
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

/// How a scenario ended in one round of the full form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Outcome {
    scenario: String,
    round: u32,
    passed: bool,
    seconds: f64,
    /// Why it failed.
    remark: String,
}

/// What is to be run.
pub(super) struct Plan<'a> {
    /// Each of these.
    pub(super) scenarios: Vec<&'a Scenario>,
    /// At most so many at once.
    pub(super) jobs: usize,
    /// The full form: so many rounds, in an order out of this seed. What fails is not tried again, and what was run before
    /// it was broken off counts.
    pub(super) rounds: Option<(u32, u64)>,
}

/// A round of the full form.
struct Round<'a> {
    number: u32,
    journal: &'a Journal,
}

/// Prepares what the scenarios need and runs them.
///
/// # Errors
/// What they need could not be prepared, or the journal can't be kept.
pub(super) fn run(plan: &Plan<'_>, tally: &mut Tally) -> Result<()> {
    let scenarios = &plan.scenarios[..];
    let mut extras = Vec::new();
    if scenarios::need_audit(scenarios) {
        extras.push(Extra::Audit);
    }
    if scenarios::need_softphone(scenarios) {
        extras.push(Extra::Softphone);
    }
    let wanted = Wanted {
        extras: &extras,
        images: &scenarios::images(scenarios),
    };
    let assets = Assets::prepare(wanted, &Progress::new())?;
    let folder = tempfile::Builder::new().prefix("romulus-test-").tempdir()?;
    let list = folder.path().join("assets.json");
    assets.write(&list)?;
    let Some((rounds, seed)) = plan.rounds else {
        return run_all(scenarios.to_vec(), plan.jobs, &list, None, tally);
    };
    let journal = journal::of_run("scenarios", seed)?;
    let before: Vec<Outcome> = journal.entries()?;
    for number in 1..=rounds {
        let (ended, left) = split(scenarios, &before, number, seed);
        for outcome in ended {
            outcome.tell("run before; ", tally);
        }
        let round = Round {
            number,
            journal: &journal,
        };
        run_all(left, plan.jobs, &list, Some(&round), tally)?;
    }
    journal.close()
}

/// What of a round was run before, and what is left of it, in the round's own order: what depends on what ran before it is to
/// be seen.
fn split<'s, 'b>(
    scenarios: &[&'s Scenario],
    before: &'b [Outcome],
    round: u32,
    seed: u64,
) -> (Vec<&'b Outcome>, Vec<&'s Scenario>) {
    let of = |name: &str| {
        let mut outcomes = before.iter();
        outcomes.find(|outcome| outcome.round == round && outcome.scenario == name)
    };
    let ended = scenarios.iter().filter_map(|scenario| of(scenario.name));
    let mut left = scenarios.to_vec();
    left.retain(|scenario| of(scenario.name).is_none());
    left.sort_by_cached_key(|scenario| Draw::new(seed, scenario.name, round).next_number());
    (ended.collect(), left)
}

/// Runs these scenarios.
fn run_all(
    scenarios: Vec<&Scenario>,
    jobs: usize,
    list: &Path,
    round: Option<&Round<'_>>,
    tally: &mut Tally,
) -> Result<()> {
    let (pairs, mut singles): (Vec<&Scenario>, Vec<&Scenario>) = scenarios
        .into_iter()
        .partition(|scenario| scenario.hosts > 1);
    if round.is_none() {
        // The longest first, so that none of them is left to run alone at the end.
        singles.sort_by_key(|scenario| scenario.limit);
    }
    run_some(singles, jobs, list, round, tally)?;
    // Two hosts that watch each other's time take all of a small computer.
    run_some(pairs, 1, list, round, tally)
}

/// Runs these scenarios from the last to the first, at most `jobs` at once.
fn run_some(
    waiting: Vec<&Scenario>,
    jobs: usize,
    list: &Path,
    round: Option<&Round<'_>>,
    tally: &mut Tally,
) -> Result<()> {
    let jobs = jobs.min(waiting.len());
    let again = round.is_none();
    let waiting = Mutex::new(waiting);
    let (sender, ended) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..jobs {
            let (waiting, sender) = (&waiting, sender.clone());
            scope.spawn(move || {
                loop {
                    let next = waiting.lock().ok().and_then(|mut waiting| waiting.pop());
                    let Some(scenario) = next else { break };
                    if sender.send(run_one(scenario, list, again)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        for ended in ended {
            match round {
                Some(round) => round.take(&ended, tally)?,
                None => tell(&ended, tally),
            }
        }
        Ok(())
    })
}

impl Round<'_> {
    /// Writes down how a scenario ended, and tells it.
    fn take(&self, ended: &Ended<'_>, tally: &mut Tally) -> Result<()> {
        let outcome = Outcome {
            scenario: ended.scenario.name.to_owned(),
            round: self.number,
            passed: ended.failure.is_none(),
            seconds: ended.time.as_secs_f64(),
            remark: ended.failure.clone().unwrap_or_default(),
        };
        self.journal.add(&outcome)?;
        outcome.tell("", tally);
        if !outcome.passed {
            // The next round's have the same name.
            let folder = logs(ended.scenario.name);
            let kept = folder.with_extension(format!("round-{}", self.number));
            if kept.exists() {
                fs::remove_dir_all(&kept)?;
            }
            fs::rename(&folder, &kept)
                .with_context(|| format!("keeping the logs in {}", kept.display()))?;
            tally.say(&format!("       consoles and logs: {}", kept.display()));
        }
        Ok(())
    }
}

impl Outcome {
    fn tell(&self, prefix: &str, tally: &mut Tally) {
        let remark = format!("{prefix}round {}  {}", self.round, self.remark);
        let time = Duration::from_secs_f64(self.seconds.max(0.0));
        tally.line(&self.scenario, self.passed, time, remark.trim_end());
    }
}

/// Runs a scenario; a second time, if it is to be tried `again`, when it fails, for a shared computer may stand still for longer than any limit bears. Both
/// outcomes are told, so that a test that fails now and then is seen.
fn run_one<'a>(scenario: &'a Scenario, list: &Path, again: bool) -> Ended<'a> {
    let start = Instant::now();
    let folder = logs(scenario.name);
    let mut failure = try_one(scenario, list, &folder);
    let mut first_failure = None;
    if failure.is_some() && again {
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

#[cfg(test)]
mod tests {
    use super::{Outcome, split};
    use crate::scenarios;

    #[test]
    fn a_round_goes_on_where_it_was_in_an_order_of_its_own() {
        let all = scenarios::all();
        let names = |left: &[&scenarios::Scenario]| -> Vec<&str> {
            left.iter().map(|scenario| scenario.name).collect()
        };
        let (ended, first) = split(&all, &[], 1, 7);
        assert!(ended.is_empty() && first.len() == all.len());
        let (_, second) = split(&all, &[], 2, 7);
        assert_ne!(names(&first), names(&second));
        let outcome = |round, passed| Outcome {
            scenario: first[0].name.to_owned(),
            round,
            passed,
            seconds: 1.0,
            remark: String::new(),
        };
        let before = [outcome(2, true), outcome(1, false)];
        let (ended, left) = split(&all, &before, 1, 7);
        assert_eq!(ended, [&before[1]], "a failure counts as well");
        assert_eq!(names(&left), names(&first)[1..]);
    }
}
