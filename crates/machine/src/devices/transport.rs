//! What every virtio transport shares: device status, feature negotiation, queues, and the lock around a device.
//!
//! A transport (see [`mmio`]) decodes registers and calls [`Control`]; [`Control`] tells it through [`Bus`] what the
//! guest must see. virtio-pci would be another decoder and another `Bus`.

pub(crate) mod mmio;
mod page;
pub(crate) mod saved;

use super::{
    device::{VirtioDevice, Work},
    gate::Gate,
    ring::{Fault, Ring},
};
use crate::memory::Ram;
use std::{
    io,
    os::fd::RawFd,
    sync::{Arc, Mutex, MutexGuard},
};
use virtio_bindings::{
    virtio_config::{
        VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
        VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
        VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1,
    },
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Features of the transport and the rings, offered by every device.
const COMMON_FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_F_RING_RESET;
/// The steps of a driver's start, in the only order there is (virtio 1.2, 3.1.1).
const STEPS: [u32; 4] = [
    VIRTIO_CONFIG_S_ACKNOWLEDGE,
    VIRTIO_CONFIG_S_DRIVER,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_DRIVER_OK,
];

/// How a device reaches the guest. Called with the function's lock held.
pub(crate) trait Bus: Send + Sync {
    /// Chains of `queue` were handed back and the guest wants to know.
    fn used(&self, queue: usize);
    /// The configuration, or the status, changed by itself.
    fn changed(&self);
    /// What a read of the status gives from now on.
    fn status(&self, status: u32);
    /// The device was reset: no interrupt is pending.
    fn reset(&self);
}

/// One of the three addresses of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Area {
    /// The descriptor table.
    Descriptors,
    /// The available ring.
    Available,
    /// The used ring.
    Used,
}

/// A device with its status and queues.
pub(crate) struct Control {
    /// For the log.
    name: String,
    device: Box<dyn VirtioDevice>,
    queues: Vec<Queue>,
    status: u32,
    driver_features: u64,
    generation: u32,
    /// Whether the log has had a fault of this device: a guest must not fill the host's log.
    failed_before: bool,
    bus: Arc<dyn Bus>,
    memory: Ram,
}

impl Control {
    fn new(
        name: String,
        device: Box<dyn VirtioDevice>,
        bus: Arc<dyn Bus>,
        memory: Ram,
    ) -> io::Result<Self> {
        let queues = device
            .queue_sizes()
            .iter()
            .map(|size| Queue::new(*size))
            .collect::<Result<Vec<_>, _>>()
            .map_err(io::Error::other)?;
        Ok(Self {
            name,
            device,
            queues,
            status: 0,
            driver_features: 0,
            generation: 0,
            failed_before: false,
            bus,
            memory,
        })
    }

    /// The device's number.
    pub(crate) fn id(&self) -> u32 {
        self.device.id()
    }

    /// The status register.
    pub(crate) fn status(&self) -> u32 {
        self.status
    }

    /// How often the configuration changed.
    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    /// The configuration space.
    pub(crate) fn config(&self) -> Vec<u8> {
        self.device.config()
    }

    /// Everything that is offered.
    pub(crate) fn features(&self) -> u64 {
        self.device.features() | COMMON_FEATURES
    }

    /// A queue, if there is one of this number.
    pub(crate) fn queue(&self, index: usize) -> Option<&Queue> {
        self.queues.get(index)
    }

    /// The driver accepts features: the `high` or low 32 of them.
    pub(crate) fn accept_features(&mut self, high: bool, value: u32) {
        if self.status & VIRTIO_CONFIG_S_DRIVER == 0
            || self.status & VIRTIO_CONFIG_S_FEATURES_OK != 0
        {
            return self.complain("chooses features out of order");
        }
        let shift = if high { 32 } else { 0 };
        self.driver_features =
            self.driver_features & !(0xffff_ffff << shift) | u64::from(value) << shift;
    }

    /// The driver writes the status. True: it has just become ready, so that its queues are to be looked at.
    pub(crate) fn set_status(&mut self, value: u32) -> bool {
        if value == 0 {
            self.reset();
            return false;
        }
        if self.status & !value & !(VIRTIO_CONFIG_S_NEEDS_RESET | VIRTIO_CONFIG_S_FAILED) != 0 {
            self.complain("clears status bits");
            return false;
        }
        self.status |= value & VIRTIO_CONFIG_S_FAILED;
        let mut ready = false;
        for (at, step) in STEPS.into_iter().enumerate() {
            let before = STEPS[..at].iter().fold(0, |all, step| all | step);
            if value & step == 0 || self.status & step != 0 {
                continue;
            }
            if self.status & before != before {
                self.complain("skips a step of its start");
                break;
            }
            match step {
                VIRTIO_CONFIG_S_FEATURES_OK if !self.features_fit() => {
                    self.complain("chooses features that are not offered or do not fit together");
                    break;
                }
                VIRTIO_CONFIG_S_DRIVER_OK => {
                    self.status |= step;
                    ready = self.live() && self.activate();
                }
                _ => self.status |= step,
            }
        }
        self.bus.status(self.status);
        ready
    }

