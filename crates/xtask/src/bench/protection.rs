//! `cargo xtask bench protection`: what protection costs, and what a power cut costs. Everything is measured in one run in
//! one lab: first the machine alone, then the same machine as a pair, then the power of its host is cut again and again.

mod cost;
mod cuts;
mod phases;
mod rates;

use crate::{
    assets::{Assets, Image},
    compile::target_folder,
    demo::BEYOND_T_B_MS,
    machine_file::FIRST_GUEST,
    pair::{self, Pair},
    report::{
        Report, Row, Target,
        plot::{Plot, Series},
    },
    sipp,
};
use anyhow::{Context as _, Result};
use cost::{Calm, HostCost, Idle};
use cuts::Cuts;
use images::Progress;
use lab::Lab;
use rates::Rates;
use std::{
    path::Path,
    process::ExitCode,
    time::{Duration, SystemTime},
};

/// The share of the unprotected rate over UDP that is to be left.
const RATE_SHARE: f64 = 0.7;
/// What protecting an idle guest may cost each host, in percent of a core, and the network between them, in Mbit/s. What the
/// guest itself does when idle is not protection's: on an emulated host that alone is more.
const IDLE_PERCENT: f64 = 3.0;
const IDLE_MBITS: f64 = 1.0;

/// How long a fresh machine is asked for little before it is measured, in seconds.
const SETTLE_SECONDS: u32 = 5;

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Fewer and shorter trials and three cuts: shows that the measurement works, its figures are rough
    #[arg(long)]
    quick: bool,
    /// How often the power is cut
    #[arg(long, value_name = "N")]
    cuts: Option<u32>,
    /// Where the random moments of the cuts begin, to have the same ones again
    #[arg(long)]
    seed: Option<u64>,
    /// `T_b` of the pair, such as "100ms"; where it is left out, what the documents advise for such hosts
    #[arg(long, value_name = "TIME")]
    t_b: Option<String>,
    /// The pair's mode: "net", "split" or "no-net"; where it is left out, "net"
    #[arg(long, value_name = "MODE")]
    mode: Option<String>,
    /// The cuts' load in registrations a second over all transports, instead of half of what the machine alone bears;
    /// nothing else is measured then
    #[arg(long, value_name = "RATE")]
    only_cuts: Option<u32>,
    /// Show what each phase of the pair's epochs takes at these rates over UDP, such as "30,60,120", and what the
    /// threads of its host use, beside those of the machine alone; nothing else is measured then
    #[arg(
        long,
        value_name = "RATES",
        value_delimiter = ',',
        conflicts_with = "only_cuts"
    )]
    phases_at: Vec<u32>,
    /// Print one JSON object on standard output and nothing else there
    #[arg(long)]
    json: bool,
}

/// How much is measured.
struct Effort {
    /// How long a trial of a rate takes, in seconds.
    trial_seconds: u32,
    /// How close a search comes: the lowest rate that is too high is at most this many times the highest that is held.
    ratio: f64,
    /// How long an idle machine, and one with hardly a load, are watched.
    watch: Duration,
    cuts: u32,
}

const FULL: Effort = Effort {
    trial_seconds: 10,
    ratio: 1.05,
    watch: Duration::from_secs(30),
    cuts: 20,
};
const QUICK: Effort = Effort {
    trial_seconds: 3,
    ratio: 1.1,
    watch: Duration::from_secs(10),
    cuts: 3,
};

/// All that was measured.
#[derive(Default)]
struct Measured {
    alone: Option<Alone>,
    paired: Option<Paired>,
    phases: Vec<Row>,
    cuts: Option<Cuts>,
}

/// The machine alone.
struct Alone {
    udp: Option<u32>,
    /// The same after the pair, once it is known.
    udp_again: Option<u32>,
    mix: Option<u32>,
    calm: Calm,
    idle: HostCost,
}

/// The machine with a backup.
struct Paired {
    idle: Idle,
    calm: Calm,
    udp: Option<u32>,
}

