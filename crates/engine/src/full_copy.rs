//! How far a session's first full copy has come: what the thread that reads it tells the ends of epochs.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

/// The progress of one full copy, shared by its reader and the driver.
#[derive(Debug, Default)]
pub(crate) struct FullCopy {
    reached: AtomicUsize,
    all: AtomicBool,
}

/// What of it an epoch's end may rely on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copied {
    /// Everything that it is to contain has been read.
    pub(crate) all: bool,
    /// No page from this one on has been read.
    pub(crate) reached: usize,
}

impl FullCopy {
    /// The pages below `end` are about to be read, or were. Called before the first of them is.
    pub(crate) fn reach(&self, end: usize) {
        self.reached.store(end, Ordering::Relaxed);
        // A pause that still sees the old mark leaves these pages to this reading: it must not have begun.
        fence(Ordering::SeqCst);
    }

    /// Everything has been read: all pages, and all that differs on the disks.
    pub(crate) fn finish(&self) {
        self.all.store(true, Ordering::Release);
    }

    /// Asked while the guest is paused.
    pub(crate) fn copied(&self) -> Copied {
        let all = self.all.load(Ordering::Acquire);
        // After everything that the guest wrote: the other half of `reach`'s.
        fence(Ordering::SeqCst);
        let reached = self.reached.load(Ordering::Relaxed);
        Copied { all, reached }
    }
}
