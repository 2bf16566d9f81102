//! Running targets, and reading what libFuzzer says.

use super::build::{Program, folder};
use crate::{
    compile::workspace,
    process::{kill, wait_within},
};
use anyhow::{Context as _, Result, ensure};
use images::Progress;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

/// The longest that one input may take, in seconds. Most take microseconds.
const INPUT_SECONDS: u32 = 10;
/// What a target's process may take, in MiB.
const MEMORY_MIB: u32 = 1024;
/// How much longer than told a target may run: it reads its corpus first.
const PATIENCE: Duration = Duration::from_mins(2);
/// How the names of kept inputs begin that the fuzzer found.
const FOUND: &str = "found-";
/// As many of them are kept for a target, and no longer ones than this, in bytes: they are read in every test.
const FOUND_MAX: usize = 24;
const KEPT_LENGTH: usize = 2048;
/// Lines of a failure's log that are shown.
const SHOWN: usize = 12;

/// Some targets and how long they run.
pub(super) struct Campaign {
    pub(super) programs: Vec<Program>,
    pub(super) time: Duration,
    pub(super) jobs: usize,
}

/// What came of one target.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) target: String,
    pub(super) executions: u64,
    /// Executions a second.
    pub(super) rate: u64,
    /// Inputs that each reach something that the others don't.
    pub(super) inputs: u64,
    /// Edges of the control flow that they reach.
    pub(super) edges: u64,
    pub(super) found: Option<Found>,
    pub(super) log: PathBuf,
}

/// An input that broke a promise.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// In a few words.
    pub(super) what: String,
    /// What the program said.
    pub(super) said: String,
    /// The input, if there is one.
    pub(super) input: Option<PathBuf>,
}

impl Outcome {
    pub(super) fn failed(&self) -> bool {
        self.found.is_some()
    }
}

impl Campaign {
    /// Runs all targets, several at a time, and gives what came of them in their order.
    pub(super) fn run(&self, progress: &Progress) -> Result<Vec<Outcome>> {
        let waiting = Mutex::new(self.programs.iter().enumerate());
        let done = Mutex::new(Vec::new());
        let next = || waiting.lock().expect("no thread panics with it").next();
        thread::scope(|scope| {
            for _ in 0..self.jobs.clamp(1, self.programs.len().max(1)) {
                scope.spawn(|| {
                    while let Some((number, program)) = next() {
                        let outcome = self.one(program, progress);
                        done.lock()
                            .expect("no thread panics with it")
                            .push((number, outcome));
                    }
                });
            }
        });
        let mut done = done.into_inner().expect("no thread panicked");
        done.sort_by_key(|(number, _)| *number);
        done.into_iter().map(|(_, outcome)| outcome).collect()
    }

    fn one(&self, program: &Program, progress: &Progress) -> Result<Outcome> {
        let Program { target, path } = program;
        let [working, findings, logs] = [["corpus", target], ["artifacts", target], ["logs", ""]]
            .map(|[kind, name]| folder().join(kind).join(name));
        for folder in [&working, &findings, &logs] {
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        let log = logs.join(format!("{target}.log"));
        let file = File::create(&log).with_context(|| log.display().to_string())?;
        let seconds = self.time.as_secs();
        let step = progress.step(format!("{target}: {seconds} s"));
        let mut child = Command::new(path)
            .arg(&working)
            .arg(kept(target))
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-timeout={INPUT_SECONDS}"))
            .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
            .arg(format!("-artifact_prefix={}/", findings.display()))
            .arg("-print_final_stats=1")
            .current_dir(workspace())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {}", path.display()))?;
        let deadline = Instant::now() + self.time + PATIENCE;
        let status = loop {
            if let Some(status) = wait_within(&mut child, Duration::from_millis(500))? {
                break Some(status);
            }
            if Instant::now() > deadline {
                kill(&mut child);
                break None;
            }
            let said = read(&log);
            step.set(format!("{target}: {}", last_state(&said).trim()));
        };
        let said = read(&log);
        let mut outcome = Outcome {
            target: target.clone(),
            executions: figure(&said, "stat::number_of_executed_units:").unwrap_or(0),
            rate: figure(&said, "stat::average_exec_per_sec:").unwrap_or(0),
            inputs: after(last_state(&said), "corp:"),
            edges: after(last_state(&said), "cov:"),
            found: None,
            log,
        };
        outcome.found = match status {
            None => Some(Found {
                what: format!("did not end within {} s", (self.time + PATIENCE).as_secs()),
                said: excerpt(&said),
                input: None,
            }),
            Some(status) if !status.success() => Some(found(&said)),
            Some(_) if outcome.executions == 0 => Some(Found {
                what: "ran nothing".into(),
                said: excerpt(&said),
                input: None,
            }),
            Some(_) => None,
        };
        step.done(format!("{target}: {} executions", outcome.executions));
        Ok(outcome)
    }

    /// Adds inputs to the kept corpora, those first that reach most of what nothing there reaches, and says how many.
    pub(super) fn keep(&self, progress: &Progress) -> Result<Vec<(String, usize)>> {
        let mut added = Vec::new();
        for Program { target, path } in &self.programs {
            let step = progress.step(format!("{target}: choosing inputs"));
            let chosen = choose(path, target)?;
            let kept = kept(target);
            let room = FOUND_MAX.saturating_sub(names(&kept, FOUND)?.len());
            for input in chosen.iter().take(room) {
                let name = input.file_name().unwrap_or_default().to_string_lossy();
                // Enough of its SHA-1 to tell it from the others.
                let name = format!("{FOUND}{}", &name[..name.len().min(12)]);
                fs::copy(input, kept.join(name))?;
            }
            let count = chosen.len().min(room);
            step.done(format!("{target}: {count} inputs kept"));
            added.push((target.clone(), count));
        }
        Ok(added)
    }
}

/// Of all inputs that a target has come to, those that the kept corpus lacks: the best first.
fn choose(program: &Path, target: &str) -> Result<Vec<PathBuf>> {
    let merged = folder().join("merged").join(target);
    if merged.exists() {
        fs::remove_dir_all(&merged)?;
    }
    fs::create_dir_all(&merged)?;
    let kept = kept(target);
    let there = names(&kept, "")?;
    for name in &there {
        fs::copy(kept.join(name), merged.join(name))?;
    }
    let status = Command::new(program)
        // What is reached counts, not how often; and a long input shows nothing that a short one does not.
        .args(["-set_cover_merge=1", "-use_counters=0"])
        .arg(format!("-max_len={KEPT_LENGTH}"))
        .args([&merged, &folder().join("corpus").join(target)])
        .current_dir(workspace())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    ensure!(
        status.success(),
        "{target}: libFuzzer can't merge its corpora"
    );
    // It writes them in the order in which it chooses them.
    let mut chosen = Vec::new();
    for name in names(&merged, "")? {
        if !there.contains(&name) {
            let path = merged.join(&name);
            chosen.push((path.metadata()?.modified()?, path));
        }
    }
    chosen.sort();
    Ok(chosen.into_iter().map(|(_, path)| path).collect())
}

/// The names in a folder that begin in this way.
fn names(folder: &Path, beginning: &str) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(beginning) {
            names.push(name);
        }
    }
    Ok(names)
}

