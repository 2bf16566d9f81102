//! The backup's machine: made when a session begins, loaded on trial, loaded in earnest.

use super::{
    Driver,
    guest::{Held, Purpose},
};
use crate::{
    Report, clock, disks,
    orders::Order,
    outbox::Item,
    rehearsal::{self, Outcome},
};
use romulus_checkpoint::Replica;
use romulus_machine::{Error, Paused};
use romulus_protocol::{host::Event, id::SessionId};
use std::{sync::atomic::Ordering, thread, time::Duration};

/// Room in the replica's buffer beside all of memory: for the machine's state and disk writes.
const SLACK: usize = 128 << 20;
/// From one attempt to make the disks durable to the next.
const SETTLE_AGAIN: Duration = Duration::from_secs(1);

impl Driver {
    /// Makes a machine that can take a replica, if there is none and nothing else is made.
    pub(super) fn be_ready(&mut self) {
        let idle = matches!(self.held, Held::Nothing) && self.building.is_none();
        if idle && self.trying.is_none() {
            self.boot(Purpose::Replica);
        }
    }

    /// A session begins to fill this host. A machine that stands ready, or is being made ready,
    /// takes it: it has never run, and a full copy writes every page.
    pub(super) fn prepare(&mut self, session: SessionId) {
        self.rehearsals.stop();
        self.node.output.clear();
        let memory = usize::try_from(self.shape.memory).unwrap_or(usize::MAX);
        let pages = memory / romulus_checkpoint::PAGE;
        let limit = pages.saturating_mul(Replica::PAGE_COST) + SLACK;
        if let Err(error) = self.backup.prepare(session, Replica::new(pages, limit)) {
            tracing::error!("a disk cannot take a replica: {error}");
            self.node.handle(Event::ReplicaLost);
            return;
        }
        self.tell_disks(session);
        match self.held {
            Held::Running(_) | Held::Paused(_) => self.held = Held::Nothing,
            Held::Nothing | Held::Ready(_) => {}
        }
        self.build_none_to_run();
        self.be_ready();
    }

    /// Tells the runner what the disks hold, in a thread of its own.
    fn tell_disks(&self, session: SessionId) {
        let disks = self.builder.disks();
        let Some(outbox) = self.node.outbox(session.runner) else {
            return;
        };
        if disks.is_empty() {
            return;
        }
        let (node, backup) = (self.node.clone(), self.backup.clone());
        let work = move || {
            let told = backup
                .settle()
                .map_err(|error| error.to_string())
                .and_then(|()| {
                    disks::tell_digests(session, &disks, |message| {
                        outbox.push(Item::Message(message));
                    })
                    .map_err(|error| error.to_string())
                });
            if let Err(error) = told {
                tracing::error!("the disks cannot be compared: {error}");
                node.handle(Event::ReplicaLost);
            }
        };
        let name = format!("{} digests", self.settings.name);
        if let Err(error) = thread::Builder::new().name(name).spawn(work) {
            tracing::error!(%error, "no thread to compare the disks");
            self.node.handle(Event::ReplicaLost);
        }
    }

    /// Makes the journal's content durable in the images, in a thread of its own. Until then no
    /// flush of the guest is answered: after a crash the journal would undo what it made durable.
    pub(super) fn settle_disks(&self) {
        if self.builder.disks().is_empty() {
            return;
        }
        self.disks.settling();
        let (node, backup, log) = (self.node.clone(), self.backup.clone(), self.disks.clone());
        let work = move || {
            while let Err(error) = backup.settle() {
                tracing::error!("the disks cannot be made durable, their flushes wait: {error}");
                if node.is_ending() {
                    return;
                }
                thread::sleep(SETTLE_AGAIN);
            }
            log.settled();
        };
        let name = format!("{} settle", self.settings.name);
        if let Err(error) = thread::Builder::new().name(name).spawn(work) {
            // What follows is worse than a wait: the disks' durability is in doubt.
            self.node.orders.push(Order::Fail(format!(
                "no thread to settle the disks: {error}"
            )));
        }
    }

    /// The machine that takes the replica is there, or cannot be had.
    pub(super) fn built_replica(&mut self, built: Result<Paused, Error>) {
        match built {
            Ok(paused) => {
                self.backup.machine(Some(paused.memory().clone()));
                self.held = Held::Ready(paused);
            }
            Err(error) => {
                let text = format!("cannot make a machine for the replica: {error}");
                tracing::error!("{text}");
                self.node.report(Report::Notice(text));
                self.backup.machine(None);
                self.node.handle(Event::ReplicaLost);
            }
        }
    }

