//! Developer commands: `cargo xtask demo`, `cargo xtask test`, and the pieces of which they are made.

mod assets;
mod bench;
mod call;
mod calls;
mod capture;
mod compile;
mod contacts;
mod counter;
mod crossing;
mod demo;
mod distribution;
mod fuzz;
mod guest;
mod guest_shell;
mod hosts;
mod journal;
mod kernel_file;
mod lab;
mod live;
mod machine_file;
mod machine_host;
mod memory;
mod options;
mod oracle;
mod pair;
mod probe;
mod process;
mod processor;
mod rate_search;
mod report;
mod scenarios;
mod sipp;
mod sipstone;
mod softphone;
mod test;
mod udp;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Romulus's developer commands. `demo` and `test` do all the set-up they need by themselves.
#[derive(Parser)]
#[command(name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the main job from start to end and print what was measured
    Demo(demo::Args),
    /// Run every test
    Test(test::Args),
    /// Measure, and print a table
    Bench(bench::Args),
    /// Run the paper's experiments and SIPstone's tests, and write a report
    Sipstone(sipstone::Args),
    /// Look for bytes that break what reads them
    Fuzz(fuzz::Args),
    /// Build a guest's images from Debian packages
    Guest(guest::Args),
    /// Hosts to test on
    Lab(lab::Args),
    #[command(hide = true)]
    Scenario(scenarios::Args),
    #[command(hide = true)]
    Course(scenarios::table::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Sipstone(args) => sipstone::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Guest(args) => guest::run(args).map(|()| ExitCode::SUCCESS),
        Command::Lab(args) => lab::run(args).map(|()| ExitCode::SUCCESS),
        Command::Scenario(args) => process::end_with_parent().and_then(|()| scenarios::run(&args)),
        Command::Course(args) => {
            process::end_with_parent().and_then(|()| scenarios::table::run(&args))
        }
    };
    outcome.unwrap_or_else(|error| {
        // One line with all causes: a backtrace of a lab's fault says nothing.
        eprintln!("Error: {error:#}");
        ExitCode::FAILURE
    })
}
