//! The thread that holds the machine: it does what the protocol orders and ends the epochs.
//!
//! It never waits for anything that could take long. Machines are made, and loaded on trial, in
//! threads of their own: this thread's turning is what the heartbeats attest.

mod guest;
mod listening;
mod replica;

use crate::{
    Ended, Report,
    backup::Backup,
    clock,
    disks::{Resync, WriteLog},
    epoch::{self, After},
    full_copy::FullCopy,
    node::{Node, lock},
    orders::Order,
    outbox::{Item, Outbox, Stream},
    rehearsal::Plan,
    settings::{Builder, Settings, Shape},
};
use guest::Held;
use listening::Listening;
use romulus_checkpoint::{Encoder, Staging};
use romulus_machine::{Error, Machine, PageSet, Ports, WarmPages};
use romulus_network::announce::Schedule;
use romulus_protocol::{
    control::{Control, Cost},
    host::{Event, RoleName, Source},
    id::{Incarnation, SessionId, Term},
    time::Time,
};
use std::{
    sync::{Arc, Mutex, atomic::Ordering},
    thread::JoinHandle,
    time::Duration,
};

/// Pages for which a new staging has room at once.
const STAGING: usize = 4096;
/// Pages that stay writable at most: what copying them takes in every pause stays in the order of
/// milliseconds.
const WARM: usize = 4096;

/// How many frames are taken with one look for those that have come for a guest that rests: a flood is not to hold this thread up.
const FRAMES: usize = 64;

/// The session that is being filled.
struct Session {
    id: SessionId,
    outbox: Arc<Outbox>,
    full_copy: Arc<FullCopy>,
    control: Control,
    dirty: PageSet,
    /// Told by the link's writer what had changed; asked at each seal.
    warm: Arc<Mutex<WarmPages>>,
    /// Frames that the guest gets are passed on.
    passing_on: bool,
}

/// See the module's text.
pub(crate) struct Driver {
    pub(crate) node: Arc<Node>,
    pub(crate) backup: Arc<Backup>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) builder: Arc<dyn Builder>,
    pub(crate) shape: Shape,
    pub(crate) ports: Ports,
    pub(crate) disks: Arc<WriteLog>,
    /// When the newest epoch was sealed.
    pub(crate) sealed: Arc<Mutex<Option<Time>>>,
    held: Held,
    session: Option<Session>,
    /// A session that waits for the guest to run.
    wanted: Option<SessionId>,
    announcing: Schedule,
    /// The term in which the machine runs here.
    term: Term,
    /// Counts the machines that were made, so that late news of an earlier one is known as such.
    life: u64,
    /// What a machine that is being made is for.
    building: Option<guest::Purpose>,
    /// The runner for whose replica a machine was made before it asked.
    foreseen: Option<Incarnation>,
    /// The replica that is being loaded on trial; the machine is with that thread.
    trying: Option<SessionId>,
    /// The guest was reset and waits until everything may leave.
    reset: bool,
    /// A switchover wants the guest to rest.
    rest: Rest,
    /// The guest stands since it came to rest, and what comes for it is passed on.
    listening: Listening,
    /// The guest ended for good: why.
    over: Option<Ended>,
    turned: Time,
    /// When the replica is rehearsed.
    rehearsals: Plan,
    /// A rehearsal, until it has ended.
    rehearsing: Option<JoinHandle<u64>>,
    /// The host has no processor to spare.
    crowded: bool,
}

/// Whether the guest is to rest.
enum Rest {
    /// No.
    No,
    /// From the running epoch's end on.
    Wanted,
    /// It does, since the end of an epoch that cost this.
    Rests(epoch::Ended),
}

/// What becomes of the thread.
enum Flow {
    Go,
    End(Ended),
}

impl Driver {
    #[allow(clippy::too_many_arguments, reason = "each is made by somebody else")]
    pub(crate) fn new(
        node: Arc<Node>,
        backup: Arc<Backup>,
        settings: Arc<Settings>,
        builder: Arc<dyn Builder>,
        shape: Shape,
        ports: Ports,
        disks: Arc<WriteLog>,
        sealed: Arc<Mutex<Option<Time>>>,
    ) -> Driver {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let crowded = processors <= shape.vcpus.into();
        let rehearsals = Plan::new(settings.rehearse);
        Driver {
            node,
            backup,
            settings,
            builder,
            shape,
            ports,
            disks,
            sealed,
            held: Held::Nothing,
            session: None,
            wanted: None,
            announcing: Schedule::new(),
            term: Term::default(),
            life: 0,
            building: None,
            foreseen: None,
            trying: None,
            reset: false,
            rest: Rest::No,
            listening: Listening::default(),
            over: None,
            turned: Time(0),
            rehearsals,
            rehearsing: None,
            crowded,
        }
    }

