//! `cargo xtask demo`: the main job from start to end. Two lab hosts and an arbiter come up, a stock Debian kernel with a
//! stock Kamailio boots in our machine on one host and is protected by the other, users register over UDP, one TCP
//! connection and a connection each, and in the middle of that the first host loses its power. With `--fault`, a row of the
//! fault table instead.

mod fault;

use crate::{
    assets::{Assets, Image},
    compile::target_folder,
    crossing::{self, Crossing, Plan},
    live,
    machine_file::FIRST_GUEST,
    machine_host, options,
    pair::{self, Pair},
    report::{
        Report, Row, Target,
        plot::{Plot, Series},
    },
    sipp::{self, Transport},
};
use anyhow::{Context as _, Result, ensure};
use images::Progress;
use lab::Lab;
use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

/// How long the guest may take to answer SIP.
const BOOT_LIMIT: Duration = Duration::from_mins(4);
/// From one look at the booting guest to the next.
const BOOT_LOOK: Duration = Duration::from_millis(200);
/// Beyond `T_b`, the first answer over UDP may take this much longer after the cut.
pub(crate) const BEYOND_T_B_MS: f64 = 150.0;
/// The load: registrations a second over UDP, one TCP connection and a connection each, for so many seconds, and when the
/// power is cut. Well below what an emulated host bears: where a blip makes UDP clients repeat their requests beyond that,
/// the queue of repetitions is all that would be shown.
const RATES: [u32; 3] = [10, 6, 4];
const SECONDS: u32 = 20;
const CUT_AFTER: Duration = Duration::from_secs(8);

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print one JSON object on standard output and nothing else there
    #[arg(long)]
    json: bool,
    /// Show what another fault does, with the outside oracle as the judge
    #[arg(long, value_enum)]
    fault: Option<fault::Fault>,
    /// How often the backup rehearses its replica (`never`, to see what that is worth)
    #[arg(long, value_name = "INTERVAL", conflicts_with = "fault")]
    rehearse: Option<String>,
}

/// What a demonstration showed.
struct Shown {
    boot: Duration,
    to_protected: Duration,
    crossing: Crossing,
}

