//! The machine's lives on this host: made, started, frozen, ended.

use super::{Driver, Flow, Rest};
use crate::{Ended, Report, backup::InFlight, clock, orders::Order};
use romulus_machine::{Error, Exit, Machine, Paused};
use romulus_protocol::{
    host::{Event, Source},
    id::Term,
};
use std::{thread, time::Duration};

/// A guest's end is waited for in pieces of this length; it is told at once.
const WATCH: Duration = Duration::from_hours(1);

/// What this host holds of the machine.
#[derive(Default)]
pub(super) enum Held {
    /// Nothing, or for the moment nothing.
    #[default]
    Nothing,
    /// A machine that stands ready for the replica's state; perhaps it has been loaded.
    Ready(Paused),
    /// A machine that may run, and is paused.
    Paused(Paused),
    /// A machine that runs.
    Running(Machine),
}

/// What a machine is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To be started from its disk.
    Cold,
    /// To go on after the guest asked for a reset.
    Again,
    /// To take a replica.
    Replica,
}

impl Driver {
    /// Makes a machine in a thread of its own; [`Order::Built`] says when it is there.
    pub(super) fn boot(&mut self, purpose: Purpose) {
        self.life += 1;
        let life = self.life;
        self.building = Some(purpose);
        self.held = Held::Nothing;
        self.backup.no_machine();
        let (builder, node, ports) = (self.builder.clone(), self.node.clone(), self.ports.clone());
        let work = move || {
            let built = match purpose {
                Purpose::Cold | Purpose::Again => builder.boot(&ports),
                Purpose::Replica => builder.prepare(&ports),
            };
            node.orders.push(Order::Built(life, Box::new(built)));
        };
        let name = format!("{} maker", self.settings.name);
        if let Err(error) = thread::Builder::new().name(name).spawn(work) {
            tracing::error!(%error, "no thread to make the machine");
            let error = Error::Host {
                what: "a thread to make the machine".into(),
                source: error,
            };
            self.node
                .orders
                .push(Order::Built(life, Box::new(Err(error))));
        }
    }

    /// Nobody wants a machine any more that is being made to run here.
    pub(super) fn build_none_to_run(&mut self) {
        if (self.building).is_some_and(|purpose| purpose != Purpose::Replica) {
            self.building = None;
            self.life += 1;
        }
    }

    /// A machine was made, or could not be.
    pub(super) fn built(&mut self, life: u64, built: Result<Paused, Error>) -> Flow {
        let Some(purpose) = self.building.filter(|_| life == self.life) else {
            // Nobody wants it any more.
            return Flow::Go;
        };
        self.building = None;
        match (purpose, built) {
            (Purpose::Cold, Ok(paused)) => {
                self.held = Held::Paused(paused);
                self.node.handle(Event::Loaded(true));
            }
            (Purpose::Cold, Err(error)) => {
                let text = format!("cannot start the machine: {error}");
                tracing::error!("{text}");
                self.node.report(Report::Notice(text));
                self.node.handle(Event::Loaded(false));
            }
            (Purpose::Again, Ok(paused)) => {
                self.held = Held::Paused(paused);
                self.reset = true;
            }
            (Purpose::Again, Err(error)) => {
                return Flow::End(Ended::Failed(format!(
                    "the guest asked for a reset and cannot be started anew: {error}"
                )));
            }
            (Purpose::Replica, built) => self.built_replica(built),
        }
        Flow::Go
    }

    /// Runs: the record says so.
    pub(super) fn start(&mut self, source: Source, term: Term) -> Result<(), Error> {
        self.rest = Rest::No;
        let (paused, taken_over) = match (source, std::mem::take(&mut self.held)) {
            (Source::Replica { .. }, Held::Ready(paused)) => (paused, true),
            (Source::Cold | Source::Paused, Held::Paused(paused)) => (paused, false),
            (Source::Paused, Held::Nothing) if self.building == Some(Purpose::Again) => {
                // Its guest had asked for a reset when it was frozen: it runs once it is made.
                self.node.output.begin(true);
                self.term = term;
                return Ok(());
            }
            _ => {
                return Err(Error::Invalid(
                    "the machine was to run and is not loaded".into(),
                ));
            }
        };
        let in_flight = taken_over.then(|| self.backup.take_in_flight());
        self.backup.no_machine();
        if taken_over {
            self.settle_disks();
        }
        self.node.output.begin(source == Source::Paused);
        self.held = Held::Paused(paused);
        self.term = term;
        self.go_on(in_flight)
    }

