//! The thread that holds a protected machine: it drives the engine, which decides whether the machine runs here.
//!
//! A machine that is stopped on purpose must not come back on the other host. So the process ends only when the engine
//! says that the arbiter's record has no heir any more; when the arbiter is out of reach, it waits, and says so.

use super::{
    cover::{Cover, Protector},
    guest::Port,
    reload::{self, Read},
    shared::Shared,
    supervisor::{self, End, Event, Step},
    waiters::Waiters,
};
use crate::{
    api::model::{Command, Refusal, Reloaded, Reply, State},
    config::{MachineFile, Protection},
    exit::{Code, Failure},
};
use romulus_engine::Ended as EngineEnded;
use romulus_protocol::host::RoleName;
use signal_hook::consts::SIGHUP;
use std::{
    sync::{
        Arc,
        mpsc::{self, Receiver},
    },
    time::{Duration, Instant},
};

/// How often a stop that waits for the arbiter says so.
const REMIND: Duration = Duration::from_secs(10);

/// Starts an engine, whose news come as events.
pub(super) type Start = Box<dyn FnMut(mpsc::Sender<Event>) -> Result<Arc<dyn Protector>, Failure>>;

/// What an engine tells its supervisor.
pub(crate) enum News {
    /// The machine runs here from now on.
    Running {
        /// The term.
        term: u64,
        /// It was taken over from the other host.
        taken_over: bool,
        /// The guest.
        port: Arc<dyn Port>,
    },
    /// No machine runs here any more.
    Idle,
    /// The machine is protected, or no longer.
    Protected(bool),
    /// A switchover came to nothing: why the machine stays.
    Stays(String),
    /// The engine has ended.
    Ended(EngineEnded),
}

impl std::fmt::Debug for News {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Running { term, .. } => write!(f, "Running in term {term}"),
            Self::Idle => f.write_str("Idle"),
            Self::Protected(protected) => write!(f, "Protected({protected})"),
            Self::Stays(why) => write!(f, "Stays: {why}"),
            Self::Ended(ended) => write!(f, "Ended({ended:?})"),
        }
    }
}

/// How far a stop is.
enum Stage {
    /// Nobody wants the machine stopped.
    Up,
    /// The guest's power button was pressed; by force at this moment.
    Stopping(Instant),
    /// The engine was told to end. It then ends like this; the wait for it is told of at the moment.
    Leaving(End, Instant),
}

/// Holds the engine through all lives of the machine in this process.
pub(super) struct Protected {
    shared: Arc<Shared>,
    inbox: Receiver<Event>,
    start: Start,
    /// Reads the machine file again.
    read: Read,
    /// What is in force of it.
    file: MachineFile,
    /// The console is a terminal: SIGHUP means that it is gone.
    interactive: bool,
    stage: Stage,
    /// The guest asked for a reset and does not run again yet.
    resetting: bool,
    waiters: Waiters,
    /// Who has asked for a switchover and waits to hear what comes of it.
    movers: Vec<Reply<()>>,
}

impl Protected {
    pub(super) fn new(
        shared: Arc<Shared>,
        inbox: Receiver<Event>,
        start: Start,
        read: Read,
        interactive: bool,
    ) -> Self {
        Self {
            read,
            file: shared.file.clone(),
            shared,
            inbox,
            start,
            interactive,
            stage: Stage::Up,
            resetting: false,
            waiters: Waiters::default(),
            movers: Vec::new(),
        }
    }

    /// Takes part until the machine has ended, or this host's part in it.
    pub(super) fn run(mut self) -> Result<End, Failure> {
        let result = self.lives();
        self.shared.set_port(None);
        self.shared.set_protector(None);
        self.waiters.tell(&result);
        result
    }

    fn lives(&mut self) -> Result<End, Failure> {
        loop {
            let engine = (self.start)(self.shared.events.clone())?;
            self.shared.set_protector(Some(Arc::clone(&engine)));
            if let Some(protection) = &self.file.protection {
                engine.set_mode(protection.mode.clone());
            }
            if matches!(self.stage, Stage::Up) {
                self.shared.set_state(State::Standby);
            }
            let end = loop {
                let event = self.next();
                match self.handle(&*engine, event) {
                    Next::Continue => {}
                    Next::Restart => break None,
                    Next::End(end) => break Some(end),
                }
            };
            self.shared.set_port(None);
            // Its taps and disks must be free before the next life takes them.
            engine.join();
            if let Some(end) = end {
                return Ok(end);
            }
            self.shared.count_restart();
            self.shared.set_state(State::Starting);
        }
    }

