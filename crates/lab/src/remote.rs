//! The lab's side of the conversation with an agent.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Output};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::protocol::{Frame, MAX_CONTENT, Program, Request, Size, Welcome};

/// The most bytes of one program's output that are kept.
const MAX_OUTPUT: usize = 256 << 20;

/// A way to reach an agent.
pub(crate) trait Dial: Send + Sync {
    /// A new connection to the agent.
    fn dial(&self) -> Result<Arc<TcpStream>>;

    /// Who answers there, for error texts.
    fn name(&self) -> &str;
}

/// What does the work in a host: runs programs, takes and gives files.
#[derive(Clone)]
pub struct Agent {
    dial: Arc<dyn Dial>,
}

impl Agent {
    pub(crate) fn new(dial: Arc<dyn Dial>) -> Self {
        Self { dial }
    }

    pub(crate) fn dial(&self) -> Result<Arc<TcpStream>> {
        self.dial.dial()
    }

    fn ask(&self, request: Request) -> Result<Arc<TcpStream>> {
        let stream = self.dial.dial()?;
        Frame::Request(request)
            .write(&*stream)
            .with_context(|| format!("lost {}", self.dial.name()))?;
        Ok(stream)
    }

    /// Asks whether the agent is there.
    pub(crate) fn hello(&self, limit: Duration) -> Result<Welcome> {
        let stream = self.ask(Request::Hello)?;
        stream.set_read_timeout(Some(limit))?;
        welcomed(&stream)
    }

    /// By how many seconds the clock of where the agent runs is ahead of ours: good to half of the shortest of a few
    /// round trips.
    ///
    /// # Errors
    /// Where the agent does not answer.
    pub fn clock_ahead(&self) -> Result<f64> {
        let mut best: Option<(Duration, f64)> = None;
        for _ in 0..5 {
            let stream = self.dial.dial()?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            // It starts a thread for a connection: that is not to count as the way there.
            thread::sleep(Duration::from_millis(20));
            let (began, ours) = (Instant::now(), SystemTime::now());
            Frame::Request(Request::Hello).write(&*stream)?;
            let welcome = welcomed(&stream)?;
            let took = began.elapsed();
            if best.is_none_or(|(shortest, _)| took < shortest) {
                let ours = ours.duration_since(SystemTime::UNIX_EPOCH)? + took / 2;
                let theirs = Duration::from_micros(welcome.clock_us);
                best = Some((took, theirs.as_secs_f64() - ours.as_secs_f64()));
            }
        }
        Ok(best.map_or(0.0, |(_, ahead)| ahead))
    }

    /// Runs a program to its end. Its standard input is empty.
    ///
    /// # Errors
    /// Where the program cannot be started, or the host is lost meanwhile. A status that says failure is no error.
    pub fn run(&self, arguments: &[&str]) -> Result<Output> {
        let remote = self.spawn(arguments)?;
        remote.close_input()?;
        remote.wait()
    }

