//! What goes wrong, and when: chosen by the seed before the run begins.

use super::network::{ARBITER, PATHS};
use super::random::Random;
use super::{HOSTS, MS};

/// One fault. Durations are in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The operator changes the mode in every host's file, one after the other.
    Mode { unheld: bool },
    /// The operator asks for a switchover on the host that runs the machine, or on this one.
    Switchover { host: usize },
    /// A host's uplink is gone.
    Uplink { host: usize, lasts: u64 },
    /// A host loses power and what its disk had not synced.
    PowerOff { host: usize, returns: u64 },
    /// A process is killed.
    Kill { host: usize, returns: u64 },
    /// A whole host stands still.
    Hang { host: usize, lasts: u64 },
    /// A process runs but does not read its sockets.
    Backlog { host: usize, lasts: u64 },
    /// Only the loop that runs epochs, or receives them, is stuck.
    Stuck { host: usize, lasts: u64 },
    /// One direction of one path is cut.
    Cut {
        path: usize,
        from: usize,
        to: usize,
        lasts: u64,
    },
    /// Both directions of all paths between two ends are cut.
    Split { a: usize, b: usize, lasts: u64 },
    /// A host is cut off from everybody.
    Isolate { host: usize, lasts: u64 },
    /// One direction is slow on all paths.
    Slow {
        from: usize,
        to: usize,
        slow: u64,
        lasts: u64,
    },
    /// Everything loses and doubles packets and reorders them.
    Lossy { lasts: u64 },
    /// All connections of a host are reset.
    Reset { host: usize },
    /// The arbiter is killed.
    ArbiterDown { returns: u64 },
    /// The arbiter's disk is full.
    ArbiterFull { lasts: u64 },
    /// A host's disk refuses sidecars.
    SidecarFull { host: usize, lasts: u64 },
    /// A backup finds its replica broken.
    ReplicaLost { host: usize },
    /// All other hosts lose power, and the operator promotes this one.
    Abandon { host: usize, returns: u64 },
    /// The next machines loaded on a host fail.
    LoadFails { host: usize, lasts: u64 },
}

impl Fault {
    pub(super) fn any(random: &mut Random) -> Fault {
        let host = random.index(HOSTS);
        let other = (host + 1 + random.index(HOSTS - 1)) % HOSTS;
        let end = if random.chance(40) { ARBITER } else { other };
        let (short, long) = (random.between(20, 200) * MS, random.between(50, 1500) * MS);
        match random.index(25) {
            0 => Fault::PowerOff {
                host,
                returns: long,
            },
            1 | 2 => Fault::Kill {
                host,
                returns: random.between(10, 700) * MS,
            },
            3 => Fault::Hang { host, lasts: short },
            4 => Fault::Hang { host, lasts: long },
            5 => Fault::Backlog { host, lasts: short },
            6 => Fault::Stuck { host, lasts: long },
            7 => Fault::Cut {
                path: random.index(PATHS),
                from: host,
                to: other,
                lasts: long,
            },
            8 => Fault::Cut {
                path: 1,
                from: host,
                to: ARBITER,
                lasts: long,
            },
            9 => Fault::Cut {
                path: 1,
                from: ARBITER,
                to: host,
                lasts: long,
            },
            10 => Fault::Split {
                a: host,
                b: end,
                lasts: short,
            },
            11 => Fault::Split {
                a: host,
                b: end,
                lasts: long,
            },
            12 => Fault::Isolate {
                host,
                lasts: if random.chance(50) { short } else { long },
            },
            13 => Fault::Slow {
                from: host,
                to: end,
                slow: random.between(5, 150) * MS,
                lasts: long,
            },
            14 => Fault::Lossy { lasts: long },
            15 => Fault::Reset { host },
            16 => Fault::ArbiterDown { returns: short },
            17 => Fault::ArbiterFull { lasts: short },
            18 => match random.index(3) {
                0 => Fault::SidecarFull { host, lasts: short },
                _ => Fault::ReplicaLost { host },
            },
            19 if random.chance(40) => Fault::Abandon {
                host,
                returns: long + 300 * MS,
            },
            20..=22 => Fault::Switchover { host },
            23 => Fault::Uplink {
                host,
                lasts: if random.chance(30) { short } else { long },
            },
            _ => Fault::LoadFails { host, lasts: long },
        }
    }

    /// The faults of a run: mostly in groups, since what breaks a protocol is a second fault just
    /// after the first.
    pub(super) fn schedule(random: &mut Random, from: u64, to: u64) -> Vec<(u64, Fault)> {
        let mut faults = Vec::new();
        for _ in 0..random.between(1, 4) {
            let mut at = random.between(from, to);
            if random.chance(40) {
                // The fault comes in the middle of it.
                let host = random.index(HOSTS);
                faults.push((at, Fault::Switchover { host }));
                at = (at + random.between(0, 40) * MS).min(to);
            }
            for _ in 0..random.between(1, 5) {
                faults.push((at, Fault::any(random)));
                at = (at + random.between(0, 150) * MS).min(to);
            }
        }
        faults
    }
}
