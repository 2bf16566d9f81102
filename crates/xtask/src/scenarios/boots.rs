//! Stock kernels and stock servers come up, of several releases, from RAM and from disk.

use super::{
    Scenario,
    case::{Case, STOP_LIMIT},
};
use crate::{assets::Image, machine_host::Stopped, sipp::Transport};
use anyhow::{Result, ensure};

/// This file's scenarios.
pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "boots/debian12-ram",
        "Debian 12 from RAM registers users",
        &[Image::REGISTRAR_12],
        |case| registers_users(case, Image::REGISTRAR_12),
    ),
    Scenario::new(
        "boots/debian13-ram",
        "Debian 13 from RAM registers users",
        &[Image::REGISTRAR_13],
        |case| registers_users(case, Image::REGISTRAR_13),
    ),
    Scenario::new(
        "boots/debian12-disk",
        "Debian 12 from disk registers users",
        &[Image::REGISTRAR_12_DISK],
        |case| registers_users(case, Image::REGISTRAR_12_DISK),
    ),
    Scenario::new(
        "boots/debian13-disk",
        "Debian 13 from disk registers users",
        &[Image::REGISTRAR_13_DISK],
        |case| registers_users(case, Image::REGISTRAR_13_DISK),
    ),
    Scenario::new(
        "boots/side-by-side",
        "Debian 12 and Debian 13 on one host at the same time",
        &[Image::REGISTRAR_12, Image::REGISTRAR_13],
        side_by_side,
    )
    .host_mib(3072),
];

fn registers_users(case: &Case, image: Image) -> Result<()> {
    let (running, boot) = case.boot_sip(case.machine("registrar", image, 0)?, 0)?;
    eprintln!("SIP answers {} ms after the start", boot.as_millis());
    running.wait_console("GUEST UP", STOP_LIMIT)?;
    case.register(0, Transport::Udp, 25, 100)?;
    case.register(0, Transport::TcpOne, 25, 50)?;
    case.register(0, Transport::TcpEach, 10, 30)?;
    let release = case.in_guest(0, "uname -r")?;
    let expected = case.assets.guest(image)?.release.clone();
    ensure!(
        release.trim() == expected,
        "the guest runs kernel {release}, not {expected}"
    );
    let root = case.in_guest(0, "grep ' / ' /proc/mounts")?;
    ensure!(
        root.contains("/dev/vda") == image.on_disk,
        "the guest's root is not where it should be: {root}"
    );
    let stopped = running.stop(STOP_LIMIT)?;
    ensure!(
        stopped == Stopped::IN_ORDER,
        "the guest did not shut down in order: {stopped:?}"
    );
    Ok(())
}

fn side_by_side(case: &Case) -> Result<()> {
    let (one, _) = case.boot_sip(case.machine("debian12", Image::REGISTRAR_12, 0)?, 0)?;
    let (two, _) = case.boot_sip(case.machine("debian13", Image::REGISTRAR_13, 1)?, 1)?;
    let loads = std::thread::scope(|scope| {
        let first = scope.spawn(|| case.register(0, Transport::Udp, 20, 200));
        let second = scope.spawn(|| case.register(1, Transport::Udp, 20, 200));
        [first.join(), second.join()]
    });
    for load in loads {
        load.map_err(|_| anyhow::anyhow!("a load panicked"))??;
    }
    for (number, image) in [(0, Image::REGISTRAR_12), (1, Image::REGISTRAR_13)] {
        let release = case.in_guest(number, "uname -r")?;
        let expected = &case.assets.guest(image)?.release;
        ensure!(
            release.trim() == expected,
            "machine {number} runs kernel {release}, not {expected}"
        );
    }
    let listed = case.host().sh("romulus status")?;
    ensure!(
        listed.contains("debian12") && listed.contains("debian13"),
        "`romulus status` lists: {listed}"
    );
    // The end of one leaves the other alone.
    let stopped = one.stop(STOP_LIMIT)?;
    ensure!(
        stopped == Stopped::IN_ORDER,
        "the first did not shut down in order: {stopped:?}"
    );
    case.answers(1)?;
    let stopped = two.stop(STOP_LIMIT)?;
    ensure!(
        stopped == Stopped::IN_ORDER,
        "the second did not shut down in order: {stopped:?}"
    );
    Ok(())
}
