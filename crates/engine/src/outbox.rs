//! What waits to be sent on one link, and the thread that sends it.
//!
//! Encoding happens here, while the guest runs; the pages of the first full copy are read here
//! whenever nothing else is to be sent.

mod early;
mod queue;
#[cfg(test)]
mod tests;

use crate::{
    clock,
    disks::{DiskError, Resync},
    full_copy::FullCopy,
    link::{LinkError, Sender},
    node::{Node, lock},
    phases::Phase,
};
use early::{Early, Told};
pub(crate) use queue::Outbox;
use romulus_checkpoint::{Encoder, Staging};
use romulus_machine::{Memory, WarmPages};
use romulus_protocol::{
    id::{Epoch, SessionId},
    message::{Checkpoint, Message},
    wire,
};
use std::{
    sync::{Arc, Mutex, atomic::Ordering},
    time::{Duration, Instant},
};

/// Pages of the full copy between two looks at what else is to be sent: about a millisecond.
const BULK: usize = 256;
/// Bytes that are sent with one call.
const TOGETHER: usize = 128 << 10;

/// After frames were sent, others wait for so many times what that took of the processor: passing them on is to have a small part
/// of it, however many come. Each sending costs about the same, whether it is one frame or all that came meanwhile.
const REST: u32 = 32;
/// And for no longer than this: what waits here when the host dies is lost, and a client has to ask again.
const REST_MAX: Duration = Duration::from_millis(20);

/// One thing to send.
pub(crate) enum Item {
    /// A message.
    Message(Message),
    /// [`Message::Frame`].
    Frame(Message),
    /// A sealed epoch: its parts, then this message.
    Epoch(Checkpoint, Staging),
    /// A session begins: its full copy is sent from now on.
    Open(Box<Stream>),
    /// The backup told what its disk holds.
    Digests {
        session: SessionId,
        disk: u16,
        first: u64,
        bytes: Vec<u8>,
        last: bool,
    },
    /// A session is over.
    Shut(SessionId),
}

/// The primary's side of one session.
pub(crate) struct Stream {
    pub(crate) id: SessionId,
    pub(crate) encoder: Encoder,
    pub(crate) memory: Memory,
    /// The epoch to which the pages of the full copy belong: the one that is sealed next.
    pub(crate) epoch: Epoch,
    /// The next page of the full copy.
    pub(crate) next: usize,
    /// What differs on the disks.
    pub(crate) resync: Resync,
    /// The disks' log is full: nothing more of them before the epoch has ended.
    pub(crate) full: bool,
    /// Told how far the full copy is.
    pub(crate) full_copy: Arc<FullCopy>,
    /// Told which pages had changed.
    pub(crate) warm: Arc<Mutex<WarmPages>>,
    /// Checkpoints carry the output that they hold back.
    pub(crate) output: bool,
}

/// Why a writer ends.
#[derive(Debug, thiserror::Error)]
enum WriterError {
    /// The link.
    #[error("the link cannot be written to: {0}")]
    Link(#[from] LinkError),
    /// A disk that cannot be read: this session cannot be completed.
    #[error("the full copy cannot be made: {0}")]
    Disk(#[from] DiskError),
    /// More digests than are kept before a copy begins.
    #[error("the other host tells more of its disks than it was asked")]
    Early,
}

/// The thread that sends.
pub(crate) struct Writer {
    pub(crate) node: Arc<Node>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) sender: Sender,
    stream: Option<Box<Stream>>,
    /// Told for a session whose stream is not here yet.
    early: Early,
    /// Reused for every epoch.
    bytes: Vec<u8>,
    part: Vec<u8>,
}

impl Writer {
    pub(crate) fn new(node: Arc<Node>, outbox: Arc<Outbox>, sender: Sender) -> Writer {
        Writer {
            node,
            outbox,
            sender,
            stream: None,
            early: Early::default(),
            bytes: Vec::new(),
            part: Vec::new(),
        }
    }

