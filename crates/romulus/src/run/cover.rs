//! How a machine is protected: the engine as the supervisor and the control interface need it, and what they say of it.

use crate::{
    api::model::{self, Copied, PhaseTiming},
    config,
};
use romulus_engine::{Engine, PhaseTimes, Status};
use romulus_network::Mode;
use romulus_protocol::{host::RoleName, record::Phase};
use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

/// An engine; a trait so that the supervisor is tested without one.
pub(super) trait Protector: Send + Sync {
    /// How it stands; `None` when it has ended.
    fn status(&self) -> Option<Status>;
    /// How long each phase takes.
    fn timing(&self) -> Vec<PhaseTimes>;
    /// Asks it to end, so that nobody takes the machine over.
    fn stop(&self);
    /// The operator lets this host run the machine.
    fn promote(&self);
    /// Hands the machine over to the other host, if that can be; news say what comes of it.
    fn switch_over(&self);
    /// Which output is held from now on.
    fn set_mode(&self, mode: Mode);
    /// Waits until its threads have ended.
    fn join(&self);
}

/// The real engine.
pub(super) struct Real(Mutex<Option<Engine>>);

impl Real {
    /// An engine that has been started.
    pub(super) fn new(engine: Engine) -> Self {
        Self(Mutex::new(Some(engine)))
    }

    fn ask<T>(&self, question: impl FnOnce(&Engine) -> T) -> Option<T> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .map(question)
    }
}

impl Protector for Real {
    fn status(&self) -> Option<Status> {
        self.ask(Engine::status)
    }

    fn timing(&self) -> Vec<PhaseTimes> {
        self.ask(Engine::timing).unwrap_or_default()
    }

    fn stop(&self) {
        self.ask(Engine::stop);
    }

    fn promote(&self) {
        self.ask(Engine::promote);
    }

    fn switch_over(&self) {
        self.ask(Engine::switch_over);
    }

    fn set_mode(&self, mode: Mode) {
        self.ask(|engine| engine.set_mode(mode));
    }

    fn join(&self) {
        // Taken out first: who asks meanwhile must not wait for threads to end.
        let engine = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(engine) = engine {
            engine.join();
        }
    }
}

/// Whether the machine that runs here is protected, and since when; nothing while none runs here.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cover(Option<(bool, SystemTime)>);

impl Cover {
    /// It is, or is not, from now on.
    pub(super) fn since_now(protected: bool) -> Self {
        Self(Some((protected, SystemTime::now())))
    }

    /// All that the status says about a machine's protection.
    pub(super) fn describe(
        self,
        file: &config::Protection,
        me: usize,
        status: Option<Status>,
    ) -> model::Protection {
        let name = |index: usize| {
            file.hosts
                .get(index)
                .map_or("", |host| &host.name)
                .to_owned()
        };
        let mut protection = model::Protection {
            host: name(me),
            partner_host: name(1 - me.min(1)),
            role: "ended".to_owned(),
            mode: file.mode.name().to_owned(),
            since: self
                .0
                .map(|(_, since)| humantime::format_rfc3339_seconds(since).to_string()),
            t_b_us: microseconds(file.timing.t_b),
            ..model::Protection::default()
        };
        let Some(status) = status else {
            return protection;
        };
        status.mode.name().clone_into(&mut protection.mode);
        protection.mode_changes = status.changes_mode;
        let host = &status.host;
        let record = host.record.as_ref();
        role(host.role).clone_into(&mut protection.role);
        protection.protected = match host.role {
            RoleName::Primary => host.protected_since.is_some(),
            // The record names this replica as the heir only when it is whole and tried.
            RoleName::Backup => {
                host.whole
                    && status.partner.is_some()
                    && record.is_some_and(|record| record.heir == Some(status.incarnation))
            }
            _ => false,
        };
        if let Some(protected_for) = status.protected_for {
            protection.since = SystemTime::now()
                .checked_sub(protected_for)
                .map(|since| humantime::format_rfc3339_seconds(since).to_string());
        }
        protection.term = host.term.map(|term| term.0.0);
        protection.generation = record.map(|record| record.generation.0);
        protection.phase = record.map(|record| {
            match record.phase {
                Phase::Claimed => "claimed",
                Phase::Running => "running",
            }
            .to_owned()
        });
        protection.epoch = host.epoch.0;
        protection.lag = host.lag;
        protection.whole = host.whole;
        protection.partner = status.partner.map(|partner| partner.to_string());
        protection.t_b_us = microseconds(host.t_b);
        protection.arbiter_answers = host.arbiter_answers;
        let watched = file.uplink.iter().zip(&status.uplinks);
        protection.uplinks = watched
            .map(|(interface, up)| model::Uplink {
                interface: interface.clone(),
                up: *up,
            })
            .collect();
        protection.partner_uplinks = host
            .partner_uplink
            .filter(|uplink| uplink.is_watched())
            .map(|uplink| model::Uplinks {
                up: uplink.up,
                of: uplink.of,
            });
        protection.copied = status
            .copied
            .filter(|_| !protection.protected)
            .map(|(done, all)| Copied { done, all });
        protection.held_frames = status.output.held_frames as u64;
        protection.held_bytes = status.output.held_bytes as u64;
        protection.dropped_frames = status.output.dropped + status.output.full;
        protection.at_once_frames = status.output.at_once;
        protection.passed_on_frames = status.input.passed_on;
        protection.skipped_frames = status.input.skipped;
        protection.sent_again_frames = status.output.sent_again;
        protection.given_again_frames = status.input.given_again;
        protection.rehearsals = status.rehearsals;
        protection.epochs = status.epochs;
        protection.dirty_pages_mean = status.dirty_pages / status.epochs.max(1);
        protection.first_writes_mean = status.first_writes / status.epochs.max(1);
        protection.sent_bytes = status.sent_bytes;
        protection
    }
}

/// The figures of all phases that were measured.
pub(super) fn timing(phases: &[PhaseTimes]) -> Vec<PhaseTiming> {
    phases
        .iter()
        .map(|times| PhaseTiming {
            phase: times.phase.name().to_owned(),
            count: times.count,
            total_ns: nanoseconds(times.total),
            p50_ns: nanoseconds(times.p50),
            p99_ns: nanoseconds(times.p99),
            p999_ns: nanoseconds(times.p999),
            max_ns: nanoseconds(times.max),
            buckets: (times.buckets.iter())
                .map(|&(most, count)| (nanoseconds(most), count))
                .collect(),
        })
        .collect()
}

fn role(role: RoleName) -> &'static str {
    match role {
        RoleName::Waiting => "waiting",
        RoleName::Backup => "backup",
        RoleName::Frozen => "frozen",
        RoleName::Primary => "primary",
        RoleName::Ended => "ended",
    }
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
