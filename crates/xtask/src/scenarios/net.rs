//! Frames of every kind pass, whole and unchanged.

use super::{Scenario, case::Case};
use crate::{assets::Image, machine_file::address, process};
use anyhow::{Context as _, Result, ensure};
use std::{process::Stdio, time::Duration};

/// This file's scenarios.
pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "net/mtu-9000",
        "frames of 9000 bytes pass, both ways",
        &[Image::BASE_12],
        mtu,
    ),
    Scenario::new(
        "net/vlan",
        "tagged frames pass with their tags",
        &[Image::BASE_12],
        vlan,
    ),
    Scenario::new(
        "net/offload",
        "checksum and segmentation offload and EVENT_IDX are negotiated",
        &[Image::BASE_12],
        offload,
    ),
    Scenario::new(
        "net/stream",
        "streams pass unchanged, both ways, under iperf3 and by checksum",
        &[Image::BASE_12],
        stream,
    ),
];

fn mtu(case: &Case) -> Result<()> {
    let host = case.host();
    host.sh("ip link set svc mtu 9000; ip link set br0 mtu 9000")?;
    let mut file = case.machine("jumbo", Image::BASE_12, 0)?;
    file.nics[0].mtu = 9000;
    let running = case.boot(file)?;
    let seen = case.in_guest(0, "cat /sys/class/net/eth0/mtu")?;
    ensure!(seen.trim() == "9000", "the guest's card has MTU {seen}");
    // 8972 bytes, the headers of IPv4 and ICMP, and no fragments.
    host.sh(&format!(
        "ping -c 3 -i 0.2 -W 2 -M do -s 8972 {}",
        address(0)
    ))?;
    ensure!(
        !host
            .run(&[
                "ping",
                "-c",
                "1",
                "-W",
                "1",
                "-M",
                "do",
                "-s",
                "8973",
                &address(0).to_string()
            ])?
            .status
            .success(),
        "a frame larger than the MTU passed"
    );
    running.still_runs()
}

fn vlan(case: &Case) -> Result<()> {
    const TAG: u16 = 42;
    // A part of the service network's range: longer prefixes go first.
    const HOST: &str = "192.0.2.225";
    const GUEST: &str = "192.0.2.226";
    const MODULES: [&str; 5] = ["llc", "stp", "garp", "mrp", "8021q"];
    let mut file = case.machine("tagged", Image::BASE_12, 0)?;
    case.add_modules(&mut file, Image::BASE_12, &MODULES)?;
    let running = case.boot(file)?;
    case.in_guest(
        0,
        &format!(
            "for module in {}; do insmod /extra/$module.ko; done",
            MODULES.join(" ")
        ),
    )?;
    case.in_guest(0, &format!("vconfig add eth0 {TAG} && ip addr add {GUEST}/28 dev eth0.{TAG} && ip link set eth0.{TAG} up"))?;
    // In the host, tagged frames go through the bridge as they are; the host's own end takes the tag off.
    let host = case.host();
    host.sh(&format!(
        "ip link add link br0 name br0.{TAG} type vlan id {TAG}; ip addr add {HOST}/28 dev br0.{TAG}; ip link set br0.{TAG} up"
    ))?;
    host.sh(&format!("ping -c 3 -i 0.2 -W 2 {GUEST}"))?;
    // A whole frame's payload passes with the tag on top of it.
    host.sh(&format!("ping -c 3 -i 0.2 -W 2 -M do -s 1472 {GUEST}"))?;
    // With another tag, nobody is there.
    host.sh(&format!(
        "ip link del br0.{TAG}; ip link add link br0 name br0.7 type vlan id 7; ip addr add {HOST}/28 dev br0.7; ip link set br0.7 up"
    ))?;
    let other = host.run(&["ping", "-c", "1", "-W", "1", GUEST])?;
    ensure!(
        !other.status.success(),
        "the guest answers to frames of another VLAN"
    );
    running.still_runs()
}

