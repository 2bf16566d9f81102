//! How the machine's owner tells the vCPU threads what to do, and learns that they have done it.

use std::{
    hint,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};

/// Turns of a loop for which one side waits for the other before it sleeps: about 100 µs. A pause is a short
/// conversation of the two, and to be woken costs either of them more than its turn takes.
const SPINS: u32 = 2000;

/// What a vCPU thread does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Runs the guest until there is another order.
    Run {
        /// Tells the guest first that it was stopped for long, so that its watchdogs forgive.
        forgive: bool,
    },
    /// Stands still.
    Park,
    /// Saves the vCPU's state into its box.
    Save,
    /// Makes ready to take state: the CPUID from its box, if there is one, and a time stamp counter that is nobody's.
    Clear,
    /// Takes the vCPU's state from its box.
    Restore,
    /// Ends the thread.
    Stop,
}

/// One order at a time for a number of threads.
pub(super) struct Gate {
    inner: Mutex<Inner>,
    /// Signalled to the threads.
    ordered: Condvar,
    /// Signalled to the owner.
    done: Condvar,
    /// The number of the newest order, for a look without the lock.
    newest: AtomicU64,
    /// How many threads have done it, for a look without the lock.
    finished: AtomicUsize,
    threads: usize,
    /// See [`SPINS`]; none where the other side has no processor to run on meanwhile.
    spins: u32,
}

struct Inner {
    order: Order,
    number: u64,
    done: usize,
    halted: bool,
}

impl Gate {
    /// A gate for `threads` threads, whose first order is to park.
    pub(super) fn new(threads: usize) -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Self {
            finished: AtomicUsize::new(0),
            spins: if processors > 1 { SPINS } else { 0 },
            inner: Mutex::new(Inner {
                order: Order::Park,
                number: 1,
                done: 0,
                halted: false,
            }),
            ordered: Condvar::new(),
            done: Condvar::new(),
            newest: AtomicU64::new(1),
            threads,
        }
    }

    /// Gives an order to all threads. The last one must have been [`Order::Run`], or done.
    pub(super) fn order(&self, order: Order) {
        let mut inner = self.lock();
        if inner.order == Order::Stop {
            return;
        }
        inner.order = order;
        inner.number += 1;
        inner.done = 0;
        self.finished.store(0, Ordering::Release);
        self.newest.store(inner.number, Ordering::Release);
        self.ordered.notify_all();
    }

    /// Waits until all threads have done what was ordered. `false` if the machine has stopped by itself.
    #[must_use]
    pub(super) fn wait_done(&self) -> bool {
        self.spin(|| self.finished.load(Ordering::Acquire) == self.threads);
        let mut inner = self.lock();
        while inner.done < self.threads && !inner.halted {
            inner = self
                .done
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
        }
        !inner.halted
    }

    /// For a thread that has seen order number `seen`: waits for the next. `meanwhile` is called again and again
    /// until it has come, but no more once the thread sleeps.
    pub(super) fn next(&self, seen: &mut u64, meanwhile: impl Fn()) -> Order {
        self.spin(|| {
            meanwhile();
            self.is_newer(*seen)
        });
        let mut inner = self.lock();
        while inner.number == *seen {
            inner = self
                .ordered
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *seen = inner.number;
        inner.order
    }

    /// Whether there is an order newer than number `seen`.
    pub(super) fn is_newer(&self, seen: u64) -> bool {
        self.newest.load(Ordering::Acquire) != seen
    }

    /// For a thread: order number `seen` is done.
    pub(super) fn done(&self, seen: u64) {
        let mut inner = self.lock();
        if inner.number == seen {
            inner.done += 1;
            self.finished.store(inner.done, Ordering::Release);
            if inner.done == self.threads {
                self.done.notify_all();
            }
        }
    }

    /// For a thread: the machine cannot go on. All threads end, and the owner stops waiting.
    pub(super) fn halt(&self) {
        self.lock().halted = true;
        self.done.notify_all();
        self.order(Order::Stop);
    }

    /// Waits a little for what is likely to come soon.
    fn spin(&self, ready: impl Fn() -> bool) {
        for _ in 0..self.spins {
            if ready() {
                break;
            }
            hint::spin_loop();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::Arc, thread};

    #[test]
    fn orders_are_done_by_all_before_the_owner_goes_on() {
        const THREADS: usize = 4;
        let gate = Arc::new(Gate::new(THREADS));
        let saved = Arc::new(AtomicU64::new(0));
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let (gate, saved) = (Arc::clone(&gate), Arc::clone(&saved));
                thread::spawn(move || {
                    let mut seen = 0;
                    loop {
                        match gate.next(&mut seen, || ()) {
                            Order::Run { .. } => {
                                while !gate.is_newer(seen) {
                                    std::hint::spin_loop();
                                }
                            }
                            Order::Save => {
                                saved.fetch_add(1, Ordering::Relaxed);
                                gate.done(seen);
                            }
                            Order::Stop => return,
                            Order::Park | Order::Clear | Order::Restore => gate.done(seen),
                        }
                    }
                })
            })
            .collect();
        assert!(gate.wait_done());
        for round in 1..200 {
            gate.order(Order::Run { forgive: false });
            gate.order(Order::Park);
            assert!(gate.wait_done());
            gate.order(Order::Save);
            assert!(gate.wait_done());
            assert_eq!(saved.load(Ordering::Relaxed), round * THREADS as u64);
        }
        gate.order(Order::Stop);
        for thread in threads {
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_halt_ends_the_wait_and_is_the_last_order() {
        let gate = Gate::new(2);
        gate.halt();
        assert!(!gate.wait_done());
        gate.order(Order::Park);
        let mut seen = 0;
        assert_eq!(gate.next(&mut seen, || ()), Order::Stop);
    }
}
