//! Who is who: the secret of a host or an arbiter, its public form, and the keys that two of them
//! share.
//!
//! Every host and every arbiter has one secret: 32 bytes from the operating system's random
//! number generator, in a file of its own. Two key pairs are derived from it (HKDF-SHA256,
//! RFC 5869): an Ed25519 pair that proves who speaks on the link (TLS, RFC 8446 and RFC 7250), and
//! an X25519 pair (RFC 7748) from which two parties compute a key for datagrams that nobody else
//! can. Nothing is ever signed by a third party: each side is told the other's [`Public`] once, by
//! `romulus pair`.

mod file;
mod key;
mod public;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};
use ring::{error::Unspecified, hkdf};
use thiserror::Error;
use x25519_dalek::{PublicKey, StaticSecret};

pub use key::Key;
pub use public::{Public, PublicError};

/// Why an identity cannot be made, read or used.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// There is a file already. A secret is never overwritten: partners know its public form.
    #[error("{0} exists already; a secret is never overwritten")]
    Exists(PathBuf),
    /// The file can be read by others than its owner.
    #[error(
        "others than its owner may read {path} (mode {mode:03o}): run `chmod 600 {path}`, or make a new secret if it may have been read"
    )]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is not a secret.
    #[error("{path} holds no Romulus secret: {why}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it. Never its content.
        why: &'static str,
    },
    /// The file cannot be read or written.
    #[error("cannot {verb} {path}: {error}")]
    File {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// The operating system gives no random numbers.
    #[error("the operating system gives no random numbers")]
    Random,
    /// The other side's X25519 key is one of the few with which every exchange gives the same
    /// key, known to all (RFC 7748, section 6.1).
    #[error("the other side's public identity is unsafe: no secret can be shared with it")]
    NonContributory,
}

/// The secret of a host or an arbiter. Neither printed nor sent, ever.
#[derive(Clone)]
pub struct Secret {
    /// The Ed25519 key's seed.
    link: [u8; 32],
    /// The X25519 key.
    datagrams: StaticSecret,
    public: Public,
}

impl Secret {
    /// Makes a secret and writes it to a new file that only its owner may read. When this returns
    /// the file is durable.
    ///
    /// # Errors
    /// When there is such a file already, or it cannot be written.
    pub fn create(path: &Path) -> Result<Secret, IdentityError> {
        let mut seed = [0; 32];
        SystemRandom::new()
            .fill(&mut seed)
            .map_err(|Unspecified| IdentityError::Random)?;
        file::write(path, &seed)?;
        Ok(Secret::from_seed(&seed))
    }

    /// Reads a secret from its file.
    ///
    /// # Errors
    /// When there is none, when others than its owner may read it, or when it is not a secret.
    pub fn load(path: &Path) -> Result<Secret, IdentityError> {
        file::read(path).map(|seed| Secret::from_seed(&seed))
    }

    /// The secret that grows from these 32 bytes.
    pub(crate) fn from_seed(seed: &[u8; 32]) -> Secret {
        let root = hkdf::Salt::new(hkdf::HKDF_SHA256, b"romulus-secret-1").extract(seed);
        let link = expand(&root, &[b"link, ed25519"]);
        let datagrams = StaticSecret::from(expand(&root, &[b"datagrams, x25519"]));
        let pair = Ed25519KeyPair::from_seed_unchecked(&link).expect("a seed of 32 bytes");
        let mut verifying = [0; 32];
        verifying.copy_from_slice(pair.public_key().as_ref());
        let public = Public::new(verifying, PublicKey::from(&datagrams).to_bytes());
        Secret {
            link,
            datagrams,
            public,
        }
    }

    /// What others may know, and need to know.
    pub fn public(&self) -> &Public {
        &self.public
    }

    /// The key for datagrams between this party and `other`, one for each purpose. Both compute
    /// the same one.
    ///
    /// # Errors
    /// When `other` is unsafe.
    pub fn shared(&self, other: &Public, purpose: &str) -> Result<Key, IdentityError> {
        let exchange = self
            .datagrams
            .diffie_hellman(&PublicKey::from(*other.datagrams()));
        if !exchange.was_contributory() {
            return Err(IdentityError::NonContributory);
        }
        // The same order on both sides; and all of both identities, so that the key also depends
        // on whom each takes the other for.
        let (mine, theirs) = (self.public.bytes(), other.bytes());
        let (first, second) = (mine.min(theirs), mine.max(theirs));
        let root =
            hkdf::Salt::new(hkdf::HKDF_SHA256, b"romulus-shared-1").extract(exchange.as_bytes());
        let key = expand(&root, &[first, second, purpose.as_bytes()]);
        Ok(Key::new(&key))
    }

    /// The seed of the Ed25519 key that proves who this is on the link.
    pub(crate) fn link(&self) -> &[u8; 32] {
        &self.link
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret of {}", self.public)
    }
}

/// 32 bytes derived from `root` for a purpose.
fn expand(root: &hkdf::Prk, purpose: &[&[u8]]) -> [u8; 32] {
    let mut bytes = [0; 32];
    root.expand(purpose, hkdf::HKDF_SHA256)
        .and_then(|derived| derived.fill(&mut bytes))
        .expect("HKDF-SHA256 gives up to 8160 bytes");
    bytes
}
