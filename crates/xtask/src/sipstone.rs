//! `cargo xtask sipstone`: the measurements of the paper that Romulus implements, and SIPstone's tests, in one lab; and a
//! report that can be sent around.
//!
//! What is measured in which order is in the crate `romulus-telephony`; each kind of work has a file here. What is done is
//! written down as soon as it ended, so that the same command goes on where it was broken off.

mod dialogs;
mod media;
mod pages;
mod progress;
mod promises;
mod registrations;
mod signalling;
mod stage;
mod stones;

use crate::{
    assets::{Assets, Extra, Wanted},
    compile::target_folder,
    report::{self, Computer, ProcessorTimes, Report},
};
use anyhow::{Context as _, Result, ensure};
use images::Progress;
use lab::Lab;
pub(crate) use progress::Begun;
use progress::Run;
use romulus_telephony::sipstone::{
    jobs::{self, EXPERIMENTS, Effort, Job, Place, What},
    tables::Line,
};
use stage::Stage;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Instant, SystemTime},
};

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Each experiment once, and shortly, without some of the modes: shows that the measurements work, their figures are rough
    #[arg(long)]
    quick: bool,
    /// Only these experiments, such as "1,5"
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u8).range(1..=5))]
    only: Vec<u8>,
    /// Where the report goes; a run that was broken off goes on there [default: reports/sipstone in the target folder]
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Where the random arrivals and moments begin, to have the same ones again
    #[arg(long)]
    seed: Option<u64>,
    /// Print one JSON object on standard output and nothing else there
    #[arg(long)]
    json: bool,
}

/// What every piece of work needs to know.
pub(crate) struct Context {
    /// How much is measured.
    effort: Effort,
    /// Where random numbers begin.
    seed: u64,
}