    /// Waits for the next event; `None` when the time of the stage is over.
    fn next(&self) -> Option<Event> {
        match self.stage {
            // The shared state keeps a sender: the channel never closes.
            Stage::Up => self.inbox.recv().ok(),
            Stage::Stopping(until) | Stage::Leaving(_, until) => self
                .inbox
                .recv_timeout(until.saturating_duration_since(Instant::now()))
                .ok(),
        }
    }

    fn handle(&mut self, engine: &dyn Protector, event: Option<Event>) -> Next {
        match event {
            None => self.overdue(engine),
            Some(Event::News(news)) => return self.news(engine, news),
            Some(Event::Force) => self.force(engine, "was stopped by force"),
            Some(Event::Signal(SIGHUP)) if !self.interactive => {
                tracing::info!("opening the console log anew");
                self.shared.hub.reopen();
            }
            Some(Event::Signal(signal)) => match &self.stage {
                Stage::Up => self.stop(engine, None),
                Stage::Stopping(_) => self.force(
                    engine,
                    &format!("was stopped by force: signal {signal} came while it was stopping"),
                ),
                Stage::Leaving(..) => {
                    // The engine ends at once when nobody waits for its word.
                    return Next::End(End::new(
                        Code::Forced,
                        format!(
                            "ended on signal {signal} before the arbiter confirmed it: the other host may take the machine over"
                        ),
                    ));
                }
            },
            Some(Event::Stop) => self.stop(engine, None),
            Some(Event::PowerButton) => {
                self.press();
            }
            Some(Event::Command(command)) => self.command(engine, command),
            // The engine watches the guest.
            Some(Event::Exit(_)) => {}
        }
        Next::Continue
    }

    fn command(&mut self, engine: &dyn Protector, command: Command) {
        let (reply, result) = match command {
            Command::Stop(timeout, reply) => {
                self.waiters.add(reply);
                return self.stop(engine, timeout);
            }
            Command::Switchover(reply) => {
                self.movers.push(reply);
                return engine.switch_over();
            }
            Command::Reload(reply) => {
                // Who asked may have left.
                let _ = reply.send(self.reload(engine));
                return;
            }
            Command::PowerButton(reply) => {
                let pressed = self.press();
                (
                    reply,
                    if pressed {
                        Ok(())
                    } else {
                        Err(Refusal::new(ELSEWHERE))
                    },
                )
            }
            Command::Pause(reply) | Command::Resume(reply) => (
                reply,
                Err(Refusal::new(
                    "a protected machine cannot be paused: the other host would take it over",
                )),
            ),
            Command::Promote(reply) => (
                reply,
                if self.shared.port().is_some() {
                    Err(Refusal::new("the machine runs here already"))
                } else {
                    tracing::warn!(
                        "the operator promotes this host and accepts the loss of newer state"
                    );
                    engine.promote();
                    Ok(())
                },
            ),
        };
        // Who asked may have left.
        let _ = reply.send(result);
    }

    /// Reads the file again and puts its mode in force.
    fn reload(&mut self, engine: &dyn Protector) -> Result<Reloaded, Refusal> {
        let file = (self.read)().map_err(|error| Refusal::new(error.to_string()))?;
        let (mode, reloaded) = reload::changes(&self.file, &file)?;
        for warning in file.protection.iter().flat_map(Protection::warnings) {
            tracing::warn!("{warning}");
        }
        if reloaded.mode_changes {
            tracing::info!("the mode is to be {}", mode.name());
            engine.set_mode(mode.clone());
        }
        if let Some(protection) = &mut self.file.protection {
            protection.mode = mode;
        }
        Ok(reloaded)
    }

    /// Begins to stop in order. A second wish may shorten the time but not lengthen it.
    fn stop(&mut self, engine: &dyn Protector, timeout: Option<Duration>) {
        let timeout = timeout.unwrap_or(self.shared.file.stop_timeout);
        // A time beyond what the clock can say is no limit worth keeping; a day is.
        let deadline = Instant::now() + timeout.min(Duration::from_hours(24));
        match &mut self.stage {
            Stage::Up if self.shared.port().is_none() => {
                self.leave(
                    engine,
                    End::new(Code::Done, "stood by for the other host, and was ended"),
                );
            }
            Stage::Up => {
                tracing::info!(
                    "stopping; by force after {}",
                    humantime::format_duration(timeout)
                );
                self.stage = Stage::Stopping(deadline);
                self.shared.set_state(State::Stopping);
                self.press();
            }
            Stage::Stopping(until) => *until = (*until).min(deadline),
            Stage::Leaving(..) => {}
        }
    }

    fn force(&mut self, engine: &dyn Protector, text: &str) {
        if !matches!(self.stage, Stage::Leaving(..)) {
            self.leave(engine, End::new(Code::Forced, text));
        }
    }

