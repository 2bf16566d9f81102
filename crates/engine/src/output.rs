//! Output commit: every frame that the guest sends passes here, at once or when the permit says so.

#[cfg(test)]
mod sealed;
#[cfg(test)]
mod tests;

use crate::{clock, orders::Orders};
use romulus_machine::{Outgoing, Outlet, TapWriter};
use romulus_network::{
    Addresses, Delays, HEADER, Mac, Mode, OutputQueue, flow::GLANCE, in_flight::frames,
    mode::Verdict,
};
use romulus_protocol::{
    host::{Pass, Permit},
    id::Epoch,
    time::Time,
};
use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Bytes of one epoch's output that its checkpoint carries at most.
pub(crate) const RESENT_MAX: usize = 32 << 20;

/// Figures for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutputFigures {
    /// Frames that wait.
    pub held_frames: usize,
    /// Their bytes.
    pub held_bytes: usize,
    /// Frames that were lost because the queue was full.
    pub full: u64,
    /// Frames that left after they were held.
    pub released: u64,
    /// Frames that were held and that the tap then refused.
    pub dropped: u64,
    /// Frames that never had to wait, because the machine ran alone.
    pub passed: u64,
    /// Frames that did not wait because the mode lets them pass at once.
    pub at_once: u64,
    /// Frames that were sent again at a takeover, because nobody knows whether they had left.
    pub sent_again: u64,
}

struct Inner {
    queue: OutputQueue,
    permit: Permit,
    /// The epoch that runs.
    epoch: u64,
    /// Output of the running epoch is held.
    holding: bool,
    taps: Vec<TapWriter>,
    cards: Vec<Mac>,
    addresses: Addresses,
    /// The addresses as they go into checkpoints, and of which version they are.
    known: Vec<u8>,
    version: u64,
    mode: Mode,
    passed: u64,
    at_once: u64,
    sent_again: u64,
    /// It was said that more than media passes at once.
    warned: bool,
}

/// The gate. One for each process; it outlives the machine's lives.
pub(crate) struct Output {
    inner: Mutex<Inner>,
    orders: Arc<Orders>,
}

/// What ends with an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seal {
    /// All output of epochs up to this one has left.
    pub(crate) released_through: Epoch,
    /// The epoch produced output that was held.
    pub(crate) held: bool,
}

impl Output {
    /// A gate that lets nothing pass. `limit` bounds the bytes that wait; `cards` are the MAC
    /// addresses. `mode` says what need not wait while a permit lets such output pass.
    pub(crate) fn new(limit: usize, cards: Vec<Mac>, mode: Mode, orders: Arc<Orders>) -> Output {
        let inner = Inner {
            queue: OutputQueue::new(limit),
            permit: Permit::nothing(),
            epoch: 1,
            holding: false,
            taps: Vec::new(),
            addresses: Addresses::new(&cards),
            cards,
            known: Vec::new(),
            version: 0,
            mode,
            passed: 0,
            at_once: 0,
            sent_again: 0,
            warned: false,
        };
        Output {
            inner: Mutex::new(inner),
            orders,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What may leave from now on; what waited and may leave, leaves before this returns.
    pub(crate) fn permit(&self, permit: Permit) {
        let mut inner = self.lock();
        inner.permit = permit;
        inner.release();
    }

    /// Where the frames go: the taps of the machine that is about to run.
    pub(crate) fn attach(&self, taps: Vec<TapWriter>) {
        self.lock().taps = taps;
    }

    /// A term begins: epochs are counted from 1. `keep` says whether what waits belongs to it.
    pub(crate) fn begin(&self, keep: bool) {
        let mut inner = self.lock();
        if keep {
            inner.queue.begin_term();
        } else {
            inner.queue.discard();
        }
        inner.epoch = 1;
        inner.holding = false;
    }

    /// Drops what waits, and the way out.
    pub(crate) fn clear(&self) {
        let mut inner = self.lock();
        inner.queue.discard();
        inner.taps.clear();
        inner.holding = false;
    }

    /// The running epoch ends. To be called while the guest is paused.
    pub(crate) fn seal(&self) -> Seal {
        let mut inner = self.lock();
        let held = std::mem::take(&mut inner.holding);
        inner.epoch += 1;
        let running = inner.epoch;
        Seal {
            released_through: Epoch(inner.queue.released_through(running)),
            held,
        }
    }

    /// Whether output of the running epoch waits.
    pub(crate) fn holding(&self) -> bool {
        self.lock().holding
    }

    /// Whether everything may leave.
    pub(crate) fn is_free(&self) -> bool {
        self.lock().permit.pass == Pass::All
    }

    /// Appends the machine's addresses as they are known now.
    pub(crate) fn save_addresses(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.lock().known);
    }

    /// Takes the addresses that came with a checkpoint. Damaged ones are nothing to stop for: the
    /// guest's own frames will tell them again.
    pub(crate) fn load_addresses(&self, bytes: &[u8]) {
        let mut inner = self.lock();
        if bytes.is_empty() {
            return;
        }
        match Addresses::decode(&inner.cards, bytes) {
            Ok(addresses) => {
                inner.version = addresses.version();
                inner.addresses = addresses;
                inner.known = bytes.to_vec();
            }
            Err(error) => tracing::warn!(%error, "the replica's addresses cannot be read"),
        }
    }

    /// Says on the network that the machine is here, if anything may leave at all.
    pub(crate) fn announce(&self) -> usize {
        let inner = self.lock();
        let now = clock::now();
        let in_time = inner.permit.until.is_none_or(|until| now < until);
        if inner.permit.pass == Pass::Nothing || !in_time {
            return 0;
        }
        let mut count = 0;
        for (card, frame) in inner.addresses.announcements() {
            if let Some(tap) = inner.taps.get(card) {
                let mut bytes = vec![0; HEADER];
                bytes.extend_from_slice(&frame);
                match tap.write(&bytes) {
                    Ok(()) => count += 1,
                    Err(error) => tracing::warn!(%error, "an announcement could not be sent"),
                }
            }
        }
        count
    }

    /// Appends what is held of a sealed epoch, as its checkpoint carries it. Of more than [`RESENT_MAX`] bytes the rest is left
    /// out: a takeover would lose it, as a network might.
    pub(crate) fn copy_held(&self, epoch: Epoch, out: &mut Vec<u8>) {
        for frame in self.lock().queue.frames_of(epoch.0) {
            if out.len() + frame.bytes.len() > RESENT_MAX {
                break;
            }
            frames::put(out, frame.card, frame.bytes);
        }
    }

    /// Sends what an earlier term committed and may not have sent, before anything of this one, if everything may leave. Gives
    /// the number of frames that left.
    pub(crate) fn send_again(&self, kept: &[(usize, Vec<u8>)]) -> u64 {
        let mut inner = self.lock();
        let free = inner.permit.pass == Pass::All
            && inner.permit.allows(clock::now(), Epoch(inner.epoch), false);
        if !free {
            return 0;
        }
        let written = kept.iter().filter(|(card, frame)| {
            let tap = inner.taps.get(*card);
            tap.is_some_and(|tap| tap.write(frame).is_ok())
        });
        let sent = written.count() as u64;
        inner.sent_again += sent;
        sent
    }

    /// Which output is held.
    pub(crate) fn mode(&self) -> Mode {
        self.lock().mode.clone()
    }

    /// From now on this output is held. What waits goes on waiting.
    pub(crate) fn set_mode(&self, mode: Mode) {
        let mut inner = self.lock();
        inner.mode = mode;
        inner.warned = false;
    }

    /// Figures for people.
    pub(crate) fn figures(&self) -> OutputFigures {
        let inner = self.lock();
        let counters = inner.queue.counters();
        OutputFigures {
            held_frames: inner.queue.len(),
            held_bytes: inner.queue.bytes(),
            full: counters.full,
            released: counters.released.frames,
            dropped: counters.dropped.frames,
            passed: inner.passed,
            at_once: inner.at_once,
            sent_again: inner.sent_again,
        }
    }

    /// How long frames were held.
    pub(crate) fn delays(&self) -> Delays {
        self.lock().queue.delays().clone()
    }

    /// Forgets how long frames were held.
    pub(crate) fn clear_delays(&self) {
        self.lock().queue.clear_delays();
    }
}

impl Inner {
    fn release(&mut self) {
        if self.queue.is_empty() {
            return;
        }
        let (permit, taps) = (self.permit, &self.taps);
        self.queue.release(
            // Read for each frame: a primary that is cut off stops in time.
            || clock::now().0,
            |epoch, now| permit.allows(Time(now), Epoch(epoch), false),
            |card, frame| match taps.get(card) {
                Some(tap) => tap.write(frame),
                None => Err(io::ErrorKind::NotConnected.into()),
            },
        );
    }

