//! Who learns of frames that come in, and frames that come by another way than the link.

use super::super::testing::{DATA, Driver, Guest, WRITE, Wire, config, memory};
use super::{link::HEADER, *};
use crate::{config::Nic, ports::Incoming};
use std::{os::unix::net::UnixDatagram, sync::Mutex, thread, time::Duration};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

/// How long what must not happen is waited for.
const NEVER: Duration = Duration::from_millis(300);

const MERGE: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_MRG_RXBUF;

/// Keeps a copy of what it learns of.
#[derive(Default)]
struct Listener(Mutex<Vec<(usize, Vec<u8>)>>);

impl Inlet for Listener {
    fn received(&self, card: usize, frame: &dyn Incoming) {
        let mut copy = vec![0; frame.length()];
        frame.copy_to(&mut copy);
        let mut start = [0; HEADER + 3];
        frame.copy_to(&mut start);
        assert_eq!(start[..], copy[..HEADER + 3], "as much as fits");
        self.0.lock().unwrap().push((card, copy));
    }
}

impl Listener {
    fn marks(&self) -> Vec<(usize, u8)> {
        let seen = self.0.lock().unwrap();
        seen.iter()
            .map(|(card, bytes)| (*card, bytes[HEADER]))
            .collect()
    }
}

struct Card {
    guest: Guest,
    receive: Driver,
    peer: UnixDatagram,
    listener: Arc<Listener>,
}

/// The second card of a machine.
fn card() -> Card {
    let listener = Arc::<Listener>::default();
    let ports = Ports {
        inlet: Some(Arc::clone(&listener) as _),
        ..Ports::default()
    };
    let (first, _) = Wire::pair();
    let (second, peer) = Wire::pair();
    let mut config = config();
    for number in 0..2 {
        config.nics.push(Nic {
            tap: format!("tap{number}"),
            bridge: None,
            mac: [0x52, 0x54, 0, 0xaa, 0, number],
            mtu: 1500,
            offload: false,
        });
    }
    let links: Vec<Box<dyn Link>> = vec![Box::new(first), Box::new(second)];
    let guest = Guest::with_ports(&config, links, memory(), &ports);
    assert!(guest.negotiate(1, MERGE));
    let receive = guest.queue(1, 0, 16, 0x1000, false);
    guest.ready(1);
    Card {
        guest,
        receive,
        peer,
        listener,
    }
}

impl Card {
    /// Offers buffers of 256 bytes.
    fn offer(&mut self, buffers: std::ops::Range<u16>) {
        for index in buffers {
            let at = DATA + u64::from(index) * 0x1000;
            self.receive.chain(index, &[(at, 256, WRITE)]);
            self.receive.offer(index);
        }
        self.guest.kick(1, 0);
    }

    /// The first byte of the next frame that the guest has got.
    fn next(&mut self) -> u8 {
        let (head, length) = self.receive.wait();
        let at = DATA + u64::from(head) * 0x1000;
        self.receive.bytes(at, length as usize)[HEADER]
    }
}

fn frame(mark: u8) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.resize(HEADER + 60, mark);
    frame
}

#[test]
fn an_inlet_learns_of_each_frame_as_it_is_read() {
    let mut card = card();
    card.guest.devices.run().unwrap();
    // The first frames go into a buffer of ours: there is too little room for the longest.
    card.offer(0..2);
    for mark in [1, 2] {
        card.peer.send(&frame(mark)).unwrap();
    }
    assert_eq!((card.next(), card.next()), (1, 2));
    assert_eq!(card.listener.marks(), [(1, 1), (1, 2)]);
    card.offer(2..16);
    // Now there is room for any.
    for mark in [3, 4] {
        card.peer.send(&frame(mark)).unwrap();
        assert_eq!(card.next(), mark);
    }
    let seen = card.listener.0.lock().unwrap();
    assert_eq!(seen.len(), 4);
    for ((number, copy), mark) in seen.iter().zip(1..) {
        assert_eq!((*number, &copy[HEADER..]), (1, &frame(mark)[HEADER..]));
    }
}

#[test]
fn what_is_paused_reads_nothing() {
    let mut card = card();
    card.guest.devices.run().unwrap();
    card.offer(0..16);
    card.peer.send(&frame(1)).unwrap();
    assert_eq!(card.next(), 1);
    card.guest.devices.quiesce();
    card.peer.send(&frame(2)).unwrap();
    // A thread that did not stand would have read it long before.
    thread::sleep(NEVER);
    assert_eq!(card.listener.marks(), [(1, 1)]);
    card.guest.devices.run().unwrap();
    assert_eq!(card.next(), 2);
    assert_eq!(card.listener.marks(), [(1, 1), (1, 2)]);
}

#[test]
fn what_is_paused_takes_in_what_it_is_asked_to() {
    let mut card = card();
    card.guest.devices.run().unwrap();
    card.offer(0..16);
    card.guest.devices.quiesce();
    for mark in 1..=4 {
        card.peer.send(&frame(mark)).unwrap();
    }
    // Longer than any frame of this card.
    card.peer.send(&[7; HEADER + 1519]).unwrap();
    assert_eq!(card.guest.devices.take_in(3), 3);
    assert_eq!(card.guest.devices.take_in(3), 2);
    assert_eq!(card.guest.devices.take_in(3), 0, "nothing waits");
    assert_eq!(card.listener.marks(), [(1, 1), (1, 2), (1, 3), (1, 4)]);
    card.peer.send(&frame(5)).unwrap();
    card.guest.devices.run().unwrap();
    for mark in 1..=5 {
        assert_eq!(card.next(), mark, "in the order in which they came");
    }
    assert_eq!(card.listener.marks().len(), 5, "each is told once");
}

#[test]
fn what_a_paused_card_takes_in_is_bounded() {
    let card = card();
    // A socket holds some ten datagrams.
    for _ in 0..100 {
        for _ in 0..10 {
            card.peer.send(&frame(1)).unwrap();
        }
        if card.guest.devices.take_in(20) == 0 {
            break;
        }
    }
    assert_eq!(card.listener.marks().len(), TAKEN_IN_MAX);
}

#[test]
fn a_card_at_work_takes_what_is_injected() {
    let mut card = card();
    card.guest.devices.run().unwrap();
    card.offer(0..16);
    card.peer.send(&frame(1)).unwrap();
    assert_eq!(card.next(), 1, "it is at work");
    card.guest.devices.inject_now(1, &frame(2));
    assert_eq!(card.next(), 2);
    assert_eq!(card.listener.marks(), [(1, 1)], "nobody is told");
}

#[test]
fn injected_frames_come_before_all_others_and_are_not_told() {
    let mut card = card();
    card.peer.send(&frame(9)).unwrap();
    for mark in [1, 2, 3] {
        card.guest.devices.inject(1, &frame(mark));
    }
    // None of these could come from a tap.
    card.guest.devices.inject(1, &[0; HEADER]);
    card.guest.devices.inject(1, &[7; HEADER + 1519]);
    card.guest.devices.inject(2, &frame(8));
    card.guest.devices.run().unwrap();
    card.offer(0..2);
    assert_eq!((card.next(), card.next()), (1, 2));
    card.offer(2..16);
    assert_eq!((card.next(), card.next()), (3, 9));
    assert_eq!(card.listener.marks(), [(1, 9)]);
    assert_eq!(card.guest.devices.statistics().losses, [[0, 0], [2, 0]]);
    let nics = card.guest.devices.statistics().nics;
    assert_eq!(nics, [[0; 4], [0, 0, 4, 240]]);
}
