//! The card, driven as a guest drives it, with the other end of its link in the test.

use super::super::testing::{DATA, Driver, Guest, NEXT, WRITE, Wire, clean, config, dirty, until};
use super::{cable::Cable, link::Header, *};
use crate::{
    config::Nic,
    devices::ring::Part,
    ports::{Outgoing, Ports},
    state::{Reader, Writer},
};
use std::{
    io,
    os::unix::net::UnixDatagram,
    sync::{Mutex, mpsc},
    thread,
    time::Duration,
};
use virtio_bindings::{
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_net::{VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6},
    virtio_ring::VIRTIO_RING_F_EVENT_IDX,
};
use vm_memory::{Bytes, GuestAddress};

const PLAIN: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_NET_F_MAC;
const MERGE: u64 = PLAIN | 1 << VIRTIO_NET_F_MRG_RXBUF;
const EVENTS: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

fn nic(offload: bool) -> Nic {
    Nic {
        tap: "tap0".into(),
        bridge: None,
        mac: [0x52, 0x54, 0, 0xaa, 0, 1],
        mtu: 1500,
        offload,
    }
}

struct Card {
    guest: Guest,
    receive: Driver,
    transmit: Driver,
    peer: UnixDatagram,
    offload: Arc<Mutex<Vec<Offload>>>,
}

fn build(offload: bool) -> (Guest, UnixDatagram, Arc<Mutex<Vec<Offload>>>) {
    let (wire, peer) = Wire::pair();
    let offloads = Arc::clone(&wire.offload);
    let mut config = config();
    config.nics = vec![nic(offload)];
    (Guest::new(&config, vec![Box::new(wire)]), peer, offloads)
}

fn card(features: u64, offload: bool) -> Card {
    let (guest, peer, offload) = build(offload);
    assert!(guest.negotiate(0, features), "features are accepted");
    let events = features & EVENTS != 0;
    let receive = guest.queue(0, 0, 16, 0x1000, events);
    let transmit = guest.queue(0, 1, 16, 0x2000, events);
    guest.ready(0);
    Card {
        guest,
        receive,
        transmit,
        peer,
        offload,
    }
}

/// A frame with its header, as a link gives it. The count of buffers is left wrong on purpose, as a tap leaves it.
fn frame(length: usize, seed: u8) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame[NUM_BUFFERS] = 0xee;
    frame.extend((0..length).map(|at| (at as u8).wrapping_mul(7).wrapping_add(seed)));
    frame
}

#[test]
fn the_configuration_space_tells_mac_status_and_mtu() {
    let (guest, ..) = build(true);
    let base = guest.devices.slots()[0].base;
    let mut bytes = [0; 12];
    for (at, byte) in bytes.iter_mut().enumerate() {
        guest
            .devices
            .mmio_read(base + 0x100 + at as u64, std::slice::from_mut(byte));
    }
    assert_eq!(bytes, [0x52, 0x54, 0, 0xaa, 0, 1, 1, 0, 1, 0, 0xdc, 5]);
}

#[test]
fn a_frame_is_sent_from_several_buffers_with_its_header() {
    let mut card = card(PLAIN, false);
    card.guest.devices.run().unwrap();
    let sent = frame(700, 3);
    // The header is cut in two, and the last buffer lies across the border of two regions.
    let border = (super::super::testing::MEMORY / 2) as u64;
    let pieces = [
        (DATA, 0, 5),
        (DATA + 0x1000, 5, 100),
        (border - 50, 100, sent.len()),
    ];
    for (address, from, to) in pieces {
        card.transmit.put(address, &sent[from..to]);
    }
    let buffers: Vec<_> = pieces
        .iter()
        .map(|(a, f, t)| (*a, (t - f) as u32, 0))
        .collect();
    card.transmit.chain(4, &buffers);
    card.transmit.offer(4);
    card.guest.kick(0, 1);
    let mut got = vec![0; 4096];
    let length = card.peer.recv(&mut got).unwrap();
    let mut expected = sent.clone();
    expected[NUM_BUFFERS] = 0;
    assert_eq!(got[..length], expected);
    assert_eq!(card.transmit.wait(), (4, 0));
    assert_eq!(card.guest.devices.statistics().nics, [[1, 700, 0, 0]]);
}

