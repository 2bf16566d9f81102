//! The thread that holds the machine: waits for what happens and decides what follows from it.

use super::{
    guest::{Boot, Guest},
    protected::News,
    shared::Shared,
    waiters::Waiters,
};
use crate::{
    api::model::{Command, Refusal, State},
    config::{After, MachineFile},
    exit::{Code, Failure},
};
use anyhow::Context as _;
use romulus_machine::Exit;
use signal_hook::consts::SIGHUP;
use std::{
    sync::{Arc, mpsc::Receiver},
    thread,
    time::{Duration, Instant},
};

/// A guest's end is waited for in pieces of this length; it is told at once.
const WATCH: Duration = Duration::from_hours(1);

/// Why something cannot be done.
pub(super) const UNPROTECTED: &str = "the machine is not protected: its file has no [protection]";

/// What may happen.
#[derive(Debug)]
pub(crate) enum Event {
    /// The engine of a protected machine has something to say.
    News(News),
    /// The guest ended by itself.
    Exit(Exit),
    /// A signal came.
    Signal(i32),
    /// The control interface asks for something.
    Command(Command),
    /// The operator presses the guest's power button.
    PowerButton,
    /// The operator stops the machine in order.
    Stop,
    /// The operator stops the machine by force.
    Force,
}

/// How a machine ended, with the exit code for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    pub(super) code: Code,
    pub(super) text: String,
}

impl End {
    /// An end and what is said about it.
    pub(super) fn new(code: Code, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }
}

/// Holds the machine through all its lives.
pub(super) struct Supervisor {
    shared: Arc<Shared>,
    inbox: Receiver<Event>,
    boot: Boot,
    /// The console is a terminal: SIGHUP means that it is gone.
    interactive: bool,
    /// When the machine is stopped by force; `None` while nobody wants it stopped.
    deadline: Option<Instant>,
    waiters: Waiters,
}

/// What follows from an event.
pub(super) enum Step {
    /// The machine goes on.
    Continue,
    /// The guest is started anew in this process.
    Restart,
    /// The process ends.
    End(End),
}

impl Supervisor {
    pub(super) fn new(
        shared: Arc<Shared>,
        inbox: Receiver<Event>,
        boot: Boot,
        interactive: bool,
    ) -> Self {
        Self {
            shared,
            inbox,
            boot,
            interactive,
            deadline: None,
            waiters: Waiters::default(),
        }
    }

    /// Runs the machine until it has ended.
    pub(super) fn run(mut self) -> Result<End, Failure> {
        let result = self.lives();
        self.shared.set_port(None);
        self.waiters.tell(&result);
        result
    }

    fn lives(&mut self) -> Result<End, Failure> {
        loop {
            let mut guest = (self.boot)()?;
            self.shared.set_port(Some(guest.port()));
            watch(&*guest, &self.shared)?;
            if self.deadline.is_none() {
                self.shared.set_state(State::Running);
            }
            tracing::info!("machine {} runs", self.shared.file.machine.name);
            let end = loop {
                let event = self.next();
                match self.handle(&mut *guest, event) {
                    Step::Continue => {}
                    Step::Restart => break None,
                    Step::End(end) => break Some(end),
                }
            };
            self.shared.set_port(None);
            // Its taps and disks must be free before the next life takes them.
            drop(guest);
            if let Some(end) = end {
                return Ok(end);
            }
            self.shared.count_restart();
            self.shared.set_state(State::Starting);
        }
    }

    /// Waits for the next event; `None` when the time for an orderly stop is over.
    fn next(&self) -> Option<Event> {
        match self.deadline {
            // The shared state keeps a sender: the channel never closes.
            None => self.inbox.recv().ok(),
            Some(deadline) => self
                .inbox
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
                .ok(),
        }
    }

    fn handle(&mut self, guest: &mut dyn Guest, event: Option<Event>) -> Step {
        match event {
            None => Step::End(End::new(
                Code::Forced,
                "did not stop in time and was stopped by force",
            )),
            Some(Event::Force) => Step::End(End::new(Code::Forced, "was stopped by force")),
            Some(Event::Exit(exit)) => self.exited(exit),
            Some(Event::Signal(SIGHUP)) if !self.interactive => {
                tracing::info!("opening the console log anew");
                self.shared.hub.reopen();
                Step::Continue
            }
            Some(Event::Signal(signal)) if self.deadline.is_some() => Step::End(End::new(
                Code::Forced,
                format!("was stopped by force: signal {signal} came while it was stopping"),
            )),
            Some(Event::Signal(_) | Event::Stop) => self.stop(guest, None),
            Some(Event::PowerButton) => {
                press(guest);
                Step::Continue
            }
            // Only protected machines have an engine, and another supervisor.
            Some(Event::News(_)) => Step::Continue,
            Some(Event::Command(command)) => self.command(guest, command),
        }
    }

