//! Calls that ring while something happens: a callee who takes each call only after a while, and a caller who waits.

use crate::{
    pair::UnixSeconds,
    process,
    sipp::{self, Transport},
};
use anyhow::{Context as _, Result, ensure};
use std::{
    fs::{self, File},
    net::SocketAddrV4,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};
use tempfile::TempDir;

const REGISTER: &str = include_str!("../sipp/callee-register.xml");
const CALLEE: &str = include_str!("../sipp/callee.xml");
const CALLER: &str = include_str!("../sipp/caller.xml");
/// The caller's log.
const CALLS: &str = "calls.csv";
/// How long the callee's registration may take.
const REGISTERED_WITHIN: Duration = Duration::from_secs(10);
/// How long after a call was taken it may still need to end in order.
const GRACE: Duration = Duration::from_secs(8);

/// A callee who takes calls. Dropping it ends it.
pub(crate) struct Callee {
    child: Child,
    /// The port of the client's on which it takes calls.
    pub(crate) port: u16,
    _folder: TempDir,
}

impl Drop for Callee {
    fn drop(&mut self) {
        process::kill(&mut self.child);
    }
}

/// Calls that are under way. Dropping it ends them.
pub(crate) struct Calls {
    caller: Child,
    _callee: Callee,
    folder: TempDir,
    limit: Duration,
    placed: u32,
}

/// What became of calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Ringing {
    /// Calls that were placed.
    pub(crate) placed: u32,
    /// Those of them whose caller heard that it rings before the moment in question.
    pub(crate) rang: u32,
    /// Those of them that were taken after it, and ended in order.
    pub(crate) kept: u32,
}

/// Registers a callee of the name `user`, who takes up to `count` calls, each when it has rung for `ring`, and is there for
/// `limit`.
///
/// # Errors
/// It can't be registered, or SIPp not be started.
pub(crate) fn callee(
    client: &lab::Client,
    server: SocketAddrV4,
    transport: Transport,
    user: &str,
    count: u32,
    ring: Duration,
    limit: Duration,
) -> Result<Callee> {
    let folder = tempfile::Builder::new()
        .prefix("romulus-callee-")
        .tempdir()?;
    let party = Party {
        client,
        server,
        transport,
        user,
        folder: folder.path(),
    };
    let port = sipp::port();
    let mut register = party.command("register", REGISTER, sipp::port(), 1)?;
    register
        .args(["-key", "contact_port", &port.to_string()])
        .args(["-timeout", &seconds(REGISTERED_WITHIN)]);
    let mut register = register.spawn().context("running sipp")?;
    let registered = process::wait_within(&mut register, REGISTERED_WITHIN)?;
    if registered.is_none() {
        process::kill(&mut register);
    }
    ensure!(
        registered.is_some_and(|status| status.success()),
        "the callee {user} can't be registered"
    );
    let child = party
        .command("callee", CALLEE, port, count)?
        .args(["-d", &ring.as_millis().to_string()])
        .args(["-timeout", &seconds(limit)])
        .spawn()
        .context("running sipp")?;
    let taking = Callee {
        child,
        port,
        _folder: folder,
    };
    // A call that came too early would be refused.
    process::poll(REGISTERED_WITHIN, Duration::from_millis(20), || {
        Ok(is_bound(client, transport, port)?.then_some(()))
    })?
    .context("the callee does not listen")?;
    Ok(taking)
}

/// Registers a callee of the name `user`, and has `count` callers call it at once; it takes the calls when they have rung for
/// `ring`.
///
/// # Errors
/// The callee can't be registered, or SIPp not be started.
pub(crate) fn start(
    client: &lab::Client,
    server: SocketAddrV4,
    transport: Transport,
    user: &str,
    count: u32,
    ring: Duration,
) -> Result<Calls> {
    let limit = ring + GRACE;
    let taking = callee(client, server, transport, user, count, ring, limit)?;
    let folder = tempfile::Builder::new()
        .prefix("romulus-calls-")
        .tempdir()?;
    let party = Party {
        client,
        server,
        transport,
        user,
        folder: folder.path(),
    };
    let caller = party
        .command("caller", CALLER, sipp::port(), count)?
        .args(["-r", &count.to_string(), "-l", &count.to_string()])
        .args(["-timeout", &seconds(limit)])
        .args(["-trace_logs", "-log_file"])
        .arg(folder.path().join(CALLS))
        .spawn()
        .context("running sipp")?;
    Ok(Calls {
        caller,
        _callee: taking,
        folder,
        limit: limit + GRACE,
        placed: count,
    })
}

/// What all of a call's parties have in common.
struct Party<'a> {
    client: &'a lab::Client,
    server: SocketAddrV4,
    transport: Transport,
    user: &'a str,
    folder: &'a Path,
}

