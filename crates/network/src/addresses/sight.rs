//! Looking at one frame.

use std::net::IpAddr;

use etherparse::{
    ArpHardwareId, ArpPacketSlice, EtherType, Ethernet2Header, Ethernet2HeaderSlice, IpNumber,
    Ipv4HeaderSlice, Ipv6Header, Ipv6HeaderSlice, SingleVlanHeader, SingleVlanHeaderSlice,
};

use crate::ethernet::{Mac, Vlan};

/// Messages of neighbour discovery (RFC 4861, section 4).
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// The router flag of an advertisement.
const ROUTER: u8 = 0x80;
/// A message of neighbour discovery that was not forwarded has this hop limit.
const FRESH: u8 = 255;

/// An address of the sender, as one frame tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sighting {
    pub(super) vlan: Option<Vlan>,
    pub(super) address: IpAddr,
    /// Said by the guest of itself, not guessed.
    pub(super) certain: bool,
    /// Whether the guest is an IPv6 router, if the frame tells.
    pub(super) router: Option<bool>,
}

/// What a frame of the card with this hardware address tells: two addresses at most.
pub(super) fn look(frame: &[u8], mac: Mac) -> [Option<Sighting>; 2] {
    let Ok(link) = Ethernet2HeaderSlice::from_slice(frame) else {
        return [None; 2];
    };
    if link.source() != mac {
        return [None; 2];
    }
    let (mut kind, mut packet, mut vlan) =
        (link.ether_type(), &frame[Ethernet2Header::LEN..], None);
    if kind == EtherType::VLAN_TAGGED_FRAME {
        let Ok(tag) = SingleVlanHeaderSlice::from_slice(packet) else {
            return [None; 2];
        };
        // Identifier 0 is a priority without a VLAN; the reserved one is nobody's.
        vlan = match tag.vlan_identifier().value() {
            0 => None,
            id => match Vlan::new(id) {
                Some(vlan) => Some(vlan),
                None => return [None; 2],
            },
        };
        kind = tag.ether_type();
        packet = &packet[SingleVlanHeader::LEN..];
    }
    let sighting = |(address, certain, router)| Sighting {
        vlan,
        address,
        certain,
        router,
    };
    match kind {
        EtherType::ARP => [arp(packet, mac), None],
        EtherType::IPV4 => [ipv4(packet), None],
        EtherType::IPV6 => ipv6(packet),
        _ => [None; 2],
    }
    .map(|seen| seen.filter(|seen| usable(seen.0)).map(sighting))
}

/// Address, certain, router.
type Seen = (IpAddr, bool, Option<bool>);

fn arp(packet: &[u8], mac: Mac) -> Option<Seen> {
    let arp = ArpPacketSlice::from_slice(packet).ok()?;
    if arp.hw_addr_type() != ArpHardwareId::ETHERNET
        || arp.proto_addr_type() != EtherType::IPV4
        || arp.sender_hw_addr() != mac
    {
        return None;
    }
    // A probe (RFC 5227) has no sender yet; the announcement that follows it has.
    let sender: [u8; 4] = arp.sender_protocol_addr().try_into().ok()?;
    Some((IpAddr::from(sender), true, None))
}

fn ipv4(packet: &[u8]) -> Option<Seen> {
    let ip = Ipv4HeaderSlice::from_slice(packet).ok()?;
    Some((IpAddr::V4(ip.source_addr()), false, None))
}

fn ipv6(packet: &[u8]) -> [Option<Seen>; 2] {
    let Ok(ip) = Ipv6HeaderSlice::from_slice(packet) else {
        return [None; 2];
    };
    let source = ip.source_addr();
    let guess = [Some((IpAddr::V6(source), false, None)), None];
    if ip.next_header() != IpNumber::IPV6_ICMP || ip.hop_limit() != FRESH {
        return guess;
    }
    // Type, code, checksum, four bytes of flags, then the target where there is one.
    let [kind, 0, _, _, flags, _, _, _, rest @ ..] = &packet[Ipv6Header::LEN..] else {
        return guess;
    };
    let target = || -> Option<IpAddr> {
        let target: [u8; 16] = rest.get(..16)?.try_into().ok()?;
        Some(IpAddr::from(target))
    };
    let source = |router| Some((IpAddr::V6(source), true, router));
    match *kind {
        ROUTER_ADVERTISEMENT => [source(Some(true)), None],
        // Without a source it is a test whether its own new address is taken (RFC 4862, 5.4); if
        // it is not, no other message need follow.
        NEIGHBOUR_SOLICITATION if ip.source_addr().is_unspecified() => {
            [target().map(|target| (target, true, None)), None]
        }
        ROUTER_SOLICITATION | NEIGHBOUR_SOLICITATION => [source(None), None],
        NEIGHBOUR_ADVERTISEMENT => {
            let router = Some(flags & ROUTER != 0);
            [
                source(router),
                target().map(|target| (target, true, router)),
            ]
        }
        _ => guess,
    }
}

/// Whether a machine can have this address as its own towards others.
pub(super) fn usable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            // "This network" (0/8), loopback, and all from multicast on: reserved and broadcast.
            let [first, ..] = address.octets();
            first != 0 && first < 224 && !address.is_loopback()
        }
        IpAddr::V6(address) => {
            !address.is_unspecified()
                && !address.is_loopback()
                && !address.is_multicast()
                && address.to_ipv4_mapped().is_none()
        }
    }
}