#[test]
fn a_frame_is_received_straight_into_guest_memory_and_marks_its_pages() {
    let mut card = card(PLAIN, false);
    card.guest.devices.run().unwrap();
    // A header's worth, then the rest over two pages that do not adjoin.
    card.receive.chain(
        2,
        &[
            (DATA, 12, WRITE),
            (DATA + 0x2f00, 0x100, WRITE),
            (DATA + 0x8000, 2048, WRITE),
        ],
    );
    clean(&card.guest.ram);
    card.receive.offer(2);
    card.guest.kick(0, 0);
    let sent = frame(1000, 9);
    card.peer.send(&sent).unwrap();
    assert_eq!(card.receive.wait(), (2, 1012));
    let mut got = card.receive.bytes(DATA, 12);
    got.extend(card.receive.bytes(DATA + 0x2f00, 0x100));
    got.extend(card.receive.bytes(DATA + 0x8000, 1000 - 0x100));
    let mut expected = sent;
    expected[NUM_BUFFERS] = 1;
    assert_eq!(got, expected);
    for page in [DATA, DATA + 0x2f00, DATA + 0x8000] {
        assert!(dirty(&card.guest.ram, page), "page of {page:#x} is marked");
    }
    assert!(
        !dirty(&card.guest.ram, DATA + 0x9000),
        "only what was written is marked"
    );
    assert_eq!(card.guest.devices.statistics().nics, [[0, 0, 1, 1000]]);
}

#[test]
fn a_frame_spreads_over_as_many_mergeable_buffers_as_it_needs() {
    let mut card = card(MERGE, false);
    card.guest.devices.run().unwrap();
    for index in 0..16u16 {
        card.receive
            .chain(index, &[(DATA + u64::from(index) * 0x1000, 256, WRITE)]);
        card.receive.offer(index);
    }
    card.guest.kick(0, 0);
    let sent = frame(900, 1);
    card.peer.send(&sent).unwrap();
    let mut got = Vec::new();
    let mut parts = Vec::new();
    while got.len() < sent.len() {
        let (head, length) = card.receive.wait();
        parts.push((head, length));
        got.extend(
            card.receive
                .bytes(DATA + u64::from(head) * 0x1000, length as usize),
        );
    }
    assert_eq!(parts, [(0, 256), (1, 256), (2, 256), (3, 912 - 768)]);
    let mut expected = sent;
    expected[NUM_BUFFERS] = 4;
    assert_eq!(got, expected);
}

#[test]
fn a_frame_waits_for_buffers_and_nothing_spins_meanwhile() {
    let mut card = card(MERGE, false);
    card.guest.devices.run().unwrap();
    card.receive.chain(0, &[(DATA, 256, WRITE)]);
    card.receive.offer(0);
    card.guest.kick(0, 0);
    let first = frame(600, 1);
    let second = frame(60, 2);
    card.peer.send(&first).unwrap();
    card.peer.send(&second).unwrap();
    let function = card.guest.devices.slots[0].function();
    until("the first frame is kept and the link not watched", || {
        !function.process(0).1
    });
    assert_eq!(
        card.receive.used_index(),
        0,
        "half a frame is not handed over"
    );
    for index in 1..8u16 {
        card.receive
            .chain(index, &[(DATA + u64::from(index) * 0x1000, 256, WRITE)]);
        card.receive.offer(index);
    }
    card.guest.kick(0, 0);
    let mut got = Vec::new();
    for _ in 0..3 {
        let (head, length) = card.receive.wait();
        got.extend(
            card.receive
                .bytes(DATA + u64::from(head) * 0x1000, length as usize),
        );
    }
    assert_eq!((got.len(), &got[HEADER..]), (first.len(), &first[HEADER..]));
    assert_eq!(card.receive.wait(), (3, second.len() as u32));
}

