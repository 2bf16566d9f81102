//! What of a machine's output may leave before its epoch is committed.
//!
//! The input is a byte that chooses the mode, one that says how much of the frame is shown to the classifier, and a frame with
//! its virtio-net header. What may pass is found a second time here, in another way and without a library: step by
//! step from the frame's first byte, with nothing that is not accounted for.

use crate::{input::Input, memory::bounded};
use romulus_network::{
    HEADER,
    flow::{Carries, flow},
    mode::{Media, Mode, Rule, Verdict, default_rules},
};

const UDP: u8 = 17;
const TCP: u8 = 6;

/// Asks for a frame's verdict.
///
/// # Panics
/// A promise is broken.
pub fn body(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mode = mode(input.byte());
    let hidden = usize::from(input.byte()) * 4;
    let frame = input.rest();
    let shown = &frame[..frame.len().saturating_sub(hidden)];
    let verdict = bounded(0, || mode.verdict(frame, frame.len()));
    let partly = bounded(0, || mode.verdict(shown, frame.len()));
    match &mode {
        Mode::Net => assert_eq!(verdict, Verdict::Hold),
        Mode::Split(rules) => {
            assert_ne!(verdict, Verdict::PassOther, "split passes media alone");
            if verdict == Verdict::Pass {
                let media = media(frame).expect("what split passes is one datagram of RTP or RTCP");
                assert!(allowed(rules, &media), "no rule lets {media:?} pass");
            }
            // Who sees less is not more generous.
            if partly == Verdict::Pass {
                assert_eq!(verdict, Verdict::Pass);
            }
        }
        Mode::NoNet { tcp } => {
            if !tcp && may_be_tcp(frame) {
                assert_eq!(verdict, Verdict::Hold, "TCP is held");
            }
        }
    }
    let Some(packet) = frame.get(HEADER..) else {
        assert_eq!(verdict, Verdict::Hold, "what is no frame is held");
        return;
    };
    let seen = flow(packet, packet.len());
    let is_media = matches!(seen.carries, Carries::Rtp | Carries::Rtcp);
    assert!(seen.dscp < 64);
    assert!(!is_media || media(frame).is_some() || frame[1] != 0);
}

fn mode(choice: u8) -> Mode {
    let rule = |pass, media, ports, dscp| Rule {
        pass,
        media,
        ports,
        dscp,
    };
    match choice % 6 {
        0 => Mode::Split(default_rules()),
        1 => Mode::Split(vec![
            rule(false, Media::Rtcp, 0..=u16::MAX, None),
            rule(true, Media::Rtp, 10_000..=20_000, Some(46)),
        ]),
        2 => Mode::NoNet { tcp: false },
        3 => Mode::NoNet { tcp: true },
        4 => Mode::Net,
        _ => Mode::Split(vec![rule(true, Media::Any, 0..=u16::MAX, None)]),
    }
}

/// What matters of a frame that is one datagram of media.
#[derive(Debug)]
struct Datagram {
    rtcp: bool,
    ports: [u16; 2],
    dscp: u8,
}

fn allowed(rules: &[Rule], media: &Datagram) -> bool {
    for rule in rules {
        let kind = match rule.media {
            Media::Any => true,
            Media::Rtp => !media.rtcp,
            Media::Rtcp => media.rtcp,
        };
        let [source, destination] = media.ports;
        let port = rule.ports.contains(&source) || rule.ports.contains(&destination);
        let class = rule.dscp.is_none_or(|dscp| dscp == media.dscp);
        if kind && port && class {
            return rule.pass;
        }
    }
    false
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(*bytes.get(at)?) << 8 | usize::from(*bytes.get(at + 1)?))
}

fn port(bytes: &[u8], at: usize) -> Option<u16> {
    u16::try_from(number(bytes, at)?).ok()
}