    /// Lets the paused machine run, and says on the network that it is here. One that was taken over begins with what was on
    /// its way in both directions.
    pub(super) fn go_on(&mut self, in_flight: Option<InFlight>) -> Result<(), Error> {
        let taken_over = in_flight.is_some();
        self.reset = false;
        let Held::Paused(paused) = std::mem::take(&mut self.held) else {
            return Ok(());
        };
        paused.open_taps()?;
        self.node.output.attach(self.builder.taps(&paused));
        self.announcing.restart(clock::now().0);
        self.announce();
        if let Some(in_flight) = in_flight {
            let sent_again = self.node.output.send_again(&in_flight.output);
            for (card, frame) in &in_flight.input {
                paused.inject(*card, frame);
            }
            let given_again = in_flight.input.len();
            self.node.input.gave_again(given_again as u64);
            tracing::info!(sent_again, given_again, "frames that were on their way");
        }
        let machine = paused.resume()?;
        self.watch(&machine);
        self.node.report(Report::Running {
            term: self.term.0.0,
            taken_over,
            handle: machine.handle(),
        });
        self.held = Held::Running(machine);
        match self.wanted.take() {
            Some(session) => self.copy(session),
            None => Ok(()),
        }
    }

    /// Starts the thread that waits for the guest's end.
    fn watch(&mut self, machine: &Machine) {
        self.life += 1;
        let (life, handle, orders) = (self.life, machine.handle(), self.node.orders.clone());
        let wait = move || {
            loop {
                if let Some(exit) = handle.wait_exit(WATCH) {
                    orders.push(Order::Exited(life, exit));
                    return;
                }
            }
        };
        let name = format!("{} watch", self.settings.name);
        if let Err(error) = thread::Builder::new().name(name).spawn(wait) {
            self.node.orders.push(Order::Fail(format!(
                "no thread to watch the guest: {error}"
            )));
        }
    }

    /// The guest ended by itself.
    pub(super) fn exited(&mut self, life: u64, exit: Exit) -> Flow {
        if life != self.life {
            return Flow::Go;
        }
        self.held = Held::Nothing;
        self.node.report(Report::Idle);
        match exit {
            Exit::Reset if self.settings.reboot => {
                tracing::info!("the guest asked for a reset");
                // Its taps must be free before the next life takes them.
                self.node.output.clear();
                // What the backup holds is the guest before it: it is filled anew. Until it is let
                // go, nothing runs here that it does not know.
                self.node.close_links();
                self.boot(Purpose::Again);
            }
            exit => {
                // A guest that ended on purpose is never resurrected; one that failed is whole on
                // no host, and copied faithfully.
                self.over = Some(Ended::Guest(exit));
                self.node.handle(Event::Stop);
            }
        }
        Flow::Go
    }

    /// Pauses the guest and keeps everything.
    pub(super) fn freeze(&mut self) -> Result<(), Error> {
        self.rest = Rest::No;
        self.held = match std::mem::take(&mut self.held) {
            Held::Running(machine) => Held::Paused(machine.pause()?),
            held => held,
        };
        Ok(())
    }

    /// Lets a guest that rests, or is frozen, go on.
    pub(super) fn thaw(&mut self) -> Result<(), Error> {
        let rest = std::mem::replace(&mut self.rest, Rest::No);
        if self.reset {
            // It was started anew meanwhile, and waits for another reason.
            return Ok(());
        }
        self.held = match std::mem::take(&mut self.held) {
            Held::Paused(paused) => Held::Running(paused.resume()?),
            held => held,
        };
        if let Rest::Rests(mut ended) = rest
            && let Held::Running(machine) = std::mem::take(&mut self.held)
        {
            ended.rested_until(clock::now());
            self.runs_on(machine, &ended);
        }
        Ok(())
    }
}
