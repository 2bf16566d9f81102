//! Another mode while the machine runs.

use super::{Scenario, case::Case};
use crate::{assets::Image, counter, machine_file::FIRST_GUEST, pair::Status, process};
use anyhow::{Context as _, Result, ensure};
use std::time::Duration;

/// This file's scenarios.
pub(super) const ALL: &[Scenario] = &[Scenario::pair(
    "protect/mode",
    "the mode changes while the machine runs, and the machine is covered in the new one",
    &[Image::REGISTRAR_12],
    mode,
)];

/// From one question of the counter to the next.
const CALM: Duration = Duration::from_millis(100);
/// How long a state may take to be said once it is so.
const SOON: Duration = Duration::from_mins(1);

fn has_mode(mode: &str) -> impl Fn(&Status) -> bool {
    move |status| {
        status
            .cover()
            .is_some_and(|cover| cover.mode == mode && !cover.mode_changes)
    }
}

fn mode(case: &Case) -> Result<()> {
    let mut pair = case.protected(Image::REGISTRAR_12)?;
    let pid = pair.running(0)?.pid();
    let counter = counter::start(case.lab.client(), FIRST_GUEST, CALM)?;
    for (mode, first) in [("split", 0), ("net", 1)] {
        pair.set_mode(mode)?;
        let said = pair.reload(first)?;
        ensure!(
            said["mode"] == mode && said["cover_lost"] == true && said["restart_needed"] == false,
            "the first host says {said}"
        );
        // One host alone has it: the two must not go on as if they agreed.
        pair.wait_status(0, "unprotected", SOON, |status| {
            status.runs() && !status.is_protected_here()
        })?;
        pair.wait_status(first, "in the new mode", SOON, has_mode(mode))?;
        let said = pair.reload(1 - first)?;
        ensure!(said["mode"] == mode, "the second host says {said}");
        let runner = pair.wait_protected(None)?;
        ensure!(runner == 0, "the machine moved when its mode changed");
        for side in 0..2 {
            pair.wait_status(side, "in the new mode", SOON, has_mode(mode))?;
        }
        ensure!(
            pair.running(0)?.pid() == pid && pair.wait_runs(0)?.restarts == 0,
            "the machine was restarted"
        );
    }
    // A mode that does not matter to the other host costs no cover.
    pair.set_mode("split")?;
    pair.reload(0)?;
    pair.reload(1)?;
    pair.wait_protected(None)?;
    pair.set_mode("no-net")?;
    let said = pair.reload(0)?;
    ensure!(
        said["cover_lost"] == false,
        "between two such modes: {said}"
    );
    ensure!(
        pair.wait_runs(0)?.is_protected_here(),
        "the cover was lost for nothing"
    );
    pair.set_mode("net")?;
    pair.reload(0)?;
    pair.reload(1)?;
    pair.wait_protected(None)?;
    pair.cut_power(0)?;
    pair.wait_runs(1)?;
    let wanted = counter.answered() + 5;
    process::poll(SOON, CALM, || {
        Ok((counter.answered() >= wanted).then_some(()))
    })?
    .context("the guest's counter stands still after the cut")?;
    let seen = counter.finish()?;
    match seen.fault {
        None => Ok(()),
        Some(fault) => anyhow::bail!("after {} right answers: {fault}", seen.answers.len()),
    }
}
