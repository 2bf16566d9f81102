//! A rehearsal: the replica runs for half a second in a machine of its own, on a private copy of the replica's memory.
//!
//! What a takeover needs is warm then: the host has run this guest's code before, and where its processor is emulated, has translated it.
//! And it is known that the replica runs, not only that it can be loaded. It hears what the guest on the primary hears, so that it does what a guest does.
//!
//! Nothing of it leaves: its cards' cables end here, nothing is written to its disks (`romulus-machine`'s `Paused::rehearse`), and
//! the kernel lets nobody write the replica's memory through the file that the copy is made of. What the
//! replica's commits change meanwhile does not show in the copy: a page goes over to it before it changes ([`Preserving`]). A
//! takeover does not wait for it: it is told to end, and does so beside.

use crate::{backup::Backup, node::lock, settings::Builder};
use romulus_checkpoint::{PAGE, Pages};
use romulus_machine::{CableEnd, Error, Memory};
use romulus_protocol::time::Time;
use std::{
    fs,
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// How long the guest runs.
const LENGTH: Duration = Duration::from_millis(500);
/// How often it is looked whether it has ended or takes too much.
const LOOK: Duration = Duration::from_millis(50);
/// Bytes of memory that it may take: pages that it, or a commit, has written.
const MEMORY_MAX: u64 = 256 << 20;
/// Frames that wait for the machine to be there, at most.
const EARLY_MAX: usize = 256;

/// What came of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// How long the guest ran.
    pub(crate) ran: Duration,
    /// Frames that it sent, to nobody.
    pub(crate) sent: u64,
    /// Why it ended before its time.
    pub(crate) cut: Option<&'static str>,
}

/// Frames on their way to the guest.
#[derive(Debug)]
enum Cables {
    /// The machine is being made.
    Early(Vec<(usize, Vec<u8>)>),
    /// It has these.
    There(Vec<CableEnd>),
}

/// A rehearsal as the rest sees it.
#[derive(Debug)]
pub(crate) struct Stage {
    memory: Memory,
    cables: Mutex<Cables>,
    ended: Mutex<bool>,
    changed: Condvar,
    /// A page of the replica changed that could not be kept as it was.
    spoilt: AtomicBool,
}

impl Stage {
    /// One in `memory`, a private copy, whose guest is about to get these frames.
    pub(crate) fn new(memory: Memory, frames: Vec<(usize, Vec<u8>)>) -> Stage {
        Stage {
            memory,
            cables: Mutex::new(Cables::Early(frames)),
            ended: Mutex::default(),
            changed: Condvar::new(),
            spoilt: AtomicBool::new(false),
        }
    }

    /// It is to end. This does not wait for it.
    pub(crate) fn end(&self) {
        *lock(&self.ended) = true;
        self.changed.notify_all();
    }

