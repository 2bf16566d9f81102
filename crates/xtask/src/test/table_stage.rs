//! Plays the fault table: courses of rows, each course in a process and a lab of its own, and a line for each row.

use super::tally::Tally;
use crate::{
    assets::{Assets, Extra, Image, Wanted},
    compile::target_folder,
    journal::{self, Journal},
    process::{self, THIS_PROGRAM},
    report::{Report, Row as Measured, Target},
    scenarios::table::{Entry, Job, ROW_LIMIT, Row},
};
use anyhow::{Context as _, Result};
use images::Progress;
use std::{
    collections::VecDeque,
    fmt::Write as _,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// How rows are called beside the other tests.
pub(super) const PREFIX: &str = "table/";
/// How many rows share a lab at most: what one of them leaves behind is not to be everybody's.
const COURSE: usize = 16;
/// From one look at what a course has written down to the next.
const LOOK: Duration = Duration::from_millis(500);
/// How long a lab may take to start.
const LAB_START: Duration = Duration::from_mins(2);

/// What of the table is to be played.
pub(super) struct Plan {
    /// Each of these rows.
    pub(super) rows: Vec<&'static Row>,
    /// So many times.
    pub(super) rounds: u32,
    /// With random moments out of this.
    pub(super) seed: u64,
    /// Whether it is the full form: what fails is not tried again, and what was played before it was broken off counts.
    pub(super) full: bool,
}

/// What came of it.
pub(super) struct Table {
    rows: Vec<&'static Row>,
    entries: Vec<Entry>,
}

impl Plan {
    /// Round after round, so that a run that is broken off has something of every row. Those with another setting come last:
    /// each change of it costs a boot. What is quick comes first.
    fn jobs(&self) -> Vec<Job> {
        let mut rows = self.rows.clone();
        rows.sort_by_key(|row| (row.setting, !row.short));
        (1..=self.rounds)
            .flat_map(|round| {
                rows.iter().map(move |row| Job {
                    row: row.name.to_owned(),
                    round,
                })
            })
            .collect()
    }
}

/// Plays the table.
///
/// # Errors
/// What it needs could not be prepared, or its journal can't be kept.
pub(super) fn run(plan: &Plan, tally: &mut Tally) -> Result<Table> {
    let mut extras = vec![Extra::Witness];
    if plan.rows.iter().any(|row| row.setting.etcd) {
        extras.push(Extra::Etcd);
    }
    let assets = Assets::prepare(
        Wanted {
            extras: &extras,
            images: &[Image::BASE_12],
        },
        &Progress::new(),
    )?;
    let folder = tempfile::Builder::new()
        .prefix("romulus-table-")
        .tempdir()?;
    let list = folder.path().join("assets.json");
    assets.write(&list)?;
    let stage = Stage {
        plan,
        list,
        journal: if plan.full {
            journal::of_run("table", plan.seed)?
        } else {
            Journal::new(&folder.path().join("journal.jsonl"))
        },
    };
    stage.play_all(tally)
}

struct Stage<'a> {
    plan: &'a Plan,
    list: PathBuf,
    journal: Journal,
}

