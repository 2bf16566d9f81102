//! What happens to the processes of the two hosts.

use super::{
    super::stand::{SOON, Stand},
    Row,
};
use crate::process;
use anyhow::{Context as _, Result, ensure};
use std::{thread, time::Duration};

/// This file's rows.
pub(super) const ALL: &[Row] = &[
    Row::new(
        "process-killed",
        "the primary's process is killed, and started again later",
        "the backup takes over; the process that is started again becomes the backup",
        killed,
    )
    .short(),
    Row::new(
        "process-restarted",
        "the primary's process is killed and started again at once, as systemd does",
        "the backup takes over; the process that was started again becomes the backup",
        restarted,
    )
    .short(),
    Row::new(
        "backup-killed",
        "the backup's process is killed in the middle of a checkpoint, and started again",
        "the machine runs on, unprotected until the backup is filled again",
        backup_killed,
    )
    .short(),
    Row::new(
        "winner-killed",
        "the primary hangs; the winner is killed between `claimed` and `running`; the primary goes on",
        "the old primary claims the machine after T_c and runs it on",
        winner_killed,
    ),
    Row::new(
        "winner-cannot-start",
        "the primary hangs; the winner cannot open its network; the primary goes on",
        "the winner hands the record back, and the old primary runs the machine on",
        winner_cannot_start,
    ),
];

fn killed(stand: &mut Stand<'_>) -> Result<()> {
    let runner = stand.runner()?;
    stand.moment();
    stand.pair.kill(runner)?;
    stand.takes_over(1 - runner)?;
    stand.pair.run(runner)?;
    stand.protected_there()
}

fn restarted(stand: &mut Stand<'_>) -> Result<()> {
    let runner = stand.runner()?;
    stand.moment();
    let pause = stand.draw.milliseconds(0..150);
    stand.pair.kill(runner)?;
    thread::sleep(pause);
    stand.pair.run(runner)?;
    stand.takes_over(1 - runner)?;
    stand.protected_there()
}

fn backup_killed(stand: &mut Stand<'_>) -> Result<()> {
    let runner = stand.runner()?;
    // Epochs of some MiB, one after another: one is nearly always under way.
    stand.order("dirty 3000 4")?;
    thread::sleep(stand.draw.milliseconds(500..2500));
    stand.pair.kill(1 - runner)?;
    stand.unprotected(runner)?;
    stand.goes_on()?;
    stand.pair.run(1 - runner)?;
    stand.protected_there()
}

/// How long the arbiter may take to write a claim down.
const CLAIM: Duration = Duration::from_secs(20);

fn winner_killed(stand: &mut Stand<'_>) -> Result<()> {
    let runner = stand.runner()?;
    let before = claims(stand)?;
    stand.hang(runner)?;
    let killed = (|| {
        process::poll(CLAIM, Duration::from_micros(200), || {
            Ok((claims(stand)? > before).then_some(()))
        })?
        .context("nobody claims the machine of a host that hangs")?;
        // At this moment the winner has the claim and not the machine: what it says next is not heard.
        stand.pair.arbiter.kill();
        let said = stand.pair.arbiter.messages()?;
        let last = said
            .lines()
            .rfind(|line| line.contains("phase="))
            .unwrap_or_default();
        ensure!(
            last.contains("phase=Claimed"),
            "the winner was quicker than this test: {last}"
        );
        stand.pair.kill(1 - runner)?;
        stand.pair.arbiter.start_again()
    })();
    stand.pair.host(runner).resume()?;
    killed?;
    stand.pair.wait_runs(runner)?;
    stand.goes_on()?;
    stand.pair.run(1 - runner)?;
    stand.protected_there()
}

/// How many claims the arbiter has written down.
fn claims(stand: &Stand<'_>) -> Result<usize> {
    Ok(stand
        .pair
        .arbiter
        .messages()?
        .matches("phase=Claimed")
        .count())
}

fn winner_cannot_start(stand: &mut Stand<'_>) -> Result<()> {
    let runner = stand.runner()?;
    let tap = &stand.pair.file.nics[0].tap;
    stand
        .pair
        .host(1 - runner)
        .sh(&format!("ip link delete {tap}"))?;
    let before = claims(stand)?;
    stand.hang(runner)?;
    let claimed = process::poll(CLAIM, Duration::from_millis(20), || {
        Ok((claims(stand)? > before).then_some(()))
    });
    // Long enough for a start that cannot succeed.
    thread::sleep(Duration::from_secs(1));
    stand.pair.host(runner).resume()?;
    claimed?.context("nobody claims the machine of a host that hangs")?;
    stand.pair.wait_runs(runner)?;
    stand.goes_on()?;
    let said = stand.pair.arbiter.messages()?;
    ensure!(
        said.lines()
            .filter(|line| line.contains("phase=Claimed"))
            .count()
            > before,
        "the other host claimed nothing"
    );
    // It has no card to run it with: a process that is started again makes one.
    if stand.pair.running(1 - runner)?.still_runs().is_ok() {
        stand.pair.kill(1 - runner)?;
    }
    stand.pair.run(1 - runner)?;
    process::poll(SOON, Duration::from_millis(250), || {
        Ok(stand.pair.status(1 - runner)?.is_some().then_some(()))
    })?
    .context("the process that was started again does not answer")?;
    stand.protected_there()
}