    fn features_fit(&self) -> bool {
        self.driver_features & 1 << VIRTIO_F_VERSION_1 != 0
            && self.driver_features & !self.features() == 0
            && self.device.accepts(self.driver_features)
    }

    /// Whether the device may work.
    fn live(&self) -> bool {
        self.status & VIRTIO_CONFIG_S_DRIVER_OK != 0
            && self.status & (VIRTIO_CONFIG_S_FAILED | VIRTIO_CONFIG_S_NEEDS_RESET) == 0
    }

    fn activate(&mut self) -> bool {
        match self.device.activate(self.driver_features) {
            Ok(()) => true,
            Err(fault) => {
                self.fail(&fault);
                false
            }
        }
    }

    /// Whether the selected queue may be set up now: between `FEATURES_OK` and its being made ready.
    fn may_set_up(&mut self, index: usize) -> Option<&mut Queue> {
        if self.status & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            self.complain("sets up a queue out of order");
            return None;
        }
        let name = &self.name;
        self.queues.get_mut(index).filter(|queue| {
            let may = !queue.ready();
            if !may {
                tracing::debug!(device = %name, queue = index, "the guest changes a queue in use: ignored");
            }
            may
        })
    }

    /// The driver chooses a queue's size.
    pub(crate) fn set_queue_size(&mut self, index: usize, size: u32) {
        let Some(queue) = self.may_set_up(index) else {
            return;
        };
        let fits = u16::try_from(size).is_ok_and(|size| queue.try_set_size(size).is_ok());
        if !fits {
            self.fail(&Fault(format!("queue {index} cannot have {size} entries")));
        }
    }

    /// The driver writes half of one of a queue's addresses.
    pub(crate) fn set_queue_address(&mut self, index: usize, area: Area, high: bool, value: u32) {
        let Some(queue) = self.may_set_up(index) else {
            return;
        };
        let old = match area {
            Area::Descriptors => queue.desc_table(),
            Area::Available => queue.avail_ring(),
            Area::Used => queue.used_ring(),
        };
        let address = GuestAddress(if high {
            old & 0xffff_ffff | u64::from(value) << 32
        } else {
            old & !0xffff_ffff | u64::from(value)
        });
        let set = match area {
            Area::Descriptors => queue.try_set_desc_table_address(address),
            Area::Available => queue.try_set_avail_ring_address(address),
            Area::Used => queue.try_set_used_ring_address(address),
        };
        if let Err(error) = set {
            self.fail(&Fault(format!("queue {index}: {error}")));
        }
    }

    /// The driver starts a queue, or stops it. True: it has just started while the device was live.
    pub(crate) fn set_queue_ready(&mut self, index: usize, ready: bool) -> bool {
        if !ready {
            if let Some(queue) = self.queues.get_mut(index)
                && queue.ready()
            {
                queue.set_ready(false);
                self.device.reset_queue(index);
            }
            return false;
        }
        let event_idx = self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let Some(queue) = self.may_set_up(index) else {
            return false;
        };
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        if !usable(&self.queues[index], &self.memory) {
            self.queues[index].set_ready(false);
            self.fail(&Fault(format!("queue {index} lies outside of memory")));
            return false;
        }
        self.live()
    }

    /// A frame that is to come before anything from outside.
    pub(crate) fn inject(&mut self, frame: &[u8]) {
        self.device.inject(frame);
    }

    /// See [`VirtioDevice::take_in`].
    pub(crate) fn take_in(&mut self, frames: usize) -> usize {
        self.device.take_in(frames)
    }

    /// The driver resets one queue (`VIRTIO_F_RING_RESET`).
    pub(crate) fn reset_queue(&mut self, index: usize) {
        if self.driver_features & 1 << VIRTIO_F_RING_RESET == 0 {
            return self.complain("resets a queue without having asked for that feature");
        }
        if let Some(queue) = self.queues.get_mut(index) {
            queue.reset();
            self.device.reset_queue(index);
        }
    }

    /// Back to the start.
    fn reset(&mut self) {
        self.device.reset();
        for queue in &mut self.queues {
            queue.reset();
        }
        self.status = 0;
        self.driver_features = 0;
        self.bus.reset();
        self.bus.status(0);
    }

    /// The device can't go on: it tells the driver that it needs a reset.
    pub(crate) fn fail(&mut self, fault: &Fault) {
        if self.status & VIRTIO_CONFIG_S_NEEDS_RESET != 0 {
            return;
        }
        if std::mem::replace(&mut self.failed_before, true) {
            tracing::debug!(device = %self.name, reason = %fault.0, "the device stops again");
        } else {
            tracing::warn!(device = %self.name, reason = %fault.0, "the device stops until its driver resets it");
        }
        self.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
        self.bus.status(self.status);
        if self.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.bus.changed();
        }
    }

    /// Notes a driver's mistake that harms nobody. Only for those who look: a guest must not fill the host's log.
    fn complain(&self, what: &str) {
        tracing::debug!(device = %self.name, "the driver {what}: ignored");
    }

    /// A turn of work at a queue.
    fn process(&mut self, index: usize, gate: &Gate) -> Work {
        if !self.live() {
            return Work::Done;
        }
        let Some(queue) = self.queues.get_mut(index).filter(|queue| queue.ready()) else {
            return Work::Done;
        };
        let mut ring = Ring::new(queue, &self.memory, gate);
        let worked = self.device.process(index, &mut ring);
        // What was handed back before a fault is the guest's, too.
        let wanted = ring.finish();
        if matches!(wanted, Ok(true)) {
            self.bus.used(index);
        }
        match worked.and_then(|work| wanted.map(|_| work)) {
            Ok(work) => work,
            Err(fault) => {
                self.fail(&fault);
                Work::Done
            }
        }
    }
}

