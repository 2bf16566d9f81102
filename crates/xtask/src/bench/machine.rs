//! `cargo xtask bench machine`: our machine and stock QEMU side by side in one lab host, one vCPU each, the same kernel
//! and guest, in turns, so that whatever else this computer does falls on all of them.

use super::contender::{Contender, QemuKernel, Stable};
use crate::{
    assets::{Assets, Image, Wanted},
    compile::target_folder,
    distribution::Distribution,
    kernel_file,
    machine_file::FIRST_GUEST,
    machine_host,
    rate_search::RateSearch,
    report::{
        Report, Row, Target,
        plot::{Plot, Series},
    },
    sipp::{self, Load, Outcome, Transport},
};
use anyhow::{Context as _, Result};
use images::Progress;
use lab::Lab;
use std::{net::SocketAddrV4, process::ExitCode, time::Duration};

/// Resident memory beyond the guest's that our process may hold, in MiB.
const RESIDENT_TARGET_MIB: f64 = 16.0;
/// Answers that may need a second request before a rate counts as too high: one in this many. A server that can't keep up
/// makes a client send most requests again; a short stop of a shared computer, some.
const RETRANSMISSIONS_ONE_IN: u32 = 10;
/// Memory of the lab host in MiB: room for the guest, QEMU's files and the images.
const HOST_MIB: u32 = 3072;

/// Before each trial: the first requests after a start find cold caches and unresolved addresses.
const WARM_UP: Load<'static> = Load {
    server: SocketAddrV4::new(FIRST_GUEST, 5060),
    transport: Transport::Udp,
    users: "user",
    rate: 20,
    count: 40,
};

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Fewer and shorter trials: shows that the measurement works, its figures are rough
    #[arg(long)]
    quick: bool,
    /// Print one JSON object on standard output and nothing else there
    #[arg(long)]
    json: bool,
}

/// How much is measured.
struct Effort {
    boots: u32,
    seconds: u32,
    factor: f64,
    trials: u32,
}

const FULL: Effort = Effort {
    boots: 5,
    seconds: 5,
    factor: 1.2,
    trials: 12,
};
const QUICK: Effort = Effort {
    boots: 3,
    seconds: 3,
    factor: 1.5,
    trials: 5,
};

/// Prepares everything and measures in a lab of its own.
///
/// # Errors
/// Something can't be prepared, or not be measured.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let assets = lab::inside(|| {
        let progress = Progress::new();
        images::ensure_packages(
            &["qemu-system-x86", "seabios", "lz4", "xz-utils", "zstd"],
            &progress,
        )?;
        let wanted = Wanted {
            extras: &[],
            images: &[Image::REGISTRAR_12],
        };
        Assets::prepare(wanted, &progress)
    })?;
    let progress = Progress::new();
    let logs = target_folder().join("lab-logs/bench-machine");
    let config = assets.lab_config(1, HOST_MIB, &logs);
    let lab = Lab::start(&config, &progress)?;
    let effort = if args.quick { &QUICK } else { &FULL };
    let report = measure(&lab, &assets, effort, &progress).or_else(|error| {
        machine_host::keep_logs(lab.host(1), &logs)?;
        Err(error).with_context(|| format!("consoles and logs are in {}", logs.display()))
    })?;
    drop(lab);
    report.print(args.json)?;
    Ok(ExitCode::SUCCESS)
}

fn measure(lab: &Lab, assets: &Assets, effort: &Effort, progress: &Progress) -> Result<Report> {
    let host = lab.host(1);
    let step = progress.step("putting romulus, QEMU and the guest into the host");
    machine_host::place_romulus(host, assets)?;
    let guest = assets.guest(Image::REGISTRAR_12)?;
    let mut stable = Stable::new(lab, guest)?;
    let vmlinux = tempfile::NamedTempFile::new()?;
    kernel_file::unpack(&guest.kernel, vmlinux.path())?;
    stable.place_vmlinux(vmlinux.path())?;
    step.done("romulus, QEMU and the guest are in the host");

    let boots = boots(&mut stable, effort, progress)?;
    let rates = rates(&stable, lab, effort, progress)?;
    plot(&rates).write(&target_folder().join("reports"), "bench-machine")?;

    let mut report = Report::new("machine", lab.kind());
    report.rows = rows(&stable, &boots, &rates);
    Ok(report)
}

