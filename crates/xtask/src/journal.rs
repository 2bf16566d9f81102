//! What of a long run is done, a line each as soon as it ended, so that a run that was broken off can go on.

use anyhow::{Context as _, Result};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::{self, File},
    io::Write as _,
    marker::PhantomData,
    path::{Path, PathBuf},
};

/// The file with all entries, which are of one type.
#[derive(Debug, Clone)]
pub(crate) struct Journal<E> {
    path: PathBuf,
    entry: PhantomData<fn(E) -> E>,
}

impl<E: Serialize + DeserializeOwned> Journal<E> {
    /// The journal at `path`, which need not be there yet.
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            entry: PhantomData,
        }
    }

    /// Writes an entry down, durably.
    ///
    /// # Errors
    /// The file can't be written.
    pub(crate) fn add(&self, entry: &E) -> Result<()> {
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
    pub(crate) fn entries(&self) -> Result<Vec<E>> {
        if !self.path.try_exists()? {
            return Ok(Vec::new());
        }
        let text =
            fs::read(&self.path).with_context(|| format!("reading {}", self.path.display()))?;
        Ok(text
            .split(|byte| *byte == b'\n')
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::Journal;
    use serde::{Deserialize, Serialize};
    use std::{fs::File, io::Write as _};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Entry {
        seed: u64,
        gap_ms: f64,
        remark: String,
    }

    #[test]
    fn what_was_written_is_read_and_half_a_line_is_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let journal = Journal::new(&path);
        assert_eq!(journal.entries().unwrap(), []);
        let entry = Entry {
            seed: u64::MAX,
            gap_ms: 640.5,
            remark: "\"odd\"\n".into(),
        };
        journal.add(&entry).unwrap();
        let mut file = File::options().append(true).open(&path).unwrap();
        // Half a line, which ends within a character.
        file.write_all(b"{\"seed\":1,\"remark\":\"\xc3").unwrap();
        assert_eq!(journal.entries().unwrap(), [entry]);
    }
}
