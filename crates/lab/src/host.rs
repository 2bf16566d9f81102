//! One host of the lab, and what can happen to it.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Output;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::links::Port;
use crate::network::{Direction, Network};
use crate::process::Watched;
use crate::protocol::PORT;
use crate::qemu::Qemu;
use crate::remote::{Agent, Dial, Remote};
use crate::space::Space;

/// How long a host may take until its agent answers. A computer with nothing else to do needs 5 to 8 seconds.
const UP_WITHIN: Duration = Duration::from_mins(3);

/// How long the agent of a host that is up may take to accept a connection.
const DIAL_WITHIN: Duration = Duration::from_secs(10);

/// How many connections are remembered, to end them when the power goes.
const REMEMBERED: usize = 256;

/// What a host is made of.
#[derive(Debug)]
pub(crate) enum Body {
    Qemu(Qemu),
    Space(Space),
}

/// A host: a computer of its own, as far as the programs in it can tell.
pub struct Host {
    n: usize,
    body: Body,
    line: Arc<Line>,
    agent: Agent,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    process: Option<Watched>,
    cuts: Vec<(Network, Direction)>,
    up_after: Option<Duration>,
}

impl Host {
    /// Host `n`, with the power off.
    pub(crate) fn new(n: usize, body: Body) -> Self {
        let address = SocketAddr::from((Network::Control.address(suffix(n)), PORT));
        let line = Arc::new(Line {
            name: format!("host h{n}"),
            address,
            open: Mutex::default(),
        });
        let agent = Agent::new(Arc::clone(&line) as Arc<dyn Dial>);
        Self {
            n,
            body,
            line,
            agent,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its number, from 1.
    pub fn number(&self) -> usize {
        self.n
    }

    /// Its name: `h1`, `h2` and so on.
    pub fn name(&self) -> &str {
        self.line.name.trim_start_matches("host ")
    }

    /// Its address on a network; on the service network it is that of its bridge `br0`.
    pub fn address(&self, network: Network) -> Ipv4Addr {
        network.address(suffix(self.n))
    }

    /// The interface of the lab's own namespace that leads to it: what the host sends on this network comes in there, seen
    /// from outside the host.
    pub fn port(&self, network: Network) -> String {
        network.port(self.n)
    }

    /// The agent in it.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// Runs a program to its end: see [`Agent::run`].
    ///
    /// # Errors
    /// Those of [`Agent::run`].
    pub fn run(&self, arguments: &[&str]) -> Result<Output> {
        self.agent.run(arguments)
    }

    /// Runs a script and returns its standard output: see [`Agent::sh`].
    ///
    /// # Errors
    /// Those of [`Agent::sh`].
    pub fn sh(&self, script: &str) -> Result<String> {
        self.agent.sh(script)
    }

    /// Starts a program: see [`Agent::spawn`].
    ///
    /// # Errors
    /// Those of [`Agent::spawn`].
    pub fn spawn(&self, arguments: &[&str]) -> Result<Remote> {
        self.agent.spawn(arguments)
    }

    /// Puts a file into it: see [`Agent::push`].
    ///
    /// # Errors
    /// Those of [`Agent::push`].
    pub fn push(&self, local: &Path, remote: &str) -> Result<()> {
        self.agent.push(local, remote)
    }

    /// Takes a file out of it: see [`Agent::pull`].
    ///
    /// # Errors
    /// Those of [`Agent::pull`].
    pub fn pull(&self, remote: &str, local: &Path) -> Result<()> {
        self.agent.pull(remote, local)
    }

    /// Whether it has power.
    pub fn is_on(&self) -> bool {
        self.state()
            .process
            .as_ref()
            .is_some_and(|process| process.ended().is_none())
    }

    /// How long it took from power on until its agent answered, the last time.
    pub fn up_after(&self) -> Option<Duration> {
        self.state().up_after
    }

    /// The end of what it wrote to its serial console.
    pub fn last_words(&self) -> String {
        match &self.body {
            Body::Qemu(qemu) => qemu.last_words(),
            Body::Space(space) => space.last_words(),
        }
    }

    /// Turns the power on, and waits until the host is up. All plugs are in; cuts that were not mended are still there.
    ///
    /// # Errors
    /// Where it is on already, or does not come up; the error ends with what it said last.
    pub fn power_on(&self) -> Result<()> {
        let started = Instant::now();
        let process = {
            let mut state = self.state();
            let on = state
                .process
                .as_ref()
                .is_some_and(|process| process.ended().is_none());
            ensure!(!on, "{} is on already", self.name());
            let line = Arc::clone(&self.line);
            let at_end = move |_: &str| line.hang_up();
            let process = match &self.body {
                Body::Qemu(qemu) => qemu.start(at_end)?,
                Body::Space(space) => space.start(at_end)?,
            };
            for (network, direction) in &state.cuts {
                Port::new(*network, self.n).cut(*direction)?;
            }
            state.up_after = None;
            state.process.insert(process).clone()
        };
        self.wait_until_up(&process, started + UP_WITHIN)?;
        self.state().up_after = Some(started.elapsed());
        Ok(())
    }

    fn wait_until_up(&self, process: &Watched, deadline: Instant) -> Result<()> {
        loop {
            // A connection that is asked for too early is answered by nobody: soon another one.
            let error = match self.line.connect(Duration::from_millis(250)) {
                Ok(stream) => {
                    match Agent::new(Arc::new(Ready(stream))).hello(Duration::from_secs(2)) {
                        Ok(_) => return Ok(()),
                        Err(error) => error,
                    }
                }
                Err(error) => error.into(),
            };
            let why = if let Some(how) = process.ended() {
                how
            } else if Instant::now() > deadline {
                format!(
                    "its agent does not answer within {} s: {error:#}",
                    UP_WITHIN.as_secs()
                )
            } else {
                std::thread::sleep(Duration::from_millis(25));
                continue;
            };
            bail!(
                "{} did not come up: {why}\nits last words:\n{}",
                self.line.name,
                self.last_words()
            );
        }
    }

    /// Power loss: from one moment to the next nothing of the host is left, and nothing in it gets to say so.
    ///
    /// # Errors
    /// Where it cannot be turned off. One that is off already stays off.
    pub fn power_off(&self) -> Result<()> {
        let mut state = self.state();
        if let Some(process) = state.process.take() {
            match &self.body {
                Body::Qemu(_) => process.kill(),
                Body::Space(space) => space.kill(&process),
            }
            .with_context(|| format!("cannot turn off {}", self.name()))?;
        }
        self.line.hang_up();
        Ok(())
    }

    /// The host stops in its tracks; its links stay up and its memory stays as it is.
    ///
    /// # Errors
    /// Where it is off.
    pub fn hang(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// A host that hung goes on where it was.
    ///
    /// # Errors
    /// Where it is off.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let state = self.state();
        let process = state
            .process
            .as_ref()
            .with_context(|| format!("{} is off", self.name()))?;
        match &self.body {
            Body::Qemu(_) => process.signal(signal),
            Body::Space(space) => space.signal_all(process, signal),
        }
        .with_context(|| format!("{} cannot be stopped or continued", self.name()))
    }

    /// A silent cut: no frame passes any more, and the host's interface still has its carrier.
    ///
    /// # Errors
    /// Where this computer's kernel cannot do that.
    pub fn cut(&self, network: Network) -> Result<()> {
        self.cut_one_way(network, Direction::Both)
    }

    /// A silent cut of one direction, or both.
    ///
    /// # Errors
    /// Where this computer's kernel cannot do that.
    pub fn cut_one_way(&self, network: Network, direction: Direction) -> Result<()> {
        let mut state = self.state();
        Port::new(network, self.n).cut(direction)?;
        state.cuts.retain(|(cut, _)| *cut != network);
        state.cuts.push((network, direction));
        Ok(())
    }

    /// Undoes every silent cut of this network.
    ///
    /// # Errors
    /// Where the bridge refuses.
    pub fn mend(&self, network: Network) -> Result<()> {
        let mut state = self.state();
        state.cuts.retain(|(cut, _)| *cut != network);
        Port::new(network, self.n).mend()
    }

    /// A visible cut: the host's interface loses its carrier.
    ///
    /// # Errors
    /// Where the host is off.
    pub fn unplug(&self, network: Network) -> Result<()> {
        self.set_link(network, false)
    }

    /// Puts in a plug that was pulled.
    ///
    /// # Errors
    /// Where the host is off.
    pub fn plug(&self, network: Network) -> Result<()> {
        self.set_link(network, true)
    }

    fn set_link(&self, network: Network, up: bool) -> Result<()> {
        ensure!(self.is_on(), "{} is off", self.name());
        match &self.body {
            Body::Qemu(qemu) => qemu.set_link(network, up),
            Body::Space(space) => space.set_link(network, up),
        }
    }

    /// Loses this share of what the host sends on a network, and delays the rest. Takes the place of what was set before.
    ///
    /// # Errors
    /// Where the host is off, or its kernel has no netem.
    pub fn impair(&self, network: Network, loss_percent: f64, delay: Duration) -> Result<()> {
        ensure!(
            (0.0..=100.0).contains(&loss_percent),
            "a loss of {loss_percent} %"
        );
        let (loss, delay) = (
            format!("{loss_percent}%"),
            format!("{}us", delay.as_micros()),
        );
        // So many frames may be under way: 5 ms of a gigabit in the smallest frames, and more than enough of others.
        self.tc(&[
            "replace",
            "dev",
            network.interface(),
            "root",
            "netem",
            "limit",
            "10000",
            "loss",
            &loss,
            "delay",
            &delay,
        ])
    }

    /// Undoes [`Host::impair`].
    ///
    /// # Errors
    /// Where the host is off, or nothing was set.
    pub fn clear(&self, network: Network) -> Result<()> {
        self.tc(&["del", "dev", network.interface(), "root"])
    }

    fn tc(&self, arguments: &[&str]) -> Result<()> {
        let output = self.run(&[&["tc", "qdisc"], arguments].concat())?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "`tc qdisc {}` on {}: {}",
            arguments.join(" "),
            self.name(),
            errors.trim()
        );
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Nothing to be done about an error here; the PID namespace takes what is left.
        let _ = self.power_off();
        for network in Network::ALL {
            Port::new(network, self.n).delete();
        }
    }
}

/// The last part of host `n`'s addresses. Labs have few hosts; the configuration was checked.
pub(crate) fn suffix(n: usize) -> u8 {
    u8::try_from(n).unwrap_or(u8::MAX)
}

/// The way to a host's agent.
struct Line {
    name: String,
    address: SocketAddr,
    open: Mutex<Vec<Arc<TcpStream>>>,
}

impl Line {
    fn connect(&self, limit: Duration) -> io::Result<Arc<TcpStream>> {
        let stream = TcpStream::connect_timeout(&self.address, limit)?;
        stream.set_nodelay(true)?;
        Ok(Arc::new(stream))
    }

    fn open(&self) -> MutexGuard<'_, Vec<Arc<TcpStream>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends every conversation: a host without power does not even say that it is gone.
    fn hang_up(&self) {
        for stream in self.open().drain(..) {
            // One that is over already needs no end.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Dial for Line {
    fn dial(&self) -> Result<Arc<TcpStream>> {
        let stream = self
            .connect(DIAL_WITHIN)
            .with_context(|| format!("{} does not answer on the control network", self.name))?;
        let mut open = self.open();
        open.retain(|stream| Arc::strong_count(stream) > 1);
        ensure!(
            open.len() < REMEMBERED,
            "{} has {REMEMBERED} conversations already",
            self.name
        );
        open.push(Arc::clone(&stream));
        Ok(stream)
    }

    fn name(&self) -> &str {
        &self.name
    }
}

/// A connection that is there already.
struct Ready(Arc<TcpStream>);

impl Dial for Ready {
    fn dial(&self) -> Result<Arc<TcpStream>> {
        Ok(Arc::clone(&self.0))
    }

    fn name(&self) -> &'static str {
        "the host"
    }
}