/// What the boots showed.
struct Boots {
    /// The first start of all, which unpacks the kernel and keeps it.
    first: Duration,
    romulus_ms: Distribution,
    qemu_ms: Distribution,
    romulus_mib: Distribution,
    qemu_mib: Distribution,
}

#[allow(clippy::cast_precision_loss, reason = "KiB of a process")]
fn boots(stable: &mut Stable<'_>, effort: &Effort, progress: &Progress) -> Result<Boots> {
    let step = progress.step("finding the kernel file that QEMU boots fastest");
    let mut best: Option<(Duration, QemuKernel)> = None;
    for kernel in [QemuKernel::Vmlinuz, QemuKernel::Vmlinux] {
        stable.qemu_kernel = kernel;
        let up = stable.start(Contender::Qemu)?;
        if best.is_none_or(|(boot, _)| up.boot < boot) {
            best = Some((up.boot, kernel));
        }
        up.end()?;
    }
    stable.qemu_kernel = best.context("QEMU booted no kernel")?.1;
    step.done(format!(
        "QEMU boots fastest from {}",
        stable.qemu_kernel.name()
    ));

    let step = progress.step("the first start of romulus, which unpacks the kernel");
    let up = stable.start(Contender::Romulus)?;
    let first = up.boot;
    up.end()?;
    step.done(format!(
        "the first start of romulus: it answers after {} ms",
        first.as_millis()
    ));

    let mut times = [Vec::new(), Vec::new()];
    let mut resident = [Vec::new(), Vec::new()];
    for run in 1..=effort.boots {
        for (index, contender) in [Contender::Romulus, Contender::Qemu]
            .into_iter()
            .enumerate()
        {
            let step = progress.step(format!(
                "boot {run} of {}: {}",
                effort.boots,
                contender.name()
            ));
            let up = stable.start(contender)?;
            let kib = up.resident_beyond_guest_kib()?;
            times[index].push(up.boot.as_secs_f64() * 1e3);
            resident[index].push(kib as f64 / 1024.0);
            step.done(format!(
                "boot {run}: {} answers after {:.0} ms",
                contender.name(),
                up.boot.as_secs_f64() * 1e3
            ));
            up.end()?;
        }
    }
    let [romulus_ms, qemu_ms] = times.map(Distribution::new);
    let [romulus_mib, qemu_mib] = resident.map(Distribution::new);
    Ok(Boots {
        first,
        romulus_ms,
        qemu_ms,
        romulus_mib,
        qemu_mib,
    })
}

/// The search of one contender, and the outcome of its best trial.
struct Rate {
    contender: Contender,
    search: RateSearch,
    best: Option<Outcome>,
}

/// Looks for each contender's highest rate, a trial of each in turn, every trial with a fresh guest: what an overload
/// leaves queued would spoil the next trial.
fn rates(
    stable: &Stable<'_>,
    lab: &Lab,
    effort: &Effort,
    progress: &Progress,
) -> Result<Vec<Rate>> {
    let start = [
        (Contender::Romulus, 150),
        (Contender::Qemu, 150),
        (Contender::QemuVhost, 300),
    ];
    let mut rates: Vec<Rate> = start
        .into_iter()
        .map(|(contender, rate)| Rate {
            contender,
            search: RateSearch::new(rate, effort.factor, 5000, effort.trials),
            best: None,
        })
        .collect();
    let mut tried = true;
    while tried {
        tried = false;
        for rate in &mut rates {
            let Some(trial) = rate.search.next_rate() else {
                continue;
            };
            tried = true;
            let name = rate.contender.name();
            let step = progress.step(format!("{name}: {trial} REGISTER/s"));
            let up = stable.start(rate.contender)?;
            up.settle()?;
            sipp::register(lab.client(), WARM_UP)?;
            let load = Load {
                server: sipp::sip(FIRST_GUEST),
                transport: Transport::Udp,
                users: "user",
                rate: trial,
                count: trial * effort.seconds,
            };
            let outcome = sipp::register(lab.client(), load)?;
            up.end()?;
            let passed = sustained(&outcome);
            let verdict = if passed { "sustained" } else { "too much" };
            step.done(format!(
                "{name}: {trial} REGISTER/s {verdict}: {}",
                outcome.summary()
            ));
            rate.search.record(passed);
            if passed {
                rate.best = Some(outcome);
            }
        }
    }
    Ok(rates)
}

