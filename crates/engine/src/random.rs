//! Random numbers of the operating system.

use ring::rand::{SecureRandom as _, SystemRandom};
use romulus_protocol::id::Incarnation;
use std::io;

/// 128 random bits.
///
/// # Errors
/// The operating system gives none.
pub fn number() -> io::Result<u128> {
    let mut bytes = [0; 16];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| io::Error::other("the system gives no random numbers"))?;
    Ok(u128::from_le_bytes(bytes))
}

/// A new incarnation: the name of one life of one process.
///
/// # Errors
/// Those of [`number`].
pub fn incarnation() -> io::Result<Incarnation> {
    loop {
        if let Some(incarnation) = Incarnation::new(number()?) {
            return Ok(incarnation);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::incarnation;

    #[test]
    fn no_two_incarnations_are_the_same() {
        assert_ne!(incarnation().unwrap(), incarnation().unwrap());
    }
}