    /// Runs a script with `sh -euc` and returns its standard output.
    ///
    /// # Errors
    /// As [`Agent::run`], and where the script ends with another status than 0; the error holds what it wrote.
    pub fn sh(&self, script: &str) -> Result<String> {
        let output = self.run(&["sh", "-euc", script])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(text);
        }
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!(
            "on {} `{script}` ended with {}: {}{}",
            self.dial.name(),
            output.status,
            text,
            errors.trim_end()
        )
    }

    /// Starts a program that has three pipes and leads a process group of its own.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn spawn(&self, arguments: &[&str]) -> Result<Remote> {
        let arguments = arguments.iter().map(ToString::to_string).collect();
        self.start(
            Program {
                arguments,
                terminal: None,
            },
            Sink::Keep,
        )
    }

    /// Starts a program, and has `sink` take what it writes.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn start(&self, program: Program, sink: Sink) -> Result<Remote> {
        let shown = program.arguments.join(" ");
        let stream = self.ask(Request::Run(program))?;
        Remote::new(self.clone(), stream, sink)
            .with_context(|| format!("on {}: `{shown}`", self.dial.name()))
    }

    fn signal(&self, pid: i32, signal: i32) -> Result<()> {
        let stream = self.ask(Request::Signal { pid, signal })?;
        done(&stream)
            .map(drop)
            .with_context(|| format!("on {}", self.dial.name()))
    }

    /// Puts a file of this computer into the host, with its permissions, replacing what is there in one step.
    ///
    /// # Errors
    /// Where the file cannot be read, or not be written there (no space, for example).
    pub fn push(&self, local: &Path, remote: &str) -> Result<()> {
        let mut file =
            File::open(local).with_context(|| format!("cannot open {}", local.display()))?;
        let metadata = file.metadata()?;
        ensure!(metadata.is_file(), "{} is no file", local.display());
        let mode = metadata.permissions().mode() & 0o7777;
        self.put(&mut file, metadata.len(), mode, remote)
            .with_context(|| {
                format!(
                    "cannot push {} to {}:{remote}",
                    local.display(),
                    self.dial.name()
                )
            })
    }

    /// Puts these bytes into the host as a file.
    ///
    /// # Errors
    /// Where the file cannot be written there.
    pub fn write(&self, content: &[u8], mode: u32, remote: &str) -> Result<()> {
        self.put(&mut &*content, content.len() as u64, mode, remote)
            .with_context(|| format!("cannot write {}:{remote}", self.dial.name()))
    }

    fn put(&self, from: &mut dyn Read, size: u64, mode: u32, remote: &str) -> Result<()> {
        let stream = self.ask(Request::Put {
            path: remote.into(),
            mode,
            size,
        })?;
        let mut bytes = vec![0; MAX_CONTENT];
        let mut left = size;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(MAX_CONTENT);
            let length = from.read(&mut bytes[..wanted])?;
            ensure!(length > 0, "the file became shorter meanwhile");
            if let Err(error) = Frame::Data(bytes[..length].to_vec()).write(&*stream) {
                // The agent gave up; its reason is worth more than "broken pipe".
                return done(&stream).map(drop).and(Err(error.into()));
            }
            left -= length as u64;
        }
        done(&stream).map(drop)
    }

    /// Takes a file out of the host, with its permissions.
    ///
    /// # Errors
    /// Where the file cannot be read there, or not be written here.
    pub fn pull(&self, remote: &str, local: &Path) -> Result<()> {
        let result = || {
            let stream = self.ask(Request::Get {
                path: remote.into(),
            })?;
            let mut from = BufReader::with_capacity(64 << 10, &*stream);
            let mut file = BufWriter::new(File::create(local)?);
            loop {
                match Frame::read(&mut from)? {
                    Some(Frame::Data(bytes)) => file.write_all(&bytes)?,
                    Some(Frame::Done(mode)) => {
                        file.flush()?;
                        return Ok(fs::set_permissions(
                            local,
                            fs::Permissions::from_mode(mode),
                        )?);
                    }
                    answer => return Err(unexpected(answer)),
                }
            }
        };
        result().with_context(|| {
            format!(
                "cannot pull {}:{remote} to {}",
                self.dial.name(),
                local.display()
            )
        })
    }
}

fn done(stream: &TcpStream) -> Result<u32> {
    match Frame::read(stream)? {
        Some(Frame::Done(value)) => Ok(value),
        answer => Err(unexpected(answer)),
    }
}

/// The answer to `Hello`.
fn welcomed(stream: &TcpStream) -> Result<Welcome> {
    match Frame::read(stream)? {
        Some(Frame::Welcome(welcome)) => Ok(welcome),
        answer => Err(unexpected(answer)),
    }
}

fn unexpected(answer: Option<Frame>) -> anyhow::Error {
    match answer {
        None => anyhow!("the connection to the host ended"),
        Some(Frame::Failed(reason)) => anyhow!(reason),
        Some(frame) => anyhow!("the agent gave an answer to another question: {frame:?}"),
    }
}

/// Where a program's output goes.
pub enum Sink {
    /// It is kept until it is asked for.
    Keep,
    /// It goes to these as it comes: standard output (or the terminal), and standard error.
    Pass(Box<dyn Write + Send>, Box<dyn Write + Send>),
}

