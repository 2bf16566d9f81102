//! Addresses as bytes, for the checkpoint.
//!
//! ```text
//!   offset  size  field
//!        0     1  version of this encoding
//!        1     1  how many addresses
//!               each, the most recently seen first:
//!        0     1  flags: 1 IPv6, 2 certain, 4 router
//!        1     2  card
//!        3     2  VLAN; 0 is none
//!        5  4, 16 address
//!       last   4  CRC-32C of all before it
//! ```
//!
//! Numbers are little-endian, addresses in network order.

use std::net::IpAddr;

use thiserror::Error;

use super::{ADDRESSES_MAX, Addresses, Known, sight::usable};
use crate::ethernet::{Mac, Vlan};

const VERSION: u8 = 1;
const IS_V6: u8 = 1;
const IS_CERTAIN: u8 = 2;
const IS_ROUTER: u8 = 4;
const SUM: usize = 4;

/// Why bytes are not the addresses of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// They end too soon, or go on after the end.
    #[error("the learned addresses have a wrong length")]
    Length,
    /// They are not as they were written.
    #[error("the learned addresses are damaged: wrong checksum")]
    Checksum,
    /// Another release wrote them.
    #[error("the learned addresses have encoding {0}, this release reads {VERSION}")]
    Version(u8),
    /// More than any machine has.
    #[error("{0} learned addresses, at most {ADDRESSES_MAX} are possible")]
    TooMany(usize),
    /// The machine has no such card.
    #[error("a learned address belongs to card {card}, but there are {cards} cards")]
    Card {
        /// The card's number.
        card: usize,
        /// How many there are.
        cards: usize,
    },
    /// An address, VLAN or flag that is never learned, or an address that is there twice.
    #[error("entry {0} of the learned addresses is impossible")]
    Impossible(usize),
}

impl Addresses {
    /// Appends them to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        // Bounded when they are learned, and cards by the machine's bus.
        out.extend([VERSION, u8::try_from(self.known.len()).unwrap_or(u8::MAX)]);
        for known in &self.known {
            let flag = |set: bool, flag: u8| if set { flag } else { 0 };
            out.push(
                flag(known.address.is_ipv6(), IS_V6)
                    | flag(known.certain, IS_CERTAIN)
                    | flag(known.router, IS_ROUTER),
            );
            let card = u16::try_from(known.card).unwrap_or(u16::MAX);
            out.extend(card.to_le_bytes());
            out.extend(known.vlan.map_or(0, Vlan::id).to_le_bytes());
            match known.address {
                IpAddr::V4(address) => out.extend(address.octets()),
                IpAddr::V6(address) => out.extend(address.octets()),
            }
        }
        let sum = crc32c::crc32c(&out[start..]);
        out.extend(sum.to_le_bytes());
    }

    /// The addresses of a machine with these cards, from what [`Addresses::encode`] wrote. Their
    /// version begins anew.
    ///
    /// # Errors
    /// [`DecodeError`] says what is wrong; any bytes may be given.
    pub fn decode(cards: &[Mac], bytes: &[u8]) -> Result<Addresses, DecodeError> {
        let Some((body, sum)) = bytes.split_last_chunk::<SUM>() else {
            return Err(DecodeError::Length);
        };
        // The version first: another one may have another checksum.
        let [version, count, entries @ ..] = body else {
            return Err(DecodeError::Length);
        };
        if *version != VERSION {
            return Err(DecodeError::Version(*version));
        }
        if crc32c::crc32c(body) != u32::from_le_bytes(*sum) {
            return Err(DecodeError::Checksum);
        }
        let count = usize::from(*count);
        if count > ADDRESSES_MAX {
            return Err(DecodeError::TooMany(count));
        }
        let mut addresses = Addresses::new(cards);
        let mut rest = entries;
        for index in 0..count {
            let known = entry(&mut rest, index)?;
            if known.card >= cards.len() {
                return Err(DecodeError::Card {
                    card: known.card,
                    cards: cards.len(),
                });
            }
            let same =
                |k: &Known| (k.card, k.vlan, k.address) == (known.card, known.vlan, known.address);
            if addresses.known.iter().any(same) {
                return Err(DecodeError::Impossible(index));
            }
            addresses.known.push(known);
        }
        if !rest.is_empty() {
            return Err(DecodeError::Length);
        }
        Ok(addresses)
    }
}

fn entry(rest: &mut &[u8], index: usize) -> Result<Known, DecodeError> {
    let [flags] = take(rest)?;
    let card = usize::from(u16::from_le_bytes(take(rest)?));
    let id = u16::from_le_bytes(take(rest)?);
    let address = if flags & IS_V6 == 0 {
        IpAddr::from(take::<4>(rest)?)
    } else {
        IpAddr::from(take::<16>(rest)?)
    };
    let vlan = Vlan::new(id);
    let strange = flags & !(IS_V6 | IS_CERTAIN | IS_ROUTER) != 0;
    if strange || (vlan.is_none() && id != 0) || !usable(address) {
        return Err(DecodeError::Impossible(index));
    }
    Ok(Known {
        card,
        vlan,
        address,
        certain: flags & IS_CERTAIN != 0,
        router: flags & IS_ROUTER != 0,
    })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], DecodeError> {
    let (head, tail) = rest.split_first_chunk().ok_or(DecodeError::Length)?;
    *rest = tail;
    Ok(*head)
}
