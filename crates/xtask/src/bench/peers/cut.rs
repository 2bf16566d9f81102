//! The power of the host that serves is cut, under registrations over all transports and with calls that ring.

use crate::{
    call::{self, Ringing},
    contacts,
    crossing::{self, TRANSPORTS},
    machine_file::FIRST_GUEST,
    options,
    pair::unix_seconds,
    probe::{self, Question},
    process,
    sipp::{self, Load, Outcome, Transport},
};
use anyhow::{Context as _, Result};
use std::{
    thread,
    time::{Duration, Instant, SystemTime},
};

/// When the power is cut, after the load's start.
pub(super) const AFTER: Duration = Duration::from_secs(4);
/// How long new registrations are begun, in seconds.
const SECONDS: u32 = 12;
/// Registrations a second, as in [`TRANSPORTS`].
pub(super) const RATES: [u32; 3] = [10, 5, 5];
/// Calls that ring over each transport, and for how long: the power is cut meanwhile, and back in time for their answers.
const CALLS: u32 = 3;
const RING: Duration = Duration::from_secs(12);
/// How long the calls may take to ring.
const RINGING_WITHIN: Duration = Duration::from_secs(5);
/// How often the probe asks when nothing happens: hardly a load of its own.
const CALM: Duration = Duration::from_millis(100);
/// Who does not answer for this long after the load's end has lost everything.
const SILENT: Duration = Duration::from_secs(5);

/// What came of it.
pub(super) struct Crossed {
    /// As in [`TRANSPORTS`].
    pub(super) loads: Vec<(Transport, Outcome)>,
    /// Calls over UDP and over one TCP connection.
    pub(super) calls: [Ringing; 2],
    /// From the cut to the first answer to a question that was asked after it, over UDP, in milliseconds.
    pub(super) first_ms: Option<f64>,
    /// Contacts that were acknowledged, before the cut and after it.
    pub(super) acknowledged: usize,
    /// Those of them that nobody has afterwards.
    pub(super) lost: usize,
}

impl Crossed {
    /// The load over one transport.
    pub(super) fn load(&self, transport: Transport) -> Option<&Outcome> {
        self.loads
            .iter()
            .find(|(kind, _)| *kind == transport)
            .map(|(_, outcome)| outcome)
    }

    /// Whether the one TCP connection was the same from start to end.
    pub(super) fn connection_kept(&self) -> bool {
        self.load(Transport::TcpOne)
            .is_some_and(|load| load.complaint.is_none() && load.all_ok())
    }

    /// Registrations over all transports that were to be made, and were not answered.
    pub(super) fn failed(&self) -> u32 {
        let failed = |load: &Outcome| load.wanted.saturating_sub(load.ok);
        self.loads.iter().map(|(_, load)| failed(load)).sum()
    }

    /// Calls that rang and were not kept.
    pub(super) fn calls_lost(&self) -> u32 {
        self.calls.iter().map(|calls| calls.rang - calls.kept).sum()
    }

    /// Response times over UDP, in milliseconds, by seconds since the load's start.
    pub(super) fn timeline(&self) -> Vec<(f64, f64)> {
        self.load(Transport::Udp)
            .map(Outcome::timeline)
            .unwrap_or_default()
    }

    /// A line for people.
    pub(super) fn summary(&self) -> String {
        let [udp, tcp] = self.calls;
        format!(
            "first answer after {}, {} registrations failed, {} of {} contacts lost, TCP connection {}, calls kept: UDP {}/{}, \
             TCP {}/{}",
            self.first_ms
                .map_or_else(|| "never".to_owned(), |ms| format!("{ms:.0} ms")),
            self.failed(),
            self.lost,
            self.acknowledged,
            if self.connection_kept() {
                "kept"
            } else {
                "lost"
            },
            udp.kept,
            udp.rang,
            tcp.kept,
            tcp.rang,
        )
    }
}

/// Puts the load on what answers at the first guest's address, lets calls ring, and has `cut` cut the power.
///
/// # Errors
/// The lab does not do as it should. What the cut costs is part of the outcome.
pub(super) fn run(
    client: &lab::Client,
    name: &str,
    cut: &mut dyn FnMut() -> Result<SystemTime>,
) -> Result<Crossed> {
    let server = sipp::sip(FIRST_GUEST);
    let calls = [(Transport::Udp, "udp"), (Transport::TcpOne, "tcp")]
        .into_iter()
        .map(|(transport, word)| {
            let callee = format!("{name}-callee-{word}");
            call::start(client, server, transport, &callee, CALLS, RING)
        })
        .collect::<Result<Vec<_>>>()?;
    // Those that do not ring in time are missing in the outcome.
    process::poll(RINGING_WITHIN, Duration::from_millis(50), || {
        let all = calls.iter().all(|calls| calls.ringing() == CALLS);
        Ok(all.then_some(()))
    })?;
    let probe = probe::start(client, server, Question::Options, CALM)?;
    let sipps = TRANSPORTS
        .into_iter()
        .zip(RATES)
        .map(|((transport, word), rate)| {
            let load = Load {
                server,
                transport,
                users: &format!("{name}-{word}-"),
                rate,
                count: rate * SECONDS,
            };
            Ok((transport, sipp::start(client, load)?))
        })
        .collect::<Result<Vec<_>>>()?;
    let start = Instant::now();
    thread::sleep(AFTER.saturating_sub(start.elapsed()));
    let moment = unix_seconds(cut()?);
    probe.hurry();

    let mut loads = Vec::new();
    for (transport, sipp) in sipps {
        loads.push((transport, sipp.finish()?));
    }
    let seen = probe.finish()?;
    let kept = calls
        .into_iter()
        .map(|calls| calls.finish(moment))
        .collect::<Result<Vec<_>>>()?;
    let (_, users) = crossing::acknowledged(loads.iter().map(|(_, load)| load), Some(moment));
    let lost = if options::answers(client, server, SILENT).is_ok() {
        contacts::missing(client, server, &users)?.len()
    } else {
        users.len()
    };
    Ok(Crossed {
        first_ms: seen
            .first_answer_since(moment)
            .map(|at| (at - moment) * 1e3),
        acknowledged: users.len(),
        lost,
        loads,
        calls: kept
            .try_into()
            .ok()
            .context("calls over two transports were placed")?,
    })
}

#[cfg(test)]
mod tests {
    use super::{Crossed, Outcome, Ringing, Transport};

    #[test]
    fn what_was_lost_is_counted_over_all_transports() {
        let load = |wanted, ok| Outcome {
            wanted,
            ok,
            ..Outcome::default()
        };
        let kept = |rang, kept| Ringing {
            placed: 3,
            rang,
            kept,
        };
        let mut crossed = Crossed {
            loads: vec![
                (Transport::Udp, load(10, 9)),
                (Transport::TcpOne, load(5, 5)),
                (Transport::TcpEach, load(5, 3)),
            ],
            calls: [kept(3, 3), kept(2, 1)],
            first_ms: None,
            acknowledged: 17,
            lost: 0,
        };
        assert_eq!((crossed.failed(), crossed.calls_lost()), (3, 1));
        assert!(crossed.connection_kept());
        crossed.loads[1].1.complaint = Some("closed".into());
        assert!(!crossed.connection_kept());
        crossed.loads.remove(1);
        assert!(!crossed.connection_kept(), "what was not seen is not kept");
    }
}
