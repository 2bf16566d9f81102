//! `cargo xtask lab`.

mod up;

use std::path::{Path, PathBuf};
use std::process;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args as ClapArgs, Subcommand};
use images::Progress;
use lab::control::{Place, Session, Status};
use lab::{Agent, Direction, Fault, Network};

/// Arguments.
#[derive(ClapArgs)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a lab in the background and wait until its hosts are up
    Up(up::Args),
    /// End the lab with all that is in it
    Down,
    /// Say what is up
    Status {
        /// As JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Open a shell in a host (or at the client), or run one command there
    Shell {
        /// h1, h2, … or client
        place: Place,
        /// The command and its arguments; no shell reads them
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Attach to a machine's console, in whichever host it runs
    Console {
        /// The machine's name
        machine: String,
    },
    /// Put a file into running hosts; without one, build romulus and put it into all
    Push {
        /// The file; without it, a fresh release build of romulus
        file: Option<PathBuf>,
        /// h1, h2, … or all
        #[arg(default_value = "all")]
        host: String,
        /// Its path there; without it, /usr/bin and the file's name
        destination: Option<String>,
    },
    /// Take a file out of a host
    Pull {
        /// h1, h2, …
        host: Place,
        /// Its path there
        file: String,
        /// Where it goes here; without it, the file's name in this directory
        destination: Option<PathBuf>,
    },
    /// Let something happen to a host
    Fault {
        /// h1, h2, …
        host: Place,
        #[command(subcommand)]
        fault: FaultCommand,
    },
}

#[derive(Subcommand)]
enum FaultCommand {
    /// Power loss
    PowerOff,
    /// Power on; waits until the host is up
    PowerOn,
    /// The host stops in its tracks
    Hang,
    /// A host that hung goes on
    Resume,
    /// Silent cut: the host's interface keeps its carrier
    Cut {
        /// service, replication or control
        network: Network,
        /// both, from-host or to-host
        #[arg(default_value = "both")]
        direction: Direction,
    },
    /// Undo a silent cut
    Mend {
        /// service, replication or control
        network: Network,
    },
    /// Visible cut: the host's interface loses its carrier
    Unplug {
        /// service, replication or control
        network: Network,
    },
    /// Undo a visible cut
    Plug {
        /// service, replication or control
        network: Network,
    },
    /// Lose and delay what the host sends
    Impair {
        /// service, replication or control
        network: Network,
        /// The share of frames that are lost, in percent
        #[arg(long, default_value_t = 0.0)]
        loss: f64,
        /// By how much the others are late, in milliseconds
        #[arg(long, default_value_t = 0)]
        delay: u64,
    },
    /// Undo impair
    Clear {
        /// service, replication or control
        network: Network,
    },
}

impl From<FaultCommand> for Fault {
    fn from(command: FaultCommand) -> Self {
        match command {
            FaultCommand::PowerOff => Self::PowerOff,
            FaultCommand::PowerOn => Self::PowerOn,
            FaultCommand::Hang => Self::Hang,
            FaultCommand::Resume => Self::Resume,
            FaultCommand::Cut { network, direction } => Self::Cut(network, direction),
            FaultCommand::Mend { network } => Self::Mend(network),
            FaultCommand::Unplug { network } => Self::Unplug(network),
            FaultCommand::Plug { network } => Self::Plug(network),
            FaultCommand::Impair {
                network,
                loss,
                delay,
            } => Self::Impair {
                network,
                loss_percent: loss,
                delay: Duration::from_millis(delay),
            },
            FaultCommand::Clear { network } => Self::Clear(network),
        }
    }
}

pub(crate) fn run(args: Args) -> Result<()> {
    match args.command {
        Command::Up(args) => up::run(&args),
        Command::Down => down(),
        Command::Status { json } => status(json),
        Command::Shell { place, command } => shell(place, &command),
        Command::Console { machine } => console(&machine),
        Command::Push {
            file,
            host,
            destination,
        } => push(file, &host, destination),
        Command::Pull {
            host,
            file,
            destination,
        } => pull(host, &file, destination),
        Command::Fault { host, fault } => {
            let Place::Host(n) = host else {
                bail!("faults happen to hosts, not to {host}")
            };
            let fault = Fault::from(fault);
            let started = Instant::now();
            Session::open()?.fault(n, fault.clone())?;
            println!("h{n}: {fault} ({} ms)", started.elapsed().as_millis());
            Ok(())
        }
    }
}

fn down() -> Result<()> {
    let Ok(session) = Session::open() else {
        println!("no lab is up");
        return Ok(());
    };
    session.down()?;
    println!("the lab is down");
    Ok(())
}

fn status(json: bool) -> Result<()> {
    let status = Session::open()?.status()?;
    if json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print_table(&status);
    }
    Ok(())
}

