//! How far a run is, in a file: a run that was broken off goes on.

use crate::journal::Journal;
use anyhow::{Context as _, Result};
use romulus_telephony::sipstone::{
    jobs::{Effort, Job},
    tables::Line,
};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// The file's name.
const FILE: &str = "journal.jsonl";

/// With what a run began: work that was done with something else is no part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Begun {
    /// How much is measured.
    pub(crate) effort: Effort,
    /// Where random numbers begin.
    pub(crate) seed: u64,
    /// What is measured.
    pub(crate) commit: String,
}

/// A line of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Entry {
    /// The first one.
    Begun(Begun),
    /// A piece of work that is done.
    Done(Done),
    /// The last one: there is nothing to go on with.
    Ended,
}

/// A piece of work that is done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Done {
    job: Job,
    /// How long it took, with the machine's start where it needed one.
    seconds: f64,
    /// What others took of this computer's processors meanwhile, in percent.
    taken: Option<f64>,
    lines: Vec<Line>,
}

/// A run, and what of it is done.
pub(crate) struct Run {
    path: PathBuf,
    journal: Journal,
    begun: Begun,
    done: Vec<Done>,
}

impl Run {
    /// Goes on with the run in `folder` if it was begun as this one is and has not ended; begins anew otherwise. Unless the
    /// seed is fixed, an earlier run's is taken over.
    ///
    /// # Errors
    /// The folder can't be read or written.
    pub(crate) fn open(folder: &Path, begun: Begun, fixed_seed: bool) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let path = folder.join(FILE);
        let journal = Journal::new(&path);
        if let Some((begun, done)) = resumed(journal.entries()?, &begun, fixed_seed) {
            return Ok(Self {
                path,
                journal,
                begun,
                done,
            });
        }
        if path.try_exists()? {
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
        journal.add(&Entry::Begun(begun.clone()))?;
        Ok(Self {
            path,
            journal,
            begun,
            done: Vec::new(),
        })
    }

    /// With what it began.
    pub(crate) fn begun(&self) -> &Begun {
        &self.begun
    }

    /// Whether a piece of work is done.
    pub(crate) fn is_done(&self, job: &Job) -> bool {
        self.done.iter().any(|done| done.job == *job)
    }

    /// Notes that a piece of work is done.
    ///
    /// # Errors
    /// The file can't be written.
    pub(crate) fn done(
        &mut self,
        job: &Job,
        lines: Vec<Line>,
        took: Duration,
        taken: Option<f64>,
    ) -> Result<()> {
        let done = Done {
            job: *job,
            seconds: took.as_secs_f64(),
            taken,
            lines,
        };
        self.journal.add(&Entry::Done(done.clone()))?;
        self.done.push(done);
        self.done.sort_by_key(|done| done.job);
        Ok(())
    }

    /// Notes that there is nothing to go on with.
    ///
    /// # Errors
    /// The file can't be written.
    pub(crate) fn end(&self) -> Result<()> {
        self.journal
            .add(&Entry::Ended)
            .with_context(|| format!("ending {}", self.path.display()))
    }

    /// All that was measured, in the order of the work.
    pub(crate) fn lines(&self) -> impl Iterator<Item = &Line> {
        self.done.iter().flat_map(|done| &done.lines)
    }

    /// How long all of it took, in seconds.
    pub(crate) fn seconds(&self) -> f64 {
        self.done.iter().map(|done| done.seconds).sum()
    }

    /// The most that others took of this computer during a piece of work, in percent.
    pub(crate) fn taken_at_most(&self) -> Option<f64> {
        let taken = self.done.iter().filter_map(|done| done.taken);
        taken.max_by(f64::total_cmp)
    }
}

/// What of a journal belongs to a run that begins so; `None` if it is another run's, or ended. A piece of work whose lines do
/// not fit into the tables is not done.
fn resumed(entries: Vec<Entry>, begun: &Begun, fixed_seed: bool) -> Option<(Begun, Vec<Done>)> {
    let mut entries = entries.into_iter();
    let Some(Entry::Begun(was)) = entries.next() else {
        return None;
    };
    let same = was.effort == begun.effort
        && was.commit == begun.commit
        // What differs from a commit may differ from itself an hour ago.
        && !begun.commit.ends_with("+dirty")
        && (was.seed == begun.seed || !fixed_seed);
    if !same {
        return None;
    }
    let mut done: Vec<Done> = Vec::new();
    for entry in entries {
        match entry {
            Entry::Done(one) if one.lines.iter().all(Line::fits) => {
                done.retain(|earlier| earlier.job != one.job);
                done.push(one);
            }
            Entry::Done(_) => {}
            Entry::Begun(_) | Entry::Ended => return None,
        }
    }
    done.sort_by_key(|done| done.job);
    Some((was, done))
}

