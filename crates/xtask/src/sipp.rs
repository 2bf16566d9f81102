//! Load from SIPp, run as the lab's client, and what came of it.
//!
//! Counts and times come from the log that our scenario writes for each call, not from SIPp's screen: percentages and
//! percentiles need every call. SIPp's own clock for scheduling is coarse, so single times are good to about 4 ms.

mod outcome;

pub(crate) use outcome::{Answer, Outcome, event};

use crate::{options, process};
use anyhow::{Context as _, Result, bail};
use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::Duration,
};
use tempfile::TempDir;

/// The scenario: one REGISTER a call, each for a user of its own.
const REGISTER: &str = include_str!("../sipp/register.xml");

/// How long calls may still wait for their answers after the last one has begun.
const GRACE: Duration = Duration::from_secs(12);

/// SIPp refuses to start with as many sockets as a process may have files; 1024 is the usual limit.
const SOCKETS_MAX: u32 = 1000;

/// The log of calls, SIPp's statistics and what it says is wrong, each in a folder of its own run.
const CALLS: &str = "calls.csv";
const STATISTICS: &str = "statistics.csv";
/// What it says of calls that failed.
const FAILURES: &str = "failures.log";
const ERRORS: &str = "errors";

/// How SIPp uses connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// UDP, one socket.
    Udp,
    /// TCP, one connection for all calls.
    TcpOne,
    /// TCP, a connection for each call.
    TcpEach,
}

impl Transport {
    /// The value of SIPp's `-t`.
    pub(crate) fn option(self) -> &'static str {
        match self {
            Self::Udp => "u1",
            Self::TcpOne => "t1",
            Self::TcpEach => "tn",
        }
    }

    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Udp => "UDP",
            Self::TcpOne => "one TCP connection",
            Self::TcpEach => "a TCP connection each",
        }
    }
}

/// One run of registrations, bounded in number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load<'a> {
    /// Where the server listens.
    pub(crate) server: SocketAddrV4,
    /// How connections are used.
    pub(crate) transport: Transport,
    /// What the users' names begin with; the rest is the call's number.
    pub(crate) users: &'a str,
    /// Registrations begun a second.
    pub(crate) rate: u32,
    /// How many in all.
    pub(crate) count: u32,
}

/// A load of registrations that is under way, in as many processes as it takes. Dropping it ends it.
pub(crate) struct Registering {
    sipps: Vec<Sipp>,
}

impl Registering {
    /// How many registrations have been answered so far.
    pub(crate) fn answered(&mut self) -> u32 {
        self.sipps.iter_mut().map(Sipp::answered).sum()
    }

    /// Whether it has come to its end.
    ///
    /// # Errors
    /// The operating system refuses to say.
    pub(crate) fn has_ended(&mut self) -> Result<bool> {
        let mut ended = true;
        for sipp in &mut self.sipps {
            ended &= sipp.has_ended()?;
        }
        Ok(ended)
    }

    /// Waits for its end and gives what came of it.
    ///
    /// # Errors
    /// SIPp made no call at all, or did not end in time.
    pub(crate) fn finish(self) -> Result<Outcome> {
        let mut all = Outcome::default();
        for sipp in self.sipps {
            all.add(sipp.finish()?);
        }
        Ok(all)
    }
}

/// One SIPp that is under way. Dropping it ends it.
pub(crate) struct Sipp {
    child: Child,
    folder: TempDir,
    limit: Duration,
    wanted: u32,
    /// What the users' names begin with.
    users: String,
    /// How much of the log of calls has been looked at, and the answers in it.
    read: (u64, u32),
}

/// A port that no other SIPp of this process has: SIPp would look for a free one, and two that look at the same time
/// may find the same. They stay below those that the kernel gives to others.
pub(crate) fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    20_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 10_000
}

/// The first of the four ports that SIPp takes for media, whether there is any or not.
fn media_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    6000 + NEXT.fetch_add(1, Ordering::Relaxed) % 3500 * 4
}

/// Starts one SIPp that makes a load of registrations.
fn start_one(client: &lab::Client, load: Load<'_>) -> Result<Sipp> {
    let seconds = load.count.div_ceil(load.rate.max(1));
    start_scenario(client, load, REGISTER, seconds, |_, command| {
        command.args(["-key", "word", load.users]);
        Ok(())
    })
}