#[test]
fn frames_that_are_too_long_are_dropped_and_counted() {
    let mut card = card(MERGE, false);
    card.guest.devices.run().unwrap();
    for index in 0..8u16 {
        card.receive
            .chain(index, &[(DATA + u64::from(index) * 0x1000, 4096, WRITE)]);
        card.receive.offer(index);
    }
    card.guest.kick(0, 0);
    card.peer.send(&frame(1519, 1)).unwrap();
    card.peer.send(&frame(1518, 2)).unwrap();
    assert_eq!(card.receive.wait(), (0, 1518 + 12));
    card.transmit.put(DATA, &frame(1519, 1));
    card.transmit.chain(0, &[(DATA, 1519 + 12, 0)]);
    card.transmit.offer(0);
    card.guest.kick(0, 1);
    assert_eq!(card.transmit.wait(), (0, 0));
    let statistics = card.guest.devices.statistics();
    assert_eq!(statistics.losses, [[2, 0]]);
    assert_eq!(statistics.nics, [[0, 0, 1, 1518]]);
}

#[test]
fn offloads_follow_the_negotiation() {
    let all = 1 << VIRTIO_NET_F_CSUM
        | 1 << VIRTIO_NET_F_HOST_TSO4
        | 1 << VIRTIO_NET_F_GUEST_CSUM
        | 1 << VIRTIO_NET_F_GUEST_TSO4;
    let mut card = card(MERGE | all, true);
    assert_eq!(
        *card.offload.lock().unwrap(),
        [Offload {
            checksum: true,
            tso4: true,
            tso6: false,
            ecn: false
        }]
    );
    card.guest.devices.run().unwrap();
    // A large frame that asks for segmentation over IPv4 goes out whole; one over IPv6 was not negotiated.
    for (kind, goes) in [
        (VIRTIO_NET_HDR_GSO_TCPV6, false),
        (VIRTIO_NET_HDR_GSO_TCPV4, true),
    ] {
        let mut large = frame(20_000, 1);
        large[0] = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
        large[1] = kind as u8;
        card.transmit.put(DATA, &large);
        card.transmit.chain(0, &[(DATA, large.len() as u32, 0)]);
        card.transmit.offer(0);
        card.guest.kick(0, 1);
        card.transmit.wait();
        assert_eq!(card.guest.devices.statistics().nics[0][0], u64::from(goes));
    }
    let mut got = vec![0; 65536];
    assert_eq!(card.peer.recv(&mut got).unwrap(), 20_012);
}

#[test]
fn without_offloads_none_is_offered_and_none_is_promised() {
    let (guest, ..) = build(false);
    assert_eq!(guest.offered(0) & 0x7f83, 0, "no offload is offered");
    assert!(!guest.negotiate(0, PLAIN | 1 << VIRTIO_NET_F_CSUM));
    let (guest, ..) = build(true);
    assert!(
        !guest.negotiate(0, PLAIN | 1 << VIRTIO_NET_F_GUEST_TSO4),
        "needs checksums"
    );
    let mut card = card(PLAIN, false);
    card.guest.devices.run().unwrap();
    card.receive.chain(0, &[(DATA, 2048, WRITE)]);
    card.receive.offer(0);
    card.guest.kick(0, 0);
    let mut checked = frame(100, 1);
    checked[0] = 2;
    card.peer.send(&checked).unwrap();
    card.receive.wait();
    assert_eq!(
        card.receive.bytes(DATA, 1),
        [0],
        "the driver did not ask to be told of checksums"
    );
}

