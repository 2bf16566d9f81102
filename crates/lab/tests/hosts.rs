//! Hosts, and everything that can happen to them.
//!
//! Brings up labs, so it runs by name only: `cargo test -p lab --test hosts [-- qemu|namespaces]`; without a kind, both.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use images::Progress;
use lab::{Direction, Host, Kind, Lab, LabConfig, Network};

/// For what happens at once where the computer is idle.
const SOON: Duration = Duration::from_secs(20);

type Check = fn(&Lab) -> Result<()>;

const CHECKS: [(&str, Check); 13] = [
    ("every network connects", networks),
    ("programs run as they should", programs),
    ("files go in and out", files),
    ("payload is there", payload),
    ("a silent cut is silent", silent_cut),
    ("a cut of one direction", one_way),
    ("a visible cut is visible", visible_cut),
    ("loss and delay", impaired),
    ("hang and return", hang),
    ("power loss is sudden", power_loss),
    ("power comes back", power_on),
    ("a cut outlasts the power", cut_outlasts),
    ("there is no way out", no_way_out),
];

fn main() -> Result<()> {
    let progress = Progress::new();
    let image = lab::inside(|| lab::prepare(&progress))?;
    let kinds: Vec<Kind> = match std::env::args().nth(1).as_deref() {
        Some("qemu") => vec![Kind::Qemu],
        Some("namespaces") => vec![Kind::Namespaces],
        _ => vec![Kind::Namespaces, Kind::Qemu],
    };
    let mut failed = 0;
    for kind in kinds {
        let config = LabConfig {
            kind: Some(kind),
            image: Some(image.clone()),
            payload: vec![(image.agent.clone(), "/srv/payload".into())],
            ..LabConfig::default()
        };
        let lab = Lab::start(&config, &progress)?;
        for (name, check) in CHECKS {
            let started = Instant::now();
            match check(&lab) {
                Ok(()) => println!(
                    "{kind}: {name}: ok ({:.1} s)",
                    started.elapsed().as_secs_f64()
                ),
                Err(error) => {
                    failed += 1;
                    println!("{kind}: {name}: FAILED: {error:#}");
                }
            }
        }
        let logs = lab.logs().to_path_buf();
        drop(lab);
        let left: Vec<_> = interfaces(Path::new("/sys/class/net"))?;
        ensure!(left.is_empty(), "the lab left {left:?} behind");
        if failed > 0 {
            bail!(
                "{failed} checks failed; the hosts' logs are in {}",
                logs.display()
            );
        }
    }
    Ok(())
}

fn interfaces(directory: &Path) -> Result<Vec<String>> {
    let names = fs::read_dir(directory)?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    // What a kernel makes by itself in every namespace is nobody's.
    Ok(names
        .filter(|name| {
            ![
                "lo", "tunl0", "sit0", "ip6tnl0", "erspan0", "gre0", "gretap0", "ip_vti0",
            ]
            .contains(&name.as_str())
        })
        .collect())
}

fn pings(from: &Host, to: &Host, network: Network) -> Result<bool> {
    let address = to.address(network).to_string();
    Ok(from
        .run(&["ping", "-c", "1", "-W", "1", &address])?
        .status
        .success())
}

fn until(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + SOON;
    while !condition()? {
        ensure!(Instant::now() < deadline, "{what} within {SOON:?}: no");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn networks(lab: &Lab) -> Result<()> {
    for network in Network::ALL {
        ensure!(
            pings(lab.host(1), lab.host(2), network)?,
            "h1 does not reach h2 on the {network} network"
        );
        ensure!(
            pings(lab.host(2), lab.host(1), network)?,
            "h2 does not reach h1 on the {network} network"
        );
    }
    for host in lab.hosts() {
        let address = host.address(Network::Service).to_string();
        let status = lab
            .client()
            .command("ping")?
            .args(["-c", "1", "-W", "5", &address])
            .output()?
            .status;
        ensure!(
            status.success(),
            "the client does not reach {}",
            host.name()
        );
        let links = host.sh("ip -o link show master br0")?;
        ensure!(
            links.contains("svc"),
            "the service interface is not in br0: {links}"
        );
        ensure!(host.sh("hostname")?.trim() == host.name());
    }
    Ok(())
}

fn programs(lab: &Lab) -> Result<()> {
    let host = lab.host(1);
    let output = host.run(&[
        "sh",
        "-c",
        "printf '%s' \"$1\"; echo e >&2; exit 9",
        "x",
        "a \"b\" $c\n",
    ])?;
    ensure!(
        output.stdout == b"a \"b\" $c\n"
            && output.stderr == b"e\n"
            && output.status.code() == Some(9),
        "{output:?}"
    );
    let remote = host.spawn(&["sh", "-c", "echo started; sleep 1000"])?;
    remote.wait_for("started", SOON)?;
    let alive = format!("kill -0 {}", remote.pid());
    host.sh(&alive)?;
    drop(remote);
    until("what was dropped is gone", || Ok(host.sh(&alive).is_err()))?;
    ensure!(
        Path::new("/dev/kvm").exists()
            || lab.kind() == Kind::Qemu
            || host.sh("test -e /dev/kvm").is_err()
    );
    if lab.kind() == Kind::Qemu {
        host.sh("test -c /dev/kvm && grep -q svm /proc/cpuinfo")
            .context("no /dev/kvm in the host")?;
        for program in [
            "ip",
            "tc",
            "bridge",
            "ethtool",
            "tcpdump",
            "iperf3",
            "socat",
            "qemu-system-x86_64",
        ] {
            host.sh(&format!("{program} --version || {program} -V"))
                .with_context(|| format!("{program} does not run"))?;
        }
    }
    Ok(())
}

fn files(lab: &Lab) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (there, back) = (
        directory.path().join("there"),
        directory.path().join("back"),
    );
    // As large as a static release build of the product.
    let content: Vec<u8> = (0..18_000_000_u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3])
        .collect();
    fs::write(&there, &content)?;
    let started = Instant::now();
    lab.host(1).push(&there, "/root/some/where")?;
    println!("  18 MB pushed in {:.2} s", started.elapsed().as_secs_f64());
    lab.host(1).pull("/root/some/where", &back)?;
    ensure!(fs::read(&back)? == content, "the file came back changed");
    let full = lab
        .host(1)
        .sh("mount -t tmpfs -o size=1m small /mnt")
        .and_then(|_| lab.host(1).push(&there, "/mnt/x"));
    let error = format!("{:#}", full.err().context("18 MB found room in 1 MB")?);
    ensure!(error.contains("No space left"), "{error}");
    ensure!(
        lab.host(1).sh("ls -A /mnt; umount /mnt")?.is_empty(),
        "a piece of the file was left"
    );
    Ok(())
}

