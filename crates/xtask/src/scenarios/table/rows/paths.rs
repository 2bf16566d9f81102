//! What happens to the paths between the hosts.

use super::{super::stand::Stand, Row, hosts::paths};
use anyhow::{Result, ensure};
use lab::{Direction, Network};

/// This file's rows.
pub(super) const ALL: &[Row] = &[
    Row::new(
        "paths-cut",
        "all paths of the primary are cut without a sign, also to the arbiter",
        "the backup takes over; the old primary becomes the backup when the paths are mended",
        all_of_primary,
    )
    .short(),
    Row::new(
        "paths-cut-backup",
        "all paths of the backup are cut without a sign, also to the arbiter",
        "the machine runs on, unprotected until the paths are mended",
        all_of_backup,
    ),
    Row::new(
        "replication-cut",
        "the replication path is cut without a sign; heartbeats still pass on the other",
        "the machine runs on, unprotected until the path is mended",
        |stand| replication(stand, Direction::Both),
    )
    .short(),
    Row::new(
        "replication-cut-from",
        "what the primary sends on the replication path is lost",
        "the machine runs on, unprotected until the path is mended",
        |stand| replication(stand, Direction::FromHost),
    ),
    Row::new(
        "replication-cut-to",
        "what the primary is sent on the replication path is lost",
        "the machine runs on, unprotected until the path is mended",
        |stand| replication(stand, Direction::ToHost),
    ),
];

fn all_of_primary(stand: &mut Stand<'_>) -> Result<()> {
    let runner = stand.runner()?;
    stand.moment();
    paths(stand, runner, true)?;
    let cut = stand.takes_over(1 - runner);
    paths(stand, runner, false)?;
    cut?;
    stand.backs_up(runner)?;
    stand.protected_there()
}

fn all_of_backup(stand: &mut Stand<'_>) -> Result<()> {
    let runner = stand.runner()?;
    stand.moment();
    paths(stand, 1 - runner, true)?;
    let cut = stand.unprotected(runner).and_then(|()| stand.goes_on());
    paths(stand, 1 - runner, false)?;
    cut?;
    stand.protected_there()
}

fn replication(stand: &mut Stand<'_>, direction: Direction) -> Result<()> {
    let runner = stand.runner()?;
    let host = stand.pair.host(runner);
    stand.moment();
    host.cut_one_way(Network::Replication, direction)?;
    let cut = stand
        .unprotected(runner)
        .and_then(|()| stand.goes_on())
        .and_then(|()| {
            ensure!(
                stand.runner()? == runner,
                "the machine moved though heartbeats passed"
            );
            Ok(())
        });
    host.mend(Network::Replication)?;
    cut?;
    stand.protected_there()
}
