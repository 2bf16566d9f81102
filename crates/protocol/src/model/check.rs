//! Invariant 3, against what really happened.

use crate::host::Source;
use crate::id::Term;
use crate::record::{Phase, Record};

use super::world::{Life, World};

/// What broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Broken {
    /// Output of two histories left.
    TwoHistories,
    /// A term began without all that had left before.
    Lost,
    /// A machine started from part of a state.
    NotWhole,
    /// Two terms of one number.
    TwoStarts,
    /// A host was put to `running` that holds nothing it could start from.
    CannotStart,
    /// The newest state was dropped although nobody else had been put to `running`.
    Dropped,
    /// A claim took a live host with whole state out of the record.
    Forgotten,
    /// A host asked the arbiter for what no rule allows.
    Refused,
}

fn begins(life: &Life, with: &Life) -> bool {
    life.starts_with(with)
}

impl World {
    pub(super) fn broke(&mut self, broken: Broken) {
        self.broke.get_or_insert(broken);
    }

    /// A term begins. Says from what.
    pub(super) fn check_start(&mut self, host: usize, source: Source, term: Term) -> Option<Life> {
        if term <= self.newest {
            self.broke(Broken::TwoStarts);
        }
        self.newest = self.newest.max(term);
        let computer = &self.computers[host];
        let process = computer.process.as_ref()?;
        let from = match source {
            Source::Cold => Some((&computer.image, !computer.mixed)),
            Source::Replica { .. } => process.replica.as_ref().map(|r| (&r.life, r.whole)),
            Source::Paused => process.guest.as_ref().map(|g| (&g.life, true)),
        };
        let loaded = process.loaded || source == Source::Paused;
        let Some((life, whole)) = from.map(|(life, whole)| (life.clone(), whole)) else {
            self.broke(Broken::CannotStart);
            return None;
        };
        if !whole {
            self.broke(Broken::NotWhole);
        } else if !loaded {
            self.broke(Broken::CannotStart);
        } else if !begins(&life, &self.released) {
            self.broke(Broken::Lost);
        }
        Some(life)
    }

    /// A process drops what it has.
    pub(super) fn check_drop(&mut self, host: usize) {
        let Some(process) = self.process(host) else {
            return;
        };
        let newest = match (&process.guest, &process.replica) {
            (Some(guest), _) => guest.term >= self.decided,
            (None, Some(replica)) => replica.whole && self.record.heir == Some(process.me),
            (None, None) => false,
        };
        if newest {
            self.broke(Broken::Dropped);
        }
    }

    /// The record is about to change.
    pub(super) fn check_record(&mut self, next: &Record) {
        let before = self.record;
        if next.phase == Phase::Running {
            if before.phase == Phase::Claimed {
                self.decided = Term(next.generation);
            }
            return;
        }
        let forgotten = self.computers.iter().any(|computer| {
            computer
                .process
                .as_ref()
                .is_some_and(|p| p.host.status().whole && before.names(p.me) && !next.names(p.me))
        });
        if forgotten {
            self.broke(Broken::Forgotten);
        }
    }

    /// Whatever may leave leaves: the worst that can happen, since all that comes later has to
    /// contain it.
    pub(super) fn release(&mut self, host: usize) {
        let Some(process) = self.process(host) else {
            return;
        };
        let Some(guest) = &process.guest else { return };
        let permit = process.host.permit();
        let older = guest.life.len() - guest.epochs.len();
        let epoch = |at: usize| at.checked_sub(older).map_or(1, |at| guest.epochs[at]);
        let allowed = |at: &usize| {
            let epoch = crate::id::Epoch(u64::from(epoch(*at)));
            permit.allows(process.now, epoch, false)
        };
        let count = (0..guest.life.len()).take_while(allowed).count();
        let left = guest.life[..count].to_vec();
        if begins(&left, &self.released) {
            self.released = left;
        } else if !begins(&self.released, &left) {
            self.broke(Broken::TwoHistories);
        }
    }
}
