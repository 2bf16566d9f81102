//! What goes into a host and what comes out.

use std::time::Duration;

use crate::arbiter::{Answer, Request};
use crate::detector::Noise;
use crate::heartbeat::{Heartbeat, Uplink};
use crate::id::{Epoch, Incarnation, MachineId, SessionId, Term};
use crate::lanes::Lane;
use crate::message::Message;
use crate::record::{Record, Refusal};
use crate::sidecar::Sidecar;
use crate::time::Time;
use crate::timing::Timing;

use super::Permit;

/// What does not change in a process's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// The machine.
    pub machine: MachineId,
    /// Whether some output is not held (`split` and `no-net`), at the process's start.
    pub unheld: bool,
    /// Whether the machine file prefers this host for a new machine: the other waits longer
    /// before it claims from cold.
    pub preferred: bool,
    /// The time-outs.
    pub timing: Timing,
}

/// What a host is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The heartbeat thread runs. `drained`: every socket was read until it was empty.
    Tick {
        /// Whether nothing that has arrived is still unread.
        drained: bool,
    },
    /// The epoch loop (on a backup: the loop that receives) went round.
    LoopTurned,
    /// An authentic heartbeat.
    Heartbeat {
        /// What it says.
        beat: Heartbeat,
        /// The way that it came.
        lane: Lane,
        /// When it arrived, which may be before it is read. Never earlier than it did: the lease
        /// that it renews begins then.
        arrived: Time,
    },
    /// An authentic answer of the arbiter arrived.
    Arbiter(Answer),
    /// There is a link to this incarnation, both ends authenticated, their [`Message::Hello`]s
    /// compared. A second one replaces the first.
    Connected(Incarnation),
    /// The link is closed.
    Closed(Incarnation),
    /// A message arrived on the link. A checkpoint only when it is whole, verified, and durable
    /// as far as it contains a guest's flush.
    Message {
        /// The link's other end.
        from: Incarnation,
        /// The message.
        message: Message,
    },
    /// The running epoch ended ([`super::Host::may_seal`] allowed it), and the next began.
    Sealed(Sealed),
    /// The outcome of [`Action::Try`].
    Tried {
        /// The session whose replica was loaded.
        session: SessionId,
        /// Whether it could be.
        loaded: bool,
    },
    /// The replica, or the disk that belongs to it, turned out broken.
    ReplicaLost,
    /// The outcome of [`Action::StoreSidecar`].
    SidecarStored(bool),
    /// The outcome of [`Action::Load`].
    Loaded(bool),
    /// The guest was powered off, or the operator said stop: release what can be, end for good.
    Stop,
    /// The operator said `promote --accept-loss`.
    Promote,
    /// The operator said `switchover`.
    Switchover,
    /// The edge has looked at this host's uplinks. To be told at the start and at every change.
    Uplink(Uplink),
    /// The machine is to have another mode: whether some output is not held. The engine closes its links, so that no session
    /// goes on in the old one, and opens none before [`Action::Mode`] says that it has the new one.
    Mode {
        /// As [`Config::unheld`].
        unheld: bool,
    },
}

/// What the engine knows of an epoch that has just ended. See [`crate::message::Checkpoint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The term in which it was ended. While the guest stood, another may have begun.
    pub term: Term,
    /// The session for which it was ended. The host may have another by now, to which this epoch is
    /// not owed.
    pub session: SessionId,
    /// Whether the session's full copy is contained in all that was sent with this epoch.
    pub complete: bool,
    /// All output of epochs up to this one has really left: a commit alone does not say so, since
    /// the permit may have ended before. Held output that is older than the term counts as epoch
    /// 1's.
    pub released_through: Epoch,
    /// The number of the first frame from the tap that the guest had not taken.
    pub rx_next: u64,
    /// The guest rests since, as [`Action::Rest`] wanted: the next epoch has no instruction yet.
    pub rests: bool,
}

/// From what a machine starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// From its disk, like a computer that is switched on.
    Cold,
    /// From the newest commit of the replica.
    Replica {
        /// The term of that commit.
        term: Term,
        /// Its epoch.
        epoch: Epoch,
        /// Held output of later epochs is sent again before any new output.
        released_through: Epoch,
    },
    /// From where it was paused in this process.
    Paused,
}

