//! Developer commands: `cargo xtask demo`, `cargo xtask test`, and the pieces of which they are made.

mod bench;
mod demo;
mod guest;
mod lab;
mod test;

use anyhow::Result;
use clap::{Parser, Subcommand};

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
    /// Build a guest's images from Debian packages
    Guest(guest::Args),
    /// Hosts to test on
    Lab(lab::Args),
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Demo(args) => demo::run(args),
        Command::Test(args) => test::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Guest(args) => guest::run(args),
        Command::Lab(args) => lab::run(args),
    }
}