    /// Runs until the machine has ended for good. The machine goes with it: its taps and disks are free when the process
    /// says that it has ended.
    pub(crate) fn run(mut self) -> Ended {
        let ended = self.obey_all();
        // It holds what the next life needs.
        self.backup.stop_rehearsal();
        if let Some(thread) = self.rehearsing.take()
            && thread.join().is_err()
        {
            tracing::error!("a rehearsal panicked");
        }
        ended
    }

    fn obey_all(&mut self) -> Ended {
        loop {
            let order = self.node.orders.wait(self.deadline());
            self.turn();
            if let Some(order) = order
                && let Flow::End(ended) = self.obey(order)
            {
                return ended;
            }
            self.announce();
            self.listen();
            if self.reset
                && self.node.output.is_free()
                && let Flow::End(ended) = self.check(|driver| driver.go_on(None))
            {
                return ended;
            }
            if let Flow::End(ended) = self.end_epoch() {
                return ended;
            }
        }
    }

    /// How often the loop turns with nothing to do: twice as often as it must.
    fn pace(&self) -> Duration {
        self.settings.timing.stall / 2
    }

    fn deadline(&self) -> Time {
        let mut deadline = self.turned + self.pace();
        if let Some(session) = &self.session
            && matches!(self.held, Held::Running(_))
            && let Some(end) = session.control.end(self.node.output.holding())
        {
            deadline = deadline.min(end);
        }
        if let Some(next) = self.announcing.next() {
            deadline = deadline.min(Time(next));
        }
        if let Some(next) = self.listening.next(clock::now()) {
            deadline = deadline.min(next);
        }
        deadline
    }

    /// Tells the host that this loop moves. Often enough is enough: each telling takes its mutex.
    fn turn(&mut self) {
        let now = clock::now();
        if now.since(self.turned) >= self.pace() / 2 {
            self.turned = now;
            self.node.handle(Event::LoopTurned);
            self.foresee();
            self.rehearse();
            // One that was greeted just before the change.
            if self.node.changes_mode() {
                self.node.close_links();
            }
        }
    }

    /// A host that waits beside the runner will be asked to take a replica, and to make a machine for that and lock its
    /// memory takes longer than anything else before the first copy. Once for each runner: if it cannot be made, that is
    /// told again when it is asked for.
    fn foresee(&mut self) {
        // What is held is still to be dropped, or to be decided upon: later.
        if matches!(self.held, Held::Paused(_) | Held::Running(_)) {
            return;
        }
        let status = self.node.status();
        let runner = status.record.map(|record| record.runner);
        if status.role == RoleName::Waiting
            && runner != self.foreseen
            && runner.is_some_and(|runner| self.node.outbox(runner).is_some())
        {
            self.foreseen = runner;
            self.be_ready();
        }
    }

    /// Passes on what comes for a guest that stands for a switchover. Whoever will run it begins with that; and if it comes to
    /// nothing, the guest gets it here. It ends when the guest stands here no more, for whatever reason.
    fn listen(&mut self) {
        if !self.listening.has_begun() {
            return;
        }
        match &self.held {
            Held::Paused(paused) if !self.listening.is_over(clock::now()) => {
                paused.take_in(FRAMES);
            }
            _ => self.set_listening(false),
        }
    }

    /// The host that ran the machine before has read this frame from its tap, before the network knew of the move.
    fn late(&mut self, card: usize, frame: &[u8]) {
        match &self.held {
            Held::Running(machine) => machine.inject(card, frame),
            Held::Paused(paused) => paused.inject(card, frame),
            Held::Nothing | Held::Ready(_) => return,
        }
        self.node.input.gave_again(1);
    }

    fn set_listening(&mut self, listens: bool) {
        if listens {
            self.listening.begin(clock::now());
        } else {
            self.listening.end();
        }
        self.node.input.pass_on_media(listens);
    }

    fn announce(&mut self) {
        if self.announcing.due(clock::now().0) {
            let count = self.node.output.announce();
            tracing::debug!(count, "announced the machine's addresses");
        }
    }

