//! Why a machine could not be made, run, captured or restored.

use std::{io, path::PathBuf};

/// An error of a machine. Its text says what failed and, where something can be done, what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A KVM call failed.
    #[error("KVM refused {call}: {source}")]
    Kvm {
        /// The call's name in the kernel's documentation.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file of the machine cannot be opened or read.
    #[error("{what} {}: {source}", path.display())]
    File {
        /// What the file is for: "kernel", "initrd", "disk".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file is not what it should be, or the machine cannot be as asked.
    #[error("{0}")]
    Invalid(String),
    /// Captured state cannot be used.
    #[error("captured state: {0}")]
    State(#[from] crate::state::StateError),
    /// The machine has stopped by itself, so it cannot be paused.
    #[error("the machine has stopped: {0:?}")]
    Stopped(crate::Exit),
    /// A host resource (tap, thread, memory) could not be had.
    #[error("{what}: {source}")]
    Host {
        /// What was asked for.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Makes an error out of a KVM call that failed.
pub(crate) fn kvm<E: Into<io::Error>>(call: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::Kvm {
        call,
        source: source.into(),
    }
}