/// Whether a queue's three areas lie in memory, without overflow.
fn usable(queue: &Queue, memory: &Ram) -> bool {
    let fits = |start: u64, length: u64| start.checked_add(length).is_some();
    // virtio-queue checks the ranges but logs what it refuses; only sums that would overflow are refused before.
    fits(queue.desc_table(), 1 << 20)
        && fits(queue.avail_ring(), 1 << 20)
        && fits(queue.used_ring(), 1 << 20)
        && { queue.avail_ring() != 0 && queue.is_valid(memory) }
}

/// A device with its lock, as the threads see it.
pub(crate) struct Function {
    control: Mutex<Control>,
    gate: Arc<Gate>,
    kicks: Vec<EventFd>,
    source: Option<RawFd>,
}

impl Function {
    /// Builds the function of a device.
    ///
    /// # Errors
    /// Descriptors run out.
    pub(crate) fn new(
        name: String,
        device: Box<dyn VirtioDevice>,
        bus: Arc<dyn Bus>,
        memory: Ram,
        gate: Arc<Gate>,
    ) -> io::Result<Self> {
        let kicks = device
            .queue_sizes()
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            source: device.event_source(),
            control: Mutex::new(Control::new(name, device, bus, memory)?),
            gate,
            kicks,
        })
    }

    /// Takes the lock. A thread that panicked while it held it leaves a device in an unknown state: it stops.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(|poisoned| {
            let mut control = poisoned.into_inner();
            control.fail(&Fault("a thread of the host's panicked".into()));
            control
        })
    }

    /// A turn of work at a queue, unless the machine is paused. Also says whether the event source is to be watched.
    pub(crate) fn process(&self, queue: usize) -> (Work, bool) {
        let mut control = self.lock();
        if !self.gate.is_open() {
            return (Work::Done, control.device.listens());
        }
        let work = control.process(queue, &self.gate);
        let listens = control.live() && control.device.listens();
        (work, listens)
    }

    /// What is signalled for each queue.
    pub(crate) fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// What becomes readable when the outside has work for queue 0.
    pub(crate) fn event_source(&self) -> Option<RawFd> {
        self.source
    }

    /// Wakes the thread that serves a queue.
    pub(crate) fn kick(&self, queue: usize) {
        if let Some(event) = self.kicks.get(queue) {
            // It fails only when the counter is full, and then the thread is awake anyway.
            let _ = event.write(1);
        }
    }

    /// Wakes the threads that serve the queues, all of them.
    pub(crate) fn kick_all(&self) {
        for queue in 0..self.kicks.len() {
            self.kick(queue);
        }
    }
}

#[cfg(test)]
mod tests;