#[cfg(test)]
mod tests {
    use super::{Begun, Entry, FILE, Run};
    use crate::journal::Journal;
    use romulus_telephony::sipstone::{
        jobs::{EXPERIMENTS, Effort, Job, jobs},
        tables::{CAPACITY, Line},
    };
    use std::{fs::File, io::Write as _, path::Path, time::Duration};

    fn begun(seed: u64, commit: &str) -> Begun {
        Begun {
            effort: Effort::Quick,
            seed,
            commit: commit.into(),
        }
    }

    fn work() -> Vec<Job> {
        jobs(Effort::Quick, &EXPERIMENTS)
    }

    fn line() -> Line {
        let cells = vec![
            1.0.into(),
            "net".into(),
            "UDP".into(),
            90.0.into(),
            "yes".into(),
        ];
        Line::new(&CAPACITY, cells)
    }

    /// A run of which two pieces of work are done, the later one first.
    fn broken_off(folder: &Path) {
        let mut run = Run::open(folder, begun(7, "abc"), true).unwrap();
        for index in [1, 0] {
            let took = Duration::from_secs(2);
            run.done(&work()[index], vec![line()], took, Some(1.0))
                .unwrap();
        }
    }

    #[test]
    fn a_run_goes_on_where_it_was_broken_off() {
        let folder = tempfile::tempdir().unwrap();
        broken_off(folder.path());
        let mut file = File::options()
            .append(true)
            .open(folder.path().join(FILE))
            .unwrap();
        write!(file, "{{\"done\":{{\"job\":").unwrap();
        // Another seed was drawn meanwhile: that of the run counts.
        let run = Run::open(folder.path(), begun(8, "abc"), false).unwrap();
        assert_eq!(run.begun().seed, 7);
        assert_eq!(
            work().iter().filter(|job| run.is_done(job)).count(),
            2,
            "half a line is no work"
        );
        assert_eq!(run.lines().count(), 2);
        assert!((run.seconds() - 4.0).abs() < 1e-9);
        assert_eq!(run.taken_at_most(), Some(1.0));
    }

    #[test]
    fn what_was_done_otherwise_is_not_gone_on_with() {
        for (other, fixed) in [
            (begun(8, "abc"), true),
            (begun(7, "def"), true),
            (begun(7, "abc+dirty"), true),
            (
                Begun {
                    effort: Effort::Full,
                    ..begun(7, "abc")
                },
                false,
            ),
        ] {
            let folder = tempfile::tempdir().unwrap();
            broken_off(folder.path());
            let run = Run::open(folder.path(), other.clone(), fixed).unwrap();
            assert_eq!((run.begun(), run.lines().count()), (&other, 0));
            // And the file is the new run's.
            let run = Run::open(folder.path(), other, fixed).unwrap();
            assert_eq!(run.lines().count(), 0);
        }
    }

    #[test]
    fn what_is_in_no_commit_is_not_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let changed = begun(7, "abc+dirty");
        let mut run = Run::open(folder.path(), changed.clone(), true).unwrap();
        run.done(&work()[0], vec![line()], Duration::ZERO, None)
            .unwrap();
        let run = Run::open(folder.path(), changed, true).unwrap();
        assert_eq!(run.lines().count(), 0);
    }

    #[test]
    fn a_run_that_ended_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        broken_off(folder.path());
        let run = Run::open(folder.path(), begun(7, "abc"), true).unwrap();
        run.end().unwrap();
        let run = Run::open(folder.path(), begun(7, "abc"), true).unwrap();
        assert_eq!(run.lines().count(), 0);
    }

    #[test]
    fn work_whose_lines_do_not_fit_is_done_again() {
        let folder = tempfile::tempdir().unwrap();
        broken_off(folder.path());
        let journal = Journal::new(&folder.path().join(FILE));
        let mut entries = journal.entries::<Entry>().unwrap();
        let Some(Entry::Done(done)) = entries.pop() else {
            panic!("the last entry is no work")
        };
        let mut short = done.clone();
        short.lines[0].cells.pop();
        short.job = work()[2];
        journal.add(&Entry::Done(short)).unwrap();
        let run = Run::open(folder.path(), begun(7, "abc"), true).unwrap();
        assert!(run.is_done(&done.job) && !run.is_done(&work()[2]));
    }
}
