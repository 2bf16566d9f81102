//! What moves the machine although no host fails.

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
        "switchover",
        "the operator asks for a switchover",
        "the backup runs the machine; the old primary becomes the backup",
        switchover,
    )
    .short(),
    Row::new(
        "uplink-gone",
        "the primary's service uplink is gone, the backup's is there",
        "the machine is switched over; the old primary becomes the backup",
        gone,
    )
    .short(),
    Row::new(
        "uplink-gone-both",
        "the service uplinks of both hosts are gone, and come back",
        "nothing",
        gone_on_both,
    ),
];

fn switchover(stand: &mut Stand<'_>) -> Result<()> {
    let runner = stand.runner()?;
    stand.moment();
    let asked = Instant::now();
    stand.pair.switch_over(runner)?;
    stand.remark = format!("{} ms", asked.elapsed().as_millis());
    stand.takes_over(1 - runner)?;
    stand.backs_up(runner)?;
    stand.protected_there()
}

fn gone(stand: &mut Stand<'_>) -> Result<()> {
    let runner = stand.runner()?;
    stand.moment();
    let host = stand.pair.host(runner);
    host.unplug(Network::Service)?;
    let moved = stand
        .takes_over(1 - runner)
        .and_then(|()| stand.backs_up(runner))
        .and_then(|()| stand.protected_there())
        .and_then(|()| {
            let (here, there) = stand.pair.uplinks(runner)?;
            ensure!(
                (here, there) == (0, Some(1)),
                "the host without its uplink says that {here} are up here and {there:?} there"
            );
            Ok(())
        });
    host.plug(Network::Service)?;
    moved?;
    // It came back: that is no reason to move again.
    stand.protected_there()
}

/// How long the machine must stay where it is: many times what a switchover waits for.
const STAYS: Duration = Duration::from_secs(3);

fn gone_on_both(stand: &mut Stand<'_>) -> Result<()> {
    let runner = stand.runner()?;
    // The backup's first: for a moment only the primary's would be there.
    for side in [1 - runner, runner] {
        stand.pair.host(side).unplug(Network::Service)?;
    }
    let begin = Instant::now();
    let mut stays = Ok(());
    while stays.is_ok() && begin.elapsed() < STAYS {
        stays = stand.pair.wait_runs(runner).and_then(|status| {
            ensure!(
                status.is_protected_here(),
                "the machine lost its cover with the uplinks"
            );
            Ok(())
        });
        thread::sleep(Duration::from_millis(200));
    }
    for side in [runner, 1 - runner] {
        stand.pair.host(side).plug(Network::Service)?;
    }
    stays?;
    stand.goes_on()?;
    stand.protected_there()
}
