//! What addresses a machine has, learned from the frames that its guest sends.
//!
//! Nobody tells us the guest's addresses, and they may change while it runs. What it says of itself
//! in ARP and neighbour discovery is *certain*. The source address of an ordinary frame is a
//! *guess*: right for a server, wrong for what a router forwards. A guess counts only as long as
//! nothing of its kind (IPv4, IPv6 link-local, other IPv6) is certain on that card and VLAN.

mod bytes;
mod sight;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

pub use self::bytes::DecodeError;
use self::sight::{Sighting, look};
use crate::{
    announce::{arp_reply, arp_request, neighbour_advertisement, rarp},
    ethernet::{Mac, Vlan},
};

/// Addresses remembered at a time, over all cards. Guesses make room first, then the one that was
/// seen least recently.
pub const ADDRESSES_MAX: usize = 64;

/// One address of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The card that it was seen on.
    pub card: usize,
    /// The VLAN that its frames were tagged with.
    pub vlan: Option<Vlan>,
    /// The address.
    pub address: IpAddr,
    /// Whether the guest said itself that it has this address.
    pub certain: bool,
    /// Whether the guest said that it is an IPv6 router.
    pub router: bool,
}

/// The addresses of one machine. See the [module](self).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    cards: Vec<Mac>,
    /// The most recently seen first.
    known: Vec<Known>,
    version: u64,
}

impl Addresses {
    /// Nothing is known yet of a machine with these cards.
    pub fn new(cards: &[Mac]) -> Addresses {
        Addresses {
            cards: cards.to_vec(),
            known: Vec::with_capacity(ADDRESSES_MAX),
            version: 0,
        }
    }

    /// Looks at a frame that `card` sends, without its virtio-net header. Of a frame that makes no
    /// sense, or whose source is not the card's own hardware address, nothing is learned. It does
    /// not allocate, and may be called for every frame.
    pub fn learn(&mut self, card: usize, frame: &[u8]) {
        let Some(&mac) = self.cards.get(card) else {
            return;
        };
        for sighting in look(frame, mac).into_iter().flatten() {
            self.saw(card, sighting);
        }
    }

    /// All that are known, the most recently seen first.
    pub fn known(&self) -> &[Known] {
        &self.known
    }

    /// A number that changes whenever what is known changes, so that a checkpoint need not carry
    /// the same again. That an address was seen once more is no change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Frames that say that all addresses are here now, without virtio-net headers, and on which
    /// card to send each. A card without known addresses at least says where it is.
    pub fn announcements(&self) -> impl Iterator<Item = (usize, Vec<u8>)> {
        (self.cards.iter().enumerate()).flat_map(|(card, &mac)| {
            let silent = !self.known.iter().any(|known| known.card == card);
            let named = (self.known.iter())
                .filter(move |known| known.card == card)
                .flat_map(move |known| announcements_of(known, mac).into_iter().flatten());
            (silent.then(|| rarp(mac, None)).into_iter())
                .chain(named)
                .map(move |frame| (card, frame))
        })
    }

    fn saw(&mut self, card: usize, sighting: Sighting) {
        let Sighting {
            vlan,
            address,
            certain,
            router,
        } = sighting;
        let same = |k: &Known| k.address == address && k.card == card && k.vlan == vlan;
        let known = self.known.iter().position(same);
        let mut now = Known {
            card,
            vlan,
            address,
            certain,
            router: router.unwrap_or(false),
        };
        if let Some(index) = known {
            let old = self.known[index];
            now.certain |= old.certain;
            now.router = router.unwrap_or(old.router);
            self.known[index] = now;
            // The order is that of being seen; a frame's address is mostly the first already.
            self.known[..=index].rotate_right(1);
            if now == old {
                return;
            }
        } else {
            if !certain && (self.known.iter()).any(|k| k.certain && alike(k, &now)) {
                return;
            }
            if self.known.len() == ADDRESSES_MAX && !self.make_room(certain) {
                return;
            }
            self.known.insert(0, now);
        }
        if now.certain {
            self.known.retain(|k| k.certain || !alike(k, &now));
        }
        self.version += 1;
    }

    /// Forgets a guess, or if there is none and what comes is certain, the oldest. Says whether it
    /// did.
    fn make_room(&mut self, for_certain: bool) -> bool {
        let guess = self.known.iter().rposition(|known| !known.certain);
        let last = self.known.len().checked_sub(1).filter(|_| for_certain);
        let Some(index) = guess.or(last) else {
            return false;
        };
        self.known.remove(index);
        true
    }
}

/// The frames that announce one address: both forms for IPv4.
fn announcements_of(known: &Known, mac: Mac) -> [Option<Vec<u8>>; 2] {
    match known.address {
        IpAddr::V4(address) => [
            Some(arp_request(mac, address, known.vlan)),
            Some(arp_reply(mac, address, known.vlan)),
        ],
        IpAddr::V6(address) => [
            Some(neighbour_advertisement(
                mac,
                address,
                known.router,
                known.vlan,
            )),
            None,
        ],
    }
}

/// Whether a certain one of the two makes a guess at the other pointless.
fn alike(a: &Known, b: &Known) -> bool {
    let kind = |address: IpAddr| match address {
        IpAddr::V4(_) => 0,
        IpAddr::V6(address) if address.is_unicast_link_local() => 1,
        IpAddr::V6(_) => 2,
    };
    a.card == b.card && a.vlan == b.vlan && kind(a.address) == kind(b.address)
}
