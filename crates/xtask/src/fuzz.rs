//! `cargo xtask fuzz`: looks for bytes that break a promise (`fuzz/README.md`).

mod build;
mod campaign;

use anyhow::Result;
use campaign::{Campaign, Outcome};
use images::Progress;
use std::{fmt::Write as _, num::NonZeroUsize, process::ExitCode, thread, time::Duration};

/// How long each target runs in `cargo xtask test`.
const SHORT: Duration = Duration::from_secs(6);

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this target
    target: Option<String>,
    /// How long each target runs
    #[arg(long, default_value_t = 60, value_name = "N")]
    seconds: u64,
    /// Targets at a time; as many as there are processors where nothing is said
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Afterwards, add to fuzz/corpus some inputs that reach what nothing there does
    #[arg(long)]
    keep: bool,
    /// Print the names of all targets, and run none
    #[arg(long)]
    list: bool,
}

/// Runs the targets and prints a table. The exit code is 1 if anything was found.
///
/// # Errors
/// The targets can't be built or run.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut targets = build::targets()?;
    if args.list {
        for target in &targets {
            println!("{target}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(wanted) = &args.target {
        let known = targets.join(", ");
        targets.retain(|target| target == wanted);
        anyhow::ensure!(
            !targets.is_empty(),
            "there is no target {wanted}; known are: {known}"
        );
    }
    let progress = Progress::new();
    let programs = build::programs(&targets, &progress)?;
    let campaign = Campaign {
        time: Duration::from_secs(args.seconds.max(1)),
        jobs: args.jobs.map_or_else(processors, NonZeroUsize::get),
        programs,
    };
    let outcomes = campaign.run(&progress)?;
    print!("{}", table(&outcomes));
    if outcomes.iter().any(Outcome::failed) {
        print!("{}", failures(&outcomes));
        return Ok(ExitCode::FAILURE);
    }
    if args.keep {
        for (target, kept) in campaign.keep(&progress)? {
            println!("{target:<12} {kept} inputs added to fuzz/corpus/{target}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What came of a short run of all targets.
pub(crate) struct Short {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    /// One line.
    pub(crate) remark: String,
    /// What was found.
    pub(crate) failures: String,
}

/// Runs all targets for a short time, as a test.
///
/// # Errors
/// They can't be built or run.
pub(crate) fn short() -> Result<Short> {
    // To build them takes its time, at first; to run them is told in one line.
    let programs = build::programs(&build::targets()?, &Progress::new())?;
    let campaign = Campaign {
        time: SHORT,
        jobs: processors(),
        programs,
    };
    let outcomes = campaign.run(&Progress::hidden())?;
    let count = |failed| {
        let count = outcomes.iter().filter(|o| o.failed() == failed).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    };
    let executions: u64 = outcomes.iter().map(|outcome| outcome.executions).sum();
    Ok(Short {
        passed: count(false),
        failed: count(true),
        remark: format!(
            "{} targets, {} s each, {executions} executions",
            outcomes.len(),
            SHORT.as_secs()
        ),
        failures: failures(&outcomes),
    })
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

fn table(outcomes: &[Outcome]) -> String {
    let mut table = format!(
        "{:<12} {:>12} {:>9} {:>9} {:>9}  found\n",
        "target", "executions", "a second", "inputs", "edges"
    );
    for outcome in outcomes {
        let found = match &outcome.found {
            None => "nothing",
            Some(found) => found.what.as_str(),
        };
        let _ = writeln!(
            table,
            "{:<12} {:>12} {:>9} {:>9} {:>9}  {found}",
            outcome.target, outcome.executions, outcome.rate, outcome.inputs, outcome.edges
        );
    }
    table
}

/// What was found, and how to see it again.
fn failures(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    for outcome in outcomes {
        let Some(found) = &outcome.found else {
            continue;
        };
        let target = &outcome.target;
        let _ = writeln!(text, "\n{target}: {}\n{}", found.what, found.said);
        match &found.input {
            Some(input) => {
                let input = input.display();
                let _ = writeln!(
                    text,
                    "  the input:       {input}\n  to see it again: cargo run -p romulus-fuzz --bin {target} -- {input}"
                );
            }
            None => {
                let _ = writeln!(text, "  no input was kept");
            }
        }
        let _ = writeln!(text, "  the whole log:   {}", outcome.log.display());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Outcome, campaign::Found, failures, table};

    fn outcome(found: Option<Found>) -> Outcome {
        Outcome {
            target: "wire".into(),
            executions: 1200,
            rate: 300,
            inputs: 40,
            edges: 99,
            found,
            log: "logs/wire".into(),
        }
    }

    #[test]
    fn a_crash_is_told_with_the_way_to_see_it_again() {
        let found = Found {
            what: "crash".into(),
            said: "panicked at somewhere".into(),
            input: Some("artifacts/wire/crash-1".into()),
        };
        let outcomes = [outcome(None), outcome(Some(found))];
        let table = table(&outcomes);
        assert_eq!(table.lines().count(), 3);
        assert!(table.lines().nth(1).unwrap().ends_with("nothing"));
        assert!(table.lines().nth(2).unwrap().ends_with("crash"));
        let text = failures(&outcomes);
        assert!(text.contains("panicked at somewhere"), "{text}");
        assert!(
            text.contains("--bin wire -- artifacts/wire/crash-1"),
            "{text}"
        );
        assert_eq!(failures(&outcomes[..1]), "");
    }
}
