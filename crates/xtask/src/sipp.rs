//! Load from SIPp, run as the lab's client, and what came of it.
//!
//! Counts and times come from the log that our scenario writes for each call, not from SIPp's screen: percentages and
//! percentiles need every call. SIPp's own clock for scheduling is coarse, so single times are good to about 4 ms.

use crate::{distribution::Distribution, options, process};
use anyhow::{Context as _, Result, bail};
use std::{
    collections::HashMap,
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
/// What that begins with.
const HEADING: &str = "The following events occurred:";
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

/// An answered registration.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    /// The call's number.
    pub(crate) call: u32,
    /// When it began, in seconds since 1970.
    pub(crate) began: f64,
    /// How long the answer took, in milliseconds.
    pub(crate) ms: f64,
}

impl Answer {
    /// When the answer came, in seconds since 1970.
    pub(crate) fn came(&self) -> f64 {
        self.began + self.ms / 1e3
    }
}

/// What came of a [`Load`].
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Outcome {
    /// Registrations that were to be made.
    pub(crate) wanted: u32,
    /// Registrations begun.
    pub(crate) tried: u32,
    /// Registrations answered 200.
    pub(crate) ok: u32,
    /// Requests sent again because no answer came in time. Over UDP they hide outages.
    pub(crate) retransmissions: u32,
    /// Time from request to answer in milliseconds.
    pub(crate) response_ms: Distribution,
    /// The answered calls in order of start.
    pub(crate) answers: Vec<Answer>,
    /// Why a call failed, in SIPp's words: of the first that did, where it says so.
    pub(crate) failure: Option<String>,
    /// What SIPp itself said was wrong, if it did. That it lost its one TCP connection is such a thing.
    pub(crate) complaint: Option<String>,
}

impl Outcome {
    /// Whether every registration was made and answered.
    pub(crate) fn all_ok(&self) -> bool {
        self.wanted > 0 && self.ok == self.wanted
    }

    /// Answers for which a client would have repeated its request if it came over UDP: T1 is 500 ms (RFC 3261, 17.1.1.1).
    pub(crate) fn late(&self) -> u32 {
        const T1_MS: f64 = 500.0;
        let late = self.answers.iter().filter(|answer| answer.ms > T1_MS);
        u32::try_from(late.count()).unwrap_or(u32::MAX)
    }

    /// Adds what came of a load that went on at the same time. The calls' numbers are each load's own.
    fn add(&mut self, other: Self) {
        self.wanted += other.wanted;
        self.tried += other.tried;
        self.ok += other.ok;
        self.retransmissions += other.retransmissions;
        self.answers.extend(other.answers);
        self.answers.sort_by(|a, b| a.began.total_cmp(&b.began));
        self.response_ms = Distribution::new(self.answers.iter().map(|answer| answer.ms).collect());
        self.failure = self.failure.take().or(other.failure);
        self.complaint = self.complaint.take().or(other.complaint);
    }

    /// Seconds since `zero` (seconds since 1970), and the response time in milliseconds, of each answered call in order
    /// of start.
    pub(crate) fn timeline_since(&self, zero: f64) -> Vec<(f64, f64)> {
        let point = |answer: &Answer| (answer.began - zero, answer.ms);
        self.answers.iter().map(point).collect()
    }

    /// [`Self::timeline_since`] the first start.
    pub(crate) fn timeline(&self) -> Vec<(f64, f64)> {
        self.timeline_since(self.answers.first().map_or(0.0, |answer| answer.began))
    }

    /// A line for people.
    pub(crate) fn summary(&self) -> String {
        let ms = |value: Option<f64>| value.map_or_else(|| "–".into(), |ms| format!("{ms:.1}"));
        let complaint = [&self.failure, &self.complaint]
            .into_iter()
            .flatten()
            .fold(String::new(), |all, text| format!("{all}; SIPp: {text}"));
        format!(
            "{}/{} ok, {} sent again, p50 {} ms, p99 {} ms, max {} ms{complaint}",
            self.ok,
            self.wanted,
            self.retransmissions,
            ms(self.response_ms.median()),
            ms(self.response_ms.percentile(99.0)),
            ms(self.response_ms.max()),
        )
    }
}

