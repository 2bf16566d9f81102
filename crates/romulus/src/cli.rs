//! The command line.

use crate::exit;
use clap::{Args, Parser, Subcommand};
use std::{path::PathBuf, time::Duration};

/// Runs virtual machines for telephony servers on KVM.
///
/// One process runs one machine, which a file describes; there is no daemon. Check the host first with `romulus
/// doctor`, then start a machine with `romulus run`.
#[derive(Debug, Parser)]
#[command(
    name = "romulus",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    /// Say more on standard error (-v: debug, -vv: trace); `RUST_LOG` overrides it.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(Run),
    Stop(Stop),
    Console(Console),
    Status(Status),
    Doctor(Doctor),
    Completions(Completions),
}

/// Run a machine in the foreground.
///
/// Starts the machine that FILE describes and stays until it has ended. Where the file gives no console log, the
/// machine's serial console is this terminal (Ctrl-] then ? shows the keys) or standard output.
///
/// SIGTERM and SIGINT stop the machine in order: the guest's power button is pressed, and after `stop_timeout` the
/// machine is stopped by force; a second signal forces at once. SIGHUP opens the console log anew.
#[derive(Debug, Args)]
#[command(after_long_help = RUN_HELP.as_str())]
pub(crate) struct Run {
    /// The machine file.
    pub(crate) file: PathBuf,
    /// Read and check the file only.
    #[arg(long)]
    pub(crate) check: bool,
}

/// Stop a machine in order, and by force when that takes too long.
///
/// Presses the guest's power button and waits. Exits with 0 when the guest shut down, 12 when it had to be forced,
/// 15 when no such machine runs.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  romulus stop registrar\n  romulus stop registrar --timeout 5s\n  romulus stop /etc/romulus/registrar.toml"
)]
pub(crate) struct Stop {
    /// The machine's name, or its file.
    #[arg(value_name = "NAME|FILE")]
    pub(crate) machine: String,
    /// How long the guest may take, such as "30 s"; 0s stops it by force at once [default: the machine's `stop_timeout`].
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) timeout: Option<Duration>,
}

/// Attach to a running machine's serial console.
///
/// Shows the last 64 KiB, then what comes. Several may be attached at once, and all may type. Ctrl-] then q leaves;
/// the machine runs on.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  romulus console registrar\n  echo uptime | romulus console registrar\n  romulus console registrar --log | grep -i error"
)]
pub(crate) struct Console {
    /// The machine's name, or its file.
    #[arg(value_name = "NAME|FILE")]
    pub(crate) machine: String,
    /// Print the last 64 KiB and leave.
    #[arg(long)]
    pub(crate) log: bool,
}

/// Show running machines.
///
/// Without NAME, a table of all machines of this user's runtime directory; with NAME, everything about one. Exits with
/// 15 when the named machine does not run.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  romulus status\n  romulus status registrar\n  romulus status --json | jq -r '.[].state'"
)]
pub(crate) struct Status {
    /// The machine's name, or its file.
    #[arg(value_name = "NAME|FILE")]
    pub(crate) machine: Option<String>,
    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Check whether this host can run machines.
///
/// Each finding is ok, a warning or a problem, and says what to do. Exits with 0 when machines can run, 1 when not.
/// The speed of guest kernels is measured by a trial of well under a second.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  romulus doctor\n  romulus doctor --json | jq '.findings[] | select(.level != \"ok\")'"
)]
pub(crate) struct Doctor {
    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Print completions for a shell.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  romulus completions bash > /usr/share/bash-completion/completions/romulus"
)]
pub(crate) struct Completions {
    /// The shell.
    pub(crate) shell: clap_complete::Shell,
}

static RUN_HELP: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
    format!(
        "{}\n\nExamples:\n  romulus run registrar.toml\n  romulus run --check registrar.toml\n  systemctl enable --now romulus@registrar",
        exit::HELP
    )
});

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
