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

pub(crate) use problem::ConfigError;
pub(crate) use protection::{IDENTITY, Protection};
pub(crate) use values::{check_name, format_mac};

use romulus_machine::config::Config;
use romulus_protocol::id::MachineId;
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// A machine file, parsed and checked for form.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct MachineFile {
    /// What the machine is made of.
    pub(crate) machine: Config,
    /// Where the serial console's output goes.
    pub(crate) console: ConsoleLog,
    /// What to do when the guest asks for a reset.
    pub(crate) on_reboot: After,
    /// What to do when the guest's kernel panics.
    pub(crate) on_panic: After,
    /// How long an orderly stop may take before the machine is stopped by force.
    pub(crate) stop_timeout: Duration,
    /// The machine's uuid; a protected machine has one.
    pub(crate) uuid: Option<MachineId>,
    /// How a second host protects the machine.
    pub(crate) protection: Option<Protection>,
}

/// Where the serial console's output goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ConsoleLog {
    /// To this process's standard output (and from its standard input when that is a terminal).
    Stdio,
    /// To a file that is rotated by size.
    File(LogFile),
}

/// A console log that rotates by size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogFile {
    /// The file that is written; older ones are this with `.1`, `.2`, … appended.
    pub(crate) path: PathBuf,
    /// Size in bytes at which the file is rotated.
    pub(crate) max_size: u64,
    /// How many older files are kept.
    pub(crate) keep: u32,
}

/// What to do after the guest ended in some way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    /// Start the machine again in this process.
    Restart,
    /// End this process, with the exit code for the event.
    Exit,
}

impl MachineFile {
    /// Reads and parses a machine file. Relative paths in it are relative to the file's directory.
    pub(crate) fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read(path).map_err(|source| ConfigError::unreadable(path, &source))?;
        let text = String::from_utf8(text).map_err(|error| ConfigError::not_text(path, &error))?;
        let base = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        Self::parse(&text, path, base)
    }

    /// Parses the text of a machine file. `file` is its name for messages, `base` what relative paths are relative to.
    pub(crate) fn parse(text: &str, file: &Path, base: &Path) -> Result<Self, ConfigError> {
        schema::parse(text, base).map_err(|problems| ConfigError::new(file, text, problems))
    }
}
