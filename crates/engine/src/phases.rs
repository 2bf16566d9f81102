//! How long each phase of an epoch takes.

use crate::node::lock;
use romulus_network::histogram::Delays;
use std::{sync::Mutex, time::Duration};

/// A phase of an epoch, in the order in which they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// From the kick of the vCPUs until all are parked.
    Park,
    /// Until no device touches memory.
    Quiesce,
    /// Reading the dirty log.
    Harvest,
    /// Copying the dirty pages.
    Copy,
    /// Capturing vCPUs, chipset and devices.
    State,
    /// Sealing the output and letting the guest go on.
    Resume,
    /// All of these: the guest stands still.
    Pause,
    /// Encoding, while the guest runs.
    Encode,
    /// Writing to the link.
    Send,
    /// From the seal to the backup's commit.
    Commit,
    /// From a held frame's production to its release.
    Release,
}

impl Phase {
    /// All, in order.
    pub const ALL: [Phase; 11] = [
        Phase::Park,
        Phase::Quiesce,
        Phase::Harvest,
        Phase::Copy,
        Phase::State,
        Phase::Resume,
        Phase::Pause,
        Phase::Encode,
        Phase::Send,
        Phase::Commit,
        Phase::Release,
    ];

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Park => "park",
            Phase::Quiesce => "quiesce",
            Phase::Harvest => "harvest",
            Phase::Copy => "copy",
            Phase::State => "state",
            Phase::Resume => "resume",
            Phase::Pause => "pause",
            Phase::Encode => "encode",
            Phase::Send => "send",
            Phase::Commit => "commit",
            Phase::Release => "release",
        }
    }
}

/// One phase's figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PhaseTimes {
    /// Which.
    pub phase: Phase,
    /// How many were measured.
    pub count: u64,
    /// Their sum.
    pub total: Duration,
    /// The median.
    pub p50: Duration,
    /// 99 of 100 took at most this.
    pub p99: Duration,
    /// 999 of 1000 took at most this.
    pub p999: Duration,
    /// The longest.
    pub max: Duration,
    /// How many took at most so long, and longer than the entry before says; entries without any are left out.
    pub buckets: Vec<(Duration, u64)>,
}

impl PhaseTimes {
    pub(crate) fn of(phase: Phase, delays: &Delays) -> PhaseTimes {
        PhaseTimes {
            phase,
            count: delays.count(),
            total: delays.total(),
            p50: delays.quantile(0.5),
            p99: delays.quantile(0.99),
            p999: delays.quantile(0.999),
            max: delays.max(),
            buckets: delays.buckets().collect(),
        }
    }
}

/// The histograms. Each has a lock of its own; nothing is recorded while the guest is paused.
#[derive(Debug, Default)]
pub(crate) struct Phases {
    delays: [Mutex<Delays>; 10],
}

impl Phases {
    pub(crate) fn record(&self, phase: Phase, time: Duration) {
        if let Some(delays) = self.delays.get(phase as usize) {
            lock(delays).record(time);
        }
    }

    /// The figures of all phases but [`Phase::Release`], which the output keeps.
    pub(crate) fn times(&self) -> Vec<PhaseTimes> {
        Phase::ALL
            .iter()
            .zip(&self.delays)
            .map(|(phase, delays)| PhaseTimes::of(*phase, &lock(delays)))
            .collect()
    }

    pub(crate) fn clear(&self) {
        for delays in &self.delays {
            lock(delays).clear();
        }
    }
}
