use super::{ADDRESSES_MAX, Addresses, DecodeError, Known};
use crate::{
    announce::{arp_reply, arp_request, neighbour_advertisement, rarp},
    ethernet::{Mac, Vlan},
};
use etherparse::{PacketBuilder, VlanId};
use proptest::prelude::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const CARDS: [Mac; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
const OTHER: Mac = [2, 0, 0, 0, 0, 9];
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const SERVER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);
const LOCAL6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x10);

fn nobody() -> Addresses {
    Addresses::new(&CARDS)
}

fn udp(from: IpAddr, vlan: Option<u16>) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(CARDS[0], OTHER);
    let mut frame = Vec::new();
    let payload = b"OPTIONS sip:there SIP/2.0\r\n";
    let net = match (from, vlan) {
        (IpAddr::V4(from), None) => link.ipv4(from.octets(), [192, 0, 2, 1], 64),
        (IpAddr::V4(from), Some(id)) => {
            link.single_vlan(VlanId::try_new(id).unwrap())
                .ipv4(from.octets(), [192, 0, 2, 1], 64)
        }
        (IpAddr::V6(from), None) => link.ipv6(from.octets(), [1; 16], 64),
        (IpAddr::V6(from), Some(id)) => {
            link.single_vlan(VlanId::try_new(id).unwrap())
                .ipv6(from.octets(), [1; 16], 64)
        }
    };
    net.udp(5060, 5060).write(&mut frame, payload).unwrap();
    frame
}

/// A neighbour discovery message with the given source and hop limit.
fn discovery(kind: u8, from: Ipv6Addr, hops: u8, target: Ipv6Addr) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(CARDS[0], [0x33, 0x33, 0xff, 0, 0, 0x10])
        .ipv6(from.octets(), [0xff; 16], hops)
        .icmpv6_raw(kind, 0, [0; 4])
        .write(&mut frame, &target.octets())
        .unwrap();
    frame
}

fn learned(frames: &[Vec<u8>]) -> Vec<(IpAddr, bool)> {
    let mut addresses = nobody();
    for frame in frames {
        addresses.learn(0, frame);
    }
    (addresses.known().iter())
        .map(|known| (known.address, known.certain))
        .collect()
}

#[test]
fn arp_is_certain_in_both_forms() {
    assert_eq!(
        learned(&[arp_request(CARDS[0], SERVER, None)]),
        [(SERVER.into(), true)]
    );
    assert_eq!(
        learned(&[arp_reply(CARDS[0], SERVER, None)]),
        [(SERVER.into(), true)]
    );
}

#[test]
fn an_arp_probe_has_no_address_yet() {
    let mut probe = arp_request(CARDS[0], SERVER, None);
    // Ethernet's header, and the sender's place in ARP.
    probe[14 + 14..14 + 18].fill(0);
    assert_eq!(learned(&[probe]), []);
}

#[test]
fn arp_for_other_hardware_is_not_ours() {
    let mut frame = arp_request(CARDS[0], SERVER, None);
    frame[14 + 8..14 + 14].copy_from_slice(&OTHER);
    assert_eq!(learned(&[frame]), []);
}

#[test]
fn only_frames_of_the_card_itself_count() {
    let mut addresses = nobody();
    addresses.learn(0, &arp_request(OTHER, SERVER, None));
    addresses.learn(1, &arp_request(CARDS[0], SERVER, None));
    addresses.learn(2, &arp_request(CARDS[0], SERVER, None));
    // Frames of others that the guest only bridges.
    let mut bridged = udp(SERVER.into(), None);
    bridged[6..12].copy_from_slice(&OTHER);
    addresses.learn(0, &bridged);
    assert_eq!(addresses.known(), []);
    assert_eq!(addresses.version(), 0);
    addresses.learn(0, &arp_request(CARDS[0], SERVER, None));
    assert_eq!(addresses.known().len(), 1);
}

#[test]
fn neighbour_discovery_is_certain() {
    const NONE: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
    let gateway = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    // Asked for the gateway: the target is the gateway's.
    assert_eq!(
        learned(&[discovery(135, SERVER6, 255, gateway)]),
        [(SERVER6.into(), true)]
    );
    // Whether a new address is taken already: the target is its own.
    assert_eq!(
        learned(&[discovery(135, NONE, 255, SERVER6)]),
        [(SERVER6.into(), true)]
    );
    assert_eq!(
        learned(&[discovery(133, LOCAL6, 255, NONE)]),
        [(LOCAL6.into(), true)]
    );
    // An advertisement from another of its addresses tells two.
    assert_eq!(
        learned(&[discovery(136, LOCAL6, 255, SERVER6)]),
        [(SERVER6.into(), true), (LOCAL6.into(), true)]
    );
    assert_eq!(
        learned(&[neighbour_advertisement(CARDS[0], SERVER6, false, None)]),
        [(SERVER6.into(), true)]
    );
}