fn payload(lab: &Lab) -> Result<()> {
    for host in lab.hosts() {
        let directory = tempfile::tempdir()?;
        let back = directory.path().join("back");
        host.pull("/srv/payload", &back)?;
        ensure!(fs::read(&back)? == fs::read(&lab.image().agent)?);
    }
    Ok(())
}

fn carrier(host: &Host, network: Network) -> Result<bool> {
    Ok(host
        .sh(&format!(
            "cat /sys/class/net/{}/carrier",
            network.interface()
        ))?
        .trim()
        == "1")
}

fn silent_cut(lab: &Lab) -> Result<()> {
    for network in [Network::Replication, Network::Service] {
        lab.host(2).cut(network)?;
        ensure!(
            !pings(lab.host(1), lab.host(2), network)?,
            "a frame passed on the {network} network"
        );
        ensure!(carrier(lab.host(2), network)?, "the host saw the cut");
        lab.host(2).mend(network)?;
        until("the network is whole again", || {
            pings(lab.host(1), lab.host(2), network)
        })?;
    }
    // The control network too: the agent is deaf then, and hears the rest once it is mended.
    lab.host(2).cut(Network::Control)?;
    ensure!(
        !pings(lab.host(1), lab.host(2), Network::Control)?,
        "a frame passed on the control network"
    );
    lab.host(2).mend(Network::Control)?;
    lab.host(2).sh("true").map(drop)
}

/// How many frames a host received on a network.
fn received(host: &Host, network: Network) -> Result<u64> {
    Ok(host
        .sh(&format!(
            "cat /sys/class/net/{}/statistics/rx_packets",
            network.interface()
        ))?
        .trim()
        .parse()?)
}

fn one_way(lab: &Lab) -> Result<()> {
    let network = Network::Replication;
    let (one, two) = (lab.host(1), lab.host(2));
    // Frames to everybody, so that nobody's memory of an address matters; nothing else is on this network.
    let call = |host: &Host| {
        host.sh("ping -b -c 10 -i 0.2 -W 1 198.51.100.255 >/dev/null 2>&1 || true")
            .map(drop)
    };
    let heard = |from: &Host, to: &Host| -> Result<u64> {
        let before = received(to, network)?;
        call(from)?;
        Ok(received(to, network)? - before)
    };
    two.cut_one_way(network, Direction::FromHost)?;
    ensure!(heard(one, two)? >= 10, "h2 cannot hear");
    ensure!(heard(two, one)? == 0, "h1 hears h2");
    ensure!(!pings(one, two, network)? && !pings(two, one, network)?);
    two.cut_one_way(network, Direction::ToHost)?;
    ensure!(heard(one, two)? == 0, "h2 hears h1");
    ensure!(heard(two, one)? >= 10, "h1 cannot hear");
    ensure!(!pings(one, two, network)? && !pings(two, one, network)?);
    two.mend(network)?;
    until("the network is whole again", || pings(one, two, network))
}

fn visible_cut(lab: &Lab) -> Result<()> {
    let network = Network::Replication;
    lab.host(2).unplug(network)?;
    until("the carrier is gone", || {
        Ok(!carrier(lab.host(2), network)?)
    })?;
    ensure!(!pings(lab.host(1), lab.host(2), network)?);
    lab.host(2).plug(network)?;
    until("the carrier is back", || carrier(lab.host(2), network))?;
    until("the network is whole again", || {
        pings(lab.host(1), lab.host(2), network)
    })
}

