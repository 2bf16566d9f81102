//! A protected machine's disk: what the guest wrote is there after a takeover, whichever host it is.

use super::{Scenario, case::Case, protect::old_host_returns};
use crate::{assets::Image, machine_file::Disk, pair::Pair, process};
use anyhow::{Context as _, Result, ensure};
use std::time::Duration;

/// This file's scenarios.
pub(super) const ALL: &[Scenario] = &[Scenario::pair(
    "protect/disk",
    "a disk is the same on both hosts, also after the old primary returns with an old one",
    &[Image::REGISTRAR_12],
    disk,
)];

/// The image on both hosts.
const IMAGE: &str = "/images/data.img";
/// Its size in MiB: all of it is read in an emulated guest, more than once.
const MIB: u32 = 16;
/// How long blocks that were journaled may take to reach the image.
const SETTLED_WITHIN: Duration = Duration::from_mins(1);

fn disk(case: &Case) -> Result<()> {
    // The second host's image is of another machine: none of it may be left.
    for (number, content) in [(1, "/dev/zero"), (2, "/dev/urandom")] {
        case.lab.host(number).sh(&format!(
            "mkdir -p /images && dd if={content} of={IMAGE} bs=1M count={MIB} 2>/dev/null"
        ))?;
    }
    let mut pair = case.protected_with(Image::REGISTRAR_12, |file| {
        file.disks.push(Disk {
            path: IMAGE.to_owned(),
            read_only: false,
        });
    })?;

    // One part is synced, the other is not: a guest that was not told that it is durable has it all the same.
    write(case, 0, "oflag=direct conv=fsync")?;
    write(case, 6, "oflag=direct")?;
    let before = sum(case)?;
    pair.cut_power(0)?;
    pair.wait_runs(1)?;
    same(case, &pair, 1, &before)?;

    // Alone. The old primary returns with the image that it had when the machine was protected first.
    write(case, 3, "oflag=direct conv=fsync")?;
    let alone = sum(case)?;
    ensure!(alone != before, "the guest's write changed nothing");
    old_host_returns(&mut pair)?;
    write(case, 9, "oflag=direct")?;
    let covered = sum(case)?;
    pair.cut_power(1)?;
    pair.wait_runs(0)?;
    same(case, &pair, 0, &covered)
}

/// Writes 4 MiB of noise to the guest's disk, from MiB number `at` on.
fn write(case: &Case, at: u32, how: &str) -> Result<()> {
    case.in_guest(
        0,
        &format!(
            "dd if=/dev/urandom of=/dev/vda bs=64k count=64 seek={} {how} 2>/dev/null",
            at * 16
        ),
    )
    .map(drop)
}

/// What the guest has on its disk; its own memory of it is forgotten before.
fn sum(case: &Case) -> Result<String> {
    let sum = case.in_guest(0, "echo 3 >/proc/sys/vm/drop_caches; sha256sum </dev/vda")?;
    Ok(sum.trim().to_owned())
}

/// Checks that the guest on `side`, and that host's image, have what the guest had before.
fn same(case: &Case, pair: &Pair<'_>, side: usize, expected: &str) -> Result<()> {
    let read = sum(case)?;
    ensure!(
        read == expected,
        "the disk has sum {read} after the takeover and had {expected}"
    );
    let image = || {
        let sum = pair.host(side).sh(&format!("sha256sum <{IMAGE}"))?;
        Ok((sum.trim() == expected).then_some(()))
    };
    process::poll(SETTLED_WITHIN, Duration::from_secs(1), image)?.with_context(|| {
        format!(
            "the image on {} is another than the guest's disk",
            pair.host(side).name()
        )
    })
}
