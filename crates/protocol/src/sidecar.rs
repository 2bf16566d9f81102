//! The durable note beside each disk: under whom was this disk valid?
//!
//! DESIGN, "Cold start": it lets a host that lost its memory start from its disk, and only from a
//! disk that nothing newer replaced.

use crate::id::{Incarnation, MachineId};
use crate::record::Record;

/// Whether the disk can be started from at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskState {
    /// It is one consistent state.
    InSync,
    /// A resync writes to it: part old, part new. Set before the first resync block.
    Resyncing,
}

/// The sidecar. Reading never changes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sidecar {
    /// The machine whose disk it is.
    pub machine: MachineId,
    /// Whether the disk is whole.
    pub state: DiskState,
    /// The incarnations under which this disk was valid.
    pub valid: Vec<Incarnation>,
}

impl Sidecar {
    /// The sidecar of a disk that is `incarnation`'s and nobody else's: a new machine's, a
    /// finished resync's or a start's.
    pub fn of(machine: MachineId, incarnation: Incarnation) -> Sidecar {
        Sidecar {
            machine,
            state: DiskState::InSync,
            valid: vec![incarnation],
        }
    }

    /// The sidecar of a disk that never held this machine.
    pub fn empty(machine: MachineId) -> Sidecar {
        Sidecar {
            machine,
            state: DiskState::Resyncing,
            valid: Vec::new(),
        }
    }

    /// Whether a host with this disk may claim `record` from cold.
    pub fn matches(&self, record: &Record) -> bool {
        self.machine == record.machine
            && self.state == DiskState::InSync
            && self.valid.iter().any(|&i| record.names(i))
    }

    /// The same disk, also valid under `incarnation`.
    #[must_use]
    pub fn with(&self, incarnation: Incarnation) -> Sidecar {
        let mut sidecar = self.clone();
        if !sidecar.valid.contains(&incarnation) {
            sidecar.valid.push(incarnation);
        }
        sidecar
    }

    /// The same disk while a resync writes to it.
    #[must_use]
    pub fn resyncing(&self) -> Sidecar {
        Sidecar {
            state: DiskState::Resyncing,
            ..self.clone()
        }
    }
}