#[test]
fn a_batch_gives_one_interrupt_and_needs_one_kick() {
    let mut card = card(PLAIN | EVENTS, false);
    card.transmit.interrupt_at(0);
    card.transmit.put(DATA, &frame(100, 1));
    for index in 0..9u16 {
        card.transmit.chain(index, &[(DATA, 112, 0)]);
    }
    for index in 0..8 {
        card.transmit.offer(index);
    }
    card.guest.devices.run().unwrap();
    until("all are sent", || card.transmit.used_index() == 8);
    until("an interrupt", || card.guest.pulses.count() > 0);
    card.transmit.offer(8);
    until("now idle, the device wants to be kicked", || {
        card.transmit.wants_kick(8)
    });
    card.guest.devices.quiesce();
    assert_eq!(card.guest.pulses.count(), 1);
    assert_eq!(card.guest.read(0, 0x60), 1, "the status says why");
    card.guest.write(0, 0x64, 1);
    assert_eq!(card.guest.read(0, 0x60), 1, "the used-buffer bit is sticky");
}

#[test]
fn nothing_moves_while_quiesced_and_all_goes_on_after() {
    let mut card = card(PLAIN, false);
    card.guest.devices.run().unwrap();
    card.guest.devices.quiesce();
    card.receive.chain(0, &[(DATA, 2048, WRITE)]);
    card.receive.offer(0);
    card.transmit.put(DATA + 0x1000, &frame(100, 1));
    card.transmit.chain(0, &[(DATA + 0x1000, 112, 0)]);
    card.transmit.offer(0);
    clean(&card.guest.ram);
    let before = card.guest.pulses.count();
    card.guest.kick(0, 0);
    card.guest.kick(0, 1);
    card.peer.send(&frame(100, 1)).unwrap();
    let mut got = [0; 256];
    card.peer
        .set_read_timeout(Some(std::time::Duration::from_millis(50)))
        .unwrap();
    assert!(card.peer.recv(&mut got).is_err(), "no frame comes out");
    assert_eq!(
        (card.receive.used_index(), card.transmit.used_index()),
        (0, 0)
    );
    assert_eq!(card.guest.pulses.count(), before);
    for page in (0..1024).map(|page| page * 4096) {
        assert!(!dirty(&card.guest.ram, page), "page {page:#x} was written");
    }
    card.guest.devices.run().unwrap();
    assert_eq!(card.receive.wait(), (0, 112));
    assert_eq!(card.transmit.wait(), (0, 0));
    assert_eq!(card.peer.recv(&mut got).unwrap(), 112);
}

/// A link whose sender says that it has begun, and ends when it is told to.
struct Slow {
    wire: Wire,
    begun: mpsc::Sender<()>,
    end: mpsc::Receiver<()>,
}

impl Link for Slow {
    fn fd(&self) -> RawFd {
        self.wire.fd()
    }

    fn writer(&self) -> io::Result<TapWriter> {
        self.wire.writer()
    }

    fn interface(&self) -> Option<String> {
        None
    }

    fn set_offload(&mut self, offload: Offload) -> io::Result<()> {
        self.wire.set_offload(offload)
    }

