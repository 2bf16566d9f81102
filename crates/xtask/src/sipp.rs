//! Load from SIPp, run as the lab's client, and what came of it.
//!
//! Counts and times come from the log that our scenario writes for each call, not from SIPp's screen: percentages and
//! percentiles need every call. SIPp's own clock for scheduling is coarse, so single times are good to about 4 ms.

use crate::{distribution::Distribution, process};
use anyhow::{Context as _, Result, bail};
use std::{
    collections::HashMap,
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    process::Stdio,
    time::Duration,
};

/// The scenario: one REGISTER a call, each for a user of its own.
const REGISTER: &str = include_str!("../sipp/register.xml");

/// How long calls may still wait for their answers after the last one has begun.
const GRACE: Duration = Duration::from_secs(12);

/// SIPp refuses to start with as many sockets as a process may have files; 1024 is the usual limit.
const SOCKETS_MAX: u32 = 1000;

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
    fn option(self) -> &'static str {
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
pub(crate) struct Load {
    /// Where the server listens.
    pub(crate) server: SocketAddrV4,
    /// How connections are used.
    pub(crate) transport: Transport,
    /// Registrations begun a second.
    pub(crate) rate: u32,
    /// How many in all.
    pub(crate) count: u32,
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
    /// Seconds since the first start, and the response time in milliseconds, of each answered call in order of start.
    pub(crate) timeline: Vec<(f64, f64)>,
    /// What SIPp itself said was wrong, if it did.
    pub(crate) complaint: Option<String>,
}

impl Outcome {
    /// Whether every registration was made and answered.
    pub(crate) fn all_ok(&self) -> bool {
        self.wanted > 0 && self.ok == self.wanted
    }

    /// A line for people.
    pub(crate) fn summary(&self) -> String {
        let ms = |value: Option<f64>| value.map_or_else(|| "–".into(), |ms| format!("{ms:.1}"));
        let complaint = self
            .complaint
            .as_ref()
            .map_or_else(String::new, |text| format!("; SIPp: {text}"));
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

/// Runs one load from the client of a lab and waits for its end.
///
/// # Errors
/// SIPp can't be run, or made no call at all. Calls that fail are an [`Outcome`], not an error.
pub(crate) fn register(client: &lab::Client, load: Load) -> Result<Outcome> {
    let folder = tempfile::Builder::new().prefix("romulus-sipp-").tempdir()?;
    let scenario = folder.path().join("register.xml");
    fs::write(&scenario, REGISTER)?;
    let (calls, statistics) = (
        folder.path().join("calls.csv"),
        folder.path().join("statistics.csv"),
    );
    let seconds = Duration::from_secs(u64::from(load.count.div_ceil(load.rate.max(1)))) + GRACE;
    let mut command = client.command("sipp")?;
    command
        .arg(load.server.to_string())
        .args(["-sf".as_ref(), scenario.as_os_str()])
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
        .args(["-timeout", &format!("{}s", seconds.as_secs())])
        .args(["-i", &client.address().to_string()])
        .args(["-trace_logs", "-log_file"])
        .arg(&calls)
        .args(["-trace_stat", "-fd", "1", "-stf"])
        .arg(&statistics)
        .current_dir(folder.path())
        .env("TERM", "dumb")
        .stdin(Stdio::null());
    let output = process::output_within(&mut command, seconds + GRACE)
        .context("running sipp (Debian package sip-tester)")?;
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let mut outcome = parse_calls(&read(&calls));
    outcome.wanted = load.count;
    outcome.retransmissions = parse_retransmissions(&read(&statistics)).unwrap_or(0);
    let code = output.status.code();
    if !matches!(code, Some(0 | 1)) || outcome.tried == 0 {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rev().find(|line| !line.trim().is_empty());
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

/// Reads the log of calls: `number,seconds,microseconds,start|ok` a line. SIPp writes numbers as decimals.
fn parse_calls(log: &str) -> Outcome {
    let mut starts: HashMap<&str, f64> = HashMap::new();
    let mut answered: Vec<(f64, f64)> = Vec::new();
    let mut tried = 0;
    for line in log.lines() {
        let mut fields = line.trim().split(',');
        let (Some(call), Some(seconds), Some(micros), Some(event), None) = (
            fields.next(),
            fields.next(),
            fields.next(),
            fields.next(),
            fields.next(),
        ) else {
            continue;
        };
        let (Ok(seconds), Ok(micros)) = (seconds.parse::<f64>(), micros.parse::<f64>()) else {
            continue;
        };
        let time = seconds + micros / 1e6;
        match event {
            "start" => {
                tried += 1;
                starts.insert(call, time);
            }
            "ok" => {
                if let Some(start) = starts.remove(call) {
                    answered.push((start, (time - start) * 1e3));
                }
            }
            _ => {}
        }
    }
    answered.sort_by(|a, b| a.0.total_cmp(&b.0));
    let first = answered.first().map_or(0.0, |(start, _)| *start);
    Outcome {
        tried,
        ok: u32::try_from(answered.len()).unwrap_or(u32::MAX),
        response_ms: Distribution::new(answered.iter().map(|(_, ms)| *ms).collect()),
        timeline: answered
            .iter()
            .map(|(start, ms)| (start - first, *ms))
            .collect(),
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

/// The usual SIP port of a guest at `address`.
pub(crate) fn sip(address: Ipv4Addr) -> SocketAddrV4 {
    SocketAddrV4::new(address, 5060)
}

#[cfg(test)]
mod tests {
    use super::{Outcome, parse_calls, parse_retransmissions};

    #[test]
    fn calls_are_joined_by_number() {
        let log = "1,100.000000,500000.000000,start\n2,100.0,600000.0,start\n\
                   2,100.0,604000.0,ok\n1,101.0,0.0,ok\n3,101.0,0.0,start\n";
        let outcome = parse_calls(log);
        assert_eq!((outcome.tried, outcome.ok), (3, 2));
        assert!((outcome.response_ms.max().unwrap() - 500.0).abs() < 0.01);
        assert!((outcome.response_ms.median().unwrap() - 4.0).abs() < 0.01);
        assert!((outcome.timeline[1].0 - 0.1).abs() < 1e-6);
    }

    #[test]
    fn lines_cut_short_and_second_answers_do_not_count() {
        let log = "1,100,0,start\n1,100,9000,ok\n1,100,9500,ok\n2,100,0,st\n3,10";
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
    fn retransmissions_are_those_of_the_last_line() {
        let csv = "StartTime;Retransmissions(P);Retransmissions(C);\na;1;1;\nb;2;3;\n";
        assert_eq!(parse_retransmissions(csv), Some(3));
        assert_eq!(parse_retransmissions("a;b\n1;2\n"), None);
        assert_eq!(parse_retransmissions(""), None);
    }
}
