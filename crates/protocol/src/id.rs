//! Names for machines, processes and stretches of history.

use std::fmt;
use std::num::NonZeroU128;

/// A machine's uuid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineId(pub u128);

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let x = self.0;
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            x >> 96,
            (x >> 80) & 0xffff,
            (x >> 64) & 0xffff,
            (x >> 48) & 0xffff,
            x & 0xffff_ffff_ffff
        )
    }
}

/// One life of one process: a random number made when it starts.
///
/// Rules are about incarnations and never about hosts: a process that comes back after a crash
/// has lost its memory and must not inherit what its predecessor was allowed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(NonZeroU128);

impl Incarnation {
    /// An incarnation out of 128 random bits; nothing for the one number that is not allowed, 0.
    pub fn new(random: u128) -> Option<Incarnation> {
        NonZeroU128::new(random).map(Incarnation)
    }

    /// The number itself.
    pub fn get(self) -> u128 {
        self.0.get()
    }

    /// Whether both lived on one host. Only the simulator's incarnations can tell (their lowest
    /// byte is the host); only a weakened protocol asks.
    #[cfg(any(test, feature = "weaken"))]
    pub(crate) fn same_host(self, other: Incarnation) -> bool {
        self.get() & 0xff == other.get() & 0xff
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Enough to tell two lives apart in a log.
        write!(f, "{:08x}", self.get() & 0xffff_ffff)
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The number of a version of the arbiter's record; every change makes it one greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation after this one.
    #[must_use]
    pub fn next(self) -> Generation {
        Generation(self.0.saturating_add(1))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A term: the time from one `running` that starts a runner to the next. Its name is the
/// generation of that `running`, so no two terms share one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term(pub Generation);

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The stretch of execution between two checkpoints, numbered from 1 within a term. 0 stands for
/// "none yet".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch after this one.
    #[must_use]
    pub fn next(self) -> Epoch {
        Epoch(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One stream from a runner to one backup, from its first full copy on. A replica is worth only
/// what the session that filled it is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId {
    /// The incarnation that sends.
    pub runner: Incarnation,
    /// Counts that incarnation's sessions from 1.
    pub number: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_well() {
        let machine = MachineId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        assert_eq!(machine.to_string(), "01234567-89ab-cdef-0123-456789abcdef");
        assert_eq!(Incarnation::new(0), None);
        assert_eq!(
            Incarnation::new(0xab).map(|i| i.to_string()).as_deref(),
            Some("000000ab")
        );
    }
}
