//! What a hostile guest can do: anything in registers and rings. Whatever it does, the process neither panics nor hangs,
//! guest memory is the only memory that is touched, and after a reset the device works again.
//!
//! No threads run here: the tests take the devices' turns themselves, so that a failure is found again from its seed.

use super::{
    device::Work,
    gate::Phase,
    net::link::Link,
    testing::{DATA, Guest, MEMORY, WRITE, Wire, config},
};
use crate::{
    config::{Disk as ConfiguredDisk, Nic},
    memory::{Ram, WriteLog},
    state::{Reader, Writer},
};
use proptest::prelude::*;
use std::{
    os::unix::net::UnixDatagram,
    time::{Duration, Instant},
};
use tempfile::NamedTempFile;
use virtio_bindings::{virtio_config::VIRTIO_F_VERSION_1, virtio_ring::VIRTIO_RING_F_EVENT_IDX};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestRegionMmap, MmapRegion};

const NET: usize = 0;
const BLOCK: usize = 1;
const ENTROPY: usize = 2;
const SECTORS: u64 = 64;
/// The most turns that any state of the rings may keep a device busy without a kick.
const TURNS_MAX: usize = 64;
/// How long one case may take; generous, because the computer is busy with other things.
const CASE_MAX: Duration = Duration::from_secs(10);
const CANARY: u8 = 0xc5;
const GUARD: usize = 64 << 10;

/// Guest memory in the middle of a larger mapping, whose rest must stay as it is.
struct Guarded {
    ram: Ram,
    start: *mut u8,
}

impl Guarded {
    fn new() -> Self {
        let length = MEMORY + 2 * GUARD;
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        // SAFETY: an anonymous mapping at an address of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        let start = start.cast::<u8>();
        for guard in [start, start.wrapping_add(GUARD + MEMORY)] {
            // SAFETY: both guards lie in the mapping.
            unsafe { std::ptr::write_bytes(guard, CANARY, GUARD) };
        }
        // SAFETY: the range lies in the mapping, which is never unmapped while a test runs.
        let region = unsafe {
            MmapRegion::<WriteLog>::build_raw(start.wrapping_add(GUARD), MEMORY, protection, flags)
        };
        let region = GuestRegionMmap::new(region.unwrap(), GuestAddress(0)).unwrap();
        Self {
            ram: Ram::from_regions(vec![region]).unwrap(),
            start,
        }
    }

    fn intact(&self) -> bool {
        [self.start, self.start.wrapping_add(GUARD + MEMORY)]
            .into_iter()
            .all(|guard| {
                // SAFETY: both guards lie in the mapping.
                let bytes = unsafe { std::slice::from_raw_parts(guard, GUARD) };
                bytes.iter().all(|byte| *byte == CANARY)
            })
    }
}

/// All devices on guarded memory.
struct Rig {
    guest: Guest,
    memory: Guarded,
    peer: UnixDatagram,
    _image: NamedTempFile,
    image: std::fs::File,
}

fn rig() -> Rig {
    let (wire, peer) = Wire::pair();
    peer.set_nonblocking(true).unwrap();
    let image = NamedTempFile::new().unwrap();
    image.as_file().set_len(SECTORS * 512).unwrap();
    let mut config = config();
    config.nics = vec![Nic {
        tap: "tap0".into(),
        bridge: None,
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        offload: true,
    }];
    config.disks = vec![ConfiguredDisk {
        path: image.path().to_owned(),
        read_only: false,
        serial: "x".into(),
    }];
    config.entropy = true;
    let memory = Guarded::new();
    let links: Vec<Box<dyn Link>> = vec![Box::new(wire)];
    let guest = Guest::with_memory(&config, links, memory.ram.clone());
    guest.devices.gate.set(Phase::Open);
    let file = image.reopen().unwrap();
    Rig {
        guest,
        memory,
        peer,
        _image: image,
        image: file,
    }
}

impl Rig {
    /// Every queue gets turns, as the threads would give them, until the devices rest.
    fn settle(&self) -> Result<(), TestCaseError> {
        let start = Instant::now();
        for device in &self.guest.devices.slots {
            for queue in 0..device.function().kicks().len() {
                let mut turns = 0;
                while device.function().process(queue).0 == Work::More {
                    turns += 1;
                    prop_assert!(turns < TURNS_MAX, "a device never rests");
                }
            }
        }
        let (function, worker) = &self.guest.devices.disks[0];
        while worker.work() {
            function.process(0);
            prop_assert!(start.elapsed() < CASE_MAX, "the disk never rests");
        }
        prop_assert!(start.elapsed() < CASE_MAX, "a turn takes too long");
        let mut frame = vec![0; 70_000];
        while self.peer.recv(&mut frame).is_ok() {}
        Ok(())
    }

