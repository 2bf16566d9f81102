//! The machine as a whole, and the types that keep its order of life.

use crate::{Error, config::Config};
use std::{io::Write, time::Duration};

/// Why a machine stopped running by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit {
    /// The guest switched itself off (ACPI S5).
    PoweredOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest's kernel said that it panicked (pvpanic).
    Panicked,
    /// A vCPU can't go on; the text says why.
    Failed(String),
}

/// What a machine has done and used so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Statistics {
    /// Exits from KVM to user space, all vCPUs.
    pub exits: u64,
    /// Frames and bytes that the guest sent and received, per network card: (tx frames, tx bytes, rx frames, rx bytes).
    pub nics: Vec<[u64; 4]>,
    /// Requests and bytes, per disk: (reads, bytes read, writes, bytes written, flushes, errors).
    pub disks: Vec<[u64; 6]>,
}

/// What may be asked of a machine from any thread, running or paused.
#[derive(Clone)]
pub struct Handle {}

impl Handle {
    /// Presses the ACPI power button.
    pub fn press_power_button(&self) {
        todo!()
    }
    /// Feeds bytes to the serial console; returns how many were taken (the port's buffer is small: offer the rest again).
    pub fn console_input(&self, bytes: &[u8]) -> usize {
        let _ = bytes;
        todo!()
    }
    /// Waits until the machine stops by itself, at most `timeout`. Once set, the answer stays.
    pub fn wait_exit(&self, timeout: Duration) -> Option<Exit> {
        let _ = timeout;
        todo!()
    }
    /// Makes [`Self::wait_exit`] return `None` early in every thread that waits now (to look at other things).
    pub fn wake(&self) {
        todo!()
    }
    /// What the machine has done so far.
    pub fn statistics(&self) -> Statistics {
        todo!()
    }
}

/// A machine whose vCPUs run. Dropping it stops and frees everything.
pub struct Machine {}

/// A machine whose vCPUs are parked and whose devices are quiesced. Dropping it frees everything.
pub struct Paused {}

impl Paused {
    /// Makes a new machine with its kernel loaded, paused before its first instruction. What the guest writes to its
    /// serial port goes to `console`.
    ///
    /// # Errors
    /// A file, tap or permission that is missing, by name; a kernel that is none.
    pub fn boot(config: &Config, console: Box<dyn Write + Send>) -> Result<Self, Error> {
        let _ = (config, console);
        todo!()
    }
    /// Lets it run.
    ///
    /// # Errors
    /// A thread could not be started.
    pub fn resume(self) -> Result<Machine, Error> {
        todo!()
    }
    /// The handle that works from any thread.
    pub fn handle(&self) -> Handle {
        todo!()
    }
}

impl Machine {
    /// Parks every vCPU and quiesces the devices.
    ///
    /// # Errors
    /// The machine has stopped by itself meanwhile.
    pub fn pause(self) -> Result<Paused, Error> {
        todo!()
    }
    /// The handle that works from any thread.
    pub fn handle(&self) -> Handle {
        todo!()
    }
}
