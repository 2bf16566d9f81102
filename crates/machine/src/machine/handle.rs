//! What can be asked of a machine from any thread.

use crate::{
    chipset::Chipset,
    devices::Devices,
    exit::{Exit, ExitLatch},
};
use std::{
    sync::{Arc, Weak},
    time::Duration,
};

/// What a machine has done and used so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Statistics {
    /// Exits from KVM to user space, all vCPUs.
    pub exits: u64,
    /// Frames and bytes that the guest sent and received, per network card: (tx frames, tx bytes, rx frames, rx bytes).
    pub nics: Vec<[u64; 4]>,
    /// Frames that were lost, per network card: (dropped, errors of the tap).
    pub losses: Vec<[u64; 2]>,
    /// Requests and bytes, per disk: (reads, bytes read, writes, bytes written, flushes, errors).
    pub disks: Vec<[u64; 6]>,
}

/// What handles reach. It belongs to the machine: handles that outlive it hold nothing open.
pub(super) struct Shared {
    pub(super) chipset: Arc<Chipset>,
    pub(super) devices: Arc<Devices>,
    pub(super) exits: Box<dyn Fn() -> u64 + Send + Sync>,
}

/// What may be asked of a machine from any thread, running or paused. After the machine is gone, a handle does nothing.
#[derive(Clone)]
pub struct Handle {
    latch: Arc<ExitLatch>,
    shared: Weak<Shared>,
}

impl Handle {
    pub(super) fn new(latch: &Arc<ExitLatch>, shared: &Arc<Shared>) -> Self {
        Self {
            latch: Arc::clone(latch),
            shared: Arc::downgrade(shared),
        }
    }

    /// Presses the ACPI power button. On a paused machine the guest learns of it at resume.
    pub fn press_power_button(&self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.chipset.press_power_button();
        }
    }

    /// Feeds bytes to the serial console; returns how many were taken (the port's buffer is small, and a paused machine
    /// takes none: offer the rest again).
    pub fn console_input(&self, bytes: &[u8]) -> usize {
        self.shared
            .upgrade()
            .map_or(0, |s| s.chipset.console_input(bytes))
    }

    /// Waits until the machine stops by itself, at most `timeout`. Once set, the answer stays.
    pub fn wait_exit(&self, timeout: Duration) -> Option<Exit> {
        self.latch.wait(timeout)
    }

    /// Makes [`Self::wait_exit`] return `None` early in every thread that waits now (to look at other things).
    pub fn wake(&self) {
        self.latch.wake();
    }

    /// What the machine has done so far.
    pub fn statistics(&self) -> Statistics {
        let Some(shared) = self.shared.upgrade() else {
            return Statistics::default();
        };
        let devices = shared.devices.statistics();
        Statistics {
            exits: (shared.exits)(),
            nics: devices.nics,
            losses: devices.losses,
            disks: devices.disks,
        }
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}