    /// Sends until the link is closed.
    pub(crate) fn run(mut self) {
        match self.send_all() {
            Ok(()) => {}
            Err(WriterError::Link(error)) => tracing::debug!(%error, "the link ended"),
            Err(error) => tracing::error!("{error}"),
        }
        self.outbox.close();
    }

    fn send_all(&mut self) -> Result<(), WriterError> {
        loop {
            let copying = self.stream.as_ref().is_some_and(|s| s.has_work());
            match self.outbox.take(copying) {
                Err(()) => return Ok(()),
                Ok(None) => self.copy()?,
                Ok(Some(Item::Message(message))) => self.sender.send_message(&message)?,
                Ok(Some(Item::Frame(message))) => self.frames(&message)?,
                Ok(Some(Item::Epoch(checkpoint, mut staging))) => {
                    let sent = self.epoch(checkpoint, &mut staging);
                    self.node.recycle(staging);
                    sent?;
                }
                Ok(Some(Item::Open(stream))) => {
                    let early = self.early.take(stream.id);
                    let stream = self.stream.insert(stream);
                    for told in early {
                        stream.told(&told)?;
                    }
                }
                Ok(Some(Item::Digests {
                    session,
                    disk,
                    first,
                    bytes,
                    last,
                })) => {
                    let told = Told {
                        disk,
                        first,
                        bytes,
                        last,
                    };
                    match self.stream.as_mut().filter(|s| s.id == session) {
                        Some(stream) => stream.told(&told)?,
                        None if self.early.keep(session, told) => {}
                        None => return Err(WriterError::Early),
                    }
                }
                Ok(Some(Item::Shut(session))) => {
                    if self.stream.as_ref().is_some_and(|s| s.id == session) {
                        self.stream = None;
                    }
                }
            }
        }
    }

    /// Sends some pages of the first full copy.
    fn copy(&mut self) -> Result<(), WriterError> {
        let Some(stream) = &mut self.stream else {
            return Ok(());
        };
        if stream.next >= stream.memory.pages() {
            stream.full = !stream.resync.work()?;
            stream.look();
            return Ok(());
        }
        let end = (stream.next + BULK).min(stream.memory.pages());
        let mut out = Parts {
            session: stream.id,
            epoch: stream.epoch,
            sender: &mut self.sender,
            bytes: &mut self.bytes,
            part: &mut self.part,
            sent: 0,
            sending: Duration::ZERO,
        };
        out.bytes.clear();
        let range = stream.next..end;
        stream.full_copy.reach(end);
        stream
            .encoder
            .bulk(&stream.memory, range, &mut |index, bytes| {
                out.send(index, bytes)
            })?;
        out.flush()?;
        let figures = &self.node.figures;
        figures.sent_bytes.fetch_add(out.sent, Ordering::Relaxed);
        figures.copied.store(end as u64, Ordering::Relaxed);
        stream.next = end;
        stream.look();
        Ok(())
    }

    /// Sends a frame, and with the same call those that wait behind it. Those that come in the next moment then have to wait.
    fn frames(&mut self, first: &Message) -> Result<(), LinkError> {
        let worked = clock::thread_time();
        self.bytes.clear();
        wire::encode_message(first, &mut self.bytes);
        while self.bytes.len() < TOGETHER
            && let Some(message) = self.outbox.take_frame()
        {
            wire::encode_message(&message, &mut self.bytes);
        }
        let figures = &self.node.figures;
        figures
            .sent_bytes
            .fetch_add(self.bytes.len() as u64, Ordering::Relaxed);
        self.sender.send(&self.bytes)?;
        let work = clock::thread_time().saturating_sub(worked);
        self.outbox.rest((work * REST).min(REST_MAX));
        Ok(())
    }

