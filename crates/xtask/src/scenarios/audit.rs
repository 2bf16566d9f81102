//! The whole-memory audit: after every epoch all of the guest's memory is compared with a replica that only ever got the
//! pages that dirty tracking named. Idle and under each kind of load; and a handover to another process under load.

use super::{
    Scenario,
    case::{Case, STOP_LIMIT},
};
use crate::{
    assets::Image,
    machine_file::{MachineFile, address},
    options, process,
    sipp::{self, Load, Transport},
};
use anyhow::{Context as _, Result, ensure};
use lab::Remote;
use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

/// This file's scenarios.
pub(super) const ALL: &[Scenario] = &[
    Scenario::new("audit/idle", "no dirty page of an idle guest is missed", &[Image::REGISTRAR_12], |case| {
        audit(case, Image::REGISTRAR_12, &[], |_| Ok(()))
    })
    .with_audit(),
    Scenario::new("audit/memory", "no dirty page is missed while programs write memory", &[Image::REGISTRAR_12], |case| {
        const LOAD: &str = "while :; do head -c 8000000 /dev/urandom >/tmp/x; cksum </tmp/x >/dev/null; done &";
        audit(case, Image::REGISTRAR_12, &[LOAD], |_| Ok(()))
    })
    .with_audit(),
    Scenario::new("audit/disk", "no dirty page is missed while the disk is read and written", &[Image::REGISTRAR_12_DISK], |case| {
        const LOAD: &str = "while :; do dd if=/dev/urandom of=/x bs=64k count=100; sync; \
                            echo 3 >/proc/sys/vm/drop_caches; cksum </x; done >/dev/null 2>&1 &";
        audit(case, Image::REGISTRAR_12_DISK, &[LOAD], |_| Ok(()))
    })
    .with_audit(),
    Scenario::new("audit/network", "no dirty page is missed while frames come and go", &[Image::REGISTRAR_12], |case| {
        audit(case, Image::REGISTRAR_12, &[], network_load)
    })
    .with_audit(),
    Scenario::new(
        "audit/handover",
        "another process goes on from captured state: a TCP connection stays, registrations go on",
        &[Image::REGISTRAR_12],
        handover,
    )
    .with_audit(),
];

/// Where the program is put in the host.
const PROGRAM: &str = "/usr/bin/audit";
/// Where a captured machine is kept in the host.
const CAPTURED: &str = "/var/tmp/captured";
/// How long epochs are audited, in seconds. An audit of all memory takes a good part of a second.
const SECONDS: u32 = 40;
/// The fewest epochs that say anything.
const EPOCHS_MIN: u64 = 10;
/// Length of the epochs in ms. Between them all memory is compared, which takes longer than that: shorter ones would leave
/// the guest no time to do anything.
const EPOCH_MS: &str = "400";
/// The guest's memory in MiB: what Kamailio needs, as each audit reads all of it.
const MEMORY_MIB: u32 = 512;
/// How long the guest may take to come up, and the program to end.
const LIMIT: Duration = Duration::from_mins(5);

/// Puts the program into the host, makes its tap, and gives the arguments that every run has.
fn prepare(case: &Case, image: Image) -> Result<(MachineFile, Vec<String>)> {
    let host = case.host();
    let program = case
        .assets
        .audit
        .as_ref()
        .context("the audit program was not prepared")?;
    host.push(program, PROGRAM)?;
    host.sh("ip tuntap add tap0 mode tap vnet_hdr; ip link set tap0 master br0 up")?;
    let file = case.machine("audit", image, 0)?;
    let mut arguments: Vec<String> = [
        (PROGRAM, ""),
        ("--kernel", &file.boot.kernel),
        ("--initrd", &file.boot.initrd),
        ("--append", &file.boot.command_line),
        ("--tap", "tap0"),
        ("--memory", &MEMORY_MIB.to_string()),
        ("--wait", "GUEST UP"),
    ]
    .iter()
    .flat_map(|(name, value)| [(*name).to_owned(), (*value).to_owned()])
    .filter(|argument| !argument.is_empty())
    .collect();
    for disk in &file.disks {
        arguments.extend(["--disk".to_owned(), disk.path.clone()]);
    }
    Ok((file, arguments))
}

fn spawn(case: &Case, arguments: &[String]) -> Result<Remote> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    case.host()
        .spawn(&arguments)
        .context("starting the audit in the host")
}

/// Audits for a while under a load that `commands` start in the guest and `load` makes from outside.
fn audit(
    case: &Case,
    image: Image,
    commands: &[&str],
    load: fn(&Case) -> Result<()>,
) -> Result<()> {
    let (_, mut arguments) = prepare(case, image)?;
    arguments.extend(["--seconds", &SECONDS.to_string(), "--every", EPOCH_MS].map(str::to_owned));
    for command in commands {
        arguments.extend(["--type".to_owned(), (*command).to_owned()]);
    }
    let remote = spawn(case, &arguments)?;
    // The guest's own words go to standard output; what the audit says comes after them.
    remote.wait_for("after", LIMIT)?;
    load(case)?;
    let status = remote
        .wait_at_most(LIMIT)?
        .context("the audit did not end")?;
    let said = String::from_utf8_lossy(&remote.errors()).into_owned();
    eprintln!("{}", said.trim());
    let counts = Counts::parse(&said)
        .with_context(|| format!("the audit said nothing of its epochs: {said}"))?;
    ensure!(
        counts.missed == 0,
        "of {} dirty pages {} were missed",
        counts.pages,
        counts.missed
    );
    ensure!(status.success(), "the audit ended with {status}: {said}");
    ensure!(
        counts.epochs >= EPOCHS_MIN && counts.pages > 0,
        "only {counts:?} were audited"
    );
    Ok(())
}

