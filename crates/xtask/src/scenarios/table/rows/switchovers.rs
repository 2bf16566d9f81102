//! What moves the machine although no host fails.

use super::{super::stand::Stand, Row};
use crate::{machine_file::FIRST_GUEST, process};
use anyhow::{Context as _, Result, ensure};
use lab::Network;
use std::{
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

/// This file's rows.
pub(super) const ALL: &[Row] = &[
    Row::new(
        "switchover",
        "the operator asks for a switchover",
        "the backup runs the machine and begins with what came for it meanwhile; the old primary becomes the backup",
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

/// How many pings there are while the machine is switched over, from one to the next, and how long an answer may take. A switchover
/// takes longer than from one to the next: some come while the guest stands.
const PINGS: u32 = 400;
const PING_INTERVAL: &str = "0.005";
const PING_WAIT: &str = "2";
/// How long they may take together.
const PINGED: Duration = Duration::from_secs(30);

fn switchover(stand: &mut Stand<'_>) -> Result<()> {
    let runner = stand.runner()?;
    stand.moment();
    let before = given(stand, 1 - runner)?;
    let pings = pings(stand)?;
    stand.moment();
    let asked = Instant::now();
    stand.pair.switch_over(runner)?;
    let took = asked.elapsed();
    stand.takes_over(1 - runner)?;
    let lost = lost(pings)?;
    let again = given(stand, 1 - runner)? - before;
    ensure!(
        again > 0,
        "the guest was not given what came while it stood; {lost} of {PINGS} pings were lost"
    );
    stand.remark = format!(
        "{} ms; {again} frames came while it stood; {lost} of {PINGS} pings lost",
        took.as_millis()
    );
    stand.backs_up(runner)?;
    stand.protected_there()
}

/// The client pings the guest, 200 times a second, and ends by itself.
fn pings(stand: &Stand<'_>) -> Result<Child> {
    let mut command = stand.lab.client().command("ping")?;
    command
        .args(["-q", "-c", &PINGS.to_string(), "-i", PING_INTERVAL])
        .args(["-W", PING_WAIT, &FIRST_GUEST.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command.spawn().context("starting ping")
}

/// How many of them got no answer.
fn lost(mut pings: Child) -> Result<u32> {
    if process::wait_within(&mut pings, PINGED)?.is_none() {
        process::kill(&mut pings);
    }
    let output = pings.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let received = said
        .split(", ")
        .find_map(|part| part.strip_suffix(" received")?.parse::<u32>().ok())
        .with_context(|| format!("ping said {said:?}"))?;
    Ok(PINGS.saturating_sub(received))
}

/// How many frames `side` has given to a guest so far that had come while it stood on the other.
fn given(stand: &Stand<'_>, side: usize) -> Result<u64> {
    let status = stand.pair.status(side)?.context("the host says nothing")?;
    let cover = status.cover().context("the machine is not protected")?;
    Ok(cover.given_again_frames)
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
