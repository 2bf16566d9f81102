//! Frames as they are on the wire, and what must be seen in them.

use super::*;
use crate::HEADER;
use proptest::prelude::*;

const ETHERNET: usize = Ethernet2Header::LEN;

/// An RTP packet of G.711 with so many bytes of sound.
pub(crate) fn rtp(sound: usize) -> Vec<u8> {
    let mut bytes = vec![0x80, 0, 0x12, 0x34, 0, 0, 0, 160, 0xde, 0xad, 0xbe, 0xef];
    bytes.resize(12 + sound, 0xd5);
    bytes
}

/// A sender report of `length` bytes, a multiple of four.
pub(crate) fn rtcp(length: usize) -> Vec<u8> {
    let words = u16::try_from(length / 4 - 1).unwrap().to_be_bytes();
    let mut bytes = vec![0x80, 200, words[0], words[1]];
    bytes.resize(length, 7);
    bytes
}

/// A frame that is put together piece by piece.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    tags: Vec<[u8; 4]>,
    /// IPv6 with these extension headers, already in bytes; IPv4 otherwise.
    extensions: Option<Vec<(u8, Vec<u8>)>>,
    protocol: u8,
    dscp: u8,
    fragment: Option<(u16, bool)>,
    payload: Vec<u8>,
}

impl Packet {
    fn of(protocol: u8, payload: Vec<u8>) -> Packet {
        Packet {
            tags: Vec::new(),
            extensions: None,
            protocol,
            dscp: 0,
            fragment: None,
            payload,
        }
    }

    pub(crate) fn udp(source: u16, destination: u16, payload: &[u8]) -> Packet {
        let length = u16::try_from(payload.len() + 8).unwrap();
        let mut bytes = Vec::new();
        for field in [source, destination, length, 0] {
            bytes.extend_from_slice(&field.to_be_bytes());
        }
        bytes.extend_from_slice(payload);
        Packet::of(17, bytes)
    }

    pub(crate) fn tcp(source: u16, destination: u16, payload: &[u8]) -> Packet {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&source.to_be_bytes());
        bytes.extend_from_slice(&destination.to_be_bytes());
        bytes.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0x20, 0, 0, 0, 0, 0]);
        bytes.extend_from_slice(payload);
        Packet::of(6, bytes)
    }

    pub(crate) fn dscp(mut self, dscp: u8) -> Packet {
        self.dscp = dscp;
        self
    }

    /// A fragment at an offset of so many times eight bytes.
    pub(crate) fn fragment(&self, offset: u16, more: bool) -> Packet {
        Packet {
            fragment: Some((offset, more)),
            ..self.clone()
        }
    }

    /// This packet's IP, within another IP packet of this protocol.
    pub(crate) fn inside(&self, protocol: u8) -> Packet {
        Packet::of(protocol, self.bytes().split_off(ETHERNET))
    }

    fn tagged(mut self, kind: u16, id: u16) -> Packet {
        let ([a, b], [c, d]) = (kind.to_be_bytes(), id.to_be_bytes());
        self.tags.push([a, b, c, d]);
        self
    }

    fn ipv6(mut self, extensions: Vec<(u8, Vec<u8>)>) -> Packet {
        self.extensions = Some(extensions);
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1];
        self.tags
            .iter()
            .for_each(|tag| frame.extend_from_slice(tag));
        match &self.extensions {
            None => {
                let length = u16::try_from(20 + self.payload.len())
                    .unwrap()
                    .to_be_bytes();
                let (offset, more) = self.fragment.unwrap_or((0, false));
                let place = (offset | if more { 0x2000 } else { 0 }).to_be_bytes();
                frame.extend_from_slice(&[8, 0, 0x45, self.dscp << 2, length[0], length[1], 0, 1]);
                frame.extend_from_slice(&[place[0], place[1], 64, self.protocol, 0, 0]);
                frame.extend_from_slice(&[192, 0, 2, 100, 192, 0, 2, 7]);
            }
            Some(extensions) => {
                let mut chain: Vec<(u8, Vec<u8>)> = extensions.clone();
                if let Some((offset, more)) = self.fragment {
                    let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
                    chain.push((44, vec![0, 0, high, low, 0, 0, 0, 1]));
                }
                chain.push((self.protocol, self.payload.clone()));
                let kinds: Vec<u8> = chain.iter().map(|(kind, _)| *kind).collect();
                for ((_, header), next) in chain.iter_mut().zip(&kinds[1..]) {
                    header[0] = *next;
                }
                let body: Vec<u8> = chain.into_iter().flat_map(|(_, bytes)| bytes).collect();
                let length = u16::try_from(body.len()).unwrap().to_be_bytes();
                let class = self.dscp << 2;
                frame.extend_from_slice(&[0x86, 0xdd, 0x60 | class >> 4, class << 4, 0, 0]);
                frame.extend_from_slice(&[length[0], length[1], kinds[0], 64]);
                frame.extend_from_slice(&[0xfe; 16]);
                frame.extend_from_slice(&[0x20; 16]);
                frame.extend_from_slice(&body);
                return frame;
            }
        }
        frame.extend_from_slice(&self.payload);
        frame
    }

    /// As a card hands it over.
    pub(crate) fn with_header(&self) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes.extend_from_slice(&self.bytes());
        bytes
    }

    fn carries(&self) -> Carries {
        let bytes = self.bytes();
        flow(&bytes, bytes.len()).carries
    }
}

