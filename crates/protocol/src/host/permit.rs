//! What may leave the host, in a form that a thread can check right before each frame.

use crate::guards::Guard;
use crate::id::Epoch;
use crate::time::Time;

use super::{Host, Role};

/// Which output may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// None.
    Nothing,
    /// Held output of committed epochs.
    Committed,
    /// That, and what is not held at all.
    CommittedAndUnheld,
    /// All: the machine runs alone.
    All,
}

/// The rule of the moment. Small and `Copy`: publish it to the thread that writes to the tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Permit {
    /// Which output may leave.
    pub pass: Pass,
    /// Held output may leave if its epoch is at most this one.
    pub through: Epoch,
    /// And only before this time: `T_p` after our newest send time that the heir echoed.
    pub until: Option<Time>,
}

impl Permit {
    /// Nothing may leave.
    pub const fn nothing() -> Permit {
        Permit {
            pass: Pass::Nothing,
            through: Epoch(0),
            until: None,
        }
    }

    /// Whether output that `epoch` produced may leave at `now`. `unheld` is what the mode's rules
    /// say of it.
    pub fn allows(&self, now: Time, epoch: Epoch, unheld: bool) -> bool {
        let in_time = self.until.is_none_or(|until| now < until);
        in_time
            && match self.pass {
                Pass::Nothing => false,
                Pass::All => true,
                Pass::Committed => !unheld && epoch <= self.through,
                Pass::CommittedAndUnheld => unheld || epoch <= self.through,
            }
    }
}

impl Host {
    pub(super) fn current_permit(&self) -> Permit {
        let primary = match &self.role {
            Role::Primary(primary) => primary,
            Role::Frozen(frozen) if !self.guards.on(Guard::Freeze) => match frozen.machine() {
                Some(primary) => primary,
                None => return Permit::nothing(),
            },
            _ => return Permit::nothing(),
        };
        if self.is_alone(primary) {
            return Permit {
                pass: Pass::All,
                through: primary.running,
                until: None,
            };
        }
        let through = if self.guards.on(Guard::OutputCommit) {
            primary.committed()
        } else {
            primary.running
        };
        // Held on the word of the heir, or of the one that a request in flight may make heir.
        let heir = self.seat.possible_heir();
        let until = match heir {
            Some(heir) if self.guards.on(Guard::StopAtTp) => {
                Some(self.detector.pass_until(heir).unwrap_or(Time(0)))
            }
            _ => None,
        };
        // While a naming is under way all output is held, the unheld too.
        let named = self.seat.view().is_some_and(|r| r.heir.is_some());
        let pass = if named {
            Pass::CommittedAndUnheld
        } else {
            Pass::Committed
        };
        Permit {
            pass,
            through,
            until,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_permit_says_what_its_name_says() {
        let at = |pass| Permit {
            pass,
            through: Epoch(3),
            until: Some(Time(100)),
        };
        let table = [
            (Pass::Nothing, [false, false, false]),
            (Pass::Committed, [true, false, false]),
            (Pass::CommittedAndUnheld, [true, false, true]),
            (Pass::All, [true, true, true]),
        ];
        for (pass, [committed, newer, unheld]) in table {
            assert_eq!(at(pass).allows(Time(99), Epoch(3), false), committed);
            assert_eq!(at(pass).allows(Time(99), Epoch(4), false), newer);
            assert_eq!(at(pass).allows(Time(99), Epoch(4), true), unheld);
            assert!(
                !at(pass).allows(Time(100), Epoch(3), false),
                "T_p has passed"
            );
        }
    }
}
