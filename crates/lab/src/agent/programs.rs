//! Programs that the agent runs.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::protocol::{Frame, Program, Size, Terminal};

/// How many frames of input wait for a program that does not read before the connection itself has to wait.
const INPUT_WAITING: usize = 16;

/// How often a pipe is read before the others have their turn.
const READS_AT_ONCE: usize = 16;

/// How long a file may be refused because it is open for writing: far longer than a fork takes to its exec.
const BUSY_AT_MOST: Duration = Duration::from_secs(5);
/// How often it is tried meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// The programs that run now.
#[derive(Default)]
pub(super) struct Programs {
    /// The leaders of process groups that were started and are not reaped yet: as long as a number is in here, the kernel
    /// gives it to no other process.
    running: Mutex<HashSet<i32>>,
}

impl Programs {
    fn running(&self) -> MutexGuard<'_, HashSet<i32>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a signal to the process group of a program.
    pub(super) fn signal(&self, pid: i32, signal: i32) -> Result<()> {
        let number =
            Signal::from_named_raw(signal).with_context(|| format!("{signal} is no signal"))?;
        let running = self.running();
        ensure!(running.contains(&pid), "no program runs as process {pid}");
        let group = Pid::from_raw(pid).context("no process number")?;
        rustix::process::kill_process_group(group, number)
            .with_context(|| format!("cannot send signal {signal} to process group {pid}"))
    }

    /// Runs a program for the connection `stream`, whose frames are read through `from`.
    pub(super) fn run(
        self: &Arc<Self>,
        program: &Program,
        from: &mut impl Read,
        stream: &TcpStream,
    ) -> Result<()> {
        let mut started = Started::new(program)?;
        let pid = started.child.id().cast_signed();
        self.running().insert(pid);
        let output = stream.try_clone()?;
        Frame::Started(pid).write(&output)?;

        let input = started.input.take();
        let terminal = started
            .terminal
            .as_ref()
            .map(OwnedFd::try_clone)
            .transpose()?;
        let pump = {
            let programs = Arc::clone(self);
            thread::Builder::new().name("pump".into()).spawn(move || {
                let status = programs.pump(started, &output);
                // The lab closes its side when it has the status; if it cannot get it, nobody waits for more input.
                if status
                    .and_then(|status| Frame::Exited(status).write(&output))
                    .is_err()
                {
                    let _ = output.shutdown(Shutdown::Both);
                }
            })?
        };
        let talked = listen(from, input, terminal.as_ref());
        // The lab went away. Where the program already ended, this finds nobody.
        let _ = self.signal(pid, Signal::KILL.as_raw());
        let _ = pump.join();
        talked
    }

    /// Passes on what the program writes until it ends; returns its status.
    fn pump(&self, mut started: Started, to: &TcpStream) -> io::Result<i32> {
        // Closed on exec: a program started meanwhile would hold the end open for as long as it runs itself.
        let (ended, end) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let pid = Pid::from_child(&started.child);
        let waiter = thread::Builder::new()
            .name("waiter".into())
            .spawn(move || {
                // Only looks: the process stays a zombie, so that its number cannot be given to another one meanwhile.
                let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
                while let Err(rustix::io::Errno::INTR) =
                    rustix::process::waitid(WaitId::Pid(pid), options)
                {}
                drop(end);
            })?;
        let copied = copy_until(&ended, &mut started.outputs, to);
        if copied.is_err() {
            // Nobody hears the program any more.
            let _ = self.signal(pid.as_raw_nonzero().get(), Signal::KILL.as_raw());
        }
        let _ = waiter.join();
        let status = {
            let mut running = self.running();
            running.remove(&pid.as_raw_nonzero().get());
            started.child.wait()?
        };
        copied.map(|()| status.into_raw())
    }
}

/// A program just started.
struct Started {
    child: Child,
    input: Option<OwnedFd>,
    outputs: Vec<Pipe>,
    terminal: Option<OwnedFd>,
}

/// What a program writes, not yet at its end.
struct Pipe {
    from: File,
    wrap: fn(Vec<u8>) -> Frame,
}

/// Starts a program, also one that was written just now. When another thread forks while a file is open for writing, its child
/// holds the file, too, until it executes something else; for that moment the kernel refuses to run the file (ETXTBSY).
fn spawn(command: &mut Command) -> io::Result<Child> {
    let until = Instant::now() + BUSY_AT_MOST;
    loop {
        match command.spawn() {
            Err(error)
                if error.kind() == io::ErrorKind::ExecutableFileBusy && Instant::now() < until =>
            {
                thread::sleep(LOOK_AGAIN);
            }
            result => return result,
        }
    }
}

impl Started {
    fn new(program: &Program) -> Result<Self> {
        let Some((name, arguments)) = program.arguments.split_first() else {
            bail!("no program is named");
        };
        let mut command = Command::new(name);
        command.args(arguments).current_dir("/");
        let started = match &program.terminal {
            None => Self::with_pipes(command),
            Some(terminal) => Self::with_terminal(command, terminal),
        };
        started.with_context(|| format!("cannot start {name}"))
    }

