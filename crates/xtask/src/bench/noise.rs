//! `cargo xtask bench noise`: a protected pair on hosts whose processors are busy with other things. Nothing fails, so nobody is
//! to take over; `T_b` is at its default and adapts. With `--sweep`, `T_b` is fixed, at one value after the other: what a
//! shorter wait gains when the power is cut, and what it costs while nothing fails.

mod busy;
mod record;
mod steady;
mod sweep;

use crate::{
    assets::{Assets, Image},
    compile::target_folder,
    pair,
    report::{ProcessorTimes, Report, Row},
};
use anyhow::{Context as _, Result, ensure};
use images::Progress;
use lab::Lab;
use std::{process::ExitCode, time::Duration};

/// What is swept, in milliseconds.
const SWEPT_MS: [u64; 7] = [20, 50, 100, 200, 500, 1000, 2000];

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long the pair is watched
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=1440))]
    minutes: u32,
    /// What the load takes of each host's processor, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 90, value_parser = clap::value_parser!(u32).range(0..=100))]
    load: u32,
    /// Fix `T_b` at one value after the other instead, and cut the power at each
    #[arg(long, conflicts_with = "minutes")]
    sweep: bool,
    /// The values of a sweep, in milliseconds
    #[arg(long, value_name = "MS", value_delimiter = ',', default_values_t = SWEPT_MS, value_parser = clap::value_parser!(u64).range(20..=10_000), requires = "sweep")]
    t_b: Vec<u64>,
    /// How long the pair is watched at each value of a sweep
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(5..=36_000), requires = "sweep")]
    seconds: u32,
    /// How often the power is cut at each value of a sweep
    #[arg(long, value_name = "N", default_value_t = 2, requires = "sweep")]
    cuts: u32,
    /// Keep the figures of the last sweep at other values: go on with one that was broken off
    #[arg(long, requires = "sweep")]
    add: bool,
    /// Print one JSON object on standard output and nothing else there
    #[arg(long)]
    json: bool,
}

/// Prepares everything and measures in a lab of its own.
///
/// # Errors
/// Something can't be prepared, or nothing was measured. A run that is broken off later gives what it has seen.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    ensure!(!args.sweep || !args.t_b.is_empty(), "--t-b has no value");
    let assets = Assets::with_guests(&[Image::REGISTRAR_12])?;
    let progress = Progress::new();
    let logs = target_folder().join("lab-logs/bench-noise");
    let lab = Lab::start(&assets.lab_config(2, pair::HOST_MIB, &logs), &progress)?;
    let times = ProcessorTimes::now()?;
    let mut report = Report::new("noise", lab.kind());
    let stand = Stand {
        lab: &lab,
        assets: &assets,
        load: args.load,
        logs: &logs,
        progress: &progress,
    };
    report.rows = if args.sweep {
        sweep::run(
            &stand,
            &args.t_b,
            Duration::from_secs(args.seconds.into()),
            args.cuts,
            args.add,
        )
    } else {
        steady::run(&stand, Duration::from_secs(60 * u64::from(args.minutes)))
    }
    .with_context(|| format!("consoles and logs are in {}", logs.display()))?;
    let now = ProcessorTimes::now()?;
    report.rows.extend([
        Row::new(
            "this computer's processors, busy",
            "%",
            now.busy_since(&times),
        ),
        Row::new(
            "taken from this computer by others",
            "%",
            now.stolen_since(&times),
        ),
    ]);
    drop(lab);
    report.print(args.json)?;
    Ok(ExitCode::SUCCESS)
}

/// Where it is measured, and how.
struct Stand<'lab> {
    lab: &'lab Lab,
    assets: &'lab Assets,
    /// Percent of each host's processor.
    load: u32,
    logs: &'lab std::path::Path,
    progress: &'lab Progress,
}

/// What the arbiter's log tells until now.
fn seen(pair: &pair::Pair<'_>) -> Result<record::Seen> {
    let now = pair::unix_seconds(std::time::SystemTime::now());
    Ok(record::Seen::read(&pair.arbiter.messages()?, now))
}

/// Tasks that want this computer's processors, mean of the last minute.
fn computer_load() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next()?.parse().ok()
}
