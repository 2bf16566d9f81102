//! The smallest and the largest machines.

use super::{Scenario, case::Case};
use crate::assets::Image;
use anyhow::{Context as _, Result, ensure};
use std::time::Duration;

/// This file's scenarios.
pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "sizes/128-mib",
        "a guest comes up in 128 MiB",
        &[Image::BASE_12],
        |case| {
            let running = case.boot(with_memory(case, Image::BASE_12, "128 MiB")?)?;
            let total = total_mib(case)?;
            ensure!((64..=128).contains(&total), "the guest sees {total} MiB");
            running.still_runs()
        },
    ),
    Scenario::new(
        "sizes/512-mib",
        "a guest sees its 512 MiB",
        &[Image::BASE_12],
        |case| {
            let running = case.boot(with_memory(case, Image::BASE_12, "512 MiB")?)?;
            let total = total_mib(case)?;
            ensure!((400..=512).contains(&total), "the guest sees {total} MiB");
            running.still_runs()
        },
    ),
    Scenario::new(
        "sizes/3584-mib",
        "memory above 4 GiB is there and holds what is written",
        &[Image::BASE_12],
        high_memory,
    )
    .host_mib(6144)
    .minutes(8),
    Scenario::new(
        "sizes/vcpus",
        "1, 2 and 4 vCPUs each do work",
        &[Image::BASE_12],
        vcpus,
    )
    .minutes(5),
];

fn with_memory(
    case: &Case,
    image: Image,
    memory: &str,
) -> Result<crate::machine_file::MachineFile> {
    let mut file = case.machine("sized", image, 0)?;
    memory.clone_into(&mut file.memory);
    Ok(file)
}

/// The memory that the guest's kernel has to give, in MiB.
fn total_mib(case: &Case) -> Result<u64> {
    let text = case.in_guest(
        0,
        "awk '/^MemTotal/ { print int($2 / 1024) }' /proc/meminfo",
    )?;
    text.trim()
        .parse()
        .with_context(|| format!("MemTotal is {text:?}"))
}

fn high_memory(case: &Case) -> Result<()> {
    // The guest's kernel takes memory above 4 GiB (zone Normal) first, for files in RAM too.
    const FREE: &str = "awk '/^Node.*zone/ { zone = $4 } zone == \"Normal\" && $1 == \"nr_free_pages\" { print $2 }' /proc/zoneinfo";
    const WRITE: &str = "mkdir -p /big && mount -t tmpfs -o size=3g big /big && \
        yes 0123456789abcdef0123456789abcde | head -c 402653184 >/big/a && sync && sha256sum </big/a";
    let running = case.boot(with_memory(case, Image::BASE_12, "3584 MiB")?)?;
    let total = total_mib(case)?;
    ensure!((3300..=3584).contains(&total), "the guest sees {total} MiB");
    let free = |when: &str| -> Result<u64> {
        let text = case.in_guest(0, FREE)?;
        text.trim()
            .parse()
            .with_context(|| format!("free pages above 4 GiB {when}: {text:?}"))
    };
    let before = free("before")?;
    let sum = case.in_guest_within(0, WRITE, Duration::from_mins(4))?;
    let after = free("after")?;
    ensure!(
        before > after + 65_536,
        "memory above 4 GiB was not used: {before} pages were free before, {after} after"
    );
    // Reading back once more gives the same, and the same as on the host.
    let again = case.in_guest_within(0, "sha256sum </big/a", Duration::from_mins(2))?;
    let expected = case
        .host()
        .sh("yes 0123456789abcdef0123456789abcde | head -c 402653184 | sha256sum")?;
    ensure!(
        sum.trim() == expected.trim() && again.trim() == expected.trim(),
        "the file's sum is {sum}, then {again}, and should be {expected}"
    );
    running.still_runs()
}

fn vcpus(case: &Case) -> Result<()> {
    for count in [1_u8, 2, 4] {
        let mut file = case.machine(&format!("vcpus{count}"), Image::BASE_12, 0)?;
        file.vcpus = count;
        let running = case.boot(file)?;
        let seen = case.in_guest(0, "nproc")?;
        ensure!(
            seen.trim() == count.to_string(),
            "of {count} vCPUs the guest sees {seen}"
        );
        // Each runs a program of its own, and the interrupts of its own timer arrive.
        case.in_guest(0, &format!("for cpu in $(seq 0 {}); do taskset -c $cpu sh -c 'i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done'; done", count - 1))?;
        let timers = case.in_guest(0, "awk '/^ *LOC:/ { for (i = 2; i <= NF && $i ~ /^[0-9]+$/; i++) print $i }' /proc/interrupts")?;
        let ticking = timers
            .lines()
            .filter(|ticks| ticks.trim().parse::<u64>().is_ok_and(|ticks| ticks > 0))
            .count();
        ensure!(
            ticking == usize::from(count),
            "the timers of {ticking} of {count} vCPUs tick: {timers}"
        );
        running.kill()?;
    }
    Ok(())
}