/// Prepares everything and measures in a lab of its own.
///
/// # Errors
/// Something can't be prepared, or not be measured.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let assets = Assets::with_guests(&[Image::REGISTRAR_12])?;
    let progress = Progress::new();
    let logs = target_folder().join("lab-logs/bench-protection");
    let lab = Lab::start(&assets.lab_config(2, pair::HOST_MIB, &logs), &progress)?;
    let effort = if args.quick { QUICK } else { FULL };
    let measured = measure(&lab, &assets, args, &effort, &logs, &progress)
        .with_context(|| format!("consoles and logs are in {}", logs.display()))?;
    if let Some(cuts) = &measured.cuts {
        plot(cuts).write(&target_folder().join("reports"), "bench-protection")?;
    }
    let mut report = Report::new("protection", lab.kind());
    report.rows = rows(&measured);
    drop(lab);
    report.print(args.json)?;
    Ok(ExitCode::SUCCESS)
}

fn measure(
    lab: &Lab,
    assets: &Assets,
    args: &Args,
    effort: &Effort,
    logs: &Path,
    progress: &Progress,
) -> Result<Measured> {
    let guest = assets.guest(Image::REGISTRAR_12)?;
    let mut measured = Measured::default();
    let make = || {
        let pair = Pair::protected(lab, assets, guest, |file| {
            file.boot.command_line.push_str(" service.shell");
            if let Some(protection) = &mut file.protection {
                protection.t_b = args.t_b.clone().or(protection.t_b.take());
                protection.mode.clone_from(&args.mode);
            }
        })?;
        // It is protected before its guest has started everything.
        sipp::settle(lab.client(), sipp::sip(FIRST_GUEST), SETTLE_SECONDS)?;
        Ok(pair)
    };
    if !args.phases_at.is_empty() {
        // At 5/s, fifteen requests say nothing of a median.
        let seconds = effort.trial_seconds.max(20);
        let machine = Rates::new(lab, assets, guest, effort, progress)?.boot()?;
        measured.phases = phases::alone_at(lab, &machine, &args.phases_at, seconds, progress)?;
        machine.kill()?;
        let pair = make()?;
        let of_pair = phases::at(lab.client(), &pair, &args.phases_at, seconds, progress)
            .map_err(|error| with_logs(&pair, logs, error))?;
        measured.phases.extend(of_pair);
        return Ok(measured);
    }
    let total = if let Some(rate) = args.only_cuts {
        rate
    } else {
        let rates = Rates::new(lab, assets, guest, effort, progress)?;
        let mut alone = rates.alone()?;
        let mix = alone
            .mix
            .context("the machine alone bears no load at all")?;
        let step = progress.step("a pair of hosts is made and protected");
        let mut pair = make()?;
        step.done("the machine is protected");
        let paired = paired(lab, &pair, &rates, effort, progress)
            .map_err(|error| with_logs(&pair, logs, error))?;
        measured.paired = Some(paired);
        pair.kill(1)?;
        pair.kill(0)?;
        alone.udp_again = rates.alone_again()?;
        measured.alone = Some(alone);
        mix / 2
    };
    let seed = args.seed.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        // Nanoseconds of a second: enough to differ, and short to type again.
        u64::from(now.unwrap_or_default().subsec_nanos())
    });
    eprintln!("the moments of the cuts begin at seed {seed} (--seed {seed} has the same again)");
    let times = args.cuts.unwrap_or(effort.cuts);
    measured.cuts = Some(cuts::run(lab, &make, total, times, seed, logs, progress)?);
    Ok(measured)
}

/// Keeps a pair's logs before its measurement ends with `error`; where they can't be kept, that is the error.
fn with_logs(pair: &Pair<'_>, logs: &Path, error: anyhow::Error) -> anyhow::Error {
    pair.keep_logs(logs).err().unwrap_or(error)
}

