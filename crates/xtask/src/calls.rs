//! Calls through a machine of the lab, with media both ways, across whatever happens to it: `run` makes them, lets the event
//! happen when all are as they should be, and gives what became of each.
//!
//! ```ignore
//! let load = Load {
//!     established: 8,             // calls that are up at the event
//!     ringing: 2,                 // calls that ring at it, and are answered after it
//!     ..Load::new(sip(FIRST_GUEST), Transport::Udp)
//! };
//! let (outcome, cut) = calls::run(case.lab.client(), &load, |_| pair.cut_power(0))?;
//! outcome.preserved();            // of load.calls()
//! Summary::of(&outcome).line();   // loss, gaps, delay, jitter, MOS of all streams
//! for call in &outcome.calls {    // each call's steps, and its two streams with every packet's times
//!     for stream in call.streams.iter().flatten() { stream.report.mos; stream.account.times(); }
//! }
//! ```
//!
//! Time: callees register; calls begin, `per_second` of them; once all are up or ring, `before` passes; the event's closure
//! runs, and *the event is the moment at which it is done*; `after` passes; calls end. Both ends of every call are in the lab's client.
//! [`steady`] is the same without an event.

use crate::process;
use anyhow::{Context as _, Result, ensure};
use romulus_telephony::{
    call::Transport,
    media::{Codec, Playout},
    probe::{
        Answer, Connections, End, Moment, Outcome, Plan, Probe, Progress, Script, Side, Summary,
    },
};
use std::{net::SocketAddrV4, time::Duration};

/// How soon it is noticed that all calls are as they should be.
const LOOK: Duration = Duration::from_millis(20);
/// How long after the event calls that rang are answered or cancelled, and dialogs offered again: in the middle of what the
/// event does.
const SOON: Duration = Duration::from_millis(200);
/// How long calls may take to be up, beyond the pace at which they begin: the server may be an emulated machine.
const UP_WITHIN: Duration = Duration::from_secs(40);
/// How long calls may take to end: longer than the longest time-out of SIP.
const END_WITHIN: Duration = Duration::from_secs(40);

/// Calls to be made. Those that are counted by kind behave so; all have media both ways.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    /// The server.
    pub(crate) server: SocketAddrV4,
    /// What signalling goes over.
    pub(crate) transport: Transport,
    /// How calls share connections.
    pub(crate) connections: Connections,
    /// Calls that are up at the event; half of them are hung up by either end.
    pub(crate) established: u32,
    /// Of these, how many have a re-INVITE soon after the event.
    pub(crate) reinvited: u32,
    /// Calls that ring at the event and are answered soon after it.
    pub(crate) ringing: u32,
    /// Calls that ring at the event and are cancelled soon after it.
    pub(crate) cancelled: u32,
    /// Calls that begin at the event.
    pub(crate) begun: u32,
    /// Calls begun in a second.
    pub(crate) per_second: u32,
    /// From all being up to the event.
    pub(crate) before: Duration,
    /// From the event to the end of the calls.
    pub(crate) after: Duration,
    /// Whether there is media.
    pub(crate) media: bool,
    /// What listeners are assumed to have.
    pub(crate) playout: Playout,
}

impl Load {
    /// No calls yet: ten a second, two seconds before the event and five after it.
    pub(crate) fn new(server: SocketAddrV4, transport: Transport) -> Self {
        Self {
            server,
            transport,
            connections: if transport.is_reliable() {
                Connections::Each
            } else {
                Connections::Shared
            },
            established: 0,
            reinvited: 0,
            ringing: 0,
            cancelled: 0,
            begun: 0,
            per_second: 10,
            before: Duration::from_secs(2),
            after: Duration::from_secs(5),
            media: true,
            playout: Playout::default(),
        }
    }

    /// How many calls there are.
    pub(crate) fn calls(&self) -> u32 {
        self.established + self.ringing + self.cancelled + self.begun
    }

    /// How long it takes to begin them all.
    fn ramp(&self) -> Duration {
        Duration::from_secs(1) * self.calls() / self.per_second.max(1)
    }

    fn scripts(&self) -> Vec<Script> {
        let after = |time| Moment::Event(time);
        let hang_up = |by| End::HangUp {
            at: after(self.after),
            by,
        };
        let plain = |number: u32| Script {
            invite: Moment::Start(Duration::from_secs(1) * number / self.per_second.max(1)),
            answer: Answer::After(Duration::ZERO),
            reinvite: None,
            end: hang_up(if number.is_multiple_of(2) {
                Side::Caller
            } else {
                Side::Callee
            }),
        };
        (0..self.calls())
            .map(|number| {
                let mut script = plain(number);
                let kinds = [self.established, self.ringing, self.cancelled];
                let (mut kind, mut rest) = (0, number);
                while kind < kinds.len() && rest >= kinds[kind] {
                    rest -= kinds[kind];
                    kind += 1;
                }
                match kind {
                    0 if rest < self.reinvited => script.reinvite = Some(after(SOON)),
                    0 => {}
                    1 => script.answer = Answer::At(after(SOON)),
                    2 => {
                        script.answer = Answer::Never;
                        script.end = End::Cancel { at: after(SOON) };
                    }
                    _ => script.invite = after(Duration::ZERO),
                }
                script
            })
            .collect()
    }

    fn plan(&self, client: &lab::Client) -> Plan {
        Plan {
            connections: self.connections,
            codec: Codec::Pcmu,
            playout: self.playout,
            media: self.media,
            ..Plan::new(
                self.server.into(),
                client.address().into(),
                self.transport,
                self.scripts(),
            )
        }
    }

