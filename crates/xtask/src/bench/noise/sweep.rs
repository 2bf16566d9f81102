//! `T_b` fixed, at one value after the other: what happens while nothing fails, and how long a takeover takes when the power is
//! cut.

use super::{Stand, busy::Busy, seen};
use crate::{
    assets::Image,
    compile::target_folder,
    distribution::Distribution,
    hosts, journal,
    machine_file::FIRST_GUEST,
    pair::{Pair, unix_seconds},
    probe::{self, Question},
    process,
    report::{
        Row,
        plot::{Plot, Series},
    },
    sipp,
};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::{
    thread,
    time::{Duration, Instant},
};

/// What the journal and the plot are called.
const JOURNAL: &str = "bench-noise-sweep";
/// How long a pair may take to be protected. With a short `T_b` on an emulated host it may never be.
const PROTECTED_WITHIN: Duration = Duration::from_secs(45);
/// The same under the load, which leaves a full copy a tenth of the processor, or what it can take.
const COVERED_AGAIN_WITHIN: Duration = Duration::from_secs(90);
/// From one look at the hosts to the next.
const LOOK: Duration = Duration::from_millis(500);
/// How often the probe asks until the cut.
const CALM: Duration = Duration::from_millis(100);
/// How long a takeover may take before it counts as none.
const TAKEOVER_WITHIN: Duration = Duration::from_secs(20);
/// How long the guest may take to come up.
const BOOT_LIMIT: Duration = Duration::from_mins(4);

/// What one value of `T_b` showed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Value {
    t_b_ms: u64,
    /// Why the pair was not protected, and nothing was measured; or why there were no more cuts.
    trouble: Option<String>,
    watched_seconds: f64,
    takeovers: usize,
    cover_lost: usize,
    /// For how long of it somebody was named to take over.
    #[serde(default)]
    covered_seconds: f64,
    /// From a cut to the first answer to a question that was asked after it, in milliseconds.
    first_answer_ms: Vec<f64>,
    /// From a cut to the machine's start on the other host.
    running_ms: Vec<f64>,
}

impl Value {
    fn an_hour(&self, events: usize) -> Option<f64> {
        let events = u32::try_from(events).ok().map(f64::from)?;
        (self.watched_seconds > 0.0).then(|| events / self.watched_seconds * 3600.0)
    }
}

/// Measures each value.
///
/// # Errors
/// The hosts can't be had. A value at which the pair does not work is part of the outcome.
pub(super) fn run(
    stand: &Stand<'_>,
    all: &[u64],
    watch: Duration,
    cuts: u32,
    add: bool,
) -> Result<Vec<Row>> {
    let journal = journal::of_figures(JOURNAL)?;
    let mut values: Vec<Value> = if add { journal.entries()? } else { Vec::new() };
    values.retain(|value| !all.contains(&value.t_b_ms));
    journal.empty()?;
    for value in &values {
        journal.add(value)?;
    }
    for (number, &t_b_ms) in all.iter().enumerate() {
        if number > 0 {
            // They remember nothing of the last value.
            hosts::restart(stand.lab)?;
        }
        let mut value = Value {
            t_b_ms,
            ..Value::default()
        };
        let step = stand.progress.step(format!("T_b {t_b_ms} ms"));
        if let Err(error) = measure(stand, &mut value, watch, cuts) {
            value.trouble = Some(format!("{error:#}"));
        }
        step.done(value.text());
        journal.add(&value)?;
        values.push(value);
        values.sort_by_key(|value| value.t_b_ms);
        let path = plot(&values).write(&target_folder().join("reports"), JOURNAL)?;
        if number + 1 == all.len() {
            stand.progress.note(format!("the plot: {}", path.display()));
        }
    }
    Ok(values.iter().flat_map(rows).collect())
}

fn measure(stand: &Stand<'_>, value: &mut Value, watch: Duration, cuts: u32) -> Result<()> {
    let guest = stand.assets.guest(Image::REGISTRAR_12)?;
    let fixed = format!("{}ms", value.t_b_ms);
    let mut pair = Pair::new(stand.lab, stand.assets, guest, |file| {
        if let Some(protection) = &mut file.protection {
            protection.t_b = Some(fixed.clone());
            protection.t_b_max = Some(fixed);
            protection.t_cold = Some("3s".to_owned());
        }
    })?;
    for side in 0..2 {
        pair.run(side)?;
    }
    let outcome = measure_pair(stand, &mut pair, value, watch, cuts);
    if outcome.is_err() {
        pair.keep_logs(&stand.logs.join(format!("t-b-{}", value.t_b_ms)))?;
    }
    outcome
}

fn measure_pair(
    stand: &Stand<'_>,
    pair: &mut Pair<'_>,
    value: &mut Value,
    watch: Duration,
    cuts: u32,
) -> Result<()> {
    pair.running(0)?.wait_console("GUEST UP", BOOT_LIMIT)?;
    let mut busy: Vec<Busy<'_>> = Vec::new();
    // Where it never comes to that, it is watched all the same: the figures tell.
    let ready = protected(pair, PROTECTED_WITHIN).context("before the load");
    for side in 0..2 {
        busy.push(Busy::start(pair.host(side), stand.load)?);
    }
    let before = seen(pair)?;
    let begin = Instant::now();
    let mut told = Ok(());
    while begin.elapsed() < watch && told.is_ok() {
        thread::sleep(LOOK);
        told = pair.arbiter.still_runs();
        for side in 0..2 {
            told = told.and_then(|()| pair.running(side)?.still_runs());
        }
        let seen = seen(pair)?.since(before);
        value.watched_seconds = begin.elapsed().as_secs_f64();
        value.covered_seconds = seen.covered;
        (value.takeovers, value.cover_lost) = (seen.takeovers, seen.cover_lost);
    }
    told?;
    if cuts > 0 && value.covered_seconds <= 0.0 {
        ready?;
    }
    for number in 1..=cuts {
        let name = format!("before cut {number}");
        let runner = protected(pair, COVERED_AGAIN_WITHIN).context(name)?;
        cut(stand, pair, runner, value)?;
        if number < cuts {
            pair.return_host(runner)?;
            busy.push(Busy::start(pair.host(runner), stand.load)?);
        }
    }
    Ok(())
}