/// Prepares everything and runs the demonstration in a lab of its own.
///
/// # Errors
/// Something can't be prepared, or the demonstration did not work.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if let Some(fault) = args.fault {
        return fault::run(fault, args.json);
    }
    let assets = Assets::with_guests(&[Image::REGISTRAR_12])?;
    let progress = Progress::new();
    let logs = target_folder().join("lab-logs/demo");
    let config = assets.lab_config(2, pair::HOST_MIB, &logs);
    let lab = Lab::start(&config, &progress)?;
    let step =
        progress.step("putting romulus and the guest into both hosts, and starting an arbiter");
    let guest = assets.guest(Image::REGISTRAR_12)?;
    let mut pair = Pair::new(&lab, &assets, guest, |file| {
        file.boot.command_line.push_str(" service.shell");
        if let (Some(protection), Some(rehearse)) = (&mut file.protection, &args.rehearse) {
            protection.rehearse = Some(rehearse.clone());
        }
    })
    .or_else(|error| {
        for host in lab.hosts() {
            machine_host::keep_logs(host, &logs)?;
        }
        Err(error)
    })?;
    step.done("romulus and the guest are in both hosts; the arbiter is beside them");
    let shown = demonstrate(&lab, &mut pair, &progress).or_else(|error| {
        pair.keep_logs(&logs)?;
        Err(error).with_context(|| {
            format!(
                "the demonstration failed; consoles and logs are in {}",
                logs.display()
            )
        })
    })?;
    pair.keep_logs(&logs)?;
    let plot = plot(&shown.crossing).write(&target_folder().join("reports"), "demo")?;
    eprintln!("response times are plotted in {}", plot.display());
    let mut report = Report::new("demo", lab.kind());
    report.rows = rows(&shown);
    drop(pair);
    drop(lab);
    report.print(args.json)?;
    let faults = shown.crossing.faults();
    for fault in &faults {
        eprintln!("not as promised: {fault}");
    }
    Ok(if faults.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn demonstrate(lab: &Lab, pair: &mut Pair<'_>, progress: &Progress) -> Result<Shown> {
    let step = progress.step("booting Debian 12 with Kamailio in our machine on h1");
    let server = sipp::sip(FIRST_GUEST);
    let watch = options::watch_every(lab.client(), server, BOOT_LIMIT, BOOT_LOOK)?;
    let start = Instant::now();
    pair.run(0)?;
    pair.run(1)?;
    let boot = watch
        .wait()
        .or_else(|error| pair.running(0)?.still_runs().and(Err(error)))?
        .duration_since(start);
    pair.running(0)?.wait_console("GUEST UP", BOOT_LIMIT)?;
    step.done(format!(
        "Kamailio answers {:.1} s after romulus was started",
        boot.as_secs_f64()
    ));

    let step = progress.step("copying the running machine to h2");
    let runner = pair.wait_protected(Some(&step))?;
    let to_protected = start.elapsed();
    ensure!(runner == 0, "the machine started on h2, not on h1");
    step.done("the machine is protected: h2 holds a replica that it has loaded on trial");
    eprintln!(
        "{}",
        pair.host(0)
            .sh(&format!(
                "{romulus} status registrar; {romulus} status registrar --timing",
                romulus = machine_host::ROMULUS
            ))?
            .trim_end()
    );

    let all: u32 = RATES.iter().sum();
    let step = progress.step(format!(
        "registering {all} users a second over UDP and TCP; the power of h1 is cut after {} s",
        CUT_AFTER.as_secs()
    ));
    live::tell(&step, "  0 s     0 registered/s");
    let plan = Plan {
        name: "demo".to_owned(),
        rates: RATES,
        seconds: SECONDS,
        cut_after: Some(CUT_AFTER),
    };
    let crossing = crossing::run(lab.client(), pair, &plan, Some(&step))?;
    ensure!(
        crossing.cut.is_some(),
        "the load ended before the power was cut"
    );
    let (wanted, ok) = crossing.totals();
    step.done(format!(
        "{ok} of {wanted} registrations ok across the loss of h1; h2 runs the machine"
    ));
    Ok(Shown {
        boot,
        to_protected,
        crossing,
    })
}

#[allow(clippy::cast_precision_loss, reason = "numbers of contacts")]
fn rows(shown: &Shown) -> Vec<Row> {
    let crossing = &shown.crossing;
    let ms = |seconds: Option<f64>| seconds.map(|seconds| seconds * 1e3);
    let mut rows = vec![
        Row::new(
            "boot: start of romulus to the first SIP answer",
            "ms",
            shown.boot.as_secs_f64() * 1e3,
        ),
        Row::new(
            "start of romulus to protected",
            "ms",
            shown.to_protected.as_secs_f64() * 1e3,
        ),
    ];
    for (transport, outcome) in &crossing.loads {
        let name = transport.name();
        rows.extend([
            Row::new(
                format!("{name}: registrations tried"),
                "",
                f64::from(outcome.tried),
            ),
            Row::new(
                format!("{name}: registrations ok"),
                "%",
                f64::from(outcome.ok) / f64::from(outcome.wanted.max(1)) * 100.0,
            )
            .target(Target::AtLeast(100.0)),
            Row::new(
                format!("{name}: requests sent again"),
                "",
                f64::from(outcome.retransmissions),
            ),
            Row::new(
                format!("{name}: response time p50"),
                "ms",
                outcome.response_ms.median(),
            ),
            Row::new(
                format!("{name}: response time p99"),
                "ms",
                outcome.response_ms.percentile(99.0),
            ),
        ]);
    }
    let t_b = crossing.t_b.as_secs_f64() * 1e3;
    let steps = crossing.steps;
    rows.extend([
        Row::new(
            format!("power cut to the first answer, UDP (T_b was {t_b:.0} ms)"),
            "ms",
            ms(crossing.first_udp),
        )
        .target(Target::AtMost(t_b + BEYOND_T_B_MS)),
        Row::new(
            "power cut to the next answer on a TCP connection from before",
            "ms",
            ms(crossing.first_tcp),
        ),
        Row::new(
            "longest time without any answer to a registration",
            "ms",
            ms(crossing.longest_gap),
        ),
        Row::new(
            "TCP connections from before the cut that still serve",
            "%",
            if crossing.connections_kept() {
                100.0
            } else {
                0.0
            },
        )
        .target(Target::AtLeast(100.0)),
        Row::new(
            "contacts acknowledged before the cut",
            "",
            crossing.acknowledged as f64,
        ),
        Row::new(
            "acknowledged contacts that the registrar lost",
            "",
            crossing.lost.len() as f64,
        )
        .target(Target::AtMost(0.0)),
        Row::new("takeover: power cut to detected", "ms", ms(steps.detected)),
        Row::new(
            "takeover: power cut to the arbiter's claim",
            "ms",
            ms(steps.claimed),
        ),
        Row::new(
            "takeover: power cut to the replica loaded",
            "ms",
            ms(steps.loaded),
        ),
        Row::new("takeover: power cut to running", "ms", ms(steps.running)),
    ]);
    rows
}

fn plot(crossing: &Crossing) -> Plot<'static> {
    let began = crossing.began();
    let series = |(transport, outcome): &(Transport, sipp::Outcome)| Series {
        name: transport.name().to_owned(),
        points: outcome.timeline_since(began),
        joined: false,
    };
    Plot {
        title: "REGISTER response times across a power cut",
        x: "seconds since the first request",
        y: "response time, ms",
        series: crossing.loads.iter().map(series).collect(),
        marks: crossing
            .cut
            .map(|cut| (cut - began, "power of h1 cut".to_owned()))
            .into_iter()
            .collect(),
    }
}
