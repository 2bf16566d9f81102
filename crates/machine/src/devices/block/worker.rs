//! File input and output of one disk, on a thread of its own and without guest memory.

use super::super::counters::BlockCounters;
use crate::ports::DiskLog;
use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::FileExt},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};

/// The largest buffer that is kept for the next request.
const SPARE_MAX: usize = 256 << 10;

/// A range of the disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) at: u64,
    pub(super) length: u64,
    /// Its space may be given back to the file system.
    pub(super) unmap: bool,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Task {
    /// Fill the data from the disk.
    Read { at: u64 },
    /// Write the data to the disk, and durably if so asked.
    Write { at: u64, durable: bool },
    /// Make all writes that are done durable.
    Flush,
    /// Give space back.
    Discard(Vec<Range>),
    /// Write zeros.
    Zero(Vec<Range>),
    /// Nothing: the data is the answer.
    Answer,
    /// Nothing: the status is the answer.
    Refuse(u32),
}

impl Task {
    /// Whether the answer carries data.
    pub(super) fn reads(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::Answer)
    }
}

/// One request on its way.
#[derive(Debug)]
pub(super) struct Job {
    /// The device's era in which it was made.
    pub(super) era: u64,
    pub(super) task: Task,
    pub(super) data: Vec<u8>,
    /// The answer's status, once it is done.
    pub(super) status: u32,
}

/// Who learns of this disk's writes.
pub(crate) struct Log {
    /// The disk's number there.
    pub(crate) disk: usize,
    pub(crate) to: Arc<dyn DiskLog>,
}

/// Does the jobs of one disk, strictly in order.
pub(crate) struct Worker {
    file: File,
    name: String,
    counters: Arc<BlockCounters>,
    log: Option<Log>,
    /// Nothing is written: what would be counts as done.
    pretends: bool,
    todo: Mutex<VecDeque<Job>>,
    done: Mutex<VecDeque<Job>>,
    spare: Mutex<Vec<u8>>,
    /// The last error that was logged, so that a full disk fills no log.
    logged: AtomicI32,
}

/// Whole jobs are put in and taken out, so that a panic elsewhere leaves nothing half-done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Worker {
    /// A worker on `file`, which `name` names in messages. `log` learns of each write before it can be answered.
    pub(crate) fn new(
        file: File,
        name: String,
        counters: Arc<BlockCounters>,
        log: Option<Log>,
    ) -> Self {
        Self {
            file,
            name,
            counters,
            log,
            pretends: false,
            todo: Mutex::default(),
            done: Mutex::default(),
            spare: Mutex::default(),
            logged: AtomicI32::new(0),
        }
    }

    /// For a rehearsal: nothing is written, and the guest is told that it was. What it reads later is what was there before; for the
    /// moment that a rehearsal lasts, it has what it wrote in its memory.
    pub(crate) fn pretending(mut self) -> Self {
        self.pretends = true;
        self
    }

    /// Puts a job in.
    pub(super) fn todo(&self, job: Job) {
        lock(&self.todo).push_back(job);
    }

    /// Takes the next job that is done.
    pub(super) fn done(&self) -> Option<Job> {
        lock(&self.done).pop_front()
    }

    /// Forgets all jobs but the one that is being done.
    pub(super) fn forget(&self) {
        lock(&self.todo).clear();
        lock(&self.done).clear();
    }

    /// A buffer of `length` zeros.
    pub(super) fn buffer(&self, length: usize) -> Vec<u8> {
        let mut buffer = std::mem::take(&mut *lock(&self.spare));
        buffer.clear();
        buffer.resize(length, 0);
        buffer
    }

    /// Takes a buffer back for later use.
    pub(super) fn recycle(&self, buffer: Vec<u8>) {
        let mut spare = lock(&self.spare);
        if buffer.capacity() <= SPARE_MAX && buffer.capacity() > spare.capacity() {
            *spare = buffer;
        }
    }

    /// Does the next job. False: there is none.
    pub(crate) fn work(&self) -> bool {
        let Some(mut job) = lock(&self.todo).pop_front() else {
            return false;
        };
        job.status = match self.perform(&job.task, &mut job.data) {
            Ok(status) => status,
            Err(error) => self.failed(&job.task, &error),
        };
        if job.status != VIRTIO_BLK_S_OK {
            self.counters.errors.add(1);
        }
        lock(&self.done).push_back(job);
        true
    }

    /// Turns the host's error into the guest's.
    fn failed(&self, task: &Task, error: &io::Error) -> u32 {
        let code = error.raw_os_error().unwrap_or(libc::EIO);
        if code == libc::EOPNOTSUPP && matches!(task, Task::Discard(_) | Task::Zero(_)) {
            return VIRTIO_BLK_S_UNSUPP;
        }
        if self.logged.swap(code, Ordering::Relaxed) != code {
            tracing::error!(disk = %self.name, %error, "the guest gets an input/output error");
        }
        VIRTIO_BLK_S_IOERR
    }

    fn perform(&self, task: &Task, data: &mut [u8]) -> io::Result<u32> {
        let counters = &self.counters;
        let bytes = data.len() as u64;
        match task {
            Task::Write { .. } | Task::Flush | Task::Discard(_) | Task::Zero(_)
                if self.pretends => {}
            Task::Read { at } => {
                self.file.read_exact_at(data, *at)?;
                counters.reads.add(1);
                counters.bytes_read.add(bytes);
            }
            Task::Write { at, durable } => {
                self.file.write_all_at(data, *at)?;
                if *durable {
                    self.file.sync_data()?;
                }
                counters.writes.add(1);
                counters.bytes_written.add(bytes);
                if let Some(log) = &self.log {
                    log.to.wrote(log.disk, *at, data);
                    if *durable {
                        log.to.flushed(log.disk);
                    }
                }
            }
            Task::Flush => {
                self.file.sync_data()?;
                counters.flushes.add(1);
                if let Some(log) = &self.log {
                    log.to.flushed(log.disk);
                }
            }
            Task::Discard(ranges) => {
                for range in ranges {
                    self.punch(*range)?;
                    self.zeroed(*range);
                }
            }
            Task::Zero(ranges) => {
                for range in ranges {
                    self.zero(*range)?;
                    self.zeroed(*range);
                }
            }
            Task::Answer => (),
            Task::Refuse(status) => return Ok(*status),
        }
        Ok(VIRTIO_BLK_S_OK)
    }

    fn zeroed(&self, range: Range) {
        if let Some(log) = &self.log {
            log.to.zeroed(log.disk, range.at, range.length);
        }
    }

    /// Gives space back. A range so punched reads as zeros, of a file as of a block device (which the kernel zeros by
    /// this call, or refuses).
    fn punch(&self, range: Range) -> io::Result<()> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        super::disk::fallocate(self.file.as_raw_fd(), mode, range.at, range.length)
    }

    /// Zeros by whatever means the file system has: a hole reads as zeros, too.
    fn zero(&self, range: Range) -> io::Result<()> {
        let unsupported = |result: &io::Result<()>| {
            result
                .as_ref()
                .is_err_and(|error| error.raw_os_error() == Some(libc::EOPNOTSUPP))
        };
        let keep = || {
            let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
            super::disk::fallocate(self.file.as_raw_fd(), mode, range.at, range.length)
        };
        if range.unmap {
            let result = self.punch(range);
            if unsupported(&result) { keep() } else { result }
        } else {
            let result = keep();
            if unsupported(&result) {
                self.punch(range)
            } else {
                result
            }
        }
    }
}