    /// Loads the replica on trial, in a thread of its own.
    pub(super) fn try_replica(&mut self, session: SessionId) {
        let Held::Ready(mut paused) = std::mem::take(&mut self.held) else {
            self.node.handle(Event::Tried {
                session,
                loaded: false,
            });
            return;
        };
        let (node, backup) = (self.node.clone(), self.backup.clone());
        let work = move || {
            let result = load(&mut paused, &backup);
            let outcome = Box::new((paused, result));
            node.orders.push(Order::Tried(session, outcome));
        };
        let name = format!("{} trial", self.settings.name);
        match thread::Builder::new().name(name).spawn(work) {
            Ok(_) => self.trying = Some(session),
            Err(error) => {
                tracing::error!(%error, "no thread to load the replica on trial");
                self.backup.no_machine();
                self.node.handle(Event::ReplicaLost);
            }
        }
    }

    /// The trial is over.
    pub(super) fn tried(
        &mut self,
        session: SessionId,
        (paused, result): (Paused, Result<(), Error>),
    ) {
        self.trying = None;
        if !matches!(self.held, Held::Nothing) || self.building.is_some() {
            // The machine is started from its disk meanwhile.
            return;
        }
        self.held = Held::Ready(paused);
        match &result {
            Ok(()) => self.rehearsals.begin(clock::now()),
            Err(error) => tracing::error!("the replica cannot be loaded: {error}"),
        }
        self.node.handle(Event::Tried {
            session,
            loaded: result.is_ok(),
        });
    }

    /// Rehearses the replica if it is time for that, in a thread of its own, which says how many frames the guest sent.
    pub(super) fn rehearse(&mut self) {
        if let Some(thread) = self.rehearsing.take_if(|thread| thread.is_finished())
            && thread.join().is_ok_and(|sent| sent > 0)
        {
            self.rehearsals.answered();
        }
        if self.rehearsing.is_some() || !matches!(self.held, Held::Ready(_)) {
            return;
        }
        if self.backup.has_heard() {
            self.rehearsals.heard();
        }
        if !self.rehearsals.due(clock::now()) {
            return;
        }
        let (node, backup, builder) =
            (self.node.clone(), self.backup.clone(), self.builder.clone());
        let work = move || match rehearsal::rehearse(&backup, &*builder) {
            Ok(None) => {
                tracing::debug!("there is nothing that could be rehearsed");
                0
            }
            Ok(Some(outcome)) => {
                node.figures.rehearsals.fetch_add(1, Ordering::Relaxed);
                let Outcome { ran, sent, cut } = outcome;
                tracing::info!(?ran, sent, cut, "rehearsed the replica");
                sent
            }
            Err(error) => {
                tracing::warn!("the replica cannot be rehearsed: {error}");
                0
            }
        };
        // The name is inherited by nobody: the machine's threads have theirs.
        let name = format!("{} rehearse", self.settings.name);
        match thread::Builder::new().name(name).spawn(work) {
            Ok(thread) => self.rehearsing = Some(thread),
            Err(error) => tracing::warn!(%error, "no thread to rehearse the replica"),
        }
    }

    /// Loads the newest commit in earnest. It may still be that nothing runs here.
    pub(super) fn load_replica(&mut self) {
        let begun = clock::now();
        self.rehearsals.stop();
        self.backup.stop_rehearsal();
        let Held::Ready(paused) = &mut self.held else {
            tracing::error!("the replica is to be loaded and there is no machine for it");
            self.node.handle(Event::Loaded(false));
            return;
        };
        // The guest's clock goes on from the load: what is missing is the time since the commit, on
        // this host's own clock.
        let result = load(paused, &self.backup).and_then(|()| {
            let gone = clock::now().since(self.backup.hold().committed());
            paused.advance_clock(gone)
        });
        if let Err(error) = &result {
            tracing::error!("the replica cannot be loaded: {error}");
        } else {
            let held = self.backup.hold();
            if let Some((addresses, _)) = held.state() {
                self.node.output.load_addresses(addresses);
            }
            let took = clock::now().since(begun);
            tracing::info!(?took, "the replica is loaded");
        }
        self.node.handle(Event::Loaded(result.is_ok()));
    }
}

/// Loads the replica's state; a checkpoint that was accepted is applied first.
fn load(paused: &mut Paused, backup: &crate::backup::Backup) -> Result<(), Error> {
    let held = backup.hold();
    let (_, state) = held
        .state()
        .ok_or_else(|| Error::Invalid("the replica has no state".into()))?;
    paused.load(state)
}