#[test]
fn forwarded_discovery_is_none() {
    assert_eq!(
        learned(&[discovery(136, LOCAL6, 64, SERVER6)]),
        [(LOCAL6.into(), false)]
    );
}

#[test]
fn a_router_stays_one_when_announced() {
    let mut addresses = nobody();
    addresses.learn(0, &discovery(134, LOCAL6, 255, LOCAL6));
    addresses.learn(0, &udp(LOCAL6.into(), None));
    addresses.learn(0, &discovery(133, LOCAL6, 255, LOCAL6));
    assert!(addresses.known()[0].router);
    assert_eq!(
        addresses.announcements().next(),
        Some((0, neighbour_advertisement(CARDS[0], LOCAL6, true, None)))
    );
    addresses.learn(0, &neighbour_advertisement(CARDS[0], LOCAL6, false, None));
    assert!(!addresses.known()[0].router);
}

#[test]
fn an_ordinary_source_is_a_guess_until_something_is_certain() {
    let other = Ipv4Addr::new(198, 51, 100, 7);
    let [a, b] = [udp(SERVER.into(), None), udp(other.into(), None)];
    assert_eq!(
        learned(&[a.clone(), b.clone()]),
        [(other.into(), false), (SERVER.into(), false)]
    );
    let arp = arp_request(CARDS[0], SERVER, None);
    assert_eq!(
        learned(&[a.clone(), b.clone(), arp.clone()]),
        [(SERVER.into(), true)]
    );
    assert_eq!(learned(&[arp, b, a]), [(SERVER.into(), true)]);
}

#[test]
fn what_is_certain_of_one_kind_says_nothing_of_another() {
    let frames = [
        arp_request(CARDS[0], SERVER, None),
        discovery(135, LOCAL6, 255, LOCAL6),
        udp(SERVER6.into(), None),
        udp(SERVER.into(), Some(7)),
    ];
    assert_eq!(
        learned(&frames),
        [
            (SERVER.into(), false),
            (SERVER6.into(), false),
            (LOCAL6.into(), true),
            (SERVER.into(), true),
        ]
    );
}

#[test]
fn addresses_that_nobody_has_are_ignored() {
    for address in [
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "127.3.2.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "ff02::1",
        "::ffff:192.0.2.1",
    ] {
        let address: IpAddr = address.parse().unwrap();
        assert_eq!(learned(&[udp(address, None)]), [], "{address}");
    }
}

#[test]
fn one_tag_is_understood_and_told() {
    let vlan = Vlan::new(7);
    let mut addresses = nobody();
    addresses.learn(0, &udp(SERVER.into(), Some(7)));
    assert_eq!(addresses.known()[0].vlan, vlan);
    let frames: Vec<_> = addresses.announcements().collect();
    assert_eq!(
        frames,
        [
            (0, arp_request(CARDS[0], SERVER, vlan)),
            (0, arp_reply(CARDS[0], SERVER, vlan)),
            (1, rarp(CARDS[1], None)),
        ]
    );
    // A priority is no VLAN, the reserved identifier is nobody's, and of two tags nothing is
    // learned.
    let mut addresses = nobody();
    addresses.learn(0, &udp(SERVER.into(), Some(0)));
    assert_eq!(addresses.known()[0].vlan, None);
    let mut addresses = nobody();
    addresses.learn(0, &udp(SERVER.into(), Some(4095)));
    let mut twice = udp(SERVER.into(), Some(7));
    twice.splice(12..12, [0x81, 0, 0, 8]);
    addresses.learn(0, &twice);
    assert_eq!(addresses.known(), []);
}

#[test]
fn every_card_is_announced() {
    let mut addresses = nobody();
    let frames: Vec<_> = addresses.announcements().collect();
    assert_eq!(
        frames,
        [(0, rarp(CARDS[0], None)), (1, rarp(CARDS[1], None))]
    );
    addresses.learn(1, &arp_reply(CARDS[1], SERVER, None));
    addresses.learn(1, &neighbour_advertisement(CARDS[1], SERVER6, false, None));
    let frames: Vec<_> = addresses.announcements().collect();
    assert_eq!(
        frames,
        [
            (0, rarp(CARDS[0], None)),
            (1, neighbour_advertisement(CARDS[1], SERVER6, false, None)),
            (1, arp_request(CARDS[1], SERVER, None)),
            (1, arp_reply(CARDS[1], SERVER, None)),
        ]
    );
}

