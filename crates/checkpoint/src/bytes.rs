//! Numbers of variable length, and reading from bytes that cannot be trusted.

/// A length in memory.
///
/// # Panics
/// Not on a 64-bit processor, and there is no other that runs machines.
#[inline]
pub(crate) fn size(length: u64) -> usize {
    usize::try_from(length).expect("x86-64 addresses fit")
}

/// What is wrong with some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

/// Appends `value` in groups of seven bits, the lowest first; the top bit says that more follow (LEB128).
#[inline]
pub(crate) fn put_number(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

/// The most bytes that [`put_number`] appends.
pub(crate) const NUMBER_MAX: usize = 10;

/// Reads fields from the front of some bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    #[inline]
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What is left to read.
    #[inline]
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `length` bytes.
    #[inline]
    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let Some((first, rest)) = self.rest.split_at_checked(length) else {
            return Err(Malformed("it ends too early"));
        };
        self.rest = rest;
        Ok(first)
    }

    /// The next `N` bytes.
    #[inline]
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let Some((first, rest)) = self.rest.split_first_chunk() else {
            return Err(Malformed("it ends too early"));
        };
        self.rest = rest;
        Ok(*first)
    }

    /// The next byte.
    #[inline]
    pub(crate) fn byte(&mut self) -> Result<u8, Malformed> {
        self.array().map(|[byte]| byte)
    }

    /// A number as [`put_number`] writes it.
    #[inline]
    pub(crate) fn number(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed("a number is longer than 64 bits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_come_back(value: u64, shift in 0u32..64) {
            let value = value >> shift;
            let mut out = Vec::new();
            put_number(&mut out, value);
            prop_assert!(out.len() <= NUMBER_MAX);
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.number(), Ok(value));
            prop_assert!(reader.rest().is_empty());
            prop_assert!(Reader::new(&out[..out.len() - 1]).number().is_err());
        }
    }

    #[test]
    fn a_number_beyond_64_bits_is_refused() {
        let mut bytes = [0xff; NUMBER_MAX];
        bytes[NUMBER_MAX - 1] = 1;
        assert_eq!(Reader::new(&bytes).number(), Ok(u64::MAX));
        bytes[NUMBER_MAX - 1] = 2;
        assert!(Reader::new(&bytes).number().is_err());
        assert!(Reader::new(&[0x80; 20]).number().is_err());
    }
}
