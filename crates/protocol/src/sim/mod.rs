//! The deterministic simulator: two hosts and a spare, an arbiter, a bad network.
//!
//! A seed determines a run. First faults happen: paths that delay, drop, duplicate, reorder and
//! cut, each direction by itself; processes that hang, return, crash and restart with a new
//! incarnation; disks that forget what was not synced; clocks of different rates; an arbiter that
//! restarts and whose disk fills up. Then they stop: somebody must run, and be protected again.
//! Then an observer is disturbed, and nobody may be deposed for it. Last, the primary is lost for
//! good: its heir must run.
//!
//! At every step DESIGN's invariants 1 to 4 are checked against what really happened.

mod check;
mod court;
mod engine;
mod faults;
mod guest;
mod history;
mod links;
mod mishaps;
mod muted;
mod network;
mod orders;
mod perform;
mod random;
mod switching;
mod world;

use std::fmt;
use std::time::Duration;

use crate::guards::Guards;
use crate::host::Sealed;
use crate::timing::Timing;

use world::World;

/// Two hosts and a spare.
const HOSTS: usize = 3;
/// A millisecond in nanoseconds.
const MS: u64 = 1_000_000;

/// What a run broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Broken {
    /// Invariant 1: held output left before its commit.
    OutputCommit,
    /// Invariant 2: a machine started from part of a state.
    NotWhole,
    /// Invariant 3: output of two histories left, or a term began without all that had left.
    TwoHistories,
    /// Invariant 3, unheld output: a host passed it after another had started.
    TwoSenders,
    /// Invariant 3, unheld output: more was lost than two epochs produce.
    UnheldLoss,
    /// Held output was neither released nor sent again.
    LostInFlight,
    /// A host whose machine cannot be loaded was put to `running`.
    CannotStart,
    /// The newest state was dropped although nobody else had been put to `running`.
    Dropped,
    /// A claim took a live host with the newest state out of the record.
    Forgotten,
    /// Two starts in one term.
    TwoStarts,
    /// A cold boot although a live heir held the newest state.
    ColdBeatLive,
    /// More than one epoch uncommitted behind the running one.
    Unbounded,
    /// Invariant 4: it called itself protected and was not.
    FalseCover,
    /// Invariant 6: nobody runs.
    NobodyRuns,
    /// The machine runs but is never protected again.
    NeverProtected,
    /// The heir of a protected machine did not take over in time.
    NoTakeover,
    /// A guest that was stopped on purpose ran again.
    Resurrected,
    /// A host asked the arbiter for what no rule allows.
    Refused,
    /// A healthy runner or heir was claimed against.
    Needless,
    /// A switchover lost something that the guest had done.
    SwitchLost,
    /// A guest was stopped for a switchover although it was not protected.
    Uncovered,
    /// A switchover for which nothing was in the way did not come about.
    NoSwitchover,
    /// Output waited for a link that carried nothing, though the other host was heard.
    Stuck,
    /// The machine was switched over for an uplink without need, or too soon again.
    Flaps,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Broken::OutputCommit => "held output left before its commit",
            Broken::NotWhole => "started from part of a state",
            Broken::TwoHistories => "two histories",
            Broken::TwoSenders => "two hosts sent at once",
            Broken::UnheldLoss => "unheld output lost beyond bounds",
            Broken::LostInFlight => "held output lost in flight",
            Broken::CannotStart => "put to running where it cannot start",
            Broken::Dropped => "newest state dropped too early",
            Broken::Forgotten => "a live host with the newest state left out of the record",
            Broken::TwoStarts => "two starts in one term",
            Broken::ColdBeatLive => "a cold boot beat a live heir",
            Broken::Unbounded => "more than one epoch uncommitted",
            Broken::FalseCover => "called itself protected and was not",
            Broken::NobodyRuns => "nobody runs",
            Broken::NeverProtected => "never protected again",
            Broken::NoTakeover => "no takeover",
            Broken::Resurrected => "a stopped guest ran again",
            Broken::Refused => "asked for what no rule allows",
            Broken::Needless => "claimed against a healthy host",
            Broken::Stuck => "output waited for a dead link",
            Broken::SwitchLost => "a switchover lost something",
            Broken::Uncovered => "stopped for a switchover without cover",
            Broken::NoSwitchover => "no switchover",
            Broken::Flaps => "switched over for an uplink without need",
        })
    }
}

