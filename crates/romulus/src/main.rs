//! Romulus: runs virtual machines for telephony servers on KVM, and protects them by a second host.

#![forbid(unsafe_code)]

mod api;
mod arbiter;
mod bridge;
mod cli;
mod commands;
mod console;
mod create;
mod doctor;
mod exit;
mod pair;
mod run;
mod runtime;
mod session;
mod table;

use clap::{CommandFactory as _, Parser as _};
use cli::{Cli, Command};
use exit::{Code, Failure};
use romulus::config;
use std::{env, io, io::IsTerminal as _, process::ExitCode};
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

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
        Command::Promote(args) => commands::promote(args),
        Command::Switchover(args) => commands::switchover(args),
        Command::Reload(args) => commands::reload(args),
        Command::Pair(args) => pair::pair(args),
        Command::Create(args) => create::create(args),
        Command::Arbiter(args) => arbiter::arbiter(args),
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
        0 => LevelFilter::INFO,
        1 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    // The libraries' own talk is of interest only where it is asked for by name.
    let filter = env::var("RUST_LOG")
        .ok()
        .and_then(|text| text.parse::<Targets>().ok())
        .unwrap_or_else(|| {
            Targets::new()
                .with_default(LevelFilter::WARN)
                .with_target("romulus", level)
                .with_target("romulus_engine", level)
                .with_target("romulus_machine", level)
        });
    let format = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(verbose > 0);
    let subscriber = tracing_subscriber::registry().with(filter);
    // The journal adds the time itself.
    if env::var_os("JOURNAL_STREAM").is_some() {
        subscriber.with(format.without_time()).init();
    } else {
        subscriber.with(format).init();
    }
}