/// Waits until it is protected, and gives the host that runs it. That two hosts say that they run it, for a moment, is the
/// takeovers' own doing.
fn protected(pair: &Pair<'_>, limit: Duration) -> Result<usize> {
    process::poll(limit, LOOK, || {
        for side in (0..2).filter(|side| pair.is_up(*side)) {
            let status = pair.status(side)?;
            if status.is_some_and(|status| status.is_protected_here()) {
                return Ok(Some(side));
            }
        }
        Ok(None)
    })?
    .with_context(|| format!("not protected within {} s", limit.as_secs()))
}

fn cut(stand: &Stand<'_>, pair: &mut Pair<'_>, runner: usize, value: &mut Value) -> Result<()> {
    let server = sipp::sip(FIRST_GUEST);
    let probe = probe::start(stand.lab.client(), server, Question::Options, CALM)?;
    // The first questions find unresolved addresses.
    thread::sleep(CALM * 10);
    let cut = pair.cut_power(runner)?;
    probe.hurry();
    let other = 1 - runner;
    let taken = process::poll(TAKEOVER_WITHIN, LOOK, || {
        Ok(pair.status(other)?.filter(crate::pair::Status::runs))
    });
    // The probe's own grace: answers that are on their way.
    let seen = probe.finish()?;
    taken?.context("nobody took over after a cut")?;
    let moment = unix_seconds(cut.at);
    let first = seen
        .first_answer_since(moment)
        .map(|at| (at - moment) * 1e3);
    value.first_answer_ms.extend(first);
    let steps = pair.takeover(other, &cut)?;
    value
        .running_ms
        .extend(steps.running.map(|seconds| seconds * 1e3));
    Ok(())
}

impl Value {
    fn text(&self) -> String {
        let first = Distribution::new(self.first_answer_ms.clone());
        let trouble = self.trouble.as_ref();
        let trouble = trouble.map_or_else(String::new, |trouble| format!("; {trouble}"));
        format!(
            "T_b {} ms: {} takeovers without a failure in {:.0} s, cover for {:.0} s and lost {} times, first answer after a cut {}{trouble}",
            self.t_b_ms,
            self.takeovers,
            self.watched_seconds,
            self.covered_seconds,
            self.cover_lost,
            first
                .median()
                .map_or_else(|| "never seen".to_owned(), |ms| format!("after {ms:.0} ms")),
        )
    }
}

fn rows(value: &Value) -> Vec<Row> {
    let of = |what: &str| format!("T_b {} ms: {what}", value.t_b_ms);
    let first = Distribution::new(value.first_answer_ms.clone());
    let running = Distribution::new(value.running_ms.clone());
    let covered = value.covered_seconds / value.watched_seconds * 100.0;
    vec![
        Row::new(of("watched"), "s", value.watched_seconds.round()),
        Row::new(
            of("time in which somebody was named to take over"),
            "%",
            Some(covered).filter(|share| share.is_finite()),
        ),
        Row::new(
            of("takeovers without a failure"),
            "1/h",
            value.an_hour(value.takeovers),
        ),
        Row::new(
            of("cover lost without a failure"),
            "1/h",
            value.an_hour(value.cover_lost),
        ),
        Row::new(of("cut to running, median"), "ms", running.median()),
        Row::new(of("cut to the first answer, median"), "ms", first.median()),
        Row::new(of("cut to the first answer, worst"), "ms", first.max()),
    ]
}

fn plot(values: &[Value]) -> Plot<'static> {
    let series = values.iter().map(|value| Series {
        name: format!("T_b {} ms", value.t_b_ms),
        points: value
            .first_answer_ms
            .iter()
            .filter_map(|ms| Some((value.an_hour(value.takeovers)?, *ms)))
            .collect(),
        joined: false,
    });
    Plot {
        title: "What a shorter T_b gains and costs on busy hosts",
        x: "takeovers without a failure, an hour",
        y: "cut to the first answer, ms",
        series: series.collect(),
        marks: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Value, plot, rows};

    #[test]
    fn events_are_counted_by_the_hour_of_what_was_watched() {
        let value = Value {
            t_b_ms: 50,
            watched_seconds: 60.0,
            takeovers: 2,
            first_answer_ms: vec![130.0, 150.0],
            ..Value::default()
        };
        let plot = plot(std::slice::from_ref(&value));
        assert_eq!(plot.series[0].points, [(120.0, 130.0), (120.0, 150.0)]);
        assert_eq!(rows(&value)[2].value, Some(120.0));
        let never = Value::default();
        assert_eq!(rows(&never)[2].value, None, "nothing was watched");
        assert!(never.text().contains("never seen"));
    }
}
