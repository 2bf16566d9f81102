//! The virtio devices of one machine, behind one door.
//!
//! # Layers
//! A device (`net`, `block`, `entropy`) knows its features, its configuration and what its queues mean: the trait in
//! `device`. A `ring` is one turn of work at a queue. `transport` holds what every transport shares, `transport::mmio`
//! decodes registers. virtio-pci comes beside `mmio` without touching a device.
//!
//! # Few exits
//! Doorbells, acknowledgements and register reads are answered in the kernel; see `transport::mmio`.
//!
//! # Threads and pauses
//! One thread serves all cards, one each disk. A thread works at a device only with the device's lock held *and* the gate
//! seen open under it, and looks at the gate again between any two frames or requests. [`Devices::quiesce`] shuts the
//! gate, then takes and leaves each lock once: when it returns, no thread touches guest memory or raises an interrupt, and
//! none will until [`Devices::run`]. It drains nothing: frames stay in the tap, requests of a disk are done in
//! buffers of our own and handed back later.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "lengths are bounded before they are narrowed (a chain by its ring, a request and a frame by their largest \
              size), and constants of the kernel's headers fit the fields that they are made for"
)]

mod block;
mod counters;
mod device;
mod entropy;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod gate;
#[cfg(test)]
mod hostile;
mod net;
mod ring;
#[cfg(test)]
mod testing;
mod threads;
mod transport;

use self::{
    block::{Block, Disk, Log, Worker},
    counters::{BlockCounters, NetCounters},
    device::VirtioDevice,
    entropy::Entropy,
    gate::{Gate, Phase},
    net::{
        Net,
        cable::Cable,
        link::Link,
        tap::{self, Tap},
    },
    threads::Io,
    transport::{
        Function,
        mmio::{self, Mmio, MmioBus},
    },
};
use crate::{
    Error,
    config::Config,
    memory::Ram,
    ports::Ports,
    state::{Reader, StateError, Writer},
};
use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use net::{CableEnd, TapWriter};
pub(crate) use transport::saved::VERSION;

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

/// What the devices have done so far. Rows stand in the order of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceStatistics {
    /// Per network card: frames sent, bytes sent, frames received, bytes received, as the guest sees them.
    pub nics: Vec<[u64; 4]>,
    /// Per network card: frames dropped (malformed, too long, refused by the tap), errors of the tap.
    pub losses: Vec<[u64; 2]>,
    /// Per disk: reads, bytes read, writes, bytes written, flushes, errors.
    pub disks: Vec<[u64; 6]>,
}

/// What is not running yet.
struct Ready {
    io: Option<Io>,
    threads: Vec<JoinHandle<()>>,
}

/// All virtio devices of one machine.
pub struct Devices {
    name: String,
    gate: Arc<Gate>,
    slots: Vec<Mmio>,
    /// The network cards among them.
    cards: Vec<Arc<Function>>,
    /// The disks among them, with who does their work.
    disks: Vec<(Arc<Function>, Arc<Worker>)>,
    look: Arc<EventFd>,
    /// Signalled by acknowledgements of interrupts, and never read.
    unread: EventFd,
    ready: Mutex<Ready>,
    restored: AtomicBool,
    /// The taps by name, each with a way to it, and whether they have been brought up.
    interfaces: Vec<(String, TapWriter)>,
    up: AtomicBool,
    writers: Vec<TapWriter>,
    nic_counters: Vec<Arc<NetCounters>>,
    disk_counters: Vec<Arc<BlockCounters>>,
}

impl std::fmt::Debug for Devices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Devices")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Gathers devices in the order of their slots.
struct Builder {
    name: String,
    ram: Ram,
    interrupts: Arc<dyn InterruptLine>,
    gate: Arc<Gate>,
    devices: Vec<Mmio>,
}

