//! The command line.

use crate::exit;
use clap::{Args, Parser, Subcommand};
use std::{path::PathBuf, time::Duration};

/// Runs virtual machines for telephony servers on KVM, and protects them by a second host.
///
/// One process runs one machine, which a file describes; there is no daemon. Check the host first with `romulus
/// doctor`, then start a machine with `romulus run`. To protect it: `romulus pair` on each host, `romulus arbiter` on a
/// third, `romulus create` once.
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
    Promote(Promote),
    Switchover(Switchover),
    Reload(Reload),
    Pair(Pair),
    Create(Create),
    Arbiter(Box<Arbiter>),
    Doctor(Doctor),
    Completions(Completions),
}

/// Run a machine in the foreground.
///
/// Starts the machine that FILE describes and stays until it has ended. Where the file gives no console log, the
/// machine's serial console is this terminal (Ctrl-] then ? shows the keys) or standard output.
///
/// With a `[protection]` section the same command with the same file runs on both hosts: the one that may runs the
/// machine, the other stands by with its replica and takes over when the first fails.
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
/// 15 when the named machine does not run. With --require-protected, exits with 1 unless every machine shown is
/// protected: a check for monitoring, the same on both hosts.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  romulus status\n  romulus status registrar\n  romulus status --json | jq -r '.[].state'\n  romulus status registrar --timing\n  romulus status registrar --require-protected > /dev/null || echo 'no cover'"
)]
pub(crate) struct Status {
    /// The machine's name, or its file.
    #[arg(value_name = "NAME|FILE")]
    pub(crate) machine: Option<String>,
    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
    /// How long each phase of an epoch takes, on the host that runs the machine.
    #[arg(long, requires = "machine")]
    pub(crate) timing: bool,
    /// Exit with 1 when a machine is not protected, or the arbiter does not answer.
    #[arg(long)]
    pub(crate) require_protected: bool,
}

/// Let this host run a protected machine although its newest state may be lost.
///
/// For the day when the host that ran it will not come back and this one may not go on by itself. The process must run
/// here (`romulus run`) and reach the arbiter. Whatever the other host did since this host's newest copy is lost.
/// Make sure first that the other host is off.
#[derive(Debug, Args)]
#[command(after_long_help = "Example:\n  romulus promote registrar --accept-loss")]
pub(crate) struct Promote {
    /// The machine's name, or its file.
    #[arg(value_name = "NAME|FILE")]
    pub(crate) machine: String,
    /// Confirm that newer state may be lost.
    #[arg(long, required = true)]
    pub(crate) accept_loss: bool,
}

/// Hand a protected machine over to the other host, on purpose and without loss.
///
/// To be asked on the host that runs it. The guest rests for as long as its last checkpoint takes and goes on at the
/// other host; this one then becomes the backup. Where anything is in the way the machine stays here.
///
/// Exits with 0 when the other host runs the machine, 1 when it stayed, with the reason, 15 when no such machine runs.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  romulus switchover registrar\n  romulus switchover registrar && romulus stop registrar    # maintenance of this host"
)]
pub(crate) struct Switchover {
    /// The machine's name, or its file.
    #[arg(value_name = "NAME|FILE")]
    pub(crate) machine: String,
}

