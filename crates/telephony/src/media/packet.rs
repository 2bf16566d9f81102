//! One RTP packet of the probe's, to bytes and back.

use super::SAMPLES;
use std::time::Duration;

/// Bytes of speech in a packet: one a sample.
pub const PAYLOAD: usize = SAMPLES as usize;
/// Bytes of one of our packets, header included.
pub const PACKET: usize = HEADER + PAYLOAD;
/// Bytes of a header without extension and contributing sources.
const HEADER: usize = 12;
/// How a payload of ours begins.
const MAGIC: [u8; 4] = *b"RmPr";

/// How speech is coded: both are G.711, with a payload type that needs no negotiation (RFC 3551, table 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// µ-law.
    Pcmu,
    /// A-law.
    Pcma,
}

impl Codec {
    /// Its static payload type.
    pub const fn payload_type(self) -> u8 {
        match self {
            Self::Pcmu => 0,
            Self::Pcma => 8,
        }
    }

    /// Its name in session descriptions.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pcmu => "PCMU",
            Self::Pcma => "PCMA",
        }
    }

    /// The code of silence.
    const fn silence(self) -> u8 {
        match self {
            Self::Pcmu => 0xff,
            Self::Pcma => 0xd5,
        }
    }
}

/// The fixed part of an RTP header that matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The first packet after silence.
    pub marker: bool,
    /// What the payload is.
    pub payload_type: u8,
    /// Counts packets.
    pub sequence: u16,
    /// Counts samples.
    pub timestamp: u32,
    /// The stream's number.
    pub ssrc: u32,
}

/// What a packet of ours says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The run of the probe.
    pub run: u32,
    /// The stream in it.
    pub stream: u32,
    /// Which packet of the stream, from 0.
    pub index: u32,
    /// When it was sent, by the clock of the receiver too, since that clock's zero.
    pub sent: Duration,
}

/// A packet's bytes: the mark, then silence.
pub fn encode(header: Header, mark: Mark, codec: Codec) -> [u8; PACKET] {
    let mut bytes = [codec.silence(); PACKET];
    bytes[0] = 2 << 6;
    bytes[1] = u8::from(header.marker) << 7 | header.payload_type & 0x7f;
    bytes[2..4].copy_from_slice(&header.sequence.to_be_bytes());
    bytes[4..8].copy_from_slice(&header.timestamp.to_be_bytes());
    bytes[8..12].copy_from_slice(&header.ssrc.to_be_bytes());
    bytes[12..16].copy_from_slice(&MAGIC);
    bytes[16..20].copy_from_slice(&mark.run.to_be_bytes());
    bytes[20..24].copy_from_slice(&mark.stream.to_be_bytes());
    bytes[24..28].copy_from_slice(&mark.index.to_be_bytes());
    // Half a thousand years fit.
    let nanoseconds = u64::try_from(mark.sent.as_nanos()).unwrap_or(u64::MAX);
    bytes[28..36].copy_from_slice(&nanoseconds.to_be_bytes());
    bytes
}

/// Reads an RTP packet: its header, and its mark if it is one of ours. `None` for what is no RTP, or not whole.
pub fn parse(bytes: &[u8]) -> Option<(Header, Option<Mark>)> {
    let first = *bytes.first()?;
    if first >> 6 != 2 {
        return None;
    }
    let second = *bytes.get(1)?;
    let word = |at: usize| Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
    let header = Header {
        marker: second & 0x80 != 0,
        payload_type: second & 0x7f,
        sequence: u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?),
        timestamp: word(4)?,
        ssrc: word(8)?,
    };
    let mut start = HEADER + 4 * usize::from(first & 0x0f);
    if first & 0x10 != 0 {
        let length = u16::from_be_bytes(*bytes.get(start + 2..)?.first_chunk()?);
        start += 4 + 4 * usize::from(length);
    }
    let mut payload = bytes.get(start..)?;
    if first & 0x20 != 0 {
        let padding = usize::from(*payload.last()?);
        payload = payload.get(..payload.len().checked_sub(padding)?)?;
        if padding == 0 {
            return None;
        }
    }
    Some((header, mark(payload)))
}

fn mark(payload: &[u8]) -> Option<Mark> {
    if payload.len() != PAYLOAD || !payload.starts_with(&MAGIC) {
        return None;
    }
    let word = |at: usize| Some(u32::from_be_bytes(*payload.get(at..)?.first_chunk()?));
    let nanoseconds = u64::from_be_bytes(*payload.get(16..)?.first_chunk()?);
    Some(Mark {
        run: word(4)?,
        stream: word(8)?,
        index: word(12)?,
        sent: Duration::from_nanos(nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    use super::{Codec, Header, Mark, encode, parse};
    use proptest::prelude::*;
    use std::time::Duration;

    const HEADER: Header = Header {
        marker: true,
        payload_type: 0,
        sequence: 0xfffe,
        timestamp: 0x0102_0304,
        ssrc: 0xa0b0_c0d0,
    };
    const MARK: Mark = Mark {
        run: 7,
        stream: 9,
        index: 11,
        sent: Duration::from_nanos(123_456_789_012),
    };

    #[test]
    fn what_was_sent_is_read() {
        let bytes = encode(HEADER, MARK, Codec::Pcmu);
        assert_eq!(bytes.len(), 172);
        assert_eq!(parse(&bytes), Some((HEADER, Some(MARK))));
    }

    #[test]
    fn contributors_extension_and_padding_are_stepped_over() {
        let plain = encode(HEADER, MARK, Codec::Pcma);
        let mut bytes = plain[..12].to_vec();
        bytes[0] |= 0x32;
        bytes.extend([0; 8]);
        bytes.extend([0xbe, 0xde, 0, 1, 9, 9, 9, 9]);
        bytes.extend(&plain[12..]);
        bytes.extend([0, 0, 0, 4]);
        assert_eq!(parse(&bytes), Some((HEADER, Some(MARK))));
        // Padding that is longer than the payload, or none at all.
        *bytes.last_mut().unwrap() = 255;
        assert_eq!(parse(&bytes), None);
        *bytes.last_mut().unwrap() = 0;
        assert_eq!(parse(&bytes), None);
    }

    #[test]
    fn anothers_rtp_has_no_mark() {
        let mut bytes = encode(HEADER, MARK, Codec::Pcmu);
        bytes[13] ^= 1;
        assert_eq!(parse(&bytes), Some((HEADER, None)));
        assert_eq!(parse(&bytes[..171]).unwrap().1, None);
        // STUN begins with 0.
        bytes[0] = 0;
        assert_eq!(parse(&bytes), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_borne(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse(&bytes);
        }

        #[test]
        fn a_packet_cut_short_is_not_ours(length in 0_usize..172) {
            let bytes = encode(HEADER, MARK, Codec::Pcmu);
            prop_assert_eq!(parse(&bytes[..length]).and_then(|(_, mark)| mark), None);
        }
    }
}