impl Builder {
    fn add(&mut self, name: &str, device: Box<dyn VirtioDevice>) -> Result<Arc<Function>, Error> {
        let index = self.devices.len();
        if index == mmio::DEVICES_MAX {
            return Err(Error::Invalid(format!(
                "a machine has at most {} network cards, disks and other devices",
                mmio::DEVICES_MAX
            )));
        }
        let host = |source| Error::Host {
            what: format!("device {name}"),
            source,
        };
        let bus = Arc::new(MmioBus::new(index, Arc::clone(&self.interrupts)).map_err(host)?);
        let label = format!("{} {name}", self.name);
        let function = Function::new(
            label,
            device,
            Arc::clone(&bus) as Arc<_>,
            self.ram.clone(),
            Arc::clone(&self.gate),
        );
        let function = Arc::new(function.map_err(host)?);
        self.devices
            .push(Mmio::new(index, Arc::clone(&function), bus));
        Ok(function)
    }
}

impl Devices {
    /// Builds every device that `config` names: opens its taps and disks. Nothing runs yet, and no tap is brought up
    /// before [`Self::open_taps`]. If they are to be `shut`, they are down on return and hold no frame.
    ///
    /// # Errors
    /// A tap, bridge or disk that is missing, busy or forbidden, by name.
    pub fn new(
        config: &Config,
        ram: Ram,
        interrupts: Arc<dyn InterruptLine>,
        ports: &Ports,
        shut: bool,
    ) -> Result<Self, Error> {
        let mut links: Vec<Box<dyn Link>> = Vec::new();
        for nic in &config.nics {
            links.push(Box::new(Tap::new(nic, shut)?));
        }
        let disks = Disk::open_all(config)?;
        Self::with(config, ram, interrupts, links, disks, ports)
    }

    /// The devices of a rehearsal, which reach nothing outside of it: the cards have cables instead of taps, whose other ends are
    /// returned in the order of the configuration, and nothing is written to the disks.
    ///
    /// # Errors
    /// A disk that is missing or forbidden, by name; descriptors run out.
    pub fn rehearse(
        config: &Config,
        ram: Ram,
        interrupts: Arc<dyn InterruptLine>,
    ) -> Result<(Self, Vec<CableEnd>), Error> {
        let mut links: Vec<Box<dyn Link>> = Vec::new();
        let mut ends = Vec::new();
        for nic in &config.nics {
            let (cable, end) = Cable::new().map_err(|source| Error::Host {
                what: format!("a cable in place of tap {}", nic.tap),
                source,
            })?;
            links.push(Box::new(cable));
            ends.push(end);
        }
        let disks = config.disks.iter().map(Disk::rehearse);
        let disks = disks.collect::<Result<_, _>>()?;
        let devices = Self::with(config, ram, interrupts, links, disks, &Ports::default())?;
        Ok((devices, ends))
    }

