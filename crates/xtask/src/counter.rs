//! The oracle of one history: a service in the guest answers every line with a counter and the line itself, over one TCP
//! connection that is never made anew. Nobody may see a counter twice, nor miss one, nor lose the connection.

use crate::pair::{UnixSeconds, unix_seconds};
use anyhow::{Context as _, Result, anyhow, ensure};
use std::{
    io::{BufRead, BufReader, Write as _},
    net::{Ipv4Addr, Shutdown, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

/// The guest's shell (`service.shell`).
const SHELL: u16 = 23;
/// What makes the shell the service. It says when it is: what came before that, the shell would take for commands.
const SERVICE: &str = "echo ready; i=0; while read -r x; do i=$((i+1)); echo \"$i $x\"; done\n";
/// The word for it.
const READY: &str = "ready";
/// How long the guest may take for one line, a takeover included: longer than any client's patience would be a fault.
const PATIENCE: Duration = Duration::from_secs(30);

/// A counter that is under way. Dropping it ends it.
pub(crate) struct Counter {
    stream: Arc<TcpStream>,
    shared: Arc<Shared>,
    writer: Option<JoinHandle<Result<()>>>,
    reader: Option<JoinHandle<Result<()>>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    asked: AtomicUsize,
    /// The number of the last question, once it is known. Its answer is the end.
    last: AtomicUsize,
    answers: Mutex<Vec<UnixSeconds>>,
}

/// What a counter saw.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Counted {
    /// When each answer came.
    pub(crate) answers: Vec<UnixSeconds>,
    /// What was wrong: a counter seen twice or missing, a foreign answer, a lost connection.
    pub(crate) fault: Option<String>,
}

impl Counted {
    /// The first answer at `moment` or later.
    pub(crate) fn first_since(&self, moment: UnixSeconds) -> Option<UnixSeconds> {
        self.answers.iter().copied().find(|at| *at >= moment)
    }
}

/// Connects to the shell of the guest at `guest`, which its command line asked for with `service.shell`, and asks every
/// `interval`.
///
/// # Errors
/// The guest can't be reached.
pub(crate) fn start(client: &lab::Client, guest: Ipv4Addr, interval: Duration) -> Result<Counter> {
    let stream = client
        .connect((guest, SHELL).into())
        .with_context(|| format!("connecting to the shell of the guest at {guest}"))?;
    start_on(stream, interval)
}

fn start_on(stream: TcpStream, interval: Duration) -> Result<Counter> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    (&stream).write_all(SERVICE.as_bytes())?;
    let mut from = BufReader::new(stream.try_clone()?);
    let mut word = String::new();
    from.read_line(&mut word)
        .context("waiting for the guest's shell")?;
    ensure!(
        word.trim_end() == READY,
        "the guest's shell answered {word:?} instead of {READY:?}"
    );
    let stream = Arc::new(stream);
    let shared = Arc::new(Shared::default());
    let writer = {
        let (stream, shared) = (Arc::clone(&stream), Arc::clone(&shared));
        thread::Builder::new()
            .name("counter-ask".into())
            .spawn(move || ask(&stream, &shared, interval))?
    };
    let reader = {
        let shared = Arc::clone(&shared);
        thread::Builder::new()
            .name("counter-read".into())
            .spawn(move || read(from, &shared))?
    };
    Ok(Counter {
        stream,
        shared,
        writer: Some(writer),
        reader: Some(reader),
    })
}

impl Counter {
    /// How many answers have come so far.
    pub(crate) fn answered(&self) -> usize {
        self.shared.answers().len()
    }

