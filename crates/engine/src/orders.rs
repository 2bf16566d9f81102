//! What the thread that holds the machine is told, and how it waits.

#[cfg(test)]
mod obeyed;

use romulus_machine::{Error, Exit, Paused};
use romulus_protocol::{
    host::Source,
    id::{SessionId, Term},
    time::Time,
};
use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, PoisonError},
};

/// One thing to do. Most are the protocol's actions; they are done in order.
#[derive(Debug)]
pub(crate) enum Order {
    /// Begin to fill this session's backup.
    Copy(SessionId),
    /// That is over.
    EndCopy(SessionId),
    /// Pause the guest.
    Freeze,
    /// End the running epoch as soon as that may be, and let the guest rest from there on.
    Rest,
    /// Let it go on.
    Thaw,
    /// Make ready to run.
    Load(Source),
    /// Run.
    Run {
        /// From what.
        source: Source,
        /// The term that begins.
        term: Term,
    },
    /// Drop the machine and the replica.
    Discard,
    /// Have a machine ready that can take a replica.
    Ready,
    /// Make ready to be filled.
    Prepare(SessionId),
    /// Load the replica on trial.
    Try(SessionId),
    /// A machine that was being made is there, or cannot be had. The number says which attempt.
    Built(u64, Box<Result<Paused, Error>>),
    /// The trial load is over: the machine, and how it went.
    Tried(SessionId, Box<(Paused, Result<(), Error>)>),
    /// The runner before has passed on a frame for this card, after this host took the machine over.
    Late(usize, Vec<u8>),
    /// The backup has answered.
    Acknowledged,
    /// The guest ended by itself; the number says in which life.
    Exited(u64, Exit),
    /// The operator's stop.
    Stop,
    /// The process is to end with success.
    End,
    /// The process is to end because of this.
    Fail(String),
}

#[derive(Debug, Default)]
struct Inner {
    orders: VecDeque<Order>,
    /// Held output waits since the last look.
    woken: bool,
}

/// The queue of orders.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl Orders {
    /// Adds an order and wakes the thread.
    pub(crate) fn push(&self, order: Order) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.orders.push_back(order);
        drop(inner);
        self.changed.notify_one();
    }

    /// Wakes the thread to look at the output.
    pub(crate) fn wake(&self) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.woken = true;
        drop(inner);
        self.changed.notify_one();
    }

    /// The next order. Waits for one, for [`Self::wake`], or until `deadline`.
    pub(crate) fn wait(&self, deadline: Time) -> Option<Order> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(order) = inner.orders.pop_front() {
                return Some(order);
            }
            if std::mem::take(&mut inner.woken) {
                return None;
            }
            let left = deadline.since(crate::clock::now());
            if left.is_zero() {
                return None;
            }
            inner = self
                .changed
                .wait_timeout(inner, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn orders_come_in_order_and_waiting_ends() {
        let orders = Orders::default();
        orders.push(Order::Freeze);
        orders.push(Order::Stop);
        let late = crate::clock::now() + Duration::from_mins(1);
        assert!(matches!(orders.wait(late), Some(Order::Freeze)));
        assert!(matches!(orders.wait(late), Some(Order::Stop)));
        orders.wake();
        assert!(orders.wait(late).is_none());
        assert!(orders.wait(crate::clock::now()).is_none());
    }
}