fn numbered(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, number)
}

#[test]
fn the_least_recently_seen_is_forgotten() {
    let mut addresses = nobody();
    let max = u8::try_from(ADDRESSES_MAX).unwrap();
    for number in 0..max {
        addresses.learn(0, &arp_request(CARDS[0], numbered(number), None));
    }
    // Seen once more, by an ordinary frame, so 1 is the oldest now.
    addresses.learn(0, &udp(numbered(0).into(), None));
    addresses.learn(0, &arp_request(CARDS[0], numbered(max), None));
    let has = |addresses: &Addresses, number| {
        (addresses.known().iter()).any(|known| known.address == IpAddr::from(numbered(number)))
    };
    assert_eq!(addresses.known().len(), ADDRESSES_MAX);
    assert!(has(&addresses, 0) && !has(&addresses, 1) && has(&addresses, max));
}

#[test]
fn guesses_make_room_and_never_push_out_what_is_certain() {
    let mut addresses = nobody();
    let max = u8::try_from(ADDRESSES_MAX).unwrap();
    addresses.learn(0, &udp(SERVER6.into(), None));
    for number in 0..max - 1 {
        addresses.learn(0, &arp_request(CARDS[0], numbered(number), None));
    }
    addresses.learn(0, &udp(LOCAL6.into(), None));
    assert_eq!(addresses.known()[0].address, IpAddr::from(LOCAL6));
    assert_eq!(addresses.known().iter().filter(|k| !k.certain).count(), 1);
    addresses.learn(0, &arp_request(CARDS[0], numbered(max), None));
    assert!(addresses.known().iter().all(|known| known.certain));
    let before = addresses.known().to_vec();
    addresses.learn(0, &udp(SERVER6.into(), None));
    assert_eq!(addresses.known(), before);
}

#[test]
fn the_version_tells_of_news_only() {
    let mut addresses = nobody();
    addresses.learn(0, &udp(SERVER.into(), None));
    assert_eq!(addresses.version(), 1);
    addresses.learn(0, &udp(SERVER.into(), None));
    assert_eq!(addresses.version(), 1);
    addresses.learn(0, &arp_request(CARDS[0], SERVER, None));
    assert_eq!(addresses.version(), 2);
    addresses.learn(0, &arp_request(CARDS[0], SERVER, None));
    assert_eq!(addresses.version(), 2);
}

fn encoded(addresses: &Addresses) -> Vec<u8> {
    let mut bytes = Vec::new();
    addresses.encode(&mut bytes);
    bytes
}

fn some() -> Addresses {
    let mut addresses = nobody();
    addresses.learn(0, &arp_request(CARDS[0], SERVER, Vlan::new(7)));
    addresses.learn(0, &discovery(134, LOCAL6, 255, LOCAL6));
    addresses.learn(0, &udp(SERVER6.into(), None));
    addresses.learn(1, &arp_request(CARDS[1], SERVER, None));
    addresses
}

/// Bytes with a right checksum.
fn summed(body: &[u8]) -> Vec<u8> {
    let sum = crc32c::crc32c(body).to_le_bytes();
    [body, &sum].concat()
}

#[test]
fn bytes_are_appended_and_read_back() {
    let addresses = some();
    let mut bytes = b"before".to_vec();
    addresses.encode(&mut bytes);
    let read = Addresses::decode(&CARDS, &bytes[6..]).unwrap();
    assert_eq!(read.known(), addresses.known());
    assert_eq!(read.known().len(), 4);
    assert!(read.announcements().eq(addresses.announcements()));
}

#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    let bytes = encoded(&some());
    for index in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[index / 8] ^= 1 << (index % 8);
        assert!(Addresses::decode(&CARDS, &flipped).is_err(), "bit {index}");
    }
    for length in 0..bytes.len() {
        assert!(Addresses::decode(&CARDS, &bytes[..length]).is_err());
    }
}

