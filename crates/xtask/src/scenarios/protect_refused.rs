//! Partners that do not fit, or are not who they should be, are refused with what is wrong; the machine runs on.

use super::{
    Scenario,
    case::{BOOT_LIMIT, Case, with_shell},
};
use crate::{
    assets::Image,
    machine_host::ROMULUS,
    pair::{Pair, Status},
    process,
    sipp::Transport,
};
use anyhow::{Context as _, Result, ensure};
use std::time::Duration;

/// This file's scenarios.
pub(super) const ALL: &[Scenario] = &[
    Scenario::pair(
        "bad-input/partner-memory",
        "a backup with another memory size is refused with what differs",
        &[Image::REGISTRAR_12],
        memory,
    ),
    Scenario::pair(
        "bad-input/partner-key",
        "a backup with another key is refused, and it is logged",
        &[Image::REGISTRAR_12],
        key,
    ),
];

/// How long a refusal may take to be said.
const SOON: Duration = Duration::from_mins(1);

/// Waits until a host's log holds all of these words in one line.
fn logged(pair: &Pair<'_>, side: usize, words: &[&str]) -> Result<String> {
    let mut last = String::new();
    let seen = process::poll(SOON, Duration::from_millis(250), || {
        last = pair.running(side)?.messages()?;
        let line = last
            .lines()
            .find(|line| words.iter().all(|word| line.contains(word)));
        Ok(line.map(str::to_owned))
    })?;
    seen.with_context(|| {
        format!(
            "no line of {}'s log has all of {words:?}: {last}",
            pair.host(side).name()
        )
    })
}

/// The machine runs on the first host without cover, and serves.
fn runs_alone(case: &Case, pair: &Pair<'_>) -> Result<()> {
    let status = pair.wait_runs(0)?;
    ensure!(
        !status.is_protected_here(),
        "a machine whose partner was refused says that it is protected"
    );
    pair.running(0)?.wait_console("GUEST UP", BOOT_LIMIT)?;
    case.register(0, Transport::Udp, 10, 20)?;
    for side in 0..2 {
        let said = pair.running(side)?.messages()?;
        ensure!(!said.contains("panicked"), "it panicked: {said}");
    }
    Ok(())
}

fn memory(case: &Case) -> Result<()> {
    let guest = case.assets.guest(Image::REGISTRAR_12)?;
    let mut pair = Pair::new(&case.lab, &case.assets, guest, with_shell)?;
    let mut other = pair.file.clone();
    "640 MiB".clone_into(&mut other.memory);
    pair.run(0)?;
    pair.run_with(1, other)?;
    for side in 0..2 {
        let line = logged(&pair, side, &["cannot be the partner", "memory"])?;
        eprintln!("{}: {line}", pair.host(side).name());
        let sizes = [512_u64, 640].map(|mib| (mib << 20).to_string());
        ensure!(
            sizes.iter().all(|size| line.contains(size))
                || (line.contains("512 MiB") && line.contains("640 MiB")),
            "the line does not say both sizes: {line}"
        );
    }
    runs_alone(case, &pair)?;
    // With the same size it is taken.
    pair.run(1)?;
    let runner = pair.wait_protected(None)?;
    ensure!(
        runner == 0,
        "the machine moved when its partner was put right"
    );
    Ok(())
}

fn key(case: &Case) -> Result<()> {
    let guest = case.assets.guest(Image::REGISTRAR_12)?;
    let mut pair = Pair::new(&case.lab, &case.assets, guest, with_shell)?;
    // A host that has the machine's file and addresses, but not the identity that the first host knows.
    let path = "/etc/romulus/stranger";
    let text = pair
        .host(1)
        .sh(&format!("{ROMULUS} pair --identity {path} --json"))?;
    let paired: serde_json::Value = serde_json::from_str(&text)?;
    let stranger = paired["identity"]
        .as_str()
        .context("`romulus pair --json` gave no identity")?;
    let mut other = pair.file.clone();
    let protection = other
        .protection
        .as_mut()
        .context("the pair's file has no [protection]")?;
    stranger.clone_into(&mut protection.hosts[1].identity);
    protection.identity = Some(path.to_owned());
    pair.run(0)?;
    pair.run_with(1, other)?;
    let line = logged(&pair, 0, &["no link to the other host"])?;
    eprintln!("h1: {line}");
    let line = logged(&pair, 1, &["no link to the other host"])?;
    eprintln!("h2: {line}");
    ensure!(
        pair.arbiter.messages()?.contains("a request was dropped"),
        "the arbiter does not say that a stranger asked"
    );
    runs_alone(case, &pair)?;
    let status = pair.wait_status(1, "known", SOON, |_| true)?;
    ensure!(
        !Status::runs(&status) && status.cover().is_some_and(|cover| !cover.protected),
        "a stranger has a part in the machine: {status:?}"
    );
    // With its right key it is taken.
    pair.run(1)?;
    let runner = pair.wait_protected(None)?;
    ensure!(runner == 0, "the machine moved when its partner came");
    Ok(())
}