impl Stage<'_> {
    fn play_all(&self, tally: &mut Tally) -> Result<Table> {
        let jobs = self.plan.jobs();
        let mut entries: Vec<Entry> = self.journal.entries()?;
        entries.retain(|entry| jobs.contains(&entry.job));
        for entry in &entries {
            tell(entry, "played before; ", tally);
        }
        let played = |job: &Job| entries.iter().any(|entry| entry.job == *job);
        let mut waiting: VecDeque<Job> = jobs.iter().filter(|job| !played(job)).cloned().collect();
        let mut tried_twice: Vec<Job> = Vec::new();
        let mut course = 0;
        while !waiting.is_empty() {
            course += 1;
            let batch: Vec<Job> = waiting.iter().take(COURSE).cloned().collect();
            self.course(&batch, course, |entry, logs| {
                waiting.retain(|job| *job != entry.job);
                // A computer that stood still is an excuse, a broken promise is none.
                let again = !self.plan.full
                    && !entry.passed
                    && entry.wrong == 0
                    && !tried_twice.contains(&entry.job);
                if again {
                    tally.say(&format!(
                        "       {} is tried once more: {}",
                        entry.job.row, entry.remark
                    ));
                    tried_twice.push(entry.job.clone());
                    waiting.push_back(entry.job.clone());
                } else {
                    let second = tried_twice.contains(&entry.job);
                    tell(
                        &entry,
                        if second { "at the second try; " } else { "" },
                        tally,
                    );
                }
                if !entry.passed {
                    tally.say(&format!("       consoles and logs: {}", logs.display()));
                }
                if !again {
                    entries.push(entry);
                }
            })?;
        }
        if self.plan.full {
            self.journal.close()?;
        }
        Ok(Table {
            rows: self.plan.rows.clone(),
            entries,
        })
    }

    /// Plays rows in a lab of their own until one fails. `take` gets each outcome as soon as it is written down, with the
    /// folder of its logs; at least that of the first row.
    fn course(&self, batch: &[Job], number: u32, mut take: impl FnMut(Entry, &Path)) -> Result<()> {
        let before = self.journal.entries::<Entry>()?.len();
        let folder = target_folder()
            .join("lab-logs/table")
            .join(format!("course-{number}"));
        if folder.exists() {
            fs::remove_dir_all(&folder)
                .with_context(|| format!("removing old logs in {}", folder.display()))?;
        }
        fs::create_dir_all(&folder)?;
        let log = folder.join("output.log");
        let mut child = self.spawn(batch, &folder, &log)?;
        let limit = LAB_START + ROW_LIMIT * u32::try_from(batch.len()).unwrap_or(u32::MAX);
        let begin = Instant::now();
        let mut taken = 0;
        loop {
            let ended = process::wait_within(&mut child, LOOK)?.is_some();
            let late = begin.elapsed() > limit;
            if late {
                process::kill(&mut child);
            }
            for entry in self.journal.entries()?.into_iter().skip(before + taken) {
                taken += 1;
                take(entry, &folder);
            }
            if ended || late {
                break;
            }
        }
        if taken > 0 {
            return Ok(());
        }
        let said = fs::read_to_string(&log).unwrap_or_default();
        let error = said.lines().rev().find(|line| line.starts_with("Error: "));
        let lost = Entry {
            job: batch.first().cloned().context("a course without rows")?,
            seed: self.plan.seed,
            passed: false,
            wrong: 0,
            takeovers: 0,
            answered: 0,
            gap_ms: 0.0,
            seconds: begin.elapsed().as_secs_f64(),
            remark: error.unwrap_or("it ended without a word").to_owned(),
        };
        self.journal.add(&lost)?;
        take(lost, &folder);
        Ok(())
    }

    fn spawn(&self, batch: &[Job], folder: &Path, log: &Path) -> Result<Child> {
        let output = File::create(log)?;
        Command::new(THIS_PROGRAM)
            .arg("course")
            .args(batch.iter().map(|job| format!("{}:{}", job.row, job.round)))
            .arg("--seed")
            .arg(self.plan.seed.to_string())
            .arg("--logs")
            .arg(folder)
            .arg("--journal")
            .arg(self.journal.path())
            .arg("--assets")
            .arg(&self.list)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("starting a course of the fault table")
    }
}

fn tell(entry: &Entry, prefix: &str, tally: &mut Tally) {
    let name = format!("{PREFIX}{}", entry.job.row);
    tally.line(
        &name,
        entry.passed,
        Duration::from_secs_f64(entry.seconds.max(0.0)),
        &format!("{prefix}{}", entry.remark),
    );
}

/// What all rounds of one row came to.
struct Counts {
    runs: usize,
    passed: usize,
    takeovers: u32,
    wrong: usize,
    answered: usize,
    gap_ms: f64,
}