#[test]
fn what_cannot_be_is_refused_with_a_reason() {
    let decode = |body: &[u8]| Addresses::decode(&CARDS, &summed(body)).map(|_| ());
    assert_eq!(Addresses::decode(&CARDS, &[]), Err(DecodeError::Length));
    assert_eq!(decode(&[]), Err(DecodeError::Length));
    assert_eq!(decode(&[1]), Err(DecodeError::Length));
    assert_eq!(decode(&[1, 0]), Ok(()));
    assert_eq!(decode(&[1, 0, 0]), Err(DecodeError::Length));
    assert_eq!(decode(&[1, 1]), Err(DecodeError::Length));
    assert_eq!(decode(&[2, 0]), Err(DecodeError::Version(2)));
    assert_eq!(decode(&[1, 65]), Err(DecodeError::TooMany(65)));
    let good = [2, 1, 0, 0, 0, 192, 0, 2, 1];
    assert_eq!(decode(&[&[1, 1], &good[..]].concat()), Ok(()));
    assert_eq!(
        decode(&[&[1, 2], &good[..], &good[..]].concat()),
        Err(DecodeError::Impossible(1))
    );
    let with = |index: usize, value: u8| {
        let mut entry = good;
        entry[index] = value;
        decode(&[&[1, 1], &entry[..]].concat())
    };
    assert_eq!(with(0, 10), Err(DecodeError::Impossible(0)));
    assert_eq!(with(1, 2), Err(DecodeError::Card { card: 2, cards: 2 }));
    assert_eq!(with(4, 0x20), Err(DecodeError::Impossible(0)));
    assert_eq!(with(5, 224), Err(DecodeError::Impossible(0)));
    assert_eq!(with(0, 3), Err(DecodeError::Length));
}

/// A sound frame of one of several kinds.
fn sound() -> impl Strategy<Value = Vec<u8>> {
    let vlan = proptest::option::of(0_u16..4096);
    prop_oneof![
        (any::<[u8; 4]>(), vlan.clone()).prop_map(|(a, v)| udp(IpAddr::from(a), v)),
        (any::<[u8; 16]>(), vlan.clone()).prop_map(|(a, v)| udp(IpAddr::from(a), v)),
        (any::<[u8; 4]>(), vlan.clone()).prop_map(|(a, v)| arp_request(
            CARDS[0],
            a.into(),
            v.and_then(Vlan::new)
        )),
        (any::<[u8; 16]>(), any::<bool>(), vlan).prop_map(|(a, r, v)| neighbour_advertisement(
            CARDS[0],
            a.into(),
            r,
            v.and_then(Vlan::new)
        )),
        (
            130_u8..140,
            any::<[u8; 16]>(),
            any::<u8>(),
            any::<[u8; 16]>()
        )
            .prop_map(|(kind, from, hops, target)| discovery(
                kind,
                from.into(),
                hops,
                target.into()
            )),
    ]
}

/// Sound frames, some of them damaged or cut, and plain noise.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let damage = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let damaged = (sound(), damage, any::<prop::sample::Index>(), any::<bool>()).prop_map(
        |(mut frame, damage, end, cut)| {
            // The source stays, so that more is looked at than the first few bytes.
            for (at, value) in damage {
                let at = 12 + at.index(frame.len() - 12);
                frame[at] = value;
            }
            if cut {
                frame.truncate(end.index(frame.len() + 1));
            }
            frame
        },
    );
    prop_oneof![
        4 => damaged,
        1 => proptest::collection::vec(any::<u8>(), 0..120),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn hostile_frames_leave_it_sound(
        frames in proptest::collection::vec((0..3_usize, hostile()), 0..80),
    ) {
        let mut addresses = nobody();
        for (card, frame) in frames {
            addresses.learn(card, &frame);
        }
        prop_assert!(addresses.known().len() <= ADDRESSES_MAX);
        for (index, known) in addresses.known().iter().enumerate() {
            let Known { card, vlan, address, .. } = *known;
            let again = addresses.known()[..index].iter();
            prop_assert!(!again.clone().any(|k| (k.card, k.vlan, k.address) == (card, vlan, address)));
        }
        // Whatever was learned is accepted by the other side, as it is.
        let read = Addresses::decode(&CARDS, &encoded(&addresses)).unwrap();
        prop_assert_eq!(read.known(), addresses.known());
        prop_assert!(addresses.announcements().all(|(card, frame)| card < 2 && frame.len() >= 60));
    }

    #[test]
    fn hostile_bytes_are_refused_or_sound(body in proptest::collection::vec(any::<u8>(), 0..80)) {
        let mut body = body;
        if let [version, count, ..] = &mut body[..] {
            *version = 1;
            *count %= 5;
        }
        if let Ok(addresses) = Addresses::decode(&CARDS, &summed(&body)) {
            prop_assert_eq!(encoded(&addresses), summed(&body));
        }
    }
}
