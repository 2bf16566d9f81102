//! `cargo xtask test`: every check and test there is, and one line at the end that counts them.

mod checks;
mod lab_stage;
mod tally;

use crate::scenarios;
use anyhow::Result;
use std::process::ExitCode;
use tally::Tally;

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only the checks and scenarios whose name contains this
    #[arg(long, value_name = "PATTERN")]
    only: Option<String>,
    /// Print the names of all checks and scenarios, and run none
    #[arg(long)]
    list: bool,
    /// Leave out the scenarios that need lab hosts
    #[arg(long)]
    skip_lab: bool,
    /// Scenarios at a time; each has a lab host of its own
    #[arg(long, default_value_t = 2, value_name = "N")]
    jobs: usize,
}

/// Runs the tests. The exit code is 1 if any failed.
///
/// # Errors
/// A test could not even be begun.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let wanted = |name: &str| {
        args.only
            .as_ref()
            .is_none_or(|pattern| name.contains(pattern))
    };
    let checks: Vec<_> = checks::ALL
        .iter()
        .filter(|check| wanted(check.name))
        .collect();
    let scenarios: Vec<_> = scenarios::all()
        .into_iter()
        .filter(|scenario| !args.skip_lab && wanted(scenario.name))
        .collect();
    if args.list {
        for check in &checks {
            println!("{:<28} {}", check.name, check.what);
        }
        for scenario in &scenarios {
            println!("{:<28} {}", scenario.name, scenario.what);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut tally = Tally::default();
    for check in checks {
        check.run(&mut tally);
    }
    if !scenarios.is_empty() {
        lab_stage::run(&scenarios, args.jobs.max(1), &mut tally)?;
    }
    Ok(tally.finish())
}
