//! The public form of an identity.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use thiserror::Error;

const PREFIX: &str = "romulus-1:";
const KEYS: usize = 64;
const LENGTH: usize = KEYS + 4;

/// What a host or an arbiter is known by: its two public keys. In writing it is one word that can
/// be copied with a double click: `romulus-1:` and base64 (RFC 4648, section 5) of the Ed25519
/// key, the X25519 key and a CRC-32C, so that a slip of the pen is refused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Public([u8; KEYS]);

/// Why a word is not a public identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PublicError {
    /// It does not begin as one.
    #[error("a public identity begins with `{PREFIX}`; `romulus pair` prints this host's")]
    Prefix,
    /// It holds characters that do not belong there, or is too short or too long.
    #[error("the public identity is incomplete or mistyped: copy all of it")]
    Encoding,
    /// Its checksum is wrong.
    #[error("the public identity is mistyped: its checksum is wrong")]
    Checksum,
}

impl Public {
    pub(super) fn new(link: [u8; 32], datagrams: [u8; 32]) -> Public {
        let mut keys = [0; KEYS];
        keys[..32].copy_from_slice(&link);
        keys[32..].copy_from_slice(&datagrams);
        Public(keys)
    }

    /// Both keys: Ed25519, X25519.
    pub(crate) fn bytes(&self) -> &[u8; KEYS] {
        &self.0
    }

    /// The Ed25519 key.
    pub(crate) fn link(&self) -> &[u8; 32] {
        self.0.first_chunk().expect("64 bytes")
    }

    /// The X25519 key.
    pub(super) fn datagrams(&self) -> &[u8; 32] {
        self.0.last_chunk().expect("64 bytes")
    }
}

fn checksum(keys: &[u8]) -> [u8; 4] {
    crc32c::crc32c_append(crc32c::crc32c(PREFIX.as_bytes()), keys).to_le_bytes()
}

impl fmt::Display for Public {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [0; LENGTH];
        bytes[..KEYS].copy_from_slice(&self.0);
        bytes[KEYS..].copy_from_slice(&checksum(&self.0));
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl fmt::Debug for Public {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Public {
    type Err = PublicError;

    fn from_str(word: &str) -> Result<Public, PublicError> {
        let code = word
            .trim()
            .strip_prefix(PREFIX)
            .ok_or(PublicError::Prefix)?;
        let bytes = URL_SAFE_NO_PAD
            .decode(code)
            .map_err(|_| PublicError::Encoding)?;
        let bytes: [u8; LENGTH] = bytes.try_into().map_err(|_| PublicError::Encoding)?;
        let (keys, sum) = bytes.split_first_chunk::<KEYS>().expect("longer than that");
        if sum != checksum(keys) {
            return Err(PublicError::Checksum);
        }
        Ok(Public(*keys))
    }
}
