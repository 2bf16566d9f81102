//! What devices have done, counted without locks.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows. It orders nothing, so that relaxed access suffices.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, value: u64) {
        self.0.fetch_add(value, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Of one network card.
#[derive(Debug, Default)]
pub(crate) struct NetCounters {
    sent: [Counter; 2],
    received: [Counter; 2],
    dropped: Counter,
    failed: Counter,
}

impl NetCounters {
    /// The guest sent a frame of so many bytes.
    pub(crate) fn sent(&self, bytes: u64) {
        self.sent[0].add(1);
        self.sent[1].add(bytes);
    }

    /// The guest received a frame of so many bytes.
    pub(crate) fn received(&self, bytes: u64) {
        self.received[0].add(1);
        self.received[1].add(bytes);
    }

    /// A frame was malformed, too long or refused by the link.
    pub(crate) fn drop_frame(&self) {
        self.dropped.add(1);
    }

    /// The link gave an error.
    pub(crate) fn fail(&self) {
        self.failed.add(1);
    }

    /// Frames and bytes sent, frames and bytes received.
    pub(crate) fn traffic(&self) -> [u64; 4] {
        [
            &self.sent[0],
            &self.sent[1],
            &self.received[0],
            &self.received[1],
        ]
        .map(Counter::get)
    }

    /// Frames dropped and errors of the link.
    pub(crate) fn losses(&self) -> [u64; 2] {
        [self.dropped.get(), self.failed.get()]
    }
}

/// Of one disk.
#[derive(Debug, Default)]
pub(crate) struct BlockCounters {
    pub(crate) reads: Counter,
    pub(crate) bytes_read: Counter,
    pub(crate) writes: Counter,
    pub(crate) bytes_written: Counter,
    pub(crate) flushes: Counter,
    pub(crate) errors: Counter,
}

impl BlockCounters {
    /// Reads, bytes read, writes, bytes written, flushes, errors.
    pub(crate) fn all(&self) -> [u64; 6] {
        [
            &self.reads,
            &self.bytes_read,
            &self.writes,
            &self.bytes_written,
            &self.flushes,
            &self.errors,
        ]
        .map(Counter::get)
    }
}
