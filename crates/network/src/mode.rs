//! Which output may leave before the commit of the epoch that produced it (DESIGN, "Modes and flows").
//!
//! | mode | at once | held |
//! | --- | --- | --- |
//! | `net` | nothing | everything |
//! | `split` | RTP and RTCP, as far as the rules let them | everything else |
//! | `no-net` | everything but TCP | TCP, unless that is asked for, too |

use crate::{
    HEADER,
    flow::{Carries, Flow, flow},
};
use std::ops::RangeInclusive;

/// SIP's ports (RFC 3261, section 19.1.2).
const SIP: RangeInclusive<u16> = 5060..=5061;
/// The byte of a virtio-net header that says whether the frame is one of many in one (virtio 1.2, section 5.1.6).
const GSO_TYPE: usize = 1;
/// IP's numbers of what may stand between a fragment's header and TCP, and of TCP (RFC 8200, section 4.1).
const PERHAPS_TCP: [u8; 5] = [0, 6, 43, 51, 60];

/// What a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Media {
    /// RTP alone.
    Rtp,
    /// RTCP alone.
    Rtcp,
    /// Both.
    Any,
}

/// A rule of `split`. The first that matches a frame decides. A rule is asked only of frames that certainly are RTP or RTCP:
/// nothing else ever passes at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Such a frame may leave at once; otherwise it is held.
    pub pass: bool,
    /// What it is about.
    pub media: Media,
    /// Either of the frame's ports lies in here.
    pub ports: RangeInclusive<u16>,
    /// The frame has this class of traffic; nothing for any.
    pub dscp: Option<u8>,
}

impl Rule {
    fn matches(&self, flow: Flow) -> bool {
        let media = match flow.carries {
            Carries::Rtp => self.media != Media::Rtcp,
            Carries::Rtcp => self.media != Media::Rtp,
            _ => false,
        };
        media
            && flow.ports.iter().any(|port| self.ports.contains(port))
            && self.dscp.is_none_or(|dscp| dscp == flow.dscp)
    }
}

/// The rules that hold where none are given: nothing from or to SIP's ports, and all other media.
pub fn default_rules() -> Vec<Rule> {
    let rule = |pass, ports| Rule {
        pass,
        media: Media::Any,
        ports,
        dscp: None,
    };
    vec![rule(false, SIP), rule(true, 0..=u16::MAX)]
}

/// How a machine's output is treated while it is protected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// All is held.
    #[default]
    Net,
    /// Media passes as the rules say, all else is held.
    Split(Vec<Rule>),
    /// Nothing is held but TCP.
    NoNet {
        /// Not even TCP: a connection breaks, or worse, when its host fails.
        tcp: bool,
    },
}

/// What the mode says of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It waits for its epoch's commit.
    Hold,
    /// It need not wait.
    Pass,
    /// It need not wait, but it is no media: whoever receives it may see the machine go back in time.
    PassOther,
}