/// Prepares everything and measures in a lab of its own.
///
/// # Errors
/// Something can't be prepared, or the report can't be written.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let only = if args.only.is_empty() {
        EXPERIMENTS.to_vec()
    } else {
        args.only.clone()
    };
    let folder = args
        .report
        .clone()
        .unwrap_or_else(|| target_folder().join("reports/sipstone"));
    // Entering the lab changes the process's place, not its folder; but a program run from it may.
    let folder = std::path::absolute(folder)?;
    let effort = if args.quick {
        Effort::Quick
    } else {
        Effort::Full
    };
    let wanted = jobs::jobs(effort, &only);
    let images = stage::images(&wanted);
    let encrypted = wanted.iter().any(|job| job.what.experiment() == 4);
    let asked = Wanted {
        extras: if encrypted { &[Extra::Softphone] } else { &[] },
        images: &images,
    };
    let assets = lab::inside(|| Assets::prepare(asked, &Progress::new()))?;
    let logs = target_folder().join("lab-logs/sipstone");
    let lab = Lab::start(
        &assets.lab_config(2, stage::host_mib(&wanted), &logs),
        &Progress::new(),
    )?;
    let begun = Begun {
        effort,
        seed: args.seed.unwrap_or_else(seed_of_now),
        commit: report::commit(),
    };
    let report = measure(
        &lab,
        &assets,
        &logs,
        begun,
        args.seed.is_some(),
        &only,
        &folder,
    )?;
    drop(lab);
    report.report.print(args.json)?;
    eprintln!("the report is {}", folder.join(pages::PAGE).display());
    for failure in &report.failures {
        eprintln!("not measured: {failure}");
    }
    Ok(if report.failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What came of a run.
pub(crate) struct Measured {
    /// The promises, kept or not.
    pub(crate) report: Report,
    /// What could not be measured, and why.
    pub(crate) failures: Vec<String>,
}

/// Does all the work of the wanted experiments that is not done yet, and writes the report into `folder`. A run that was
/// begun there with the same commit, effort and seed goes on; without `fixed_seed`, with whatever seed it had.
///
/// # Errors
/// The report can't be written. What can't be measured is in what it gives.
pub(crate) fn measure(
    lab: &Lab,
    assets: &Assets,
    logs: &Path,
    begun: Begun,
    fixed_seed: bool,
    only: &[u8],
    folder: &Path,
) -> Result<Measured> {
    let progress = Progress::new();
    let mut run = Run::open(folder, begun, fixed_seed)?;
    let context = Context {
        effort: run.begun().effort,
        seed: run.begun().seed,
    };
    let jobs = jobs::jobs(context.effort, only);
    ensure!(!jobs.is_empty(), "there is nothing to measure");
    progress.note(format!(
        "random numbers begin at seed {seed} (--seed {seed} has the same again); {} of {} pieces of work are done",
        jobs.iter().filter(|job| run.is_done(job)).count(),
        jobs.len(),
        seed = context.seed,
    ));
    let facts = pages::Facts {
        begun: run.begun().clone(),
        computer: Computer::describe(lab.kind()),
        emulated: lab.kind() == lab::Kind::Qemu,
    };
    let mut stage = Stage::new(lab, assets, logs, &progress);
    let mut failures = Vec::new();
    // What did not come up is not tried again by each piece of work in its place.
    let mut down: Option<Place> = None;
    let start = Instant::now();
    for (number, job) in (1..).zip(&jobs) {
        if run.is_done(job) {
            continue;
        }
        if down == Some(job.place) {
            failures.push(format!("{job}: the machine did not come up"));
            continue;
        }
        // A shared computer may stand still for longer than any limit bears: a second try, and both are told.
        for again in [false, true] {
            let title = format!("{number} of {}: {job}", jobs.len());
            let step = progress.step(&title);
            let (from, times) = (Instant::now(), ProcessorTimes::now()?);
            let stands = stage.stand(job.place);
            let came_up = stands.is_ok();
            match stands.and_then(|()| work(&mut stage, &context, job)) {
                Ok(lines) => {
                    let taken = ProcessorTimes::now()?.stolen_since(&times);
                    step.done(format!("{title} ({:.0} s)", from.elapsed().as_secs_f64()));
                    run.done(job, lines, from.elapsed(), taken)?;
                    pages::write(folder, &facts, &run)?;
                    break;
                }
                Err(error) => {
                    drop(step);
                    progress.note(format!("{job}: {error:#}"));
                    // What it left behind is not to be the next one's.
                    stage.give_up(&format!("{number}{}", if again { "-again" } else { "" }))?;
                    if again {
                        failures.push(format!("{job}: {error:#}"));
                        if !came_up {
                            down = Some(job.place);
                        }
                    }
                }
            }
        }
    }
    drop(stage);
    let mut report = Report::new("sipstone", lab.kind());
    report.rows = promises::rows(&run.lines().collect::<Vec<_>>());
    pages::write(folder, &facts, &run)?;
    if failures.is_empty() {
        // The next run of the same command begins anew.
        run.end()?;
    }
    progress.note(format!(
        "measured for {:.0} s",
        start.elapsed().as_secs_f64()
    ));
    Ok(Measured { report, failures })
}

fn work(stage: &mut Stage<'_>, context: &Context, job: &Job) -> Result<Vec<Line>> {
    match job.what {
        What::Signalling(carrier) => signalling::run(stage, context, job.place, carrier),
        What::Stone(stone) => stones::run(stage, context, job.place, stone),
        What::Registrations(number) => registrations::run(stage, context, job.place, number),
        What::Media(calls) => media::run(stage, context, job.place, calls, false),
        What::MediaAcross(calls) => media::run(stage, context, job.place, calls, true),
        What::Calls(number) => dialogs::run(stage, context, job.place, number),
    }
    .with_context(|| format!("at {}", job.place))
}

/// Another one for each run, short to type again.
fn seed_of_now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u64::from(now.unwrap_or_default().subsec_nanos())
}
