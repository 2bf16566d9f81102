//! Experiment 2: registrations while the host that runs the machine loses its power.

use super::{Context, signalling::yes, stage::Stage};
use crate::{
    crossing::{self, Crossing, Plan},
    distribution::Distribution,
    pair::{Pair, UnixSeconds},
    sipp::{Outcome, Transport},
};
use anyhow::{Context as _, Result};
use romulus_telephony::{
    random::Random,
    report::Cell,
    sipstone::{
        jobs::{Effort, Place},
        tables::{Line, REGISTRATIONS, TAKEOVERS},
    },
};
use std::time::Duration;

/// Registrations a second over UDP, one TCP connection and a connection each: well below what an emulated host bears, for what
/// clients repeat after a cut comes on top.
const RATES: [u32; 3] = [10, 6, 4];

/// How long the load goes on, in seconds, and between which moments of it the power is cut, in milliseconds.
fn times(effort: Effort) -> (u32, u64, u64) {
    match effort {
        Effort::Full => (15, 3000, 6000),
        Effort::Quick | Effort::Smallest => (7, 2000, 3000),
    }
}

/// Cuts the power once under load.
///
/// # Errors
/// The lab does not do as it should; registrations that fail are a result.
pub(super) fn run(
    stage: &mut Stage<'_>,
    context: &Context,
    place: Place,
    number: u32,
) -> Result<Vec<Line>> {
    let (seconds, from, to) = times(context.effort);
    let epoch = place
        .epoch_ms
        .map_or_else(|| "own".to_owned(), |epoch| epoch.to_string());
    let name = format!("{}-{epoch}-{number}", place.mode);
    let after = Random::named(context.seed, &name).between(from, to);
    let plan = Plan {
        name,
        rates: RATES,
        seconds,
        cut_after: Some(Duration::from_millis(after)),
    };
    let client = stage.client();
    let step = stage.progress().step(format!(
        "{} registrations a second; the power is cut after {:.1} s",
        RATES.iter().sum::<u32>(),
        Duration::from_millis(after).as_secs_f64()
    ));
    let pair: &mut Pair<'_> = stage.pair()?;
    let crossing = crossing::run(client, pair, &plan, None)?;
    crossing
        .cut
        .context("the load ended before the power was cut")?;
    let (wanted, ok) = crossing.totals();
    let faults = crossing.faults();
    step.done(format!("{ok} of {wanted} registrations ok across the cut"));
    for fault in faults {
        stage.progress().note(fault);
    }
    Ok(lines(place, number, &crossing))
}

fn lines(place: Place, number: u32, crossing: &Crossing) -> Vec<Line> {
    let begin = || -> Vec<Cell> {
        vec![
            place.mode.to_string().into(),
            place.epoch_ms.map(f64::from).into(),
            number.into(),
        ]
    };
    let mut lines = Vec::new();
    for (transport, outcome) in &crossing.loads {
        let mut cells = begin();
        cells.extend([
            name(*transport).into(),
            outcome.wanted.into(),
            (f64::from(outcome.ok) / f64::from(outcome.wanted) * 100.0).into(),
            outcome.retransmissions.into(),
            // The machine is not protected, and so faster, after it.
            median(outcome, |began| crossing.cut.is_none_or(|cut| began < cut)).into(),
            median(outcome, |began| {
                crossing.cut.is_some_and(|cut| began >= cut)
            })
            .into(),
            outcome.response_ms.percentile(99.0).into(),
            outcome.response_ms.max().into(),
        ]);
        lines.push(Line::new(&REGISTRATIONS, cells));
    }
    let ms = |seconds: Option<f64>| Cell::from(seconds.map(|seconds| seconds * 1e3));
    #[allow(clippy::cast_precision_loss, reason = "numbers of contacts")]
    let count = |number: usize| Cell::from(number as f64);
    let mut cells = begin();
    cells.extend([
        ms(Some(crossing.t_b.as_secs_f64())),
        ms(crossing.steps.detected),
        ms(crossing.steps.running),
        ms(crossing.first_udp),
        ms(crossing.first_tcp),
        ms(crossing.longest_gap),
        count(crossing.acknowledged),
        count(crossing.lost.len()),
        yes(crossing.connections_kept()),
    ]);
    lines.push(Line::new(&TAKEOVERS, cells));
    lines
}

/// The median response time in milliseconds of what began at these moments.
fn median(outcome: &Outcome, when: impl Fn(UnixSeconds) -> bool) -> Option<f64> {
    let of_these = outcome.answers.iter().filter(|answer| when(answer.began));
    Distribution::new(of_these.map(|answer| answer.ms).collect()).median()
}

fn name(transport: Transport) -> &'static str {
    match transport {
        Transport::Udp => "UDP",
        Transport::TcpOne => "TCP_1",
        Transport::TcpEach => "TCP_N",
    }
}
