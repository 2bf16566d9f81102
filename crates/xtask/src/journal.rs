//! What was run, a line each as soon as it ended, so that a run that was broken off can go on.

use crate::{compile::target_folder, report};
use anyhow::{Context as _, Result};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

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
    pub(crate) fn add<T: Serialize>(&self, entry: &T) -> Result<()> {
        let mut line = serde_json::to_string(entry)?;
        line.push('\n');
        let write = || {
            let mut file = File::options().create(true).append(true).open(&self.path)?;
            file.write_all(line.as_bytes())?;
            file.sync_data()
        };
        write().with_context(|| format!("writing {}", self.path.display()))
    }

    /// Forgets all entries.
    ///
    /// # Errors
    /// The file can't be written.
    pub(crate) fn empty(&self) -> Result<()> {
        fs::write(&self.path, []).with_context(|| format!("writing {}", self.path.display()))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Ends it: the next run of the same command begins anew.
    ///
    /// # Errors
    /// It can't be renamed.
    pub(crate) fn close(&self) -> Result<()> {
        let done = self.path.with_extension("done.jsonl");
        fs::rename(&self.path, &done).with_context(|| format!("renaming {}", self.path.display()))
    }

    /// All entries. A line that was not finished is no entry.
    ///
    /// # Errors
    /// The file is there and can't be read.
    pub(crate) fn entries<T: DeserializeOwned>(&self) -> Result<Vec<T>> {
        if !self.path.try_exists()? {
            return Ok(Vec::new());
        }
        // Bytes: what was broken off may end within a character.
        let text =
            fs::read(&self.path).with_context(|| format!("reading {}", self.path.display()))?;
        Ok(text
            .split(|byte| *byte == b'\n')
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect())
    }
}

/// The journal of a whole run, `what` it is of. It is of this version of the sources alone: what another one did is no part of it.
///
/// # Errors
/// Its folder can't be made.
pub(crate) fn of_run(what: &str, seed: u64) -> Result<Journal> {
    let folder = target_folder().join("test-full");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let name = format!("{what}-{}-seed-{seed}.jsonl", report::commit());
    Ok(Journal::new(&folder.join(name)))
}

/// The journal of a measurement, in the folder of its plots: figures as they come, so that a run that is broken off keeps them.
///
/// # Errors
/// Its folder can't be made.
pub(crate) fn of_figures(name: &str) -> Result<Journal> {
    let folder = target_folder().join("reports");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(Journal::new(&folder.join(format!("{name}.jsonl"))))
}

#[cfg(test)]
mod tests {
    use super::Journal;
    use crate::scenarios::table::{Entry, Job};
    use std::{fs::File, io::Write as _};

    #[test]
    fn what_was_written_is_read_and_half_a_line_is_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let journal = Journal::new(&path);
        assert_eq!(journal.entries::<Entry>().unwrap(), []);
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
        file.write_all(b"{\"row\":\"hang\xc3").unwrap();
        assert_eq!(journal.entries::<Entry>().unwrap(), [entry]);
        journal.close().unwrap();
        assert_eq!(journal.entries::<Entry>().unwrap(), []);
    }
}