/// What a run showed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// The first thing that broke.
    pub broken: Option<Broken>,
    /// When, in nanoseconds from the beginning.
    pub at: u64,
    /// Events handled.
    pub steps: u64,
    /// Terms that began.
    pub terms: u64,
    /// Terms that began from a replica.
    pub takeovers: u64,
    /// Terms that began from a disk.
    pub boots: u64,
    /// Switchovers that were begun.
    pub switchovers: u64,
    /// Of these, the ones after which the machine ran elsewhere, with all that it had done.
    pub switched: u64,
}

/// Runs one seed.
///
/// `trace` is given a line for each thing worth telling.
pub fn run(seed: u64, guards: Guards, trace: Option<&mut dyn FnMut(String)>) -> Outcome {
    World::new(seed, guards, trace).run()
}

/// The time-outs of the simulation: shorter where only patience would be tested, and clocks so
/// different that a missing ρ shows. In every other four seeds `T_b` does not adapt: a longer wait
/// would hide what a shorter one shows.
fn timing(guards: Guards, seed: u64) -> Timing {
    use crate::guards::Guard;
    let ms = Duration::from_millis;
    let mut timing = Timing {
        heartbeat: ms(10),
        t_p: ms(75),
        t_a: ms(80),
        t_b: ms(100),
        t_b_max: ms(300),
        t_closed: ms(30),
        t_c: ms(500),
        t_cold: ms(600),
        stall: ms(40),
        retry: ms(40),
        poll: ms(200),
        t_uplink: ms(60),
        t_hold: ms(700),
        rho_ppm: 50_000,
    };
    if !guards.on(Guard::ClockRates) {
        timing.t_p = ms(120);
        timing.t_a = ms(120);
    }
    if seed / 4 % 2 == 1 {
        timing.t_b_max = timing.t_b;
    }
    timing
}

/// Things that happen.
#[derive(Clone, Debug)]
enum Happening {
    /// A process's timer.
    Tick { host: usize, life: u64 },
    /// A datagram reaches a host.
    Datagram {
        host: usize,
        life: u64,
        event: Box<crate::host::Event>,
    },
    /// An engine's answer reaches its state machine.
    Done {
        host: usize,
        life: u64,
        event: Box<crate::host::Event>,
    },
    /// A request reaches the arbiter.
    Request(Box<crate::arbiter::Request>),
    /// The arbiter's store is done.
    Stored {
        life: u64,
        record: Box<crate::record::Record>,
        ok: bool,
    },
    /// The guest does something.
    Operation {
        host: usize,
        life: u64,
        version: u64,
    },
    /// The epoch is over.
    EpochEnds {
        host: usize,
        life: u64,
        version: u64,
    },
    /// The pause is over with which it ends.
    Sealed {
        host: usize,
        life: u64,
        sealed: Sealed,
    },
    /// The thread that holds the machine looks for orders.
    Orders { host: usize, life: u64 },
    /// A connection delivers.
    Pump { stream: u64 },
    /// Two hosts try to connect.
    Connect { a: usize, b: usize },
    /// An end learns that its connection is closed.
    Closed { host: usize, life: u64, number: u64 },
    /// A fault begins.
    Fault(faults::Fault),
    /// The operator changes the mode on one host.
    Mode { host: usize },
    /// A process starts.
    Start { host: usize },
    /// The arbiter starts.
    StartArbiter,
    /// A hang is over.
    Wake { host: usize, life: u64 },
    /// The operator promotes a host, if nobody else is there.
    Promote { host: usize },
    /// The sidecar reaches the disk.
    Sidecar {
        host: usize,
        life: u64,
        sidecar: Box<crate::sidecar::Sidecar>,
    },
}

#[cfg(test)]
mod tests;