/// Starts a load of calls by a scenario of its own, which writes the same log lines as register.xml. Calls are made at
/// the load's rate, and the last of them begins after `seconds`. `more` may put files into the run's folder, and adds to
/// the command.
///
/// # Errors
/// SIPp can't be started.
pub(crate) fn start_scenario(
    client: &lab::Client,
    load: Load<'_>,
    scenario: &str,
    seconds: u32,
    more: impl FnOnce(&Path, &mut Command) -> Result<()>,
) -> Result<Sipp> {
    let folder = tempfile::Builder::new().prefix("romulus-sipp-").tempdir()?;
    let file = folder.path().join("scenario.xml");
    fs::write(&file, scenario)?;
    let limit = Duration::from_secs(u64::from(seconds)) + GRACE;
    let mut command = client.command("sipp")?;
    command
        .arg(load.server.to_string())
        .args(["-sf".as_ref(), file.as_os_str()])
        .args([
            "-t",
            load.transport.option(),
            "-nostdin",
            "-nd",
            "-timeout_error",
        ])
        .args(["-r", &load.rate.to_string(), "-m", &load.count.to_string()])
        .args([
            "-l",
            &load.count.to_string(),
            "-max_socket",
            &load.count.clamp(1, SOCKETS_MAX).to_string(),
        ])
        .args(["-timeout", &format!("{}s", limit.as_secs())])
        .args(["-i", &client.address().to_string()])
        .args(["-p", &port().to_string()])
        .args(["-mp", &media_port().to_string()])
        .args(["-trace_logs", "-log_file"])
        .arg(folder.path().join(CALLS))
        .args(["-trace_stat", "-fd", "1", "-stf"])
        .arg(folder.path().join(STATISTICS))
        .args(["-trace_err", "-error_file"])
        .arg(folder.path().join(FAILURES))
        .current_dir(folder.path())
        .env("TERM", "dumb")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(folder.path().join(ERRORS))?);
    if load.transport == Transport::TcpOne {
        // Another connection in the place of a lost one would hide that it was lost.
        command.args(["-max_reconnect", "0"]);
    }
    more(folder.path(), &mut command)?;
    let child = command
        .spawn()
        .context("running sipp (Debian package sip-tester)")?;
    Ok(Sipp {
        child,
        folder,
        limit: limit + GRACE,
        wanted: load.count,
        users: load.users.to_owned(),
        read: (0, 0),
    })
}

/// Registrations a second that one SIPp makes at most where each has a connection of its own. It waits until a connection is open,
/// and at a call's end until the other side has seen that it is closed (`SO_LINGER`), and does nothing else meanwhile. With a
/// machine whose output is held, one alone would fall far behind its rate, measure itself, and make up for it all at once when
/// output is held no longer: in the moment after a takeover.
const CONNECTED_A_SECOND: u32 = 5;
/// And how many of them there are at most: more would be a load themselves.
const PARTS_MAX: u32 = 32;

/// Starts one load from the client of a lab.
///
/// # Errors
/// SIPp can't be started.
pub(crate) fn start(client: &lab::Client, load: Load<'_>) -> Result<Registering> {
    let mut sipps = Vec::new();
    for (part, (users, rate, count)) in parts(load).into_iter().enumerate() {
        if part > 0 {
            // Their calls come in turns, not all at once.
            thread::sleep(Duration::from_secs(1) / load.rate.max(1));
        }
        let load = Load {
            users: &users,
            rate,
            count,
            ..load
        };
        sipps.push(start_one(client, load)?);
    }
    Ok(Registering { sipps })
}

/// What each SIPp of a load does: its users, their rate and their number.
fn parts(load: Load<'_>) -> Vec<(String, u32, u32)> {
    let parts = match load.transport {
        Transport::TcpEach => load.rate.div_ceil(CONNECTED_A_SECOND),
        Transport::Udp | Transport::TcpOne => 1,
    };
    let parts = parts.min(PARTS_MAX).min(load.count).max(1);
    if parts == 1 {
        return vec![(load.users.to_owned(), load.rate, load.count)];
    }
    let part = |part: u32| {
        let share = |whole: u32| whole / parts + u32::from(part < whole % parts);
        let users = format!("{}{part}-", load.users);
        (users, share(load.rate).max(1), share(load.count))
    };
    (0..parts).map(part).collect()
}

/// Runs one load from the client of a lab and waits for its end.
///
/// # Errors
/// SIPp can't be run, or made no call at all. Calls that fail are an [`Outcome`], not an error.
pub(crate) fn register(client: &lab::Client, load: Load<'_>) -> Result<Outcome> {
    start(client, load)?.finish()
}

/// Waits until a small load of `seconds` passes without a request sent twice: the first requests after a start find cold
/// caches and unresolved addresses, and those after an overload what it has left queued.
///
/// # Errors
/// The server does not answer, or never in time.
pub(crate) fn settle(client: &lab::Client, server: SocketAddrV4, seconds: u32) -> Result<()> {
    const TRIES: u32 = 10;
    const RATE: u32 = 10;
    for _ in 0..TRIES {
        options::answers(client, server, Duration::from_mins(1))?;
        let load = Load {
            server,
            transport: Transport::Udp,
            users: "settle",
            rate: RATE,
            count: RATE * seconds,
        };
        let outcome = register(client, load)?;
        if outcome.all_ok() && outcome.retransmissions == 0 {
            return Ok(());
        }
        thread::sleep(Duration::from_secs(1));
    }
    Err(anyhow::anyhow!(
        "a small load does not pass {TRIES} times over"
    ))
    .context("waiting for the guest to work off what was queued")
}

