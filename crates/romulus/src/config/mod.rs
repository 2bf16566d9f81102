//! Machine files: what an operator writes, read into what the machine crate takes.
//!
//! Parsing is pure (text in, [`MachineFile`] out) and collects every problem of a file, each with its place.

mod mode;
mod problem;
mod protection;
#[cfg(test)]
mod protection_tests;
mod reader;
mod schema;
#[cfg(test)]
mod tests;
mod values;

pub use problem::ConfigError;
pub use protection::{IDENTITY, Protection};
pub use values::{check_name, format_mac};

use romulus_machine::config::Config;
use romulus_protocol::id::MachineId;
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// A machine file, parsed and checked for form.
#[derive(Debug, Clone, PartialEq)]
pub struct MachineFile {
    /// What the machine is made of.
    pub machine: Config,
    /// Where the serial console's output goes.
    pub console: ConsoleLog,
    /// What to do when the guest asks for a reset.
    pub on_reboot: After,
    /// What to do when the guest's kernel panics.
    pub on_panic: After,
    /// How long an orderly stop may take before the machine is stopped by force.
    pub stop_timeout: Duration,
    /// The machine's uuid; a protected machine has one.
    pub uuid: Option<MachineId>,
    /// How a second host protects the machine.
    pub protection: Option<Protection>,
}

/// Where the serial console's output goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsoleLog {
    /// To this process's standard output (and from its standard input when that is a terminal).
    Stdio,
    /// To a file that is rotated by size.
    File(LogFile),
}

/// A console log that rotates by size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFile {
    /// The file that is written; older ones are this with `.1`, `.2`, … appended.
    pub path: PathBuf,
    /// Size in bytes at which the file is rotated.
    pub max_size: u64,
    /// How many older files are kept.
    pub keep: u32,
}

/// What to do after the guest ended in some way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// Start the machine again in this process.
    Restart,
    /// End this process, with the exit code for the event.
    Exit,
}

impl MachineFile {
    /// Reads and parses a machine file. Relative paths in it are relative to the file's directory.
    ///
    /// # Errors
    /// A file that cannot be read, and what [`Self::parse`] finds.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read(path).map_err(|source| ConfigError::unreadable(path, &source))?;
        let text = String::from_utf8(text).map_err(|error| ConfigError::not_text(path, &error))?;
        let base = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        Self::parse(&text, path, base)
    }

    /// Parses the text of a machine file. `file` is its name for messages, `base` what relative paths are relative to.
    ///
    /// # Errors
    /// Every problem of the text, each with its place.
    pub fn parse(text: &str, file: &Path, base: &Path) -> Result<Self, ConfigError> {
        schema::parse(text, base).map_err(|problems| ConfigError::new(file, text, problems))
    }
}