    fn epoch(
        &mut self,
        mut checkpoint: Checkpoint,
        staging: &mut Staging,
    ) -> Result<(), LinkError> {
        let Some(stream) = &mut self.stream else {
            return Ok(());
        };
        if stream.id != checkpoint.session {
            return Ok(());
        }
        let (started, worked) = (Instant::now(), clock::thread_time());
        if stream.output {
            // None of it leaves before this epoch's commit, so all of it is still there.
            (self.node.output).copy_held(checkpoint.epoch, staging.output());
        }
        let mut out = Parts {
            session: stream.id,
            epoch: checkpoint.epoch,
            sender: &mut self.sender,
            bytes: &mut self.bytes,
            part: &mut self.part,
            sent: 0,
            sending: Duration::ZERO,
        };
        out.bytes.clear();
        let sealed = stream
            .encoder
            .encode(staging, &mut |index, bytes| out.send(index, bytes))?;
        // Before the end is sent: the guest's next pause cannot come before its answer.
        lock(&stream.warm).judge(staging.page_numbers(), stream.encoder.changed());
        stream.epoch = checkpoint.epoch.next();
        stream.full = false;
        checkpoint.parts = sealed.parts;
        checkpoint.digest = sealed.digest;
        out.add(&Message::Checkpoint(checkpoint));
        out.flush()?;
        let (sent, sending) = (out.sent, out.sending);
        let encoded = started.elapsed().saturating_sub(sending);
        self.node.phases.record(Phase::Encode, encoded);
        self.node.phases.record(Phase::Send, sending);
        let figures = &self.node.figures;
        let work = clock::thread_time().saturating_sub(worked);
        // Far below the 584 years that fit.
        let work = u64::try_from(work.as_nanos()).unwrap_or(u64::MAX);
        figures.last_work.store(work, Ordering::Relaxed);
        let changed = stream.encoder.changed().len() as u64;
        figures.last_changed.store(changed, Ordering::Relaxed);
        figures.sent_bytes.fetch_add(sent, Ordering::Relaxed);
        figures
            .sent_pages
            .fetch_add(staging.pages() as u64, Ordering::Relaxed);
        Ok(())
    }
}

impl Stream {
    /// Whether there is something of the full copy to send.
    fn has_work(&self) -> bool {
        self.next < self.memory.pages() || (self.resync.has_work() && !self.full)
    }

    /// The backup told what some of its disk holds.
    fn told(&mut self, told: &Told) -> Result<(), DiskError> {
        self.resync
            .told(told.disk, told.first, &told.bytes, told.last)?;
        self.look();
        Ok(())
    }

    /// Says so when everything has been read.
    fn look(&self) {
        if self.next >= self.memory.pages() && self.resync.is_done() {
            self.full_copy.finish();
        }
    }
}

/// Sends parts of one epoch, many with one call: a small epoch goes as a whole.
struct Parts<'a> {
    session: SessionId,
    epoch: Epoch,
    sender: &'a mut Sender,
    bytes: &'a mut Vec<u8>,
    part: &'a mut Vec<u8>,
    sent: u64,
    sending: Duration,
}

impl Parts<'_> {
    fn send(&mut self, index: u32, bytes: &[u8]) -> Result<(), LinkError> {
        self.part.clear();
        self.part.extend_from_slice(bytes);
        let message = Message::Part {
            session: self.session,
            epoch: self.epoch,
            index,
            bytes: std::mem::take(self.part),
        };
        self.add(&message);
        if let Message::Part { bytes, .. } = message {
            // The buffer is used again.
            *self.part = bytes;
        }
        if self.bytes.len() >= TOGETHER {
            self.flush()?;
        }
        Ok(())
    }

    fn add(&mut self, message: &Message) {
        wire::encode_message(message, self.bytes);
    }

    fn flush(&mut self) -> Result<(), LinkError> {
        let begun = Instant::now();
        self.sent += self.bytes.len() as u64;
        let result = self.sender.send(self.bytes);
        self.bytes.clear();
        self.sending += begun.elapsed();
        result
    }
}
