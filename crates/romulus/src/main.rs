//! Romulus: runs virtual machines for telephony servers on KVM.

#![forbid(unsafe_code)]

mod api;
mod cli;
mod commands;
mod config;
mod console;
mod doctor;
mod exit;
mod run;
mod runtime;
mod session;
mod table;

use clap::{CommandFactory as _, Parser as _};
use cli::{Cli, Command};
use exit::{Code, Failure};
use std::{env, io, io::IsTerminal as _, process::ExitCode};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_tracing(cli.verbose);
    match dispatch(&cli.command) {
        Ok(code) => code.into(),
        Err(Failure { code, error }) => {
            eprintln!("romulus: {error:#}");
            code.into()
        }
    }
}

fn dispatch(command: &Command) -> Result<Code, Failure> {
    match command {
        Command::Run(args) => run::run(args),
        Command::Stop(args) => commands::stop(args),
        Command::Console(args) => commands::console(args),
        Command::Status(args) => commands::status(args),
        Command::Doctor(args) => doctor::doctor(args),
        Command::Completions(args) => {
            let mut script = Vec::new();
            clap_complete::generate(args.shell, &mut Cli::command(), "romulus", &mut script);
            commands::print(&script)?;
            Ok(Code::Done)
        }
    }
}

/// Sends what happens to standard error, in a form that fits who reads it: a person, a log or the journal.
fn start_tracing(verbose: u8) {
    let level = match verbose {
        0 => "info",
        1 => "debug",
        _ => "trace",
    };
    let filter = match EnvFilter::try_from_default_env() {
        Ok(filter) if env::var_os("RUST_LOG").is_some() => filter,
        // The libraries' own talk is of interest only where it is asked for by name.
        _ => EnvFilter::new(format!("warn,romulus={level},romulus_machine={level}")),
    };
    let format = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(verbose > 0);
    // The journal adds the time itself.
    if env::var_os("JOURNAL_STREAM").is_some() {
        format.without_time().init();
    } else {
        format.init();
    }
}