    /// Whether all calls are as they should be at the event.
    fn is_ready(&self, progress: &Progress) -> bool {
        let is = |count: usize, wanted: u32| u32::try_from(count) == Ok(wanted);
        is(progress.up, self.established) && is(progress.ringing, self.ringing + self.cancelled)
    }
}

/// Makes calls, lets the event happen, and gives what became of them and what the event gave. `event` is given the probe, of
/// which it may want to know how far calls are.
///
/// # Errors
/// The server can't be reached, calls fail before the event, or `event` fails. What fails after it is part of the outcome.
pub(crate) fn run<T>(
    client: &lab::Client,
    load: &Load,
    event: impl FnOnce(&Probe) -> Result<T>,
) -> Result<(Outcome, T)> {
    let (outcomes, given) = run_all(client, std::slice::from_ref(load), |probes| {
        event(probes.first().context("no probe runs")?)
    })?;
    let outcome = outcomes.into_iter().next();
    Ok((outcome.context("no probe ran")?, given))
}

/// [`run`] for several loads at once, with one event for all. It happens when the calls of all have been up for the longest time
/// `before` of any.
///
/// # Errors
/// Those of [`run`].
pub(crate) fn run_all<T>(
    client: &lab::Client,
    loads: &[Load],
    event: impl FnOnce(&[Probe]) -> Result<T>,
) -> Result<(Vec<Outcome>, T)> {
    let mut probes = Vec::new();
    for load in loads {
        let plan = load.plan(client);
        let probe = client
            .visit(|| Probe::start(plan))
            .with_context(|| format!("connecting {} calls to {}", load.calls(), load.server))?;
        probes.push(probe);
    }
    for (load, probe) in loads.iter().zip(&probes) {
        let ready = process::poll(load.ramp() + UP_WITHIN, LOOK, || {
            let progress = probe.progress();
            ensure!(
                progress.failed == 0,
                "{} of {} calls over {} failed before anything happened: {progress:?}",
                progress.failed,
                load.calls(),
                load.transport.name()
            );
            Ok(load.is_ready(&progress).then_some(()))
        })?;
        ready.with_context(|| format!("calls are not up in time: {:?}", probe.progress()))?;
    }
    let before = loads.iter().map(|load| load.before).max();
    std::thread::sleep(before.unwrap_or_default());
    let given = event(&probes)?;
    for probe in &probes {
        probe.event();
    }
    let ended = loads
        .iter()
        .zip(probes)
        .map(|(load, probe)| probe.finish(load.after + END_WITHIN));
    Ok((ended.collect(), given))
}

/// Calls that nothing happens to: each is up for `load.before` and `load.after` together, at least.
///
/// # Errors
/// Those of [`run`].
pub(crate) fn steady(client: &lab::Client, load: &Load) -> Result<Outcome> {
    run(client, load, |_| Ok(())).map(|(outcome, ())| outcome)
}

/// Fails unless every call was preserved; says then which was not, and why. Gives the media's figures.
///
/// # Errors
/// A call was not preserved.
pub(crate) fn all_preserved(load: &Load, outcome: &Outcome) -> Result<Summary> {
    let moment = outcome.event.unwrap_or_default();
    for (number, call) in outcome.calls.iter().enumerate() {
        let heard: Vec<_> = call
            .streams
            .iter()
            .flatten()
            .map(|stream| (stream.flowed_since(moment), &stream.report))
            .collect();
        ensure!(
            call.preserved(moment),
            "call {number} of {} over {} was not preserved: {:?}; caller {:?}; callee {:?}; media (after the event or not) {heard:?}",
            load.calls(),
            load.transport.name(),
            call.failure,
            call.caller,
            call.callee
        );
    }
    ensure!(
        u32::try_from(outcome.calls.len()) == Ok(load.calls()) && outcome.unregistered == 0,
        "{} calls were made of {}",
        outcome.calls.len(),
        load.calls()
    );
    Ok(Summary::of(outcome))
}

#[cfg(test)]
mod tests {
    use super::{Load, SOON};
    use romulus_telephony::{
        call::Transport,
        probe::{Answer, End, Moment, Side},
    };

    #[test]
    fn each_kind_of_call_is_made_as_often_as_asked() {
        let load = Load {
            established: 5,
            reinvited: 2,
            ringing: 3,
            cancelled: 2,
            begun: 1,
            ..Load::new("192.0.2.100:5060".parse().unwrap(), Transport::Udp)
        };
        let scripts = load.scripts();
        assert_eq!(scripts.len(), 11);
        let count = |what: &dyn Fn(&romulus_telephony::probe::Script) -> bool| {
            scripts.iter().filter(|script| what(script)).count()
        };
        assert_eq!(count(&|script| script.reinvite.is_some()), 2);
        let soon = Moment::Event(SOON);
        assert_eq!(count(&|script| script.answer == Answer::At(soon)), 3);
        assert_eq!(count(&|script| script.answer == Answer::Never), 2);
        assert_eq!(count(&|script| matches!(script.end, End::Cancel { .. })), 2);
        assert_eq!(
            count(&|script| matches!(script.invite, Moment::Event(_))),
            1
        );
        let by = |side| count(&|s| matches!(s.end, End::HangUp { by, .. } if by == side));
        assert!(by(Side::Caller) > 2 && by(Side::Callee) > 2);
    }
}