/// A load that is under way. Dropping it ends it.
pub(crate) struct Sipp {
    child: Child,
    folder: TempDir,
    limit: Duration,
    wanted: u32,
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

/// Starts one load from the client of a lab.
///
/// # Errors
/// SIPp can't be started.
pub(crate) fn start(client: &lab::Client, load: Load<'_>) -> Result<Sipp> {
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
        read: (0, 0),
    })
}

/// Registrations a second that one SIPp makes at most where each has a connection of its own. At a call's end it closes the
/// connection and waits until the other side has seen that (`SO_LINGER`), and does nothing else meanwhile: with a machine whose
/// output is held, it would soon measure itself.
const CLOSED_A_SECOND: u32 = 8;
/// And how many of them there are at most: more would be a load themselves.
const PARTS_MAX: u32 = 32;

/// Runs one load from the client of a lab and waits for its end.
///
/// # Errors
/// SIPp can't be run, or made no call at all. Calls that fail are an [`Outcome`], not an error.
pub(crate) fn register(client: &lab::Client, load: Load<'_>) -> Result<Outcome> {
    if load.transport != Transport::TcpEach || load.rate <= CLOSED_A_SECOND {
        return start(client, load)?.finish();
    }
    let parts = load.rate.div_ceil(CLOSED_A_SECOND).min(PARTS_MAX);
    let mut sipps = Vec::new();
    for part in 0..parts.min(load.count) {
        let share = |whole: u32| whole / parts + u32::from(part < whole % parts);
        let users = format!("{}-{part}-", load.users);
        let load = Load {
            users: &users,
            rate: share(load.rate),
            count: share(load.count),
            ..load
        };
        sipps.push(start(client, load)?);
        // Their calls come in turns, not all at once.
        thread::sleep(Duration::from_secs(1) / load.rate.max(1));
    }
    let mut all = Outcome::default();
    for sipp in sipps {
        all.add(sipp.finish()?);
    }
    Ok(all)
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
        let mut outcome = parse_calls(&read(CALLS));
        outcome.wanted = self.wanted;
        outcome.retransmissions = parse_retransmissions(&read(STATISTICS)).unwrap_or(0);
        if !outcome.all_ok() {
            outcome.failure = parse_failure(&read(FAILURES));
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

/// Reads a line of a log of calls, `number,seconds,microseconds,event`: the call, when (in seconds since 1970), what. SIPp
/// writes numbers as decimals.
pub(crate) fn event(line: &str) -> Option<(u32, f64, &str)> {
    let mut fields = line.trim().split(',');
    let call = fields.next()?.parse().ok()?;
    let seconds: f64 = fields.next()?.parse().ok()?;
    let micros: f64 = fields.next()?.parse().ok()?;
    let event = fields.next()?;
    fields
        .next()
        .is_none()
        .then_some((call, seconds + micros / 1e6, event))
}

/// Reads the log of calls, whose events are `start` and `ok`.
fn parse_calls(log: &str) -> Outcome {
    let mut starts: HashMap<u32, f64> = HashMap::new();
    let mut answers: Vec<Answer> = Vec::new();
    let mut tried = 0;
    for (call, time, event) in log.lines().filter_map(event) {
        match event {
            "start" => {
                tried += 1;
                starts.insert(call, time);
            }
            "ok" => {
                if let Some(began) = starts.remove(&call) {
                    let ms = (time - began) * 1e3;
                    answers.push(Answer { call, began, ms });
                }
            }
            _ => {}
        }
    }
    answers.sort_by(|a, b| a.began.total_cmp(&b.began));
    Outcome {
        tried,
        ok: u32::try_from(answers.len()).unwrap_or(u32::MAX),
        response_ms: Distribution::new(answers.iter().map(|answer| answer.ms).collect()),
        answers,
        ..Outcome::default()
    }
}

/// The number of retransmissions so far, from the last line of SIPp's statistics (`;` between fields, names on top).
fn parse_retransmissions(statistics: &str) -> Option<u32> {
    let mut lines = statistics.lines();
    let column = lines
        .next()?
        .split(';')
        .position(|name| name == "Retransmissions(C)")?;
    lines.last()?.split(';').nth(column)?.trim().parse().ok()
}

/// The first line about a call that was given up, or else about anything, without its time (tabs and the numbers of a clock before it).
fn parse_failure(failures: &str) -> Option<String> {
    if let Some(at) = failures.find("Aborting") {
        return Some(failures[at..].lines().next()?.trim().to_owned());
    }
    let event = failures
        .lines()
        .filter_map(|line| line.splitn(3, '\t').nth(2)?.split_once(": "))
        .map(|(_, event)| event.trim())
        .find(|event| !event.is_empty() && *event != HEADING)?;
    Some(event.trim_end_matches(':').to_owned())
}

/// The usual SIP port of a guest at `address`.
pub(crate) fn sip(address: Ipv4Addr) -> SocketAddrV4 {
    SocketAddrV4::new(address, 5060)
}

#[cfg(test)]
mod tests {
    use super::{Outcome, parse_calls, parse_failure, parse_retransmissions};

    #[test]
    fn calls_are_joined_by_number() {
        let log = "1,100.000000,500000.000000,start\n2,100.0,600000.0,start\n\
                   2,100.0,604000.0,ok\n1,101.0,0.0,ok\n3,101.0,0.0,start\n";
        let outcome = parse_calls(log);
        assert_eq!((outcome.tried, outcome.ok), (3, 2));
        assert!((outcome.response_ms.max().unwrap() - 500.0).abs() < 0.01);
        assert!((outcome.response_ms.median().unwrap() - 4.0).abs() < 0.01);
        assert!((outcome.timeline()[1].0 - 0.1).abs() < 1e-6);
        assert!((outcome.timeline_since(99.0)[0].0 - 1.5).abs() < 1e-6);
        assert!((outcome.answers[1].came() - 100.604).abs() < 1e-6);
    }

    #[test]
    fn lines_cut_short_and_second_answers_do_not_count() {
        let log = "1,100,0,start\n1,100,9000,ok\n1,100,9500,ok\n2,100,0,st\n4,100,0,start,5\n3,10";
        let outcome = parse_calls(log);
        assert_eq!((outcome.tried, outcome.ok), (1, 1));
    }

    #[test]
    fn calls_never_begun_count_as_failed() {
        let outcome = Outcome {
            wanted: 10,
            ..parse_calls("1,1,0,start\n1,1,10,ok\n")
        };
        assert_eq!((outcome.ok, outcome.wanted), (1, 10));
        assert!(!outcome.all_ok());
        assert!(!Outcome::default().all_ok(), "nothing wanted is no success");
    }

    #[test]
    fn a_failure_is_told_without_its_time() {
        let log = "2026-11-29\t12:00:00.000000\t1.0: Aborting call on unexpected message for Call-Id '1': received 'SIP/2.0 500\nVia: x\n";
        let told = parse_failure(log).unwrap();
        assert!(
            told.starts_with("Aborting call") && told.ends_with("500"),
            "{told}"
        );
        let heading = "2026-11-29\t12:00:00.000000\t1.0: The following events occurred:\n";
        assert_eq!(parse_failure(heading), None);
        let other = "2026-11-29\t12:00:01.000000\t2.0: Discarding message of no call: \nSIP/2.0 200\tOK: x\n";
        assert_eq!(
            parse_failure(&format!("{heading}{other}")).as_deref(),
            Some("Discarding message of no call")
        );
    }

    #[test]
    fn loads_at_the_same_time_are_one() {
        let mut all = Outcome {
            wanted: 2,
            ..parse_calls("1,2,0,start\n1,2,4000,ok\n2,3,0,start\n")
        };
        all.add(Outcome {
            wanted: 1,
            retransmissions: 3,
            complaint: Some("lost".to_owned()),
            ..parse_calls("1,1,0,start\n1,1,8000,ok\n")
        });
        assert_eq!((all.wanted, all.tried, all.ok), (3, 3, 2));
        assert_eq!((all.retransmissions, all.all_ok()), (3, false));
        assert_eq!(all.complaint.as_deref(), Some("lost"));
        assert!((all.answers[0].ms - 8.0).abs() < 0.01, "in order of start");
        assert!((all.response_ms.max().unwrap() - 8.0).abs() < 0.01);
    }

    #[test]
    fn retransmissions_are_those_of_the_last_line() {
        let csv = "StartTime;Retransmissions(P);Retransmissions(C);\na;1;1;\nb;2;3;\n";
        assert_eq!(parse_retransmissions(csv), Some(3));
        assert_eq!(parse_retransmissions("a;b\n1;2\n"), None);
        assert_eq!(parse_retransmissions(""), None);
    }
}