    /// Nothing outside of the guest was touched, and after a reset every device works.
    fn recovers(&self) -> Result<(), TestCaseError> {
        prop_assert!(
            self.memory.intact(),
            "memory outside of the guest was written"
        );
        prop_assert_eq!(self.image.metadata().unwrap().len(), SECTORS * 512);
        let guest = &self.guest;
        for device in [NET, BLOCK, ENTROPY] {
            prop_assert!(guest.negotiate(device, 1 << VIRTIO_F_VERSION_1));
        }
        let mut transmit = guest.queue(NET, 1, 8, 0x1000, false);
        let mut disk = guest.queue(BLOCK, 0, 8, 0x2000, false);
        let mut entropy = guest.queue(ENTROPY, 0, 8, 0x3000, false);
        for driver in [&transmit, &disk, &entropy] {
            for ring in [driver.available, driver.used] {
                self.guest.ram.write_obj(0u32, GuestAddress(ring)).unwrap();
            }
        }
        for device in [NET, BLOCK, ENTROPY] {
            guest.ready(device);
        }
        transmit.put(DATA, &[0; 112]);
        transmit.chain(0, &[(DATA, 112, 0)]);
        transmit.offer(0);
        disk.put(DATA + 0x1000, &[0; 16]);
        disk.chain(
            0,
            &[
                (DATA + 0x1000, 16, 0),
                (DATA + 0x2000, 512, WRITE),
                (DATA + 0x3000, 1, WRITE),
            ],
        );
        disk.offer(0);
        entropy.chain(0, &[(DATA + 0x4000, 16, WRITE)]);
        entropy.offer(0);
        while self.peer.recv(&mut [0; 16]).is_ok() {}
        guest.devices.slots[NET].function().process(1);
        prop_assert_eq!(self.peer.recv(&mut [0; 256]).unwrap(), 112);
        self.settle()?;
        prop_assert_eq!(disk.wait(), (0, 513));
        prop_assert_eq!(entropy.wait(), (0, 16));
        Ok(())
    }
}

/// Addresses that are interesting: inside, at the borders, nowhere.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..MEMORY as u64,
        2 => Just(DATA),
        2 => (0u64..64).prop_map(|at| 0x1000 + at * 16),
        1 => (0u64..64).prop_map(|at| MEMORY as u64 - at),
        1 => (0u64..64).prop_map(|at| u64::MAX - at),
        1 => any::<u64>(),
    ]
}

fn size() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => 0u32..2000,
        2 => Just(16),
        2 => Just(512),
        1 => Just(0),
        1 => (1u32..40).prop_map(|count| count * 16),
        1 => any::<u32>(),
    ]
}

/// A descriptor: address, length, flags, next.
fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let flags = prop_oneof![6 => 0u16..4, 2 => 0u16..8, 1 => any::<u16>()];
    let next = prop_oneof![6 => 0u16..16, 1 => any::<u16>()];
    (address(), size(), flags, next)
}

fn register() -> impl Strategy<Value = (u64, u32)> {
    let offset = prop_oneof![
        6 => prop::sample::select(vec![
            0x14u64, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4, 0xc0,
        ]),
        1 => 0u64..0x1000,
    ];
    let value = prop_oneof![
        3 => 0u32..16,
        1 => prop::sample::select(vec![0x1000u32, 0x2000, 0x3000, 256, 128]),
        1 => any::<u32>(),
    ];
    (offset, value)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Rings full of anything, at each device.
    #[test]
    fn any_rings_are_survived(
        table in prop::collection::vec(descriptor(), 16),
        indirect in prop::collection::vec(descriptor(), 16),
        heads in prop::collection::vec(prop_oneof![8 => 0u16..16, 1 => any::<u16>()], 16),
        index in prop_oneof![8 => 0u16..=16, 1 => any::<u16>()],
        request in any::<[u8; 64]>(),
        disk_request in prop_oneof![0u8..16],
        features in any::<u64>(),
        event_idx in any::<bool>(),
        frames in prop::collection::vec(1usize..3000, 0..4),
    ) {
        let rig = rig();
        let guest = &rig.guest;
        rig.memory.ram.write_slice(&request, GuestAddress(DATA)).unwrap();
        rig.memory.ram.write_slice(&[disk_request, 0, 0, 0], GuestAddress(DATA)).unwrap();
        for (device, queue) in [(NET, 0), (NET, 1), (BLOCK, 0), (ENTROPY, 0)] {
            let always = 1 << VIRTIO_F_VERSION_1 | u64::from(event_idx) << VIRTIO_RING_F_EVENT_IDX;
            let wanted = features & guest.offered(device) | always;
            if !guest.negotiate(device, wanted) {
                prop_assert!(guest.negotiate(device, always));
            }
            let driver = guest.queue(device, queue, 16, 0x1000, event_idx);
            for (at, (address, length, flags, next)) in (0..).zip(&table) {
                driver.describe(at, *address, *length, *flags, *next);
            }
            for (at, (address, length, flags, next)) in (0u64..).zip(&indirect) {
                driver.describe_at(DATA + 0x1_0000 + 16 * at, *address, *length, *flags, *next);
            }
            driver.describe(7, DATA + 0x1_0000, 256, super::testing::INDIRECT, 0);
            for (slot, head) in (0u64..).zip(&heads) {
                rig.memory.ram.write_obj(*head, GuestAddress(driver.available + 4 + 2 * slot)).unwrap();
            }
            rig.memory.ram.write_obj(index, GuestAddress(driver.available + 2)).unwrap();
            guest.ready(device);
            for length in &frames {
                let _ = rig.peer.send(&vec![1; *length]);
            }
            rig.settle()?;
            // Whatever came of it can be saved, and taken again.
            let mut state = Vec::new();
            guest.devices.save(&mut Writer::new(&mut state));
            let _ = guest.devices.restore(&mut Reader::new(&state));
            rig.settle()?;
        }
        rig.recovers()?;
    }

    /// Registers written in any order with anything.
    #[test]
    fn any_register_writes_are_survived(
        writes in prop::collection::vec((0usize..3, register()), 0..200),
        memory in prop::collection::vec((0x1000u64..0x4000, any::<u16>()), 0..50),
    ) {
        let rig = rig();
        for (address, value) in memory {
            rig.memory.ram.write_obj(value, GuestAddress(address)).unwrap();
        }
        for (device, (offset, value)) in writes {
            rig.guest.write(device, offset, value);
            rig.settle()?;
        }
        rig.recovers()?;
    }

    /// Saved state of anything: refused or taken, never a panic, and then anything may still happen.
    #[test]
    fn any_saved_state_is_refused_or_survived(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let rig = rig();
        let guest = &rig.guest;
        for device in [NET, BLOCK, ENTROPY] {
            prop_assert!(guest.negotiate(device, 1 << VIRTIO_F_VERSION_1));
            guest.queue(device, 0, 16, 0x1000 * (device as u64 + 1), false);
            guest.ready(device);
        }
        let mut state = Vec::new();
        guest.devices.save(&mut Writer::new(&mut state));
        for (at, value) in changes {
            let at = at.index(state.len());
            state[at] = value;
        }
        seal(&mut state);
        let _ = guest.devices.restore(&mut Reader::new(&state));
        rig.settle()?;
        rig.recovers()?;
    }
}

