//! From a machine file with `[protection]` to an engine: which host this is, and what the engine is told.

use super::{
    cover::{Protector, Real},
    guest,
    protected::{News, Start},
    supervisor::Event,
};
use crate::{
    config::{After, MachineFile, Protection},
    console::hub::Hub,
    exit::{Code, Failure, OrExit as _},
    pair,
};
use anyhow::Context as _;
use romulus_engine::{
    ArbiterAddress, Engine, EngineError, HostAddress, Real as Machines, Report, Settings,
    identity::Secret,
};
use romulus_machine::{Error, TrackingCosts, config::Config};
use std::{
    fs::File,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

/// This host's part in a pair.
pub(crate) struct Part {
    /// Its secret.
    pub(crate) secret: Secret,
    /// Which of the file's hosts it is.
    pub(crate) me: usize,
}

/// Finds out which of the two hosts this is, by its identity.
pub(crate) fn part(protection: &Protection) -> Result<Part, Failure> {
    let secret = pair::load(&protection.identity)?;
    let me = protection
        .hosts
        .iter()
        .position(|host| host.identity == *secret.public());
    if let Some(me) = me {
        return Ok(Part { secret, me });
    }
    let [first, second] = &protection.hosts;
    Err(anyhow::anyhow!(
        "this host is neither {} nor {}: its identity ({}) is\n  {}\nwrite it into this host's [[protection.host]], or give the file of the right identity",
        first.name,
        second.name,
        protection.identity.display(),
        secret.public()
    ))
    .or_exit(Code::Config)
}

/// What starts the engine of the machine, as often as it is needed.
pub(super) fn starter(file: &MachineFile, part: Part, hub: &Arc<Hub>) -> Result<Start, Failure> {
    let settings = settings(file, part.me)?;
    files(&file.machine)?;
    let machine = file.machine.clone();
    let hub = Arc::clone(hub);
    let secret = part.secret;
    Ok(Box::new(move |events| {
        let reports = forward(events)?;
        let console = {
            let hub = Arc::clone(&hub);
            Box::new(move || hub.writer())
        };
        let builder = Arc::new(Machines::new(machine.clone(), console));
        let engine = Engine::start(settings.clone(), &secret, builder, reports)
            .map_err(|error| explain(&machine.name, error))?;
        Ok(Arc::new(Real::new(engine)) as Arc<dyn Protector>)
    }))
}

/// A sender of reports that come as events. Its thread ends with the engine.
fn forward(events: mpsc::Sender<Event>) -> Result<mpsc::Sender<Report>, Failure> {
    let (sender, reports) = mpsc::channel();
    let work = move || {
        for report in reports {
            let news = match report {
                Report::Running {
                    term,
                    taken_over,
                    handle,
                } => News::Running {
                    term,
                    taken_over,
                    port: Arc::new(handle),
                },
                Report::Idle => News::Idle,
                Report::Protected(protected) => News::Protected(protected),
                Report::Stays(why) => News::Stays(why.to_string()),
                Report::Ended(ended) => News::Ended(ended),
                // The engine has logged it.
                Report::Notice(_) => continue,
            };
            // Nobody listens any more when the process is ending.
            let _ = events.send(Event::News(news));
        }
    };
    thread::Builder::new()
        .name("reports".into())
        .spawn(work)
        .context("cannot start a thread for the engine's reports")?;
    Ok(sender)
}

/// Gives an error of the engine its exit code.
fn explain(name: &str, error: EngineError) -> Failure {
    match error {
        EngineError::Machine(error) => guest::explain(name, &error),
        error => {
            let code = match &error {
                EngineError::Timing(_) => Code::Config,
                EngineError::Sidecar(_) => Code::NoInput,
                _ => Code::Unavailable,
            };
            Failure {
                code,
                error: anyhow::anyhow!("cannot start machine {name}: {error}"),
            }
        }
    }
}

/// What the machine starts from must be here before somebody needs it: the engine would find out in the middle of a start.
fn files(machine: &Config) -> Result<(), Failure> {
    let kernel = [("kernel", &machine.kernel)];
    let initrd = machine.initrd.iter().map(|path| ("initrd", path));
    for (what, path) in kernel.into_iter().chain(initrd) {
        File::open(path).map_err(|source| {
            let path = path.clone();
            guest::explain(&machine.name, &Error::File { what, path, source })
        })?;
    }
    Ok(())
}

fn settings(file: &MachineFile, me: usize) -> Result<Settings, Failure> {
    let (Some(protection), Some(uuid)) = (&file.protection, file.uuid) else {
        // Checked when the file was read.
        return Err(anyhow::anyhow!("a protected machine needs a uuid")).or_exit(Code::Config);
    };
    let hosts = protection.hosts.each_ref().map(|host| HostAddress {
        name: host.name.clone(),
        identity: host.identity,
        replication: host.replication,
        control: host.control,
    });
    Ok(Settings {
        machine: uuid,
        name: file.machine.name.clone(),
        me,
        hosts,
        arbiter: ArbiterAddress {
            address: protection.arbiter,
            identity: protection.arbiter_identity,
        },
        timing: protection.timing,
        limits: protection.limits,
        mode: protection.mode.clone(),
        keep: protection.keep,
        insecure: protection.insecure,
        state: protection.state.clone(),
        shadow: protection.shadow,
        queue: protection.queue,
        lock_memory: protection.lock_memory,
        uplink: protection.uplink.clone(),
        rehearse: protection.rehearse,
        reboot: file.on_reboot == After::Restart,
        tracking: tracking(),
    })
}

/// What tracking the guest's pages costs here: it decides how often the guest may be paused, and which pages stay
/// writable.
fn tracking() -> TrackingCosts {
    match romulus_machine::tracking_costs() {
        Ok(costs) => {
            tracing::info!(
                "on this host a first write to a tracked page costs the guest {:?}, a copied page {:?}",
                costs.first_write,
                costs.copy
            );
            costs
        }
        Err(error) => {
            tracing::warn!(
                "the cost of tracking pages could not be measured, {HARDWARE:?} is assumed: {error}"
            );
            HARDWARE
        }
    }
}

/// The costs on hardware: an exit, and the page's entry made writable; half a microsecond for 8 KiB of memory.
const HARDWARE: TrackingCosts = TrackingCosts {
    first_write: Duration::from_micros(1),
    copy: Duration::from_nanos(500),
};
