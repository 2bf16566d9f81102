//! `romulus run`: one machine in the foreground, from its file to its exit code.

mod cover;
mod guest;
mod overhead;
mod protect;
mod protected;
#[cfg(test)]
mod protected_tests;
mod reload;
mod shared;
mod supervisor;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod typing;
mod urgency;
mod waiters;

pub(crate) use protect::part;

use crate::{
    api::server::Server,
    bridge::Interfaces,
    cli,
    config::{ConsoleLog, MachineFile, Protection},
    console::{
        hub::Hub,
        log::RotatingLog,
        sink::{self, Target},
        terminal::{self, Raw},
    },
    exit::{Code, Failure, OrExit as _},
    runtime::RuntimeDir,
};
use anyhow::Context as _;
use protected::Protected;
use shared::Shared;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM},
    iterator::Signals,
};
use std::{
    env,
    path::PathBuf,
    sync::{Arc, mpsc},
    thread,
};
use supervisor::{Event, Supervisor};

/// Runs the machine of a file until it has ended.
pub(crate) fn run(args: &cli::Run) -> Result<Code, Failure> {
    let mut file = MachineFile::load(&args.file).or_exit(Code::Config)?;
    for warning in file.protection.iter().flat_map(Protection::warnings) {
        tracing::warn!("{}: {warning}", args.file.display());
    }
    if file.protection.is_some() {
        for warning in Interfaces::here().warnings(&file.machine) {
            tracing::warn!("{warning}");
        }
    }
    if args.check {
        println!(
            "{}: machine {} is described without errors",
            args.file.display(),
            file.machine.name
        );
        return Ok(Code::Done);
    }
    let part = file.protection.as_ref().map(part).transpose()?;
    file.machine.kernel_cache = file.machine.kernel_cache.take().or_else(kernel_cache);
    let name = file.machine.name.clone();
    let lock = RuntimeDir::of_user()?.lock(&name)?;

    if part.is_some() {
        urgency::raise();
    }
    // Signals first: one that comes while the machine is being made must stop it in order, too.
    let (events, inbox) = mpsc::channel();
    watch_signals(events.clone()).context("cannot watch signals")?;

    let (target, interactive) = match &file.console {
        ConsoleLog::Stdio => (Target::Stdout, terminal::is_terminal()),
        ConsoleLog::File(log) => {
            let opened = RotatingLog::open(log)
                .with_context(|| format!("cannot open the console log {}", log.path.display()))
                .or_exit(Code::CannotCreate)?;
            (Target::File(opened), false)
        }
    };
    let hub = Hub::new(true);
    let sink =
        sink::spawn(Arc::clone(&hub), target).context("cannot start the console's thread")?;
    let me = part.as_ref().map_or(0, |part| part.me);
    let shared = Arc::new(Shared::new(
        file.clone(),
        me,
        Arc::clone(&hub),
        events.clone(),
    ));
    let server = Server::start(lock.socket(), Arc::clone(&shared))
        .with_context(|| {
            format!(
                "cannot serve the control socket {}",
                lock.socket().display()
            )
        })
        .or_exit(Code::CannotCreate)?;
    let raw = if interactive {
        eprintln!(
            "Console of {name}. Ctrl-] then ? shows the keys, Ctrl-] then q stops the machine."
        );
        let raw = Raw::enter().context("cannot make the terminal raw")?;
        typing::spawn(Arc::clone(&shared), events).context("cannot read the terminal")?;
        Some(raw)
    } else {
        None
    };

    let result = if let Some(part) = part {
        let start = protect::starter(&file, part, &hub)?;
        // The working directory may be another one by then.
        let path = std::path::absolute(&args.file).context("where the machine file lies")?;
        let read = Box::new(move || MachineFile::load(&path));
        Protected::new(Arc::clone(&shared), inbox, start, read, interactive).run()
    } else {
        let machine = file.machine.clone();
        let hub = Arc::clone(&hub);
        let boot = move || guest::boot(&machine, hub.writer());
        Supervisor::new(Arc::clone(&shared), inbox, Box::new(boot), interactive).run()
    };

    // Answers that were promised, then the console's last words, then the terminal, then the lock.
    drop(server);
    hub.close();
    if sink.join().is_err() {
        tracing::error!("the console's thread panicked");
    }
    drop(raw);
    drop(lock);
    let end = result?;
    if end.code == Code::Done {
        tracing::info!("machine {name}: {}", end.text);
    } else {
        tracing::error!("machine {name}: {}", end.text);
    }
    Ok(end.code)
}

fn watch_signals(events: mpsc::Sender<Event>) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGQUIT, SIGHUP])?;
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                if events.send(Event::Signal(signal)).is_err() {
                    return;
                }
            }
        })?;
    Ok(())
}

/// Where unpacked kernels are kept for the next start: `$XDG_CACHE_HOME/romulus`, else `/var/cache/romulus` for root,
/// else `~/.cache/romulus`. Without any of them, kernels are unpacked at every start.
fn kernel_cache() -> Option<PathBuf> {
    let given = |name: &str| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let base = given("XDG_CACHE_HOME").or_else(|| {
        if rustix::process::geteuid().is_root() {
            Some(PathBuf::from("/var/cache"))
        } else {
            Some(given("HOME")?.join(".cache"))
        }
    });
    Some(base?.join("romulus"))
}
