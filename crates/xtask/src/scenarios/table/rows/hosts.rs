//! What happens to whole hosts.

use super::{super::stand::Stand, Row};
use anyhow::{Result, ensure};
use lab::Network;
use std::{
    thread,
    time::{Duration, Instant},
};

/// This file's rows.
pub(super) const ALL: &[Row] = &[
    Row::new(
        "host-power",
        "the primary's host loses its power, and comes back",
        "the backup takes over; the host that comes back becomes the backup",
        power,
    )
    .short(),
    Row::new(
        "host-hang",
        "the primary's host hangs for longer than T_b, and goes on",
        "the backup takes over; the old primary lets nothing more go and becomes the backup",
        hang,
    )
    .short(),
    Row::new(
        "host-hang-brief",
        "the primary's host hangs for about T_b",
        "one of the two runs it, whichever won the record",
        hang_brief,
    ),
    Row::new(
        "backup-power",
        "the backup's host loses its power, and comes back",
        "the machine runs on, unprotected until the backup is back",
        backup_power,
    ),
    Row::new(
        "resync-interrupted",
        "the backup's host loses its power again while it is being filled",
        "the machine runs on; the backup is filled anew",
        resync_interrupted,
    ),
    Row::new(
        "clock-step",
        "the primary's clock is set an hour ahead, the backup's an hour back",
        "nothing",
        clock_step,
    )
    .short(),
    Row::new(
        "all-power",
        "both hosts and the arbiter lose their power; the primary's host stays away for long",
        "the backup starts the machine from its disk once the arbiter is back",
        all_power,
    ),
];

fn power(stand: &mut Stand<'_>) -> Result<()> {
    let runner = stand.runner()?;
    stand.moment();
    stand.pair.cut_power(runner)?;
    stand.takes_over(1 - runner)?;
    stand.pair.return_host(runner)?;
    stand.protected_there()
}

fn hang(stand: &mut Stand<'_>) -> Result<()> {
    let runner = stand.runner()?;
    stand.hang(runner)?;
    let hung = stand.takes_over(1 - runner);
    stand.pair.host(runner).resume()?;
    hung?;
    stand.backs_up(runner)?;
    stand.protected_there()
}

fn hang_brief(stand: &mut Stand<'_>) -> Result<()> {
    let runner = stand.runner()?;
    let time = stand.draw.milliseconds(300..900);
    stand.hang(runner)?;
    thread::sleep(time);
    stand.pair.host(runner).resume()?;
    let now = stand.protected()?;
    if now != runner {
        stand.took_over(now);
    }
    stand.remark = format!("{} ms", time.as_millis());
    stand.protected_there()
}

fn backup_power(stand: &mut Stand<'_>) -> Result<()> {
    let runner = stand.runner()?;
    stand.moment();
    stand.pair.cut_power(1 - runner)?;
    stand.unprotected(runner)?;
    stand.goes_on()?;
    stand.pair.return_host(1 - runner)?;
    stand.protected_there()
}

fn resync_interrupted(stand: &mut Stand<'_>) -> Result<()> {
    let runner = stand.runner()?;
    stand.pair.cut_power(1 - runner)?;
    stand.unprotected(runner)?;
    stand.pair.return_host(1 - runner)?;
    let filling = stand.pair.wait_status(
        runner,
        "filling its backup",
        Duration::from_mins(1),
        |status| {
            status
                .cover()
                .and_then(|cover| cover.copied)
                .is_some_and(|copied| copied.done > 0)
        },
    )?;
    ensure!(!filling.is_protected_here(), "it was filled too soon");
    stand.pair.cut_power(1 - runner)?;
    stand.goes_on()?;
    stand.pair.return_host(1 - runner)?;
    stand.protected_there()
}

/// How long nothing has to happen after the clocks were set: many times any time-out.
const QUIET: Duration = Duration::from_secs(5);

fn clock_step(stand: &mut Stand<'_>) -> Result<()> {
    let runner = stand.runner()?;
    let step = |stand: &Stand<'_>, side: usize, by: &str| {
        let script = format!("date -s @$(($(date +%s){by})) >/dev/null");
        stand.pair.host(side).sh(&script).map(drop)
    };
    stand.moment();
    step(stand, runner, "+3600")?;
    step(stand, 1 - runner, "-3600")?;
    let begin = Instant::now();
    while begin.elapsed() < QUIET {
        stand.goes_on()?;
        let status = stand.pair.wait_runs(runner)?;
        ensure!(
            status.is_protected_here(),
            "the machine lost its cover when the clocks were set"
        );
    }
    step(stand, runner, "-3600")?;
    step(stand, 1 - runner, "+3600")?;
    stand.protected_there()
}

fn all_power(stand: &mut Stand<'_>) -> Result<()> {
    let runner = stand.runner()?;
    let backup = 1 - runner;
    // A lab host has its disk in its memory. What a real one would still have is what is on it when all is quiet.
    stand.leave()?;
    stand.settled(backup)?;
    stand.settled(runner)?;
    stand.pair.remember(backup)?;
    stand.pair.remember(runner)?;
    stand.pair.cut_power(runner)?;
    stand.pair.arbiter.kill();
    stand.pair.cut_power(backup)?;
    stand.pair.arbiter.start_again()?;
    stand.pair.return_host(backup)?;
    stand.pair.wait_runs(backup)?;
    stand.turns.push(backup);
    stand.wait_up(backup)?;
    // It goes on from the disk: whatever was answered is there.
    stand.ask()?;
    stand.goes_on()?;
    stand.unprotected(backup)?;
    stand.pair.return_host(runner)?;
    stand.protected_there()
}

/// Cuts or mends both of a host's paths to the other.
pub(super) fn paths(stand: &Stand<'_>, side: usize, cut: bool) -> Result<()> {
    for network in [Network::Replication, Network::Control] {
        let host = stand.pair.host(side);
        if cut {
            host.cut(network)?;
        } else {
            host.mend(network)?;
        }
    }
    Ok(())
}