impl Table {
    fn counts(&self, row: Option<&Row>) -> Counts {
        let mut counts = Counts {
            runs: 0,
            passed: 0,
            takeovers: 0,
            wrong: 0,
            answered: 0,
            gap_ms: 0.0,
        };
        for entry in &self.entries {
            if row.is_some_and(|row| row.name != entry.job.row) {
                continue;
            }
            counts.runs += 1;
            counts.passed += usize::from(entry.passed);
            counts.takeovers += entry.takeovers;
            counts.wrong += entry.wrong;
            counts.answered += entry.answered;
            counts.gap_ms = counts.gap_ms.max(entry.gap_ms);
        }
        counts
    }

    /// The table for people, as it goes into the documents.
    pub(super) fn text(&self) -> String {
        let mut text = String::from(
            "| row | event | what follows | runs | as told | takeovers | wrong | requests answered | longest silence |\n\
             | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n",
        );
        let mut line = |start: String, counts: &Counts| {
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "| {start} | {} | {} | {} | {} | {} | {:.1} s |",
                counts.runs,
                counts.passed,
                counts.takeovers,
                counts.wrong,
                counts.answered,
                counts.gap_ms / 1e3
            );
        };
        for row in &self.rows {
            let short = if row.short { ", short" } else { "" };
            line(
                format!("`{}`{short} | {} | {}", row.name, row.event, row.follows),
                &self.counts(Some(row)),
            );
        }
        line("all | | ".to_owned(), &self.counts(None));
        text
    }

    /// The same for programs.
    #[allow(clippy::cast_precision_loss, reason = "numbers of runs and requests")]
    pub(super) fn report(&self, kind: lab::Kind) -> Report {
        let mut report = Report::new("fault-table", kind);
        let all = self.rows.iter().map(|row| (row.name, Some(*row)));
        for (name, row) in all.chain([("all", None)]) {
            let counts = self.counts(row);
            let value =
                |what: &str, value: f64| Measured::new(format!("{name}: {what}"), "", value);
            report.rows.extend([
                value("runs", counts.runs as f64),
                value("as told", counts.passed as f64)
                    .target(Target::AtLeast(counts.runs.max(1) as f64)),
                value("wrong", counts.wrong as f64).target(Target::AtMost(0.0)),
                value("takeovers", f64::from(counts.takeovers)),
                value("requests answered", counts.answered as f64),
                Measured::new(format!("{name}: longest silence"), "ms", counts.gap_ms),
            ]);
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use super::{Entry, Job, Plan, Table};
    use crate::scenarios::table;

    fn entry(row: &str, round: u32, passed: bool, wrong: usize) -> Entry {
        Entry {
            job: Job {
                row: row.into(),
                round,
            },
            seed: 1,
            passed,
            wrong,
            takeovers: 1,
            answered: 100,
            gap_ms: 700.0,
            seconds: 1.0,
            remark: String::new(),
        }
    }

    #[test]
    fn every_row_is_played_in_every_round() {
        let plan = Plan {
            rows: table::all(),
            rounds: 2,
            seed: 1,
            full: true,
        };
        let jobs = plan.jobs();
        assert_eq!(jobs.len(), 2 * table::all().len());
        for row in table::all() {
            for round in 1..=2 {
                let job = Job {
                    row: row.name.into(),
                    round,
                };
                assert!(jobs.contains(&job), "{job:?}");
            }
        }
    }

    #[test]
    fn rounds_are_summed() {
        let rows: Vec<_> = table::all().into_iter().take(2).collect();
        let table = Table {
            entries: vec![
                entry(rows[0].name, 1, true, 0),
                entry(rows[0].name, 2, false, 3),
                entry(rows[1].name, 1, true, 0),
            ],
            rows: rows.clone(),
        };
        let text = table.text();
        let first = text
            .lines()
            .find(|line| line.contains(rows[0].event))
            .unwrap();
        assert!(
            first.ends_with("| 2 | 1 | 2 | 3 | 200 | 0.7 s |"),
            "{first}"
        );
        assert!(
            text.ends_with("| all | |  | 3 | 2 | 3 | 3 | 300 | 0.7 s |\n"),
            "{text}"
        );
        let report = table.report(lab::Kind::Qemu);
        let wrong = report
            .rows
            .iter()
            .find(|row| row.what == "all: wrong")
            .unwrap();
        assert_eq!((wrong.value, wrong.met), (Some(3.0), Some(false)));
    }
}