/// A program that runs in a host. It is killed when this is dropped before the program's end.
pub struct Remote {
    agent: Agent,
    stream: Arc<TcpStream>,
    pid: i32,
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    output: Vec<u8>,
    errors: Vec<u8>,
    /// The end: a status, or why there is none.
    end: Option<Result<ExitStatus, String>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Remote {
    fn new(agent: Agent, stream: Arc<TcpStream>, sink: Sink) -> Result<Self> {
        let pid = match Frame::read(&*stream)? {
            Some(Frame::Started(pid)) => pid,
            answer => return Err(unexpected(answer)),
        };
        let shared = Arc::new(Shared::default());
        let reader = {
            let (stream, shared) = (Arc::clone(&stream), Arc::clone(&shared));
            thread::Builder::new()
                .name("remote".into())
                .spawn(move || {
                    let end = follow(&stream, &shared, sink).map_err(|error| format!("{error:#}"));
                    shared.lock().end = Some(end);
                    shared.changed.notify_all();
                })?
        };
        Ok(Self {
            agent,
            stream,
            pid,
            shared,
            reader: Some(reader),
        })
    }

    /// The number of its process in the host.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Writes to its standard input, or types at its terminal.
    ///
    /// # Errors
    /// Where the host is lost.
    pub fn input(&self, bytes: &[u8]) -> io::Result<()> {
        bytes
            .chunks(MAX_CONTENT)
            .try_for_each(|chunk| Frame::Input(chunk.to_vec()).write(&*self.stream))
    }

    /// Ends its standard input.
    ///
    /// # Errors
    /// Where the host is lost.
    pub fn close_input(&self) -> io::Result<()> {
        self.input_end().or_else(|error| match self.status() {
            // It had no need of input.
            Some(_) => Ok(()),
            None => Err(error),
        })
    }

    fn input_end(&self) -> io::Result<()> {
        Frame::InputEnd.write(&*self.stream)
    }

    /// Tells it the new size of its terminal.
    ///
    /// # Errors
    /// Where the host is lost.
    pub fn resize(&self, size: Size) -> io::Result<()> {
        Frame::Resize(size).write(&*self.stream)
    }

    /// Sends a signal to its process group.
    ///
    /// # Errors
    /// Where it has ended, or the host is lost.
    pub fn signal(&self, signal: i32) -> Result<()> {
        self.agent.signal(self.pid, signal)
    }

    /// Kills its process group.
    ///
    /// # Errors
    /// As [`Remote::signal`].
    pub fn kill(&self) -> Result<()> {
        self.signal(libc::SIGKILL)
    }

    /// Its status, if it has ended.
    pub fn status(&self) -> Option<ExitStatus> {
        self.shared
            .lock()
            .end
            .as_ref()
            .and_then(|end| end.as_ref().ok().copied())
    }

    /// What it wrote to its standard output so far, where that is kept.
    pub fn output(&self) -> Vec<u8> {
        self.shared.lock().output.clone()
    }

    /// What it wrote to its standard error so far, where that is kept.
    pub fn errors(&self) -> Vec<u8> {
        self.shared.lock().errors.clone()
    }

    /// Waits for `text` in what it writes, to either.
    ///
    /// # Errors
    /// Where the program ends first, or the limit passes; the error holds what it wrote.
    pub fn wait_for(&self, text: &str, limit: Duration) -> Result<()> {
        let has = |bytes: &[u8]| {
            bytes
                .windows(text.len().max(1))
                .any(|window| window == text.as_bytes())
        };
        let found = |state: &State| has(&state.output) || has(&state.errors);
        let state = self.wait_until(limit, |state| found(state) || state.end.is_some());
        if found(&state) {
            return Ok(());
        }
        let written = [state.output.as_slice(), state.errors.as_slice()].concat();
        let why = match &state.end {
            None => format!("did not come within {limit:?}"),
            Some(Ok(status)) => format!("did not come before the program's end ({status})"),
            Some(Err(error)) => format!("did not come: {error}"),
        };
        bail!(
            "{text:?} {why}; the program wrote:\n{}",
            String::from_utf8_lossy(&written)
        )
    }

    /// Waits at most `limit` for its end.
    ///
    /// # Errors
    /// Where the host is lost.
    pub fn wait_at_most(&self, limit: Duration) -> Result<Option<ExitStatus>> {
        let state = self.wait_until(limit, |state| state.end.is_some());
        match &state.end {
            None => Ok(None),
            Some(Ok(status)) => Ok(Some(*status)),
            Some(Err(error)) => bail!("{error}"),
        }
    }

    /// Waits for its end, and leaves its output where it is.
    ///
    /// # Errors
    /// Where the host is lost.
    pub fn wait_for_end(&self) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.wait_at_most(Duration::from_hours(1))? {
                return Ok(status);
            }
        }
    }

    fn wait_until(&self, limit: Duration, done: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.lock();
        while !done(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        state
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// Where the host is lost.
    pub fn wait(mut self) -> Result<Output> {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        let mut state = self.shared.lock();
        match state.end.take() {
            Some(Ok(status)) => Ok(Output {
                status,
                stdout: std::mem::take(&mut state.output),
                stderr: std::mem::take(&mut state.errors),
            }),
            Some(Err(error)) => {
                Err(anyhow!(error)).with_context(|| format!("lost {}", self.agent.dial.name()))
            }
            None => bail!(
                "the thread that listened to {} panicked",
                self.agent.dial.name()
            ),
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // The agent takes this as the order to kill.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Takes what the agent sends until the program's end.
fn follow(stream: &TcpStream, shared: &Shared, mut sink: Sink) -> Result<ExitStatus> {
    let mut from = BufReader::with_capacity(64 << 10, stream);
    loop {
        match (Frame::read(&mut from)?, &mut sink) {
            (Some(Frame::Output(bytes)), Sink::Keep) => keep(&mut shared.lock().output, &bytes)?,
            (Some(Frame::Errors(bytes)), Sink::Keep) => keep(&mut shared.lock().errors, &bytes)?,
            (Some(Frame::Output(bytes)), Sink::Pass(to, _))
            | (Some(Frame::Errors(bytes)), Sink::Pass(_, to)) => {
                to.write_all(&bytes)?;
                to.flush()?;
            }
            (Some(Frame::Exited(status)), _) => return Ok(ExitStatus::from_raw(status)),
            (answer, _) => return Err(unexpected(answer)),
        }
        shared.changed.notify_all();
    }
}

fn keep(kept: &mut Vec<u8>, bytes: &[u8]) -> Result<()> {
    ensure!(
        kept.len() + bytes.len() <= MAX_OUTPUT,
        "the program wrote more than {} MiB",
        MAX_OUTPUT >> 20
    );
    kept.extend_from_slice(bytes);
    Ok(())
}
