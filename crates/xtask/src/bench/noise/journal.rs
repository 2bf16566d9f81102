//! Figures as they come, one JSON object a line: a run that is broken off keeps what it has seen.

use anyhow::{Context as _, Result};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::{self, File},
    io::Write as _,
    path::PathBuf,
};

/// A file that grows.
pub(super) struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Begins `target/reports/NAME.jsonl`; an earlier run's is replaced.
    ///
    /// # Errors
    /// The file can't be written.
    pub(super) fn begin(name: &str) -> Result<Self> {
        let path = path(name);
        let folder = path.parent().unwrap_or(&path);
        let file = fs::create_dir_all(folder).and_then(|()| File::create(&path));
        let file = file.with_context(|| format!("writing {}", path.display()))?;
        Ok(Self { path, file })
    }

    /// What an earlier run has left in `target/reports/NAME.jsonl`: nothing where there is none. A last line that was cut short is
    /// left out.
    pub(super) fn earlier<T: DeserializeOwned>(name: &str) -> Vec<T> {
        let path = path(name);
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// The file can't be written.
    pub(super) fn add(&mut self, entry: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        self.file
            .write_all(&line)
            .with_context(|| format!("writing {}", self.path.display()))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &std::path::Path {
        &self.path
    }
}

fn path(name: &str) -> PathBuf {
    crate::compile::target_folder()
        .join("reports")
        .join(format!("{name}.jsonl"))
}