fn impaired(lab: &Lab) -> Result<()> {
    let (one, two, network) = (lab.host(1), lab.host(2), Network::Replication);
    if let Err(error) = one.impair(network, 0.0, Duration::from_millis(200)) {
        // A namespace host has the computer's kernel, which may lack netem; then it says so.
        ensure!(
            lab.kind() == Kind::Namespaces && error.to_string().contains("qdisc"),
            "{error:#}"
        );
        return Ok(());
    }
    let address = two.address(network).to_string();
    let started = Instant::now();
    ensure!(
        one.run(&["ping", "-c", "1", "-W", "5", &address])?
            .status
            .success()
    );
    ensure!(
        started.elapsed() >= Duration::from_millis(200),
        "nothing was late"
    );
    one.impair(network, 100.0, Duration::ZERO)?;
    ensure!(!pings(one, two, network)?, "nothing was lost");
    one.clear(network)?;
    until("the network is as it was", || pings(one, two, network))?;
    ensure!(one.impair(network, 120.0, Duration::ZERO).is_err());
    Ok(())
}

fn hang(lab: &Lab) -> Result<()> {
    let (one, two) = (lab.host(1), lab.host(2));
    let counter = two.spawn(&["sh", "-c", "while :; do echo tick; sleep 0.05; done"])?;
    counter.wait_for("tick", SOON)?;
    two.hang()?;
    // What was on its way arrives, and then no more.
    let quiet = || {
        let before = counter.output().len();
        std::thread::sleep(Duration::from_millis(500));
        Ok(counter.output().len() == before)
    };
    until("the program stands still", quiet)?;
    if lab.kind() == Kind::Qemu {
        ensure!(
            !pings(one, two, Network::Replication)?,
            "a host that hangs answered"
        );
    }
    two.resume()?;
    let before = counter.output().len();
    until(
        "the program goes on",
        || Ok(counter.output().len() > before),
    )?;
    until("the host answers", || pings(one, two, Network::Replication))
}

fn power_loss(lab: &Lab) -> Result<()> {
    let (one, two) = (lab.host(1), lab.host(2));
    let listener = one.spawn(&["socat", "-u", "TCP-LISTEN:7777,reuseaddr", "STDOUT"])?;
    until("somebody listens", || {
        Ok(one.sh("ss -Hltn sport = 7777")?.contains("7777"))
    })?;
    let sender = two.spawn(&[
        "socat",
        "-u",
        "SYSTEM:echo connected; sleep 1000",
        "TCP:198.51.100.1:7777",
    ])?;
    listener.wait_for("connected", SOON)?;
    two.sh("echo mine > /root/mine")?;
    let started = Instant::now();
    two.power_off()?;
    println!(
        "  off after {:.1} ms",
        started.elapsed().as_secs_f64() * 1000.0
    );
    let error = sender
        .wait()
        .err()
        .context("a program ended well in a host without power")?;
    ensure!(format!("{error:#}").contains("h2"), "{error:#}");
    ensure!(two.run(&["true"]).is_err() && !two.is_on());
    ensure!(
        !pings(one, two, Network::Replication)?,
        "a host without power answered"
    );
    // No goodbye: the other end of the connection knows of nothing.
    let connections = one.sh("ss -Htn state established sport = 7777")?;
    ensure!(
        connections.contains("198.51.100.2"),
        "the host said goodbye"
    );
    two.power_off()
}

fn power_on(lab: &Lab) -> Result<()> {
    let two = lab.host(2);
    two.power_on()?;
    println!(
        "  up after {:.1} s",
        two.up_after().unwrap_or_default().as_secs_f64()
    );
    ensure!(two.power_on().is_err(), "a host with power was turned on");
    ensure!(
        two.sh("cat /root/mine").is_err(),
        "the host's memory outlived the power"
    );
    networks(lab)
}

fn cut_outlasts(lab: &Lab) -> Result<()> {
    let two = lab.host(2);
    two.cut(Network::Replication)?;
    two.power_off()?;
    two.power_on()?;
    ensure!(
        !pings(lab.host(1), two, Network::Replication)?,
        "the power mended the cut"
    );
    two.mend(Network::Replication)?;
    until("the network is whole again", || {
        pings(lab.host(1), two, Network::Replication)
    })
}

fn no_way_out(lab: &Lab) -> Result<()> {
    ensure!(
        Lab::start(&LabConfig::default(), &Progress::hidden()).is_err(),
        "a second lab in the same network"
    );
    for routes in [
        lab.host(1).sh("ip route show default")?,
        String::from_utf8(
            lab.client()
                .command("ip")?
                .args(["route", "show", "default"])
                .output()?
                .stdout,
        )?,
    ] {
        ensure!(routes.is_empty(), "there is a way out: {routes}");
    }
    let all = interfaces(Path::new("/sys/class/net"))?;
    let ours =
        |name: &String| name.starts_with("lab") || name.starts_with('h') || name == "client-port";
    ensure!(
        all.iter().all(ours),
        "interfaces of others are here: {all:?}"
    );
    Ok(())
}
