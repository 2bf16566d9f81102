//! The commands that talk to running machines.

use crate::{
    api::{
        client::{self, Client},
        model::{State, Status},
    },
    cli,
    config::{self, MachineFile},
    exit::{Code, Failure, OrExit as _},
    runtime::RuntimeDir,
    session, table,
};
use anyhow::Context as _;
use serde::Serialize;
use std::{
    io::{self, Write as _},
    path::Path,
    time::Duration,
};

/// How long a machine's process may take to go after its machine has ended: it frees the guest's memory.
const GONE: Duration = Duration::from_secs(10);

/// `romulus stop`.
pub(crate) fn stop(args: &cli::Stop) -> Result<Code, Failure> {
    let name = machine_name(&args.machine)?;
    let client = Client::new(&RuntimeDir::of_user()?, &name)?;
    let ended = client.stop(args.timeout)?;
    client::gone(&client, GONE)?;
    println!("machine {name}: {}", ended.text);
    Ok(match ended.code {
        code if code == Code::Done as u8 => Code::Done,
        code if code == Code::Forced as u8 => Code::Forced,
        code if code == Code::Panicked as u8 => Code::Panicked,
        code if code == Code::VcpuFailed as u8 => Code::VcpuFailed,
        _ => Code::Failed,
    })
}

/// `romulus console`.
pub(crate) fn console(args: &cli::Console) -> Result<Code, Failure> {
    let name = machine_name(&args.machine)?;
    let client = Client::new(&RuntimeDir::of_user()?, &name)?;
    if args.log {
        print(&client.console_log()?)?;
    } else {
        session::console(&client, &name)?;
    }
    Ok(Code::Done)
}

/// `romulus promote`.
pub(crate) fn promote(args: &cli::Promote) -> Result<Code, Failure> {
    let name = machine_name(&args.machine)?;
    Client::new(&RuntimeDir::of_user()?, &name)?.promote()?;
    println!(
        "machine {name}: asked the arbiter; `romulus status {name}` and the log say what comes of it"
    );
    Ok(Code::Done)
}

/// `romulus switchover`.
pub(crate) fn switchover(args: &cli::Switchover) -> Result<Code, Failure> {
    let name = machine_name(&args.machine)?;
    Client::new(&RuntimeDir::of_user()?, &name)?.switchover()?;
    println!("machine {name}: the other host runs it, this one becomes its backup");
    Ok(Code::Done)
}

/// `romulus reload`.
pub(crate) fn reload(args: &cli::Reload) -> Result<Code, Failure> {
    let name = machine_name(&args.machine)?;
    let reloaded = Client::new(&RuntimeDir::of_user()?, &name)?.reload()?;
    if args.json {
        print_json(&reloaded)?;
        return Ok(Code::Done);
    }
    let mode = &reloaded.mode;
    if !reloaded.mode_changes {
        println!("machine {name}: the mode is {mode}, as before");
    } else if reloaded.cover_lost {
        println!(
            "machine {name}: the mode is to be {mode}; the machine is not protected until both hosts have it: run this on the other host, too"
        );
    } else {
        println!("machine {name}: the mode is {mode} from now on; run this on the other host, too");
    }
    if reloaded.restart_needed {
        println!(
            "something else in the file was changed: that takes effect when `romulus run` is started anew"
        );
    }
    Ok(Code::Done)
}

/// `romulus status`.
pub(crate) fn status(args: &cli::Status) -> Result<Code, Failure> {
    let directory = RuntimeDir::of_user()?;
    if let Some(machine) = &args.machine {
        let name = machine_name(machine)?;
        let client = Client::new(&directory, &name)?;
        let status = client.status()?;
        let covered = is_protected(&status);
        match (args.timing, args.json) {
            (false, true) => print_json(&status)?,
            (false, false) => print(table::details(&status).as_bytes())?,
            (true, true) => print_json(&client.timing()?)?,
            (true, false) => print(table::timing(&client.timing()?).as_bytes())?,
        }
        return Ok(verdict(args, covered));
    }
    let names = directory
        .names()
        .with_context(|| format!("cannot read {}", directory.path().display()))
        .or_exit(Code::NoPermission)?;
    let entries = names
        .iter()
        .map(|name| entry(&directory, name))
        .collect::<Result<Vec<_>, Failure>>()?;
    match args.json {
        true => print_json(&entries)?,
        false if entries.is_empty() => {
            println!("no machine runs (looked in {})", directory.path().display());
        }
        false => print(table::machines(&entries).as_bytes())?,
    }
    // Where no machine runs, none is protected.
    let covered = !entries.is_empty()
        && entries
            .iter()
            .all(|entry| matches!(entry, Entry::Known(status) if is_protected(status)));
    Ok(verdict(args, covered))
}

/// A replica is no cover while the arbiter is out of reach: nobody could take over.
fn is_protected(status: &Status) -> bool {
    status
        .protection
        .as_ref()
        .is_some_and(|protection| protection.protected && protection.arbiter_answers)
}

/// The exit code of `romulus status`: cover must never be lost in silence.
fn verdict(args: &cli::Status, covered: bool) -> Code {
    if args.require_protected && !covered {
        Code::Failed
    } else {
        Code::Done
    }
}

/// One machine in the list of all.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Entry {
    /// It answers.
    Known(Box<Status>),
    /// It does not answer; `state` is `gone` where its process is dead.
    Silent {
        /// Its name.
        name: String,
        /// `gone`, or `null` where it cannot be told.
        state: Option<State>,
        /// Why it is not known.
        error: String,
    },
}

fn entry(directory: &RuntimeDir, name: &str) -> Result<Entry, Failure> {
    Ok(match Client::new(directory, name)?.status() {
        Ok(status) => Entry::Known(Box::new(status)),
        Err(failure) => Entry::Silent {
            name: name.to_owned(),
            state: (failure.code == Code::NotRunning).then_some(State::Gone),
            error: format!("{:#}", failure.error),
        },
    })
}

/// The machine that an argument means: its name, or its file.
fn machine_name(argument: &str) -> Result<String, Failure> {
    let is_path = argument.contains('/')
        || Path::new(argument)
            .extension()
            .is_some_and(|extension| extension == "toml");
    if is_path {
        Ok(MachineFile::load(Path::new(argument))
            .or_exit(Code::Config)?
            .machine
            .name)
    } else {
        config::check_name(argument)
            .map_err(anyhow::Error::msg)
            .or_exit(Code::Config)
    }
}

/// Prints for programs.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_vec_pretty(value).context("cannot write JSON")?;
    text.push(b'\n');
    print(&text)
}

/// Prints to standard output; a reader that has seen enough (`| head`) is no error.
pub(crate) fn print(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}
