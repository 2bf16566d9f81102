//! What an operator does to a machine, and what a guest does to itself; each with the exit code that supervisors see.

use super::{
    Scenario,
    case::{COMMAND_LIMIT, Case, STOP_LIMIT},
};
use crate::{
    assets::Image,
    machine_host::{ROMULUS, Running, Stopped},
    process,
    sipp::Transport,
};
use anyhow::{Context as _, Result, ensure};
use std::time::Duration;

/// This file's scenarios.
pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "lifecycle/operator",
        "status, console and an orderly stop",
        &[Image::REGISTRAR_12],
        operator,
    ),
    Scenario::new(
        "lifecycle/forced-stop",
        "a guest that ignores its power button is stopped by force",
        &[Image::BASE_12],
        forced_stop,
    ),
    Scenario::new(
        "lifecycle/reboot",
        "a guest's reboot ends or restarts the machine, as the file says",
        &[Image::BASE_12],
        reboot,
    ),
    Scenario::new(
        "lifecycle/panic",
        "a guest's panic is noticed",
        &[Image::BASE_12],
        panic,
    ),
    Scenario::new(
        "lifecycle/killed",
        "after a kill -9 the machine runs again; a second run is refused",
        &[Image::REGISTRAR_12],
        killed,
    ),
];

/// Exit codes of `romulus`.
mod code {
    pub(super) const RESET: i32 = 10;
    pub(super) const PANICKED: i32 = 11;
    pub(super) const FORCED: i32 = 12;
    pub(super) const RUNS_ALREADY: i32 = 14;
    pub(super) const RUNS_NOT: i32 = 15;
}

fn operator(case: &Case) -> Result<()> {
    let host = case.host();
    let (running, _) = case.boot_sip(case.machine("registrar", Image::REGISTRAR_12, 0)?, 0)?;
    running.wait_console("GUEST UP", COMMAND_LIMIT)?;

    let status = running.status()?.to_string();
    ensure!(
        status.contains("\"registrar\""),
        "`romulus status --json` does not name the machine: {status}"
    );
    let text = host.sh(&format!("{ROMULUS} status"))?;
    ensure!(
        text.contains("registrar"),
        "`romulus status` does not list the machine: {text}"
    );

    // The sum is worked out by the guest: an echo of what was typed does not have it.
    let console = host.spawn(&[ROMULUS, "console", "registrar"])?;
    console.input(b"echo sum-$((40 + 2))\n")?;
    console
        .wait_for("sum-42", COMMAND_LIMIT)
        .context("at the attached console")?;
    drop(console);
    running
        .wait_console("sum-42", Duration::from_secs(10))
        .context("in the console's log")?;

    let stopped = running.stop(STOP_LIMIT)?;
    ensure!(
        stopped == Stopped::IN_ORDER,
        "the guest did not shut down in order: {stopped:?}"
    );
    let console = running.console()?;
    ensure!(
        console.contains("GUEST STOPPING"),
        "the guest did not see its power button"
    );
    let gone = host.run(&[ROMULUS, "status", "registrar"])?;
    ensure!(
        gone.status.code() == Some(code::RUNS_NOT),
        "a stopped machine's status ends with {}",
        gone.status
    );
    let taps = host.sh("ls /sys/class/net")?;
    ensure!(
        !taps.split_whitespace().any(|name| name == "tap0"),
        "the machine left its tap behind: {taps}"
    );
    Ok(())
}

fn forced_stop(case: &Case) -> Result<()> {
    let mut file = case.machine("stubborn", Image::BASE_12, 0)?;
    file.stop_timeout = Some("3 s");
    let running = case.boot(file)?;
    case.in_guest(0, "killall acpid")?;
    let stopped = running.stop(STOP_LIMIT)?;
    let expected = Stopped {
        command: Some(code::FORCED),
        machine: Some(code::FORCED),
    };
    ensure!(
        stopped == expected,
        "a stop by force ended with {stopped:?}"
    );
    Ok(())
}

/// Leaves the shell time to say that it is done.
const REBOOT: &str = "setsid sh -c 'sleep 0.3; reboot -f' >/dev/null 2>&1 & true";

fn reboot(case: &Case) -> Result<()> {
    let mut file = case.machine("reboots", Image::BASE_12, 0)?;
    file.on_reboot = Some("exit");
    let running = case.boot(file.clone())?;
    case.in_guest(0, REBOOT)?;
    let status = running.wait(COMMAND_LIMIT)?;
    ensure!(
        status.code() == Some(code::RESET),
        "a reboot with on_reboot = \"exit\" ended with {status}"
    );

    file.on_reboot = Some("restart");
    "/var/log/romulus/restarts.log".clone_into(&mut file.console.log);
    let running = case.boot(file)?;
    let pid = running.pid();
    case.in_guest(0, REBOOT)?;
    let up_again = || {
        running.still_runs()?;
        Ok((running.console()?.matches("GUEST UP").count() >= 2).then_some(()))
    };
    process::poll(
        Duration::from_secs(90),
        Duration::from_millis(200),
        up_again,
    )?
    .context("the guest did not come up again after its reboot")?;
    case.in_guest(0, "true")?;
    ensure!(running.pid() == pid, "the reboot changed the process");
    let stopped = running.stop(STOP_LIMIT)?;
    ensure!(
        stopped == Stopped::IN_ORDER,
        "after a reboot the guest did not shut down in order: {stopped:?}"
    );
    Ok(())
}

fn panic(case: &Case) -> Result<()> {
    let running = case.boot(case.machine("panics", Image::BASE_12, 0)?)?;
    case.in_guest(
        0,
        "setsid sh -c 'sleep 0.3; echo c >/proc/sysrq-trigger' >/dev/null 2>&1 & true",
    )?;
    let status = running.wait(COMMAND_LIMIT)?;
    ensure!(
        status.code() == Some(code::PANICKED),
        "a guest's panic ended with {status}: {}",
        running.messages()?
    );
    let console = running.console()?;
    ensure!(
        console.contains("Kernel panic"),
        "the panic is not on the console"
    );
    Ok(())
}

fn killed(case: &Case) -> Result<()> {
    let host = case.host();
    let file = case.machine("registrar", Image::REGISTRAR_12, 0)?;
    let (running, _) = case.boot_sip(file.clone(), 0)?;

    let second = host.run(&[ROMULUS, "run", &file.path()])?;
    let said = String::from_utf8_lossy(&second.stderr);
    ensure!(
        second.status.code() == Some(code::RUNS_ALREADY),
        "a second run ended with {}: {said}",
        second.status
    );
    ensure!(
        said.contains("registrar"),
        "a second run was refused without the machine's name: {said}"
    );
    case.answers(0).context("after a second run was refused")?;

    running.kill()?;
    drop(running);
    let gone = host.run(&[ROMULUS, "status", "registrar"])?;
    ensure!(
        gone.status.code() == Some(code::RUNS_NOT),
        "a killed machine's status ends with {}",
        gone.status
    );

    let (running, _): (Running<'_>, _) = case.boot_sip(file, 0).context("after a kill -9")?;
    case.register(0, Transport::Udp, 25, 50)?;
    let stopped = running.stop(STOP_LIMIT)?;
    ensure!(
        stopped == Stopped::IN_ORDER,
        "after a kill -9 the guest did not shut down in order: {stopped:?}"
    );
    Ok(())
}
