//! A machine that two hosts protect, and what each event does to it, as the table in `docs/protection.md` has it. Times are
//! for the benchmark; here is what must hold however long it takes.

use super::{Scenario, case::Case};
use crate::{
    assets::Image,
    capture::Capture,
    counter::{self, Counter},
    crossing::{self, Plan},
    machine_file::{FIRST_GUEST, mac},
    machine_host::ROMULUS,
    pair::{Pair, Status},
    probe::{self, Question},
    process,
    sipp::{self, Transport},
};
use anyhow::{Context as _, Result, ensure};
use lab::Network;
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
];

/// From one question of the counter to the next.
const CALM: Duration = Duration::from_millis(100);
/// How long a state may take to be said once it is so.
const SOON: Duration = Duration::from_mins(1);
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
    let control = Capture::start(pair.host(0), Network::Service, &mac(0))?;
    counts_on(&counter)?;
    ensure!(
        !control.finish()?.is_empty(),
        "the capture does not see what the primary sends"
    );

    pair.host(0).hang()?;
    pair.wait_runs(1)?;
    counts_on(&counter).context("after the takeover")?;
    // What the old one released before it hung has long been delivered. From here on it may send nothing as the guest,
    // however it is tempted: a client that has forgotten the address asks everybody.
    let capture = Capture::start(pair.host(0), Network::Service, &mac(0))?;
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
    let frames = capture.finish()?;
    ensure!(
        frames.is_empty(),
        "the old primary sent {} frames as the guest after its return, first {}",
        frames.len(),
        frames[0]
    );
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
