//! virtio-mmio, version 2 (virtio 1.2, section 4.2), made for few exits.
//!
//! An exit to user space costs over 100 µs on an emulated host and a few on hardware, and with small frames that is what
//! decides throughput. So only setting up a device leaves the kernel. While it works:
//!
//! - **A kick** (`QueueNotify`) is a doorbell, answered in the kernel by `KVM_IOEVENTFD`.
//! - **Reads** need no exit at all: [`Page`] always holds what a read of each register gives, and is mapped into the
//!   guest read-only (`KVM_MEM_READONLY`). After every write and every change of state it is brought up to date *before*
//!   the vCPU goes on or the interrupt is raised. Where the host has no read-only memory, reads exit and are answered
//!   from the same page, so that there is one truth.
//! - **The acknowledgement** of an interrupt for used buffers (the value 1 written to `InterruptACK`) is a doorbell too,
//!   with an event that nobody reads, because it has nothing left to do: the used-buffer bit of `InterruptStatus` is
//!   **sticky**. Once raised it reads 1 until the device is reset. The bit only tells the driver which of two causes an
//!   interrupt had, and drivers look at their rings whenever it is set (Linux's `vm_interrupt` does, and a ring without
//!   news costs it one memory read); the interrupt itself is an edge, and takes no part in it. A bit that were cleared
//!   would have to be cleared by an exit, at every interrupt.
//! - A **change of configuration** (the value 2 or 3) is rare: its acknowledgement exits and clears that bit.

use super::{
    super::{InterruptLine, RegisterPage, Slot},
    Area, Bus, Control, Function,
    page::{self, Page},
};
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU32, Ordering},
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING,
    VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_MAGIC_VALUE,
    VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH,
    VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM,
    VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL,
    VIRTIO_MMIO_QUEUE_USED_HIGH, VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_SHM_BASE_HIGH,
    VIRTIO_MMIO_SHM_BASE_LOW, VIRTIO_MMIO_SHM_LEN_HIGH, VIRTIO_MMIO_SHM_LEN_LOW,
    VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VENDOR_ID, VIRTIO_MMIO_VERSION,
};
use virtio_queue::QueueT;

/// Address of the first device's registers.
pub(crate) const BASE: u64 = 0xd000_0000;
/// Length of a device's registers, and distance from one to the next.
pub(crate) const LENGTH: u64 = page::LENGTH as u64;
/// Interrupt of the first device.
const GSI: u32 = 5;
/// The largest number of devices: the I/O APIC has 24 pins.
pub(crate) const DEVICES_MAX: usize = 24 - GSI as usize;
/// `QueueReset`, which came with virtio 1.2 and is not in the bindings yet.
const QUEUE_RESET: u32 = 0xc0;
/// "virt".
const MAGIC: u32 = 0x7472_6976;
/// "RMLS": we are no vendor that a driver would know.
const VENDOR: u32 = 0x534c_4d52;

/// Where the device of a slot stands.
pub(crate) fn slot(index: usize) -> Slot {
    Slot {
        base: BASE + index as u64 * LENGTH,
        length: LENGTH,
        gsi: GSI + index as u32,
    }
}

/// The way from a device to the guest: the register page and an interrupt.
pub(crate) struct MmioBus {
    page: Page,
    line: Arc<dyn InterruptLine>,
    gsi: u32,
}

impl MmioBus {
    /// The bus of a slot.
    ///
    /// # Errors
    /// Memory runs out.
    pub(crate) fn new(index: usize, line: Arc<dyn InterruptLine>) -> std::io::Result<Self> {
        Ok(Self {
            page: Page::new()?,
            line,
            gsi: slot(index).gsi,
        })
    }

    fn interrupt_status(&self) -> Option<&AtomicU32> {
        self.page.word(VIRTIO_MMIO_INTERRUPT_STATUS)
    }

