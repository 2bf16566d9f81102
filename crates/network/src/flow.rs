//! What a frame carries, as far as it matters for whether it may leave before its epoch is committed.
//!
//! After a takeover the guest is some milliseconds younger than what it has sent without being held. RTP bears that: it
//! repeats some packets, or skips some. Whatever keeps sequence numbers, nonces or answers does not. So the question here is
//! not "what is this most likely?" but "is it certainly media?": everything that is not understood to its end is
//! something else. One socket may carry media, STUN and DTLS side by side; RFC 7983 tells them apart by their first
//! byte, RFC 5761 RTP from RTCP by their second.

#[cfg(test)]
pub(crate) mod tests;

use etherparse::{
    EtherType, Ethernet2Header, Ethernet2HeaderSlice, IpNumber, Ipv4HeaderSlice, Ipv6Header,
    Ipv6HeaderSlice, SingleVlanHeader, SingleVlanHeaderSlice, UdpHeader, UdpHeaderSlice,
};

/// How many bytes of a frame are worth a look: Ethernet, two VLAN tags, IPv6, some extension headers, UDP and RTP with an extension.
pub const GLANCE: usize = 192;
/// Tags that are taken off: a provider's and the customer's.
const TAGS: usize = 2;
/// Headers between IPv6's own and UDP's that are walked over.
const EXTENSIONS: usize = 4;
/// RTP's fixed header (RFC 3550, section 5.1).
const RTP: usize = 12;
/// The least of RTCP: a header and one SSRC (section 6.4.2).
const RTCP: usize = 8;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Carries {
    /// One packet of RTP, or of SRTP, which looks the same.
    Rtp,
    /// RTCP, or SRTCP.
    Rtcp,
    /// STUN (RFC 8489) over UDP.
    Stun,
    /// DTLS over UDP.
    Dtls,
    /// Any other UDP: SIP, for one, whose first letters TURN's channels share.
    Udp,
    /// TCP.
    Tcp,
    /// A fragment of an IP packet of this protocol, the first one as well: what follows is not in it.
    Fragment(u8),
    /// Everything else: ARP, ICMP, SCTP, tunnels, what is damaged or not understood.
    Other,
}

/// A frame, as [`Rules`](crate::mode::Rule) look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// What it carries.
    pub carries: Carries,
    /// Its UDP ports, source first; zeroes where it has none.
    pub ports: [u16; 2],
    /// Its class of traffic (RFC 2474): 0 to 63, 0 where it is no IP.
    pub dscp: u8,
}

impl Flow {
    const fn other(carries: Carries, dscp: u8) -> Flow {
        Flow {
            carries,
            ports: [0; 2],
            dscp,
        }
    }
}

/// Looks at a frame of `length` bytes, without its virtio-net header, of which `start` is the beginning. What lies beyond
/// that is unknown, so that a long row of headers may make anything something else.
pub fn flow(start: &[u8], length: usize) -> Flow {
    look(start, length).unwrap_or(Flow::other(Carries::Other, 0))
}

fn look(start: &[u8], length: usize) -> Option<Flow> {
    let start = &start[..start.len().min(length)];
    let link = Ethernet2HeaderSlice::from_slice(start).ok()?;
    let (mut kind, mut at) = (link.ether_type(), Ethernet2Header::LEN);
    for _ in 0..TAGS {
        if !matches!(
            kind,
            EtherType::VLAN_TAGGED_FRAME | EtherType::PROVIDER_BRIDGING
        ) {
            break;
        }
        kind = SingleVlanHeaderSlice::from_slice(start.get(at..)?)
            .ok()?
            .ether_type();
        at += SingleVlanHeader::LEN;
    }
    match kind {
        EtherType::IPV4 => ipv4(start, at, length),
        EtherType::IPV6 => ipv6(start, at, length),
        _ => None,
    }
}

fn ipv4(start: &[u8], at: usize, length: usize) -> Option<Flow> {
    let header = Ipv4HeaderSlice::from_slice(start.get(at..)?).ok()?;
    let dscp = header.dcp().value();
    // What follows the packet in its frame is padding.
    let end = at + usize::from(header.total_len());
    if end > length {
        return Some(Flow::other(Carries::Other, dscp));
    }
    if header.is_fragmenting_payload() {
        return Some(Flow::other(Carries::Fragment(header.protocol().0), dscp));
    }
    let at = at + header.slice().len();
    Some(transport(start, at, end, header.protocol(), dscp))
}