    /// Gives its guest a frame.
    pub(crate) fn give(&self, card: usize, frame: &[u8]) {
        match &mut *lock(&self.cables) {
            Cables::Early(frames) if frames.len() < EARLY_MAX => {
                frames.push((card, frame.to_vec()));
            }
            Cables::Early(_) => {}
            Cables::There(cables) => {
                if let Some(cable) = cables.get(card) {
                    cable.give(frame);
                }
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    #[cfg(test)]
    pub(crate) fn has_ended(&self) -> bool {
        *lock(&self.ended)
    }

    fn connect(&self, cables: Vec<CableEnd>) {
        let mut inner = lock(&self.cables);
        let before = std::mem::replace(&mut *inner, Cables::There(cables));
        drop(inner);
        if let Cables::Early(frames) = before {
            for (card, frame) in frames {
                self.give(card, &frame);
            }
        }
    }

    fn sent(&self) -> u64 {
        match &*lock(&self.cables) {
            Cables::Early(_) => 0,
            Cables::There(cables) => cables.iter().map(CableEnd::sent).sum(),
        }
    }

    /// Waits a little; true when it is to end.
    fn wait(&self, at_most: Duration) -> bool {
        let ended = lock(&self.ended);
        let waited = self
            .changed
            .wait_timeout_while(ended, at_most, |ended| !*ended);
        let (ended, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *ended
    }

    /// Keeps a page of the replica as it is, for the copy.
    fn keep(&self, page: usize) {
        if !self.spoilt.load(Ordering::Relaxed)
            && let Err(error) = self.memory.own(page)
        {
            tracing::debug!(%error, "a rehearsal ends: no memory");
            self.spoilt.store(true, Ordering::Relaxed);
            self.end();
        }
    }
}

/// The replica's memory while it is rehearsed: a page goes over to the copy before it changes here.
pub(crate) struct Preserving<'a> {
    pub(crate) memory: &'a Memory,
    pub(crate) stage: Option<&'a Stage>,
}

impl Preserving<'_> {
    fn keep(&self, page: usize) {
        if let Some(stage) = self.stage {
            stage.keep(page);
        }
    }
}

impl Pages for Preserving<'_> {
    fn count(&self) -> usize {
        self.memory.count()
    }

    fn read(&self, page: usize, into: &mut [u8; PAGE]) {
        self.memory.read(page, into);
    }

    fn write(&self, page: usize, from: &[u8; PAGE]) {
        self.keep(page);
        self.memory.write(page, from);
    }

    fn zero(&self, page: usize) {
        if !self.memory.is_zero(page) {
            self.keep(page);
            self.memory.zero(page);
        }
    }
}

/// Rehearses the newest commit; nothing if there is none, or its memory cannot be copied. For a thread of its own, whose
/// priority it lowers, and with it that of all threads of the machine that it makes.
///
/// # Errors
/// The machine cannot be made, or does not take the state.
pub(crate) fn rehearse(backup: &Backup, builder: &dyn Builder) -> Result<Option<Outcome>, Error> {
    lower_priority();
    let Some(begun) = backup.begin_rehearsal()? else {
        return Ok(None);
    };
    let outcome = run(&begun.stage, &begun.saved, builder, LENGTH);
    backup.end_rehearsal(&begun.stage);
    outcome.map(Some)
}

fn run(
    stage: &Stage,
    saved: &[u8],
    builder: &dyn Builder,
    length: Duration,
) -> Result<Outcome, Error> {
    let before = private_memory();
    let (mut paused, cables) = builder.rehearse(stage.memory.clone())?;
    paused.load(saved)?;
    stage.connect(cables);
    let begun = Instant::now();
    let machine = paused.resume()?;
    let handle = machine.handle();
    let cut = loop {
        let left = length.saturating_sub(begun.elapsed());
        if left.is_zero() {
            break None;
        }
        if stage.wait(left.min(LOOK)) {
            break Some("there was something better to do");
        }
        if handle.wait_exit(Duration::ZERO).is_some() {
            break Some("the guest ended");
        }
        if private_memory().saturating_sub(before) > MEMORY_MAX {
            break Some("it took too much memory");
        }
    };
    let ran = begun.elapsed();
    drop(machine);
    Ok(Outcome {
        ran,
        sent: stage.sent(),
        cut,
    })
}

/// Bytes of memory that this process has for itself: without what is shared, such as the replica's. 0 where the kernel does not tell.
fn private_memory() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut pages = text.split(' ').skip(1).map(|n| n.parse::<u64>().ok());
    match (pages.next().flatten(), pages.next().flatten()) {
        (Some(resident), Some(shared)) => resident.saturating_sub(shared) * PAGE as u64,
        _ => 0,
    }
}

/// Everything else goes before it.
fn lower_priority() {
    // The thread's own (0). A kernel that refuses leaves it as it is.
    // SAFETY: no pointers are involved.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) } < 0 {
        tracing::debug!("a rehearsal runs at ordinary priority");
    }
}

/// When the next one is due: soon after the first commit, then ever later, then again and again. If the guest had nothing to do in the
/// last ones, which then show little, sooner once it is sent something.
#[derive(Debug)]
pub(crate) struct Plan {
    interval: Option<Duration>,
    gap: Duration,
    last: Option<Time>,
    next: Option<Time>,
    /// How often it may still be sooner.
    sooner: u32,
}

/// From the first rehearsal to the second; the next gaps are twice as long each.
const FIRST_GAP: Duration = Duration::from_secs(4);
/// From one rehearsal to a sooner one.
const SOONER_GAP: Duration = Duration::from_secs(1);
/// What a guest is sent need not be anything that it answers.
const SOONER_MAX: u32 = 4;

impl Plan {
    /// Nothing is due. In the end one is due every `interval`, if there is one.
    pub(crate) fn new(interval: Option<Duration>) -> Plan {
        Plan {
            interval,
            gap: FIRST_GAP,
            last: None,
            next: None,
            sooner: 0,
        }
    }

    /// There is a replica to rehearse.
    pub(crate) fn begin(&mut self, now: Time) {
        self.gap = FIRST_GAP;
        self.sooner = SOONER_MAX;
        self.last = None;
        self.next = self.interval.map(|_| now);
    }

    /// There is none any more.
    pub(crate) fn stop(&mut self) {
        self.next = None;
    }

    /// The guest had something to do in the last one.
    pub(crate) fn answered(&mut self) {
        self.sooner = 0;
    }

    /// The guest on the primary was sent something since the last one.
    pub(crate) fn heard(&mut self) {
        if let (Some(next), Some(last)) = (&mut self.next, self.last)
            && self.sooner > 0
            && last + SOONER_GAP < *next
        {
            self.sooner -= 1;
            *next = last + SOONER_GAP;
        }
    }

    /// Whether one is due. It is, once.
    pub(crate) fn due(&mut self, now: Time) -> bool {
        let (Some(interval), Some(next)) = (self.interval, self.next) else {
            return false;
        };
        if now < next {
            return false;
        }
        let gap = self.gap.min(interval);
        self.gap = gap * 2;
        self.last = Some(now);
        self.next = Some(now + gap);
        true
    }
}

#[cfg(test)]
mod tests;
