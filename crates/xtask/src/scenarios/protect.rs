//! A machine that two hosts protect, and what each event does to it, as the table in `docs/protection.md` has it. Times are
//! for the benchmark; here is what must hold however long it takes.

use super::{
    Scenario,
    case::{BOOT_LIMIT, COMMAND_LIMIT, Case, STOP_LIMIT},
};
use crate::{
    assets::Image,
    counter::{self, Counter},
    crossing::{self, Plan},
    machine_file::{FIRST_GUEST, mac},
    machine_host::{ROMULUS, Stopped},
    options,
    oracle::{self, Handed, Wire},
    pair::{Pair, Status},
    probe::{self, Question},
    process,
    sipp::{self, Transport},
};
use anyhow::{Context as _, Result, bail, ensure};
use std::time::Duration;

/// This file's scenarios.
pub(super) const ALL: &[Scenario] = &[
    Scenario::pair(
        "protect/power-cut",
        "the primary loses its power in mid-load: nothing is lost, no connection ends",
        &[Image::REGISTRAR_12],
        power_cut,
    ),
    Scenario::pair(
        "protect/returns",
        "the lost host comes back as the backup by itself, and takes over when the other is lost",
        &[Image::REGISTRAR_12],
        returns,
    ),
    Scenario::pair(
        "protect/backup-returns",
        "a killed backup is missed aloud, and covers again when it is back",
        &[Image::REGISTRAR_12],
        backup_returns,
    ),
    Scenario::pair(
        "protect/old-primary-returns",
        "a primary that hung and returns releases nothing and becomes the backup",
        &[Image::REGISTRAR_12],
        old_primary_returns,
    ),
    Scenario::pair(
        "protect/stop",
        "a machine that is stopped on purpose is resurrected by nobody",
        &[Image::REGISTRAR_12],
        stop,
    ),
    Scenario::pair(
        "protect/guest-reboot",
        "a guest's reboot stays on its host and is covered again",
        &[Image::REGISTRAR_12],
        guest_reboot,
    ),
];

/// From one question of the counter to the next.
const CALM: Duration = Duration::from_millis(100);
/// How long a state may take to be said once it is so.
const SOON: Duration = Duration::from_mins(1);
/// How long nobody may answer before a machine counts as gone for good: many times what a takeover needs.
const GONE: Duration = Duration::from_secs(20);
/// The exit code of `romulus status --require-protected` without cover.
const UNPROTECTED: i32 = 1;

/// A small load across a cut, with nothing lost; gives the number of the term after it.
fn cross(case: &Case, pair: &mut Pair<'_>, name: &str) -> Result<u64> {
    let runner = pair.runner()?.context("no host runs the machine")?;
    let before = term(&pair.wait_runs(runner)?)?;
    let plan = Plan {
        name: name.to_owned(),
        rates: [4, 2, 0],
        seconds: 12,
        cut_after: Some(Duration::from_secs(5)),
    };
    let crossing = crossing::run(case.lab.client(), pair, &plan, None)?;
    ensure!(crossing.cut.is_some(), "the load ended before the cut");
    let faults = crossing.faults();
    ensure!(faults.is_empty(), "not as promised: {}", faults.join("; "));
    ensure!(
        crossing.acknowledged > 0,
        "nothing was acknowledged before the cut"
    );
    let status = pair.wait_runs(1 - runner)?;
    let after = term(&status)?;
    ensure!(
        after > before,
        "the term before the takeover was {before}, after it {after}"
    );
    ensure!(
        !status.is_protected_here(),
        "a machine without a backup says that it is protected"
    );
    let console = pair.running(1 - runner)?.console()?;
    let mark = format!("--- romulus: took over in term {after}");
    ensure!(
        console.contains(&mark),
        "the console does not show {mark:?}"
    );
    Ok(after)
}

fn term(status: &Status) -> Result<u64> {
    status
        .cover()
        .and_then(|cover| cover.term)
        .context("the primary does not say its term")
}

fn power_cut(case: &Case) -> Result<()> {
    let mut pair = case.protected(Image::REGISTRAR_12)?;
    cross(case, &mut pair, "cut").map(drop)
}

