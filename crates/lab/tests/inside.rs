//! Nothing that is started inside outlives the process, however that ends; and what the program inside says of its end is
//! what the caller gets. Needs neither KVM nor QEMU.
//!
//! The proof is a pipe: every process inside holds its writing end, so that its end is seen only when all of them are gone.

use std::env;
use std::io::{BufRead, BufReader, Read};
use std::process::{self, Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// The longest that anything here may take on a busy computer.
const LIMIT: Duration = Duration::from_secs(20);

fn main() -> Result<()> {
    if env::var_os("INSIDE_TEST").is_some() {
        return victim();
    }
    // `cargo test -- --list` and filters are for the usual tests.
    killed_from_outside("the process that waits outside", |family| family.outer)?;
    killed_from_outside("the first process inside", |family| family.first)?;
    killed_from_outside("the program inside", |family| family.program)?;
    codes()?;
    signals()?;
    prepared()?;
    println!("inside: all is well");
    Ok(())
}

/// What runs inside.
fn victim() -> Result<()> {
    let wish = env::var("INSIDE_TEST")?;
    let value = lab::inside(|| Ok(format!("prepared by {}", process::id())))?;
    match wish.as_str() {
        "family" => {
            let interfaces: Vec<_> = std::fs::read_dir("/sys/class/net")?
                .flatten()
                .map(|entry| entry.file_name())
                .collect();
            ensure!(
                interfaces
                    .iter()
                    .all(|name| name != "eth0" && name != "br0"),
                "the computer's interfaces are here: {interfaces:?}"
            );
            ensure!(
                process::id() < 100,
                "this is not a PID namespace of its own"
            );
            // One that nobody waits for, in a session of its own.
            let orphan =
                "setsid sleep 1000 & setsid sh -c 'trap \"\" HUP TERM; sleep 1000' & echo ready";
            Command::new("sh").args(["-c", orphan]).status()?;
            thread::sleep(Duration::from_secs(1000));
            Ok(())
        }
        "value" => {
            println!("{value}");
            Ok(())
        }
        code => process::exit(code.parse()?),
    }
}

struct Family {
    outer: Pid,
    first: Pid,
    program: Pid,
}

/// The process outside. It does not outlive this test, however that ends.
struct Outer(Child);

impl Drop for Outer {
    fn drop(&mut self) {
        // It is gone already, unless something went wrong.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(wish: &str) -> Result<(Outer, BufReader<ChildStdout>)> {
    // A shell starts what it runs in the background with the interrupt signal ignored, and that is inherited.
    let mut child = Command::new("env")
        .arg("--default-signal")
        .arg(env::current_exe()?)
        .env("INSIDE_TEST", wish)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().context("no pipe")?;
    Ok((Outer(child), BufReader::new(output)))
}

fn only_child(pid: Pid) -> Result<Pid> {
    let pid = pid.as_raw_nonzero();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    // The orphans are children of the first process too; the program is the eldest.
    let eldest = children.split_whitespace().next().context("no child")?;
    Pid::from_raw(eldest.parse()?).context("no process number")
}

fn family(wish: &str) -> Result<(Outer, BufReader<ChildStdout>, Family)> {
    let (child, mut output) = start(wish)?;
    let mut line = String::new();
    output.read_line(&mut line)?;
    ensure!(line == "ready\n", "it said {line:?}");
    let outer = Pid::from_child(&child.0);
    let first = only_child(outer)?;
    let program = only_child(first)?;
    Ok((
        child,
        output,
        Family {
            outer,
            first,
            program,
        },
    ))
}

/// Waits until every process that holds the other end of the pipe is gone.
fn all_gone(mut output: BufReader<ChildStdout>) -> Result<String> {
    let (done, wait) = channel();
    thread::spawn(move || {
        let mut text = String::new();
        let _ = done.send(output.read_to_string(&mut text).map(|_| text));
    });
    Ok(wait
        .recv_timeout(LIMIT)
        .context("something is left over")??)
}

fn killed_from_outside(who: &str, choose: impl Fn(&Family) -> Pid) -> Result<()> {
    let (mut child, output, family) = family("family")?;
    kill_process(choose(&family), Signal::KILL)?;
    all_gone(output).with_context(|| format!("after {who} was killed"))?;
    ensure!(!child.0.wait()?.success());
    println!("inside: nothing outlives {who}");
    Ok(())
}

fn codes() -> Result<()> {
    for code in [0, 1, 77] {
        let (mut child, output) = start(&code.to_string())?;
        all_gone(output)?;
        let status = child.0.wait()?;
        ensure!(status.code() == Some(code), "{code} became {status}");
    }
    Ok(())
}

fn signals() -> Result<()> {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let (mut child, output, family) = family("family")?;
        kill_process(family.outer, signal)?;
        all_gone(output).with_context(|| format!("after {signal:?}"))?;
        let status = child.0.wait()?;
        ensure!(
            status.code() == Some(128 + signal.as_raw()),
            "{signal:?} became {status}"
        );
    }
    Ok(())
}

fn prepared() -> Result<()> {
    let (child, output) = start("value")?;
    let text = all_gone(output)?;
    if text != format!("prepared by {}\n", child.0.id()) {
        bail!("inside, {text:?} arrived");
    }
    Ok(())
}
