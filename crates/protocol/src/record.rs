//! The arbiter's record of who may run a machine, and the changes that may be asked of it.
//!
//! Every change is a compare-and-set on the generation and increments it (DESIGN, "Who may run").
//!
//! ```text
//!              name heir / let go
//!                 ┌──────┐
//!                 ▼      │
//!             ┌──────────┴┐   claim (runner, heir or cold)   ┌───────────┐──┐ claim again,
//!  create ──▶ │  running  │ ───────────────────────────────▶ │  claimed  │  │ hand back
//!     │       └───────────┘ ◀─────────────────────────────── └───────────┘◀─┘
//!     │                       the winner: running, heir none       ▲
//!     └──────────────── (a new record is claimed by nobody alive) ─┘
//! ```

use thiserror::Error;

use crate::guards::Guards;
use crate::id::{Generation, Incarnation, MachineId};

/// Whether the runner has started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// The runner has won the record but may not run one instruction yet.
    Claimed,
    /// The runner runs, or may at any moment.
    Running,
}

/// Who may run one machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Record {
    /// The machine.
    pub machine: MachineId,
    /// The version of this record.
    pub generation: Generation,
    /// The incarnation that runs the machine, or has claimed it.
    pub runner: Incarnation,
    /// The one other incarnation that may claim it.
    pub heir: Option<Incarnation>,
    /// Whether the runner has started.
    pub phase: Phase,
}

/// A compare-and-set: what the record is to become if its generation is still `expected`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Change {
    /// The generation that the sender saw.
    pub expected: Generation,
    /// The new runner.
    pub runner: Incarnation,
    /// The new heir.
    pub heir: Option<Incarnation>,
    /// The new phase.
    pub phase: Phase,
}

/// On what ground a change is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Right {
    /// The sender is the record's runner or heir.
    Named,
    /// The sender holds a disk that was valid under these incarnations (DESIGN, "Cold start").
    Cold(Vec<Incarnation>),
    /// The operator said `promote --accept-loss`.
    Operator,
}

/// Why the arbiter did not apply a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error, Hash)]
pub enum Refusal {
    /// There is no record of the machine.
    #[error("the arbiter has no record of this machine; `romulus create` makes one")]
    Absent,
    /// There is a record already.
    #[error("the arbiter already has a record of this machine")]
    Exists,
    /// The record has another generation than the change expected.
    #[error("the record has changed since it was read")]
    Generation,
    /// The sender is neither runner nor heir, nor is its disk one of theirs.
    #[error("the sender is neither the record's runner nor its heir, and holds no disk of theirs")]
    NotNamed,
    /// No rule gives the sender this change.
    #[error("no rule allows this change of the record")]
    Shape,
    /// The arbiter could not make the change durable.
    #[error("the arbiter could not store the change; look at its disk")]
    NotStored,
    /// The arbiter has too many requests of this machine waiting.
    #[error("the arbiter is busy with this machine; ask again")]
    Busy,
    /// What the arbiter holds of the machine is no record, so that it knows nothing: not that
    /// there is none, either.
    #[error(
        "the arbiter cannot read its record of this machine; its log says what is wrong, and where"
    )]
    Damaged,
}

impl Record {
    /// The record of a new machine: claimed by `creator`, an incarnation that never lives. The
    /// first host starts it by a cold claim, since its new sidecar lists the creator.
    pub fn new(machine: MachineId, creator: Incarnation) -> Record {
        Record {
            machine,
            generation: Generation(1),
            runner: creator,
            heir: None,
            phase: Phase::Claimed,
        }
    }

    /// Whether nobody has claimed the machine since it was created: it has not run anywhere.
    pub fn is_new(&self) -> bool {
        self.generation == Generation(1)
    }

    /// The record after `change`.
    ///
    /// # Errors
    /// Says which rule refused it; the record is then unchanged.
    pub fn change(
        &self,
        from: Incarnation,
        right: &Right,
        change: &Change,
        guards: Guards,
    ) -> Result<Record, Refusal> {
        use crate::guards::Guard;
        if change.expected != self.generation && guards.on(Guard::ArbiterCompares) {
            return Err(Refusal::Generation);
        }
        if guards.complete() {
            self.check(from, right, change)?;
        }
        Ok(Record {
            machine: self.machine,
            generation: self.generation.next(),
            runner: change.runner,
            heir: change.heir,
            phase: change.phase,
        })
    }

    /// Whether the record names `incarnation`.
    pub fn names(&self, incarnation: Incarnation) -> bool {
        self.runner == incarnation || self.heir == Some(incarnation)
    }

