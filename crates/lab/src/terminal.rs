//! This process's terminal, joined to a program in the lab.

use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::thread;

use anyhow::Result;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::protocol::{Program, Size, Terminal};
use crate::remote::{Agent, Remote, Sink};

/// Runs a program whose standard input, output and error are this process's own; returns its exit code as a shell tells
/// it. With `interactive`, and where this process has a terminal, the program gets one as well.
///
/// # Errors
/// Where the program cannot be started, or the host is lost.
pub fn attach(agent: &Agent, arguments: &[&str], interactive: bool) -> Result<i32> {
    let raw = if interactive && io::stdin().is_terminal() {
        Some(Raw::enter()?)
    } else {
        None
    };
    let terminal = raw.as_ref().map(|_| Terminal {
        kind: std::env::var("TERM").unwrap_or_else(|_| "linux".into()),
        size: size().unwrap_or(Size {
            rows: 24,
            columns: 80,
        }),
    });
    let program = Program {
        arguments: arguments.iter().map(ToString::to_string).collect(),
        terminal,
    };
    let sink = Sink::Pass(Box::new(io::stdout()), Box::new(io::stderr()));
    let remote = Arc::new(agent.start(program, sink)?);
    if raw.is_some() {
        follow_size(Arc::clone(&remote))?;
    }
    // Not joined: it waits for input that may never come, and ends with the process.
    let input = Arc::clone(&remote);
    thread::Builder::new().name("input".into()).spawn(move || {
        // The program has ended, or the host is lost: either is told by the wait below.
        let _ = feed(&input);
    })?;
    let status = remote.wait_for_end()?;
    drop(raw);
    Ok(code(status))
}

fn code(status: ExitStatus) -> i32 {
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(1)
}

fn feed(remote: &Remote) -> io::Result<()> {
    let mut bytes = [0; 16 << 10];
    loop {
        match io::stdin().lock().read(&mut bytes)? {
            0 => return remote.close_input(),
            length => remote.input(&bytes[..length])?,
        }
    }
}

fn size() -> Option<Size> {
    let size = tcgetwinsize(io::stdout()).ok()?;
    Some(Size {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

/// Tells the program about every change of this terminal's size.
fn follow_size(remote: Arc<Remote>) -> Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([libc::SIGWINCH])?;
    thread::Builder::new().name("size".into()).spawn(move || {
        for _ in &mut signals {
            if size().is_some_and(|size| remote.resize(size).is_err()) {
                return;
            }
        }
    })?;
    Ok(())
}

/// The terminal passes on every key as it is, until this is dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = io::stdout().flush();
        // A terminal that is gone needs nothing more.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}
