//! `cargo xtask bench in-flight`: what a power cut does to requests that are on their way, with and without what Romulus does
//! for them. All four ways take turns on one pair in one run: a cut's primary runs with the settings with which it came back
//! two cuts before.

use crate::{
    assets::{Assets, Image},
    compile::target_folder,
    crossing::{self, Crossing, Plan},
    distribution::Distribution,
    pair::{self, Pair},
    report::{Report, Row, Target},
    sipp::{Outcome, Transport},
};
use anyhow::{Context as _, Result, ensure};
use images::Progress;
use lab::Lab;
use std::{process::ExitCode, time::Duration};

/// How long the load of a cut goes on, in seconds.
const SECONDS: u32 = 8;
/// The first moment of a cut after the load's start, and from one cut's to the next one's: no multiple of the load's period.
const FIRST: Duration = Duration::from_millis(2500);
const STEP: Duration = Duration::from_millis(137);
/// What a SIP client over UDP waits before it sends a request again, in milliseconds (T1, RFC 3261, section 17.1.1.2).
const T1_MS: f64 = 500.0;

/// What is switched on: output is sent again, input is passed on.
const WAYS: [(&str, bool, bool); 4] = [
    ("both", true, true),
    ("only output sent again", true, false),
    ("only input passed on", false, true),
    ("neither", false, false),
];

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often the power is cut with each of the four settings
    #[arg(long, value_name = "N", default_value_t = 5)]
    cuts: u32,
    /// Registrations a second over each of UDP, one TCP connection and a connection each
    #[arg(long, default_value_t = 20)]
    rate: u32,
    /// `T_b` of the pair: shorter than the half second after which clients repeat a request by themselves
    #[arg(long, value_name = "TIME", default_value = "200ms")]
    t_b: String,
    /// Print one JSON object on standard output and nothing else there
    #[arg(long)]
    json: bool,
}

/// One cut, and what the takeover did.
struct Seen {
    crossing: Crossing,
    sent_again: u64,
    given_again: u64,
}

/// Prepares everything and measures in a lab of its own.
///
/// # Errors
/// Something can't be prepared, or not be measured.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    ensure!(
        args.cuts > 0 && args.rate > 0,
        "--cuts and --rate must not be 0"
    );
    let assets = Assets::with_guests(&[Image::REGISTRAR_12])?;
    let progress = Progress::new();
    let logs = target_folder().join("lab-logs/bench-in-flight");
    let lab = Lab::start(&assets.lab_config(2, pair::HOST_MIB, &logs), &progress)?;
    let step = progress.step("a pair of hosts is made and protected");
    let guest = assets.guest(Image::REGISTRAR_12)?;
    let mut pair = Pair::new(&lab, &assets, guest, |file| {
        file.boot.command_line.push_str(" service.shell");
        if let Some(protection) = &mut file.protection {
            protection.t_b = Some(args.t_b.clone());
        }
    })?;
    for side in 0..2 {
        set(&mut pair, side)?;
        pair.run(side)?;
    }
    pair.wait_protected(None)?;
    pair.running(0)?
        .wait_console("GUEST UP", Duration::from_mins(4))?;
    step.done("the machine is protected");
    let seen = cut_all(&lab, &mut pair, args, &progress)
        .or_else(|error| {
            pair.keep_logs(&logs)?;
            Err(error)
        })
        .with_context(|| format!("consoles and logs are in {}", logs.display()))?;
    let mut report = Report::new("in-flight", lab.kind());
    report.rows = WAYS
        .iter()
        .zip(&seen)
        .flat_map(|((name, ..), seen)| rows(name, seen))
        .collect();
    drop(pair);
    drop(lab);
    report.print(args.json)?;
    Ok(ExitCode::SUCCESS)
}

/// Which of [`WAYS`] it is at cut number `number`. The two hosts lose their power in turns, and each way comes to both.
fn way(number: usize) -> usize {
    (number + number / WAYS.len()) % WAYS.len()
}

/// Writes the way of cut number `number` into the pair's file, for the next process that is started with it.
fn set(pair: &mut Pair<'_>, number: usize) -> Result<()> {
    let (_, output, input) = WAYS[way(number)];
    let protection = pair.file.protection.as_mut();
    let protection = protection.context("the machine is not protected")?;
    protection.resend_output = Some(output);
    protection.forward_input = Some(input);
    Ok(())
}

/// Cuts the power again and again; the cuts of each of [`WAYS`].
fn cut_all(
    lab: &Lab,
    pair: &mut Pair<'_>,
    args: &Args,
    progress: &Progress,
) -> Result<[Vec<Seen>; WAYS.len()]> {
    let mut seen = WAYS.map(|_| Vec::new());
    let times = args.cuts as usize * WAYS.len();
    for number in 0..times {
        let way = way(number);
        let step = progress.step(format!("cut {} of {times}: {}", number + 1, WAYS[way].0));
        let runner = pair.runner()?.context("no host runs the machine")?;
        let plan = Plan {
            name: format!("cut{number}"),
            rates: [args.rate; 3],
            seconds: SECONDS,
            cut_after: Some(FIRST + STEP * u32::try_from(number % 17)?),
        };
        let crossing = crossing::run(lab.client(), pair, &plan, None)?;
        ensure!(
            !crossing.moved,
            "the machine was taken over without a failure"
        );
        for fault in crossing.faults() {
            progress.note(format!("cut {}: {fault}", number + 1));
        }
        let status = pair.wait_runs(1 - runner)?;
        let cover = status
            .cover()
            .context("the runner says nothing of protection")?;
        let one = Seen {
            crossing,
            sent_again: cover.sent_again_frames,
            given_again: cover.given_again_frames,
        };
        step.done(format!("cut {}: {}", number + 1, one.summary()));
        seen[way].push(one);
        if number + 1 < times {
            let step = progress.step("the lost host comes back");
            // The next cut's primary runs already; this host is the one after that.
            set(pair, number + 2)?;
            pair.return_host(runner)?;
            pair.wait_protected(None)?;
            step.done("the machine is protected");
        }
    }
    Ok(seen)
}

