//! How rows ended.

use serde::{Deserialize, Serialize};

/// One row in one round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Job {
    /// The row's name.
    pub(crate) row: String,
    /// Which time, from 1.
    pub(crate) round: u32,
}

/// How one row ended in one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// What was run.
    #[serde(flatten)]
    pub(crate) job: Job,
    /// What the random moments came from.
    pub(crate) seed: u64,
    /// Whether all was as the table says.
    pub(crate) passed: bool,
    /// Promises that the oracle saw broken.
    pub(crate) wrong: usize,
    /// Takeovers.
    pub(crate) takeovers: u32,
    /// Requests that were answered.
    pub(crate) answered: usize,
    /// Longest time without an answer while a client asked, in milliseconds.
    pub(crate) gap_ms: f64,
    /// How long it took.
    pub(crate) seconds: f64,
    /// Why it failed, or what else is to be said.
    pub(crate) remark: String,
}
