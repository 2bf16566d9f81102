//! Experiment 4: calls in progress while the host loses its power, over UDP, TCP and TLS at once: those that are up, those that
//! ring, and what may be said in the middle of a dialog.

use super::{Context, stage::Stage};
use crate::{
    calls::{self, Load},
    machine_file::FIRST_GUEST,
    sipp,
};
use anyhow::Result;
use romulus_telephony::{
    call::Transport,
    probe::{Answer, CallOutcome, End, Outcome, Script, Side, Summary},
    report::Cell,
    sipstone::{
        jobs::{Effort, Place},
        tables::{CALLS, Line},
    },
};
use std::{net::SocketAddrV4, time::Duration};

/// What the calls of an experiment are told apart by: what is said first in them after the event.
const KINDS: [&str; 5] = [
    "BYE by the caller",
    "BYE by the callee",
    "re-INVITE",
    "answer to one that rang",
    "CANCEL of one that rang",
];

fn kind(script: &Script) -> &'static str {
    match script {
        Script {
            end: End::Cancel { .. },
            ..
        } => KINDS[4],
        Script {
            answer: Answer::At(_),
            ..
        } => KINDS[3],
        Script {
            reinvite: Some(_), ..
        } => KINDS[2],
        Script {
            end: End::HangUp {
                by: Side::Callee, ..
            },
            ..
        } => KINDS[1],
        _ => KINDS[0],
    }
}

/// Makes the calls and cuts the power once.
///
/// # Errors
/// Calls can't be made at all, or the lab does not do as it should. Calls that fail are a result.
pub(super) fn run(
    stage: &mut Stage<'_>,
    context: &Context,
    place: Place,
    number: u32,
) -> Result<Vec<Line>> {
    let (before, after) = match context.effort {
        Effort::Full => (20, 40),
        Effort::Quick | Effort::Smallest => (1, 5),
    };
    // An emulated host relays hardly ten calls: media is for those of which it says the most.
    let load = |transport: Transport, media: bool| {
        let calls = Load {
            before: Duration::from_secs(before),
            after: Duration::from_secs(after),
            media,
            ..Load::new(server(transport), transport)
        };
        if media {
            // Half of what is established is hung up by either end, from the caller on.
            Load {
                established: 1,
                ringing: 1,
                ..calls
            }
        } else {
            Load {
                established: 2,
                reinvited: 1,
                cancelled: 1,
                ..calls
            }
        }
    };
    let transports = [Transport::Udp, Transport::Tcp, Transport::Tls];
    let loads: Vec<Load> = transports
        .into_iter()
        .flat_map(|transport| [load(transport, true), load(transport, false)])
        .collect();
    let step = stage.progress().step(format!(
        "calls over UDP, TCP and TLS, {before} s before a cut and {after} s after it"
    ));
    let client = stage.client();
    let (outcomes, t_b) = calls::run_all(client, &loads, |_| stage.cut())?;
    let all: usize = outcomes.iter().map(|outcome| outcome.calls.len()).sum();
    let preserved: usize = outcomes.iter().map(Outcome::preserved).sum();
    step.done(format!("{preserved} of {all} calls preserved"));
    let mut lines = Vec::new();
    for (load, outcome) in loads.iter().zip(&outcomes) {
        let moment = outcome.event.unwrap_or_default();
        for kind in KINDS {
            let calls: Vec<&CallOutcome> = outcome
                .calls
                .iter()
                .filter(|call| self::kind(&call.script) == kind)
                .collect();
            if calls.is_empty() {
                continue;
            }
            for call in calls.iter().filter(|call| !call.preserved(moment)) {
                stage.progress().note(format!(
                    "{}: {kind}: not preserved: {:?}",
                    load.transport.name(),
                    call.failure
                ));
            }
            let kept = calls.iter().filter(|call| call.preserved(moment)).count();
            let summary = Summary::over(
                calls
                    .iter()
                    .filter_map(|call| call.streams.as_ref())
                    .flatten(),
            );
            #[allow(clippy::cast_precision_loss, reason = "numbers of calls")]
            let count = |number: usize| Cell::from(number as f64);
            #[allow(clippy::cast_precision_loss, reason = "numbers of calls")]
            let share = kept as f64 / calls.len() as f64 * 100.0;
            let heard = summary.streams > 0;
            // Of one that rang before, nothing was heard before.
            let whole = heard && kind != KINDS[3];
            lines.push(Line::new(
                &CALLS,
                vec![
                    place.guest.to_string().into(),
                    place.mode.to_string().into(),
                    number.into(),
                    load.transport.name().into(),
                    kind.into(),
                    count(calls.len()),
                    count(kept),
                    share.into(),
                    whole.then_some(summary.longest_gap_ms).into(),
                    whole.then_some(summary.loss_percent).into(),
                    whole.then_some(summary.jitter_ms).into(),
                    summary.mos_min.filter(|_| whole).into(),
                    (load.before + load.after).as_secs_f64().into(),
                    (t_b.as_secs_f64() * 1e3).into(),
                ],
            ));
        }
    }
    Ok(lines)
}

/// The SIP server's address for a transport.
fn server(transport: Transport) -> SocketAddrV4 {
    match transport {
        Transport::Udp | Transport::Tcp => sipp::sip(FIRST_GUEST),
        Transport::Tls => SocketAddrV4::new(FIRST_GUEST, 5061),
    }
}