/// An IP packet in a frame: version, and all bytes from its first to the frame's end.
fn packet(frame: &[u8]) -> Option<(u8, &[u8])> {
    let mut rest = frame.get(HEADER + 12..)?;
    for _ in 0..2 {
        if matches!(number(rest, 0)?, 0x8100 | 0x88a8) {
            rest = rest.get(4..)?;
        }
    }
    let version = match number(rest, 0)? {
        0x0800 => 4,
        0x86dd => 6,
        _ => return None,
    };
    let packet = rest.get(2..)?;
    (packet.first()? >> 4 == version).then_some((version, packet))
}

/// Whether a frame is exactly one datagram of media, whole, in one packet, with lengths that agree.
fn media(frame: &[u8]) -> Option<Datagram> {
    if *frame.get(1)? != 0 {
        return None;
    }
    let (version, packet) = packet(frame)?;
    let (datagram, dscp) = if version == 4 {
        let words = usize::from(packet[0] & 15);
        let fragment = number(packet, 6)? & 0x3fff;
        if words < 5 || fragment != 0 || *packet.get(9)? != UDP {
            return None;
        }
        (packet.get(words * 4..number(packet, 2)?)?, packet[1] >> 2)
    } else {
        let mut next = *packet.get(6)?;
        let mut rest = packet.get(40..40 + number(packet, 4)?)?;
        // Hop by hop, routing, destination.
        while matches!(next, 0 | 43 | 60) {
            next = rest[..].first().copied()?;
            rest = rest.get(8 * (usize::from(*rest.get(1)?) + 1)..)?;
        }
        if next != UDP {
            return None;
        }
        let class = (packet[0] & 15) << 4 | packet[1] >> 4;
        (rest, class >> 2)
    };
    if number(datagram, 4)? != datagram.len() {
        return None;
    }
    let payload = datagram.get(8..)?;
    // Version 2, in the range that is RTP's beside STUN and DTLS.
    if payload.first()? >> 6 != 2 {
        return None;
    }
    let kind = *payload.get(1)?;
    let rtcp = (192..=223).contains(&kind);
    let least = if rtcp {
        (4 * (number(payload, 2)? + 1)).max(8)
    } else {
        let sources = 12 + 4 * usize::from(payload[0] & 15);
        if payload[0] & 0x10 == 0 {
            sources
        } else {
            sources + 4 + 4 * number(payload, sources + 2)?
        }
    };
    (least <= payload.len()).then_some(Datagram {
        rtcp,
        ports: [port(datagram, 0)?, port(datagram, 2)?],
        dscp,
    })
}

/// Whether a whole, plain packet says that TCP is what it carries.
fn may_be_tcp(frame: &[u8]) -> bool {
    match packet(frame) {
        Some((4, packet)) => {
            let words = usize::from(packet[0] & 15);
            let length = number(packet, 2).unwrap_or(0);
            words >= 5 && length >= words * 4 && length <= packet.len() && packet[9] == TCP
        }
        Some((_, packet)) => {
            let length = number(packet, 4).unwrap_or(usize::MAX);
            packet.len() >= 40 && length <= packet.len() - 40 && packet[6] == TCP
        }
        None => false,
    }
}

/// A frame with its virtio-net header, for seeds.
struct Frame {
    tags: &'static [u16],
    version: u8,
    /// In front of UDP, in IPv6: kind of header.
    extensions: &'static [u8],
    protocol: u8,
    fragment: u16,
    gso: u8,
    payload: Vec<u8>,
}

impl Default for Frame {
    fn default() -> Self {
        Self {
            tags: &[],
            version: 4,
            extensions: &[],
            protocol: UDP,
            fragment: 0,
            gso: 0,
            payload: Vec::new(),
        }
    }
}