    fn raise(&self, cause: u32) {
        if let Some(status) = self.interrupt_status() {
            status.fetch_or(cause, Ordering::AcqRel);
        }
        self.line.pulse(self.gsi);
    }
}

impl Bus for MmioBus {
    fn used(&self, _queue: usize) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    fn changed(&self) {
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    fn status(&self, status: u32) {
        self.page.set(VIRTIO_MMIO_STATUS, status);
    }

    fn reset(&self) {
        self.page.set(VIRTIO_MMIO_INTERRUPT_STATUS, 0);
    }
}

/// What the driver has selected for the registers that stand for several.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Selectors {
    pub(super) device_features: u32,
    pub(super) driver_features: u32,
    pub(super) queue: u32,
}

/// The registers of one device.
pub(crate) struct Mmio {
    pub(super) function: Arc<Function>,
    pub(super) bus: Arc<MmioBus>,
    selectors: Mutex<Selectors>,
    index: usize,
}

impl Mmio {
    /// The registers of a device in slot `index`.
    pub(crate) fn new(index: usize, function: Arc<Function>, bus: Arc<MmioBus>) -> Self {
        let mmio = Self {
            function,
            bus,
            selectors: Mutex::default(),
            index,
        };
        mmio.refresh(*mmio.selectors(), &mmio.function.lock());
        mmio
    }

    /// The device behind the registers.
    pub(crate) fn function(&self) -> &Arc<Function> {
        &self.function
    }

    /// Where it stands.
    pub(crate) fn slot(&self) -> Slot {
        slot(self.index)
    }

    /// Address of the register that a kick is written to.
    pub(crate) fn notify_address(&self) -> u64 {
        self.slot().base + u64::from(VIRTIO_MMIO_QUEUE_NOTIFY)
    }

    /// Address of the register that an acknowledgement is written to, and the value that needs no answer.
    pub(crate) fn acknowledge(&self) -> (u64, u32) {
        (
            self.slot().base + u64::from(VIRTIO_MMIO_INTERRUPT_ACK),
            VIRTIO_MMIO_INT_VRING,
        )
    }

    /// The page that answers reads.
    pub(crate) fn page(&self) -> RegisterPage {
        RegisterPage {
            guest: self.slot().base,
            host: self.bus.page.address(),
        }
    }

