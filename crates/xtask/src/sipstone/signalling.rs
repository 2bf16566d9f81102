//! Experiment 1: what registrations cost, of the guest, of romulus's threads and of both hosts, at rates up to the knee.

use super::{
    Context,
    stage::{Processes, Stage},
};
use crate::{
    bench::machine::sustained,
    guest_shell,
    machine_file::FIRST_GUEST,
    processor::{Kernel, Threads},
    rate_search::RateSearch,
    report::ProcessorTimes,
    sipp::{self, Load, Outcome, Transport},
};
use anyhow::{Context as _, Result};
use romulus_telephony::{
    report::Cell,
    sipstone::{
        jobs::{Carrier, Effort, Place},
        tables::{CAPACITY, Line, SIGNALLING},
    },
};
use std::time::{Duration, Instant};

/// How long the guest may take to say what its processors did.
const GUEST_LIMIT: Duration = Duration::from_secs(30);

/// How rates are stepped up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Steps {
    /// The first rate.
    pub(super) start: u32,
    /// From one to the next.
    pub(super) factor: f64,
    /// How many at most.
    pub(super) trials: u32,
    /// How long each goes on.
    pub(super) seconds: u32,
}

impl Steps {
    /// For a server that bears about `start` and more.
    pub(super) fn new(effort: Effort, start: u32) -> Self {
        match effort {
            Effort::Full => Self {
                start,
                factor: 1.5,
                trials: 9,
                seconds: 5,
            },
            Effort::Quick | Effort::Smallest => Self {
                start,
                factor: 3.0,
                trials: 1,
                seconds: 2,
            },
        }
    }

    /// No search goes beyond this rate.
    const LIMIT: u32 = 5000;

    /// Tries rates until one is too high; `trial` makes a row of each. Gives the rows, and the search.
    ///
    /// # Errors
    /// Those of `trial`.
    pub(super) fn climb(
        &self,
        mut trial: impl FnMut(u32) -> Result<(Line, bool)>,
    ) -> Result<(Vec<Line>, RateSearch)> {
        let mut search = RateSearch::new(self.start, self.factor, Self::LIMIT, self.trials);
        let mut lines = Vec::new();
        while let Some(rate) = search.next_rate() {
            let (line, passed) = trial(rate)?;
            lines.push(line);
            search.record(passed);
        }
        Ok((lines, search))
    }
}

/// The row that says what a search found.
pub(super) fn capacity(experiment: u32, place: Place, test: &str, search: &RateSearch) -> Line {
    let cells = vec![
        experiment.into(),
        place.mode.to_string().into(),
        test.into(),
        search.best().map(f64::from).into(),
        yes(!search.is_lower_bound()),
    ];
    Line::new(&CAPACITY, cells)
}

pub(super) fn yes(is: bool) -> Cell {
    if is { "yes" } else { "no" }.into()
}

/// Steps the rate of registrations up until the machine does not bear it.
///
/// # Errors
/// The machine does not answer any more.
pub(super) fn run(
    stage: &mut Stage<'_>,
    context: &Context,
    place: Place,
    carrier: Carrier,
) -> Result<Vec<Line>> {
    let start = match carrier {
        Carrier::Udp | Carrier::TcpOne => 40,
        Carrier::TcpEach => 20,
    };
    let steps = Steps::new(context.effort, start);
    let (mut lines, search) = steps.climb(|rate| {
        let (line, outcome) = trial(stage, &steps, place, carrier, rate)?;
        let passed = sustained(&outcome);
        if !passed {
            // What an overload has left queued is not to be the next one's.
            sipp::settle(stage.client(), sipp::sip(FIRST_GUEST), 1)?;
        }
        Ok((line, passed))
    })?;
    lines.push(capacity(1, place, &carrier.to_string(), &search));
    Ok(lines)
}

fn trial(
    stage: &Stage<'_>,
    steps: &Steps,
    place: Place,
    carrier: Carrier,
    rate: u32,
) -> Result<(Line, Outcome)> {
    let step = stage
        .progress()
        .step(format!("{carrier}, {}: {rate} REGISTER/s", place.mode));
    let processes = stage.processes()?;
    let load = Load {
        server: sipp::sip(FIRST_GUEST),
        transport: transport(carrier),
        users: "user",
        rate,
        count: rate * steps.seconds,
    };
    let before = Sample::take(stage, &processes)?;
    let outcome = sipp::register(stage.client(), load)?;
    let after = Sample::take(stage, &processes)?;
    step.done(format!(
        "{carrier}, {}: {rate} REGISTER/s: {}",
        place.mode,
        outcome.summary()
    ));
    let mut cells: Vec<Cell> = vec![
        place.mode.to_string().into(),
        carrier.to_string().into(),
        rate.into(),
        outcome.wanted.into(),
        outcome.ok.into(),
        outcome.retransmissions.into(),
        outcome.response_ms.median().into(),
        outcome.response_ms.percentile(99.0).into(),
        yes(sustained(&outcome)),
    ];
    cells.extend(after.since(&before, outcome.ok));
    Ok((Line::new(&SIGNALLING, cells), outcome))
}

