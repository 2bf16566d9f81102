//! The key under which two parties tag datagrams.

use std::fmt;
use std::hint::black_box;

use ring::hmac;
use romulus_protocol::wire::Authenticator;

/// The length of a tag in bytes: HMAC-SHA256 cut to its first half (RFC 2104, section 5).
const TAG: usize = 16;

/// A key that two parties share, for one purpose. See [`super::Secret::shared`].
#[derive(Clone)]
pub struct Key(hmac::Key);

impl Key {
    pub(super) fn new(key: &[u8; 32]) -> Key {
        Key(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// The key of those who said `insecure = true`. Everybody has it: it keeps strays apart, not
    /// attackers.
    pub fn insecure() -> Key {
        Key::new(b"romulus: insecure, known to all.")
    }

    fn sum(&self, bytes: &[u8]) -> [u8; TAG] {
        let sum = hmac::sign(&self.0, bytes);
        *sum.as_ref().first_chunk().expect("a sum of 32 bytes")
    }
}

impl Authenticator for Key {
    const LENGTH: usize = TAG;

    fn tag(&self, bytes: &[u8], tag: &mut Vec<u8>) {
        tag.extend_from_slice(&self.sum(bytes));
    }

    fn is_authentic(&self, bytes: &[u8], tag: &[u8]) -> bool {
        // All bytes are looked at, wherever the first difference is, so that the time it takes
        // says nothing about it.
        let own = self.sum(bytes);
        let differences = own.iter().zip(tag).fold(0, |sum, (a, b)| sum | (a ^ b));
        tag.len() == TAG && black_box(differences) == 0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}