/// Makes the checksums of all sections right again, so that what was changed is looked at.
pub(super) fn seal(state: &mut [u8]) {
    let mut at = 0;
    while at + 16 <= state.len() {
        let length = u32::from_le_bytes(state[at + 8..at + 12].try_into().unwrap()) as usize;
        let Some(body) = state.get(at + 16..at + 16 + length) else {
            return;
        };
        let checksum = crc32c::crc32c(body);
        state[at + 12..at + 16].copy_from_slice(&checksum.to_le_bytes());
        at += 16 + length;
    }
}

#[test]
fn a_kick_before_the_driver_is_ready_does_nothing() {
    let rig = rig();
    for device in [NET, BLOCK, ENTROPY] {
        rig.guest.kick(device, 0);
        rig.guest.kick(device, u32::MAX);
    }
    rig.settle().unwrap();
    assert_eq!(rig.guest.pulses.count(), 0);
    rig.recovers().unwrap();
}

#[test]
fn queues_that_are_none_are_refused() {
    for (offset, value) in [
        (0x38, 3),
        (0x38, 0),
        (0x38, 512),
        (0x38, 0x1_0000),
        (0x80, 8),
        (0x90, 1),
        (0xa0, 2),
        (0x84, 1),
        (0x84, u32::MAX),
        (0xa4, u32::MAX),
    ] {
        let rig = rig();
        let guest = &rig.guest;
        assert!(guest.negotiate(NET, 1 << VIRTIO_F_VERSION_1));
        guest.write(NET, 0x30, 0);
        for (register, good) in [(0x38, 16), (0x80, 0x1000), (0x90, 0x2000), (0xa0, 0x3000)] {
            guest.write(NET, register, good);
        }
        guest.write(NET, offset, value);
        guest.write(NET, 0x44, 1);
        assert_eq!(guest.read(NET, 0x70) & 0x40, 0x40, "{offset:#x} {value:#x}");
        guest.write(NET, 0x70, 0xf);
        rig.settle().unwrap();
        rig.recovers().unwrap();
    }
}

#[test]
fn an_index_that_jumps_stops_the_device_only() {
    let rig = rig();
    let guest = &rig.guest;
    assert!(guest.negotiate(NET, 1 << VIRTIO_F_VERSION_1));
    let transmit = guest.queue(NET, 1, 16, 0x1000, false);
    guest.ready(NET);
    rig.memory
        .ram
        .write_obj(17u16, GuestAddress(transmit.available + 2))
        .unwrap();
    guest.kick(NET, 1);
    rig.settle().unwrap();
    assert_eq!(guest.read(NET, 0x70) & 0x40, 0x40);
    assert_eq!(guest.read(BLOCK, 0x70), 0);
    assert_eq!(rig.memory.ram.num_regions(), 1);
    rig.recovers().unwrap();
}
