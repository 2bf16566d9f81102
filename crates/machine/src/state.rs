//! The form of captured state: sections, each with a fixed header outside of its encoding.
//!
//! A header is 16 bytes, little endian: kind (u32), version (u16), index (u16), length of the payload in bytes (u32),
//! CRC-32C of the payload (u32). A reader can step over, name and check any section without knowing its payload, so
//! that a newer binary can say exactly what it cannot read.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Length of a section's header in bytes.
const HEADER: usize = 16;

/// Why state was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum StateError {
    /// The bytes end in the middle of something.
    #[error("truncated in section {0:?}")]
    Truncated(SectionName),
    /// A payload's checksum is wrong.
    #[error("section {0:?} is damaged (checksum differs)")]
    Damaged(SectionName),
    /// Another section was expected here.
    #[error("section {found:?} where {expected:?} was expected")]
    Unexpected {
        /// What stood there.
        found: SectionName,
        /// What should have stood there.
        expected: SectionName,
    },
    /// The section's version is not one that this binary reads.
    #[error("section {name:?} has version {found}; this binary reads {known}")]
    Version {
        /// The section.
        name: SectionName,
        /// Its version.
        found: u16,
        /// The version that is known.
        known: u16,
    },
    /// A payload is longer than what is known of it.
    #[error("section {0:?} is longer than expected")]
    TooLong(SectionName),
    /// A value cannot be right.
    #[error("section {name:?}: {why}")]
    Value {
        /// The section.
        name: SectionName,
        /// What is wrong.
        why: String,
    },
}

/// Which section: its kind and, for things of which there are several, which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SectionName {
    /// What it describes.
    pub kind: u32,
    /// Which of them.
    pub index: u16,
}

/// Kinds of section. Numbers are never used again for something else.
pub mod kind {
    /// The machine's shape: memory size, number of vCPUs and devices.
    pub const SHAPE: u32 = 1;
    /// One vCPU.
    pub const VCPU: u32 = 2;
    /// Interrupt controllers and timer of the chipset.
    pub const CHIPSET: u32 = 3;
    /// The machine's clock.
    pub const CLOCK: u32 = 4;
    /// The serial port.
    pub const SERIAL: u32 = 5;
    /// Power management and reset registers.
    pub const POWER: u32 = 6;
    /// What the guest sees of its processors (CPUID).
    pub const CPUID: u32 = 7;
    /// One virtio transport: registers and queues.
    pub const TRANSPORT: u32 = 16;
    /// One network card.
    pub const NET: u32 = 17;
    /// One disk.
    pub const BLOCK: u32 = 18;
    /// The entropy device.
    pub const ENTROPY: u32 = 19;
}

/// Appends sections to a buffer that the caller keeps, so that nothing is allocated once it has grown.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Writer<'a> {
    /// Writes behind what `out` already holds.
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out }
    }

    /// Appends one section; `fill` writes its payload.
    ///
    /// # Errors
    /// Those of `fill`; then the section is not in the buffer.
    pub fn section<E>(
        &mut self,
        kind: u32,
        index: u16,
        version: u16,
        fill: impl FnOnce(&mut Payload<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let start = self.out.len();
        self.out.extend_from_slice(&[0; HEADER]);
        if let Err(error) = fill(&mut Payload { out: self.out }) {
            self.out.truncate(start);
            return Err(error);
        }
        let body = start + HEADER;
        let length = u32::try_from(self.out.len() - body).expect("a section is far below 4 GiB");
        let checksum = crc32c::crc32c(&self.out[body..]);
        let header = &mut self.out[start..body];
        header[0..4].copy_from_slice(&kind.to_le_bytes());
        header[4..6].copy_from_slice(&version.to_le_bytes());
        header[6..8].copy_from_slice(&index.to_le_bytes());
        header[8..12].copy_from_slice(&length.to_le_bytes());
        header[12..16].copy_from_slice(&checksum.to_le_bytes());
        Ok(())
    }
}

/// Writes the payload of one section.
#[derive(Debug)]
pub struct Payload<'a> {
    out: &'a mut Vec<u8>,
}

