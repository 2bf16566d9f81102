//! Why and when a machine stopped by itself.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Why a machine stopped running by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit {
    /// The guest switched itself off (ACPI S5).
    PoweredOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest's kernel said that it panicked (pvpanic).
    Panicked,
    /// A vCPU can't go on; the text says why.
    Failed(String),
}

/// Holds the first exit, for all who wait for it.
#[derive(Debug, Default)]
pub(crate) struct ExitLatch {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    exit: Option<Exit>,
    wakes: u64,
}

impl ExitLatch {
    /// Sets the exit, unless there is one.
    pub(crate) fn set(&self, exit: Exit) {
        self.lock().exit.get_or_insert(exit);
        self.changed.notify_all();
    }

    /// The exit, if there is one.
    pub(crate) fn get(&self) -> Option<Exit> {
        self.lock().exit.clone()
    }

    /// Waits for the exit until `timeout` is over or [`Self::wake`] is called.
    pub(crate) fn wait(&self, timeout: Duration) -> Option<Exit> {
        let deadline = Instant::now().checked_add(timeout);
        let mut inner = self.lock();
        let wakes = inner.wakes;
        while inner.exit.is_none() && inner.wakes == wakes {
            // A timeout beyond the clock's range is "for ever".
            let left = deadline.map_or(Duration::MAX, |d| {
                d.saturating_duration_since(Instant::now())
            });
            if left.is_zero() {
                break;
            }
            inner = self
                .changed
                .wait_timeout(inner, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        inner.exit.clone()
    }

    /// Ends every wait that goes on now.
    pub(crate) fn wake(&self) {
        self.lock().wakes += 1;
        self.changed.notify_all();
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
    fn the_first_exit_stays() {
        let latch = ExitLatch::default();
        assert_eq!(latch.wait(Duration::from_millis(1)), None);
        latch.set(Exit::Reset);
        latch.set(Exit::PoweredOff);
        assert_eq!(latch.wait(Duration::MAX), Some(Exit::Reset));
        assert_eq!(latch.get(), Some(Exit::Reset));
    }

    #[test]
    fn a_wake_ends_the_wait() {
        let latch = Arc::new(ExitLatch::default());
        let theirs = Arc::clone(&latch);
        let waiter = thread::spawn(move || theirs.wait(Duration::MAX));
        while !waiter.is_finished() {
            latch.wake();
            thread::yield_now();
        }
        assert_eq!(waiter.join().unwrap(), None);
    }
}