    /// [`Self::new`] with what lies outside already there: the cards' links, the disks' images.
    fn with(
        config: &Config,
        ram: Ram,
        interrupts: Arc<dyn InterruptLine>,
        links: Vec<Box<dyn Link>>,
        images: Vec<Disk>,
        ports: &Ports,
    ) -> Result<Self, Error> {
        let host = |source: io::Error| Error::Host {
            what: "the devices' threads".into(),
            source,
        };
        let gate = Arc::new(Gate::new());
        let mut builder = Builder {
            name: config.name.clone(),
            ram,
            interrupts,
            gate: Arc::clone(&gate),
            devices: Vec::new(),
        };
        let mut served = Vec::new();
        let (mut cards, mut nic_counters) = (Vec::new(), Vec::new());
        let (mut interfaces, mut writers) = (Vec::new(), Vec::new());
        for (card, (nic, link)) in config.nics.iter().zip(links).enumerate() {
            let counters = Arc::<NetCounters>::default();
            nic_counters.push(Arc::clone(&counters));
            let writer = link.writer().map_err(|source| Error::Host {
                what: format!("tap {}: a second descriptor", nic.tap),
                source,
            })?;
            interfaces.extend(link.interface().map(|name| (name, writer.clone())));
            writers.push(writer);
            let net = Net::new(link, card, ports, nic, counters);
            let function = builder.add(&nic.tap, Box::new(net))?;
            cards.push(Arc::clone(&function));
            served.push(function);
        }
        let mut disks = Vec::new();
        let mut disk_counters = Vec::new();
        for (number, (configured, disk)) in config.disks.iter().zip(images).enumerate() {
            let name = configured.path.display().to_string();
            let counters = Arc::<BlockCounters>::default();
            disk_counters.push(Arc::clone(&counters));
            let file = disk.file.try_clone().map_err(host)?;
            let log = ports.disks.clone().map(|to| Log { disk: number, to });
            let worker = Worker::new(file, name.clone(), counters, log);
            let worker = Arc::new(if disk.pretends {
                worker.pretending()
            } else {
                worker
            });
            let block = Block::new(&disk, &configured.serial, Arc::clone(&worker));
            disks.push((builder.add(&name, Box::new(block))?, worker));
        }
        if config.entropy {
            served.push(builder.add("entropy", Box::new(Entropy::default()))?);
        }
        let io = Io::new(served, Arc::clone(&gate)).map_err(host)?;
        Ok(Self {
            name: builder.name,
            gate,
            slots: builder.devices,
            cards,
            disks,
            look: io.look(),
            unread: EventFd::new(EFD_NONBLOCK).map_err(host)?,
            ready: Mutex::new(Ready {
                io: Some(io),
                threads: Vec::new(),
            }),
            restored: AtomicBool::new(false),
            interfaces,
            up: AtomicBool::new(false),
            writers,
            nic_counters,
            disk_counters,
        })
    }

    /// Where each device stands, for the ACPI tables.
    pub fn slots(&self) -> Vec<Slot> {
        self.slots.iter().map(Mmio::slot).collect()
    }

