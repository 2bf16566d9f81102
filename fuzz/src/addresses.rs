//! A machine's addresses: learned from frames, and read from a checkpoint.
//!
//! The input is a byte, and either addresses as a checkpoint carries them (with their checksum made right), or frames: a card's
//! number and a frame each, its length in front.

use crate::{
    input::{Input, piece},
    memory::bounded,
};
use romulus_network::{
    Addresses, Mac,
    addresses::{ADDRESSES_MAX, Known},
    announce::{arp_reply, arp_request, neighbour_advertisement},
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const CARDS: [Mac; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];

/// Reads addresses, or learns some.
///
/// # Panics
/// A promise is broken.
pub fn body(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    if input.byte() == 0 {
        read(input.rest());
        read(&seal(input.rest()));
    } else {
        learn(input);
    }
}

pub(crate) fn seal(bytes: &[u8]) -> Vec<u8> {
    let mut sealed = bytes.to_vec();
    if let Some((body, sum)) = sealed.split_last_chunk_mut::<4>() {
        *sum = crc32c::crc32c(body).to_le_bytes();
    }
    sealed
}

fn read(bytes: &[u8]) {
    let room = ADDRESSES_MAX * size_of::<Known>();
    let decoded = bounded(room + 64, || Addresses::decode(&CARDS, bytes));
    if let Ok(addresses) = decoded {
        let mut out = Vec::new();
        addresses.encode(&mut out);
        assert!(out == bytes, "encoded again they are others: {addresses:?}");
        check(&addresses);
    }
}

fn learn(mut input: Input<'_>) {
    let mut addresses = Addresses::new(&CARDS);
    while !input.is_empty() {
        let card = usize::from(input.byte());
        let frame = input.piece();
        let before = addresses.clone();
        bounded(0, || addresses.learn(card, frame));
        let own = CARDS
            .get(card)
            .is_some_and(|mac| frame.get(6..12) == Some(mac));
        if !own {
            assert_eq!(addresses, before, "only a card's own frames tell of it");
        }
        if addresses.version() == before.version() {
            let mut known = [addresses.known().to_vec(), before.known().to_vec()];
            for known in &mut known {
                known.sort_by_key(|known| (known.card, known.vlan, known.address));
            }
            assert_eq!(known[0], known[1], "a change has a new version");
        }
    }
    check(&addresses);
    let mut out = Vec::new();
    addresses.encode(&mut out);
    let again = Addresses::decode(&CARDS, &out).expect("what was encoded is read");
    assert_eq!(again.known(), addresses.known());
}

/// What holds of any addresses.
fn check(addresses: &Addresses) {
    let known = addresses.known();
    assert!(known.len() <= ADDRESSES_MAX);
    for (at, one) in known.iter().enumerate() {
        assert!(one.card < CARDS.len());
        assert!(!one.address.is_unspecified() && !one.address.is_loopback());
        assert!(!one.address.is_multicast());
        for other in &known[..at] {
            let same = (other.card, other.vlan, other.address) == (one.card, one.vlan, one.address);
            assert!(!same, "{one:?} is there twice");
        }
    }
    let mut told = [0; CARDS.len()];
    for (card, frame) in addresses.announcements() {
        told[card] += 1;
        assert_eq!(frame[6..12], CARDS[card], "each card speaks for itself");
        assert!(frame.len() <= 128);
    }
    assert!(
        told.iter().all(|frames| *frames > 0),
        "each card is announced"
    );
}

/// Addresses, and frames that tell of some.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let server = Ipv4Addr::new(192, 0, 2, 10);
    let server6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);
    let local6 = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x10);
    let vlan = romulus_network::Vlan::new(7);
    let frames = [
        ("arp", 0, arp_request(CARDS[0], server, None)),
        ("arp-reply", 1, arp_reply(CARDS[1], server, vlan)),
        (
            "neighbour",
            0,
            neighbour_advertisement(CARDS[0], server6, true, None),
        ),
        (
            "neighbour-tagged",
            1,
            neighbour_advertisement(CARDS[1], local6, false, vlan),
        ),
        ("foreign", 0, arp_request(CARDS[1], server, None)),
        ("plain", 0, plain(server.into())),
        ("plain6", 0, plain(server6.into())),
    ];
    let mut seeds = Vec::new();
    let mut all = vec![1];
    let mut addresses = Addresses::new(&CARDS);
    let mut encoded = |name: &str, addresses: &Addresses| {
        let mut out = vec![0];
        addresses.encode(&mut out);
        seeds.push((format!("state-{name}"), out));
    };
    encoded("none", &addresses);
    for (name, card, frame) in &frames {
        addresses.learn(usize::from(*card), frame);
        encoded(name, &addresses);
    }
    for (name, card, frame) in frames {
        let one = [vec![card], piece(&frame)].concat();
        all.extend(&one);
        seeds.push((format!("frame-{name}"), [vec![1], one].concat()));
    }
    seeds.push(("frames".into(), all));
    seeds
}

/// A datagram, of whose sender one can only guess that the machine is it.
fn plain(from: IpAddr) -> Vec<u8> {
    let mut frame = [[2, 0, 0, 0, 0, 9], CARDS[0]].concat();
    match from {
        IpAddr::V4(from) => {
            frame.extend([8, 0, 0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0]);
            frame.extend(from.octets());
            frame.extend([192, 0, 2, 7]);
        }
        IpAddr::V6(from) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, 17, 64]);
            frame.extend(from.octets());
            frame.extend([0x20; 16]);
        }
    }
    frame.extend([0x13, 0xc4, 0x13, 0xc4, 0, 8, 0, 0]);
    frame
}
