//! Experiment 3: the media of calls, with and without a loss of power.

use super::{Context, signalling::yes, stage::Stage};
use crate::{
    calls::{self, Load},
    machine_file::FIRST_GUEST,
    pair::Phase,
    processor::Kernel,
    sipp,
};
use anyhow::{Context as _, Result};
use romulus_telephony::{
    call::Transport,
    probe::{Outcome, Summary},
    report::Cell,
    sipstone::{
        jobs::{Effort, Mode, Place},
        tables::{Line, MEDIA},
    },
};
use std::{
    thread,
    time::{Duration, Instant},
};

/// How long calls are up before and after the event.
fn times(effort: Effort, place: Place, cut: bool) -> (Duration, Duration) {
    let (before, after) = match (effort, cut) {
        (Effort::Quick | Effort::Smallest, false) => (1, 4),
        (Effort::Quick | Effort::Smallest, true) => (2, 6),
        (Effort::Full, false) => (2, 12),
        // A call of one minute; where lengths of epochs are compared, less will do.
        (Effort::Full, true) if place.epoch_ms.is_none() => (20, 40),
        (Effort::Full, true) => (8, 15),
    };
    (Duration::from_secs(before), Duration::from_secs(after))
}

/// What was seen beside the calls.
#[derive(Default)]
struct Beside {
    /// Processor time of the primary's host while calls were up, in seconds, and for how long.
    host: Option<(f64, f64)>,
    /// 99 of 100 pauses of the guest took at most so long, in milliseconds.
    pause_p99_ms: Option<f64>,
    /// Frames that did not wait for a commit.
    at_once: Option<f64>,
    /// `T_b` at the cut.
    t_b_ms: Option<f64>,
}

/// Makes calls; with `cut`, the power of the host that runs the machine is cut while they are up.
///
/// # Errors
/// Calls can't be made at all, or the lab does not do as it should. Calls that fail are a result.
pub(super) fn run(
    stage: &mut Stage<'_>,
    context: &Context,
    place: Place,
    number: u32,
    cut: bool,
) -> Result<Vec<Line>> {
    let (before, after) = times(context.effort, place, cut);
    let client = stage.client();
    let progress = stage.progress();
    let step = progress.step(format!(
        "{number} calls with media, {}, for {} s",
        place.mode,
        (before + after).as_secs()
    ));
    let load = Load {
        established: number,
        before,
        // What nothing happens to is watched by what is the event, and over then.
        after: if cut { after } else { Duration::ZERO },
        ..Load::new(sipp::sip(FIRST_GUEST), Transport::Udp)
    };
    let (outcome, beside) = if cut {
        calls::run(client, &load, |_| across(stage))?
    } else {
        // Asking `romulus` takes an emulated host's only processor for longer than a packet may be late: nobody does while calls are up.
        let primary = stage.processes()?.primary.0;
        let before = Asked::of(stage, place)?;
        let (outcome, host) = calls::run(client, &load, |_| watched(primary, after))?;
        let mut beside = Beside {
            host: Some(host),
            ..Beside::default()
        };
        if let Some((before, after)) = before.zip(Asked::of(stage, place)?) {
            beside.pause_p99_ms = after.pauses.percentile_ms_since(&before.pauses, 99);
            beside.at_once = after.at_once_since(&before);
        }
        (outcome, beside)
    };
    let summary = Summary::of(&outcome);
    step.done(format!(
        "{number} calls, {}{}: {}",
        place.mode,
        if cut { ", power cut" } else { "" },
        summary.line()
    ));
    let seconds = (before + after).as_secs_f64();
    Ok(vec![line(
        place, number, cut, seconds, &outcome, &summary, &beside,
    )])
}

/// The event that is none: calls are up for `time`. Gives what the primary's host used of it, and how long that was, in seconds.
fn watched(host: &lab::Host, time: Duration) -> Result<(f64, f64)> {
    let (began, used) = (Instant::now(), Kernel::of(host)?);
    thread::sleep(time);
    let (ended, now) = (Instant::now(), Kernel::of(host)?);
    let seconds = ended.duration_since(began).as_secs_f64();
    Ok((now.since(&used).all, seconds))
}

/// What a pair says of its time so far.
struct Asked {
    /// Frames of the guest that waited for no commit.
    at_once: Option<u64>,
    pauses: Phase,
}

impl Asked {
    /// Nothing of a machine alone.
    fn of(stage: &mut Stage<'_>, place: Place) -> Result<Option<Self>> {
        if place.mode == Mode::Unprotected {
            return Ok(None);
        }
        let pair = stage.pair()?;
        let runner = pair.runner()?.context("no host runs the machine")?;
        let status = pair.status(runner)?;
        Ok(Some(Self {
            at_once: status.and_then(|status| Some(status.cover()?.at_once_frames)),
            pauses: pair.pauses()?,
        }))
    }

    fn at_once_since(&self, before: &Self) -> Option<f64> {
        let frames = self.at_once?.checked_sub(before.at_once?)?;
        #[allow(clippy::cast_precision_loss, reason = "packets of some seconds")]
        Some(frames as f64)
    }
}

/// The event: the power of the host that runs the machine is cut.
fn across(stage: &mut Stage<'_>) -> Result<Beside> {
    let t_b = stage.cut()?.t_b;
    Ok(Beside {
        t_b_ms: Some(t_b.as_secs_f64() * 1e3),
        ..Beside::default()
    })
}

fn line(
    place: Place,
    number: u32,
    cut: bool,
    seconds: f64,
    outcome: &Outcome,
    summary: &Summary,
    beside: &Beside,
) -> Line {
    #[allow(clippy::cast_precision_loss, reason = "numbers of calls and packets")]
    let count = |number: u64| Cell::from(number as f64);
    // After an event that is none, no media is to flow: calls end at once.
    let preserved = if cut {
        outcome.preserved()
    } else {
        outcome.completed()
    };
    #[allow(clippy::cast_precision_loss, reason = "numbers of calls")]
    let preserved = preserved as f64 / f64::from(number) * 100.0;
    let minutes = beside
        .host
        .map(|(_, seconds)| seconds / 60.0 * f64::from(number));
    // The relay sends on whatever it gets.
    #[allow(clippy::cast_precision_loss, reason = "packets of a minute")]
    let relayed = summary.sent as f64;
    let cells = vec![
        place.mode.to_string().into(),
        place.epoch_ms.map(f64::from).into(),
        number.into(),
        yes(cut),
        seconds.into(),
        preserved.into(),
        count(u64::try_from(summary.streams).unwrap_or(u64::MAX)),
        count(summary.sent),
        summary.loss_percent.into(),
        count(summary.late),
        count(summary.reordered),
        count(summary.duplicates),
        summary.longest_gap_ms.into(),
        summary.sender_gap_ms.into(),
        summary.delay_p50_ms.into(),
        summary.delay_p99_ms.into(),
        summary.delay_max_ms.into(),
        summary.jitter_ms.into(),
        summary.jitter_max_ms.into(),
        summary.mos_mean.into(),
        summary.mos_min.into(),
        outcome.pacing.p99_ms.into(),
        beside
            .host
            .map(|(busy, seconds)| busy / seconds * 100.0)
            .into(),
        beside
            .host
            .zip(minutes)
            .map(|((busy, _), minutes)| busy / minutes)
            .into(),
        beside.pause_p99_ms.into(),
        beside.at_once.map(|frames| frames / relayed * 100.0).into(),
        beside.t_b_ms.into(),
    ];
    Line::new(&MEDIA, cells)
}