/// How SIPp carries it.
pub(super) fn transport(carrier: Carrier) -> Transport {
    match carrier {
        Carrier::Udp => Transport::Udp,
        Carrier::TcpOne => Transport::TcpOne,
        Carrier::TcpEach => Transport::TcpEach,
    }
}

/// What all processors did so far.
pub(super) struct Sample {
    at: Instant,
    guest: Kernel,
    primary: (Kernel, Threads),
    backup: Option<(Kernel, Threads)>,
    computer: ProcessorTimes,
}

impl Sample {
    /// Asks the guest and the hosts.
    ///
    /// # Errors
    /// One of them does not answer.
    pub(super) fn take(stage: &Stage<'_>, processes: &Processes<'_>) -> Result<Self> {
        let (text, _) = guest_shell::run(stage.client(), FIRST_GUEST, Kernel::SCRIPT, GUEST_LIMIT)?;
        let guest =
            Kernel::parse(&text).with_context(|| format!("the guest's /proc/stat: {text}"))?;
        let of = |(host, pid): (&lab::Host, i32)| -> Result<_> {
            Ok((Kernel::of(host)?, Threads::of(host, pid)?))
        };
        Ok(Self {
            guest,
            backup: processes.backup.map(of).transpose()?,
            primary: of(processes.primary)?,
            computer: ProcessorTimes::now()?,
            at: Instant::now(),
        })
    }

    /// The cells from `guest` to `taken by others` of the table, for what was used since `earlier` while `count` requests were
    /// answered.
    pub(super) fn since(&self, earlier: &Self, count: u32) -> Vec<Cell> {
        let seconds = self.at.duration_since(earlier.at).as_secs_f64();
        let percent = |used: f64| Cell::from(used / seconds * 100.0);
        let per_1000 = |used: f64| Cell::from(used / f64::from(count) * 1e3);
        let guest = self.guest.since(&earlier.guest).all;
        let host = self.primary.0.since(&earlier.primary.0);
        let threads = self.primary.1.since(&earlier.primary.1);
        let backup = self.backup.as_ref().zip(earlier.backup.as_ref());
        let backup = backup.map(|(now, before)| (now.0.since(&before.0), now.1.since(&before.1)));
        let of_backup = |used: Option<f64>, cell: &dyn Fn(f64) -> Cell| {
            // Without a backup none has used anything.
            used.map_or(Cell::Number(0.0), cell)
        };
        vec![
            percent(guest),
            percent(threads.all()),
            percent(threads.vcpus),
            percent(threads.devices),
            percent(threads.checkpoint),
            percent(threads.sender),
            percent(threads.other),
            percent(host.all),
            percent(host.softirq),
            of_backup(backup.map(|(_, threads)| threads.all()), &percent),
            of_backup(backup.map(|(host, _)| host.all), &percent),
            per_1000(guest),
            per_1000(host.all),
            of_backup(backup.map(|(host, _)| host.all), &per_1000),
            self.computer.stolen_since(&earlier.computer).into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::Steps;
    use anyhow::Result;
    use romulus_telephony::sipstone::{
        jobs::Effort,
        tables::{CAPACITY, Line},
    };

    /// Climbs against a server that bears exactly `bears`; gives the rates that were tried, and the best.
    fn climb(effort: Effort, bears: u32) -> Result<(Vec<u32>, Option<u32>, bool)> {
        let mut tried = Vec::new();
        let (lines, search) = Steps::new(effort, 40).climb(|rate| {
            tried.push(rate);
            Ok((Line::new(&CAPACITY, Vec::new()), rate <= bears))
        })?;
        assert_eq!(lines.len(), tried.len(), "a row for each rate");
        Ok((tried, search.best(), !search.is_lower_bound()))
    }

    #[test]
    fn rates_go_up_to_the_knee_and_one_beyond() {
        let (tried, best, beyond) = climb(Effort::Full, 150).unwrap();
        assert_eq!(tried, [40, 60, 90, 135, 203, 203]);
        assert_eq!((best, beyond), (Some(135), true));
    }

    #[test]
    fn the_quick_form_tries_one_and_says_that_there_may_be_more() {
        let (tried, best, beyond) = climb(Effort::Quick, 1000).unwrap();
        assert_eq!((tried, best, beyond), (vec![40], Some(40), false));
    }
}