impl Mode {
    /// Its name in files and figures.
    pub fn name(&self) -> &'static str {
        match self {
            Mode::Net => "net",
            Mode::Split(_) => "split",
            Mode::NoNet { .. } => "no-net",
        }
    }

    /// Whether any output may leave before its epoch is committed: then time bounds what is lost, and the other host has to
    /// know.
    pub fn leaves_unheld(&self) -> bool {
        *self != Mode::Net
    }

    /// What is to become of a frame of `length` bytes, virtio-net header included, that begins with `start`.
    pub fn verdict(&self, start: &[u8], length: usize) -> Verdict {
        if *self == Mode::Net {
            return Verdict::Hold;
        }
        let (Some((header, frame)), Some(length)) = (
            start.split_first_chunk::<HEADER>(),
            length.checked_sub(HEADER),
        ) else {
            return Verdict::Hold;
        };
        let flow = flow(frame, length);
        let is_media = matches!(flow.carries, Carries::Rtp | Carries::Rtcp);
        match self {
            Mode::Net => Verdict::Hold,
            Mode::Split(rules) => {
                // Many datagrams in one: only the first was looked at.
                let one = header[GSO_TYPE] == 0;
                let rule = rules.iter().find(|rule| rule.matches(flow));
                if one && is_media && rule.is_some_and(|rule| rule.pass) {
                    Verdict::Pass
                } else {
                    Verdict::Hold
                }
            }
            Mode::NoNet { tcp } => match flow.carries {
                Carries::Tcp if !tcp => Verdict::Hold,
                Carries::Fragment(protocol) if !tcp && PERHAPS_TCP.contains(&protocol) => {
                    Verdict::Hold
                }
                // Besides media: ARP, neighbour discovery and the like, which are asked again, and answered again.
                Carries::Rtp | Carries::Rtcp | Carries::Other => Verdict::Pass,
                _ => Verdict::PassOther,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::tests::{Packet, rtcp, rtp};

    fn verdict(mode: &Mode, packet: &Packet) -> Verdict {
        let bytes = packet.with_header();
        mode.verdict(&bytes, bytes.len())
    }

    #[test]
    fn split_passes_media_and_nothing_else() {
        let split = Mode::Split(default_rules());
        let udp = |payload: &[u8]| Packet::udp(20_000, 30_000, payload);
        assert_eq!(verdict(&split, &udp(&rtp(160))), Verdict::Pass);
        assert_eq!(verdict(&split, &udp(&rtcp(28))), Verdict::Pass);
        let sip = b"SIP/2.0 200 OK\r\n\r\n";
        for held in [
            udp(sip),
            udp(&[0, 1, 0, 0]),
            udp(&[22; 40]),
            udp(&[]),
            Packet::tcp(20_000, 30_000, &rtp(160)),
            Packet::udp(5060, 30_000, &rtp(160)),
            Packet::udp(20_000, 5061, &rtp(160)),
            udp(&rtp(160)).fragment(0, true),
            udp(&rtp(160)).fragment(185, false),
            udp(&rtp(160)).inside(47),
        ] {
            assert_eq!(verdict(&split, &held), Verdict::Hold, "{held:?}");
        }
    }

    #[test]
    fn many_datagrams_in_one_frame_are_held() {
        let split = Mode::Split(default_rules());
        let mut bytes = Packet::udp(20_000, 30_000, &rtp(160)).with_header();
        assert_eq!(split.verdict(&bytes, bytes.len()), Verdict::Pass);
        for kind in 1..=255 {
            bytes[GSO_TYPE] = kind;
            assert_eq!(split.verdict(&bytes, bytes.len()), Verdict::Hold);
        }
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let rule = |pass, media, ports, dscp| Rule {
            pass,
            media,
            ports,
            dscp,
        };
        let mode = Mode::Split(vec![
            rule(false, Media::Rtcp, 0..=u16::MAX, None),
            rule(true, Media::Any, 10_000..=10_999, None),
            rule(true, Media::Rtp, 20_000..=20_999, Some(46)),
        ]);
        let of = |source, destination, payload: &[u8], dscp| {
            let packet = Packet::udp(source, destination, payload).dscp(dscp);
            verdict(&mode, &packet) == Verdict::Pass
        };
        assert!(of(10_000, 9, &rtp(160), 0) && of(9, 10_999, &rtp(160), 0));
        assert!(!of(9999, 11_000, &rtp(160), 0));
        assert!(!of(10_000, 9, &rtcp(28), 0), "RTCP is held by the first");
        assert!(of(20_500, 9, &rtp(160), 46) && !of(20_500, 9, &rtp(160), 0));
        assert_eq!(
            verdict(&Mode::Split(Vec::new()), &Packet::udp(10_000, 9, &rtp(160))),
            Verdict::Hold,
            "no rule, no way"
        );
    }

    #[test]
    fn no_net_holds_tcp_and_says_what_is_no_media() {
        let mode = Mode::NoNet { tcp: false };
        let udp = |payload: &[u8]| Packet::udp(20_000, 30_000, payload);
        let tcp = Packet::tcp(80, 30_000, b"x");
        assert_eq!(verdict(&mode, &udp(&rtp(160))), Verdict::Pass);
        assert_eq!(
            verdict(&mode, &udp(b"OPTIONS sip:x SIP/2.0")),
            Verdict::PassOther
        );
        assert_eq!(
            verdict(&mode, &udp(&rtp(160)).fragment(0, true)),
            Verdict::PassOther
        );
        for held in [tcp.clone(), tcp.fragment(0, true), tcp.fragment(64, false)] {
            assert_eq!(verdict(&mode, &held), Verdict::Hold, "{held:?}");
            assert_eq!(
                verdict(&Mode::NoNet { tcp: true }, &held),
                Verdict::PassOther
            );
        }
        let short = [0; HEADER + 3];
        assert_eq!(mode.verdict(&short[..5], 5), Verdict::Hold);
        assert_eq!(
            mode.verdict(&short, short.len()),
            Verdict::Pass,
            "no IP at all"
        );
    }

    #[test]
    fn net_holds_everything() {
        let packet = Packet::udp(20_000, 30_000, &rtp(160));
        assert_eq!(verdict(&Mode::Net, &packet), Verdict::Hold);
        assert!(!Mode::Net.leaves_unheld() && Mode::Split(Vec::new()).leaves_unheld());
    }
}