/// The first host comes back from its loss of power and covers the machine, which stays where it is.
pub(super) fn old_host_returns(pair: &mut Pair<'_>) -> Result<()> {
    pair.return_host(0)?;
    let runner = pair.wait_protected(None)?;
    ensure!(
        runner == 1,
        "the machine moved by itself when its old host came back"
    );
    Ok(())
}

fn returns(case: &Case) -> Result<()> {
    let mut pair = case.protected(Image::REGISTRAR_12)?;
    cross(case, &mut pair, "first")?;
    old_host_returns(&mut pair)?;
    pair.wait_status(0, "the backup", SOON, Status::is_backup)?;
    cross(case, &mut pair, "second").map(drop)
}

/// The exit code of the check for monitoring, on one host.
fn require_protected(pair: &Pair<'_>, side: usize) -> Result<Option<i32>> {
    let check = [ROMULUS, "status", &pair.file.name, "--require-protected"];
    Ok(pair.host(side).run(&check)?.status.code())
}

/// Waits until the counter has been answered a few times more.
fn counts_on(counter: &Counter) -> Result<()> {
    let wanted = counter.answered() + 5;
    process::poll(SOON, CALM, || {
        Ok((counter.answered() >= wanted).then_some(()))
    })?
    .context("the guest's counter stands still")
}

/// Ends the counter; nothing may be wrong with it.
fn one_history(counter: Counter) -> Result<()> {
    let seen = counter.finish()?;
    match seen.fault {
        None => Ok(()),
        Some(fault) => anyhow::bail!("after {} right answers: {fault}", seen.answers.len()),
    }
}

fn backup_returns(case: &Case) -> Result<()> {
    let mut pair = case.protected(Image::REGISTRAR_12)?;
    ensure!(
        require_protected(&pair, 0)? == Some(0),
        "a protected machine fails the check for monitoring"
    );
    let pid = pair.running(0)?.pid();
    let counter = counter::start(case.lab.client(), FIRST_GUEST, CALM)?;
    counts_on(&counter)?;

    pair.running(1)?.kill()?;
    pair.wait_status(0, "unprotected", SOON, |status| {
        status.runs() && !status.is_protected_here()
    })?;
    ensure!(
        require_protected(&pair, 0)? == Some(UNPROTECTED),
        "an unprotected machine passes the check for monitoring"
    );
    let said = pair.running(0)?.messages()?;
    ensure!(
        said.contains("NOT protected"),
        "the loss of cover is not in the log: {said}"
    );
    counts_on(&counter).context("without a backup")?;
    case.register(0, Transport::Udp, 10, 30)
        .context("without a backup")?;

    pair.run(1)?;
    let runner = pair.wait_protected(None)?;
    ensure!(runner == 0, "the machine moved when its backup came back");
    ensure!(
        pair.wait_runs(0)?.pid == pid && pair.running(0)?.pid() == pid,
        "the runner was restarted"
    );
    counts_on(&counter).context("after the backup came back")?;
    ensure!(
        require_protected(&pair, 0)? == Some(0),
        "the check for monitoring fails after the backup came back"
    );
    // Whether the new cover is worth its name.
    pair.cut_power(0)?;
    pair.wait_runs(1)?;
    counts_on(&counter).context("after the cut")?;
    one_history(counter)
}

