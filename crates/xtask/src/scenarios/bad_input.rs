//! What is wrong is refused with a text that names it, and an exit code that says what kind of fault it is.

use super::{Scenario, case::Case};
use crate::{
    assets::Image,
    machine_file::Disk,
    machine_host::{self, ROMULUS},
};
use anyhow::{Context as _, Result, ensure};

/// This file's scenarios.
pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "bad-input/files",
        "missing, truncated and foreign kernels and images",
        &[Image::BASE_12],
        files,
    ),
    Scenario::new(
        "bad-input/host",
        "a missing bridge, tap permission or KVM",
        &[Image::BASE_12],
        host,
    ),
    Scenario::new(
        "bad-input/typo",
        "a typo in the machine file",
        &[Image::BASE_12],
        typo,
    ),
];

/// Exit codes of `romulus`, as in sysexits.h.
mod code {
    pub(super) const NO_INPUT: i32 = 66;
    pub(super) const UNAVAILABLE: i32 = 69;
    pub(super) const NO_PERMISSION: i32 = 77;
    pub(super) const CONFIG: i32 = 78;
}

/// Runs a machine that must be refused at once, with one of these codes and a text with all of these words.
fn refused(case: &Case, arguments: &[&str], codes: &[i32], words: &[&str]) -> Result<()> {
    let limited = [&["timeout", "20"], arguments].concat();
    let output = case.host().run(&limited)?;
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    eprintln!("{}: {}", output.status, said.trim());
    ensure!(
        output
            .status
            .code()
            .is_some_and(|code| codes.contains(&code)),
        "ended with {} instead of one of {codes:?}: {said}",
        output.status
    );
    for word in words {
        ensure!(
            said.contains(word),
            "the text does not say {word:?}: {said}"
        );
    }
    ensure!(!said.contains("panicked"), "the program panicked: {said}");
    Ok(())
}

fn files(case: &Case) -> Result<()> {
    let good = case.machine("bad", Image::BASE_12, 0)?;
    let path = good.path();
    let run = [ROMULUS, "run", path.as_str()];
    let host = case.host();
    host.sh(&format!(
        "mkdir -p /bad; head -c 100000 {kernel} >/bad/truncated; head -c 65536 /dev/urandom >/bad/foreign; : >/bad/empty",
        kernel = good.boot.kernel
    ))?;
    for (kernel, words) in [
        ("/bad/missing", vec!["/bad/missing"]),
        ("/bad/truncated", vec!["/bad/truncated"]),
        ("/bad/foreign", vec!["/bad/foreign"]),
        ("/bad/empty", vec!["/bad/empty"]),
        ("/bad", vec!["/bad"]),
    ] {
        let mut file = good.clone();
        kernel.clone_into(&mut file.boot.kernel);
        machine_host::write_machine_file(host, &file)?;
        refused(case, &run, &[code::NO_INPUT], &words)
            .with_context(|| format!("with the kernel {kernel}"))?;
    }
    let mut file = good.clone();
    "/bad/missing-initrd".clone_into(&mut file.boot.initrd);
    machine_host::write_machine_file(host, &file)?;
    refused(case, &run, &[code::NO_INPUT], &["/bad/missing-initrd"])
        .context("with a missing initrd")?;

    let mut file = good;
    file.disks.push(Disk {
        path: "/bad/missing-disk".to_owned(),
        read_only: false,
    });
    machine_host::write_machine_file(host, &file)?;
    refused(case, &run, &[code::NO_INPUT], &["/bad/missing-disk"])
        .context("with a missing disk")?;
    "/bad/empty".clone_into(&mut file.disks[0].path);
    machine_host::write_machine_file(host, &file)?;
    refused(case, &run, &[code::NO_INPUT], &["/bad/empty"]).context("with an empty disk")
}

fn host(case: &Case) -> Result<()> {
    let good = case.machine("bad", Image::BASE_12, 0)?;
    let path = good.path();
    let run = [ROMULUS, "run", path.as_str()];
    let host = case.host();

    let mut file = good.clone();
    "br-none".clone_into(&mut file.nics[0].bridge);
    machine_host::write_machine_file(host, &file)?;
    refused(case, &run, &[code::UNAVAILABLE], &["br-none"]).context("with a missing bridge")?;
    let left = host.sh("ls /sys/class/net")?;
    ensure!(
        !left.split_whitespace().any(|name| name == "tap0"),
        "a refused machine left its tap behind: {left}"
    );

    machine_host::write_machine_file(host, &good)?;
    // A user who may not make taps: everything else is readable, the runtime folder is theirs.
    let unprivileged = format!(
        "rm -rf /var/log/romulus/*; mkdir -p /tmp/run; chmod 777 /tmp/run; chmod 666 /dev/kvm /dev/net/tun; chmod 777 /var/log/romulus; \
                 export ROMULUS_RUNTIME_DIR=/tmp/run; exec start-stop-daemon --start --chuid nobody --exec {ROMULUS} -- run {path}"
    );
    refused(
        case,
        &["sh", "-c", &unprivileged],
        &[code::NO_PERMISSION],
        &["tap0"],
    )
    .context("without permission for a tap")?;

    host.sh("mv /dev/kvm /dev/kvm.away")?;
    let outcome =
        refused(case, &run, &[code::UNAVAILABLE], &["/dev/kvm"]).context("without /dev/kvm");
    host.sh("mv /dev/kvm.away /dev/kvm")?;
    outcome
}

fn typo(case: &Case) -> Result<()> {
    let good = case.machine("bad", Image::BASE_12, 0)?;
    let text = toml::to_string(&good)?.replace("command_line", "comand_line");
    let line = text
        .lines()
        .position(|line| line.starts_with("comand_line"))
        .map(|index| index + 1)
        .context("the machine file has no command line")?;
    let path = good.path();
    case.host().agent().write(text.as_bytes(), 0o644, &path)?;
    let place = format!("{path}:{line}:");
    refused(
        case,
        &[ROMULUS, "run", &path],
        &[code::CONFIG],
        &[&place, "comand_line", "command_line"],
    )?;
    // And with the typo put right, it starts.
    let running = case.boot(good)?;
    running.still_runs()
}
