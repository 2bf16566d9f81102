//! What waits to be sent on one link, in order.

use super::Item;
use crate::link::Closer;
use romulus_protocol::message::Message;
use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Bytes of frames that wait to be sent at most. A link that is behind by so much is of no use to them.
const FRAMES: usize = 1 << 20;

#[derive(Default)]
struct Inner {
    items: VecDeque<Item>,
    /// How many of them are frames, and their bytes.
    frames: usize,
    frame_bytes: usize,
    /// Where only frames wait, they do so until then.
    rests_until: Option<Instant>,
    closed: bool,
}

impl Inner {
    fn pop(&mut self) -> Option<Item> {
        let item = self.items.pop_front()?;
        if let Item::Frame(message) = &item {
            self.frames -= 1;
            self.frame_bytes -= frame_length(message);
        }
        Some(item)
    }

    /// For how long nothing is to be taken, whether a frame waits or none does.
    fn rests(&mut self) -> Option<Duration> {
        if self.items.len() > self.frames {
            return None;
        }
        let rest = self.rests_until?.checked_duration_since(Instant::now());
        if rest.is_none_or(|rest| rest.is_zero()) {
            self.rests_until = None;
            return None;
        }
        rest
    }
}

fn frame_length(message: &Message) -> usize {
    match message {
        Message::Frame { bytes, .. } => bytes.len(),
        _ => 0,
    }
}

/// The queue of one link. Messages are small, and at most one epoch is in it.
pub(crate) struct Outbox {
    inner: Mutex<Inner>,
    changed: Condvar,
    closer: Closer,
}

impl Outbox {
    pub(crate) fn new(closer: Closer) -> Outbox {
        Outbox {
            inner: Mutex::default(),
            changed: Condvar::new(),
            closer,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an item.
    pub(crate) fn push(&self, item: Item) {
        self.push_quietly(item);
        self.changed.notify_one();
    }

    /// Adds an item without waking the sender: in the pause every system call counts.
    pub(crate) fn push_quietly(&self, item: Item) {
        let mut inner = self.lock();
        if !inner.closed {
            inner.items.push_back(item);
        }
    }

    /// Adds a [`Message::Frame`], unless too many wait already: then it is false. An `urgent` one does not let the sender
    /// rest ([`Self::rest`]).
    pub(crate) fn push_frame(&self, message: Message, urgent: bool) -> bool {
        let length = frame_length(&message);
        let mut inner = self.lock();
        if inner.closed || inner.frame_bytes + length > FRAMES {
            return false;
        }
        inner.frames += 1;
        inner.frame_bytes += length;
        inner.items.push_back(Item::Frame(message));
        if urgent {
            inner.rests_until = None;
        }
        // A sender that rests looks by itself, one that has other things to do as well.
        let wakes = urgent || (inner.items.len() == 1 && inner.rests_until.is_none());
        drop(inner);
        if wakes {
            self.changed.notify_one();
        }
        true
    }

    /// For so long frames wait, unless something else comes.
    pub(crate) fn rest(&self, time: Duration) {
        self.lock().rests_until = Instant::now().checked_add(time);
    }

    /// The next item, if that is a frame.
    pub(crate) fn take_frame(&self) -> Option<Message> {
        let mut inner = self.lock();
        if !matches!(inner.items.front(), Some(Item::Frame(_))) {
            return None;
        }
        inner.pop().and_then(|item| match item {
            Item::Frame(message) => Some(message),
            _ => None,
        })
    }

    /// Wakes the sender.
    pub(crate) fn notify(&self) {
        self.changed.notify_one();
    }

    /// Ends the link: both of its threads return.
    pub(crate) fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.items.clear();
        inner.frames = 0;
        inner.frame_bytes = 0;
        drop(inner);
        self.changed.notify_one();
        self.closer.close();
    }

    /// The next item. With `busy` it does not wait. Nothing and closed: `Err`.
    pub(crate) fn take(&self, busy: bool) -> Result<Option<Item>, ()> {
        let mut inner = self.lock();
        loop {
            if inner.closed {
                return Err(());
            }
            let rest = inner.rests();
            if rest.is_none()
                && let Some(item) = inner.pop()
            {
                return Ok(Some(item));
            }
            if busy {
                return Ok(None);
            }
            inner = if let Some(rest) = rest {
                let waited = self.changed.wait_timeout(inner, rest);
                waited.unwrap_or_else(PoisonError::into_inner).0
            } else {
                let waited = self.changed.wait(inner);
                waited.unwrap_or_else(PoisonError::into_inner)
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Item, Outbox};
    use crate::backup::testing::{linked, session};
    use romulus_protocol::message::Message;
    use std::{thread, time::Duration};

    const LONG: Duration = Duration::from_hours(1);

    fn outbox() -> Outbox {
        Outbox::new(linked().0.closer())
    }

    fn frame(number: u64) -> Message {
        Message::Frame {
            session: session(1),
            number,
            card: 0,
            bytes: vec![0; 60],
        }
    }

    /// The number of the frame that is taken next; nothing if it waits, and a message's is 0.
    fn next(outbox: &Outbox, busy: bool) -> Option<u64> {
        match outbox.take(busy).expect("open") {
            Some(Item::Frame(Message::Frame { number, .. })) => Some(number),
            Some(_) => Some(0),
            None => None,
        }
    }

    #[test]
    fn frames_wait_while_the_sender_rests_until_something_else_comes() {
        let outbox = outbox();
        outbox.rest(LONG);
        assert!(outbox.push_frame(frame(1), false) && outbox.push_frame(frame(2), false));
        assert_eq!(next(&outbox, true), None, "they wait");
        outbox.push(Item::Shut(session(1)));
        let order: Vec<_> = (0..3).map(|_| next(&outbox, true)).collect();
        assert_eq!(order, [Some(1), Some(2), Some(0)]);
        assert!(outbox.push_frame(frame(3), false));
        assert_eq!(next(&outbox, true), None, "the rest goes on");
        assert!(outbox.push_frame(frame(4), true));
        assert_eq!(next(&outbox, true), Some(3), "an urgent one ends it");
        assert_eq!(next(&outbox, true), Some(4));
    }

    #[test]
    fn a_rest_ends_by_itself() {
        let outbox = outbox();
        outbox.rest(Duration::from_millis(20));
        thread::scope(|scope| {
            // It rests, or waits for anything at all: the frame is taken in both cases.
            let taken = scope.spawn(|| next(&outbox, false));
            assert!(outbox.push_frame(frame(1), false));
            assert_eq!(taken.join().ok().flatten(), Some(1));
        });
    }

    #[test]
    fn a_sender_that_rests_is_woken_by_anything_but_frames() {
        let outbox = outbox();
        for urgent in [false, true] {
            outbox.rest(LONG);
            thread::scope(|scope| {
                let taken = scope.spawn(|| next(&outbox, false));
                if urgent {
                    assert!(outbox.push_frame(frame(5), true));
                } else {
                    outbox.push(Item::Shut(session(1)));
                }
                let expected = if urgent { 5 } else { 0 };
                assert_eq!(taken.join().ok().flatten(), Some(expected));
            });
        }
    }
}
