//! Exit codes, for supervisors. `docs/running.md` and `romulus run --help` list them: change them together.

use std::process::ExitCode;

/// How a command ended. The numbers are promised to operators' scripts: never reuse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Code {
    /// Done; for `run`: the guest switched itself off, or was stopped in order.
    Done = 0,
    /// Something else went wrong; for `doctor`: this host cannot run machines; for `status`: not protected.
    Failed = 1,
    /// The guest asked for a reset and the file says `on_reboot = "exit"`.
    Reset = 10,
    /// The guest's kernel panicked.
    Panicked = 11,
    /// The guest did not stop in time and was stopped by force.
    Forced = 12,
    /// A vCPU could not go on.
    VcpuFailed = 13,
    /// A machine of this name runs already.
    AlreadyRunning = 14,
    /// No machine of this name runs.
    NotRunning = 15,
    /// A kernel, initrd or disk is missing or is none (`EX_NOINPUT`).
    NoInput = 66,
    /// The host lacks something: KVM, a tap, a bridge, memory; or the arbiter is out of reach (`EX_UNAVAILABLE`).
    Unavailable = 69,
    /// A log, lock or socket cannot be made (`EX_CANTCREAT`).
    CannotCreate = 73,
    /// A permission is missing (`EX_NOPERM`).
    NoPermission = 77,
    /// The machine file is wrong (`EX_CONFIG`).
    Config = 78,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        ExitCode::from(code as u8)
    }
}

/// An error with the exit code that it means.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What the process exits with.
    pub(crate) code: Code,
    /// What is shown.
    pub(crate) error: anyhow::Error,
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self {
            code: Code::Failed,
            error: error.into(),
        }
    }
}

/// Gives an error the exit code that it means.
pub(crate) trait OrExit<T> {
    /// Turns an error into a [`Failure`] with `code`.
    fn or_exit(self, code: Code) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, code: Code) -> Result<T, Failure> {
        self.map_err(|error| Failure {
            code,
            error: error.into(),
        })
    }
}

/// The list for `--help`.
pub(crate) const HELP: &str = "\
Exit codes of `romulus run`, for supervisors:
   0  the guest switched itself off, or was stopped in order; a process that stood by was ended
  10  the guest asked for a reset (on_reboot = \"exit\")
  11  the guest's kernel panicked (on_panic = \"exit\")
  12  the guest did not stop in time and was stopped by force
  13  a vCPU could not go on
  14  a machine of this name runs already
  66  a kernel, initrd, disk or identity is missing or is none
  69  the host lacks something: KVM, a tap, a bridge, memory
  73  a log, lock or socket cannot be made
  77  a permission is missing
  78  the machine file is wrong
   1  anything else; 2: wrong usage";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_lists_every_code_of_run() {
        let codes = [
            Code::Done,
            Code::Failed,
            Code::Reset,
            Code::Panicked,
            Code::Forced,
            Code::VcpuFailed,
            Code::AlreadyRunning,
            Code::NoInput,
            Code::Unavailable,
            Code::CannotCreate,
            Code::NoPermission,
            Code::Config,
        ];
        for code in codes {
            let line = format!("{:>4}  ", code as u8);
            assert!(
                HELP.lines().any(|shown| shown.starts_with(&line)),
                "{code:?}"
            );
        }
    }
}
