//! What the guest writes to its disks, gathered by epoch.

use romulus_checkpoint::disk::{DiskEpoch, DiskFull};
use romulus_machine::DiskLog;
use std::{
    ops::Range,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

#[derive(Default)]
struct Inner {
    epoch: DiskEpoch,
    /// There is a session; without one nothing is noted.
    active: bool,
    /// The images are behind the journal on the disk itself: a flush must not be answered yet.
    settling: bool,
}

/// The log of the epoch that runs.
#[derive(Default)]
pub(crate) struct WriteLog {
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl WriteLog {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to note, or ends. To be called while the machine is paused.
    pub(crate) fn set_active(&self, active: bool) {
        let mut inner = self.lock();
        inner.active = active;
        inner.epoch.clear();
        drop(inner);
        self.changed.notify_all();
    }

    /// The epoch ends: its writes are exchanged for an empty log. To be called while the machine is
    /// paused.
    pub(crate) fn seal(&self, into: &mut DiskEpoch) {
        let mut inner = self.lock();
        into.clear();
        std::mem::swap(&mut inner.epoch, into);
        drop(inner);
        self.changed.notify_all();
    }

    /// Notes what is read from a disk for a resync, unless the log is full. No write is noted, and
    /// no epoch ends, between the reading and the noting.
    pub(crate) fn fill<E>(
        &self,
        disk: u16,
        range: &Range<u64>,
        read: impl FnOnce() -> Result<Vec<u8>, E>,
    ) -> Result<Result<(), DiskFull>, E> {
        let mut inner = self.lock();
        let bytes = read()?;
        Ok(inner.epoch.fill(disk, range.start, &bytes))
    }

    /// Flushes wait until [`Self::settled`].
    pub(crate) fn settling(&self) {
        self.lock().settling = true;
    }

    /// What the journal holds is durable in the images.
    pub(crate) fn settled(&self) {
        self.lock().settling = false;
        self.changed.notify_all();
    }

    /// Notes a write. Where the log is full the disk waits for the epoch to end: it is the guest
    /// that writes faster than the link carries.
    fn note(&self, write: impl Fn(&mut DiskEpoch) -> Result<(), DiskFull>) {
        let mut inner = self.lock();
        while inner.active && write(&mut inner.epoch).is_err() {
            inner = self
                .changed
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The machine has far fewer disks.
fn number(disk: usize) -> u16 {
    u16::try_from(disk).unwrap_or(u16::MAX)
}

impl DiskLog for WriteLog {
    fn wrote(&self, disk: usize, at: u64, data: &[u8]) {
        self.note(|epoch| epoch.write(number(disk), at, data));
    }

    fn zeroed(&self, disk: usize, at: u64, length: u64) {
        self.note(|epoch| epoch.zero(number(disk), at, length));
    }

    fn flushed(&self, _: usize) {
        let mut inner = self.lock();
        while inner.settling {
            inner = self
                .changed
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if inner.active {
            inner.epoch.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::Arc, thread, time::Duration};

    /// Long enough for a thread to come to where it waits. If it does not, nothing fails.
    const THERE: Duration = Duration::from_millis(100);

    fn length(epoch: &DiskEpoch) -> u64 {
        epoch.writes().map(|write| write.content.length()).sum()
    }

    #[test]
    fn writes_belong_to_the_epoch_in_which_they_were_noted() {
        let log = WriteLog::default();
        log.wrote(0, 0, b"nobody listens");
        log.set_active(true);
        log.wrote(0, 512, b"one");
        log.flushed(0);
        let mut sealed = DiskEpoch::default();
        log.seal(&mut sealed);
        assert_eq!(sealed.writes().count(), 1);
        assert!(sealed.has_flush());
        log.zeroed(1, 0, 4096);
        log.seal(&mut sealed);
        let writes: Vec<u16> = sealed.writes().map(|write| write.disk).collect();
        assert_eq!((writes, sealed.has_flush()), (vec![1], false));
    }

    #[test]
    fn a_full_log_holds_the_disk_until_the_epoch_ends() {
        let log = Arc::new(WriteLog::default());
        log.set_active(true);
        let block = vec![7; 16 << 20];
        for n in 0..3 {
            log.wrote(0, n << 24, &block);
        }
        let worker = {
            let log = Arc::clone(&log);
            thread::spawn(move || log.wrote(0, 3 << 24, &block))
        };
        thread::sleep(THERE);
        assert!(!worker.is_finished());
        let mut sealed = DiskEpoch::default();
        log.seal(&mut sealed);
        assert_eq!(length(&sealed), 3 << 24, "the fourth does not fit");
        worker.join().unwrap();
        log.seal(&mut sealed);
        assert_eq!(length(&sealed), 1 << 24, "and is not lost");
    }

    #[test]
    fn a_flush_waits_for_the_journal() {
        let log = Arc::new(WriteLog::default());
        log.settling();
        let worker = {
            let log = Arc::clone(&log);
            thread::spawn(move || log.flushed(0))
        };
        thread::sleep(THERE);
        assert!(!worker.is_finished());
        log.settled();
        worker.join().unwrap();
    }

    #[test]
    fn an_end_of_the_session_frees_a_disk_that_waits() {
        let log = Arc::new(WriteLog::default());
        log.set_active(true);
        let block = vec![7; 40 << 20];
        log.wrote(0, 0, &block);
        let worker = {
            let log = Arc::clone(&log);
            thread::spawn(move || log.wrote(0, 1 << 30, &block))
        };
        thread::sleep(THERE);
        log.set_active(false);
        worker.join().unwrap();
    }
}