impl Sipp {
    /// How many registrations have been answered so far.
    pub(crate) fn answered(&mut self) -> u32 {
        // What can't be read now is read the next time.
        let _ = self.look();
        self.read.1
    }

    fn look(&mut self) -> io::Result<()> {
        let mut log = File::open(self.folder.path().join(CALLS))?;
        log.seek(SeekFrom::Start(self.read.0))?;
        let mut text = Vec::new();
        log.read_to_end(&mut text)?;
        // A line that is not whole yet is left for the next time.
        let whole = text
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        let answers = text[..whole]
            .split(|byte| *byte == b'\n')
            .filter(|line| line.ends_with(b",ok"));
        self.read.1 += u32::try_from(answers.count()).unwrap_or(u32::MAX);
        self.read.0 += whole as u64;
        Ok(())
    }

    /// Whether it has come to its end.
    ///
    /// # Errors
    /// The operating system refuses to say.
    pub(crate) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits for its end and gives what came of it.
    ///
    /// # Errors
    /// SIPp made no call at all, or did not end in time.
    pub(crate) fn finish(mut self) -> Result<Outcome> {
        let Some(status) = process::wait_within(&mut self.child, self.limit)? else {
            bail!("sipp did not end within {} s", self.limit.as_secs());
        };
        let read =
            |name: &str| fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        let calls = read(CALLS);
        let mut outcome = outcome::parse_calls(&calls, &self.users);
        outcome.wanted = self.wanted;
        let statistics = read(STATISTICS);
        outcome.retransmissions = outcome::parse_retransmissions(&statistics).unwrap_or(0);
        if !outcome.all_ok() {
            let failure = outcome::parse_failure(&read(FAILURES))
                .or_else(|| outcome::parse_failed_calls(&statistics));
            let gaps = outcome::parse_gaps(&calls, self.wanted);
            let told: Vec<String> = [failure, gaps].into_iter().flatten().collect();
            outcome.failure = (!told.is_empty()).then(|| told.join("; "));
        }
        let code = status.code();
        if !matches!(code, Some(0 | 1)) || outcome.tried == 0 {
            let said = read(ERRORS);
            // What points to the log of failures is left out: that goes with the folder, and its first line is told anyway.
            let told = |line: &&str| !line.trim().is_empty() && !line.contains(FAILURES);
            let last = said.lines().rev().find(told);
            outcome.complaint = Some(format!(
                "{} ({})",
                last.unwrap_or("no message").trim(),
                code.map_or("killed".into(), |code| format!("exit code {code}"))
            ));
        }
        if outcome.tried == 0 {
            bail!(
                "SIPp made no call: {}",
                outcome.complaint.as_deref().unwrap_or("it gave no reason")
            );
        }
        Ok(outcome)
    }
}

impl Drop for Sipp {
    fn drop(&mut self) {
        process::kill(&mut self.child);
    }
}

/// The usual SIP port of a guest at `address`.
pub(crate) fn sip(address: Ipv4Addr) -> SocketAddrV4 {
    SocketAddrV4::new(address, 5060)
}

#[cfg(test)]
mod tests {
    use super::{CONNECTED_A_SECOND, Load, Transport, parts, sip};
    use std::{collections::HashSet, net::Ipv4Addr};

    fn load(transport: Transport, rate: u32, count: u32) -> Load<'static> {
        Load {
            server: sip(Ipv4Addr::LOCALHOST),
            transport,
            users: "a-",
            rate,
            count,
        }
    }

    #[test]
    fn a_load_of_connections_is_shared_out_whole() {
        let parts = parts(load(Transport::TcpEach, 34, 510));
        assert_eq!(parts.iter().map(|part| part.1).sum::<u32>(), 34);
        assert_eq!(parts.iter().map(|part| part.2).sum::<u32>(), 510);
        assert!(parts.iter().all(|part| part.1 <= CONNECTED_A_SECOND));
        let users: HashSet<&str> = parts.iter().map(|part| part.0.as_str()).collect();
        assert_eq!(users.len(), parts.len(), "no two have the same users");
        assert!(users.iter().all(|users| users.starts_with("a-")));
    }

    #[test]
    fn one_does_where_nothing_waits_for_a_connection() {
        let whole = |parts: Vec<_>| parts == [("a-".to_owned(), 200, 1000)];
        assert!(whole(parts(load(Transport::Udp, 200, 1000))));
        assert!(whole(parts(load(Transport::TcpOne, 200, 1000))));
        assert_eq!(parts(load(Transport::TcpEach, 20, 2)).len(), 2);
        assert_eq!(parts(load(Transport::TcpEach, 5, 100)).len(), 1);
    }
}
