//! Figures as they come, one JSON object a line: a run that is broken off keeps what it has seen.

use anyhow::{Context as _, Result};
use serde::Serialize;
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
        let folder = crate::compile::target_folder().join("reports");
        let path = folder.join(format!("{name}.jsonl"));
        let file = fs::create_dir_all(&folder).and_then(|()| File::create(&path));
        let file = file.with_context(|| format!("writing {}", path.display()))?;
        Ok(Self { path, file })
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