/// What a host wants done, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send to the arbiter.
    Arbiter(Request),
    /// Send to every partner over every path, at once, never behind bulk data.
    Heartbeat(Heartbeat),
    /// The mode that [`Event::Mode`] wanted is in force: whether some output is not held.
    Mode {
        /// As [`Config::unheld`].
        unheld: bool,
    },
    /// Send on the link to this incarnation; if there is none, drop it.
    Send {
        /// The link's other end.
        to: Incarnation,
        /// The message.
        message: Message,
    },
    /// Close the link to this incarnation: its path carries nothing any more. [`Event::Closed`]
    /// follows.
    CloseLink(Incarnation),
    /// What may leave from now on.
    Permit(Permit),
    /// Begin the full copy of this session, and end epochs from now on.
    Copy(SessionId),
    /// That session is over: epochs need not end any more.
    EndCopy(SessionId),
    /// Pause the guest; apply no more checkpoints. Everything is kept.
    Freeze,
    /// For a switchover: end the running epoch as soon as [`super::Host::may_seal`] allows it, let
    /// the guest rest from there on, and say so with [`Sealed::rests`].
    Rest,
    /// The guest goes on, in the same term: it need not rest any more. (Only a weakened protocol
    /// takes a freeze back.)
    Thaw,
    /// Load the state into the prepared machine, and say [`Event::Loaded`]. Nothing runs yet.
    /// Whatever checkpoint was reported is to be applied first.
    Load(Source),
    /// Run: tap open, announce, first instruction. The record says `running`.
    Run {
        /// From what.
        source: Source,
        /// The new term.
        term: Term,
    },
    /// Drop machine, replica and unsent output.
    Discard,
    /// Drop what was held and prepare to be filled.
    Prepare(SessionId),
    /// The checkpoint that was just reported is accepted: the replica is now of this epoch.
    Apply {
        /// Its session.
        session: SessionId,
        /// The epoch.
        epoch: Epoch,
    },
    /// Load the replica on trial, and say [`Event::Tried`].
    Try(SessionId),
    /// Make this sidecar durable, and say [`Event::SidecarStored`].
    StoreSidecar(Sidecar),
    /// For log and metrics.
    Notice(Notice),
    /// The process is to end, with success: the guest was stopped on purpose.
    End,
}

/// What people and metrics are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Notice {
    /// The machine runs here.
    Running {
        /// The term that begins.
        term: Term,
    },
    /// The machine is protected from now on, or no longer.
    Protected(bool),
    /// `T_b` adapted to this host.
    Adapted {
        /// The new `T_b`.
        t_b: Duration,
        /// The delay from which it follows.
        noise: Option<Noise>,
    },
    /// The arbiter answers again, or no longer: nobody could run on alone.
    Arbiter {
        /// Whether it answers.
        answers: bool,
    },
    /// The arbiter refused a request.
    Refused(Refusal),
    /// The arbiter knows no record, or an older one than it once gave: it has lost state.
    RecordLost {
        /// What it gave.
        record: Option<Record>,
    },
    /// This host freezes and claims the record.
    Claims {
        /// How long the other side has been silent, as far as that can be said.
        silence: Option<Duration>,
        /// `T_b` as it is.
        t_b: Duration,
    },
    /// The runner begins to hand the machine over to the other host.
    SwitchesOver(Switch),
    /// A switchover that was asked for, or begun, came to nothing: the machine stays where it is.
    Stays(Stays),
    /// The link's path carries nothing any more, though the other host lives: it is given up.
    LinkDead,
    /// The replica cannot be used.
    ReplicaBroken,
    /// There is nothing whole here to promote, or the arbiter was never reached.
    CannotPromote,
}

/// Why a machine is switched over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Switch {
    /// The operator asked for it.
    Operator,
    /// This host's uplink is gone, and there on the other side.
    Uplink,
}

/// Why a machine stays where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Stays {
    /// It does not run here.
    #[error("the machine does not run on this host now; ask on the host that runs it")]
    NotHere,
    /// The other host could not go on from where it is.
    #[error(
        "the machine is not protected now: the other host has no whole replica that it could go on from"
    )]
    NotProtected,
    /// It is being stopped.
    #[error("the machine is being stopped")]
    Ends,
    /// The last epoch was not committed in time, or the session ended.
    #[error("the other host did not take the last checkpoint in time; the machine runs on here")]
    NoCommit,
    /// The other host did not start it.
    #[error("the other host did not start the machine; it runs on here")]
    NotTaken,
}

/// A role's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RoleName {
    /// Holds nothing, runs nothing.
    Waiting,
    /// Holds a replica or is being filled.
    Backup,
    /// Claims, or has seen the other side's claim.
    Frozen,
    /// Runs the machine.
    Primary,
    /// Stopped on purpose.
    Ended,
}

/// What `romulus status` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// The role.
    pub role: RoleName,
    /// The term of what runs or is held.
    pub term: Option<Term>,
    /// The running epoch of a primary, the newest received one of a backup.
    pub epoch: Epoch,
    /// Sealed epochs that are not committed.
    pub lag: u64,
    /// Whether it holds whole state that it could run from.
    pub whole: bool,
    /// The record as far as it is known.
    pub record: Option<Record>,
    /// On a primary: since when the machine is protected; nothing while it is not.
    pub protected_since: Option<crate::time::Time>,
    /// `T_b` as it is now.
    pub t_b: Duration,
    /// Whether the arbiter answers.
    pub arbiter_answers: bool,
    /// This host's uplinks.
    pub uplink: Uplink,
    /// The other host's, as far as it has told: the heir's on the runner, else the runner's.
    pub partner_uplink: Option<Uplink>,
}
