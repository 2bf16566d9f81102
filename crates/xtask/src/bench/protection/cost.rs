//! What protection costs while nothing fails: processor and network when idle, time when there is hardly a load.

use crate::{
    distribution::Distribution,
    machine_file::FIRST_GUEST,
    machine_host::Running,
    pair::Pair,
    probe::{self, Question, Seen},
    processor::Threads,
    sipp,
};
use anyhow::{Context as _, Result, ensure};
use std::{
    thread,
    time::{Duration, Instant},
};

/// Five registrations a second.
const CALM: Duration = Duration::from_millis(200);

/// What a machine under hardly any load shows.
pub(super) struct Calm {
    response_ms: Distribution,
    /// The median pause of the epochs meanwhile, where there were any.
    pub(super) pause_ms: Option<f64>,
    pub(super) pause_p99_ms: Option<f64>,
    pub(super) dirty_pages: Option<f64>,
}

impl Calm {
    pub(super) fn median_ms(&self) -> Option<f64> {
        self.response_ms.median()
    }

    pub(super) fn p99_ms(&self) -> Option<f64> {
        self.response_ms.percentile(99.0)
    }

    /// A line for people.
    pub(super) fn summary(&self) -> String {
        format!(
            "{} answers, p50 {:.1} ms",
            self.response_ms.count(),
            self.median_ms().unwrap_or(f64::NAN)
        )
    }
}

/// Registers one user five times a second for `time`. A pair's epochs are asked for as well.
///
/// # Errors
/// The client's network can't be used, or hardly anything was answered.
pub(super) fn calm(client: &lab::Client, pair: Option<&Pair<'_>>, time: Duration) -> Result<Calm> {
    let before = pair.map(Pair::pauses).transpose()?;
    let probe = probe::start(client, sipp::sip(FIRST_GUEST), Question::Register, CALM)?;
    thread::sleep(time);
    let Seen { questions } = &probe.finish()?;
    let asked = questions.len();
    let seen = Seen {
        // The first ones find unresolved addresses and cold caches.
        questions: questions.iter().skip(asked / 10).copied().collect(),
    };
    let response_ms = seen.response_ms();
    ensure!(
        response_ms.count() * 10 >= seen.questions.len() * 9 && response_ms.count() > 0,
        "of {} registrations only {} were answered",
        seen.questions.len(),
        response_ms.count()
    );
    let mut calm = Calm {
        response_ms,
        pause_ms: None,
        pause_p99_ms: None,
        dirty_pages: None,
    };
    if let Some((pair, before)) = pair.zip(before) {
        let pauses = pair.pauses()?;
        calm.pause_ms = pauses.percentile_ms_since(&before, 50);
        calm.pause_p99_ms = pauses.percentile_ms_since(&before, 99);
        let runner = pair.runner()?.context("no host runs the machine")?;
        let status = pair.status(runner)?;
        calm.dirty_pages = status.and_then(|status| pages(status.cover()?.dirty_pages_mean));
    }
    Ok(calm)
}

fn pages(number: u64) -> Option<f64> {
    u32::try_from(number).ok().map(f64::from)
}

/// What one host's process costs.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct HostCost {
    /// In percent of a core.
    pub(super) percent: f64,
    /// Without the threads that are the guest's own processors.
    pub(super) percent_without_vcpus: f64,
    /// Of that, by what the threads do: see [`Threads`].
    pub(super) devices: f64,
    pub(super) checkpoint: f64,
    pub(super) sender: f64,
    pub(super) other: f64,
}

/// What an idle pair costs.
pub(super) struct Idle {
    pub(super) primary: HostCost,
    pub(super) backup: HostCost,
    /// On the replication network, both ways, in Mbit/s.
    pub(super) mbits: f64,
}

/// Watches an idle machine without a backup for `time`.
///
/// # Errors
/// Its host can't be reached.
pub(super) fn idle_alone(
    host: &lab::Host,
    machine: &Running<'_>,
    time: Duration,
) -> Result<HostCost> {
    let (start, before) = (Instant::now(), Threads::of(host, machine.pid())?);
    thread::sleep(time);
    let after = Threads::of(host, machine.pid())?;
    Ok(HostCost::of(
        &after.since(&before),
        start.elapsed().as_secs_f64(),
    ))
}

/// Watches an idle pair for `time`.
///
/// # Errors
/// A host can't be reached.
pub(super) fn idle(pair: &Pair<'_>, time: Duration) -> Result<Idle> {
    let runner = pair.runner()?.context("no host runs the machine")?;
    let start = Instant::now();
    let before = Sample::take(pair, runner)?;
    thread::sleep(time);
    let after = Sample::take(pair, runner)?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(Idle {
        primary: HostCost::of(&after.primary.since(&before.primary), seconds),
        backup: HostCost::of(&after.backup.since(&before.backup), seconds),
        #[allow(clippy::cast_precision_loss, reason = "bytes of half a minute")]
        mbits: (after.bytes.saturating_sub(before.bytes)) as f64 * 8.0 / 1e6 / seconds,
    })
}

struct Sample {
    primary: Threads,
    backup: Threads,
    bytes: u64,
}

impl Sample {
    fn take(pair: &Pair<'_>, runner: usize) -> Result<Self> {
        let bytes = pair.host(runner).sh(
            "cat /sys/class/net/rep/statistics/rx_bytes /sys/class/net/rep/statistics/tx_bytes",
        )?;
        let bytes = bytes
            .split_whitespace()
            .map(str::parse::<u64>)
            .sum::<Result<u64, _>>()
            .context("the bytes of the replication network")?;
        Ok(Self {
            primary: Threads::of(pair.host(runner), pair.running(runner)?.pid())?,
            backup: Threads::of(pair.host(1 - runner), pair.running(1 - runner)?.pid())?,
            bytes,
        })
    }
}

impl HostCost {
    /// Of threads that used so much within `seconds`.
    pub(super) fn of(used: &Threads, seconds: f64) -> Self {
        let percent = |used: f64| used / seconds * 100.0;
        Self {
            percent: percent(used.all()),
            percent_without_vcpus: percent(used.all() - used.vcpus),
            devices: percent(used.devices),
            checkpoint: percent(used.checkpoint),
            sender: percent(used.sender),
            other: percent(used.other),
        }
    }

    /// What it is made of beside the guest's own processors, and by what name a table shows it.
    pub(super) fn parts(&self) -> [(&'static str, f64); 4] {
        [
            ("devices", self.devices),
            ("epoch loop", self.checkpoint),
            ("sender", self.sender),
            ("heartbeats, receiver and all else", self.other),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::HostCost;
    use crate::processor::Threads;

    #[test]
    fn cost_is_a_share_of_the_time() {
        let used = Threads {
            vcpus: 0.4,
            sender: 0.2,
            ..Threads::default()
        };
        let cost = HostCost::of(&used, 20.0);
        assert!((cost.percent - 3.0).abs() < 1e-9);
        assert!((cost.percent_without_vcpus - 1.0).abs() < 1e-9);
        assert!((cost.sender - 1.0).abs() < 1e-9 && cost.other.abs() < 1e-9);
    }
}
