//! Two paths between any two hosts, and one from each host to the arbiter: they delay, drop,
//! duplicate, reorder and cut, each direction by itself. Connections deliver in order, stall while
//! their path is cut, and die.

use std::collections::VecDeque;

use crate::id::Incarnation;

use super::engine::Parcel;
use super::random::Random;
use super::{HOSTS, MS};

/// The arbiter's place among the ends of the paths.
pub(super) const ARBITER: usize = HOSTS;
pub(super) const PATHS: usize = 2;

/// One direction of one path.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Direction {
    pub(super) cut_until: u64,
    pub(super) slow_until: u64,
    /// The longest extra delay while it is slow, in nanoseconds.
    pub(super) slow: u64,
    pub(super) lossy_until: u64,
}

impl Direction {
    pub(super) fn is_cut(&self, now: u64) -> bool {
        now < self.cut_until
    }

    fn delay(&self, now: u64, random: &mut Random) -> u64 {
        let usual = random.between(MS / 10, 2 * MS);
        if now < self.slow_until {
            usual + random.between(self.slow / 2, self.slow)
        } else {
            usual
        }
    }
}

/// All paths.
#[derive(Debug)]
pub(super) struct Network {
    /// `[path][from][to]`; the arbiter is reached over path 1.
    pub(super) paths: [[[Direction; HOSTS + 1]; HOSTS + 1]; PATHS],
}

impl Network {
    pub(super) fn new() -> Network {
        Network {
            paths: [[[Direction::default(); HOSTS + 1]; HOSTS + 1]; PATHS],
        }
    }

    /// When the copies of a datagram arrive: none, one or two.
    pub(super) fn datagram(
        &self,
        now: u64,
        path: usize,
        from: usize,
        to: usize,
        random: &mut Random,
    ) -> [Option<u64>; 2] {
        let direction = &self.paths[path][from][to];
        if direction.is_cut(now) {
            return [None, None];
        }
        let lossy = now < direction.lossy_until;
        if random.chance(if lossy { 40 } else { 0 }) {
            return [None, None];
        }
        let first = now + direction.delay(now, random);
        let twice = random.chance(if lossy { 20 } else { 1 });
        let second = twice.then(|| now + direction.delay(now, random) * 3);
        [Some(first), second]
    }

    pub(super) fn delay(&self, now: u64, from: usize, to: usize, random: &mut Random) -> u64 {
        self.paths[0][from][to].delay(now, random)
    }
}

/// One direction of a connection.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) number: u64,
    pub(super) from: usize,
    pub(super) to: usize,
    /// The incarnations at its ends: a process that came back does not inherit it.
    pub(super) sender: Incarnation,
    pub(super) receiver: Incarnation,
    pub(super) queue: VecDeque<(u64, Parcel)>,
    pub(super) pumping: bool,
    /// Whether what was sent before it closed may still be delivered after.
    pub(super) straggles: bool,
    /// How much later than it arrived it is then looked at: the thread that read it was kept from
    /// running.
    pub(super) lingers: u64,
}

/// A connection as one of its ends sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub(super) number: u64,
    pub(super) peer: Incarnation,
}