impl Party<'_> {
    /// SIPp with a scenario, on a port of the client's, for so many calls.
    fn command(&self, name: &str, scenario: &str, port: u16, calls: u32) -> Result<Command> {
        let path = self.folder.join(format!("{name}.xml"));
        fs::write(&path, scenario)?;
        let mut command = self.client.command("sipp")?;
        command
            .arg(self.server.to_string())
            .args(["-sf".as_ref(), path.as_os_str()])
            .args(["-s", self.user, "-t", self.transport.option()])
            .args(["-nostdin", "-nd"])
            .args(["-i", &self.client.address().to_string()])
            .args(["-p", &port.to_string(), "-m", &calls.to_string()])
            .args(["-max_reconnect", "0", "-timeout_error"])
            .current_dir(self.folder)
            .env("TERM", "dumb")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(self.folder.join(format!("{name}.errors")))?);
        Ok(command)
    }
}

impl Calls {
    /// How many callers have heard so far that it rings.
    pub(crate) fn ringing(&self) -> u32 {
        let log = fs::read_to_string(self.folder.path().join(CALLS)).unwrap_or_default();
        read(&log, self.placed, f64::INFINITY).rang
    }

    /// Waits for the callers' end, and tells what became of the calls that rang at `moment`.
    ///
    /// # Errors
    /// The operating system refuses to say.
    pub(crate) fn finish(mut self, moment: UnixSeconds) -> Result<Ringing> {
        // How it ends does not matter: the log tells of each call.
        process::wait_within(&mut self.caller, self.limit)?;
        let log = fs::read_to_string(self.folder.path().join(CALLS)).unwrap_or_default();
        Ok(read(&log, self.placed, moment))
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        process::kill(&mut self.caller);
    }
}

/// Whether somebody has this port of the client's.
fn is_bound(client: &lab::Client, transport: Transport, port: u16) -> Result<bool> {
    let table = match transport {
        Transport::Udp => "/proc/thread-self/net/udp",
        Transport::TcpOne | Transport::TcpEach => "/proc/thread-self/net/tcp",
    };
    let sockets = client
        .visit(|| fs::read_to_string(table))
        .with_context(|| format!("reading {table}"))?;
    Ok(names_port(&sockets, port))
}

/// Whether a table of sockets (proc(5)) has one with this local port.
fn names_port(sockets: &str, port: u16) -> bool {
    let end = format!(":{port:04X}");
    sockets
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1))
        .any(|local| local.ends_with(&end))
}

fn seconds(time: Duration) -> String {
    format!("{}s", time.as_secs())
}

/// Reads the caller's log, whose events are `ringing`, `taken` and `ended`. A call that was taken before `moment` did not ring
/// then.
fn read(log: &str, placed: u32, moment: UnixSeconds) -> Ringing {
    let events: Vec<_> = log.lines().filter_map(sipp::event).collect();
    let when = |call: u32, wanted: &str| {
        events
            .iter()
            .find(|(number, _, event)| *number == call && *event == wanted)
            .map(|(_, at, _)| *at)
    };
    let mut kept = Ringing {
        placed,
        ..Ringing::default()
    };
    for call in 1..=placed {
        let rang = when(call, "ringing").is_some_and(|at| at < moment);
        let taken_before = when(call, "taken").is_some_and(|at| at < moment);
        if rang && !(taken_before && moment.is_finite()) {
            kept.rang += 1;
            kept.kept += u32::from(when(call, "ended").is_some());
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::{Ringing, names_port, read};

    #[test]
    fn a_bound_port_is_found_in_the_table_of_sockets() {
        let table = "  sl  local_address rem_address   st\n   5: FE0200C0:4E21 00000000:4E22 07\n";
        assert!(names_port(table, 0x4e21));
        assert!(!names_port(table, 0x4e22));
        assert!(!names_port(table, 0x21));
    }

    #[test]
    fn a_call_is_kept_that_rang_at_the_moment_and_ended_in_order() {
        let log = "1,100,0,ringing\n2,100,100,ringing\n3,100,0,ringing\n4,106,0,ringing\n\
                   3,103,0,taken\n3,103,900,ended\n1,110,0,taken\n2,110,0,taken\n1,111,0,ended\n4,112,0,taken\n4,113,0,ended\n";
        let expected = Ringing {
            placed: 5,
            rang: 2,
            kept: 1,
        };
        assert_eq!(read(log, 5, 105.0), expected);
        assert_eq!(read("", 2, 105.0).rang, 0);
        assert_eq!(read(log, 5, f64::INFINITY).rang, 4);
    }
}