    /// Tells the engine to end; it reports when the arbiter knows that nobody is to take over.
    fn leave(&mut self, engine: &dyn Protector, end: End) {
        self.stage = Stage::Leaving(end, Instant::now() + REMIND);
        self.shared.set_state(State::Stopping);
        engine.stop();
    }

    fn overdue(&mut self, engine: &dyn Protector) {
        match &mut self.stage {
            Stage::Up => {}
            Stage::Stopping(_) => {
                self.force(engine, "did not stop in time and was stopped by force");
            }
            Stage::Leaving(_, until) => {
                tracing::warn!(
                    "the arbiter has not confirmed yet that nobody is to take the machine over; another signal ends this process at once, and the other host may then take over"
                );
                *until = Instant::now() + REMIND;
            }
        }
    }

    fn press(&self) -> bool {
        let port = self.shared.port();
        if let Some(port) = &port {
            tracing::info!("pressing the guest's power button");
            port.press_power_button();
        } else {
            tracing::warn!("{ELSEWHERE}");
        }
        port.is_some()
    }

    fn news(&mut self, engine: &dyn Protector, news: News) -> Next {
        match news {
            News::Running {
                term,
                taken_over,
                port,
            } => self.runs(term, taken_over, port),
            News::Idle => self.idle(engine),
            News::Protected(protected) => {
                let name = &self.shared.file.machine.name;
                if protected {
                    tracing::info!("machine {name} is protected");
                } else {
                    tracing::warn!("machine {name} is NOT protected");
                }
                self.shared.set_cover(Cover::since_now(protected));
            }
            News::Stays(why) => self.moved(&Err(Refusal::new(why))),
            News::Ended(ended) => return self.ended(ended),
        }
        Next::Continue
    }

    fn runs(&mut self, term: u64, taken_over: bool, port: Arc<dyn Port>) {
        let name = &self.shared.file.machine.name;
        let host = self.shared.host().to_owned();
        self.shared.set_cover(Cover::since_now(false));
        self.shared.set_port(Some(port));
        if taken_over {
            let mark = format!("\r\n--- romulus: took over in term {term} on {host} ---\r\n");
            self.shared.hub.push(mark.as_bytes());
            tracing::warn!("machine {name}: took over in term {term} on {host}");
        } else {
            tracing::info!("machine {name} runs on {host} in term {term}");
        }
        if std::mem::take(&mut self.resetting) {
            self.shared.count_restart();
        }
        if matches!(self.stage, Stage::Up) {
            self.shared.set_state(State::Running);
        }
    }

    /// No machine runs here: the guest has ended, or the other host has taken it over.
    fn idle(&mut self, engine: &dyn Protector) {
        self.shared.set_port(None);
        self.shared.set_cover(Cover::default());
        let role = engine.status().map(|status| status.host.role);
        let ours = matches!(role, Some(RoleName::Primary | RoleName::Ended));
        self.moved(&if ours {
            Err(Refusal::new("the guest has ended, or is started anew"))
        } else {
            Ok(())
        });
        match self.stage {
            Stage::Up if ours => {
                self.resetting = true;
                self.shared.set_state(State::Starting);
            }
            Stage::Up => self.shared.set_state(State::Standby),
            // If it asked for a reset, it is not to be started anew.
            Stage::Stopping(_) if ours => {
                self.leave(engine, End::new(Code::Done, "stopped in order"));
            }
            Stage::Stopping(_) => self.leave(
                engine,
                End::new(
                    Code::Failed,
                    "the other host took the machine over while it was stopping: stop it there",
                ),
            ),
            Stage::Leaving(..) => {}
        }
    }

    /// Tells all who have asked for a switchover what has come of it.
    fn moved(&mut self, result: &Result<(), Refusal>) {
        for reply in self.movers.drain(..) {
            // Who asked may have left.
            let _ = reply.send(result.clone());
        }
    }

    fn ended(&mut self, ended: EngineEnded) -> Next {
        match ended {
            EngineEnded::Stopped => Next::End(match &self.stage {
                Stage::Leaving(end, _) => end.clone(),
                Stage::Stopping(_) => End::new(Code::Done, "stopped in order"),
                Stage::Up => End::new(Code::Done, "was stopped"),
            }),
            EngineEnded::Guest(exit) => {
                let stopping = !matches!(self.stage, Stage::Up);
                match supervisor::after(exit, stopping, &self.shared.file) {
                    Step::Continue => Next::Continue,
                    Step::Restart => Next::Restart,
                    Step::End(end) => Next::End(end),
                }
            }
            EngineEnded::Failed(why) => Next::End(End::new(Code::Failed, why)),
        }
    }
}

/// Why a machine that is not here cannot be told something.
const ELSEWHERE: &str = "the machine does not run on this host now";

/// What follows from an event.
enum Next {
    Continue,
    Restart,
    End(End),
}
