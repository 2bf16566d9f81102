//! `cargo xtask demo --fault …`: one row of the fault table, in front of the user.

use crate::{
    assets::{Assets, Extra, Image, Wanted},
    compile::target_folder,
    pair,
    report::{Report, Row as Measured, Target},
    scenarios::table::{self, Draw, Kit, Stand},
};
use anyhow::{Context as _, Result};
use images::Progress;
use lab::Lab;
use std::{
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

/// What can be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Fault {
    /// The primary's host hangs for longer than `T_b`, and goes on
    Hang,
    /// All paths of the primary are cut without a sign
    Cut,
    /// The primary's process is killed and started again at once
    Restart,
    /// The backup's process is killed in the middle of a checkpoint
    Backup,
    /// The arbiter is gone when the primary's host loses its power
    Arbiter,
    /// The primary's service uplink is gone, the backup's is there
    Uplink,
}

impl Fault {
    /// Its row in the table.
    const fn row(self) -> &'static str {
        match self {
            Self::Hang => "host-hang",
            Self::Cut => "paths-cut",
            Self::Restart => "process-restarted",
            Self::Backup => "backup-killed",
            Self::Arbiter => "arbiter-gone-before",
            Self::Uplink => "uplink-gone",
        }
    }
}

/// Shows one fault.
///
/// # Errors
/// Something can't be prepared, or it went another way than the table says.
#[allow(clippy::cast_precision_loss, reason = "numbers of requests")]
pub(super) fn run(fault: Fault, json: bool) -> Result<ExitCode> {
    let row = table::all()
        .into_iter()
        .find(|row| row.name == fault.row())
        .with_context(|| format!("the table has no row {:?}", fault.row()))?;
    let assets = lab::inside(|| {
        let wanted = Wanted {
            extras: &[Extra::Witness],
            images: &[Image::BASE_12],
        };
        Assets::prepare(wanted, &Progress::new())
    })?;
    let progress = Progress::new();
    let logs = target_folder().join("lab-logs/demo");
    let lab = Lab::start(&assets.lab_config(2, pair::HOST_MIB, &logs), &progress)?;
    let kit = Kit::new(&assets)?;
    let step = progress.step("booting a guest on h1 and copying it to h2");
    let mut stand = Stand::new(&lab, &assets, &kit, row)?;
    step.done("the machine is protected, and a client counts its answers");
    let step = progress.step(row.event);
    let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let played = stand
        .play(row, Draw::new(seed, row.name, 1))
        .or_else(|error| {
            stand.keep_logs(&logs)?;
            Err(error).with_context(|| format!("consoles and logs are in {}", logs.display()))
        })?;
    step.done(row.follows);
    for fault in &played.faults {
        eprintln!("not as promised: {fault}");
    }
    let mut report = Report::new(format!("demo {}", row.name), lab.kind());
    report.rows = vec![
        Measured::new(
            "promises broken, as a client and the wire saw it",
            "",
            played.faults.len() as f64,
        )
        .target(Target::AtMost(0.0)),
        Measured::new("takeovers", "", f64::from(played.takeovers)),
        Measured::new("requests answered", "", played.answered as f64),
        Measured::new("longest time without an answer", "ms", played.gap * 1e3),
    ];
    drop(stand);
    drop(lab);
    report.print(json)?;
    Ok(if played.faults.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