/// A target's corpus in the repository.
fn kept(target: &str) -> PathBuf {
    workspace().join("fuzz/corpus").join(target)
}

/// A log so far. It holds inputs as they are, which are no text.
fn read(log: &Path) -> String {
    String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned()
}

/// The last line that tells how far it has come: `#8192 pulse cov: 120 ft: 300 corp: 40/2Kb …`.
fn last_state(said: &str) -> &str {
    said.lines()
        .rev()
        .find(|line| line.starts_with('#') && line.contains("cov:"))
        .unwrap_or("")
}

fn figure(said: &str, name: &str) -> Option<u64> {
    let line = said
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix(name))?;
    line.trim().parse().ok()
}

/// The number behind a word.
fn after(line: &str, word: &str) -> u64 {
    let rest = line
        .split_once(word)
        .map_or("", |(_, rest)| rest)
        .trim_start();
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// What a log says of its end.
fn found(said: &str) -> Found {
    const WRITTEN: &str = "Test unit written to ";
    let input = said
        .lines()
        .rev()
        .find_map(|line| Some(PathBuf::from(line.split_once(WRITTEN)?.1.trim())));
    let name = input.as_deref().and_then(Path::file_name);
    let what = name
        .and_then(|name| name.to_str()?.split_once('-'))
        .map_or("ended with an error", |(kind, _)| kind);
    Found {
        what: what.into(),
        said: excerpt(said),
        input,
    }
}

/// From a panic on, or else the last lines.
fn excerpt(said: &str) -> String {
    let lines: Vec<&str> = said.lines().collect();
    let panic = lines.iter().position(|line| line.contains("panicked at"));
    let from = panic.unwrap_or(lines.len().saturating_sub(SHOWN));
    lines[from..]
        .iter()
        .take(SHOWN)
        .map(|line| format!("  | {}", line.escape_debug()))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::{after, figure, found, last_state};
    use std::path::Path;

    const GOOD: &str = "INFO: seed corpus: files: 24\n#25\tINITED cov: 300 ft: 400 corp: 24/3Kb exec/s: 0\n\
        #1703998\tDONE   cov: 699 ft: 1093 corp: 253/42Kb lim: 4096 exec/s: 106499 rss: 28Mb\n\
        Done 1703998 runs in 16 second(s)\nstat::number_of_executed_units: 1703998\n\
        stat::average_exec_per_sec:     106499\n";

    #[test]
    fn figures_are_read_from_the_log() {
        assert_eq!(
            figure(GOOD, "stat::number_of_executed_units:"),
            Some(1_703_998)
        );
        assert_eq!(figure(GOOD, "stat::average_exec_per_sec:"), Some(106_499));
        assert_eq!(figure(GOOD, "stat::nothing:"), None);
        assert_eq!(after(last_state(GOOD), "cov:"), 699);
        assert_eq!(after(last_state(GOOD), "corp:"), 253);
        assert_eq!(after(last_state("nothing"), "cov:"), 0);
    }

    #[test]
    fn a_crash_names_its_input() {
        let said = "#25\tINITED cov: 3\nthread '<unnamed>' panicked at fuzz/src/wire.rs:9:5:\nno\n\
            artifact_prefix='a/'; Test unit written to a/crash-0123\n";
        let found = found(said);
        assert_eq!(found.what, "crash");
        assert_eq!(found.input.as_deref(), Some(Path::new("a/crash-0123")));
        assert!(found.said.contains("panicked at"), "{}", found.said);
        let bare = super::found("killed");
        assert_eq!(
            (bare.what.as_str(), bare.input),
            ("ended with an error", None)
        );
    }
}
