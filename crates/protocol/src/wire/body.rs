//! Reading and writing the fields of a body.

use crate::id::{Epoch, Generation, Incarnation, MachineId, SessionId, Term};
use crate::time::Time;

use super::WireError;

/// Reads fields from the front of some bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let Some((first, rest)) = self.rest.split_first_chunk() else {
            return Err(WireError::Body("a field is missing"));
        };
        self.rest = rest;
        Ok(*first)
    }

    pub(super) fn u8(&mut self) -> Result<u8, WireError> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn u128(&mut self) -> Result<u128, WireError> {
        self.array().map(u128::from_le_bytes)
    }

    pub(super) fn bool(&mut self) -> Result<bool, WireError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(WireError::Body("a truth value is neither 0 nor 1")),
        }
    }

    pub(super) fn machine(&mut self) -> Result<MachineId, WireError> {
        self.u128().map(MachineId)
    }

    pub(super) fn optional_incarnation(&mut self) -> Result<Option<Incarnation>, WireError> {
        self.u128().map(Incarnation::new)
    }

    pub(super) fn incarnation(&mut self) -> Result<Incarnation, WireError> {
        self.optional_incarnation()?
            .ok_or(WireError::Body("an incarnation is 0"))
    }

    pub(super) fn session(&mut self) -> Result<SessionId, WireError> {
        Ok(SessionId {
            runner: self.incarnation()?,
            number: self.u64()?,
        })
    }

    pub(super) fn generation(&mut self) -> Result<Generation, WireError> {
        self.u64().map(Generation)
    }

    pub(super) fn term(&mut self) -> Result<Term, WireError> {
        self.generation().map(Term)
    }

    pub(super) fn epoch(&mut self) -> Result<Epoch, WireError> {
        self.u64().map(Epoch)
    }

    pub(super) fn time(&mut self) -> Result<Time, WireError> {
        self.u64().map(Time)
    }

    /// All that is left.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// `value`, if nothing is left.
    pub(super) fn end<T>(&self, value: T) -> Result<T, WireError> {
        if self.rest.is_empty() {
            Ok(value)
        } else {
            Err(WireError::Trailing(self.rest.len()))
        }
    }
}

/// Appends fields.
pub(super) trait Write {
    fn bytes(&mut self, bytes: &[u8]);

    fn u8(&mut self, value: u8) {
        self.bytes(&[value]);
    }

    fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    fn u128(&mut self, value: u128) {
        self.bytes(&value.to_le_bytes());
    }

    fn bool(&mut self, value: bool) {
        self.u8(u8::from(value));
    }

    fn incarnation(&mut self, value: Incarnation) {
        self.u128(value.get());
    }

    fn optional_incarnation(&mut self, value: Option<Incarnation>) {
        self.u128(value.map_or(0, Incarnation::get));
    }

    fn session(&mut self, value: SessionId) {
        self.incarnation(value.runner);
        self.u64(value.number);
    }
}

impl Write for Vec<u8> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}