    fn obey(&mut self, order: Order) -> Flow {
        match order {
            Order::Copy(session) => return self.check(|driver| driver.copy(session)),
            Order::EndCopy(session) => return self.check(|driver| driver.end_copy(session)),
            Order::Freeze => return self.check(Driver::freeze),
            Order::Rest => self.rest = Rest::Wanted,
            Order::Thaw => return self.check(Driver::thaw),
            Order::Load(Source::Cold) => self.boot(guest::Purpose::Cold),
            Order::Load(Source::Replica { .. }) => self.load_replica(),
            Order::Load(Source::Paused) => self.node.handle(Event::Loaded(true)),
            Order::Run { source, term } => return self.check(|driver| driver.start(source, term)),
            Order::Discard => self.discard(),
            Order::Prepare(session) => self.prepare(session),
            Order::Try(session) => self.try_replica(session),
            Order::Built(life, built) => return self.built(life, *built),
            Order::Ready => self.be_ready(),
            Order::Tried(session, outcome) => self.tried(session, *outcome),
            Order::Late(card, frame) => self.late(card, &frame),
            Order::Acknowledged => self.acknowledged(),
            Order::Exited(life, exit) => return self.exited(life, exit),
            Order::Stop => self.node.handle(Event::Stop),
            Order::End => return Flow::End(self.over.take().unwrap_or(Ended::Stopped)),
            Order::Fail(why) => return Flow::End(Ended::Failed(why)),
        }
        Flow::Go
    }

    /// Does something to the machine. A machine that stopped by itself meanwhile says so through
    /// its watcher; any other failure ends the process: what it held is in doubt, and the other
    /// host has it whole.
    fn check(&mut self, act: impl FnOnce(&mut Self) -> Result<(), Error>) -> Flow {
        match act(self) {
            Ok(()) | Err(Error::Stopped(_)) => Flow::Go,
            Err(error) => Flow::End(Ended::Failed(error.to_string())),
        }
    }

    /// Begins to fill a backup: from now on pages are tracked, and its link's writer reads all of
    /// memory.
    fn copy(&mut self, id: SessionId) -> Result<(), Error> {
        // Without a link the host will hear that it is closed.
        let Some(outbox) = self.node.outbox_of(id) else {
            return Ok(());
        };
        let machine = match std::mem::take(&mut self.held) {
            Held::Running(machine) => machine,
            held => {
                // A guest that is being started anew: when it runs.
                self.held = held;
                self.wanted = Some(id);
                return Ok(());
            }
        };
        let mut paused = machine.pause()?;
        paused.start_tracking()?;
        self.disks.set_active(true);
        let memory = paused.memory().clone();
        let dirty = PageSet::new(&memory);
        let mut machine = paused.resume()?;
        let began = clock::now();
        // From here on it is counted.
        machine.slept();
        self.held = Held::Running(machine);
        let full_copy = Arc::<FullCopy>::default();
        let resync = Resync::new(id, &self.builder.disks(), &self.disks)
            .map_err(|error| Error::Invalid(error.to_string()))?;
        let control = Control::new(self.settings.limits, began)
            .map_err(|error| Error::Invalid(error.to_string()))?;
        let figures = &self.node.figures;
        figures.copied.store(0, Ordering::Relaxed);
        figures
            .to_copy
            .store(memory.pages() as u64, Ordering::Relaxed);
        let costs = self.settings.tracking;
        let patience = WarmPages::patience(costs.first_write, costs.copy);
        let warm = Arc::new(Mutex::new(WarmPages::new(&memory, patience, WARM)));
        let shadow = usize::try_from(self.settings.shadow).unwrap_or(usize::MAX);
        outbox.push(Item::Open(Box::new(Stream {
            id,
            encoder: Encoder::new(memory.pages(), shadow),
            memory,
            epoch: self.node.status().epoch,
            next: 0,
            resync,
            full: false,
            full_copy: Arc::clone(&full_copy),
            warm: Arc::clone(&warm),
            output: self.settings.keep.output,
        })));
        self.session = Some(Session {
            id,
            outbox,
            full_copy,
            control,
            dirty,
            warm,
            passing_on: false,
        });
        Ok(())
    }

    /// That session is over: the guest runs faster when nobody tracks its pages.
    fn end_copy(&mut self, id: SessionId) -> Result<(), Error> {
        self.wanted.take_if(|wanted| *wanted == id);
        let Some(session) = self.session.take_if(|s| s.id == id) else {
            return Ok(());
        };
        self.node.input.keep();
        session.outbox.push(Item::Shut(id));
        self.disks.set_active(false);
        self.held = match std::mem::take(&mut self.held) {
            Held::Running(machine) => {
                let mut paused = machine.pause()?;
                paused.stop_tracking()?;
                Held::Running(paused.resume()?)
            }
            Held::Paused(mut paused) => {
                paused.stop_tracking()?;
                Held::Paused(paused)
            }
            held => held,
        };
        Ok(())
    }

