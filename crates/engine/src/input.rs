//! Frames that the guest gets: counted as they are read, and put on the way to the backup.

#[cfg(test)]
mod tests;

use crate::{node::lock, outbox::Outbox};
use romulus_machine::{Incoming, Inlet};
use romulus_network::{
    HEADER,
    flow::{Carries, GLANCE, flow},
};
use romulus_protocol::{id::SessionId, message::Message};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

/// Bytes at the end of the virtio-net header that a tap leaves as they were.
const UNSET: std::ops::Range<usize> = HEADER - 2..HEADER;

/// Figures for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InputFigures {
    /// Frames that were passed on to the backup.
    pub passed_on: u64,
    /// Frames that were not, because the link did not keep up.
    pub skipped: u64,
    /// Frames that this guest was given at a takeover, because its last commit had not seen them.
    pub given_again: u64,
}

/// The counter of a process. It outlives the machine's lives.
#[derive(Default)]
pub(crate) struct Input {
    /// The number of the next frame. It never falls, so that a session's numbers rise.
    next: AtomicU64,
    to: Mutex<Option<(SessionId, Arc<Outbox>)>>,
    /// Media is passed on, too.
    media: AtomicBool,
    passed_on: AtomicU64,
    skipped: AtomicU64,
    given_again: AtomicU64,
}

impl Input {
    /// The number of the first frame that the guest has not got. Exact while it is paused.
    pub(crate) fn next(&self) -> u64 {
        self.next.load(Ordering::Acquire)
    }

    /// From now on frames are passed on to this session's backup.
    pub(crate) fn pass_on(&self, session: SessionId, outbox: Arc<Outbox>) {
        *lock(&self.to) = Some((session, outbox));
    }

    /// Whether media is passed on, too. Where the backup runs the machine in a moment it is still heard; after a failure it is not.
    pub(crate) fn pass_on_media(&self, media: bool) {
        self.media.store(media, Ordering::Relaxed);
    }

    /// Frames are passed on to nobody.
    pub(crate) fn keep(&self) {
        *lock(&self.to) = None;
    }

    /// So many frames were given to a guest that took over.
    pub(crate) fn gave_again(&self, frames: u64) {
        self.given_again.fetch_add(frames, Ordering::Relaxed);
    }

    /// Figures for people.
    pub(crate) fn figures(&self) -> InputFigures {
        InputFigures {
            passed_on: self.passed_on.load(Ordering::Relaxed),
            skipped: self.skipped.load(Ordering::Relaxed),
            given_again: self.given_again.load(Ordering::Relaxed),
        }
    }
}

/// Whether a frame is of use after a failure. Media is not: it would come in a burst, later than any ear waits, and it is
/// most of what a relay gets.
fn is_worth_it(frame: &dyn Incoming) -> bool {
    let mut glance = [0; HEADER + GLANCE];
    let seen = frame.length().min(glance.len());
    frame.copy_to(&mut glance[..seen]);
    let start = glance[..seen].get(HEADER..).unwrap_or_default();
    let carries = flow(start, frame.length().saturating_sub(HEADER)).carries;
    !matches!(carries, Carries::Rtp | Carries::Rtcp)
}

impl Inlet for Input {
    fn received(&self, card: usize, frame: &dyn Incoming) {
        let number = self.next.fetch_add(1, Ordering::AcqRel);
        let to = lock(&self.to);
        let (Some((session, outbox)), Ok(card)) = (&*to, u16::try_from(card)) else {
            return;
        };
        // The backup is about to run the machine: nothing is to wait on the way.
        let urgent = self.media.load(Ordering::Relaxed);
        if !urgent && !is_worth_it(frame) {
            return;
        }
        let mut bytes = vec![0; frame.length()];
        frame.copy_to(&mut bytes);
        if let Some(unset) = bytes.get_mut(UNSET) {
            unset.fill(0);
        }
        let message = Message::Frame {
            session: *session,
            number,
            card,
            bytes,
        };
        let pushed = outbox.push_frame(message, urgent);
        let count = if pushed {
            &self.passed_on
        } else {
            &self.skipped
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}