    /// Plain words, so that a panic elsewhere leaves nothing half-done.
    pub(super) fn selectors(&self) -> MutexGuard<'_, Selectors> {
        self.selectors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a read that left the kernel.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        self.bus.page.read(offset, data);
    }

    /// Takes a write. Anything but an aligned word is no register access (4.2.2.2) and ignored.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        let (Ok(offset), Ok(word)) = (u32::try_from(offset), <[u8; 4]>::try_from(data)) else {
            return;
        };
        let value = u32::from_le_bytes(word);
        match offset {
            VIRTIO_MMIO_QUEUE_NOTIFY => return self.function.kick(value as usize),
            VIRTIO_MMIO_INTERRUPT_ACK => {
                if let Some(status) = self.bus.interrupt_status() {
                    status.fetch_and(!(value & VIRTIO_MMIO_INT_CONFIG), Ordering::AcqRel);
                }
                return;
            }
            _ => (),
        }
        let mut selectors = self.selectors();
        let mut control = self.function.lock();
        let queue = selectors.queue as usize;
        let mut look = false;
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => selectors.device_features = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => selectors.driver_features = value,
            VIRTIO_MMIO_DRIVER_FEATURES => match selectors.driver_features {
                0 => control.accept_features(false, value),
                1 => control.accept_features(true, value),
                _ => (),
            },
            VIRTIO_MMIO_QUEUE_SEL => selectors.queue = value,
            VIRTIO_MMIO_QUEUE_NUM => control.set_queue_size(queue, value),
            VIRTIO_MMIO_QUEUE_READY => look = control.set_queue_ready(queue, value & 1 == 1),
            VIRTIO_MMIO_STATUS => {
                look = control.set_status(value & 0xff);
                if value == 0 {
                    *selectors = Selectors::default();
                }
            }
            VIRTIO_MMIO_QUEUE_DESC_LOW => {
                control.set_queue_address(queue, Area::Descriptors, false, value);
            }
            VIRTIO_MMIO_QUEUE_DESC_HIGH => {
                control.set_queue_address(queue, Area::Descriptors, true, value);
            }
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => {
                control.set_queue_address(queue, Area::Available, false, value);
            }
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => {
                control.set_queue_address(queue, Area::Available, true, value);
            }
            VIRTIO_MMIO_QUEUE_USED_LOW => {
                control.set_queue_address(queue, Area::Used, false, value);
            }
            VIRTIO_MMIO_QUEUE_USED_HIGH => {
                control.set_queue_address(queue, Area::Used, true, value);
            }
            QUEUE_RESET if value == 1 => control.reset_queue(queue),
            // Read-only or no register at all. No device of ours has a field of configuration that a driver may write.
            _ => return,
        }
        self.refresh(*selectors, &control);
        drop(control);
        if look {
            // Buffers may lie ready from before the device was: their kick was ignored then.
            self.function.kick_all();
        }
    }

    /// Brings the page up to date, but for `InterruptStatus`, which is only kept there.
    pub(super) fn refresh(&self, selectors: Selectors, control: &Control) {
        let page = &self.bus.page;
        let queue = control.queue(selectors.queue as usize);
        let features = match selectors.device_features {
            0 => control.features() & 0xffff_ffff,
            1 => control.features() >> 32,
            _ => 0,
        };
        for (offset, value) in [
            (VIRTIO_MMIO_MAGIC_VALUE, MAGIC),
            (VIRTIO_MMIO_VERSION, 2),
            (VIRTIO_MMIO_DEVICE_ID, control.id()),
            (VIRTIO_MMIO_VENDOR_ID, VENDOR),
            (VIRTIO_MMIO_DEVICE_FEATURES, features as u32),
            (
                VIRTIO_MMIO_QUEUE_NUM_MAX,
                queue.map_or(0, |q| q.max_size().into()),
            ),
            (
                VIRTIO_MMIO_QUEUE_READY,
                queue.map_or(0, |q| q.ready().into()),
            ),
            (VIRTIO_MMIO_STATUS, control.status()),
            // There is no shared memory: all ones (4.2.2).
            (VIRTIO_MMIO_SHM_LEN_LOW, u32::MAX),
            (VIRTIO_MMIO_SHM_LEN_HIGH, u32::MAX),
            (VIRTIO_MMIO_SHM_BASE_LOW, u32::MAX),
            (VIRTIO_MMIO_SHM_BASE_HIGH, u32::MAX),
            (VIRTIO_MMIO_CONFIG_GENERATION, control.generation()),
        ] {
            page.set(offset, value);
        }
        for (offset, bytes) in (VIRTIO_MMIO_CONFIG..)
            .step_by(4)
            .zip(control.config().chunks(4))
        {
            let mut word = [0; 4];
            word[..bytes.len()].copy_from_slice(bytes);
            page.set(offset, u32::from_le_bytes(word));
        }
    }

    /// The pending causes, for saved state.
    pub(super) fn pending(&self) -> u32 {
        self.bus
            .interrupt_status()
            .map_or(0, |status| status.load(Ordering::Acquire))
    }

    /// Sets the pending causes, from saved state.
    pub(super) fn set_pending(&self, causes: u32) {
        self.bus.page.set(
            VIRTIO_MMIO_INTERRUPT_STATUS,
            causes & (VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG),
        );
    }

    /// Raises the interrupt again if a cause is pending.
    pub(crate) fn raise_again(&self) {
        if self.pending() != 0 {
            self.bus.line.pulse(self.bus.gsi);
        }
    }
}