    /// What the last epoch's encoding and sending took from the guest: all of it where there is no
    /// processor beside those of its vCPUs.
    fn taken(&self) -> Duration {
        if self.crowded {
            Duration::from_nanos(self.node.figures.last_work.load(Ordering::Relaxed))
        } else {
            Duration::ZERO
        }
    }

    fn acknowledged(&mut self) {
        if let Some(session) = &mut self.session
            && self.node.may_seal(session.id)
        {
            session.control.committed();
        }
    }

    /// Ends the running epoch if its time has come.
    fn end_epoch(&mut self) -> Flow {
        let rests = matches!(self.rest, Rest::Wanted);
        let Some(session) = &mut self.session else {
            return Flow::Go;
        };
        let holding = self.node.output.holding();
        let due = session.control.end(holding);
        let now = clock::now();
        if (due.is_none_or(|due| due > now) && !rests)
            || !matches!(self.held, Held::Running(_))
            || !self.node.may_seal(session.id)
        {
            return Flow::Go;
        }
        let Held::Running(machine) = std::mem::take(&mut self.held) else {
            return Flow::Go;
        };
        let staging = self.node.spare().unwrap_or_else(|| Staging::new(STAGING));
        *lock(&self.sealed) = Some(now);
        // Taken before the pause: the writer may hold it for a moment.
        let warm = lock(&session.warm);
        let sealed = epoch::seal(
            machine,
            (self.term, session.id),
            &self.node,
            &self.node.output,
            &self.disks,
            &mut session.dirty,
            &warm,
            staging,
            &session.full_copy,
            rests,
        );
        drop(warm);
        let (after, ended) = match sealed {
            Ok(done) => done,
            Err(Error::Stopped(_)) => return Flow::Go,
            Err(error) => return Flow::End(Ended::Failed(error.to_string())),
        };
        session.outbox.notify();
        // Before the replica is whole nobody could go on from it.
        let whole = session.full_copy.copied().all;
        if whole && self.settings.keep.input && !session.passing_on {
            session.passing_on = true;
            (self.node.input).pass_on(session.id, Arc::clone(&session.outbox));
        }
        ended.record(&self.node);
        let figures = &self.node.figures;
        figures.epochs.fetch_add(1, Ordering::Relaxed);
        figures
            .dirty_pages
            .fetch_add(ended.dirty as u64, Ordering::Relaxed);
        figures
            .first_writes
            .fetch_add(ended.first_writes as u64, Ordering::Relaxed);
        match after {
            After::Runs(machine) => self.runs_on(machine, &ended),
            After::Rests(paused) => {
                self.held = Held::Paused(paused);
                self.rest = Rest::Rests(ended);
                let listens = (self.session.as_ref()).is_some_and(|session| session.passing_on);
                self.set_listening(listens);
            }
        }
        self.turn();
        Flow::Go
    }

    /// The guest goes on after an epoch's end.
    fn runs_on(&mut self, mut machine: Machine, ended: &epoch::Ended) {
        let taken = self.taken();
        let changed = self.node.figures.last_changed.load(Ordering::Relaxed);
        // The pause has ended every sleep, so that all of it is counted.
        let slept = machine.slept();
        self.held = Held::Running(machine);
        let Some(session) = &mut self.session else {
            return;
        };
        session.control.resumed(
            ended.resumed,
            Cost {
                pause: ended.pause,
                faults: self.settings.tracking.first_write
                    * u32::try_from(ended.first_writes).unwrap_or(u32::MAX),
                taken,
                slept,
                changed_pages: changed.min(ended.dirty as u64),
                held_output: ended.seal.held,
            },
        );
        // After a rest the answer may have come before.
        if self.node.may_seal(session.id) {
            session.control.committed();
        }
    }

    fn discard(&mut self) {
        self.rehearsals.stop();
        if let Some(session) = self.session.take() {
            // The link may well live on, with whoever runs the machine now at its other end.
            session.outbox.push(Item::Shut(session.id));
        }
        self.node.input.keep();
        self.wanted = None;
        self.reset = false;
        self.rest = Rest::No;
        self.disks.set_active(false);
        self.announcing.stop();
        self.node.output.clear();
        self.backup.discard();
        // Whoever runs the machine now may ask this host before it is ready.
        self.foreseen = None;
        // A machine that has never run stays ready for the next replica.
        if matches!(self.held, Held::Running(_) | Held::Paused(_)) {
            self.held = Held::Nothing;
            self.life += 1;
            self.node.report(Report::Idle);
        }
        self.build_none_to_run();
    }
}
