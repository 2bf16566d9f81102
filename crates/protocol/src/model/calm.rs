//! Invariant 6: when nothing fails any more, somebody runs.
//!
//! From each state one fair continuation is followed: what was sent arrives, both hear each other,
//! time passes. It must lead to a runner. (The `eventually` of the checker says nothing about
//! states that lie on a cycle, and almost all of these do.)

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Mutex;

use crate::host::RoleName;
use crate::record::Phase;

use super::world::World;

/// Rounds of one heartbeat each: several claims that each wait for their time-out.
const ROUNDS: u32 = 150;

/// How many messages may follow from one another without time passing.
const ANSWERS: u32 = 4;

/// States that are known to lead to a runner.
#[derive(Debug, Default)]
pub(super) struct Calm {
    runs: Mutex<HashSet<u64>>,
    protected: Mutex<HashSet<u64>>,
}

impl Calm {
    /// Whether somebody runs in the end: with the processes that live now, where one of them holds
    /// what invariant 6 asks for; and, protected, when all that died have come back.
    pub(super) fn somebody_runs(&self, world: &World) -> bool {
        let mut world = world.clone();
        world.faults = 0;
        // What the dead have asked for is lost: nobody asks for it again.
        let lives: Vec<_> = (0..2)
            .filter_map(|h| world.process(h).map(|p| p.me))
            .collect();
        world.requests.retain(|r| lives.contains(&r.from));
        for computer in &mut world.computers {
            if let Some(process) = &mut computer.process {
                process.broken = false;
            }
        }
        if world.could_run() && !lead(&self.runs, world.clone(), World::good) {
            return false;
        }
        for host in 0..2 {
            if world.process(host).is_none() {
                world.start(host);
            }
        }
        lead(&self.protected, world, World::good_and_protected)
    }
}

fn lead(known: &Mutex<HashSet<u64>>, mut world: World, good: fn(&World) -> bool) -> bool {
    let mut passed = Vec::new();
    for _ in 0..ROUNDS {
        world.normalise(false);
        let mut hasher = DefaultHasher::new();
        world.hash(&mut hasher);
        let mark = hasher.finish();
        let ends = good(&world) || known.lock().is_ok_and(|known| known.contains(&mark));
        passed.push(mark);
        if ends {
            if let Ok(mut known) = known.lock() {
                known.extend(passed);
            }
            return true;
        }
        world.round();
    }
    false
}

impl World {
    /// One host alive holds a whole, newest state, and the record names it.
    fn could_run(&self) -> bool {
        (0..2).any(|host| {
            let Some(process) = self.process(host) else {
                return false;
            };
            let whole = process.host.status().whole;
            let life = match (&process.guest, &process.replica) {
                (Some(guest), _) => &guest.life,
                (None, Some(replica)) => &replica.life,
                (None, None) => return false,
            };
            whole && life.starts_with(&self.released) && self.record.names(process.me)
        })
    }

    /// A host runs that the record names, and if it names an heir too, that one lives.
    fn good(&self) -> bool {
        self.record.phase == Phase::Running
            && (0..2).any(|host| {
                let Some(process) = self.process(host) else {
                    return false;
                };
                let other = self.process(1 - host).map(|p| p.me);
                process.me == self.record.runner
                    && process.host.status().role == RoleName::Primary
                    && process.host.status().record == Some(self.record)
                    && (self.record.heir.is_none() || self.record.heir == other)
            })
    }

    pub(super) fn good_and_protected(&self) -> bool {
        self.good()
            && (0..2).any(|host| {
                self.process(host)
                    .is_some_and(|p| p.host.status().protected_since.is_some())
            })
    }

    /// A heartbeat's time in which nothing fails.
    pub(super) fn round(&mut self) {
        self.meet(1);
        for host in 0..2 {
            if self.link.as_ref().is_some_and(|l| l.broken && l.open[host]) {
                self.closed(host);
            }
        }
        if self.link.is_none() {
            self.connect();
        }
        for host in 0..2 {
            self.late[host] = None;
            for _ in 0..ANSWERS {
                if !self.requests.is_empty() {
                    self.heard(0);
                }
            }
            if self.process(host).is_some() {
                self.read(host);
            }
            if self.may_seal(host) {
                self.seal(host);
            }
            for _ in 0..ANSWERS {
                self.deliver(1 - host);
                self.deliver(host);
            }
        }
    }
}
