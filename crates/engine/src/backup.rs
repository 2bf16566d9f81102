//! The replica: filled by the link's reader, loaded by the thread that holds the machine.

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use crate::{
    clock,
    disks::Replicas,
    node::Node,
    output::RESENT_MAX,
    rehearsal::{Preserving, Stage},
};
use romulus_checkpoint::{Replica, ReplicaError, disk::JournalError};
use romulus_machine::{Error, Memory};
use romulus_network::in_flight::{KeptInput, KeptOutput, frames};
use romulus_protocol::{
    host::Event,
    id::{Incarnation, SessionId},
    message::{Checkpoint, Message},
    time::Time,
};
use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Bytes of output that are kept at most: that of the two epochs that may not have left.
const OUTPUT: usize = 2 * RESENT_MAX;
/// Bytes of input that are kept at most.
const INPUT: usize = 8 << 20;

/// How long frames are taken from the runner before, once the machine runs here: what reaches it in the moment in which the network
/// learns of the move.
const LATE: Duration = Duration::from_secs(1);

/// How often whoever waits looks whether the process ends.
const LOOK: Duration = Duration::from_millis(50);

/// Why the stream that fills the replica cannot go on. What was committed stays.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    /// What arrived is not a checkpoint.
    #[error("the checkpoint cannot be used: {0}")]
    Replica(#[from] ReplicaError),
    /// Its disk writes cannot be kept.
    #[error("the disk writes cannot be kept: {0}")]
    Journal(#[from] JournalError),
    /// Its held output is none.
    #[error("the checkpoint's held output cannot be used: {0}")]
    Output(#[from] frames::Malformed),
    /// There is no machine to apply it to.
    #[error("there is no machine here that could take the replica")]
    NoMachine,
}

struct Inner {
    disks: Replicas,
    session: Option<SessionId>,
    replica: Option<Replica>,
    memory: Option<Memory>,
    /// The machine could not be made.
    failed: bool,
    /// When the newest applied checkpoint was committed.
    committed: Time,
    /// Network cards of the machine.
    cards: usize,
    output: KeptOutput,
    input: KeptInput,
    /// This host runs the machine from what this session brought; and until when it takes frames from there.
    late: Option<(SessionId, Time)>,
    /// The replica is being rehearsed.
    rehearsal: Option<Arc<Stage>>,
}

/// What was on its way when the primary was lost: frames with their cards.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct InFlight {
    /// Committed output that may not have left.
    pub(crate) output: Vec<(usize, Vec<u8>)>,
    /// Input that the replica has not seen.
    pub(crate) input: Vec<(usize, Vec<u8>)>,
}

impl Inner {
    fn drop_replica(&mut self) {
        self.session = None;
        self.replica = None;
        self.output.clear();
        self.input.clear();
        self.stop_rehearsal();
    }

    fn stop_rehearsal(&mut self) {
        if let Some(stage) = self.rehearsal.take() {
            stage.end();
        }
    }
}

/// What a rehearsal begins with.
pub(crate) struct Rehearsed {
    pub(crate) stage: Arc<Stage>,
    /// The machine's state.
    pub(crate) saved: Vec<u8>,
}

/// See the module's text.
pub(crate) struct Backup {
    inner: Mutex<Inner>,
    changed: Condvar,
    /// Input has come since the last rehearsal began. Whoever asks does not wait for a commit.
    heard: AtomicBool,
}

/// The newest committed state, held still while it is loaded.
pub(crate) struct Held<'a> {
    inner: MutexGuard<'a, Inner>,
}

impl Held<'_> {
    /// The addresses and the machine's state.
    pub(crate) fn state(&self) -> Option<(&[u8], &[u8])> {
        split(self.inner.replica.as_ref()?.state())
    }

    /// When it was committed.
    pub(crate) fn committed(&self) -> Time {
        self.inner.committed
    }
}

/// Writes what [`split`] takes apart: a length, the addresses; the machine's state follows.
pub(crate) fn join(out: &mut Vec<u8>, addresses: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    addresses(out);
    // A few dozen addresses.
    let length = u32::try_from(out.len() - start - 4).unwrap_or(0);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    rest.split_at_checked(length)
}

