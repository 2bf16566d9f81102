//! Experiment 4: calls in progress while the host loses its power, over UDP, TCP and TLS at once: those that are up, those that
//! ring, and what may be said in the middle of a dialog.

use super::{
    Context,
    stage::{Lost, Stage},
};
use crate::{
    calls::{self, Load},
    machine_file::FIRST_GUEST,
    pair::UnixSeconds,
    scenarios::relays::EncryptedCall,
    sipp,
};
use anyhow::Result;
use romulus_telephony::{
    call::Transport,
    probe::{Answer, CallOutcome, End, Outcome, Script, Side, Summary},
    report::Cell,
    sipstone::{
        jobs::{Effort, Guest, Place},
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

/// A call over DTLS-SRTP, of which no handshake may be seen after the cut.
pub(super) const ENCRYPTED: &str = "DTLS-SRTP goes on";

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
    let loads = loads(context.effort, number);
    let client = stage.client();
    // The paper's layout has no relay that takes part in DTLS.
    let tree = match place.guest {
        Guest::Pbx => stage.softphone(),
        Guest::Sip | Guest::Two => None,
    };
    // One that can't even begin counts as lost: what was not measured is not kept.
    let encrypted = tree.map(|tree| EncryptedCall::begin(client, tree));
    let step = stage
        .progress()
        .step("calls over UDP, TCP and TLS, and a cut");
    let (outcomes, cut) = calls::run_all(client, &loads, |_| stage.cut())?;
    let all: usize = outcomes.iter().map(|outcome| outcome.calls.len()).sum();
    let preserved: usize = outcomes.iter().map(Outcome::preserved).sum();
    step.done(format!("{preserved} of {all} calls preserved"));
    let said = Said { place, number, cut };
    let mut lines = Vec::new();
    if let Some(call) = encrypted {
        let gap = call.and_then(|call| goes_on(call, said.cut.at));
        if let Err(error) = &gap {
            stage.progress().note(format!("{ENCRYPTED}: {error:#}"));
        }
        let seen = Seen {
            transport: Transport::Udp,
            kind: ENCRYPTED,
            calls: 1,
            kept: usize::from(gap.is_ok()),
            gap_ms: gap.ok().map(|seconds| seconds * 1e3),
            media: None,
        };
        lines.push(said.line(&seen));
    }
    for (load, outcome) in loads.iter().zip(&outcomes) {
        for kind in KINDS {
            if let Some(seen) = seen(load, outcome, kind, stage) {
                lines.push(said.line(&seen));
            }
        }
    }
    Ok(lines)
}

/// The transports, in the order in which their calls have media.
const TRANSPORTS: [Transport; 3] = [Transport::Udp, Transport::Tcp, Transport::Tls];

/// What is called for cut `number` (from 1 on): over each transport calls of every kind, some of them with media.
fn loads(effort: Effort, number: u32) -> Vec<Load> {
    let (before, after) = match effort {
        Effort::Full => (20, 40),
        Effort::Quick | Effort::Smallest => (1, 5),
    };
    // Seven calls with media, of which one is encrypted, are more than an emulated host relays for long: for a minute, those over
    // one transport have it, another one's at each cut.
    let with_media = |index: usize| match effort {
        Effort::Full => (number as usize + TRANSPORTS.len() - 1) % TRANSPORTS.len() == index,
        Effort::Quick | Effort::Smallest => true,
    };
    let load = |transport: Transport, media: bool| Load {
        before: Duration::from_secs(before),
        after: Duration::from_secs(after),
        media,
        ..Load::new(server(transport), transport)
    };
    let loads = TRANSPORTS.into_iter().enumerate();
    loads
        .flat_map(|(index, transport)| {
            // Half of what is established is hung up by either end, from the caller on.
            let silent = Load {
                established: 2,
                reinvited: 1,
                cancelled: 1,
                ..load(transport, false)
            };
            if with_media(index) {
                let spoken = Load {
                    established: 1,
                    ringing: 1,
                    ..load(transport, true)
                };
                vec![spoken, silent]
            } else {
                vec![Load {
                    established: 3,
                    ringing: 1,
                    ..silent
                }]
            }
        })
        .collect()
}

/// What became of the calls of one kind over one transport; `None` if there were none.
fn seen(load: &Load, outcome: &Outcome, kind: &'static str, stage: &Stage<'_>) -> Option<Seen> {
    let moment = outcome.event.unwrap_or_default();
    let calls: Vec<&CallOutcome> = outcome
        .calls
        .iter()
        .filter(|call| self::kind(&call.script) == kind)
        .collect();
    let (kept, lost): (Vec<&CallOutcome>, Vec<&CallOutcome>) =
        calls.iter().partition(|call| call.preserved(moment));
    for call in lost {
        stage.progress().note(format!(
            "{}: {kind}: not preserved: {:?}",
            load.transport.name(),
            call.failure
        ));
    }
    let streams = calls.iter().filter_map(|call| call.streams.as_ref());
    let summary = Summary::over(streams.flatten());
    // Of one that rang before the cut, nothing was heard before it.
    let whole = summary.streams > 0 && kind != KINDS[3];
    (!calls.is_empty()).then(|| Seen {
        transport: load.transport,
        kind,
        calls: calls.len(),
        kept: kept.len(),
        gap_ms: whole.then_some(summary.longest_gap_ms),
        media: whole.then(|| (summary, (load.before + load.after).as_secs_f64())),
    })
}

/// Calls of one kind over one transport.
struct Seen {
    transport: Transport,
    kind: &'static str,
    calls: usize,
    kept: usize,
    gap_ms: Option<f64>,
    /// All their streams, and how long they were.
    media: Option<(Summary, f64)>,
}

/// What all lines of a cut have in common.
struct Said {
    place: Place,
    number: u32,
    cut: Lost,
}

impl Said {
    #[allow(clippy::cast_precision_loss, reason = "numbers of calls")]
    fn line(&self, seen: &Seen) -> Line {
        let media = |of: &dyn Fn(&Summary) -> Option<f64>| {
            Cell::from(seen.media.as_ref().and_then(|(summary, _)| of(summary)))
        };
        let cells = vec![
            self.place.guest.to_string().into(),
            self.place.mode.to_string().into(),
            self.number.into(),
            seen.transport.name().into(),
            seen.kind.into(),
            (seen.calls as f64).into(),
            (seen.kept as f64).into(),
            (seen.kept as f64 / seen.calls as f64 * 100.0).into(),
            seen.gap_ms.into(),
            media(&|summary| Some(summary.loss_percent)),
            media(&|summary| Some(summary.jitter_ms)),
            media(&|summary| summary.mos_min),
            seen.media.as_ref().map(|(_, seconds)| *seconds).into(),
            (self.cut.t_b.as_secs_f64() * 1e3).into(),
        ];
        Line::new(&CALLS, cells)
    }
}

/// Whether an encrypted call goes on after a cut at `moment`, in seconds since 1970, as it was: its longest gap in seconds.
fn goes_on(call: EncryptedCall, moment: UnixSeconds) -> Result<f64> {
    call.finish()?.encrypted_gap(moment)
}

/// The SIP server's address for a transport.
fn server(transport: Transport) -> SocketAddrV4 {
    match transport {
        Transport::Udp | Transport::Tcp => sipp::sip(FIRST_GUEST),
        Transport::Tls => SocketAddrV4::new(FIRST_GUEST, 5061),
    }
}