impl Frame {
    fn bytes(&self) -> Vec<u8> {
        let short = |number: usize| u16::try_from(number).expect("short").to_be_bytes();
        let mut frame = vec![0; HEADER];
        frame[1] = self.gso;
        frame.extend([2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1]);
        for tag in self.tags {
            frame.extend(tag.to_be_bytes());
            frame.extend([0, 7]);
        }
        let mut body = Vec::new();
        if self.protocol == UDP {
            // From the range of rule 1 to a port of another phone.
            for field in [12_000, 30_000, 8 + self.payload.len(), 0] {
                body.extend(short(field));
            }
        }
        body.extend(&self.payload);
        if self.version == 4 {
            frame.extend([8, 0, 0x45, 46 << 2]);
            frame.extend(short(20 + body.len()));
            frame.extend([0, 1]);
            frame.extend(self.fragment.to_be_bytes());
            frame.extend([64, self.protocol, 0, 0, 192, 0, 2, 10, 192, 0, 2, 7]);
        } else {
            let first = self.extensions.first().copied().unwrap_or(self.protocol);
            frame.extend([0x86, 0xdd, 0x6b, 0x80, 0, 0]);
            frame.extend(short(8 * self.extensions.len() + body.len()));
            frame.extend([first, 64]);
            frame.extend([0x20; 32]);
            for at in 0..self.extensions.len() {
                let next = self.extensions.get(at + 1).copied();
                frame.extend([next.unwrap_or(self.protocol), 0, 1, 4, 0, 0, 0, 0]);
            }
        }
        frame.extend(body);
        frame
    }
}

/// Media in all dresses, and what must not be taken for it.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let rtp = |first: u8, kind: u8, more: usize| {
        let mut packet = vec![
            first, kind, 0x12, 0x34, 0, 0, 0, 160, 0xde, 0xad, 0xbe, 0xef,
        ];
        packet.resize(12 + more, 0);
        packet
    };
    let frame = |payload| Frame {
        payload,
        ..Frame::default()
    };
    let ipv6 = |extensions, payload| Frame {
        version: 6,
        extensions,
        ..frame(payload)
    };
    let report = vec![0x80, 200, 0, 1, 0, 0, 0, 7, 0x81, 202, 0, 1, 0, 0, 0, 7];
    let tcp = vec![
        0x2e, 0xe0, 0x13, 0xc4, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0x20, 0, 0, 0, 0, 0,
    ];
    let frames: [(&str, Frame); 18] = [
        ("rtp", frame(rtp(0x80, 0, 20))),
        ("sources", frame(rtp(0x82, 0x80, 20))),
        ("extension", frame(rtp(0x90, 8, 24))),
        ("rtcp", frame(report.clone())),
        ("stun", frame(vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42])),
        ("dtls", frame(vec![22, 254, 253, 0, 0, 0, 0, 0])),
        ("sip", frame(b"OPTIONS sip:a SIP/2.0\r\n".to_vec())),
        ("empty", frame(Vec::new())),
        (
            "tag",
            Frame {
                tags: &[0x8100],
                ..frame(rtp(0x80, 0, 20))
            },
        ),
        (
            "tags",
            Frame {
                tags: &[0x88a8, 0x8100],
                ..frame(rtp(0x80, 0, 20))
            },
        ),
        (
            "more-fragments",
            Frame {
                fragment: 0x2000,
                ..frame(rtp(0x80, 0, 20))
            },
        ),
        (
            "later-fragment",
            Frame {
                fragment: 4,
                ..frame(rtp(0x80, 0, 20))
            },
        ),
        (
            "many",
            Frame {
                gso: 5,
                ..frame(rtp(0x80, 0, 20))
            },
        ),
        (
            "tcp",
            Frame {
                protocol: TCP,
                ..frame(tcp)
            },
        ),
        ("v6", ipv6(&[], rtp(0x80, 0, 20))),
        ("v6-rtcp", ipv6(&[], report)),
        ("v6-extensions", ipv6(&[0, 60], rtp(0x80, 0, 20))),
        ("v6-fragment", ipv6(&[44], rtp(0x80, 0, 20))),
    ];
    let mut seeds = Vec::new();
    for (at, (name, frame)) in frames.into_iter().enumerate() {
        let mode = [0, 5, 1, 2][at % 4];
        seeds.push((name.to_owned(), [vec![mode, 0], frame.bytes()].concat()));
    }
    seeds
}
