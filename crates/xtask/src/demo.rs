//! `cargo xtask demo`: the main job from start to end. A lab host comes up, a stock Debian kernel with a stock Kamailio
//! boots in our machine on that host's KVM, users register from outside, the machine is stopped in order.

use crate::{
    assets::{Assets, Image, Wanted},
    compile::target_folder,
    machine_file::{FIRST_GUEST, MachineFile},
    machine_host::{self, Running, Stopped},
    options,
    report::{
        Report, Row,
        plot::{Plot, Series},
    },
    sipp::{self, Load, Outcome, Transport},
};
use anyhow::{Context as _, Result, ensure};
use images::Progress;
use lab::Lab;
use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

/// The guest's memory in MiB.
const GUEST_MIB: u64 = 512;
/// How long the guest may take to answer SIP.
const BOOT_LIMIT: Duration = Duration::from_mins(1);
/// How long the guest may take to shut down.
const STOP_LIMIT: Duration = Duration::from_secs(40);
/// The loads: transport, registrations a second, how many.
const LOADS: [(Transport, u32, u32); 3] = [
    (Transport::Udp, 50, 500),
    (Transport::TcpOne, 50, 100),
    (Transport::TcpEach, 20, 60),
];

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print one JSON object on standard output and nothing else there
    #[arg(long)]
    json: bool,
}

/// Prepares everything and runs the demonstration in a lab of its own.
///
/// # Errors
/// Something can't be prepared, or the demonstration did not work.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let assets = lab::inside(|| {
        let wanted = Wanted {
            audit: false,
            images: &[Image::REGISTRAR_12],
        };
        Assets::prepare(wanted, &Progress::new())
    })?;
    let progress = Progress::new();
    let logs = target_folder().join("lab-logs/demo");
    let config = assets.lab_config(1, 2048, &logs);
    let lab = Lab::start(&config, &progress)?;
    let report = demonstrate(&lab, &assets, &progress).or_else(|error| {
        machine_host::keep_logs(lab.host(1), &logs)?;
        Err(error).with_context(|| {
            format!(
                "the demonstration failed; consoles and logs are in {}",
                logs.display()
            )
        })
    })?;
    drop(lab);
    report.print(args.json)?;
    Ok(ExitCode::SUCCESS)
}

fn demonstrate(lab: &Lab, assets: &Assets, progress: &Progress) -> Result<Report> {
    let host = lab.host(1);
    let step = progress.step("putting romulus and the guest into the host");
    machine_host::place_romulus(host, assets)?;
    let guest = assets.guest(Image::REGISTRAR_12)?;
    let folder = machine_host::place_guest(host, guest)?;
    step.done("romulus and the guest are in the host");

    let step = progress.step("booting Debian 12 with Kamailio in our machine");
    let server = sipp::sip(FIRST_GUEST);
    let watch = options::watch(lab.client(), server, BOOT_LIMIT)?;
    let start = Instant::now();
    let machine = Running::start(host, MachineFile::new("registrar", guest, &folder, 0))?;
    let boot = watch
        .wait()
        .or_else(|error| machine.still_runs().and(Err(error)))?
        .duration_since(start);
    step.done(format!(
        "Kamailio answers {:.1} s after romulus was started",
        boot.as_secs_f64()
    ));
    machine.wait_console("GUEST UP", BOOT_LIMIT)?;
    let status = machine.status()?;
    ensure!(
        status.is_object() || status.is_array(),
        "`romulus status --json` gave no object: {status}"
    );
    eprintln!(
        "{}",
        host.sh(&format!("{} status", machine_host::ROMULUS))?
            .trim_end()
    );

    let mut outcomes = Vec::new();
    for (transport, rate, count) in LOADS {
        let step = progress.step(format!(
            "registering {count} users, {}, {rate} a second",
            transport.name()
        ));
        let outcome = sipp::register(
            lab.client(),
            Load {
                server,
                transport,
                rate,
                count,
            },
        )?;
        step.done(format!("{}: {}", transport.name(), outcome.summary()));
        outcomes.push((transport, outcome));
    }
    let resident = machine.resident_beyond_guest_kib(GUEST_MIB)?;

    let step = progress.step("stopping the machine in order");
    let stopped = machine.stop(STOP_LIMIT)?;
    ensure!(
        stopped == Stopped::IN_ORDER,
        "the guest did not shut down in order ({stopped:?}): {}",
        machine.messages()?
    );
    step.done("the guest has shut down");

    let plot = plot(&outcomes).write(&target_folder().join("reports"), "demo")?;
    eprintln!("response times are plotted in {}", plot.display());
    for (transport, outcome) in &outcomes {
        ensure!(
            outcome.all_ok(),
            "registrations failed over {}: {}",
            transport.name(),
            outcome.summary()
        );
    }
    Ok(report(lab, boot, resident, &outcomes))
}

#[allow(clippy::cast_precision_loss, reason = "KiB of a small process")]
fn report(
    lab: &Lab,
    boot: Duration,
    resident_kib: u64,
    outcomes: &[(Transport, Outcome)],
) -> Report {
    let mut report = Report::new("demo", lab.kind());
    let rows = &mut report.rows;
    rows.push(Row::new(
        "boot: start of romulus to the first SIP answer",
        "ms",
        boot.as_secs_f64() * 1e3,
    ));
    for (transport, outcome) in outcomes {
        let name = transport.name();
        rows.push(Row::new(
            format!("{name}: registrations tried"),
            "",
            f64::from(outcome.tried),
        ));
        rows.push(Row::new(
            format!("{name}: registrations ok"),
            "",
            f64::from(outcome.ok),
        ));
        rows.push(Row::new(
            format!("{name}: requests sent again"),
            "",
            f64::from(outcome.retransmissions),
        ));
        rows.push(Row::new(
            format!("{name}: response time p50"),
            "ms",
            outcome.response_ms.median(),
        ));
        rows.push(Row::new(
            format!("{name}: response time p99"),
            "ms",
            outcome.response_ms.percentile(99.0),
        ));
    }
    rows.push(Row::new(
        "resident memory beyond the guest's",
        "MiB",
        resident_kib as f64 / 1024.0,
    ));
    report
}

fn plot(outcomes: &[(Transport, Outcome)]) -> Plot<'static> {
    let series = |(transport, outcome): &(Transport, Outcome)| Series {
        name: transport.name().to_owned(),
        points: outcome.timeline.clone(),
    };
    Plot {
        title: "REGISTER response times",
        x: "seconds since the first request",
        y: "response time, ms",
        series: outcomes.iter().map(series).collect(),
    }
}
