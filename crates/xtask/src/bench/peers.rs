//! `cargo xtask bench peers`: Romulus beside what a user would take instead, in one run, in the same lab hosts, with the same
//! registrar and the same load: the machine alone, QEMU with vhost, the modes of Romulus, QEMU COLO, and two Kamailios that share
//! an address by keepalived and their contacts by DMQ.

mod colo;
mod contender;
mod cut;
mod keepalived;
mod qmp;
mod rates;
mod table;

use crate::{
    assets::{Assets, Image},
    compile::target_folder,
    hosts, machine_host, pair,
    report::{
        Report,
        plot::{Plot, Series},
    },
};
use anyhow::{Context as _, Result};
use colo::Release;
use contender::{Contender, Running};
use cut::Crossed;
use images::Progress;
use lab::Lab;
use rates::Measured;
use std::{fs, io::Write as _, path::Path, process::ExitCode};

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Short trials at fewer rates: shows that the measurement works, its figures are rough
    #[arg(long)]
    quick: bool,
    /// Measure these contenders only, such as "net,colo"
    #[arg(long, value_enum, value_name = "CONTENDER", value_delimiter = ',')]
    only: Vec<Contender>,
    /// Whose QEMU runs COLO
    #[arg(long, value_enum, value_name = "RELEASE", default_value_t = Release::Debian13)]
    colo: Release,
    /// Print one JSON object on standard output and nothing else there
    #[arg(long)]
    json: bool,
}

/// What was measured of one contender.
struct Peer {
    contender: Contender,
    rates: Vec<Measured>,
    crossed: Option<Crossed>,
}

/// Prepares everything and measures in a lab of its own.
///
/// # Errors
/// Something can't be prepared. A contender that can't be measured has no figures, is told of, and makes the exit status a
/// failure.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let assets = Assets::with_guests(&[
        Image::REGISTRAR_12,
        Image::REGISTRAR_KEEPALIVED_12,
        Image::QEMU_13,
    ])?;
    let progress = Progress::new();
    let logs = target_folder().join("lab-logs/bench-peers");
    let lab = Lab::start(&assets.lab_config(2, pair::HOST_MIB, &logs), &progress)?;
    let mut peers = Vec::new();
    let mut broken = false;
    for contender in Contender::ALL {
        if !args.only.is_empty() && !args.only.contains(&contender) {
            continue;
        }
        if !peers.is_empty() {
            hosts::restart(&lab)?;
        }
        let mut peer = Peer {
            contender,
            rates: Vec::new(),
            crossed: None,
        };
        let folder = logs.join(contender.word());
        if let Err(error) = measure(&lab, &assets, &mut peer, args, &folder, &progress) {
            broken = true;
            progress.note(format!(
                "{} can't be measured: {error:#} (logs: {})",
                contender.name(),
                folder.display()
            ));
        }
        peers.push(peer);
        keep(&peers)?;
    }
    let mut report = Report::new("peers", lab.kind());
    drop(lab);
    if args.json {
        report.rows = table::rows(&peers);
        report.rows.extend(table::targets(&peers));
    } else {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", table::markdown(&peers))?;
        report.rows = table::targets(&peers);
    }
    report.print(args.json)?;
    Ok(if broken {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Writes the table and the plot of all that was measured so far: the run takes a quarter of an hour, and may be cut short.
fn keep(peers: &[Peer]) -> Result<()> {
    let folder = target_folder().join("reports");
    plot(peers).write(&folder, "bench-peers")?;
    let path = folder.join("bench-peers.md");
    fs::write(&path, table::markdown(peers)).with_context(|| format!("writing {}", path.display()))
}

fn measure(
    lab: &Lab,
    assets: &Assets,
    peer: &mut Peer,
    args: &Args,
    logs: &Path,
    progress: &Progress,
) -> Result<()> {
    let name = peer.contender.name();
    let step = progress.step(format!("{name}: starting"));
    let mut running = Running::start(peer.contender, lab, assets, args.colo).or_else(|error| {
        for host in lab.hosts().iter().filter(|host| host.is_on()) {
            machine_host::keep_logs(host, logs)?;
        }
        Err(error)
    })?;
    step.done(match &running {
        Running::Colo(colo) => format!("{name}: it answers, QEMU {}", colo.version),
        _ => format!("{name}: it answers"),
    });
    let measured = measure_running(lab, &mut running, peer, args.quick, progress);
    if measured.is_err() {
        running.keep_logs(logs)?;
    }
    measured
}

fn measure_running(
    lab: &Lab,
    running: &mut Running<'_>,
    peer: &mut Peer,
    quick: bool,
    progress: &Progress,
) -> Result<()> {
    let name = peer.contender.name();
    rates::rest(lab.client())?;
    for &(rate, seconds) in contender::rates(quick) {
        let step = progress.step(format!("{name}: {rate} REGISTER/s"));
        let measured = rates::at(lab.client(), rate, seconds)?;
        step.done(format!(
            "{name}: {rate} REGISTER/s: {}",
            measured.outcome.summary()
        ));
        peer.rates.push(measured);
        rates::rest(lab.client())?;
    }
    let step = progress.step(format!("{name}: a power cut under load"));
    let crossed = cut::run(lab.client(), peer.contender.word(), &mut || running.cut())
        .context("the power cut")?;
    step.done(format!("{name}: a power cut: {}", crossed.summary()));
    peer.crossed = Some(crossed);
    if let Running::Colo(colo) = running
        && let Some(refusal) = &colo.refusal
    {
        progress.note(format!(
            "{name}: the secondary did not take over: {refusal}"
        ));
    }
    Ok(())
}

fn plot(peers: &[Peer]) -> Plot<'static> {
    let series = peers.iter().filter_map(|peer| {
        let crossed = peer.crossed.as_ref()?;
        Some(Series {
            name: peer.contender.name().to_owned(),
            points: crossed.timeline(),
            joined: false,
        })
    });
    Plot {
        title: "REGISTER over UDP around a power cut",
        x: "seconds since the load's start",
        y: "response time, ms",
        series: series.collect(),
        marks: vec![(cut::AFTER.as_secs_f64(), "power cut".to_owned())],
    }
}