    fn check(&self, from: Incarnation, right: &Right, change: &Change) -> Result<(), Refusal> {
        if change.heir == Some(change.runner) {
            return Err(Refusal::Shape);
        }
        let claims = change.phase == Phase::Claimed && change.runner == from;
        match right {
            Right::Operator if claims => return Ok(()),
            Right::Operator => return Err(Refusal::Shape),
            Right::Cold(valid) => {
                if !valid.iter().any(|&i| self.names(i)) {
                    return Err(Refusal::NotNamed);
                }
                // The disk's owner leaves in the record the one that it names on another host.
                return if claims && change.heir.is_none_or(|h| self.names(h)) {
                    Ok(())
                } else {
                    Err(Refusal::Shape)
                };
            }
            Right::Named if !self.names(from) => return Err(Refusal::NotNamed),
            Right::Named => {}
        }
        let allowed = match (self.phase, change.phase) {
            // Naming an heir or letting it go; or the second step of a claim, which clears it.
            (phase, Phase::Running) => {
                self.runner == from
                    && change.runner == from
                    && (phase == Phase::Running || change.heir.is_none())
            }
            // A claim leaves the other side as heir.
            (_, Phase::Claimed) if change.runner == from => {
                let other = if self.runner == from {
                    self.heir
                } else {
                    Some(self.runner)
                };
                change.heir == other
            }
            // A winner that cannot start hands the record back.
            (Phase::Claimed, Phase::Claimed) => {
                self.runner == from && Some(change.runner) == self.heir && change.heir == Some(from)
            }
            (Phase::Running, Phase::Claimed) => false,
        };
        if allowed { Ok(()) } else { Err(Refusal::Shape) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn incarnation(n: u128) -> Incarnation {
        Incarnation::new(n).expect("not zero")
    }

    fn running() -> Record {
        Record {
            machine: MachineId(7),
            generation: Generation(4),
            runner: incarnation(1),
            heir: Some(incarnation(2)),
            phase: Phase::Running,
        }
    }

    fn ask(
        record: &Record,
        from: u128,
        right: &Right,
        new: (u128, Option<u128>, Phase),
    ) -> Result<Record, Refusal> {
        let change = Change {
            expected: record.generation,
            runner: incarnation(new.0),
            heir: new.1.map(incarnation),
            phase: new.2,
        };
        record.change(incarnation(from), right, &change, Guards::default())
    }

    #[test]
    fn a_change_increments_the_generation_and_needs_the_one_before() {
        let record = running();
        let next =
            ask(&record, 2, &Right::Named, (2, Some(1), Phase::Claimed)).expect("the heir claims");
        assert_eq!(next.generation, Generation(5));
        let late = Change {
            expected: Generation(4),
            runner: incarnation(1),
            heir: None,
            phase: Phase::Running,
        };
        assert_eq!(
            next.change(incarnation(1), &Right::Named, &late, Guards::default()),
            Err(Refusal::Generation)
        );
    }

    #[test]
    fn only_the_named_and_the_matching_may_change_it() {
        let record = running();
        assert_eq!(
            ask(&record, 3, &Right::Named, (3, Some(1), Phase::Claimed)),
            Err(Refusal::NotNamed)
        );
        let stale = Right::Cold(vec![incarnation(8)]);
        assert_eq!(
            ask(&record, 3, &stale, (3, Some(2), Phase::Claimed)),
            Err(Refusal::NotNamed)
        );
        let own = Right::Cold(vec![incarnation(1), incarnation(3)]);
        assert!(ask(&record, 3, &own, (3, Some(2), Phase::Claimed)).is_ok());
        assert!(ask(&record, 3, &Right::Operator, (3, None, Phase::Claimed)).is_ok());
    }

    #[test]
    fn no_claim_runs_in_one_step_and_running_clears_the_heir() {
        let record = running();
        assert_eq!(
            ask(&record, 2, &Right::Named, (2, Some(1), Phase::Running)),
            Err(Refusal::Shape)
        );
        assert_eq!(
            ask(&record, 2, &Right::Named, (2, None, Phase::Claimed)),
            Err(Refusal::Shape)
        );
        let claimed =
            ask(&record, 2, &Right::Named, (2, Some(1), Phase::Claimed)).expect("a claim");
        assert_eq!(
            ask(&claimed, 2, &Right::Named, (2, Some(1), Phase::Running)),
            Err(Refusal::Shape)
        );
        assert!(ask(&claimed, 2, &Right::Named, (2, None, Phase::Running)).is_ok());
        assert!(
            ask(&claimed, 2, &Right::Named, (1, Some(2), Phase::Claimed)).is_ok(),
            "hand back"
        );
        assert!(
            ask(&claimed, 1, &Right::Named, (1, Some(2), Phase::Claimed)).is_ok(),
            "stale claim"
        );
    }
}
