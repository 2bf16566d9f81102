//! Frames that say "this address is here now", and when to send them.
//!
//! Neighbours keep in mind which hardware address an IP address has, and switches on which port a
//! hardware address is. After a takeover the first is still right, because the machine keeps its
//! hardware address, but the second is wrong until the machine sends something from its new place.
//! An announcement is broadcast, so that it reaches every switch.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use crate::ethernet::{BROADCAST, Mac, Vlan};

/// The shortest Ethernet frame, without its check sequence (IEEE 802.3).
const SHORTEST: usize = 60;

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_RARP: u16 = 0x8035;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;

const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;
/// "Request reverse" (RFC 903).
const RARP_REQUEST: u16 = 3;

const ICMPV6: u8 = 58;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// All nodes on the link (RFC 4291, section 2.7.1), and the hardware address that it maps to
/// (RFC 2464, section 7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];
/// Flags of an advertisement (RFC 4861, section 4.4).
const ROUTER: u8 = 0x80;
const OVERRIDE: u8 = 0x20;
/// Option "target link-layer address", one unit of eight bytes (RFC 4861, section 4.6.1).
const TARGET_MAC: [u8; 2] = [2, 1];
/// Length of an advertisement with that option.
const ADVERTISEMENT: u16 = 32;

/// Gratuitous ARP as a request: an ARP announcement (RFC 5227, section 2.3). Sender and target
/// are the address itself; the target's hardware address means nothing in a request and is zero.
pub fn arp_request(mac: Mac, address: Ipv4Addr, vlan: Option<Vlan>) -> Vec<u8> {
    arp(
        ETHERTYPE_ARP,
        ARP_REQUEST,
        (mac, address),
        ([0; 6], address),
        vlan,
    )
}

/// Gratuitous ARP as a reply that nobody asked for: some neighbours take notice of this form only.
/// The target's hardware address is broadcast, as the frame's.
pub fn arp_reply(mac: Mac, address: Ipv4Addr, vlan: Option<Vlan>) -> Vec<u8> {
    arp(
        ETHERTYPE_ARP,
        ARP_REPLY,
        (mac, address),
        (BROADCAST, address),
        vlan,
    )
}

/// A reverse ARP request (RFC 903) for the machine's own hardware address: it names no IP address,
/// so that switches learn where the machine is while no address of it is known.
pub fn rarp(mac: Mac, vlan: Option<Vlan>) -> Vec<u8> {
    let unknown = Ipv4Addr::UNSPECIFIED;
    arp(
        ETHERTYPE_RARP,
        RARP_REQUEST,
        (mac, unknown),
        (mac, unknown),
        vlan,
    )
}

/// An unsolicited neighbour advertisement (RFC 4861, section 7.2.6) to all nodes, from the address
/// itself, to override what neighbours have in mind. `router` says whether the machine forwards for
/// others: a router that says it is none is dropped from its neighbours' lists of routers.
pub fn neighbour_advertisement(
    mac: Mac,
    address: Ipv6Addr,
    router: bool,
    vlan: Option<Vlan>,
) -> Vec<u8> {
    let mut frame = ethernet(ALL_NODES_MAC, mac, vlan, ETHERTYPE_IPV6);
    // Version 6, no traffic class, no flow label.
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(ADVERTISEMENT.to_be_bytes());
    // Others are to refuse it if a router forwarded it, which this hop limit tells.
    frame.extend([ICMPV6, 255]);
    frame.extend(address.octets());
    frame.extend(ALL_NODES.octets());
    let message = frame.len();
    frame.extend([NEIGHBOUR_ADVERTISEMENT, 0, 0, 0]);
    frame.extend([OVERRIDE | if router { ROUTER } else { 0 }, 0, 0, 0]);
    frame.extend(address.octets());
    frame.extend(TARGET_MAC);
    frame.extend(mac);
    let sum = checksum(address, ALL_NODES, &frame[message..]);
    frame[message + 2..message + 4].copy_from_slice(&sum.to_be_bytes());
    padded(frame)
}

fn arp(
    ethertype: u16,
    operation: u16,
    sender: (Mac, Ipv4Addr),
    target: (Mac, Ipv4Addr),
    vlan: Option<Vlan>,
) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, sender.0, vlan, ethertype);
    // Hardware Ethernet, protocol IPv4, and the lengths of their addresses (RFC 826).
    frame.extend([0, 1, 8, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    for (mac, address) in [sender, target] {
        frame.extend(mac);
        frame.extend(address.octets());
    }
    padded(frame)
}

fn ethernet(to: Mac, from: Mac, vlan: Option<Vlan>, ethertype: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(96);
    frame.extend(to);
    frame.extend(from);
    if let Some(vlan) = vlan {
        frame.extend(ETHERTYPE_VLAN.to_be_bytes());
        frame.extend(vlan.id().to_be_bytes());
    }
    frame.extend(ethertype.to_be_bytes());
    frame
}

fn padded(mut frame: Vec<u8>) -> Vec<u8> {
    if frame.len() < SHORTEST {
        frame.resize(SHORTEST, 0);
    }
    frame
}

/// The Internet checksum (RFC 1071) of an `ICMPv6` message of even length, with its pseudo-header
/// (RFC 8200, section 8.1).
fn checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let words = |bytes: &[u8]| -> u32 {
        (bytes.chunks_exact(2))
            .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
            .sum()
    };
    let mut sum = words(&from.octets())
        + words(&to.octets())
        + u32::from(ADVERTISEMENT)
        + u32::from(ICMPV6)
        + words(message);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // Folded, so 16 bits are left.
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

/// After the first announcement, again after so long: one frame can be lost, and a switch's port
/// may not forward yet.
pub const AGAIN: [Duration; 3] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_secs(1),
];

