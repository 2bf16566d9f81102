//! What was run of the table, a line each as soon as it ended, so that a run that was broken off can go on.

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

/// One row in one round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Job {
    /// The row's name.
    pub(crate) row: String,
    /// Which time, from 1.
    pub(crate) round: u32,
}

/// How one row ended in one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// What was run.
    #[serde(flatten)]
    pub(crate) job: Job,
    /// What the random moments came from.
    pub(crate) seed: u64,
    /// Whether all was as the table says.
    pub(crate) passed: bool,
    /// Promises that the oracle saw broken.
    pub(crate) wrong: usize,
    /// Takeovers.
    pub(crate) takeovers: u32,
    /// Requests that were answered.
    pub(crate) answered: usize,
    /// Longest time without an answer while a client asked, in milliseconds.
    pub(crate) gap_ms: f64,
    /// How long it took.
    pub(crate) seconds: f64,
    /// Why it failed, or what else is to be said.
    pub(crate) remark: String,
}

/// The file with all entries.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    path: PathBuf,
}

impl Journal {
    /// The journal at `path`, which need not be there yet.
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Writes an entry down, durably.
    ///
    /// # Errors
    /// The file can't be written.
    pub(crate) fn add(&self, entry: &Entry) -> Result<()> {
        let mut line = serde_json::to_string(entry)?;
        line.push('\n');
        let write = || {
            let mut file = File::options().create(true).append(true).open(&self.path)?;
            file.write_all(line.as_bytes())?;
            file.sync_data()
        };
        write().with_context(|| format!("writing {}", self.path.display()))
    }

    /// All entries. A line that was not finished is no entry.
    ///
    /// # Errors
    /// The file is there and can't be read.
    pub(crate) fn entries(&self) -> Result<Vec<Entry>> {
        if !self.path.try_exists()? {
            return Ok(Vec::new());
        }
        let text = fs::read_to_string(&self.path)
            .with_context(|| format!("reading {}", self.path.display()))?;
        Ok(text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::{Entry, Job, Journal};
    use std::{fs::File, io::Write as _};

    #[test]
    fn what_was_written_is_read_and_half_a_line_is_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let journal = Journal::new(&path);
        assert_eq!(journal.entries().unwrap(), []);
        let entry = Entry {
            job: Job {
                row: "cut".into(),
                round: 2,
            },
            seed: u64::MAX,
            passed: true,
            wrong: 0,
            takeovers: 1,
            answered: 99,
            gap_ms: 640.5,
            seconds: 12.5,
            remark: "\"odd\"\n".into(),
        };
        journal.add(&entry).unwrap();
        let mut file = File::options().append(true).open(&path).unwrap();
        write!(file, "{{\"row\":\"hang\",\"rou").unwrap();
        assert_eq!(journal.entries().unwrap(), [entry]);
    }
}
