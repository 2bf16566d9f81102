//! Parts, and the sections that they are made of.
//!
//! A part is a sequence of whole sections. A section is a header that no later version changes, and a body:
//!
//! ```text
//!   0       1         2          4                8            12
//!   │ kind  │ version │ 0     0  │ length of body │ checksum   │ body …
//! ```
//!
//! Numbers are little-endian; the checksum is the CRC-32C of the header's first 8 bytes and the body. An epoch's digest is the CRC-32C of
//! the headers of all its sections in order, and so of everything in them, without another look at it.

use crate::ReplicaError;
use crate::bytes::Reader;

/// The longest part in bytes. It is much less than what a frame may hold, so that other messages go in between.
pub const PART_MAX: usize = 256 << 10;

/// The length of a section's header.
pub(crate) const HEADER: usize = 12;

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Records of memory pages, their numbers rising.
    Pages = 1,
    /// The length of the machine's state, then records of its blocks of a page's size.
    State = 2,
    /// Disk writes.
    Disk = 3,
    /// Held output, a piece of it.
    Output = 4,
}

impl Kind {
    /// The version of this kind's body that this program writes and reads.
    const VERSION: u8 = 1;

    fn of(byte: u8) -> Option<Self> {
        [Self::Pages, Self::State, Self::Disk, Self::Output]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

fn checksum(header: &[u8], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(header), body)
}

/// One epoch's parts as they are made.
#[derive(Debug)]
pub(crate) struct Stream {
    part: Vec<u8>,
    /// The section that is open, and where it begins in `part`.
    open: Option<(Kind, usize)>,
    /// Number of the part that is being made.
    index: u32,
    digest: u32,
    bytes: u64,
}

/// What went into a stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Total {
    pub(crate) parts: u32,
    pub(crate) digest: u32,
    pub(crate) bytes: u64,
}

impl Stream {
    pub(crate) fn new() -> Self {
        Self {
            part: Vec::with_capacity(PART_MAX),
            open: None,
            index: 0,
            digest: 0,
            bytes: 0,
        }
    }

    /// Where the open section's body goes.
    pub(crate) fn body(&mut self) -> &mut Vec<u8> {
        debug_assert!(self.open.is_some(), "a section is open");
        &mut self.part
    }

    /// Sees to it that a section of `kind` is open and has room for `need` more bytes. Says whether it is a new one.
    pub(crate) fn room<E>(
        &mut self,
        kind: Kind,
        need: usize,
        sink: &mut impl FnMut(u32, &[u8]) -> Result<(), E>,
    ) -> Result<bool, E> {
        debug_assert!(HEADER + need <= PART_MAX, "it fits into a part");
        let opened = self.open.is_some_and(|(open, _)| open == kind);
        let header = if opened { 0 } else { HEADER };
        if self.part.len() + header + need > PART_MAX {
            self.flush(sink)?;
        } else if opened {
            return Ok(false);
        }
        self.close();
        self.open = Some((kind, self.part.len()));
        self.part.extend_from_slice(&[0; HEADER]);
        Ok(true)
    }

    /// Ends the open section.
    pub(crate) fn close(&mut self) {
        let Some((kind, start)) = self.open.take() else {
            return;
        };
        let (header, body) = self.part[start..].split_at_mut(HEADER);
        header[0] = kind as u8;
        header[1] = Kind::VERSION;
        let length = u32::try_from(body.len()).expect("a part is shorter");
        header[4..8].copy_from_slice(&length.to_le_bytes());
        let sum = checksum(&header[..8], body);
        header[8..].copy_from_slice(&sum.to_le_bytes());
        self.digest = crc32c::crc32c_append(self.digest, header);
    }

    /// Hands the part that is being made over, if there is anything in it.
    pub(crate) fn flush<E>(
        &mut self,
        sink: &mut impl FnMut(u32, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.close();
        if self.part.is_empty() {
            return Ok(());
        }
        self.bytes += self.part.len() as u64;
        let result = sink(self.index, &self.part);
        self.index += 1;
        self.part.clear();
        result
    }

    /// Ends the epoch and begins the next.
    pub(crate) fn end<E>(
        &mut self,
        sink: &mut impl FnMut(u32, &[u8]) -> Result<(), E>,
    ) -> Result<Total, E> {
        self.flush(sink)?;
        let total = Total {
            parts: self.index,
            digest: self.digest,
            bytes: self.bytes,
        };
        self.restart();
        Ok(total)
    }

    /// Forgets what was begun.
    pub(crate) fn restart(&mut self) {
        self.part.clear();
        self.open = None;
        self.index = 0;
        self.digest = 0;
        self.bytes = 0;
    }
}

/// Takes the first section off a part: its kind and body, checked against its checksum. Its header goes into the epoch's `digest`.
pub(crate) fn next<'a>(
    part: &mut Reader<'a>,
    digest: &mut u32,
) -> Result<(Kind, &'a [u8]), ReplicaError> {
    let header = part.array::<HEADER>()?;
    let number = |at: usize| {
        u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes of twelve"))
    };
    let length =
        usize::try_from(number(4)).map_err(|_| ReplicaError::Malformed("it ends too early"))?;
    let body = part.take(length)?;
    if checksum(&header[..8], body) != number(8) {
        return Err(ReplicaError::Checksum(header[0]));
    }
    let kind = Kind::of(header[0]).ok_or(ReplicaError::Kind(header[0]))?;
    if header[1] != Kind::VERSION {
        return Err(ReplicaError::Version {
            kind: header[0],
            version: header[1],
        });
    }
    if header[2..4] != [0, 0] {
        return Err(ReplicaError::Malformed("reserved bytes are not zero"));
    }
    *digest = crc32c::crc32c_append(*digest, &header);
    Ok((kind, body))
}