impl Backup {
    /// For a machine with these disks and so many network cards.
    pub(crate) fn new(disks: Replicas, cards: usize) -> Backup {
        Backup {
            inner: Mutex::new(Inner {
                disks,
                session: None,
                replica: None,
                memory: None,
                failed: false,
                committed: Time(0),
                cards,
                output: KeptOutput::new(OUTPUT),
                input: KeptInput::new(INPUT),
                late: None,
                rehearsal: None,
            }),
            changed: Condvar::new(),
            heard: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is held, and wakes who waits for that.
    fn change<R>(&self, how: impl FnOnce(&mut Inner) -> R) -> R {
        let result = how(&mut self.lock());
        self.changed.notify_all();
        result
    }

    /// A session begins: the replica that was here is dropped.
    ///
    /// # Errors
    /// A disk's image cannot be asked for its length.
    pub(crate) fn prepare(&self, session: SessionId, replica: Replica) -> io::Result<()> {
        self.change(|inner| {
            inner.stop_rehearsal();
            inner.replica = Some(replica.with_disks(inner.disks.lengths()?));
            inner.session = Some(session);
            inner.late = None;
            inner.output.clear();
            inner.input.clear();
            Ok(())
        })
    }

    /// Makes durable in the disks' images what their journal holds, and empties it.
    ///
    /// # Errors
    /// A disk's.
    pub(crate) fn settle(&self) -> Result<(), JournalError> {
        self.lock().disks.settle()
    }

    /// The machine that takes the pages is there, or cannot be had.
    pub(crate) fn machine(&self, memory: Option<Memory>) {
        self.change(|inner| {
            inner.failed = memory.is_none();
            inner.memory = memory;
        });
    }

    /// There is no machine that takes pages any more, and so no replica.
    pub(crate) fn no_machine(&self) {
        self.change(|inner| {
            inner.drop_replica();
            inner.memory = None;
            inner.failed = false;
        });
    }

    /// Drops the replica. The machine stays ready for the next.
    pub(crate) fn discard(&self) {
        self.change(|inner| {
            inner.drop_replica();
            inner.late = None;
        });
    }

    /// Waits until there is a machine that can take a replica; false if it cannot be had, or the
    /// process ends. `order` asks for it, outside of the lock.
    pub(crate) fn await_machine(&self, node: &Node, order: impl FnOnce()) -> bool {
        let mut inner = self.lock();
        if inner.memory.is_some() {
            return true;
        }
        inner.failed = false;
        drop(inner);
        order();
        let mut inner = self.lock();
        while inner.memory.is_none() && !inner.failed && !node.is_ending() {
            inner = self
                .changed
                .wait_timeout(inner, LOOK)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        inner.memory.is_some()
    }

    /// Begins a rehearsal of the newest commit: its stage, and the machine's state. Nothing if there is no commit, or its memory
    /// cannot be copied.
    ///
    /// # Errors
    /// The host has no addresses left for a copy.
    pub(crate) fn begin_rehearsal(&self) -> Result<Option<Rehearsed>, Error> {
        let mut inner = self.lock();
        let (Some(replica), Some(memory)) = (&inner.replica, &inner.memory) else {
            return Ok(None);
        };
        let Some((_, saved)) = split(replica.state()) else {
            return Ok(None);
        };
        let Some(copy) = memory.private_copy()? else {
            return Ok(None);
        };
        let saved = saved.to_vec();
        let stage = Arc::new(Stage::new(copy, inner.input.look(clock::now().0)));
        inner.stop_rehearsal();
        self.heard.store(false, Ordering::Relaxed);
        inner.rehearsal = Some(Arc::clone(&stage));
        Ok(Some(Rehearsed { stage, saved }))
    }

    /// Whether the guest was sent something since the last rehearsal.
    pub(crate) fn has_heard(&self) -> bool {
        self.heard.load(Ordering::Relaxed)
    }

    /// This rehearsal is over: commits need not care for it any more.
    pub(crate) fn end_rehearsal(&self, stage: &Arc<Stage>) {
        let mut inner = self.lock();
        if (inner.rehearsal.as_ref()).is_some_and(|running| Arc::ptr_eq(running, stage)) {
            inner.rehearsal = None;
        }
    }

    /// Tells the rehearsal, if there is one, to end, and does not wait for it.
    pub(crate) fn stop_rehearsal(&self) {
        self.lock().stop_rehearsal();
    }

    /// Holds the newest committed state still. A checkpoint that was accepted is applied first.
    pub(crate) fn hold(&self) -> Held<'_> {
        Held { inner: self.lock() }
    }

    /// Waits until the session is the expected one's; nothing if it is not expected any more.
    fn wait<'a>(
        &'a self,
        node: &Node,
        session: SessionId,
        mut inner: MutexGuard<'a, Inner>,
        ready: impl Fn(&Inner) -> bool,
    ) -> Option<MutexGuard<'a, Inner>> {
        loop {
            if node.expected() != Some(session) || node.is_ending() {
                return None;
            }
            if inner.session == Some(session) && ready(&inner) {
                return Some(inner);
            }
            // The time-out is for an end that notifies nobody: it is looked at again.
            inner = self
                .changed
                .wait_timeout(inner, LOOK)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// A part arrived.
    pub(crate) fn part(
        &self,
        node: &Node,
        session: SessionId,
        epoch: u64,
        index: u32,
        bytes: &[u8],
    ) -> Result<(), StreamError> {
        let Some(mut inner) = self.wait(node, session, self.lock(), |_| true) else {
            return Ok(());
        };
        if let Some(replica) = &mut inner.replica {
            replica.part(epoch, index, bytes)?;
        }
        Ok(())
    }

    /// The primary has read a frame for the guest. It is given back if the guest runs here already, and is to get it.
    pub(crate) fn frame(
        &self,
        session: SessionId,
        number: u64,
        card: usize,
        bytes: Vec<u8>,
    ) -> Option<Vec<u8>> {
        let mut inner = self.lock();
        if card >= inner.cards {
            return None;
        }
        if inner.session == Some(session) {
            match &inner.rehearsal {
                Some(stage) => stage.give(card, &bytes),
                None => self.heard.store(true, Ordering::Relaxed),
            }
            inner.input.arrived(number, card, bytes, clock::now().0);
            return None;
        }
        let late = (inner.late).is_some_and(|(of, until)| of == session && clock::now() < until);
        late.then_some(bytes)
    }

    /// Takes out what was on its way beside the newest commit: the machine is about to run here. What the runner before passes on
    /// from now on comes [late](Self::frame).
    pub(crate) fn take_in_flight(&self) -> InFlight {
        let (mut inner, now) = (self.lock(), clock::now().0);
        let late = |session| (session, Time(now) + LATE);
        inner.late = inner.session.take().map(late);
        let output = inner.output.frames(now).into_iter();
        let output = output.map(|(card, frame)| (card, frame.to_vec())).collect();
        inner.output.clear();
        InFlight {
            output,
            input: inner.input.take(now),
        }
    }

    /// A checkpoint ended: it is verified, given to the host, and applied if the host accepts it.
    pub(crate) fn checkpoint(
        &self,
        node: &Node,
        from: Incarnation,
        checkpoint: Checkpoint,
    ) -> Result<(), StreamError> {
        let session = checkpoint.session;
        let ready = |inner: &Inner| inner.memory.is_some() || inner.failed;
        let Some(mut inner) = self.wait(node, session, self.lock(), ready) else {
            return Ok(());
        };
        let inner = &mut *inner;
        let (Some(replica), Some(memory)) = (&mut inner.replica, &inner.memory) else {
            return Err(StreamError::NoMachine);
        };
        replica.verify(checkpoint.epoch.0, checkpoint.parts, checkpoint.digest)?;
        if let Err(error) = frames::check(replica.held_output(), inner.cards) {
            replica.discard_pending();
            return Err(error.into());
        }
        if let Err(error) = inner.disks.keep(checkpoint.epoch.0, replica) {
            replica.discard_pending();
            return Err(error.into());
        }
        let arrived = clock::now();
        node.handle(Event::Message {
            from,
            message: Message::Checkpoint(checkpoint),
        });
        // The commit is on its way; whoever loads the replica waits for the lock that is held here.
        if node.take_accepted() == Some((session, checkpoint.epoch)) {
            let applied = replica.apply(&Preserving {
                memory,
                stage: inner.rehearsal.as_deref(),
            });
            debug_assert_eq!(
                applied,
                Some(checkpoint.epoch.0),
                "it was verified just now"
            );
            inner.committed = arrived;
            inner.output.committed(
                checkpoint.epoch.0,
                replica.held_output(),
                checkpoint.released_through.0,
                arrived.0,
            );
            inner.input.committed(checkpoint.rx_next);
            if let Err(error) = inner.disks.apply() {
                // What the host was told is durable is in the journal, but cannot be used here.
                tracing::error!("the disks cannot follow the replica: {error}");
                node.handle(Event::ReplicaLost);
            }
        } else {
            replica.discard_pending();
            inner.disks.withdraw(checkpoint.epoch.0)?;
        }
        Ok(())
    }
}