/// When to announce: at once, then [`AGAIN`]. Times are in nanoseconds.
///
/// It begins silent; [`Schedule::restart`] begins it, at a takeover, and again when the old host
/// returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    started: u64,
    /// Announcements that are not due any more; none if it is silent.
    done: Option<usize>,
}

impl Schedule {
    /// One that is silent until it is started.
    pub fn new() -> Schedule {
        Schedule::default()
    }

    /// Begins, or begins again, at `now`: the first announcement is due at once.
    pub fn restart(&mut self, now: u64) {
        *self = Schedule {
            started: now,
            done: Some(0),
        };
    }

    /// Ends it: nothing is due any more.
    pub fn stop(&mut self) {
        self.done = None;
    }

    /// Whether to announce now. If several times have passed since the last call, one
    /// announcement does for all of them.
    pub fn due(&mut self, now: u64) -> bool {
        let mut due = false;
        while self.next().is_some_and(|at| at <= now) {
            due = true;
            self.done = self.done.map(|done| done + 1);
        }
        due
    }

    /// When the next announcement is due; none if there is none to come.
    pub fn next(&self) -> Option<u64> {
        let after = match self.done? {
            0 => Duration::ZERO,
            done => *AGAIN.get(done - 1)?,
        };
        let after = u64::try_from(after.as_nanos()).ok()?;
        self.started.checked_add(after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{
        ArpOperation, EtherType, Icmpv6Type, LinkExtSlice, NetSlice, SlicedPacket, TransportSlice,
    };
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = (text.chars().filter_map(|c| c.to_digit(16)))
            .map(|digit| u8::try_from(digit).unwrap())
            .collect();
        (digits.chunks(2)).map(|d| d[0] << 4 | d[1]).collect()
    }

    fn golden(text: &str) -> Vec<u8> {
        let mut frame = hex(text);
        frame.resize(60, 0);
        frame
    }

    const MAC: Mac = [0x00, 0x04, 0xdd, 0x9e, 0xcc, 0xa1];
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 193);

    #[test]
    fn a_reply_is_as_seen_on_a_real_network() {
        let seen = golden(
            "ffffffffffff 0004dd9ecca1 0806
             0001 0800 06 04 0002 0004dd9ecca1 c0a801c1 ffffffffffff c0a801c1",
        );
        assert_eq!(arp_reply(MAC, ADDRESS, None), seen);
    }

    #[test]
    fn a_request_names_no_target_hardware() {
        let expected = golden(
            "ffffffffffff 0004dd9ecca1 0806
             0001 0800 06 04 0001 0004dd9ecca1 c0a801c1 000000000000 c0a801c1",
        );
        assert_eq!(arp_request(MAC, ADDRESS, None), expected);
    }

    #[test]
    fn rarp_asks_for_its_own_address() {
        let expected = golden(
            "ffffffffffff 0004dd9ecca1 8035
             0001 0800 06 04 0003 0004dd9ecca1 00000000 0004dd9ecca1 00000000",
        );
        assert_eq!(rarp(MAC, None), expected);
    }

    #[test]
    fn a_tag_stands_between_addresses_and_type() {
        let expected = golden(
            "ffffffffffff 0004dd9ecca1 8100 0123 0806
             0001 0800 06 04 0002 0004dd9ecca1 c0a801c1 ffffffffffff c0a801c1",
        );
        assert_eq!(arp_reply(MAC, ADDRESS, Vlan::new(0x123)), expected);
    }