fn offload(case: &Case) -> Result<()> {
    /// Feature bits (virtio 1.2, sections 5.1.3 and 6).
    const WANTED: [(usize, &str); 6] = [
        (0, "CSUM"),
        (1, "GUEST_CSUM"),
        (7, "GUEST_TSO4"),
        (11, "HOST_TSO4"),
        (29, "EVENT_IDX"),
        (32, "VERSION_1"),
    ];
    let running = case.boot(case.machine("offload", Image::BASE_12, 0)?)?;
    let bits = case.in_guest(0, "cat /sys/class/net/eth0/device/features")?;
    for (bit, name) in WANTED {
        ensure!(
            bits.as_bytes().get(bit) == Some(&b'1'),
            "the guest and the machine did not agree on {name}: {bits}"
        );
    }
    running.still_runs()
}

fn stream(case: &Case) -> Result<()> {
    const LIMIT: Duration = Duration::from_mins(3);
    let running = case.boot(case.machine("stream", Image::BASE_12, 0)?)?;
    let guest = address(0).to_string();
    for direction in ["to the guest", "from the guest"] {
        let mut command = case.lab.client().command("iperf3")?;
        command.args([
            "--client",
            &guest,
            "--time",
            "5",
            "--json",
            "--connect-timeout",
            "5000",
        ]);
        if direction == "from the guest" {
            command.arg("--reverse");
        }
        // Between two clients iperf3's server closes its port for a moment, and resets whoever comes then.
        let said = process::poll(Duration::from_secs(20), Duration::from_millis(500), || {
            let output = process::output_within(&mut command, LIMIT)?;
            let said: serde_json::Value =
                serde_json::from_slice(&output.stdout).context("iperf3 printed no JSON")?;
            let too_early = said["intervals"].as_array().is_none_or(Vec::is_empty);
            Ok((!too_early).then_some(said))
        })?;
        let said = said.with_context(|| format!("iperf3 {direction} can't begin"))?;
        let rate = said["end"]["sum_received"]["bits_per_second"].as_f64();
        let rate = rate.with_context(|| format!("iperf3 {direction}: {}", said["error"]))?;
        eprintln!("{direction}: {:.0} Mbit/s", rate / 1e6);
        ensure!(rate > 1e6, "{direction} only {rate:.0} bit/s pass");
    }

    // Random bytes, so that no repetition hides a mix-up.
    let folder = tempfile::tempdir()?;
    let sent = folder.path().join("sent");
    let made = std::process::Command::new("head")
        .args(["-c", "33554432", "/dev/urandom"])
        .stdout(std::fs::File::create(&sent)?)
        .status()?;
    ensure!(made.success(), "no random bytes");
    let sum = |path: &std::path::Path| -> Result<String> {
        let output = std::process::Command::new("sha256sum")
            .stdin(std::fs::File::open(path)?)
            .output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let expected = sum(&sent)?;
    case.in_guest(0, "setsid sh -c 'nc -l -p 9000 >/tmp/got; nc -l -p 9001 </tmp/got' >/dev/null 2>&1 & sleep 0.2")?;
    let put = process::output_within(
        case.lab
            .client()
            .command("socat")?
            .args(["-u", "-", &format!("TCP:{guest}:9000")])
            .stdin(Stdio::from(std::fs::File::open(&sent)?)),
        LIMIT,
    )?;
    ensure!(
        put.status.success(),
        "sending to the guest: {}",
        String::from_utf8_lossy(&put.stderr)
    );
    let in_guest = case.in_guest(
        0,
        "while ! netstat -lnt | grep -q ':9001 '; do usleep 50000; done; sha256sum </tmp/got",
    )?;
    ensure!(
        in_guest.trim() == expected.trim(),
        "the guest got other bytes than were sent"
    );
    let got = process::output_within(
        case.lab
            .client()
            .command("socat")?
            .args(["-u", &format!("TCP:{guest}:9001"), "-"]),
        LIMIT,
    )?;
    let back = folder.path().join("back");
    std::fs::write(&back, &got.stdout)?;
    ensure!(
        sum(&back)? == expected,
        "the guest sent back other bytes than it got ({} bytes)",
        got.stdout.len()
    );
    running.still_runs()
}