impl Payload<'_> {
    /// Appends a plain value as it lies in memory (all hosts are little-endian x86-64).
    pub fn put<T: IntoBytes + Immutable + ?Sized>(&mut self, value: &T) {
        self.out.extend_from_slice(value.as_bytes());
    }
}

/// Reads sections in the order in which they were written.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Takes the next section, which must be `kind`/`index` in `version`.
    ///
    /// # Errors
    /// [`StateError`] says what stands there instead.
    pub fn section(
        &mut self,
        kind: u32,
        index: u16,
        version: u16,
    ) -> Result<Fields<'a>, StateError> {
        let name = SectionName { kind, index };
        let (header, rest) = self
            .rest
            .split_at_checked(HEADER)
            .ok_or(StateError::Truncated(name))?;
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let half = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let found = SectionName {
            kind: word(0),
            index: half(6),
        };
        if found != name {
            return Err(StateError::Unexpected {
                found,
                expected: name,
            });
        }
        let (body, rest) = rest
            .split_at_checked(word(8) as usize)
            .ok_or(StateError::Truncated(name))?;
        if crc32c::crc32c(body) != word(12) {
            return Err(StateError::Damaged(name));
        }
        if half(4) != version {
            return Err(StateError::Version {
                name,
                found: half(4),
                known: version,
            });
        }
        self.rest = rest;
        Ok(Fields { name, rest: body })
    }
}

/// The payload of one section, taken field by field.
#[derive(Debug)]
pub struct Fields<'a> {
    name: SectionName,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// The section that this is the payload of.
    pub fn name(&self) -> SectionName {
        self.name
    }

    /// The payload of a section whose header was checked before.
    pub(crate) fn of(kind: u32, index: u16, payload: &'a [u8]) -> Self {
        Self {
            name: SectionName { kind, index },
            rest: payload,
        }
    }

    /// What has not been taken yet.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Takes a plain value.
    ///
    /// # Errors
    /// [`StateError::Truncated`] if the payload is too short.
    pub fn get<T: FromBytes>(&mut self) -> Result<T, StateError> {
        let (value, rest) =
            T::read_from_prefix(self.rest).map_err(|_| StateError::Truncated(self.name))?;
        self.rest = rest;
        Ok(value)
    }

    /// Takes `length` bytes.
    ///
    /// # Errors
    /// [`StateError::Truncated`] if the payload is too short.
    pub fn bytes(&mut self, length: usize) -> Result<&'a [u8], StateError> {
        let (value, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(StateError::Truncated(self.name))?;
        self.rest = rest;
        Ok(value)
    }

    /// An error that says what is wrong with a value of this section.
    pub fn invalid(&self, why: impl Into<String>) -> StateError {
        StateError::Value {
            name: self.name,
            why: why.into(),
        }
    }

    /// Says that the payload must be used up.
    ///
    /// # Errors
    /// [`StateError::TooLong`] if something is left.
    pub fn finish(self) -> Result<(), StateError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(StateError::TooLong(self.name))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = Writer::new(&mut out);
        writer
            .section::<()>(kind::SHAPE, 0, 1, |p| {
                p.put(&7u64);
                p.put(&[1u8, 2, 3][..]);
                Ok(())
            })
            .unwrap();
        out
    }

    fn read(bytes: &[u8]) -> Result<(u64, Vec<u8>), StateError> {
        let mut reader = Reader::new(bytes);
        let mut fields = reader.section(kind::SHAPE, 0, 1)?;
        let number = fields.get::<u64>()?;
        let tail = fields.bytes(3)?.to_vec();
        fields.finish()?;
        Ok((number, tail))
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(read(&sample()), Ok((7, vec![1, 2, 3])));
    }

    #[test]
    fn a_failed_section_leaves_nothing() {
        let mut out = vec![9];
        let result = Writer::new(&mut out).section(kind::SHAPE, 0, 1, |p| {
            p.put(&7u64);
            Err("no")
        });
        assert_eq!((result, out), (Err("no"), vec![9]));
    }

    proptest! {
        #[test]
        fn any_truncation_is_refused(cut in 0usize..27) {
            prop_assert!(read(&sample()[..cut]).is_err());
        }

        #[test]
        fn any_flipped_bit_is_refused(bit in 0usize..27 * 8) {
            let mut bytes = sample();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(read(&bytes).is_err());
        }
    }
}
