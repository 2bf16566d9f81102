//! Experiment 5: SIPstone's five tests, with random arrivals.

use super::{
    Context,
    signalling::{Steps, capacity, yes},
    stage::Stage,
};
use crate::{
    call::{self, Callee},
    machine_file::FIRST_GUEST,
    sipp::{self, Load, Outcome, Transport},
};
use anyhow::Result;
use romulus_telephony::{
    random::Random,
    sipstone::{
        arrivals::{poisson_ms, waits_ms},
        jobs::{Place, Stone},
        tables::{Line, STONES},
    },
};
use std::{fmt::Write as _, fs, time::Duration};

const REGISTRATION: &str = include_str!("../../sipp/sipstone/registration.xml");
const REFUSED: &str = include_str!("../../sipp/sipstone/refused.xml");
const ANSWERED: &str = include_str!("../../sipp/sipstone/answered.xml");

/// SIPp makes all calls of a trial within this time; each then waits for its own moment.
const MADE_PER_SECOND: u32 = 2000;
/// How long a callee is there beyond its calls.
const PATIENCE: Duration = Duration::from_secs(30);
/// A rate is sustained if at most this share of its transactions fails, and this share is answered within this time, as
/// SIPstone asks; and if hardly any request was sent twice, for UDP hides an overload.
const FAILED_PERCENT: f64 = 5.0;
const WITHIN_MS: f64 = 2000.0;
const RETRANSMISSIONS_ONE_IN: u32 = 10;

/// Steps the rate of a test up until the machine does not bear it.
///
/// # Errors
/// The machine does not answer any more.
pub(super) fn run(
    stage: &mut Stage<'_>,
    context: &Context,
    place: Place,
    stone: Stone,
) -> Result<Vec<Line>> {
    // A call is five to eight messages, a registration two.
    let start = match stone {
        Stone::Registration => 40,
        Stone::Redirect | Stone::Proxy480 => 30,
        Stone::OutboundProxy | Stone::Proxy200 => 10,
    };
    let steps = Steps::new(context.effort, start);
    let (mut lines, search) = steps.climb(|rate| {
        let step = stage
            .progress()
            .step(format!("{stone}, {}: {rate}/s", place.mode));
        let name = format!("{stone} {} {rate}", place.mode);
        let mut random = Random::named(context.seed, &name);
        let outcome = trial(stage.client(), stone, rate, steps.seconds, &mut random)?;
        step.done(format!(
            "{stone}, {}: {rate}/s: {}",
            place.mode,
            outcome.summary()
        ));
        let passed = sustained(&outcome);
        if !passed {
            sipp::settle(stage.client(), sipp::sip(FIRST_GUEST), 1)?;
        }
        Ok((line(place, stone, rate, &outcome), passed))
    })?;
    lines.push(capacity(5, place, &stone.to_string(), &search));
    Ok(lines)
}

fn failed_percent(outcome: &Outcome) -> f64 {
    f64::from(outcome.wanted.saturating_sub(outcome.ok)) / f64::from(outcome.wanted) * 100.0
}

fn sustained(outcome: &Outcome) -> bool {
    let in_time = outcome.response_ms.percentile(95.0);
    failed_percent(outcome) <= FAILED_PERCENT
        && in_time.is_some_and(|ms| ms <= WITHIN_MS)
        && outcome.retransmissions * RETRANSMISSIONS_ONE_IN <= outcome.wanted
}

fn line(place: Place, stone: Stone, rate: u32, outcome: &Outcome) -> Line {
    let cells = vec![
        place.mode.to_string().into(),
        stone.to_string().into(),
        rate.into(),
        outcome.wanted.into(),
        outcome.ok.into(),
        failed_percent(outcome).into(),
        outcome.retransmissions.into(),
        outcome.response_ms.median().into(),
        outcome.response_ms.percentile(95.0).into(),
        yes(sustained(outcome)),
    ];
    Line::new(&STONES, cells)
}

