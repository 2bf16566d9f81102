//! What happens to the nodes of etcd that have the arbiter's records.

use super::{super::stand::Stand, Row};
use anyhow::{Context as _, Result};
use std::thread;

/// This file's rows.
pub(super) const ALL: &[Row] = &[
    Row::new(
        "etcd-leader-killed",
        "the arbiter's records are in three nodes of etcd; the primary's host loses its power, and the node that leads is killed meanwhile",
        "the backup takes over, at the latest when the two others have a leader",
        leader_killed,
    )
    .etcd()
    .short(),
    Row::new(
        "etcd-no-majority",
        "two of three nodes of etcd are killed; then the primary's host loses its power; then they are back",
        "nobody runs the machine until etcd has a majority again; then the backup does",
        no_majority,
    )
    .etcd(),
];

fn leader_killed(stand: &mut Stand<'_>) -> Result<()> {
    let runner = stand.runner()?;
    let leader = stand.pair.arbiter.nodes()?.leader()?;
    stand.moment();
    stand.pair.cut_power(runner)?;
    // Up to some time after the claim that follows `T_b`: before it, between its two steps, after both.
    let wait = stand.draw.milliseconds(0..800);
    thread::sleep(wait);
    stand.pair.arbiter.nodes()?.kill(leader);
    stand.remark = format!("{} ms after the cut", wait.as_millis());
    stand.takes_over(1 - runner)?;
    stand.pair.return_host(runner)?;
    stand
        .protected_there()
        .context("with two of three nodes of etcd")?;
    let nodes = stand.pair.arbiter.nodes()?;
    nodes.start_again(leader)?;
    nodes.leader().map(drop)
}

fn no_majority(stand: &mut Stand<'_>) -> Result<()> {
    let runner = stand.runner()?;
    let nodes = stand.pair.arbiter.nodes()?;
    // The one that stays is the one that leads: it is the one that might believe that it still does.
    let leader = nodes.leader()?;
    let others = nodes.all_but(leader);
    for index in &others {
        nodes.kill(*index);
    }
    stand.goes_on().context("without a majority of etcd")?;
    stand.pair.cut_power(runner)?;
    stand.nobody_runs(&[1 - runner])?;
    let nodes = stand.pair.arbiter.nodes()?;
    for index in &others {
        nodes.start_again(*index)?;
    }
    stand.takes_over(1 - runner)?;
    stand.pair.return_host(runner)?;
    stand.protected_there()
}
