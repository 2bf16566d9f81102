//! The gate that all device threads pass: open while the machine runs, shut while it is paused.

use std::sync::{
    Condvar, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU8, Ordering},
};

/// What the device threads may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing: memory and interrupts belong to whoever paused the machine.
    Shut = 0,
    /// Work.
    Open = 1,
    /// Come to an end.
    Ended = 2,
}

/// The phase, readable without a lock between two frames, and waited for with one.
///
/// A thread works only with its device's lock held *and* the gate seen open under that lock. So shutting the gate and
/// then taking and leaving each device's lock once is all that quiescing needs.
#[derive(Debug)]
pub(crate) struct Gate {
    phase: AtomicU8,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Gate {
    /// A gate that is shut.
    pub(crate) fn new() -> Self {
        Self {
            phase: AtomicU8::new(Phase::Shut as u8),
            lock: Mutex::new(()),
            changed: Condvar::new(),
        }
    }

    /// Whether work may go on. To be asked with the device's lock held.
    pub(crate) fn is_open(&self) -> bool {
        self.phase.load(Ordering::Acquire) == Phase::Open as u8
    }

    /// Changes the phase and wakes who waits for it. [`Phase::Ended`] is for good.
    pub(crate) fn set(&self, phase: Phase) {
        let guard = self.guard();
        if self.phase.load(Ordering::Acquire) != Phase::Ended as u8 {
            self.phase.store(phase as u8, Ordering::Release);
        }
        drop(guard);
        self.changed.notify_all();
    }

    /// Waits until the gate is open. False: it is time to end.
    pub(crate) fn pass(&self) -> bool {
        let mut guard = self.guard();
        loop {
            match self.phase.load(Ordering::Acquire) {
                phase if phase == Phase::Open as u8 => return true,
                phase if phase == Phase::Ended as u8 => return false,
                _ => {
                    guard = self
                        .changed
                        .wait(guard)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// The lock protects no data, so a panic elsewhere leaves nothing behind that could be half-done.
    fn guard(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
