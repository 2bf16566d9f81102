//! `cargo xtask bench`: measurements with a table or one JSON object as their result.

mod contender;
mod engine;
mod in_flight;
pub(crate) mod machine;
mod noise;
mod peers;
mod protection;

use anyhow::Result;
use std::process::ExitCode;

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    bench: Bench,
}

/// What can be measured.
#[derive(clap::Subcommand)]
enum Bench {
    /// Our machine beside stock QEMU: boot time, highest REGISTER rate, resident memory
    Machine(machine::Args),
    /// Epochs on this computer's own KVM: each phase of a checkpoint, and what it costs the guest
    Engine(engine::Args),
    /// A protected machine: what protection costs, and power cuts under load
    Protection(protection::Args),
    /// What a power cut does to requests on their way, with and without what is done for them
    InFlight(in_flight::Args),
    /// Hosts that are busy with other things: takeovers without a failure, and what a shorter wait costs
    Noise(noise::Args),
    /// Romulus beside what others offer: QEMU COLO, and two Kamailios with keepalived
    Peers(peers::Args),
}

/// Runs a measurement.
///
/// # Errors
/// It could not be made.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match &args.bench {
        Bench::Machine(args) => machine::run(args),
        Bench::Engine(args) => engine::run(args),
        Bench::Protection(args) => protection::run(args),
        Bench::InFlight(args) => in_flight::run(args),
        Bench::Noise(args) => noise::run(args),
        Bench::Peers(args) => peers::run(args),
    }
}