fn print_table(status: &Status) {
    println!(
        "{:<7} {:<6} {:<12} {:<14} {:<14} up after",
        "host", "power", "service", "replication", "control"
    );
    for host in &status.hosts {
        let up = host
            .up_after_seconds
            .map_or_else(|| "-".into(), |seconds| format!("{seconds:.1} s"));
        let power = if host.on { "on" } else { "off" };
        // An address ignores the width that it is given.
        let [service, replication, control] =
            [host.service, host.replication, host.control].map(|ip| ip.to_string());
        println!(
            "{:<7} {power:<6} {service:<12} {replication:<14} {control:<14} {up}",
            host.name
        );
    }
    println!("{:<7} {:<6} {}", "client", "", status.client);
    println!(
        "hosts are made of: {}; logs: {}",
        status.kind,
        status.logs.display()
    );
}

fn shell(place: Place, command: &[String]) -> Result<()> {
    let session = Session::open()?;
    let agent = session.agent(place);
    let code = if command.is_empty() {
        lab::attach(&agent, &["bash"], true)?
    } else {
        let arguments: Vec<&str> = command.iter().map(String::as_str).collect();
        lab::attach(&agent, &arguments, false)?
    };
    process::exit(code)
}

/// Every host of the lab that has power.
fn hosts_on(session: &Session) -> Result<Vec<(String, Agent)>> {
    let hosts = session.status()?.hosts;
    let on = (1..).zip(hosts).filter(|(_, host)| host.on);
    Ok(on
        .map(|(n, host)| (host.name, session.agent(Place::Host(n))))
        .collect())
}

fn console(machine: &str) -> Result<()> {
    let session = Session::open()?;
    let mut seen = Vec::new();
    for (name, agent) in hosts_on(&session)? {
        let output = match agent.run(&["romulus", "status", machine, "--json"]) {
            Ok(output) if output.status.success() => {
                process::exit(lab::attach(&agent, &["romulus", "console", machine], true)?)
            }
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_string(),
            Err(error) => format!("{error:#}"),
        };
        seen.push(format!("{name}: {output}"));
    }
    bail!(
        "no host runs a machine called {machine}:\n  {}",
        seen.join("\n  ")
    )
}

fn push(file: Option<PathBuf>, host: &str, destination: Option<String>) -> Result<()> {
    let session = Session::open()?;
    let file = match file {
        Some(file) => file,
        None => lab::build("romulus", "romulus", true, &Progress::new())?,
    };
    let destination = match destination {
        Some(path) => path,
        None => format!("/usr/bin/{}", file_name(&file)?),
    };
    let hosts = if host == "all" {
        hosts_on(&session)?
    } else {
        let place: Place = host.parse()?;
        vec![(place.to_string(), session.agent(place))]
    };
    ensure!(!hosts.is_empty(), "no host has power");
    for (name, agent) in hosts {
        let started = Instant::now();
        agent.push(&file, &destination)?;
        println!(
            "{name}:{destination} ({:.2} s)",
            started.elapsed().as_secs_f64()
        );
    }
    Ok(())
}

fn pull(host: Place, file: &str, destination: Option<PathBuf>) -> Result<()> {
    let destination = match destination {
        Some(path) => path,
        None => file_name(Path::new(file))?.into(),
    };
    Session::open()?.agent(host).pull(file, &destination)
}

fn file_name(path: &Path) -> Result<String> {
    let name = path.file_name().and_then(|name| name.to_str());
    name.map(Into::into)
        .with_context(|| format!("{} names no file", path.display()))
}