fn ipv6(start: &[u8], at: usize, length: usize) -> Option<Flow> {
    let header = Ipv6HeaderSlice::from_slice(start.get(at..)?).ok()?;
    let dscp = header.traffic_class() >> 2;
    let other = Some(Flow::other(Carries::Other, dscp));
    let mut at = at + Ipv6Header::LEN;
    // A length of zero would be a jumbogram (RFC 2675).
    let end = at + usize::from(header.payload_length());
    if end > length {
        return other;
    }
    let mut next = header.next_header();
    for _ in 0..EXTENSIONS {
        match next {
            IpNumber::IPV6_HEADER_HOP_BY_HOP
            | IpNumber::IPV6_ROUTE_HEADER
            | IpNumber::IPV6_DESTINATION_OPTIONS => {
                // Next header, and the length in units of eight bytes without the first (RFC 8200, section 4).
                let Some([following, units, ..]) = start.get(at..) else {
                    return other;
                };
                next = IpNumber(*following);
                at += (usize::from(*units) + 1) * 8;
            }
            IpNumber::IPV6_FRAGMENTATION_HEADER => {
                let Some([following, ..]) = start.get(at..) else {
                    return other;
                };
                return Some(Flow::other(Carries::Fragment(*following), dscp));
            }
            _ => return Some(transport(start, at, end, next, dscp)),
        }
    }
    other
}

fn transport(start: &[u8], at: usize, end: usize, protocol: IpNumber, dscp: u8) -> Flow {
    match protocol {
        IpNumber::TCP => Flow::other(Carries::Tcp, dscp),
        IpNumber::UDP => udp(start, at, end, dscp).unwrap_or(Flow::other(Carries::Other, dscp)),
        _ => Flow::other(Carries::Other, dscp),
    }
}

fn udp(start: &[u8], at: usize, end: usize, dscp: u8) -> Option<Flow> {
    let header = UdpHeaderSlice::from_slice(start.get(at..)?).ok()?;
    let length = usize::from(header.length());
    // It fills its packet, or one of the two lies.
    if at + length != end || length < UdpHeader::LEN {
        return None;
    }
    let payload = start.get(at + UdpHeader::LEN..).unwrap_or_default();
    Some(Flow {
        carries: payload_of_udp(payload, length - UdpHeader::LEN),
        ports: [header.source_port(), header.destination_port()],
        dscp,
    })
}

/// RFC 7983, section 7. `start` may be shorter than the payload, whose length is `length`.
fn payload_of_udp(start: &[u8], length: usize) -> Carries {
    let start = &start[..start.len().min(length)];
    match start.first() {
        Some(0..=3) => Carries::Stun,
        Some(20..=63) => Carries::Dtls,
        Some(128..=191) if is_rtcp(start, length) => Carries::Rtcp,
        Some(128..=191) if is_rtp(start, length) => Carries::Rtp,
        _ => Carries::Udp,
    }
}

/// RFC 5761, section 4: packet types 192 to 223 are RTCP's.
fn is_rtcp(start: &[u8], length: usize) -> bool {
    let [_, 192..=223, high, low, ..] = *start else {
        return false;
    };
    // Words of 32 bits, less one. More packets, or what encryption adds, may follow.
    let first = (usize::from(u16::from_be_bytes([high, low])) + 1) * 4;
    length >= RTCP && first <= length
}

fn is_rtp(start: &[u8], length: usize) -> bool {
    /// Contributing sources, four bytes each.
    const SOURCES: u8 = 0x0f;
    /// A header extension follows: its own header has four bytes (RFC 3550, section 5.3.1).
    const EXTENSION: u8 = 0x10;
    let [first, second, ..] = *start else {
        return false;
    };
    // With the marker bit these payload types look like RTCP, so nobody may use them beside it (RFC 5761, section 4).
    if matches!(second & 0x7f, 64..=95) {
        return false;
    }
    let mut least = RTP + usize::from(first & SOURCES) * 4;
    if first & EXTENSION != 0 {
        let Some([_, _, high, low]) = start.get(least..least + 4) else {
            return false;
        };
        least += 4 + usize::from(u16::from_be_bytes([*high, *low])) * 4;
    }
    least <= length
}
