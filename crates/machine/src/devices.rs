//! The virtio devices of one machine, behind one door.

use crate::{
    Error,
    config::Config,
    memory::Ram,
    state::{Reader, StateError, Writer},
};
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

/// Raises interrupts of the machine. Implemented by the chipset with `KVM_IRQ_LINE`, which is synchronous: on return the
/// edge is in the interrupt controllers, so that state saved later contains it.
pub trait InterruptLine: Send + Sync {
    /// Gives one edge on `gsi`.
    fn pulse(&self, gsi: u32);
}

/// Where one device stands in the machine's physical address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// First address of its register page.
    pub base: u64,
    /// Length in bytes.
    pub length: u64,
    /// Its interrupt.
    pub gsi: u32,
}

/// A guest write that must wake a device without leaving the kernel (`KVM_IOEVENTFD`).
#[derive(Debug)]
pub struct Doorbell<'a> {
    /// Guest-physical address.
    pub address: u64,
    /// The 32-bit value that must be written.
    pub value: u32,
    /// What is signalled.
    pub event: &'a EventFd,
}

/// A page of device registers that the guest may read without leaving the kernel: mapped read-only, writes still exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegisterPage {
    /// Guest-physical address, page-aligned.
    pub guest: u64,
    /// Address of the page in this process. It stays valid as long as the [`Devices`] do.
    pub host: u64,
}

/// All virtio devices of one machine.
pub struct Devices {}

impl Devices {
    /// Builds every device that `config` names: opens its taps and disks. Nothing runs yet.
    ///
    /// # Errors
    /// A tap, bridge or disk that is missing, busy or forbidden, by name.
    pub fn new(
        config: &Config,
        ram: Ram,
        interrupts: Arc<dyn InterruptLine>,
    ) -> Result<Self, Error> {
        let _ = (config, ram, interrupts);
        Ok(Self {})
    }

    /// Where each device stands, for the ACPI tables.
    pub fn slots(&self) -> Vec<Slot> {
        Vec::new()
    }

    /// The doorbells to be registered with KVM.
    pub fn doorbells(&self) -> Vec<Doorbell<'_>> {
        Vec::new()
    }

    /// The register pages to be mapped read-only, where the host can.
    pub fn register_pages(&self) -> Vec<RegisterPage> {
        Vec::new()
    }

    /// A vCPU reads registers. Unclaimed addresses read as ones.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        let _ = address;
        data.fill(0xff);
    }

    /// A vCPU writes registers. Unclaimed addresses are ignored.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        let _ = (address, data);
    }

    /// Lets the devices work: starts their threads at the first call, and wakes them after [`Self::quiesce`].
    /// Every queue is looked at once (a doorbell is not saved state) and interrupts still pending are raised again.
    ///
    /// # Errors
    /// A thread could not be started.
    pub fn run(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Stops the devices without draining them. On return, and until [`Self::run`], no device thread touches guest
    /// memory or raises an interrupt. To be called when all vCPUs are parked.
    pub fn quiesce(&self) {}

    /// Writes the state of all devices. Only while quiesced.
    pub fn save(&self, writer: &mut Writer<'_>) {
        let _ = writer;
    }

    /// Takes the state of all devices. Only before the first [`Self::run`] or while quiesced.
    ///
    /// # Errors
    /// State that is damaged, or of other devices than these.
    pub fn restore(&self, reader: &mut Reader<'_>) -> Result<(), StateError> {
        let _ = reader;
        Ok(())
    }
}
