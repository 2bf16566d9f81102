//! Takes what the guest prints away from its processors: a terminal that stands still must not hold a vCPU, or the
//! machine could not be paused.

use crate::Error;
use std::{
    io::Write,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// Bytes that wait at most; beyond, output is lost, and that is said.
const ROOM: usize = 256 << 10;
/// How long the last output may take when the machine goes.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where the guest's output goes. Clones share one writer thread, which ends with the last of them.
#[derive(Clone)]
pub(super) struct Console {
    owner: Arc<Owner>,
}

struct Owner {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    lost: usize,
    closing: bool,
    ended: bool,
}

impl Console {
    /// Starts a thread that writes to `output`.
    ///
    /// # Errors
    /// No thread can be had.
    pub(super) fn start(output: Box<dyn Write + Send>) -> Result<Self, Error> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            changed: Condvar::new(),
        });
        let theirs = Arc::clone(&shared);
        thread::Builder::new()
            .name("console".into())
            .spawn(move || theirs.write_to(output))
            .map_err(|source| Error::Host {
                what: "a thread for the console".into(),
                source,
            })?;
        Ok(Self {
            owner: Arc::new(Owner { shared }),
        })
    }

    /// Hands bytes over; never waits for the writer.
    pub(super) fn put(&self, bytes: &[u8]) {
        let shared = &self.owner.shared;
        let mut queue = shared.lock();
        let fits = bytes.len().min(ROOM - queue.bytes.len());
        if queue.bytes.is_empty() {
            shared.changed.notify_all();
        }
        queue.bytes.extend_from_slice(&bytes[..fits]);
        queue.lost += bytes.len() - fits;
    }
}

impl Shared {
    fn write_to(&self, mut output: Box<dyn Write + Send>) {
        let mut batch = Vec::new();
        loop {
            let lost = {
                let mut queue = self.lock();
                while queue.bytes.is_empty() && !queue.closing {
                    queue = self
                        .changed
                        .wait(queue)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                if queue.bytes.is_empty() {
                    break;
                }
                std::mem::swap(&mut queue.bytes, &mut batch);
                std::mem::take(&mut queue.lost)
            };
            // Nobody is left to tell if the console itself fails; the guest goes on.
            let _ = output.write_all(&batch);
            if lost > 0 {
                let _ = write!(
                    output,
                    "\r\n[romulus: {lost} bytes of console output lost]\r\n"
                );
            }
            let _ = output.flush();
            batch.clear();
        }
        drop(output);
        self.lock().ended = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Owner {
    /// Waits for the last output, but not for ever: a writer that stands still is left behind.
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.closing = true;
        self.shared.changed.notify_all();
        let deadline = Instant::now() + PATIENCE;
        while !queue.ended {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!("the console does not take the guest's last output; leaving it");
                return;
            }
            queue = self
                .shared
                .changed
                .wait_timeout(queue, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io, sync::mpsc};

    /// Passes on what is written, each time after it was allowed to.
    struct Slow(mpsc::Receiver<()>, Arc<Mutex<Vec<u8>>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            self.1.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn all_output_arrives_in_order() {
        let (allow, gate) = mpsc::channel();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let console = Console::start(Box::new(Slow(gate, Arc::clone(&seen)))).unwrap();
        for n in 0..100u8 {
            console.put(&[n]);
        }
        drop(allow);
        drop(console);
        assert_eq!(*seen.lock().unwrap(), (0..100).collect::<Vec<u8>>());
    }

    #[test]
    fn a_writer_that_stands_still_holds_nobody() {
        let (allow, gate) = mpsc::channel();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let console = Console::start(Box::new(Slow(gate, Arc::clone(&seen)))).unwrap();
        let start = Instant::now();
        for _ in 0..3 {
            console.put(&vec![b'x'; ROOM]);
        }
        drop(console);
        assert!(start.elapsed() < PATIENCE * 5);
        drop(allow);
    }

    #[test]
    fn lost_output_is_said() {
        let (allow, gate) = mpsc::channel();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let console = Console::start(Box::new(Slow(gate, Arc::clone(&seen)))).unwrap();
        for _ in 0..3 {
            console.put(&vec![b'x'; ROOM]);
        }
        drop(allow);
        drop(console);
        let seen = seen.lock().unwrap();
        assert!(String::from_utf8_lossy(&seen[seen.len() - 60..]).contains("console output lost"));
    }
}