    fn send(&mut self, header: &Header, frame: &[Part<'_>]) -> io::Result<()> {
        self.begun.send(()).map_err(io::Error::other)?;
        self.end.recv().map_err(io::Error::other)?;
        self.wire.send(header, frame)
    }

    fn receive(&mut self, parts: &[Part<'_>]) -> io::Result<usize> {
        self.wire.receive(parts)
    }

    fn receive_copy(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.wire.receive_copy(buffer)
    }
}

#[test]
fn a_pause_waits_for_the_frame_in_work() {
    let (wire, _peer) = Wire::pair();
    let ((begun, has_begun), (may_end, end)) = (mpsc::channel(), mpsc::channel());
    let mut config = config();
    config.nics = vec![nic(false)];
    let guest = Guest::new(&config, vec![Box::new(Slow { wire, begun, end })]);
    // Dropped before the devices, whose thread would wait for it otherwise if this test failed.
    let may_end = may_end;
    assert!(guest.negotiate(0, PLAIN));
    let mut transmit = guest.queue(0, 1, 16, 0x2000, false);
    guest.ready(0);
    transmit.put(DATA, &frame(100, 1));
    transmit.chain(0, &[(DATA, 112, 0)]);
    transmit.offer(0);
    guest.devices.run().unwrap();
    has_begun.recv().unwrap();
    thread::scope(|scope| {
        let (quiet, is_quiet) = mpsc::channel();
        let devices = &guest.devices;
        scope.spawn(move || {
            devices.quiesce();
            quiet.send(()).unwrap();
        });
        // However long one looks: it can't be quiet before the frame is done. Without the wait it is at once.
        let early = is_quiet.recv_timeout(Duration::from_millis(200));
        assert_eq!(early, Err(mpsc::RecvTimeoutError::Timeout));
        may_end.send(()).unwrap();
        is_quiet.recv().unwrap();
        assert_eq!(transmit.used_index(), 1, "the frame is done");
    });
}

/// Keeps a copy of what it gets, and passes on frames whose first byte is even.
#[derive(Default)]
struct Keeper(Mutex<Vec<(usize, Vec<u8>)>>);

impl Outlet for Keeper {
    fn send(&self, card: usize, frame: &mut dyn Outgoing) {
        let mut copy = vec![0; frame.length()];
        frame.copy_to(&mut copy);
        let mut start = [0xee; HEADER + 3];
        frame.copy_to(&mut start);
        assert_eq!(start[..], copy[..HEADER + 3], "as much as fits");
        if copy[HEADER].is_multiple_of(2) {
            // A refusal is counted by the card.
            let _ = frame.pass();
        }
        self.0.lock().unwrap().push((card, copy));
    }
}

#[test]
fn an_outlet_gets_every_frame_and_the_tap_only_what_it_passes() {
    let keeper = Arc::<Keeper>::default();
    let ports = Ports {
        outlet: Some(Arc::clone(&keeper) as _),
        ..Ports::default()
    };
    let mut config = config();
    let mut links: Vec<Box<dyn Link>> = Vec::new();
    let mut peers = Vec::new();
    for _ in 0..2 {
        let (wire, peer) = Wire::pair();
        links.push(Box::new(wire));
        peers.push(peer);
        config.nics.push(nic(false));
    }
    let guest = Guest::with_ports(&config, links, super::super::testing::memory(), &ports);
    assert!(guest.negotiate(1, PLAIN));
    let mut transmit = guest.queue(1, 1, 16, 0x2000, false);
    guest.ready(1);
    guest.devices.run().unwrap();
    let frames: Vec<_> = (0..6u8).map(|n| frame(100 + usize::from(n), n)).collect();
    for (index, sent) in (0u16..).zip(&frames) {
        let at = DATA + u64::from(index) * 0x1000;
        transmit.put(at, sent);
        // In two buffers, the first of which ends in the middle of the header.
        transmit.chain(2 * index, &[(at, 5, 0), (at + 5, sent.len() as u32 - 5, 0)]);
        transmit.offer(2 * index);
    }
    guest.kick(1, 1);
    for index in 0..6u16 {
        assert_eq!(transmit.wait(), (2 * index, 0), "the guest sees it as sent");
    }
    let kept = keeper.0.lock().unwrap();
    let mut got = [0; 4096];
    for (index, (sent, (card, copy))) in frames.iter().zip(&*kept).enumerate() {
        let mut expected = sent.clone();
        expected[NUM_BUFFERS] = 0;
        assert_eq!((*card, copy), (1, &expected));
        if index % 2 == 0 {
            let length = peers[1].recv(&mut got).unwrap();
            assert_eq!(got[..length], expected);
        }
    }
    assert_eq!(kept.len(), frames.len());
    for peer in &peers {
        peer.set_nonblocking(true).unwrap();
        assert!(peer.recv(&mut got).is_err(), "nothing else reached a tap");
    }
    let bytes: u64 = (100..106).sum();
    assert_eq!(
        guest.devices.statistics().nics,
        [[0; 4], [6, bytes, 0, 0]],
        "what the guest sent, held or passed"
    );
    // What the outlet lets go later leaves by the writer of that card's tap.
    let taps = guest.devices.taps();
    taps[1].write(&kept[1].1).unwrap();
    let length = peers[1].recv(&mut got).unwrap();
    assert_eq!(got[..length], kept[1].1);
    let short = taps[1].write(&[0; 20]).unwrap_err();
    assert_eq!(short.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn a_frame_that_an_outlet_could_not_pass_counts_as_dropped() {
    let keeper = Arc::<Keeper>::default();
    let ports = Ports {
        outlet: Some(Arc::clone(&keeper) as _),
        ..Ports::default()
    };
    let (wire, peer) = Wire::pair();
    drop(peer);
    let mut config = config();
    config.nics = vec![nic(false)];
    let memory = super::super::testing::memory();
    let guest = Guest::with_ports(&config, vec![Box::new(wire)], memory, &ports);
    assert!(guest.negotiate(0, PLAIN));
    let mut transmit = guest.queue(0, 1, 16, 0x2000, false);
    guest.ready(0);
    guest.devices.run().unwrap();
    for (index, seed) in [(0u16, 0), (1, 1)] {
        transmit.put(DATA, &frame(100, seed));
        transmit.chain(index, &[(DATA, 112, 0)]);
        transmit.offer(index);
        guest.kick(0, 1);
        transmit.wait();
    }
    let statistics = guest.devices.statistics();
    assert_eq!(statistics.nics, [[1, 100, 0, 0]]);
    assert_eq!(statistics.losses, [[1, 0]]);
}

/// In a rehearsal: what the guest sends goes nowhere, and is counted.
#[test]
fn a_cable_carries_frames_to_the_guest_and_none_from_it() {
    let (cable, end) = Cable::new().unwrap();
    let mut config = config();
    config.nics = vec![nic(false)];
    let guest = Guest::new(&config, vec![Box::new(cable)]);
    assert!(guest.negotiate(0, PLAIN));
    let mut receive = guest.queue(0, 0, 16, 0x1000, false);
    let mut transmit = guest.queue(0, 1, 16, 0x2000, false);
    guest.ready(0);
    guest.devices.run().unwrap();
    transmit.put(DATA, &frame(100, 1));
    transmit.chain(0, &[(DATA, 112, 0)]);
    transmit.offer(0);
    guest.kick(0, 1);
    assert_eq!(transmit.wait(), (0, 0));
    assert_eq!(end.sent(), 1);
    assert_eq!(end.take(), None, "it has left the guest");
    receive.chain(3, &[(DATA + 0x1000, 2048, WRITE)]);
    receive.offer(3);
    guest.kick(0, 0);
    end.give(&frame(100, 2));
    assert_eq!(receive.wait(), (3, 112));
    let writer = guest.devices.taps().remove(0);
    writer.write(&frame(60, 3)).unwrap();
    assert_eq!(end.take(), None, "what is announced goes nowhere, either");
    // Nobody takes these: they are lost, and nobody waits.
    for _ in 0..10_000 {
        end.give(&frame(1000, 4));
    }
}

#[test]
fn a_restored_card_goes_on_where_the_other_stopped() {
    let features = MERGE | EVENTS | 1 << VIRTIO_NET_F_GUEST_CSUM;
    let mut card = card(features, true);
    card.guest.devices.run().unwrap();
    for index in 0..4u16 {
        card.receive
            .chain(index, &[(DATA + u64::from(index) * 0x1000, 2048, WRITE)]);
        card.receive.offer(index);
    }
    card.guest.kick(0, 0);
    card.peer.send(&frame(100, 1)).unwrap();
    // A driver that sees the chain before the device looks whether it wants an interrupt gets none, and needs none.
    until("an interrupt", || card.guest.pulses.count() > 0);
    assert_eq!(card.receive.wait(), (0, 112));
    card.guest.devices.quiesce();
    let mut state = Vec::new();
    card.guest.devices.save(&mut Writer::new(&mut state));
    let ram = card.guest.ram.clone();

    let (wire, peer) = Wire::pair();
    let offload = Arc::clone(&wire.offload);
    let mut config = config();
    config.nics = vec![nic(true)];
    let other = Guest::with_memory(&config, vec![Box::new(wire)], ram);
    let mut reader = Reader::new(&state);
    other.devices.restore(&mut reader).unwrap();
    assert!(reader.is_empty());
    assert!(
        offload.lock().unwrap()[0].checksum,
        "the tap's offloads are set again"
    );
    assert_eq!(other.read(0, 0x70), 0xf);
    other.devices.run().unwrap();
    assert!(
        other.pulses.count() >= 1,
        "a pending interrupt is raised again"
    );
    peer.send(&frame(200, 1)).unwrap();
    assert_eq!(card.receive.wait(), (1, 212));
    let mut again = Vec::new();
    other.devices.quiesce();
    other.devices.save(&mut Writer::new(&mut again));
    assert_eq!(again.len(), state.len());
}

#[test]
fn state_of_another_card_is_refused_with_its_difference() {
    let (guest, ..) = build(true);
    let mut state = Vec::new();
    guest.devices.save(&mut Writer::new(&mut state));
    let refused = |change: fn(&mut Nic)| {
        let mut config = config();
        let mut other = nic(true);
        change(&mut other);
        config.nics = vec![other];
        let guest = Guest::new(&config, vec![Box::new(Wire::pair().0)]);
        guest
            .devices
            .restore(&mut Reader::new(&state))
            .unwrap_err()
            .to_string()
    };
    assert!(refused(|nic| nic.mac[5] = 9).contains("MAC"));
    assert!(refused(|nic| nic.mtu = 9000).contains("MTU"));
    assert!(refused(|nic| nic.offload = false).contains("features"));
}

#[test]
fn bad_chains_come_back_empty_and_good_ones_still_work() {
    let mut card = card(PLAIN, false);
    card.guest.devices.run().unwrap();
    let sent = frame(100, 1);
    card.transmit.put(DATA, &sent);
    // A loop; memory that is not there; a device-writable buffer; no room for a header; a next one that is not there.
    card.transmit.describe(0, DATA, 50, NEXT, 0);
    card.transmit.describe(1, u64::MAX - 10, 100, 0, 0);
    card.transmit.describe(2, DATA, 112, WRITE, 0);
    card.transmit.describe(3, DATA, 11, 0, 0);
    card.transmit.describe(4, DATA, 112, NEXT, 99);
    card.transmit.describe(5, DATA, u32::MAX, 0, 0);
    card.transmit.describe(6, DATA, 112, 0, 0);
    for head in 0..7 {
        card.transmit.offer(head);
    }
    card.guest.kick(0, 1);
    for head in 0..7 {
        assert_eq!(card.transmit.wait(), (head, 0));
    }
    let statistics = card.guest.devices.statistics();
    assert_eq!((statistics.nics[0][0], statistics.losses[0][0]), (1, 6));
    // A head outside of the table can't be handed back: the device stops and says so.
    card.transmit.offer(16);
    card.guest.kick(0, 1);
    until("the device needs a reset", || {
        card.guest.read(0, 0x70) & 0x40 != 0
    });
    assert_eq!(card.guest.read(0, 0x60) & 2, 2);
    card.guest
        .ram
        .write_obj(0u16, GuestAddress(card.transmit.available))
        .unwrap();
}