    /// The doorbells to be registered with KVM.
    pub fn doorbells(&self) -> Vec<Doorbell<'_>> {
        let mut doorbells = Vec::new();
        for device in &self.slots {
            for (value, event) in (0..).zip(device.function().kicks()) {
                doorbells.push(Doorbell {
                    address: device.notify_address(),
                    value,
                    event,
                });
            }
            let (address, value) = device.acknowledge();
            doorbells.push(Doorbell {
                address,
                value,
                event: &self.unread,
            });
        }
        doorbells
    }

    /// The register pages to be mapped read-only, where the host can.
    pub fn register_pages(&self) -> Vec<RegisterPage> {
        self.slots.iter().map(Mmio::page).collect()
    }

    /// The device whose registers hold an address, and the offset in them.
    fn find(&self, address: u64) -> Option<(&Mmio, u64)> {
        let offset = address.checked_sub(mmio::BASE)?;
        let index = usize::try_from(offset / mmio::LENGTH).ok()?;
        Some((self.slots.get(index)?, offset % mmio::LENGTH))
    }

    /// A vCPU reads registers. Unclaimed addresses read as ones.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A vCPU writes registers. Unclaimed addresses are ignored.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address) {
            device.write(offset, data);
        }
    }

    /// Brings the taps up, so that frames pass. From the second call on it does nothing.
    ///
    /// # Errors
    /// A tap that is gone, or may not be brought up by this user. The others may be up by then.
    pub fn open_taps(&self) -> Result<(), Error> {
        if self.up.load(Ordering::Acquire) {
            return Ok(());
        }
        for (name, _) in &self.interfaces {
            tap::open(name)?;
        }
        self.up.store(true, Ordering::Release);
        Ok(())
    }

    /// Checks that the taps are still there: whoever is to run needs them, and has to know before it is the only one.
    ///
    /// # Errors
    /// One was deleted, perhaps made anew under the same name.
    pub fn check_taps(&self) -> Result<(), Error> {
        for (name, writer) in &self.interfaces {
            tap::check_attached(name, writer)?;
        }
        Ok(())
    }

    /// A writer for each card's tap, in the order of the configuration.
    pub fn taps(&self) -> Vec<TapWriter> {
        self.writers.clone()
    }

    /// Gives card number `card` a frame before anything from its tap. See [`crate::Paused::inject`].
    pub fn inject(&self, card: usize, frame: &[u8]) {
        if let Some(function) = self.cards.get(card) {
            function.lock().inject(frame);
        }
    }

    /// [`Self::inject`] while the devices work.
    pub fn inject_now(&self, card: usize, frame: &[u8]) {
        self.inject(card, frame);
        self.look_again();
    }

    /// Makes the thread of the cards look at every queue.
    fn look_again(&self) {
        // It fails only when the counter is full, and then the thread is awake anyway.
        let _ = self.look.write(1);
    }

    /// Takes frames in that have come for the cards. Only while quiesced. See [`crate::Paused::take_in`].
    pub fn take_in(&self, frames: usize) -> usize {
        let of_card = |card: &Arc<Function>| card.lock().take_in(frames);
        self.cards.iter().map(of_card).sum()
    }

    /// Lets the devices work: starts their threads at the first call, and wakes them after [`Self::quiesce`].
    /// Every queue is looked at once (a doorbell is not saved state) and, after [`Self::restore`], interrupts still
    /// pending are raised again. (After a mere pause none can be missing: raising one is synchronous.)
    ///
    /// # Errors
    /// A thread could not be started.
    pub fn run(&self) -> Result<(), Error> {
        let host = |source| Error::Host {
            what: format!("a thread for the devices of {}", self.name),
            source,
        };
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(io) = ready.io.take() {
            ready.threads.push(io.start(&self.name).map_err(host)?);
            for (function, worker) in &self.disks {
                let (function, worker, gate) = (
                    Arc::clone(function),
                    Arc::clone(worker),
                    Arc::clone(&self.gate),
                );
                ready
                    .threads
                    .push(threads::start_disk(&self.name, function, worker, gate).map_err(host)?);
            }
        }
        self.gate.set(Phase::Open);
        if self.restored.swap(false, Ordering::AcqRel) {
            self.slots.iter().for_each(Mmio::raise_again);
        }
        self.look_again();
        for (function, _) in &self.disks {
            function.kick_all();
        }
        Ok(())
    }

    /// Stops the devices without draining them. On return, and until [`Self::run`], no device thread touches guest
    /// memory or raises an interrupt. To be called when all vCPUs are parked.
    pub fn quiesce(&self) {
        self.gate.set(Phase::Shut);
        for device in &self.slots {
            drop(device.function().lock());
        }
    }

    /// Writes the state of all devices. Only while quiesced.
    pub fn save(&self, writer: &mut Writer<'_>) {
        for (index, device) in (0..).zip(&self.slots) {
            device.save(index, writer);
        }
    }

    /// Takes the state of all devices. Only before the first [`Self::run`] or while quiesced.
    ///
    /// # Errors
    /// State that is damaged, or of other devices than these.
    pub fn restore(&self, reader: &mut Reader<'_>) -> Result<(), StateError> {
        for (index, device) in (0..).zip(&self.slots) {
            device.restore(index, reader)?;
        }
        self.restored.store(true, Ordering::Release);
        Ok(())
    }

    /// What the devices have done so far. It takes no lock and may be asked at any time.
    pub fn statistics(&self) -> DeviceStatistics {
        DeviceStatistics {
            nics: self
                .nic_counters
                .iter()
                .map(|counters| counters.traffic())
                .collect(),
            losses: self
                .nic_counters
                .iter()
                .map(|counters| counters.losses())
                .collect(),
            disks: self
                .disk_counters
                .iter()
                .map(|counters| counters.all())
                .collect(),
        }
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        let functions: Vec<_> = self
            .slots
            .iter()
            .map(|device| Arc::clone(device.function()))
            .collect();
        let ready = self.ready.get_mut().unwrap_or_else(PoisonError::into_inner);
        threads::end(
            &self.gate,
            &[Arc::clone(&self.look)],
            &functions,
            std::mem::take(&mut ready.threads),
        );
    }
}
