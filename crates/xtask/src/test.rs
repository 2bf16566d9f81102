//! `cargo xtask test`: every check and test there is, and one line at the end that counts them.

mod checks;
mod lab_stage;
mod table_stage;
mod tally;

use crate::{
    compile::target_folder,
    scenarios::{self, table},
};
use anyhow::Result;
use std::{fs, process::ExitCode};
use table_stage::{PREFIX, Plan, Table};
use tally::Tally;

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only the checks and scenarios whose name contains this, or one of several such as "net/,disk/"
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    only: Vec<String>,
    /// Print the names of all checks and scenarios, and run none
    #[arg(long)]
    list: bool,
    /// Leave out the scenarios that need lab hosts
    #[arg(long)]
    skip_lab: bool,
    /// Scenarios at a time; each has a lab host of its own
    #[arg(long, default_value_t = 2, value_name = "N")]
    jobs: usize,
    #[command(flatten)]
    table: TableArgs,
}

/// How the fault table is played.
#[derive(clap::Args)]
struct TableArgs {
    /// The whole fault table, and each of its rows and of the scenarios several times; a run that was broken off goes on
    /// where it was
    #[arg(long)]
    full: bool,
    /// With --full: how many times each row is played and each scenario run
    #[arg(long, default_value_t = 3, value_name = "N", requires = "full", value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Where the random moments of faults, and with --full the order of scenarios, come from: the same number, the same
    /// moments
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    seed: u64,
    /// With --full: print the fault table's counts as one JSON object on standard output, and nothing else there
    #[arg(long, requires = "full")]
    json: bool,
}

/// Runs the tests. The exit code is 1 if any failed.
///
/// # Errors
/// A test could not even be begun.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let wanted = |name: &str| {
        args.only.is_empty()
            || args
                .only
                .iter()
                .any(|pattern| name.contains(pattern.as_str()))
    };
    let checks: Vec<_> = checks::ALL
        .iter()
        .filter(|check| wanted(check.name))
        .collect();
    let scenarios: Vec<_> = scenarios::all()
        .into_iter()
        .filter(|scenario| {
            let asked = args.only.iter().any(|name| name == scenario.name);
            let part = args.table.full || !scenario.only_full;
            !args.skip_lab && (asked || part) && wanted(scenario.name)
        })
        .collect();
    let rows: Vec<_> = table::all()
        .into_iter()
        .filter(|row| {
            let name = format!("{PREFIX}{}", row.name);
            let asked = args.only.contains(&name);
            let part = args.table.full || row.short;
            !args.skip_lab && (asked || part) && wanted(&name)
        })
        .collect();
    if args.list {
        let line = |name: &str, what: &str| println!("{name:<28} {what}");
        for check in &checks {
            line(check.name, check.what);
        }
        for scenario in &scenarios {
            line(scenario.name, scenario.what);
        }
        for row in &rows {
            line(&format!("{PREFIX}{}", row.name), row.event);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut tally = Tally::new(args.table.json);
    for check in checks {
        check.run(&mut tally);
    }
    if !scenarios.is_empty() {
        let plan = lab_stage::Plan {
            scenarios,
            jobs: args.jobs.max(1),
            rounds: args
                .table
                .full
                .then_some((args.table.repeat, args.table.seed)),
        };
        lab_stage::run(&plan, &mut tally)?;
    }
    if !rows.is_empty() {
        let plan = Plan {
            rows,
            rounds: if args.table.full {
                args.table.repeat
            } else {
                1
            },
            seed: args.table.seed,
            full: args.table.full,
        };
        let table = table_stage::run(&plan, &mut tally)?;
        if args.table.full {
            print(&table, args.table.json)?;
        }
    }
    Ok(tally.finish())
}

/// Prints the fault table and keeps it beside the other reports.
fn print(table: &Table, json: bool) -> Result<()> {
    let folder = target_folder().join("reports");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("fault-table.md"), table.text())?;
    if json {
        return table.report(lab::detect()?).print(true);
    }
    println!("{}", table.text().trim_end());
    Ok(())
}