/// What an audit counted.
#[derive(Debug, PartialEq, Eq)]
struct Counts {
    epochs: u64,
    pages: u64,
    missed: u64,
}

impl Counts {
    /// Reads `N epochs, N pages dirtied, N missed; …`.
    fn parse(said: &str) -> Option<Self> {
        let before = |text: &str, word: &str| -> Option<u64> {
            text.trim().strip_suffix(word)?.trim().parse().ok()
        };
        said.lines().find_map(|line| {
            let mut parts = line.strip_prefix("[audit] ")?.split([',', ';']);
            Some(Self {
                epochs: before(parts.next()?, "epochs")?,
                pages: before(parts.next()?, "pages dirtied")?,
                missed: before(parts.next()?, "missed")?,
            })
        })
    }
}

/// Registrations and a stream, as long as the audit runs. Frames are lost while the machine is looked at: that is no
/// failure here.
fn network_load(case: &Case) -> Result<()> {
    let guest = address(0);
    thread::scope(|scope| {
        let stream = scope.spawn(|| {
            let mut command = case.lab.client().command("iperf3")?;
            command.args([
                "--client",
                &guest.to_string(),
                "--time",
                &(SECONDS - 10).to_string(),
                "--bidir",
            ]);
            process::output_within(&mut command, LIMIT)
        });
        let load = Load {
            server: sipp::sip(guest),
            transport: Transport::Udp,
            users: "user",
            rate: 4,
            count: 4 * (SECONDS - 10),
        };
        let outcome = sipp::register(case.lab.client(), load)?;
        eprintln!("registrations: {}", outcome.summary());
        ensure!(
            outcome.ok >= 20,
            "too few registrations passed: there was hardly a load"
        );
        let stream = stream
            .join()
            .map_err(|_| anyhow::anyhow!("the stream panicked"))??;
        eprintln!("{}", String::from_utf8_lossy(&stream.stdout).trim());
        Ok(())
    })
}

fn handover(case: &Case) -> Result<()> {
    let (_, arguments) = prepare(case, Image::REGISTRAR_12)?;
    let mut first = arguments.clone();
    first.extend(
        [
            "--seconds",
            "30",
            "--every",
            EPOCH_MS,
            "--handover",
            CAPTURED,
        ]
        .map(str::to_owned),
    );
    let before = spawn(case, &first)?;
    before.wait_for("made in", LIMIT)?;
    options::answers(case.lab.client(), sipp::sip(address(0)), STOP_LIMIT)?;
    // A connection to the guest's shell, with something in it that only that very shell knows.
    let mut shell = Shell::open(case)?;
    shell.ask("secret=4711; echo stored", "stored")?;
    case.register(0, Transport::Udp, 5, 5)?;

    let status = before
        .wait_at_most(LIMIT)?
        .context("the first process did not end")?;
    let said = String::from_utf8_lossy(&before.errors()).into_owned();
    ensure!(
        status.success() && said.contains("handed over"),
        "the first process ended with {status}: {said}"
    );
    drop(before);

    let mut second = arguments;
    second.extend(["--from", CAPTURED, "--seconds", "120", "--every", EPOCH_MS].map(str::to_owned));
    let start = Instant::now();
    let after = spawn(case, &second)?;
    after.wait_for("taken over", LIMIT)?;
    eprintln!(
        "the second process runs the machine after {:.1} s",
        start.elapsed().as_secs_f64()
    );
    // The same connection, the same shell.
    shell.ask("echo it-is-$secret", "it-is-4711")?;
    case.register(0, Transport::Udp, 5, 50)?;
    ensure!(
        after.status().is_none(),
        "the second process ended: {}",
        String::from_utf8_lossy(&after.errors())
    );
    Ok(())
}

/// A TCP connection to the shell of the guest.
struct Shell(TcpStream);

impl Shell {
    fn open(case: &Case) -> Result<Self> {
        let stream = case
            .lab
            .client()
            .connect((address(0), 23).into())
            .context("connecting to the guest's shell")?;
        stream.set_read_timeout(Some(STOP_LIMIT))?;
        Ok(Self(stream))
    }

    /// Types a command and waits for its answer.
    fn ask(&mut self, command: &str, answer: &str) -> Result<()> {
        writeln!(self.0, "{command}")?;
        let mut got = Vec::new();
        let mut buffer = [0; 256];
        while !String::from_utf8_lossy(&got).contains(answer) {
            let length = self
                .0
                .read(&mut buffer)
                .with_context(|| format!("waiting for {answer:?} from the guest's shell"))?;
            ensure!(length > 0, "the guest closed the connection");
            got.extend_from_slice(&buffer[..length]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Counts;

    #[test]
    fn the_audits_counts_are_read() {
        let said = "\n[audit] made in 20ms\n[audit] 45 epochs, 1200 pages dirtied, 0 missed; a mean of 1ms to pause\n";
        assert_eq!(
            Counts::parse(said),
            Some(Counts {
                epochs: 45,
                pages: 1200,
                missed: 0
            })
        );
        assert_eq!(Counts::parse("[audit] the guest stopped"), None);
    }
}
