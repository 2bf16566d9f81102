//! The process that plays rows: one after another in one lab, until one fails. Its parent starts another for the rest.

use super::{
    draw::Draw,
    entry::{Entry, Job},
    rows::{self, Row, Setting},
    stand::{Kit, Played, Stand, WRONG, wrong},
};
use crate::{assets::Assets, journal::Journal, pair};
use anyhow::{Context as _, Result, bail};
use images::Progress;
use lab::Lab;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

/// How long a row may take, with the boot of a pair before it.
pub(crate) const ROW_LIMIT: Duration = Duration::from_mins(8);

/// Play rows of the fault table in a lab of their own (this program runs itself so)
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rows, each with its round: ROW:ROUND
    jobs: Vec<Job>,
    /// The list of files that were prepared
    #[arg(long)]
    assets: PathBuf,
    /// Where consoles and logs are kept
    #[arg(long)]
    logs: PathBuf,
    /// Where the outcome of each row is written
    #[arg(long)]
    journal: PathBuf,
    /// What random moments come from
    #[arg(long)]
    seed: u64,
}

impl FromStr for Job {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (row, round) = text.split_once(':').ok_or("this is not ROW:ROUND")?;
        Ok(Self {
            row: row.to_owned(),
            round: round.parse().map_err(|_| "the round is no number")?,
        })
    }
}

/// Plays the rows.
///
/// # Errors
/// One failed; it is in the journal, and consoles and logs are kept.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let assets = lab::inside(|| Assets::read(&args.assets))?;
    let config = assets.lab_config(2, pair::HOST_MIB, &args.logs);
    let lab = Lab::start(&config, &Progress::new())?;
    let kit = Kit::new(&assets)?;
    let mut stand = None;
    for job in &args.jobs {
        let row = rows::all()
            .into_iter()
            .find(|row| row.name == job.row)
            .with_context(|| format!("the table has no row {:?}", job.row))?;
        eprintln!("{}, round {}: {}", row.name, job.round, row.event);
        let begin = Instant::now();
        let draw = Draw::new(args.seed, row.name, job.round);
        let watchdog = Watchdog::start(row, job, args)?;
        let played = play(&lab, &assets, &kit, &mut stand, row, draw, &args.logs);
        drop(watchdog);
        let entry = entry(job, args.seed, begin.elapsed(), &played);
        Journal::new(&args.journal).add(&entry)?;
        eprintln!("{entry:?}");
        let played = played?;
        if let Some(fault) = played.faults.first() {
            bail!("{}: {}", row.name, wrong(fault));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn play<'a>(
    lab: &'a Lab,
    assets: &'a Assets,
    kit: &'a Kit,
    stand: &mut Option<(Setting, Stand<'a>)>,
    row: &Row,
    draw: Draw,
    logs: &Path,
) -> Result<Played> {
    if stand
        .as_ref()
        .is_none_or(|(setting, _)| *setting != row.setting)
    {
        // The old one first: two pairs would be in each other's way.
        *stand = None;
        *stand = Some((row.setting, Stand::new(lab, assets, kit, row)?));
    }
    let (_, stand) = stand.as_mut().context("there is no pair")?;
    let played = stand.play(row, draw);
    if played.as_ref().is_ok_and(|played| played.faults.is_empty()) {
        return played;
    }
    stand.keep_logs(logs)?;
    played
}

fn entry(job: &Job, seed: u64, took: Duration, played: &Result<Played>) -> Entry {
    let nothing = Played::default();
    let (told, failure) = match played {
        Ok(played) => (played, played.faults.first().map(wrong)),
        Err(error) => (&nothing, Some(format!("{error:#}"))),
    };
    let broken = failure.as_ref().is_some_and(|why| why.starts_with(WRONG));
    Entry {
        job: job.clone(),
        seed,
        passed: failure.is_none(),
        wrong: told.faults.len().max(usize::from(broken)),
        takeovers: told.takeovers,
        answered: told.answered,
        gap_ms: (told.gap * 1e3).round(),
        seconds: took.as_secs_f64(),
        remark: failure.unwrap_or_else(|| told.remark.clone()),
    }
}

/// Ends this process when a row takes too long; the lab ends with it.
struct Watchdog {
    _done: mpsc::Sender<()>,
}

impl Watchdog {
    fn start(row: &'static Row, job: &Job, args: &Args) -> Result<Self> {
        let (done, ended) = mpsc::channel::<()>();
        let (job, seed, journal) = (job.clone(), args.seed, Journal::new(&args.journal));
        thread::Builder::new()
            .name("watchdog".into())
            .spawn(move || {
                if ended.recv_timeout(ROW_LIMIT) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
                let late =
                    anyhow::anyhow!("{} is not done after {} s", row.name, ROW_LIMIT.as_secs());
                // If it cannot be written down either, the parent says that the process ended without a word.
                let _ = journal.add(&entry(&job, seed, ROW_LIMIT, &Err(late)));
                std::process::exit(1);
            })?;
        Ok(Self { _done: done })
    }
}
