//! What each phase of an epoch takes at given rates: where a pair's time goes.

use super::{cost::HostCost, rates};
use crate::{
    machine_file::FIRST_GUEST,
    pair::{Cover, Pair, Phase},
    processor::Threads,
    report::{ProcessorTimes, Row},
    sipp::{self, Transport},
};
use anyhow::{Context as _, Result};
use images::Progress;
use std::time::Instant;

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
        let step = progress.step(format!("{rate} REGISTER/s"));
        sipp::settle(client, sipp::sip(FIRST_GUEST), seconds)?;
        let threads = || Threads::of(pair.host(runner), pair.running(runner)?.pid());
        let cover =
            || Ok::<_, anyhow::Error>(pair.status(runner)?.and_then(|s| s.cover().cloned()));
        let (before, began) = (pair.timing(runner)?, Instant::now());
        let covered = cover()?;
        let used = threads()?;
        let times = ProcessorTimes::now()?;
        let load = rates::load(Transport::Udp, "phases", rate, seconds);
        let outcome = sipp::register(client, load)?;
        let stolen = ProcessorTimes::now()?.stolen_since(&times);
        let used = threads()?.since(&used);
        let (after, took) = (pair.timing(runner)?, began.elapsed());
        let covers = covered.zip(cover()?);
        step.done(format!("{rate} REGISTER/s: {}", outcome.summary()));
        let of = |what: &str| format!("{rate}/s: {what}");
        rows.extend([
            Row::new(of("response time p50"), "ms", outcome.response_ms.median()),
            Row::new(
                of("response time p99"),
                "ms",
                outcome.response_ms.percentile(99.0),
            ),
            Row::new(
                of("requests sent again"),
                "",
                f64::from(outcome.retransmissions),
            ),
            Row::new(of("taken from this computer by others"), "%", stolen),
        ]);
        let cost = HostCost::of(&used, took.as_secs_f64());
        let vcpus = ("vCPUs", cost.percent - cost.percent_without_vcpus);
        for (what, percent) in [vcpus].into_iter().chain(cost.parts()) {
            let what = of(&format!("processor of the primary, {what}"));
            rows.push(Row::new(what, "% of a core", percent));
        }
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
                let epochs = epochs.map(|epochs| f64::from(epochs) / took.as_secs_f64());
                rows.push(Row::new(of("epochs"), "1/s", epochs));
            }
            let mean = Phase::mean_ms_since(after, before);
            rows.push(Row::new(of(&format!("{}, mean", after.name)), "ms", mean));
        }
    }
    Ok(rows)
}