/// Makes calls of one kind, `rate` a second on the average, for `seconds`.
fn trial(
    client: &lab::Client,
    stone: Stone,
    rate: u32,
    seconds: u32,
    random: &mut Random,
) -> Result<Outcome> {
    let server = sipp::sip(FIRST_GUEST);
    let count = rate * seconds;
    let limit = Duration::from_secs(u64::from(seconds)) + PATIENCE;
    // Only where calls are for somebody is somebody there. Whom the server knows tells it what to do.
    let callee = |user: &str| -> Result<Callee> {
        let now = Duration::ZERO;
        call::callee(client, server, Transport::Udp, user, count, now, limit)
    };
    let (scenario, to, callee) = match stone {
        Stone::Registration => (REGISTRATION.to_owned(), "stone".to_owned(), None),
        Stone::Redirect => {
            let known = callee("moved")?;
            (
                REFUSED.replace("FINAL", "302"),
                format!("moved@{FIRST_GUEST}"),
                Some(known),
            )
        }
        Stone::Proxy480 => (
            REFUSED.replace("FINAL", "480"),
            format!("away@{FIRST_GUEST}"),
            None,
        ),
        Stone::Proxy200 => {
            let known = callee("there")?;
            (
                ANSWERED.to_owned(),
                format!("there@{FIRST_GUEST}"),
                Some(known),
            )
        }
        Stone::OutboundProxy => {
            let known = callee("elsewhere")?;
            let to = format!("elsewhere@{}:{}", client.address(), known.port);
            (ANSWERED.to_owned(), to, Some(known))
        }
    };
    let load = Load {
        server,
        transport: Transport::Udp,
        users: "",
        rate: MADE_PER_SECOND,
        count,
    };
    let made_within = f64::from(count) / f64::from(MADE_PER_SECOND) * 1e3;
    let length = usize::try_from(count)?;
    let arrivals = poisson_ms(random, f64::from(rate), length);
    let last = arrivals.last().copied().unwrap_or(0.0) + made_within;
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "seconds of a trial"
    )]
    let last = (last / 1e3).ceil() as u32;
    let waits = waits_ms(&arrivals, made_within);
    let sipp = sipp::start_scenario(client, load, &scenario, last, |folder, command| {
        let mut text = String::from("SEQUENTIAL\n");
        for wait in waits {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{wait}");
        }
        let file = folder.join("arrivals.csv");
        fs::write(&file, text)?;
        command.arg("-inf").arg(file).args(["-key", "to", &to]);
        Ok(())
    })?;
    let outcome = sipp.finish();
    drop(callee);
    outcome
}

#[cfg(test)]
mod tests {
    use super::{ANSWERED, REFUSED, REGISTRATION, sustained};
    use crate::{distribution::Distribution, sipp::Outcome};

    fn outcome(ok: u32, retransmissions: u32, ms: f64) -> Outcome {
        Outcome {
            wanted: 100,
            tried: 100,
            ok,
            retransmissions,
            response_ms: Distribution::new(vec![ms; 100]),
            ..Outcome::default()
        }
    }

    #[test]
    fn a_rate_is_sustained_as_sipstone_asks() {
        assert!(sustained(&outcome(95, 10, 2000.0)));
        assert!(!sustained(&outcome(94, 0, 5.0)));
        assert!(!sustained(&outcome(100, 11, 5.0)));
        assert!(!sustained(&outcome(100, 0, 2001.0)));
        assert!(!sustained(&Outcome::default()));
    }

    #[test]
    fn each_scenario_waits_for_its_arrival_and_logs_start_and_end() {
        for scenario in [REGISTRATION, REFUSED, ANSWERED] {
            assert!(scenario.contains("<pause variable=\"wait\"/>"));
            assert_eq!(scenario.matches("[$micros],start\"").count(), 1);
            assert_eq!(scenario.matches("[$micros],ok\"").count(), 1);
        }
        assert_eq!(REFUSED.matches("response=\"FINAL\"").count(), 1);
    }
}
