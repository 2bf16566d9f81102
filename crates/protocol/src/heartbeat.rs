//! What a heartbeat says.

use crate::id::{Generation, Incarnation, MachineId};
use crate::time::Time;

/// What its sender is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activity {
    /// It holds no replica and runs nothing.
    Waiting,
    /// It runs the machine.
    Primary,
    /// It holds a replica, or is being filled.
    Backup,
    /// It claims, or has seen the other side's claim.
    Frozen,
}

/// How many of a host's uplinks carry the machine's service: what connects its bridge to the
/// world. A host that watches none says `0 of 0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Uplink {
    /// How many of them have a carrier.
    pub up: u8,
    /// How many there are.
    pub of: u8,
}

impl Uplink {
    /// Whether any is watched.
    pub fn is_watched(self) -> bool {
        self.of > 0
    }

    /// How many are gone.
    pub fn missing(self) -> u8 {
        self.of.saturating_sub(self.up)
    }
}

/// "I had this of you": the newest send time of a partner's heartbeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Echo {
    /// Whose heartbeat.
    pub of: Incarnation,
    /// The time that it carried, on its sender's clock.
    pub sent: Time,
}

/// The most echoes in one heartbeat: more partners than a machine ever has.
pub const ECHOES_MAX: usize = 4;

/// One heartbeat. The same one goes to every partner over every path (DESIGN, "Detection").
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Heartbeat {
    /// The machine.
    pub machine: MachineId,
    /// The sender.
    pub from: Incarnation,
    /// When it was sent, on the sender's clock; comes back in an [`Echo`].
    pub sent: Time,
    /// Whether the sender's epoch loop moves.
    pub moves: bool,
    /// What the sender is doing.
    pub activity: Activity,
    /// Whether it holds whole state: a machine that ran, or a whole replica.
    pub whole: bool,
    /// The sender's uplinks.
    pub uplink: Uplink,
    /// The record's generation as far as the sender knows.
    pub generation: Generation,
    /// What the sender vouches for, at most [`ECHOES_MAX`]. A frozen sender vouches for nobody.
    pub echoes: Vec<Echo>,
}