    fn with_pipes(mut command: Command) -> Result<Self> {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = spawn(&mut command)?;
        let input = child.stdin.take().map(OwnedFd::from);
        let mut outputs = Vec::new();
        if let Some(from) = child.stdout.take() {
            outputs.push(Pipe {
                from: OwnedFd::from(from).into(),
                wrap: Frame::Output,
            });
        }
        if let Some(from) = child.stderr.take() {
            outputs.push(Pipe {
                from: OwnedFd::from(from).into(),
                wrap: Frame::Errors,
            });
        }
        Ok(Self {
            child,
            input,
            outputs,
            terminal: None,
        })
    }

    fn with_terminal(mut command: Command, terminal: &Terminal) -> Result<Self> {
        let ours =
            rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        rustix::pty::grantpt(&ours)?;
        rustix::pty::unlockpt(&ours)?;
        let name = rustix::pty::ptsname(&ours, Vec::new())?;
        let theirs = rustix::fs::open(
            name.as_c_str(),
            OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        set_size(&ours, terminal.size)?;
        command.env("TERM", &terminal.kind);
        command
            .stdin(theirs.try_clone()?)
            .stdout(theirs.try_clone()?)
            .stderr(theirs.try_clone()?);
        // SAFETY: between fork and exec only two system calls are made, which allocate nothing and take no lock.
        unsafe {
            command.pre_exec(move || {
                rustix::process::setsid()?;
                rustix::process::ioctl_tiocsctty(&theirs)?;
                Ok(())
            });
        }
        let child = spawn(&mut command)?;
        let outputs = vec![Pipe {
            from: ours.try_clone()?.into(),
            wrap: Frame::Output,
        }];
        Ok(Self {
            child,
            input: Some(ours.try_clone()?),
            outputs,
            terminal: Some(ours),
        })
    }
}

fn set_size(terminal: impl AsFd, size: Size) -> io::Result<()> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

/// Takes frames from the lab until it closes the connection.
fn listen(from: &mut impl Read, input: Option<OwnedFd>, terminal: Option<&OwnedFd>) -> Result<()> {
    let (sender, receiver) = sync_channel(INPUT_WAITING);
    let mut sender = Some(sender);
    if let Some(input) = input {
        // Not joined: it may wait for ever on a program's child that neither reads nor ends.
        thread::Builder::new()
            .name("input".into())
            .spawn(move || feed(&receiver, input.into()))?;
    }
    while let Some(frame) = Frame::read(&mut *from)? {
        match frame {
            // When the program no longer takes input, what more there is of it goes nowhere, as with a pipe.
            Frame::Input(bytes) => drop(sender.as_ref().map(|sender| sender.send(bytes))),
            Frame::InputEnd => sender = None,
            Frame::Resize(size) => {
                if let Some(terminal) = terminal {
                    set_size(terminal, size)?;
                }
            }
            _ => bail!("a frame that does not belong to a running program"),
        }
    }
    Ok(())
}

fn feed(bytes: &Receiver<Vec<u8>>, mut input: File) {
    while let Ok(bytes) = bytes.recv() {
        let mut left = bytes.as_slice();
        while !left.is_empty() {
            match input.write(left) {
                Ok(length) => left = &left[length..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A terminal is one open file for both directions, and does not block.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut room = [PollFd::new(&input, PollFlags::OUT)];
                    if poll(&mut room, None).is_err_and(|error| error != rustix::io::Errno::INTR) {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    }
}

/// Copies what the program writes until every pipe ends, or until `ended` closes and the pipes are empty.
///
/// A program's children may keep its pipes open for ever; what they write after its end belongs to nobody.
fn copy_until(ended: &OwnedFd, pipes: &mut Vec<Pipe>, to: &TcpStream) -> io::Result<()> {
    for pipe in &*pipes {
        fcntl_setfl(&pipe.from, fcntl_getfl(&pipe.from)? | OFlags::NONBLOCK)?;
    }
    loop {
        let mut fds = vec![PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::IN)];
        fds.extend(pipes.iter().map(|pipe| readable(pipe.from.as_fd())));
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // Looked at before the pipes are read: what was written before the end is in the pipes by now.
        let over = !fds[0].revents().is_empty();
        let mut failed = None;
        pipes.retain_mut(|pipe| match drain(pipe, to) {
            Ok(more) => more,
            Err(error) => {
                failed = Some(error);
                false
            }
        });
        if let Some(error) = failed {
            return Err(error);
        }
        if over {
            return Ok(());
        }
    }
}

fn readable(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::from_borrowed_fd(fd, PollFlags::IN)
}

/// Sends on what is in the pipe now; tells whether there may be more later.
///
/// Takes more than a pipe holds, but not without end: its writer may be a background process that never rests.
fn drain(pipe: &mut Pipe, to: &TcpStream) -> io::Result<bool> {
    let mut bytes = vec![0; 64 << 10];
    for _ in 0..READS_AT_ONCE {
        match pipe.from.read(&mut bytes) {
            Ok(0) => return Ok(false),
            Ok(length) => (pipe.wrap)(bytes[..length].to_vec()).write(to)?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A terminal whose other side is closed.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
