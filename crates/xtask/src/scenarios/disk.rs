//! What a guest writes stays; what can't be written is the guest's error, not the process's end.

use super::{
    Scenario,
    case::{COMMAND_LIMIT, Case, STOP_LIMIT},
};
use crate::{assets::Image, machine_file::Disk, machine_host::Stopped};
use anyhow::{Result, ensure};

/// This file's scenarios.
pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "disk/persists",
        "writes survive an orderly stop and, once synced, a kill -9",
        &[Image::REGISTRAR_12_DISK],
        persists,
    ),
    Scenario::new(
        "disk/full",
        "a full host file system gives the guest an I/O error",
        &[Image::BASE_12],
        full,
    ),
    Scenario::new(
        "disk/read-only",
        "a read-only disk refuses writes",
        &[Image::BASE_12],
        read_only,
    ),
];

fn persists(case: &Case) -> Result<()> {
    let file = case.machine("registrar", Image::REGISTRAR_12_DISK, 0)?;
    let running = case.boot(file.clone())?;
    let write = |name: &str| {
        format!("dd if=/dev/urandom of=/{name} bs=64k count=320 2>/dev/null && sha256sum </{name}")
    };
    let first = case.in_guest(0, &write("first"))?;
    let stopped = running.stop(STOP_LIMIT)?;
    ensure!(
        stopped == Stopped::IN_ORDER,
        "the guest did not shut down in order: {stopped:?}"
    );
    drop(running);

    let mut again = file.clone();
    "/var/log/romulus/again.log".clone_into(&mut again.console.log);
    let running = case.boot(again)?;
    let read = case.in_guest(0, "sha256sum </first")?;
    ensure!(
        read == first,
        "a file written before the stop has sum {read} and had {first}"
    );
    let second = case.in_guest(0, &format!("{} && sync", write("second")))?;
    running.kill()?;
    drop(running);

    let mut third = file;
    "/var/log/romulus/third.log".clone_into(&mut third.console.log);
    let running = case.boot(third)?;
    for (name, expected) in [("first", first), ("second", second)] {
        let read = case.in_guest(0, &format!("sha256sum </{name}"))?;
        ensure!(
            read == expected,
            "after a kill -9 the synced file {name} has sum {read} and had {expected}"
        );
    }
    running.still_runs()
}

fn full(case: &Case) -> Result<()> {
    // The file system has less room than the sparse image promises.
    case.host().sh("mkdir -p /small; mount -t tmpfs -o size=32m small /small; truncate -s 128M /small/disk.img")?;
    let mut file = case.machine("full", Image::BASE_12, 0)?;
    file.disks.push(Disk {
        path: "/small/disk.img".to_owned(),
        read_only: false,
    });
    let running = case.boot(file)?;
    case.in_guest(0, "dd if=/dev/zero of=/dev/vda bs=1M count=8 oflag=direct")?;
    let (said, status) = case.try_in_guest(
        0,
        "dd if=/dev/zero of=/dev/vda bs=1M count=100 oflag=direct",
        COMMAND_LIMIT,
    )?;
    ensure!(
        status != 0 && said.contains("Input/output error"),
        "writing more than fits ended with {status}: {said}"
    );
    running.still_runs()?;
    // What was written before is there, and room made on the host is room for the guest.
    case.in_guest(0, "dd if=/dev/vda of=/dev/null bs=1M count=8")?;
    case.host().sh("mount -o remount,size=256m /small")?;
    case.in_guest(
        0,
        "dd if=/dev/zero of=/dev/vda bs=1M count=100 oflag=direct",
    )?;
    running.still_runs()
}

fn read_only(case: &Case) -> Result<()> {
    case.host()
        .sh("mkdir -p /images; yes romulus | head -c 16777216 >/images/disk.img")?;
    let before = case.host().sh("sha256sum </images/disk.img")?;
    let mut file = case.machine("reader", Image::BASE_12, 0)?;
    file.disks.push(Disk {
        path: "/images/disk.img".to_owned(),
        read_only: true,
    });
    let running = case.boot(file)?;
    let read = case.in_guest(0, "sha256sum </dev/vda")?;
    ensure!(
        read.trim() == before.trim(),
        "the guest reads a disk of sum {read}, not {before}"
    );
    let (said, status) = case.try_in_guest(
        0,
        "dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct",
        COMMAND_LIMIT,
    )?;
    ensure!(status != 0, "a write to a read-only disk succeeded: {said}");
    let after = case.host().sh("sha256sum </images/disk.img")?;
    ensure!(after == before, "a read-only image was changed");
    running.still_runs()
}
