//! Registers and the driver's start, as a guest sees them.

use super::super::testing::{Guest, config};
use virtio_bindings::virtio_config::{VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1};

const MODERN: u64 = 1 << VIRTIO_F_VERSION_1;
const STATUS: u64 = 0x70;

/// A machine with the entropy device only: the registers are the same for all.
fn guest() -> Guest {
    let mut config = config();
    config.entropy = true;
    Guest::new(&config, Vec::new())
}

#[test]
fn the_device_introduces_itself() {
    let guest = guest();
    assert_eq!(guest.read(0, 0), 0x7472_6976);
    assert_eq!((guest.read(0, 4), guest.read(0, 8)), (2, 4));
    guest.write(0, 0x30, 0);
    assert_eq!(guest.read(0, 0x34), 16);
    guest.write(0, 0x30, 1);
    assert_eq!(guest.read(0, 0x34), 0, "there is no second queue");
    assert_eq!(guest.read(0, 0xb0), u32::MAX, "there is no shared memory");
    let slot = guest.devices.slots()[0];
    assert_eq!((slot.base, slot.length, slot.gsi), (0xd000_0000, 0x1000, 5));
    let mut word = [0; 4];
    guest.devices.mmio_read(slot.base + slot.length, &mut word);
    assert_eq!(word, [0xff; 4], "nobody is there");
}

#[test]
fn a_driver_must_accept_version_1_and_only_what_is_offered() {
    let guest = guest();
    assert!(!guest.negotiate(0, 0));
    assert!(
        !guest.negotiate(0, MODERN | 1 << 34),
        "packed rings are not offered"
    );
    assert!(guest.negotiate(0, MODERN));
    // Too late to change one's mind.
    guest.write(0, 0x24, 0);
    guest.write(0, 0x20, u32::MAX);
    guest.queue(0, 0, 4, 0x1000, false);
    guest.ready(0);
}

#[test]
fn steps_out_of_order_are_ignored() {
    let guest = guest();
    for (value, status) in [
        (2, 0),
        (4, 0),
        (1, 1),
        (8, 1),
        (3, 3),
        (4 | 3, 3),
        (1, 3),
        (0x83, 0x83),
        (0, 0),
    ] {
        guest.write(0, STATUS, value);
        assert_eq!(guest.read(0, STATUS), status, "after {value:#x}");
    }
    // A queue cannot be set up before features are agreed on, nor changed while it is in use.
    guest.write(0, 0x44, 1);
    assert_eq!(guest.read(0, 0x44), 0);
    assert!(guest.negotiate(0, MODERN));
    let queue = guest.queue(0, 0, 4, 0x1000, false);
    guest.write(0, 0x80, 0x8000);
    guest.write(0, 0x38, 8);
    guest.ready(0);
    assert_eq!(queue.size, 4);
    let queue = guest.devices.slots[0]
        .function()
        .lock()
        .queue(0)
        .unwrap()
        .state();
    assert_eq!((queue.size, queue.desc_table), (4, 0x1000));
}

#[test]
fn acknowledging_clears_the_configuration_bit_and_leaves_the_sticky_one() {
    let guest = guest();
    guest.devices.slots[0].set_pending(3);
    for (written, left) in [(1, 3), (2, 1), (3, 1)] {
        guest.write(0, 0x64, written);
        assert_eq!(guest.read(0, 0x60), left, "after {written}");
    }
    guest.write(0, STATUS, 0);
    assert_eq!(guest.read(0, 0x60), 0, "a reset clears all");
}

#[test]
fn the_page_in_the_guest_always_holds_what_a_read_gives() {
    let guest = guest();
    let page = guest.devices.register_pages()[0];
    assert_eq!((page.guest, page.host % 4096), (0xd000_0000, 0));
    let same = |when: &str| {
        // SAFETY: the page belongs to the devices, which live; no device thread runs in this test.
        let there = unsafe { std::slice::from_raw_parts(page.host as *const u8, 4096) };
        for (offset, byte) in there.iter().enumerate() {
            let mut read = [0];
            guest
                .devices
                .mmio_read(page.guest + offset as u64, &mut read);
            assert_eq!(read[0], *byte, "offset {offset:#x} {when}");
        }
        u32::from_le_bytes([there[0x70], there[0x71], there[0x72], there[0x73]])
    };
    assert_eq!(same("at first"), 0);
    assert!(guest.negotiate(0, MODERN));
    assert_eq!(same("negotiated"), 0xb);
    guest.queue(0, 0, 4, 0x1000, false);
    guest.ready(0);
    assert_eq!(same("ready"), 0xf);
    guest.write(0, STATUS, 0);
    assert_eq!(same("reset"), 0);
}

#[test]
fn doorbells_are_kicks_and_the_acknowledgement() {
    let guest = guest();
    let bells: Vec<_> = guest
        .devices
        .doorbells()
        .iter()
        .map(|bell| (bell.address, bell.value))
        .collect();
    assert_eq!(bells, [(0xd000_0050, 0), (0xd000_0064, 1)]);
}

#[test]
fn one_queue_can_be_reset_by_who_asked_for_it() {
    for asked in [false, true] {
        let guest = guest();
        let features = MODERN | u64::from(asked) << VIRTIO_F_RING_RESET;
        assert!(guest.negotiate(0, features));
        guest.queue(0, 0, 4, 0x1000, false);
        guest.ready(0);
        guest.write(0, 0xc0, 1);
        assert_eq!(guest.read(0, 0xc0), 0, "done at once");
        assert_eq!(guest.read(0, 0x44), u32::from(!asked));
    }
}
