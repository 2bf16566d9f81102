//! The frame around every message.

use super::body::Reader;
use super::{Kind, WireError};

const MAGIC: [u8; 4] = *b"RMLS";
/// The version of what the two hosts say to each other.
pub const VERSION: u16 = 3;
/// The header's length in bytes.
pub const HEADER: usize = 16;
/// The longest body, in bytes. A checkpoint is sent in parts below it.
pub const LENGTH_MAX: usize = 1 << 24;

/// Makes and checks tags. The key and the algorithm are the edge's.
pub trait Authenticator {
    /// The length of a tag in bytes.
    const LENGTH: usize;
    /// Appends the tag of `bytes` to `tag`.
    fn tag(&self, bytes: &[u8], tag: &mut Vec<u8>);
    /// Whether `tag` is the tag of `bytes`, compared in constant time.
    fn is_authentic(&self, bytes: &[u8], tag: &[u8]) -> bool;
}

/// No authentication: for transports that have their own (TLS, a file), and for
/// `insecure = true`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Insecure;

impl Authenticator for Insecure {
    const LENGTH: usize = 0;

    fn tag(&self, _: &[u8], _: &mut Vec<u8>) {}

    fn is_authentic(&self, _: &[u8], tag: &[u8]) -> bool {
        tag.is_empty()
    }
}

/// A frame's header, checked as far as it can be without the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub kind: Kind,
    /// The length of its body in bytes.
    pub length: usize,
    checksum: u32,
}

impl Header {
    /// Reads a header from the beginning of `bytes`.
    ///
    /// # Errors
    /// When they are too few, or not the header of a frame of this version.
    pub fn decode(bytes: &[u8]) -> Result<Header, WireError> {
        if bytes.len() < HEADER {
            return Err(WireError::Short {
                have: bytes.len(),
                need: HEADER,
            });
        }
        let mut reader = Reader::new(bytes);
        if reader.array()? != MAGIC {
            return Err(WireError::Magic);
        }
        let version = reader.u16()?;
        let number = reader.u16()?;
        let kind = Kind::from_number(number);
        let ours = kind.map_or(VERSION, Kind::version);
        if version != ours {
            return Err(WireError::Version(version, ours));
        }
        let kind = kind.ok_or(WireError::Kind(number))?;
        let length = reader.u32()? as usize;
        if length > LENGTH_MAX {
            return Err(WireError::Long(length));
        }
        Ok(Header {
            kind,
            length,
            checksum: reader.u32()?,
        })
    }

    /// The length of the whole frame with its header but without a tag, in bytes.
    pub fn frame(&self) -> usize {
        HEADER + self.length
    }
}

/// What a part's body has before the part: session, epoch and index.
const PART_FIELDS: usize = 24 + 8 + 4;

fn checksum(kind: Kind, head: &[u8], body: &[u8]) -> u32 {
    let body = match kind {
        Kind::Part => &body[..body.len().min(PART_FIELDS)],
        _ => body,
    };
    crc32c::crc32c_append(crc32c::crc32c(head), body)
}

/// Appends a frame to `out`; `body` appends its body. All bytes of one frame are in one place, so
/// that a datagram is sent with one call.
pub(super) fn encode<A: Authenticator>(
    kind: Kind,
    key: &A,
    out: &mut Vec<u8>,
    body: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&kind.version().to_le_bytes());
    out.extend_from_slice(&(kind as u16).to_le_bytes());
    out.extend_from_slice(&[0; 8]);
    body(out);
    let length = out.len() - start - HEADER;
    debug_assert!(
        length <= LENGTH_MAX,
        "a body of {length} bytes: cut it into parts"
    );
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    out[start + 8..start + 12].copy_from_slice(&length.to_le_bytes());
    let sum = checksum(kind, &out[start..start + 12], &out[start + HEADER..]);
    out[start + 12..start + 16].copy_from_slice(&sum.to_le_bytes());
    let mut tag = Vec::new();
    key.tag(&out[start..], &mut tag);
    out.extend_from_slice(&tag);
}

/// The kind and body of the one frame that `bytes` are.
pub(super) fn decode<'a, A: Authenticator>(
    bytes: &'a [u8],
    key: &A,
) -> Result<(Kind, Reader<'a>), WireError> {
    let header = Header::decode(bytes)?;
    let need = header.frame() + A::LENGTH;
    if bytes.len() < need {
        return Err(WireError::Short {
            have: bytes.len(),
            need,
        });
    }
    if bytes.len() > need {
        return Err(WireError::Trailing(bytes.len() - need));
    }
    let (frame, tag) = bytes.split_at(header.frame());
    let (head, body) = frame.split_at(HEADER);
    if checksum(header.kind, &head[..12], body) != header.checksum {
        return Err(WireError::Checksum);
    }
    if !key.is_authentic(frame, tag) {
        return Err(WireError::Forged);
    }
    Ok((header.kind, Reader::new(body)))
}

/// [`decode`] for a frame of one kind.
pub(super) fn decode_kind<'a, A: Authenticator>(
    bytes: &'a [u8],
    key: &A,
    kind: Kind,
) -> Result<Reader<'a>, WireError> {
    match decode(bytes, key)? {
        (found, reader) if found == kind => Ok(reader),
        (other, _) => Err(WireError::Unexpected(other)),
    }
}
