//! Where the guest's console output goes from the serial port: into a ring, from which everybody who wants it reads.
//!
//! The serial port writes a byte or a few at a time from a vCPU's thread, which must never wait for a slow terminal
//! for long. So it only fills the ring. The machine's own sink (log file or standard output) reads the ring from a
//! thread; it may hold the writer up for a moment when it falls a whole ring behind, but only once until it has
//! caught up.

use super::ring::Ring;
use std::{
    io::{self, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::Notify;

/// How much output a newly attached console is shown, in bytes.
pub(crate) const RING_SIZE: usize = 64 << 10;
/// Output that is gathered before the sink is woken again, in bytes.
const GATHER: u64 = 4096;
/// How long the sink gathers output that is less than that.
const GATHER_TIME: Duration = Duration::from_millis(4);
/// How long a vCPU waits for a sink that is a whole ring behind.
const PATIENCE: Duration = Duration::from_millis(100);

/// The console's output, shared by its writer and its readers.
#[derive(Debug)]
pub(crate) struct Hub {
    inner: Mutex<Inner>,
    /// For the sink: there is more.
    more: Condvar,
    /// For the writer: the sink has taken some.
    taken: Condvar,
    /// For attached consoles: there is more.
    news: Notify,
}

#[derive(Debug)]
struct Inner {
    ring: Ring,
    /// The sink's position; `None` where there is no sink.
    sink: Option<u64>,
    /// The sink held the writer up for as long as it may and has not caught up yet.
    lagging: bool,
    /// The sink is to open its file anew.
    reopen: bool,
    closed: bool,
}

/// What the sink is to do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Write the bytes that were read; `missed` bytes before them are gone.
    Write {
        /// Bytes that fell out of the ring before the sink came for them.
        missed: u64,
    },
    /// Open the file anew.
    Reopen,
    /// The console has ended and everything was read.
    End,
}

impl Hub {
    /// A console without output so far. With `sink`, a thread is expected to follow it by [`Self::next_for_sink`].
    pub(crate) fn new(sink: bool) -> Arc<Self> {
        let inner = Inner {
            ring: Ring::new(RING_SIZE),
            sink: sink.then_some(0),
            lagging: false,
            reopen: false,
            closed: false,
        };
        Arc::new(Self {
            inner: Mutex::new(inner),
            more: Condvar::new(),
            taken: Condvar::new(),
            news: Notify::new(),
        })
    }

    /// A writer for the machine's serial port.
    pub(crate) fn writer(self: &Arc<Self>) -> Box<dyn Write + Send> {
        Box::new(Writer(Arc::clone(self)))
    }

    /// Appends output.
    pub(crate) fn push(&self, bytes: &[u8]) {
        let mut inner = self.inner();
        for piece in bytes.chunks(RING_SIZE / 2) {
            inner = self.wait_for_room(inner, piece.len() as u64);
            let before = inner.pending();
            inner.ring.push(piece);
            let after = inner.pending();
            // The sink sleeps until the first byte, then gathers for a moment: it need not be woken for each byte.
            if before == 0 || (before < GATHER && after >= GATHER) {
                self.more.notify_one();
            }
        }
        drop(inner);
        self.news.notify_waiters();
    }

    fn wait_for_room<'a>(
        &'a self,
        mut inner: MutexGuard<'a, Inner>,
        length: u64,
    ) -> MutexGuard<'a, Inner> {
        let full = |inner: &mut Inner| !inner.closed && inner.pending() + length > RING_SIZE as u64;
        if !inner.lagging && full(&mut inner) {
            let (guard, wait) = self
                .taken
                .wait_timeout_while(inner, PATIENCE, full)
                .unwrap_or_else(PoisonError::into_inner);
            inner = guard;
            inner.lagging = wait.timed_out();
        }
        inner
    }

    /// Waits for what the sink is to do next. Bytes to write are put into `buffer`.
    pub(crate) fn next_for_sink(&self, buffer: &mut Vec<u8>) -> Next {
        let idle = |inner: &mut Inner| inner.pending() == 0 && !inner.closed && !inner.reopen;
        let mut inner = self
            .more
            .wait_while(self.inner(), idle)
            .unwrap_or_else(PoisonError::into_inner);
        if inner.reopen {
            inner.reopen = false;
            return Next::Reopen;
        }
        let gathering = |inner: &mut Inner| inner.pending() < GATHER && !inner.closed;
        inner = self
            .more
            .wait_timeout_while(inner, GATHER_TIME, gathering)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
        if inner.pending() == 0 {
            return Next::End;
        }
        let position = inner.sink.unwrap_or(0);
        let (end, missed) = inner.ring.read(position, buffer);
        inner.sink = Some(end);
        inner.lagging = false;
        drop(inner);
        self.taken.notify_all();
        Next::Write { missed }
    }

    /// Asks the sink to open its file anew.
    pub(crate) fn reopen(&self) {
        self.inner().reopen = true;
        self.more.notify_one();
    }

    /// Ends the console: the sink writes what is left, attached consoles end.
    pub(crate) fn close(&self) {
        self.inner().closed = true;
        self.more.notify_all();
        self.taken.notify_all();
        self.news.notify_waiters();
    }

    /// The latest output, and the position after it for [`Self::follow`].
    pub(crate) fn latest(&self) -> (Vec<u8>, u64) {
        let inner = self.inner();
        let mut bytes = Vec::new();
        let (end, _) = inner.ring.read(inner.ring.start(), &mut bytes);
        (bytes, end)
    }

    /// Waits for output after `position`. Returns it, the position after it and how many bytes before it are gone;
    /// `None` when the console has ended.
    pub(crate) async fn follow(&self, position: u64) -> Option<(Vec<u8>, u64, u64)> {
        loop {
            let news = self.news.notified();
            tokio::pin!(news);
            // Listen before looking, or output that comes between the two would go unnoticed.
            news.as_mut().enable();
            {
                let inner = self.inner();
                let mut bytes = Vec::new();
                let (end, missed) = inner.ring.read(position, &mut bytes);
                if !bytes.is_empty() {
                    return Some((bytes, end, missed));
                }
                if inner.closed {
                    return None;
                }
            }
            news.await;
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // The ring is whole at every step; a thread that panicked elsewhere takes nothing from it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Bytes that the sink has not taken yet.
    fn pending(&self) -> u64 {
        self.sink.map_or(0, |position| self.ring.end() - position)
    }
}

struct Writer(Arc<Hub>);

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
        time::Instant,
    };

    #[test]
    fn the_sink_gets_every_byte_in_order() {
        let hub = Hub::new(true);
        let taken = Arc::<AtomicUsize>::default();
        let sink = {
            let (hub, taken) = (Arc::clone(&hub), Arc::clone(&taken));
            thread::spawn(move || {
                let (mut all, mut buffer) = (Vec::new(), Vec::new());
                loop {
                    match hub.next_for_sink(&mut buffer) {
                        Next::Write { missed } => {
                            assert_eq!(missed, 0);
                            all.extend_from_slice(&buffer);
                            taken.store(all.len(), Ordering::Release);
                        }
                        Next::Reopen => {}
                        Next::End => return all,
                    }
                }
            })
        };
        let mut writer = hub.writer();
        let mut expected = Vec::new();
        for number in 0..100_000u32 {
            let line = format!("line {number}\r\n");
            writer.write_all(line.as_bytes()).unwrap();
            expected.extend_from_slice(line.as_bytes());
            // A computer that keeps the sink from running would be a sink that is stuck.
            while expected.len() - taken.load(Ordering::Acquire) > RING_SIZE / 2 {
                assert!(!sink.is_finished(), "the sink gave up");
                thread::yield_now();
            }
        }
        hub.close();
        assert!(sink.join().unwrap() == expected);
    }

    #[test]
    fn a_stuck_sink_holds_the_writer_up_only_once() {
        let hub = Hub::new(true);
        let begin = Instant::now();
        let piece = vec![b'x'; RING_SIZE];
        for _ in 0..50 {
            hub.push(&piece);
        }
        let spent = begin.elapsed();
        assert!(spent >= PATIENCE, "never waited: {spent:?}");
        assert!(spent < PATIENCE * 10, "waited again and again: {spent:?}");
        let mut buffer = Vec::new();
        assert_eq!(
            hub.next_for_sink(&mut buffer),
            Next::Write {
                missed: 49 * RING_SIZE as u64
            }
        );
    }

    #[test]
    fn without_a_sink_nobody_waits() {
        let hub = Hub::new(false);
        hub.push(&vec![b'x'; 3 * RING_SIZE]);
        hub.push(b"end");
        let (bytes, end) = hub.latest();
        assert_eq!((bytes.len(), end), (RING_SIZE, 3 * RING_SIZE as u64 + 3));
        assert!(bytes.ends_with(b"xend"));
    }

    #[tokio::test]
    async fn followers_see_output_and_the_end() {
        let hub = Hub::new(false);
        hub.push(b"before");
        let (_, position) = hub.latest();
        let follower = {
            let hub = Arc::clone(&hub);
            tokio::spawn(
                async move { (hub.follow(position).await, hub.follow(position + 5).await) },
            )
        };
        tokio::task::yield_now().await;
        hub.push(b"after");
        tokio::task::yield_now().await;
        hub.close();
        let (first, second) = follower.await.unwrap();
        assert_eq!(first, Some((b"after".to_vec(), position + 5, 0)));
        assert_eq!(second, None);
    }
}