    /// Ends it: all that was asked has to be answered, in order. A fault is part of what it saw, not an error.
    ///
    /// # Errors
    /// A thread panicked.
    pub(crate) fn finish(mut self) -> Result<Counted> {
        self.shared.stop.store(true, Ordering::Release);
        let mut fault = None;
        for thread in [self.writer.take(), self.reader.take()]
            .into_iter()
            .flatten()
        {
            if let Err(error) = thread.join().map_err(|_| anyhow!("the counter panicked"))? {
                fault = fault.or(Some(format!("{error:#}")));
            }
        }
        let answers = self.shared.answers().clone();
        Ok(Counted { answers, fault })
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        // Ends both threads; one that is lost already needs no end.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl Shared {
    fn answers(&self) -> std::sync::MutexGuard<'_, Vec<UnixSeconds>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is asked the `number`th time: no two lines are the same.
fn line(number: usize) -> String {
    format!("question-{number}")
}

fn ask(mut stream: &TcpStream, shared: &Shared, interval: Duration) -> Result<()> {
    let mut next = Instant::now();
    for number in 1.. {
        // Said before it is sent: an answer must not come to a question that was not asked.
        let is_last = shared.stop.load(Ordering::Acquire);
        if is_last {
            shared.last.store(number, Ordering::Release);
        }
        shared.asked.store(number, Ordering::Release);
        stream
            .write_all(format!("{}\n", line(number)).as_bytes())
            .context("the counter's connection is lost")?;
        if is_last {
            break;
        }
        next += interval;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

fn read(mut from: impl BufRead, shared: &Shared) -> Result<()> {
    for number in 1.. {
        let mut text = String::new();
        let length = from
            .read_line(&mut text)
            .context("the counter's connection is lost")?;
        ensure!(length > 0, "the counter's connection was closed");
        let wanted = format!("{number} {}", line(number));
        ensure!(
            text.trim_end() == wanted,
            "the counter answered {:?}, not {wanted:?}",
            text.trim_end()
        );
        shared.answers().push(unix_seconds(SystemTime::now()));
        if number == shared.last.load(Ordering::Acquire) {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Counted, SERVICE, start_on};
    use std::{
        io::{BufRead as _, BufReader, Write as _},
        net::{TcpListener, TcpStream},
        sync::atomic::Ordering,
        thread,
        time::Duration,
    };

    /// Runs a counter against a service that answers line `n` with what `answer` makes of it, until it gives nothing. The
    /// first `good` answers must be right, and one more line is asked.
    fn against(
        good: usize,
        answer: impl Fn(usize, &str) -> Option<String> + Send + 'static,
    ) -> Counted {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let service = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            assert_eq!(format!("{}\n", lines.next().unwrap().unwrap()), SERVICE);
            (&stream).write_all(b"ready\n").unwrap();
            for (index, line) in lines.enumerate() {
                let Some(reply) = line.ok().and_then(|line| answer(index + 1, &line)) else {
                    return;
                };
                if (&stream).write_all(reply.as_bytes()).is_err() {
                    return;
                }
            }
        });
        let counter = start_on(
            TcpStream::connect(address).unwrap(),
            Duration::from_millis(1),
        )
        .unwrap();
        // A thread that has ended asks, or reads, no more.
        let ended = || {
            let threads = [&counter.writer, &counter.reader];
            threads
                .into_iter()
                .flatten()
                .any(thread::JoinHandle::is_finished)
        };
        while !ended()
            && (counter.answered() < good || counter.shared.asked.load(Ordering::Acquire) <= good)
        {
            thread::sleep(Duration::from_millis(1));
        }
        let seen = counter.finish().unwrap();
        service.join().unwrap();
        seen
    }

    #[test]
    fn a_service_that_counts_is_without_fault() {
        let seen = against(3, |number, line| Some(format!("{number} {line}\n")));
        assert_eq!(seen.fault, None);
        assert!(seen.answers.len() > 3);
        assert_eq!(seen.first_since(0.0), seen.answers.first().copied());
    }

    #[test]
    fn a_counter_that_comes_twice_is_a_fault() {
        let seen = against(3, |number, line| {
            Some(format!("{} {line}\n", number.min(3)))
        });
        let fault = seen.fault.unwrap();
        assert!(fault.contains("not \"4 question-4\""), "{fault}");
    }

    #[test]
    fn a_closed_connection_is_a_fault() {
        let seen = against(3, |number, line| {
            (number < 4).then(|| format!("{number} {line}\n"))
        });
        let fault = seen.fault.unwrap();
        assert!(fault.contains("connection"), "{fault}");
        assert_eq!(seen.answers.len(), 3);
    }
}