/// How long each request took that began before `cut` and was answered after it, in milliseconds.
fn on_their_way(outcome: &Outcome, cut: f64) -> Vec<f64> {
    let answers = outcome.answers.iter();
    let crossed = answers.filter(|answer| answer.began < cut && answer.came() > cut);
    crossed.map(|answer| answer.ms).collect()
}

impl Seen {
    fn load(&self, wanted: Transport) -> Option<&Outcome> {
        let loads = self.crossing.loads.iter();
        let mut found = loads.filter(|(transport, _)| *transport == wanted);
        found.next().map(|(_, outcome)| outcome)
    }

    fn on_their_way(&self, transport: Transport) -> Vec<f64> {
        let cut = self.crossing.cut.unwrap_or(f64::NEG_INFINITY);
        let load = self.load(transport);
        load.map_or_else(Vec::new, |outcome| on_their_way(outcome, cut))
    }

    fn summary(&self) -> String {
        let (wanted, ok) = self.crossing.totals();
        let crossed = self.on_their_way(Transport::Udp);
        format!(
            "{ok}/{wanted} ok, running after {:.0} ms; {} UDP requests on their way, {} of them repeated; {} frames sent \
             again, {} given again",
            self.crossing.steps.running.unwrap_or(f64::NAN) * 1e3,
            crossed.len(),
            repeated(&crossed),
            self.sent_again,
            self.given_again
        )
    }
}

/// How many of these requests their client has repeated.
fn repeated(milliseconds: &[f64]) -> usize {
    milliseconds.iter().filter(|ms| **ms >= T1_MS).count()
}

#[allow(clippy::cast_precision_loss, reason = "numbers of requests and frames")]
fn rows(name: &str, seen: &[Seen]) -> Vec<Row> {
    let cuts = seen.len() as f64;
    let mean = |count: &dyn Fn(&Seen) -> f64| seen.iter().map(count).sum::<f64>() / cuts;
    let all = |transport| {
        let times = seen.iter().flat_map(|seen| seen.on_their_way(transport));
        times.collect::<Vec<f64>>()
    };
    let udp = all(Transport::Udp);
    let again = |seen: &Seen| {
        let load = seen.load(Transport::Udp);
        load.map_or(0.0, |outcome| f64::from(outcome.retransmissions))
    };
    let completed = seen.iter().fold((0, 0), |(wanted, ok), seen| {
        let totals = seen.crossing.totals();
        (wanted + totals.0, ok + totals.1)
    });
    let share = f64::from(completed.1) / f64::from(completed.0) * 100.0;
    let running = seen.iter().filter_map(|seen| seen.crossing.steps.running);
    let running = Distribution::new(running.map(|seconds| seconds * 1e3).collect());
    let row = |what: &str, unit: &'static str, value: Option<f64>| {
        Row::new(format!("{name}: {what}"), unit, value)
    };
    let mut rows = vec![
        row("power cuts", "", Some(cuts)),
        row("registrations completed", "%", Some(share)).target(Target::AtLeast(100.0)),
        row("cut to running, median", "ms", running.median()),
        row(
            "UDP requests on their way at a cut, mean",
            "",
            Some(udp.len() as f64 / cuts),
        ),
        row(
            "of these, repeated by their clients, mean",
            "",
            Some(repeated(&udp) as f64 / cuts),
        ),
        row(
            "UDP requests repeated in all, mean of a cut",
            "",
            Some(mean(&again)),
        ),
    ];
    for (transport, what) in [
        (Transport::Udp, "UDP"),
        (Transport::TcpOne, "one TCP connection"),
        (Transport::TcpEach, "a TCP connection each"),
    ] {
        let times = Distribution::new(all(transport));
        rows.push(row(
            &format!("response time of what was on its way, {what}, median"),
            "ms",
            times.median(),
        ));
    }
    rows.extend([
        row(
            "frames sent again, mean",
            "",
            Some(mean(&|seen| seen.sent_again as f64)),
        ),
        row(
            "frames given again, mean",
            "",
            Some(mean(&|seen| seen.given_again as f64)),
        ),
    ]);
    rows
}

#[cfg(test)]
mod tests {
    use super::{WAYS, on_their_way, repeated, way};
    use crate::sipp::{Answer, Outcome};

    #[test]
    fn each_way_comes_to_both_hosts_equally_often() {
        let mut seen = [[0; 2]; WAYS.len()];
        for number in 0..16 {
            seen[way(number)][number % 2] += 1;
        }
        assert_eq!(seen, [[2, 2]; WAYS.len()]);
    }

    #[test]
    fn on_their_way_is_what_began_before_the_cut_and_ended_after_it() {
        let answer = |began, ms| Answer {
            user: "a-1".to_owned(),
            began,
            ms,
        };
        let outcome = Outcome {
            answers: vec![
                answer(1.0, 900.0),
                answer(1.5, 501.0),
                answer(1.9, 499.0),
                answer(2.1, 700.0),
            ],
            ..Outcome::default()
        };
        let crossed = on_their_way(&outcome, 2.0);
        assert_eq!(crossed, [501.0, 499.0]);
        assert_eq!(repeated(&crossed), 1);
    }
}