fn paired(
    lab: &Lab,
    pair: &Pair<'_>,
    rates: &Rates<'_>,
    effort: &Effort,
    progress: &Progress,
) -> Result<Paired> {
    let step = progress.step("watching the idle pair");
    let idle = cost::idle(pair, effort.watch)?;
    step.done("watched the idle pair");
    let step = progress.step("5 REGISTER/s on the pair");
    let calm = cost::calm(lab.client(), Some(pair), effort.watch)?;
    step.done(format!("5 REGISTER/s on the pair: {}", calm.summary()));
    let udp = rates.of_pair()?;
    Ok(Paired { idle, calm, udp })
}

fn rows(measured: &Measured) -> Vec<Row> {
    let mut rows = Vec::new();
    if let (Some(alone), Some(paired)) = (&measured.alone, &measured.paired) {
        rows.extend(cost_rows(alone, paired));
    }
    rows.extend(measured.phases.iter().cloned());
    if let Some(cuts) = &measured.cuts {
        rows.extend(cuts.rows(BEYOND_T_B_MS));
    }
    rows
}

fn cost_rows(alone: &Alone, paired: &Paired) -> Vec<Row> {
    let udp = paired.udp.map(f64::from);
    let [before, after] = [alone.udp, alone.udp_again].map(|rate| rate.map(f64::from));
    // Halfway between them is when the pair's was measured.
    let peer = before
        .zip(after)
        .map(|(before, after)| f64::midpoint(before, after));
    let share = udp.zip(peer).map(|(udp, peer)| udp / peer);
    let unprotected = alone.calm.median_ms();
    let allowed = unprotected
        .zip(paired.calm.pause_ms)
        .map(|(median, pause)| Target::AtMost(median + 2.0 * pause));
    let mut rows = vec![
        Row::new("highest REGISTER rate, UDP, peer: unprotected", "1/s", udp).peer(peer),
        Row::new("the same, unprotected, before the pair's", "1/s", before),
        Row::new("the same, unprotected, after the pair's", "1/s", after),
        Row::new("rate as a share of the unprotected one", "", share)
            .target(Target::AtLeast(RATE_SHARE)),
        Row::new(
            "highest REGISTER rate, all transports at once, unprotected",
            "1/s",
            alone.mix.map(f64::from),
        ),
        Row::new(
            "5 REGISTER/s: response time p50, peer: unprotected",
            "ms",
            paired.calm.median_ms(),
        )
        .peer(unprotected)
        .target(allowed),
        Row::new(
            "5 REGISTER/s: response time p99, peer: unprotected",
            "ms",
            paired.calm.p99_ms(),
        )
        .peer(alone.calm.p99_ms()),
        Row::new("pause p50", "ms", paired.calm.pause_ms),
        Row::new("pause p99", "ms", paired.calm.pause_p99_ms),
        Row::new(
            "pages that an epoch dirties, mean",
            "",
            paired.calm.dirty_pages,
        ),
    ];
    for (name, host, alone) in [
        ("primary", paired.idle.primary, Some(alone.idle)),
        ("backup", paired.idle.backup, None),
    ] {
        let row =
            |what: &str, value| Row::new(format!("idle: {what}, {name}"), "% of a core", value);
        rows.extend([
            row("processor", host.percent).peer(alone.map(|alone| alone.percent)),
            row(
                "the same without the guest's own vCPU",
                host.percent_without_vcpus,
            )
            .peer(alone.map(|alone| alone.percent_without_vcpus))
            .target(Target::AtMost(IDLE_PERCENT)),
        ]);
        let parts = host.parts().into_iter();
        rows.extend(parts.map(|(what, percent)| row(&format!("of that, {what}"), percent)));
    }
    rows.push(
        Row::new(
            "idle: on the replication network, both ways",
            "Mbit/s",
            paired.idle.mbits,
        )
        .target(Target::AtMost(IDLE_MBITS)),
    );
    rows
}

fn plot(cuts: &Cuts) -> Plot<'static> {
    Plot {
        title: "REGISTER response times around power cuts",
        x: "seconds since the cut",
        y: "response time, ms",
        series: cuts
            .timelines()
            .into_iter()
            .map(|(name, points)| Series {
                name,
                points,
                joined: false,
            })
            .collect(),
        marks: vec![(0.0, "power cut".to_owned())],
    }
}