/// Let a protected machine's process read its file again.
///
/// `mode`, `unsafe` and the `[[protection.flow]]` sections take effect while the machine runs; the command says whether
/// anything else was changed, which takes a restart. Change the file on both hosts and run this on both: between `net`
/// and the other modes the machine is not protected until both have it and the backup is filled anew.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  romulus reload registrar\n  romulus reload registrar --json | jq .cover_lost\n  systemctl reload romulus@registrar"
)]
pub(crate) struct Reload {
    /// The machine's name, or its file.
    #[arg(value_name = "NAME|FILE")]
    pub(crate) machine: String,
    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show this host's identity; make it if there is none.
///
/// Every host and every arbiter has a secret of its own, which never leaves it. Its public form goes into the machine
/// file of both hosts and to the arbiter. A secret that exists is never overwritten.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  romulus pair\n  romulus pair --json | jq -r .identity\n  romulus pair --identity /etc/romulus/arbiter-identity"
)]
pub(crate) struct Pair {
    /// The secret's file.
    #[arg(long, value_name = "FILE", default_value = crate::config::IDENTITY)]
    pub(crate) identity: PathBuf,
    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Make the record of a new protected machine at the arbiter.
///
/// Run it once in a machine's life, on the first host of its file, before the first `romulus run`. Run again, it says
/// that the machine exists and changes nothing. A file without a uuid gets one to paste.
///
/// Exits with 0 when the machine is ready to run, 69 when the arbiter does not answer, 78 when the file is wrong or
/// lacks its uuid, 1 when the record and this host do not belong together.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  romulus create registrar.toml\n  romulus create registrar.toml --timeout 60s --json"
)]
pub(crate) struct Create {
    /// The machine file.
    pub(crate) file: PathBuf,
    /// How long to ask an arbiter that does not answer.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "10s")]
    pub(crate) timeout: Duration,
    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Run an arbiter in the foreground.
///
/// The arbiter keeps the record of who may run each machine. It belongs on a third host: when it fails, machines run on,
/// but no host can take one over. It answers only the identities in the file of --allow. SIGTERM and SIGINT end it,
/// SIGHUP makes it read that file again.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  romulus arbiter --listen 203.0.113.9:7400 --store /var/lib/romulus-arbiter --identity /etc/romulus/identity --allow /etc/romulus/allowed\n  romulus arbiter --listen 203.0.113.9:7400 --store etcd --etcd-endpoint https://203.0.113.21:2379 --etcd-endpoint https://203.0.113.22:2379 --etcd-endpoint https://203.0.113.23:2379 --etcd-ca /etc/romulus/etcd-ca.pem --allow /etc/romulus/allowed\n  systemctl enable --now romulus-arbiter"
)]
pub(crate) struct Arbiter {
    /// UDP address to answer at; several may be given.
    #[arg(long, value_name = "ADDRESS", required = true)]
    pub(crate) listen: Vec<std::net::SocketAddr>,
    /// Directory of the records; or the word `etcd`: they are in the etcd that the options --etcd-… tell of, and several
    /// arbiters may serve them.
    #[arg(long, value_name = "DIR|etcd")]
    pub(crate) store: PathBuf,
    /// File of the arbiter's secret, made by `romulus pair`.
    #[arg(long, value_name = "FILE", default_value = crate::config::IDENTITY)]
    pub(crate) identity: PathBuf,
    /// File of the hosts' public identities: one a line, `#` begins a comment.
    #[arg(long, value_name = "FILE")]
    pub(crate) allow: PathBuf,
    #[command(flatten)]
    pub(crate) etcd: Etcd,
}

/// What `--store etcd` needs.
#[derive(Debug, Args)]
#[command(next_help_heading = "With --store etcd")]
pub(crate) struct Etcd {
    /// Where a node of etcd answers clients, such as `https://203.0.113.21:2379`; give all nodes of one cluster.
    #[arg(long = "etcd-endpoint", value_name = "URL")]
    pub(crate) endpoints: Vec<romulus_etcd::Endpoint>,
    /// What the records' keys begin with [default: /romulus/].
    #[arg(long = "etcd-prefix", value_name = "PREFIX")]
    pub(crate) prefix: Option<String>,
    /// File of the certificate (PEM) that signs those of etcd's nodes.
    #[arg(long = "etcd-ca", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// File of the arbiter's own certificate (PEM), where etcd asks for one.
    #[arg(long = "etcd-cert", value_name = "FILE", requires = "key")]
    pub(crate) cert: Option<PathBuf>,
    /// File of that certificate's key (PEM); only its owner and group may read it.
    #[arg(long = "etcd-key", value_name = "FILE", requires = "cert")]
    pub(crate) key: Option<PathBuf>,
    /// The arbiter's name, where etcd asks for a name and a password.
    #[arg(long = "etcd-user", value_name = "NAME", requires = "password_file")]
    pub(crate) user: Option<String>,
    /// File whose first line is the password; only its owner and group may read it.
    #[arg(long = "etcd-password-file", value_name = "FILE", requires = "user")]
    pub(crate) password_file: Option<PathBuf>,
    /// Allow http:// to other computers. Only where nobody else can reach etcd, or the way to it: who can, says who
    /// runs every machine.
    #[arg(long = "etcd-plain")]
    pub(crate) plain: bool,
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