    #[test]
    fn an_advertisement_is_as_the_rfc_says() {
        let address: Ipv6Addr = "2001:db8::5060".parse().unwrap();
        let frame = neighbour_advertisement(MAC, address, false, None);
        // The checksum was worked out outside of this program.
        let expected = hex("333300000001 0004dd9ecca1 86dd
             60000000 0020 3a ff
             20010db8 00000000 00000000 00005060 ff020000 00000000 00000000 00000001
             88 00 b028 20000000 20010db8 00000000 00000000 00005060 02 01 0004dd9ecca1");
        assert_eq!(frame, expected);
    }

    proptest! {
        // What we build, another's parser reads, checksum included.
        #[test]
        fn arp_is_read_by_a_parser(
            mac: Mac,
            address: [u8; 4],
            vlan in proptest::option::of(1_u16..4095),
        ) {
            let vlan = vlan.and_then(Vlan::new);
            for (frame, operation) in [
                (arp_request(mac, address.into(), vlan), ArpOperation::REQUEST),
                (arp_reply(mac, address.into(), vlan), ArpOperation::REPLY),
            ] {
                prop_assert_eq!(frame.len(), 60);
                let packet = SlicedPacket::from_ethernet(&frame).unwrap();
                check_link(&packet, BROADCAST, mac, vlan)?;
                let Some(NetSlice::Arp(arp)) = packet.net else {
                    return Err(TestCaseError::fail("not ARP"));
                };
                prop_assert_eq!(arp.operation(), operation);
                prop_assert_eq!(arp.proto_addr_type(), EtherType::IPV4);
                prop_assert_eq!(arp.sender_hw_addr(), mac);
                prop_assert_eq!(arp.sender_protocol_addr(), address);
                prop_assert_eq!(arp.target_protocol_addr(), address);
            }
        }

        #[test]
        fn an_advertisement_is_read_by_a_parser(
            mac: Mac,
            address: [u8; 16],
            router: bool,
            vlan in proptest::option::of(1_u16..4095),
        ) {
            let vlan = vlan.and_then(Vlan::new);
            let frame = neighbour_advertisement(mac, address.into(), router, vlan);
            let packet = SlicedPacket::from_ethernet(&frame).unwrap();
            check_link(&packet, ALL_NODES_MAC, mac, vlan)?;
            let Some(NetSlice::Ipv6(ip)) = packet.net else {
                return Err(TestCaseError::fail("not IPv6"));
            };
            prop_assert_eq!(ip.header().source(), address);
            prop_assert_eq!(ip.header().destination_addr(), ALL_NODES);
            prop_assert_eq!(ip.header().hop_limit(), 255);
            let Some(TransportSlice::Icmpv6(message)) = packet.transport else {
                return Err(TestCaseError::fail("not ICMPv6"));
            };
            prop_assert!(message.is_checksum_valid(address, ALL_NODES.octets()));
            let Icmpv6Type::NeighborAdvertisement(header) = message.icmp_type() else {
                return Err(TestCaseError::fail("not an advertisement"));
            };
            prop_assert_eq!(
                (header.router, header.solicited, header.r#override),
                (router, false, true)
            );
            prop_assert_eq!(&message.payload()[..16], address);
            prop_assert_eq!(&message.payload()[16..18], TARGET_MAC);
            prop_assert_eq!(&message.payload()[18..], mac);
        }
    }

    fn check_link(
        packet: &SlicedPacket<'_>,
        to: Mac,
        from: Mac,
        vlan: Option<Vlan>,
    ) -> Result<(), TestCaseError> {
        let link = packet.link.as_ref().unwrap().to_header().unwrap();
        let link = link.ethernet2().unwrap();
        prop_assert_eq!((link.destination, link.source), (to, from));
        let tags: Vec<u16> = (packet.link_exts.iter())
            .filter_map(|tag| match tag {
                LinkExtSlice::Vlan(tag) => Some(tag.vlan_identifier().value()),
                LinkExtSlice::Macsec(_) => None,
            })
            .collect();
        prop_assert_eq!(tags, vlan.map(Vlan::id).into_iter().collect::<Vec<_>>());
        Ok(())
    }

    #[test]
    fn silent_until_started() {
        let mut schedule = Schedule::new();
        assert_eq!(schedule.next(), None);
        assert!(!schedule.due(u64::MAX));
    }

    #[test]
    fn at_once_and_three_times_more() {
        let mut schedule = Schedule::new();
        let start = 7 * MS;
        schedule.restart(start);
        let mut told = Vec::new();
        for ms in 0..2000 {
            if schedule.due(start + ms * MS) {
                told.push(ms);
            }
        }
        assert_eq!(told, [0, 50, 200, 1000]);
        assert_eq!(schedule.next(), None);
    }

    #[test]
    fn late_once_for_all_that_was_missed() {
        let mut schedule = Schedule::new();
        schedule.restart(0);
        assert!(schedule.due(300 * MS));
        assert!(!schedule.due(300 * MS));
        assert_eq!(schedule.next(), Some(1000 * MS));
    }

    #[test]
    fn started_again_it_begins_anew() {
        let mut schedule = Schedule::new();
        schedule.restart(0);
        assert!(schedule.due(60 * MS));
        schedule.restart(100 * MS);
        assert_eq!(schedule.next(), Some(100 * MS));
        assert!(schedule.due(100 * MS));
        assert_eq!(schedule.next(), Some(150 * MS));
        schedule.stop();
        assert_eq!(schedule.next(), None);
    }

    #[test]
    fn times_at_the_end_do_not_overflow() {
        let mut schedule = Schedule::new();
        schedule.restart(u64::MAX);
        assert!(schedule.due(u64::MAX));
        assert_eq!(schedule.next(), None);
    }
}