    fn command(&mut self, guest: &mut dyn Guest, command: Command) -> Step {
        let (reply, result) = match command {
            Command::Stop(timeout, reply) => {
                self.waiters.add(reply);
                return self.stop(guest, timeout);
            }
            Command::PowerButton(reply) => match self.shared.state() {
                State::Paused => (
                    reply,
                    Err(Refusal::new(
                        "the machine is paused and cannot see its power button; resume it first",
                    )),
                ),
                _ => (reply, {
                    press(guest);
                    Ok(())
                }),
            },
            Command::Pause(reply) if self.deadline.is_some() => {
                (reply, Err(Refusal::new("the machine is stopping")))
            }
            Command::Pause(reply) => (reply, self.pause(guest)),
            Command::Resume(reply) => (reply, self.resume(guest)),
            Command::Promote(reply) | Command::Switchover(reply) => {
                (reply, Err(Refusal::new(UNPROTECTED)))
            }
            Command::Reload(reply) => {
                // Who asked may have left.
                let _ = reply.send(Err(Refusal::new(UNPROTECTED)));
                return Step::Continue;
            }
        };
        // Who asked may have left.
        let _ = reply.send(result);
        Step::Continue
    }

    fn pause(&self, guest: &mut dyn Guest) -> Result<(), Refusal> {
        guest
            .pause()
            .map_err(|error| Refusal::new(format!("{error:#}")))?;
        self.shared.set_state(State::Paused);
        Ok(())
    }

    fn resume(&self, guest: &mut dyn Guest) -> Result<(), Refusal> {
        guest
            .resume()
            .map_err(|error| Refusal::new(format!("{error:#}")))?;
        self.shared.set_state(if self.deadline.is_some() {
            State::Stopping
        } else {
            State::Running
        });
        Ok(())
    }

    /// Begins to stop in order. A second wish may shorten the time but not lengthen it.
    fn stop(&mut self, guest: &mut dyn Guest, timeout: Option<Duration>) -> Step {
        let timeout = timeout.unwrap_or(self.shared.file.stop_timeout);
        // A time beyond what the clock can say is no limit worth keeping; a day is.
        let deadline = Instant::now() + timeout.min(Duration::from_hours(24));
        let first = self.deadline.is_none();
        self.deadline = Some(
            self.deadline
                .map_or(deadline, |earlier| earlier.min(deadline)),
        );
        if first {
            if let Err(refusal) = self.resume(guest) {
                return Step::End(End::new(
                    Code::Forced,
                    format!(
                        "was paused and could not go on to stop in order: {}",
                        refusal.error
                    ),
                ));
            }
            self.shared.set_state(State::Stopping);
            tracing::info!(
                "stopping; by force after {}",
                humantime::format_duration(timeout)
            );
            press(guest);
        }
        Step::Continue
    }

    fn exited(&self, exit: Exit) -> Step {
        let stopping = self.deadline.is_some();
        after(exit, stopping, &self.shared.file)
    }
}

/// What follows from a guest's end, as its file has it.
pub(super) fn after(exit: Exit, stopping: bool, file: &MachineFile) -> Step {
    match exit {
        Exit::PoweredOff if stopping => Step::End(End::new(Code::Done, "stopped in order")),
        Exit::PoweredOff => Step::End(End::new(Code::Done, "the guest switched itself off")),
        Exit::Reset if stopping => Step::End(End::new(
            Code::Done,
            "stopped in order (the guest asked for a reset)",
        )),
        Exit::Reset if file.on_reboot == After::Restart => {
            tracing::info!("the guest asked for a reset; starting it anew");
            Step::Restart
        }
        Exit::Reset => Step::End(End::new(Code::Reset, "the guest asked for a reset")),
        Exit::Panicked if file.on_panic == After::Restart && !stopping => {
            tracing::error!("the guest's kernel panicked; starting it anew");
            Step::Restart
        }
        Exit::Panicked => Step::End(End::new(
            Code::Panicked,
            "the guest's kernel panicked; its last words are in the console's output",
        )),
        Exit::Failed(why) => Step::End(End::new(
            Code::VcpuFailed,
            format!("a vCPU cannot go on: {why}"),
        )),
        other => Step::End(End::new(
            Code::Failed,
            format!("ended in a way unknown to this version: {other:?}"),
        )),
    }
}

fn press(guest: &dyn Guest) {
    tracing::info!("pressing the guest's power button");
    guest.port().press_power_button();
}

/// Starts the thread that waits for the guest's end. It ends with the guest.
fn watch(guest: &dyn Guest, shared: &Shared) -> anyhow::Result<()> {
    let port = guest.port();
    let events = shared.events.clone();
    let wait = move || {
        loop {
            if let Some(exit) = port.wait_exit(WATCH) {
                // Nobody listens any more when the process is ending.
                let _ = events.send(Event::Exit(exit));
                return;
            }
        }
    };
    thread::Builder::new()
        .name("watch".into())
        .spawn(wait)
        .context("cannot start a thread to watch the guest")?;
    Ok(())
}
