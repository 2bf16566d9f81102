//! Session descriptions (RFC 4566) with one line of audio, offered and answered (RFC 3264).

use crate::media::Codec;
use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

/// Where one end wants its audio, and in which codecs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its number among those of this end.
    pub id: u64,
    /// Which version of it.
    pub version: u64,
    /// Where RTP is wanted.
    pub rtp: SocketAddr,
    /// The payload types that are understood here, the best first. Those of others' codecs are left out.
    pub codecs: Vec<Codec>,
}

impl Session {
    /// The type of such a body.
    pub const TYPE: &str = "application/sdp";

    /// The text.
    pub fn encode(&self) -> Vec<u8> {
        let address = self.rtp.ip();
        let family = if address.is_ipv4() { "IP4" } else { "IP6" };
        let mut text = format!(
            "v=0\r\n\
             o=romulus {} {} IN {family} {address}\r\n\
             s=-\r\n\
             c=IN {family} {address}\r\n\
             t=0 0\r\n\
             m=audio {} RTP/AVP",
            self.id,
            self.version,
            self.rtp.port()
        );
        // Writing to a string does not fail.
        for codec in &self.codecs {
            let _ = write!(text, " {}", codec.payload_type());
        }
        text.push_str("\r\n");
        for codec in &self.codecs {
            let _ = write!(
                text,
                "a=rtpmap:{} {}/8000\r\n",
                codec.payload_type(),
                codec.name()
            );
        }
        text.push_str("a=ptime:20\r\na=sendrecv\r\n");
        text.into_bytes()
    }

    /// Reads a description; `None` for one without audio for us.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut lines = text.lines().filter_map(|line| line.split_once('='));
        if lines.next()? != ("v", "0") {
            return None;
        }
        let (mut id, mut version) = (0, 0);
        // The address of the whole session holds where the audio has none of its own.
        let (mut of_session, mut of_audio) = (None, None);
        let mut audio: Option<(u16, Vec<Codec>)> = None;
        let mut inside = false;
        for (kind, value) in lines {
            match kind {
                "o" => {
                    let mut words = value.split(' ').skip(1);
                    id = words.next()?.parse().ok()?;
                    version = words.next()?.parse().ok()?;
                }
                "c" if inside => of_audio = connection(value),
                "c" if audio.is_none() => of_session = connection(value),
                "m" => {
                    inside = audio.is_none() && value.starts_with("audio ");
                    if inside {
                        audio = Some(media(value)?);
                    }
                }
                _ => {}
            }
        }
        let (port, codecs) = audio?;
        // Port 0 refuses.
        if port == 0 || codecs.is_empty() {
            return None;
        }
        Some(Self {
            id,
            version,
            rtp: SocketAddr::new(of_audio.or(of_session)?, port),
            codecs,
        })
    }

    /// The answer to an offer, with the first codec that both have.
    pub fn answer(&self, offer: &Self) -> Option<Self> {
        let codec = offer
            .codecs
            .iter()
            .find(|codec| self.codecs.contains(codec))?;
        Some(Self {
            codecs: vec![*codec],
            ..self.clone()
        })
    }
}

fn connection(value: &str) -> Option<IpAddr> {
    let address = value.split(' ').nth(2)?;
    let address = address.split('/').next()?.parse().ok()?;
    // The old way to be on hold.
    (address != IpAddr::V4(Ipv4Addr::UNSPECIFIED)).then_some(address)
}

fn media(value: &str) -> Option<(u16, Vec<Codec>)> {
    let mut words = value.split(' ').skip(1);
    let port = words.next()?.split('/').next()?.parse().ok()?;
    if words.next()? != "RTP/AVP" {
        return None;
    }
    let codecs = words
        .filter_map(|word| match word {
            "0" => Some(Codec::Pcmu),
            "8" => Some(Codec::Pcma),
            _ => None,
        })
        .collect();
    Some((port, codecs))
}

#[cfg(test)]
mod tests {
    use super::Session;
    use crate::media::Codec;
    use proptest::prelude::*;

    fn session() -> Session {
        Session {
            id: 5,
            version: 6,
            rtp: "192.0.2.254:4000".parse().unwrap(),
            codecs: vec![Codec::Pcmu, Codec::Pcma],
        }
    }

    #[test]
    fn what_was_described_is_read() {
        assert_eq!(Session::parse(&session().encode()), Some(session()));
        let other = Session {
            rtp: "[2001:db8::1]:4000".parse().unwrap(),
            ..session()
        };
        assert_eq!(Session::parse(&other.encode()), Some(other));
    }

    #[test]
    fn a_relay_may_write_it_otherwise() {
        let text = "v=0\r\no=- 1 2 IN IP4 198.51.100.1\r\ns=x\r\nc=IN IP4 198.51.100.1\r\nt=0 0\r\n\
            m=video 9 RTP/AVP 31\r\nc=IN IP4 198.51.100.9\r\n\
            m=audio 30000 RTP/AVP 18 8 0 101\r\nc=IN IP4 192.0.2.100/127\r\na=rtcp:30001\r\na=sendrecv\r\n\
            m=audio 40000 RTP/AVP 0\r\nc=IN IP4 198.51.100.7\r\n";
        let read = Session::parse(text.as_bytes()).unwrap();
        assert_eq!(read.rtp, "192.0.2.100:30000".parse().unwrap());
        assert_eq!(read.codecs, [Codec::Pcma, Codec::Pcmu]);
        assert_eq!(session().answer(&read).unwrap().codecs, [Codec::Pcma]);
    }

    #[test]
    fn without_audio_for_us_there_is_none() {
        let good = String::from_utf8(session().encode()).unwrap();
        for (from, to) in [
            ("v=0", "v=1"),
            ("audio 4000", "audio 0"),
            ("RTP/AVP 0 8", "RTP/AVP 18"),
            ("RTP/AVP", "RTP/SAVP"),
            ("c=IN IP4 192.0.2.254", "c=IN IP4 0.0.0.0"),
            ("c=IN IP4 192.0.2.254", "x=1"),
            ("m=audio", "m=video"),
        ] {
            let text = good.replacen(from, to, 1);
            assert_ne!(text, good);
            assert_eq!(Session::parse(text.as_bytes()), None, "{to}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_borne(at in 0_usize..200, byte in any::<u8>()) {
            let mut bytes = session().encode();
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            if let Some(read) = Session::parse(&bytes) {
                prop_assert_eq!(Session::parse(&read.encode()), Some(read));
            }
        }
    }
}
