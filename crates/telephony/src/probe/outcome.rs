//! What became of the calls of a run.

use super::course::{End, Script};
use crate::{
    call::{Failure, Record},
    media::{Account, INTERVAL, PacingReport, Report, Sent},
};
use std::{net::SocketAddr, time::Duration};

/// What became of one stream of a call.
#[derive(Debug, Clone)]
pub struct StreamOutcome {
    /// The receiver's book: each packet's times, for plots.
    pub account: Account,
    /// What was sent.
    pub sent: Sent,
    /// All of it in figures.
    pub report: Report,
}

impl StreamOutcome {
    /// Whether media flowed after a moment: at least half of what was sent since then arrived, and something was sent. Of a
    /// stream that began later it is the whole.
    pub fn flowed_since(&self, moment: Duration) -> bool {
        let since = moment.max(self.sent.first);
        let sent = self.sent.last.saturating_sub(since).as_secs_f64() / INTERVAL.as_secs_f64();
        let arrived = u32::try_from(self.account.arrived_since(since)).unwrap_or(u32::MAX);
        self.sent.last > moment && arrived > 0 && f64::from(arrived) >= sent / 2.0
    }
}

/// How far a call was at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Its INVITE was not sent yet.
    Before,
    /// Its INVITE was sent, and not answered.
    Ringing,
    /// Both ends had it.
    Up,
    /// An end had hung up or cancelled, or it had failed.
    After,
}

/// What became of one call.
#[derive(Debug, Clone)]
pub struct CallOutcome {
    /// What it was to do.
    pub script: Script,
    /// The caller's steps, by the probe's clock.
    pub caller: Record,
    /// The callee's, if it was reached.
    pub callee: Option<Record>,
    /// What the callee hears, and what the caller hears; `None` where no media was wanted, or the call was never up.
    pub streams: Option<[StreamOutcome; 2]>,
    /// Where the caller and the callee were told to send their media, in the end: a relay's address where there is one.
    pub media: [Option<SocketAddr>; 2],
    /// What went wrong first, at either end.
    pub failure: Option<Failure>,
}

impl CallOutcome {
    /// Whether it ended as its script wanted, at both ends: hung up and answered with 200, or cancelled.
    pub fn completed(&self) -> bool {
        let Some(callee) = &self.callee else {
            return false;
        };
        let ended = |record: &Record| record.ended.is_some() && record.failure.is_none();
        let as_wanted = match self.script.end {
            End::HangUp { .. } => self.caller.confirmed.is_some() && callee.confirmed.is_some(),
            End::Cancel { .. } => self.caller.answered.is_none(),
        };
        let offered = self.script.reinvite.is_none() || self.caller.changed.is_some();
        self.failure.is_none() && ended(&self.caller) && ended(callee) && as_wanted && offered
    }

    /// How far it was at a moment.
    pub fn stage(&self, moment: Duration) -> Stage {
        let was = |step: Option<Duration>| step.is_some_and(|at| at <= moment);
        let confirmed = self.callee.as_ref().and_then(|callee| callee.confirmed);
        let caller = &self.caller;
        if was(caller.ending) || was(caller.cancelling) || was(caller.ended) {
            Stage::After
        } else if was(caller.confirmed) && was(confirmed) {
            Stage::Up
        } else if was(caller.invited) {
            Stage::Ringing
        } else {
            Stage::Before
        }
    }

    /// Whether an event at `moment` did it no harm: it completed, and media flowed both ways after the event (where there is to be
    /// any).
    pub fn preserved(&self, moment: Duration) -> bool {
        let flowed =
            |streams: &[StreamOutcome; 2]| streams.iter().all(|stream| stream.flowed_since(moment));
        self.completed() && self.streams.as_ref().is_none_or(flowed)
    }
}

/// What became of a run.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// When the event was, by the probe's clock.
    pub event: Option<Duration>,
    /// The same in seconds since 1970.
    pub event_unix: Option<f64>,
    /// Each call, in the order of the scripts.
    pub calls: Vec<CallOutcome>,
    /// How late the sender itself was.
    pub pacing: PacingReport,
    /// Packets that the kernel did not take.
    pub refused: u64,
    /// Datagrams at the media sockets that belong to no stream of theirs.
    pub strays: u64,
    /// Callees that could not register.
    pub unregistered: usize,
    /// REGISTER requests that were sent again.
    pub registrations_resent: u32,
}

impl Outcome {
    /// How many calls completed.
    pub fn completed(&self) -> usize {
        self.calls.iter().filter(|call| call.completed()).count()
    }

    /// How many calls the event did no harm; those that completed if there was none.
    pub fn preserved(&self) -> usize {
        let moment = self.event.unwrap_or_default();
        self.calls
            .iter()
            .filter(|call| call.preserved(moment))
            .count()
    }

    /// The calls that were at a stage when the event happened.
    pub fn at_event(&self, stage: Stage) -> impl Iterator<Item = &CallOutcome> {
        let moment = self.event.unwrap_or_default();
        self.calls
            .iter()
            .filter(move |call| call.stage(moment) == stage)
    }

    /// All streams.
    pub fn streams(&self) -> impl Iterator<Item = &StreamOutcome> {
        self.calls
            .iter()
            .filter_map(|call| call.streams.as_ref())
            .flatten()
    }

    /// Requests and answers that were sent again, in all.
    pub fn resent(&self) -> u32 {
        let callee = |call: &CallOutcome| call.callee.as_ref().map_or(0, |callee| callee.resent);
        self.calls
            .iter()
            .map(|call| call.caller.resent + callee(call))
            .sum()
    }
}