/// Whether the server kept up: no failure, and hardly a request sent twice, or so late that it would have been over UDP.
pub(crate) fn sustained(outcome: &Outcome) -> bool {
    let late = outcome.late().max(outcome.retransmissions);
    outcome.all_ok() && late * RETRANSMISSIONS_ONE_IN <= outcome.wanted
}

fn rows(stable: &Stable<'_>, boots: &Boots, rates: &[Rate]) -> Vec<Row> {
    let best = |contender| {
        let rate = rates.iter().find(|rate| rate.contender == contender)?;
        rate.search.best().map(f64::from)
    };
    let p99 = |contender| {
        let rate = rates.iter().find(|rate| rate.contender == contender)?;
        rate.best.as_ref()?.response_ms.percentile(99.0)
    };
    // A search that ran out of trials has found a rate that is sustained, not the highest one.
    let unfinished = rates
        .iter()
        .filter(|rate| rate.search.is_lower_bound())
        .map(|rate| rate.contender.name());
    let unfinished: Vec<&str> = unfinished.collect();
    let remark = if unfinished.is_empty() {
        String::new()
    } else {
        format!(" (at least: {})", unfinished.join(", "))
    };
    let ratio = |value: Option<f64>, peer: Option<f64>| Some(value? / peer?);
    let (ours, user, vhost) = (
        best(Contender::Romulus),
        best(Contender::Qemu),
        best(Contender::QemuVhost),
    );
    let qemu_boot = boots.qemu_ms.median();
    let kernel = stable.qemu_kernel.name();
    vec![
        Row::new(
            format!("start to first SIP answer, median (QEMU from {kernel})"),
            "ms",
            boots.romulus_ms.median(),
        )
        .peer(qemu_boot)
        .target(qemu_boot.map(Target::AtMost)),
        Row::new(
            "start to first SIP answer, worst",
            "ms",
            boots.romulus_ms.max(),
        )
        .peer(boots.qemu_ms.max()),
        Row::new(
            "the very first start, which unpacks the kernel",
            "ms",
            Some(boots.first.as_secs_f64() * 1e3),
        ),
        Row::new(
            "boot time as a share of QEMU's",
            "",
            ratio(boots.romulus_ms.median(), qemu_boot),
        ),
        Row::new(
            format!("highest REGISTER rate, UDP, QEMU in user space{remark}"),
            "1/s",
            ours,
        )
        .peer(user)
        .target(user.map(Target::AtLeast)),
        Row::new(
            "response time p99 at that rate",
            "ms",
            p99(Contender::Romulus),
        )
        .peer(p99(Contender::Qemu)),
        Row::new(
            "rate as a multiple of user-space QEMU's",
            "",
            ratio(ours, user),
        ),
        Row::new("highest REGISTER rate, UDP, QEMU with vhost", "1/s", ours).peer(vhost),
        Row::new("rate as a multiple of vhost QEMU's", "", ratio(ours, vhost)),
        Row::new(
            "resident memory beyond the guest's",
            "MiB",
            boots.romulus_mib.max(),
        )
        .peer(boots.qemu_mib.max())
        .target(Target::AtMost(RESIDENT_TARGET_MIB)),
    ]
}

fn plot(rates: &[Rate]) -> Plot<'static> {
    let series = |rate: &Rate| {
        Some(Series {
            name: format!("{}, {}/s", rate.contender.name(), rate.search.best()?),
            points: rate.best.as_ref()?.timeline(),
            joined: false,
        })
    };
    Plot {
        title: "Response times at the highest sustained rate",
        x: "seconds since the first request",
        y: "response time, ms",
        series: rates.iter().filter_map(series).collect(),
        marks: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::sustained;
    use crate::sipp::{Answer, Outcome};

    #[test]
    fn a_rate_is_sustained_without_failures_and_with_hardly_a_retransmission() {
        let good = Outcome {
            wanted: 1000,
            tried: 1000,
            ok: 1000,
            retransmissions: 100,
            ..Outcome::default()
        };
        assert!(sustained(&good));
        assert!(!sustained(&Outcome {
            ok: 999,
            ..good.clone()
        }));
        assert!(!sustained(&Outcome {
            retransmissions: 101,
            ..good.clone()
        }));
        // Over TCP nothing is sent again.
        let after = |ms| Answer {
            user: "a-1".to_owned(),
            began: 0.0,
            ms,
        };
        let late = |ms| Outcome {
            answers: vec![after(ms); 101],
            ..good.clone()
        };
        assert!(sustained(&late(499.0)));
        assert!(!sustained(&late(501.0)));
    }
}
