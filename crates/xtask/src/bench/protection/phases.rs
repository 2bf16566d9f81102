//! What each phase of an epoch takes at given rates, and what the host's threads do beside the machine alone: where a
//! pair's time goes.

use super::{cost::HostCost, rates};
use crate::{
    machine_file::FIRST_GUEST,
    machine_host::Running,
    pair::{Cover, Pair, Phase},
    processor::Threads,
    report::{ProcessorTimes, Row},
    sipp::{self, Outcome, Transport},
};
use anyhow::{Context as _, Result};
use images::Progress;
use std::time::{Duration, Instant};

/// Registers over UDP at each of `given` registrations a second, for `seconds` each, with the machine alone, and gives
/// what clients saw and what the host's threads used.
///
/// # Errors
/// The machine does not answer any more, or its host does not say.
pub(super) fn alone_at(
    lab: &lab::Lab,
    machine: &Running<'_>,
    given: &[u32],
    seconds: u32,
    progress: &Progress,
) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for &rate in given {
        sipp::settle(lab.client(), sipp::sip(FIRST_GUEST), seconds)?;
        let name = format!("{rate} REGISTER/s, machine alone");
        let step = progress.step(name.as_str());
        let loaded = Loaded::by(lab.client(), rate, seconds, || {
            Threads::of(lab.host(1), machine.pid())
        })?;
        step.done(format!("{name}: {}", loaded.outcome.summary()));
        rows.extend(loaded.rows(&format!("{rate}/s, machine alone")));
    }
    Ok(rows)
}

/// Registers over UDP at each of `given` registrations a second, for `seconds` each, and gives what clients saw, what
/// the epochs took, and what the primary's threads used.
///
/// # Errors
/// The machine does not answer any more, or its host does not say.
pub(super) fn at(
    client: &lab::Client,
    pair: &Pair<'_>,
    given: &[u32],
    seconds: u32,
    progress: &Progress,
) -> Result<Vec<Row>> {
    let runner = pair.runner()?.context("no host runs the machine")?;
    let mut rows = Vec::new();
    for &rate in given {
        sipp::settle(client, sipp::sip(FIRST_GUEST), seconds)?;
        let step = progress.step(format!("{rate} REGISTER/s"));
        let cover =
            || Ok::<_, anyhow::Error>(pair.status(runner)?.and_then(|s| s.cover().cloned()));
        let (before, covered) = (pair.timing(runner)?, cover()?);
        let loaded = Loaded::by(client, rate, seconds, || {
            Threads::of(pair.host(runner), pair.running(runner)?.pid())
        })?;
        step.done(format!("{rate} REGISTER/s: {}", loaded.outcome.summary()));
        let (after, covers) = (pair.timing(runner)?, covered.zip(cover()?));
        rows.extend(loaded.rows(&format!("{rate}/s")));
        let of = |what: &str| format!("{rate}/s: {what}");
        let each = |of: fn(&Cover) -> u64| {
            let (before, after) = covers.as_ref()?;
            after.mean_since(before, of)
        };
        rows.extend([
            Row::new(of("pages an epoch"), "", each(|c| c.dirty_pages_mean)),
            Row::new(
                of("first writes an epoch"),
                "",
                each(|c| c.first_writes_mean),
            ),
        ]);
        let pairs = before.iter().zip(&after);
        for (before, after) in pairs.filter(|(before, after)| before.name == after.name) {
            if after.name == "pause" {
                let epochs = u32::try_from(after.count.saturating_sub(before.count)).ok();
                let epochs = epochs.map(|epochs| f64::from(epochs) / loaded.took.as_secs_f64());
                rows.push(Row::new(of("epochs"), "1/s", epochs));
            }
            let mean = Phase::mean_ms_since(after, before);
            rows.push(Row::new(of(&format!("{}, mean", after.name)), "ms", mean));
        }
    }
    Ok(rows)
}

/// A load, and what the process that runs the machine used for it.
struct Loaded {
    outcome: Outcome,
    cost: HostCost,
    took: Duration,
    /// Percent of the computer.
    stolen: Option<f64>,
}

impl Loaded {
    fn by(
        client: &lab::Client,
        rate: u32,
        seconds: u32,
        threads: impl Fn() -> Result<Threads>,
    ) -> Result<Self> {
        let (used, began) = (threads()?, Instant::now());
        let times = ProcessorTimes::now()?;
        let load = rates::load(Transport::Udp, "phases", rate, seconds);
        let outcome = sipp::register(client, load)?;
        let stolen = ProcessorTimes::now()?.stolen_since(&times);
        let used = threads()?.since(&used);
        let took = began.elapsed();
        Ok(Self {
            outcome,
            cost: HostCost::of(&used, took.as_secs_f64()),
            took,
            stolen,
        })
    }

    fn rows(&self, name: &str) -> Vec<Row> {
        let row =
            |what: &str, unit, value: Option<f64>| Row::new(format!("{name}: {what}"), unit, value);
        let response_ms = &self.outcome.response_ms;
        let mut rows = vec![
            row("response time p50", "ms", response_ms.median()),
            row("response time p99", "ms", response_ms.percentile(99.0)),
            row(
                "requests sent again",
                "",
                Some(f64::from(self.outcome.retransmissions)),
            ),
            row("taken from this computer by others", "%", self.stolen),
        ];
        let vcpus = ("vCPUs", self.cost.percent - self.cost.percent_without_vcpus);
        for (what, percent) in [vcpus].into_iter().chain(self.cost.parts()) {
            let what = format!("processor of the host, {what}");
            rows.push(row(&what, "% of a core", Some(percent)));
        }
        rows
    }
}