fn old_primary_returns(case: &Case) -> Result<()> {
    let mut pair = case.protected(Image::REGISTRAR_12)?;
    let client = case.lab.client();
    let counter = counter::start(client, FIRST_GUEST, CALM)?;
    counts_on(&counter)?;
    let wire = Wire::start(&pair, &mac(0))?;
    let handed = Handed::start(&pair, 0, &mac(0))?;
    counts_on(&counter)?;

    let hung = handed.hang(&pair)?;
    pair.wait_runs(1)?;
    counts_on(&counter).context("after the takeover")?;
    // From here on the old one may let nothing go as the guest, however it is tempted: a client that has forgotten the
    // address asks everybody.
    let probe = probe::start(client, sipp::sip(FIRST_GUEST), Question::Options, CALM)?;
    pair.host(0).resume()?;
    let backup = || {
        let flushed = client
            .command("ip")?
            .args(["neigh", "flush", "dev", "svc"])
            .status()?;
        ensure!(flushed.success(), "the client can't forget its neighbours");
        Ok(pair.status(0)?.filter(Status::is_backup))
    };
    process::poll(SOON, Duration::from_millis(100), backup)?
        .context("the old primary did not become the backup")?;
    let frames = wire.finish()?;
    let late = hung.finish(&frames)?;
    ensure!(
        [0, 1].map(|side| frames.iter().any(|frame| frame.side == side)) == [true, true],
        "the captures do not see what the runners send"
    );
    if let Some(fault) = oracle::out_of_turn(&frames, &late, &[0, 1]) {
        bail!("after the old primary's return: {fault}");
    }
    let seen = probe.finish()?;
    let unanswered = seen
        .questions
        .iter()
        .filter(|(_, answer)| answer.is_none())
        .count();
    ensure!(
        unanswered == 0,
        "{unanswered} of {} questions were not answered while the old primary returned",
        seen.questions.len()
    );
    let runner = pair.wait_protected(None)?;
    ensure!(runner == 1, "the old primary took the machine back");
    counts_on(&counter).context("after the return")?;
    pair.cut_power(1)?;
    pair.wait_runs(0)?;
    counts_on(&counter).context("when the old primary took over in its turn")?;
    one_history(counter)
}

/// Checks that nobody answers as the guest for a good while.
fn nobody_answers(case: &Case) -> Result<()> {
    let watch = options::watch(case.lab.client(), sipp::sip(FIRST_GUEST), GONE)?;
    ensure!(
        watch.wait().is_err(),
        "somebody answers for a machine that was stopped"
    );
    Ok(())
}

fn stop(case: &Case) -> Result<()> {
    let pair = case.protected(Image::REGISTRAR_12)?;
    let stopped = pair.running(0)?.stop(STOP_LIMIT)?;
    ensure!(
        stopped == Stopped::IN_ORDER,
        "the guest did not shut down in order: {stopped:?}"
    );
    ensure!(
        pair.running(0)?.console()?.contains("GUEST STOPPING"),
        "the guest did not see its power button"
    );
    nobody_answers(case)?;
    // The other process goes on standing by, and says that nothing is covered.
    let status = pair.wait_status(1, "standing by", SOON, |status| !status.runs())?;
    ensure!(
        status.cover().is_some_and(|cover| !cover.protected),
        "a stopped machine is called protected: {status:?}"
    );
    ensure!(
        require_protected(&pair, 1)? == Some(UNPROTECTED),
        "a stopped machine passes the check for monitoring"
    );
    let stopped = pair.running(1)?.stop(STOP_LIMIT)?;
    ensure!(
        stopped == Stopped::IN_ORDER,
        "the process that stood by ended with {stopped:?}"
    );
    Ok(())
}

fn guest_reboot(case: &Case) -> Result<()> {
    let mut pair = case.protected(Image::REGISTRAR_12)?;
    let pid = pair.running(0)?.pid();
    // Leaves the shell time to say that it is done.
    case.in_guest(
        0,
        "setsid sh -c 'sleep 0.3; reboot -f' >/dev/null 2>&1 & true",
    )?;
    let up_again = || {
        let running = pair.running(0)?;
        running.still_runs()?;
        Ok((running.console()?.matches("GUEST UP").count() >= 2).then_some(()))
    };
    process::poll(BOOT_LIMIT, Duration::from_millis(250), up_again)?
        .context("the guest did not come up again on its host after its reboot")?;
    case.answers(0)?;
    let runner = pair.wait_protected(None)?;
    ensure!(runner == 0, "a reboot moved the machine to the other host");
    let status = pair.wait_runs(0)?;
    ensure!(
        status.pid == pid && status.restarts == 1,
        "the process of a guest that rebooted once says {status:?}"
    );
    // What is covered is the guest after its reboot.
    case.in_guest_within(0, "echo after >/tmp/mark", COMMAND_LIMIT)?;
    cross(case, &mut pair, "reboot")?;
    let mark = case.in_guest(0, "cat /tmp/mark")?;
    ensure!(
        mark.trim() == "after",
        "the guest that was taken over is another one: {mark}"
    );
    Ok(())
}