/// An extension header of eight bytes and `units` times eight more.
fn extension(kind: u8, units: u8) -> (u8, Vec<u8>) {
    let mut bytes = vec![0; 8 + usize::from(units) * 8];
    bytes[1] = units;
    (kind, bytes)
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn what_frames_carry() {
    let udp = |payload: &[u8]| Packet::udp(20_000, 30_000, payload);
    let media = || udp(&rtp(160));
    let sip = b"INVITE sip:bob@192.0.2.7 SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.100\r\n";
    let hop = || extension(0, 0);
    let table = [
        ("RTP", media(), Carries::Rtp),
        ("RTP without sound", udp(&rtp(0)), Carries::Rtp),
        (
            "RTP with its marker",
            udp(&[&[0x80, 0x80][..], &rtp(160)[2..]].concat()),
            Carries::Rtp,
        ),
        (
            "comfort noise",
            udp(&[&[0x80, 13][..], &rtp(1)[2..]].concat()),
            Carries::Rtp,
        ),
        ("RTCP", udp(&rtcp(28)), Carries::Rtcp),
        (
            "two reports in one",
            udp(&[rtcp(28), rtcp(12)].concat()),
            Carries::Rtcp,
        ),
        (
            "RTP in a VLAN",
            media().tagged(0x8100, 0xa007),
            Carries::Rtp,
        ),
        (
            "in a VLAN of a provider's",
            media().tagged(0x88a8, 9).tagged(0x8100, 7),
            Carries::Rtp,
        ),
        (
            "in too many",
            media()
                .tagged(0x88a8, 9)
                .tagged(0x8100, 7)
                .tagged(0x8100, 8),
            Carries::Other,
        ),
        ("RTP over IPv6", media().ipv6(vec![]), Carries::Rtp),
        (
            "behind options",
            media().ipv6(vec![hop(), extension(60, 1), extension(43, 2)]),
            Carries::Rtp,
        ),
        (
            "behind too many",
            media().ipv6(vec![hop(), hop(), hop(), hop()]),
            Carries::Other,
        ),
        (
            "behind authentication",
            media().ipv6(vec![extension(51, 0)]),
            Carries::Other,
        ),
        (
            "a first fragment",
            media().fragment(0, true),
            Carries::Fragment(17),
        ),
        (
            "a later one",
            media().fragment(185, false),
            Carries::Fragment(17),
        ),
        (
            "a fragment of IPv6",
            media().ipv6(vec![]).fragment(0, true),
            Carries::Fragment(17),
        ),
        (
            "the same behind options",
            media().ipv6(vec![hop()]).fragment(9, false),
            Carries::Fragment(17),
        ),
        (
            "a whole packet that says it is a fragment",
            media().ipv6(vec![]).fragment(0, false),
            Carries::Fragment(17),
        ),
        (
            "a fragment of SIP",
            udp(sip).fragment(0, true),
            Carries::Fragment(17),
        ),
        ("SIP", udp(sip), Carries::Udp),
        ("an answer in SIP", udp(b"SIP/2.0 200 OK\r\n"), Carries::Udp),
        ("a keep-alive", udp(b"\r\n\r\n"), Carries::Udp),
        ("nothing", udp(&[]), Carries::Udp),
        (
            "a binding request",
            udp(&[&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[7; 12]].concat()),
            Carries::Stun,
        ),
        (
            "a client's hello",
            udp(&[&[22, 0xfe, 0xfd][..], &[0; 60]].concat()),
            Carries::Dtls,
        ),
        (
            "its data",
            udp(&[&[23, 0xfe, 0xfd][..], &[0; 60]].concat()),
            Carries::Dtls,
        ),
        (
            "TURN's channel data",
            udp(&[&[0x40, 1, 0, 160][..], &rtp(148)].concat()),
            Carries::Udp,
        ),
        ("ZRTP", udp(&[0x10; 40]), Carries::Udp),
        ("QUIC", udp(&[0xc0; 60]), Carries::Udp),
        ("RTP that is too short", udp(&rtp(160)[..11]), Carries::Udp),
        (
            "with sources that are not there",
            udp(&[&[0x8f][..], &rtp(4)[1..]].concat()),
            Carries::Udp,
        ),
        (
            "with a payload type that is RTCP's",
            udp(&[&[0x80, 72][..], &rtp(8)[2..]].concat()),
            Carries::Udp,
        ),
        (
            "RTCP that is longer than its packet",
            udp(&[&[0x80, 200, 0, 9][..], &[0; 24]].concat()),
            Carries::Udp,
        ),
        ("RTCP without a source", udp(&rtcp(4)), Carries::Udp),
        (
            "RTP over TCP",
            Packet::tcp(20_000, 30_000, &rtp(160)),
            Carries::Tcp,
        ),
        (
            "a fragment of TCP",
            Packet::tcp(1, 2, &rtp(160)).fragment(0, true),
            Carries::Fragment(6),
        ),
        ("SCTP", Packet::of(132, rtp(160)), Carries::Other),
        ("GRE", media().inside(47), Carries::Other),
        ("IP in IP", media().inside(4), Carries::Other),
        ("ICMP", Packet::of(1, vec![8; 64]), Carries::Other),
        (
            "UDP-Lite",
            Packet {
                protocol: 136,
                ..media()
            },
            Carries::Other,
        ),
    ];
    for (what, packet, carries) in table {
        assert_eq!(packet.carries(), carries, "{what}");
    }
}

#[test]
fn header_extensions_are_counted() {
    let with = |words: u16, sound: usize| {
        let mut bytes = rtp(0);
        bytes[0] = 0x90;
        bytes.extend_from_slice(&[0xbe, 0xde]);
        bytes.extend_from_slice(&words.to_be_bytes());
        bytes.resize(bytes.len() + sound, 0);
        Packet::udp(20_000, 30_000, &bytes).carries()
    };
    assert_eq!(with(2, 8), Carries::Rtp);
    assert_eq!(with(2, 7), Carries::Udp);
    assert_eq!(with(0xffff, 160), Carries::Udp);
}

#[test]
fn ports_and_class_are_read() {
    for packet in [
        Packet::udp(20_000, 30_001, &rtp(160)).dscp(46),
        Packet::udp(20_000, 30_001, &rtp(160)).dscp(46).ipv6(vec![]),
    ] {
        let bytes = packet.bytes();
        let expected = Flow {
            carries: Carries::Rtp,
            ports: [20_000, 30_001],
            dscp: 46,
        };
        assert_eq!(flow(&bytes, bytes.len()), expected);
    }
}

#[test]
fn lengths_that_do_not_agree_make_it_something_else() {
    let frame = Packet::udp(20_000, 30_000, &rtp(160)).bytes();
    let carries = |bytes: &[u8]| flow(bytes, bytes.len()).carries;
    // Padding behind the packet is nobody's.
    assert_eq!(carries(&[&frame[..], &[0; 9]].concat()), Carries::Rtp);
    assert_eq!(carries(&frame[..frame.len() - 1]), Carries::Other);
    let changed = |at: usize, to: u8| {
        let mut frame = frame.clone();
        frame[at] = to;
        carries(&frame)
    };
    // UDP's own length, one less and one more; IP's length and its header's.
    let low = ETHERNET + 20 + 5;
    assert_eq!(changed(low, frame[low] - 1), Carries::Other);
    assert_eq!(changed(low, frame[low] + 1), Carries::Other);
    assert_eq!(
        changed(ETHERNET + 3, frame[ETHERNET + 3] - 1),
        Carries::Other
    );
    assert_ne!(changed(ETHERNET, 0x46), Carries::Rtp);
    assert_eq!(changed(ETHERNET, 0x65), Carries::Other);
}

#[test]
fn a_beginning_is_enough_if_the_headers_are_in_it() {
    let frame = Packet::udp(20_000, 30_000, &rtp(1200)).bytes();
    for seen in 0..frame.len() {
        let carries = flow(&frame[..seen], frame.len()).carries;
        // Two bytes of the payload say that it is RTP.
        let expected = match seen {
            0..42 => Carries::Other,
            42 | 43 => Carries::Udp,
            _ => Carries::Rtp,
        };
        assert_eq!(carries, expected, "{seen} bytes");
    }
}

proptest! {
    #[test]
    fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), length in 0usize..70_000) {
        flow(&bytes, length);
    }

    /// Whatever single byte of a media frame's headers is changed: what passes for media still has all of its headers.
    #[test]
    fn a_changed_byte_makes_no_media_of_something_else(
        at in 0usize..54, to in any::<u8>(), seen in 0usize..220,
        payload in prop_oneof![Just(b"SIP/2.0 200 OK".to_vec()), Just(vec![22; 60]), Just(vec![0, 1, 0, 0])],
    ) {
        let mut frame = Packet::udp(20_000, 30_000, &payload).bytes();
        // The first byte of the payload is what tells.
        prop_assume!(at < frame.len() && at != 42);
        frame[at] = to;
        let carries = flow(&frame[..seen.min(frame.len())], frame.len()).carries;
        prop_assert!(!matches!(carries, Carries::Rtp | Carries::Rtcp), "{carries:?}");
    }
}
