//! Paths and guests that ask for much, with nothing broken.

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
        "lossy-path",
        "20 % loss and 5 ms delay on the replication path, both ways",
        "whoever runs it serves; nothing is ever wrong, and all is well when the path is",
        lossy,
    ),
    Row::new(
        "large-checkpoint",
        "the guest changes 50 000 pages within one epoch",
        "nobody takes over: heartbeats do not wait behind data",
        large_checkpoint,
    ),
];

/// How long the path is bad.
const BAD: Duration = Duration::from_secs(20);

fn lossy(stand: &mut Stand<'_>) -> Result<()> {
    let runner = stand.runner()?;
    for side in 0..2 {
        stand
            .pair
            .host(side)
            .impair(Network::Replication, 20.0, Duration::from_millis(5))?;
    }
    let begin = Instant::now();
    let (mut longest, mut now, mut moves) = (Duration::ZERO, runner, 0);
    while begin.elapsed() < BAD {
        // The two are asked one after the other: at the moment of a takeover both may say that they run it. What they
        // send is watched elsewhere.
        let seen = stand.pair.runner().or_else(|_| {
            thread::sleep(Duration::from_secs(1));
            stand.pair.runner()
        })?;
        if let Some(side) = seen {
            if side != now {
                moves += 1;
                now = side;
                stand.took_over(side);
            }
            if let Some(cover) = stand
                .pair
                .status(side)?
                .as_ref()
                .and_then(|status| status.cover())
            {
                longest = longest.max(cover.t_b());
            }
        }
        thread::sleep(Duration::from_millis(100));
    }
    stand.goes_on()?;
    for side in 0..2 {
        stand.pair.host(side).clear(Network::Replication)?;
    }
    stand.remark = format!("T_b up to {} ms, {moves} takeovers", longest.as_millis());
    let last = stand.protected()?;
    if last != now {
        stand.took_over(last);
    }
    stand.protected_there()
}

fn large_checkpoint(stand: &mut Stand<'_>) -> Result<()> {
    let runner = stand.runner()?;
    // The first time they are new to the guest, the second time they are written as fast as it can.
    for _ in 0..2 {
        stand.order("dirty 50000")?;
        stand.goes_on()?;
        ensure!(
            stand.runner()? == runner,
            "the machine moved because an epoch was large"
        );
    }
    stand.protected_there()
}
