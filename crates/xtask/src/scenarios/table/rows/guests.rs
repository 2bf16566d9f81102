//! What the guest does to itself, and what is done to it on purpose.

use super::{
    super::stand::{SOON, Stand},
    Row,
};
use crate::{machine_host::Stopped, process};
use anyhow::{Context as _, Result, ensure};
use std::time::Duration;

/// This file's rows. In each the guest starts anew from its disk, on which all that was answered has to be.
pub(super) const ALL: &[Row] = &[
    Row::new(
        "guest-reboot",
        "the guest reboots",
        "it starts anew on the same host, and is covered again",
        reboot,
    )
    .short(),
    Row::new(
        "guest-panic",
        "the guest's kernel panics; its process is started again",
        "the process ends with 11 and nobody takes over; then it starts anew",
        panic,
    ),
    Row::new(
        "guest-power-off",
        "the guest switches itself off; its process is started again later",
        "the process ends with 0 and nobody takes over; then it starts anew",
        power_off,
    )
    .short(),
    Row::new(
        "stop",
        "`romulus stop`; both processes are started again later",
        "the guest shuts down in order and nobody takes over; then it starts anew",
        stop,
    ),
];

/// How long a guest may take to shut down, or to be up again.
const LONG: Duration = Duration::from_mins(4);

fn reboot(stand: &mut Stand<'_>) -> Result<()> {
    let runner = stand.runner()?;
    let restarts = stand.pair.wait_runs(runner)?.restarts;
    let ups = ups(stand, runner)?;
    stand.leave()?;
    stand.end_guest("reboot -f")?;
    process::poll(LONG, Duration::from_millis(250), || {
        Ok((self::ups(stand, runner)? > ups).then_some(()))
    })?
    .context("the guest did not come up again on its host")?;
    stand.ask()?;
    stand.goes_on()?;
    ensure!(
        stand.pair.wait_runs(runner)?.restarts == restarts + 1,
        "a guest that rebooted once is not counted so"
    );
    stand.protected_there()
}

/// How often the guest came up on a host.
fn ups(stand: &Stand<'_>, side: usize) -> Result<usize> {
    let running = stand.pair.running(side)?;
    running.still_runs()?;
    Ok(running.console()?.matches("GUEST UP").count())
}

/// The machine's process ends by itself with `code`, and nobody takes over. It is started again.
fn ends(stand: &mut Stand<'_>, script: &str, code: i32) -> Result<()> {
    let runner = stand.runner()?;
    stand.leave()?;
    stand.end_guest(script)?;
    let ended = stand.pair.ended(runner, LONG)?;
    ensure!(
        ended == Some(code),
        "the process ended with {ended:?}, not with {code}"
    );
    stand.nobody_runs(&[1 - runner])?;
    starts_anew(stand, runner)
}

/// A process is started again: it runs the machine from its disk.
fn starts_anew(stand: &mut Stand<'_>, side: usize) -> Result<()> {
    let before = console_ups(stand, side)?;
    stand.pair.run(side)?;
    process::poll(LONG, Duration::from_millis(250), || {
        stand.pair.running(side)?.still_runs()?;
        Ok((console_ups(stand, side)? > before).then_some(()))
    })?
    .context("the machine does not start anew")?;
    stand.ask()?;
    stand.goes_on()?;
    stand.protected_there()
}

/// How often the guest came up on a host, also in processes that have ended.
fn console_ups(stand: &Stand<'_>, side: usize) -> Result<usize> {
    let log = &stand.pair.file.console.log;
    let script = format!("grep -c 'GUEST UP' {log} || true");
    let text = stand.pair.host(side).sh(&script)?;
    Ok(text.trim().parse().unwrap_or(0))
}

fn panic(stand: &mut Stand<'_>) -> Result<()> {
    ends(
        stand,
        "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger",
        11,
    )
}

fn power_off(stand: &mut Stand<'_>) -> Result<()> {
    ends(stand, "poweroff -f", 0)
}

fn stop(stand: &mut Stand<'_>) -> Result<()> {
    let runner = stand.runner()?;
    stand.leave()?;
    let stopped = stand.pair.running(runner)?.stop(LONG)?;
    ensure!(
        stopped == Stopped::IN_ORDER,
        "the guest did not shut down in order: {stopped:?}"
    );
    stand.pair.ended(runner, SOON)?;
    stand.nobody_runs(&[1 - runner])?;
    let status = stand
        .pair
        .wait_status(1 - runner, "standing by", SOON, |status| !status.runs())?;
    ensure!(
        status.cover().is_some_and(|cover| !cover.protected),
        "a machine that was stopped is called protected: {status:?}"
    );
    let stopped = stand.pair.running(1 - runner)?.stop(LONG)?;
    ensure!(
        stopped == Stopped::IN_ORDER,
        "the process that stood by ended with {stopped:?}"
    );
    stand.pair.run(1 - runner)?;
    starts_anew(stand, runner)
}
