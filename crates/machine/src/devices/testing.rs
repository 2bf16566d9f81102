//! A driver for tests: it does through registers and rings what a guest's kernel does.

use super::{
    Devices, InterruptLine,
    block::Disk,
    net::{
        TapWriter,
        link::{HEADER, Header, Link, Offload, vectors},
    },
    ring::Part,
};
use crate::{config::Config, memory::Ram, ports::Ports};
use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::net::UnixDatagram,
    },
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, bitmap::Bitmap,
};

/// Length of the tests' guest memory.
pub(super) const MEMORY: usize = 4 << 20;
/// Where data buffers begin; rings lie below.
pub(super) const DATA: u64 = 0x10_0000;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;

/// Waits until `condition` holds.
#[track_caller]
pub(super) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        std::thread::yield_now();
    }
}

/// Counts interrupts.
#[derive(Default)]
pub(super) struct Pulses(AtomicUsize);

impl Pulses {
    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl InterruptLine for Pulses {
    fn pulse(&self, _gsi: u32) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A link whose other end is in the test. Each datagram is a frame with its header.
pub(super) struct Wire {
    socket: UnixDatagram,
    pub(super) offload: Arc<Mutex<Vec<Offload>>>,
}

impl Wire {
    pub(super) fn pair() -> (Self, UnixDatagram) {
        let (here, there) = UnixDatagram::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        there.set_read_timeout(Some(PATIENCE)).unwrap();
        let wire = Self {
            socket: here,
            offload: Arc::default(),
        };
        (wire, there)
    }
}

impl Link for Wire {
    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    fn writer(&self) -> io::Result<TapWriter> {
        let fd: OwnedFd = self.socket.try_clone()?.into();
        Ok(TapWriter::new(File::from(fd)))
    }

    fn interface(&self) -> Option<String> {
        None
    }

    fn set_offload(&mut self, offload: Offload) -> io::Result<()> {
        self.offload.lock().unwrap().push(offload);
        Ok(())
    }

    fn send(&mut self, header: &Header, frame: &[Part<'_>]) -> io::Result<()> {
        let mut list = vec![libc::iovec {
            iov_base: header.as_ptr().cast_mut().cast(),
            iov_len: HEADER,
        }];
        list.extend(vectors(frame));
        // SAFETY: the vectors are borrowed memory that is only read.
        let sent =
            unsafe { libc::writev(self.socket.as_raw_fd(), list.as_ptr(), list.len() as i32) };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    fn receive(&mut self, parts: &[Part<'_>]) -> io::Result<usize> {
        let list: Vec<_> = vectors(parts).collect();
        // SAFETY: the vectors are borrowed guest memory.
        let got = unsafe { libc::readv(self.socket.as_raw_fd(), list.as_ptr(), list.len() as i32) };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }

    fn receive_copy(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.recv(buffer)
    }
}

/// A configuration without devices.
pub(super) fn config() -> Config {
    Config {
        name: "test".into(),
        vcpus: 1,
        memory: MEMORY as u64,
        kernel: PathBuf::new(),
        initrd: None,
        command_line: String::new(),
        kernel_cache: None,
        nics: Vec::new(),
        disks: Vec::new(),
        entropy: false,
    }
}

/// Guest memory, in two adjacent regions, so that a buffer may lie across both.
pub(super) fn memory() -> Ram {
    let half = MEMORY / 2;
    Ram::from_ranges(&[(GuestAddress(0), half), (GuestAddress(half as u64), half)]).unwrap()
}

/// Forgets which pages were written.
pub(super) fn clean(ram: &Ram) {
    for region in ram.iter() {
        (**region).bitmap().clear();
    }
}

/// Whether the page of an address was written.
pub(super) fn dirty(ram: &Ram, address: u64) -> bool {
    let (region, at) = ram.to_region_addr(GuestAddress(address)).unwrap();
    let region: &GuestRegionMmap<_> = region;
    region.bitmap().dirty_at(at.0 as usize)
}

/// A guest with its devices.
pub(super) struct Guest {
    pub(super) ram: Ram,
    pub(super) devices: Devices,
    pub(super) pulses: Arc<Pulses>,
}

impl Guest {
    pub(super) fn new(config: &Config, links: Vec<Box<dyn Link>>) -> Self {
        Self::with_memory(config, links, memory())
    }

    pub(super) fn with_memory(config: &Config, links: Vec<Box<dyn Link>>, ram: Ram) -> Self {
        Self::with_ports(config, links, ram, &Ports::default())
    }

    pub(super) fn with_ports(
        config: &Config,
        links: Vec<Box<dyn Link>>,
        ram: Ram,
        ports: &Ports,
    ) -> Self {
        let pulses = Arc::<Pulses>::default();
        let interrupts = Arc::clone(&pulses) as Arc<_>;
        let disks = Disk::open_all(config).unwrap();
        let devices = Devices::with(config, ram.clone(), interrupts, links, disks, ports).unwrap();
        Self {
            ram,
            devices,
            pulses,
        }
    }

    pub(super) fn read(&self, device: usize, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.devices
            .mmio_read(self.devices.slots()[device].base + offset, &mut word);
        u32::from_le_bytes(word)
    }

    pub(super) fn write(&self, device: usize, offset: u64, value: u32) {
        self.devices.mmio_write(
            self.devices.slots()[device].base + offset,
            &value.to_le_bytes(),
        );
    }

    /// The features that a device offers.
    pub(super) fn offered(&self, device: usize) -> u64 {
        self.write(device, 0x14, 1);
        let high = self.read(device, 0x10);
        self.write(device, 0x14, 0);
        u64::from(high) << 32 | u64::from(self.read(device, 0x10))
    }

    /// Negotiates; returns whether the device agrees.
    pub(super) fn negotiate(&self, device: usize, features: u64) -> bool {
        self.write(device, 0x70, 0);
        self.write(device, 0x70, 1);
        self.write(device, 0x70, 3);
        for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(device, 0x24, select);
            self.write(device, 0x20, half);
        }
        self.write(device, 0x70, 0xb);
        self.read(device, 0x70) & 8 != 0
    }

    /// Sets up a queue whose rings begin at `at`.
    pub(super) fn queue(
        &self,
        device: usize,
        number: u32,
        size: u16,
        at: u64,
        event_idx: bool,
    ) -> Driver {
        let driver = Driver {
            ram: self.ram.clone(),
            size,
            descriptors: at,
            available: at + 16 * u64::from(size),
            used: (at + 18 * u64::from(size) + 6).next_multiple_of(4),
            offered: 0,
            seen: 0,
            event_idx,
        };
        self.write(device, 0x30, number);
        self.write(device, 0x38, size.into());
        for (offset, address) in [
            (0x80, driver.descriptors),
            (0x90, driver.available),
            (0xa0, driver.used),
        ] {
            self.write(device, offset, address as u32);
            self.write(device, offset + 4, (address >> 32) as u32);
        }
        self.write(device, 0x44, 1);
        assert_eq!(self.read(device, 0x44), 1, "the queue is ready");
        driver
    }

    /// The driver is ready.
    pub(super) fn ready(&self, device: usize) {
        self.write(device, 0x70, 0xf);
        assert_eq!(self.read(device, 0x70), 0xf, "the device is ready");
    }

    pub(super) fn kick(&self, device: usize, queue: u32) {
        self.write(device, 0x50, queue);
    }
}

/// A driver's view of one queue. The test chooses descriptors itself.
pub(super) struct Driver {
    ram: Ram,
    pub(super) size: u16,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
    offered: u16,
    seen: u16,
    event_idx: bool,
}

impl Driver {
    /// Writes a descriptor.
    pub(super) fn describe(&self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        self.describe_at(
            self.descriptors + 16 * u64::from(index),
            address,
            length,
            flags,
            next,
        );
    }

    /// Writes a descriptor anywhere.
    pub(super) fn describe_at(&self, at: u64, address: u64, length: u32, flags: u16, next: u16) {
        let ram = &self.ram;
        ram.write_obj(address, GuestAddress(at)).unwrap();
        ram.write_obj(length, GuestAddress(at + 8)).unwrap();
        ram.write_obj(flags, GuestAddress(at + 12)).unwrap();
        ram.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    /// Writes a chain from descriptor `first` on: (address, length, flags without NEXT).
    pub(super) fn chain(&self, first: u16, buffers: &[(u64, u32, u16)]) {
        for (at, (address, length, flags)) in (first..).zip(buffers) {
            let last = usize::from(at - first) == buffers.len() - 1;
            let flags = flags | if last { 0 } else { NEXT };
            self.describe(at, *address, *length, flags, at + 1);
        }
    }

    /// Offers a chain.
    pub(super) fn offer(&mut self, head: u16) {
        let slot = self.available + 4 + 2 * u64::from(self.offered % self.size);
        self.ram.write_obj(head, GuestAddress(slot)).unwrap();
        self.offered = self.offered.wrapping_add(1);
        self.ram
            .store(
                self.offered,
                GuestAddress(self.available + 2),
                Ordering::SeqCst,
            )
            .unwrap();
    }

    /// How far the device has come.
    pub(super) fn used_index(&self) -> u16 {
        self.ram
            .load(GuestAddress(self.used + 2), Ordering::SeqCst)
            .unwrap()
    }

    /// Whether the device wants a kick for what was offered since `before` (virtio 1.2, 2.7.10).
    pub(super) fn wants_kick(&self, before: u16) -> bool {
        let event: u16 = self
            .ram
            .load(
                GuestAddress(self.used + 4 + 8 * u64::from(self.size)),
                Ordering::SeqCst,
            )
            .unwrap();
        self.offered.wrapping_sub(event).wrapping_sub(1) < self.offered.wrapping_sub(before)
    }

    /// Says which used entry is to give the next interrupt.
    pub(super) fn interrupt_at(&self, index: u16) {
        let at = self.available + 4 + 2 * u64::from(self.size);
        self.ram
            .store(index, GuestAddress(at), Ordering::SeqCst)
            .unwrap();
    }

    /// Waits for the next chain that is handed back: (head, length).
    #[track_caller]
    pub(super) fn wait(&mut self) -> (u16, u32) {
        until("a chain handed back", || self.used_index() != self.seen);
        let at = self.used + 4 + 8 * u64::from(self.seen % self.size);
        let head: u32 = self.ram.read_obj(GuestAddress(at)).unwrap();
        let length: u32 = self.ram.read_obj(GuestAddress(at + 4)).unwrap();
        self.seen = self.seen.wrapping_add(1);
        if self.event_idx {
            self.interrupt_at(self.seen);
        }
        (head as u16, length)
    }

    /// Reads guest memory.
    pub(super) fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.ram
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    /// Writes guest memory.
    pub(super) fn put(&self, address: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(address)).unwrap();
    }
}
