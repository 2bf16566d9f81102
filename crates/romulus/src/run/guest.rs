//! The machine as the supervisor needs it: a trait, so that the supervisor is tested without KVM, and the real one.

use crate::exit::{Code, Failure};
use anyhow::Context as _;
use romulus_machine::{Error, Exit, Handle, Machine, Paused, Statistics, config::Config};
use std::{
    io::{self, Write},
    sync::Arc,
    time::Duration,
};

/// One life of a guest, held by one thread. Dropping it ends the guest at once.
pub(super) trait Guest {
    /// What may be asked of it from any thread.
    fn port(&self) -> Arc<dyn Port>;
    /// Parks the vCPUs. An error may mean that the guest has just ended; [`Port::wait_exit`] tells.
    fn pause(&mut self) -> anyhow::Result<()>;
    /// Lets them run again.
    fn resume(&mut self) -> anyhow::Result<()>;
}

/// What may be asked of a guest from any thread.
pub(super) trait Port: Send + Sync {
    /// Presses the power button.
    fn press_power_button(&self);
    /// Offers bytes to the serial port; returns how many were taken.
    fn console_input(&self, bytes: &[u8]) -> usize;
    /// Waits until the guest ends by itself, at most about `timeout`.
    fn wait_exit(&self, timeout: Duration) -> Option<Exit>;
    /// What it has done so far.
    fn statistics(&self) -> Statistics;
}

/// Makes a guest, running.
pub(super) type Boot = Box<dyn FnMut() -> Result<Box<dyn Guest>, Failure>>;

impl Port for Handle {
    fn press_power_button(&self) {
        Handle::press_power_button(self);
    }
    fn console_input(&self, bytes: &[u8]) -> usize {
        Handle::console_input(self, bytes)
    }
    fn wait_exit(&self, timeout: Duration) -> Option<Exit> {
        Handle::wait_exit(self, timeout)
    }
    fn statistics(&self) -> Statistics {
        Handle::statistics(self)
    }
}

/// Makes the real machine.
pub(super) fn boot(
    config: &Config,
    console: Box<dyn Write + Send>,
) -> Result<Box<dyn Guest>, Failure> {
    let paused = Paused::boot(config, console).map_err(|error| explain(&config.name, &error))?;
    let port = Arc::new(paused.handle());
    let machine = paused
        .resume()
        .map_err(|error| explain(&config.name, &error))?;
    Ok(Box::new(Real {
        port,
        life: Life::Running(machine),
    }))
}

struct Real {
    port: Arc<Handle>,
    life: Life,
}

enum Life {
    Running(Machine),
    Paused(Paused),
    Ended,
}

impl Guest for Real {
    fn port(&self) -> Arc<dyn Port> {
        Arc::clone(&self.port) as Arc<dyn Port>
    }

    fn pause(&mut self) -> anyhow::Result<()> {
        self.life = match std::mem::replace(&mut self.life, Life::Ended) {
            Life::Running(machine) => {
                Life::Paused(machine.pause().context("the machine cannot be paused")?)
            }
            life => life,
        };
        Ok(())
    }

    fn resume(&mut self) -> anyhow::Result<()> {
        self.life = match std::mem::replace(&mut self.life, Life::Ended) {
            Life::Paused(paused) => {
                Life::Running(paused.resume().context("the machine cannot be resumed")?)
            }
            life => life,
        };
        Ok(())
    }
}

/// Gives an error of the machine its exit code, and what to do next where the error itself cannot know.
pub(super) fn explain(name: &str, error: &Error) -> Failure {
    let (code, advice) = match error {
        Error::File { source, .. } => match source.kind() {
            io::ErrorKind::PermissionDenied => {
                (Code::NoPermission, "; run as a user who may open it")
            }
            io::ErrorKind::NotFound => (Code::NoInput, "; correct the path in the machine file"),
            _ => (Code::NoInput, ""),
        },
        Error::Invalid(_) => (Code::NoInput, ""),
        Error::Kvm { source, .. } | Error::Host { source, .. } => match source.kind() {
            io::ErrorKind::PermissionDenied => (
                Code::NoPermission,
                "; `romulus doctor` says which permission is missing",
            ),
            _ => (
                Code::Unavailable,
                "; `romulus doctor` checks what this host offers",
            ),
        },
        _ => (Code::Failed, ""),
    };
    // The machine's texts say already what they wrap: their sources would only say it again.
    Failure {
        code,
        error: anyhow::anyhow!("cannot start machine {name}: {error}{advice}"),
    }
}