    fn learn(&mut self, card: usize, frame: &[u8]) {
        self.addresses.learn(card, frame);
        if self.addresses.version() != self.version {
            self.version = self.addresses.version();
            self.known.clear();
            self.addresses.encode(&mut self.known);
        }
    }

    /// Whether the mode lets a frame go before its epoch is committed, and the permit does, too. Such a frame overtakes what
    /// waits: nothing that is held depends on media.
    fn passes_at_once(&mut self, start: &[u8], length: usize, now: Time) -> bool {
        if !self.permit.allows(now, Epoch(self.epoch), true) {
            return false;
        }
        let verdict = self.mode.verdict(start, length);
        if verdict == Verdict::Hold {
            return false;
        }
        if verdict == Verdict::PassOther && !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(
                "this machine sends more than media, and `mode = \"no-net\"` holds none of it: after a takeover whoever \
                 talks to it may see it go back in time; `mode = \"split\"` holds all but media"
            );
        }
        true
    }
}

impl Outlet for Output {
    fn send(&self, card: usize, frame: &mut dyn Outgoing) {
        let mut inner = self.lock();
        let now = clock::now();
        let mut glance = [0; HEADER + GLANCE];
        let seen = frame.length().min(glance.len());
        frame.copy_to(&mut glance[..seen]);
        if let Some(frame) = glance[..seen].get(HEADER..) {
            inner.learn(card, frame);
        }
        let epoch = inner.epoch;
        let free = inner.permit.pass == Pass::All && inner.permit.allows(now, Epoch(epoch), false);
        if free && inner.queue.is_empty() {
            // A tap that refuses it has lost it, and the card counts that.
            if frame.pass().is_ok() {
                inner.passed += 1;
            }
            return;
        }
        let length = frame.length();
        if inner.passes_at_once(&glance[..seen], length, now) {
            if frame.pass().is_ok() {
                inner.at_once += 1;
            }
            return;
        }
        let pushed = inner
            .queue
            .push(card, epoch, now.0, length, |into| frame.copy_to(into));
        if let Err(full) = pushed {
            // As with a card whose queue is full, the guest's protocols send it again.
            tracing::debug!(%full, "a frame is lost");
        }
        if !std::mem::replace(&mut inner.holding, true) {
            drop(inner);
            self.orders.wake();
        }
    }
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output").finish_non_exhaustive()
    }
}
