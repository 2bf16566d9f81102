//! The client of the oracle: it asks, and writes down what came back and when. It judges nothing.

use super::{Exchange, Seen};
use crate::{
    options::ask_for_addresses_often,
    pair::{UnixSeconds, unix_seconds},
    process,
    udp::{client_socket, unless_absent},
};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};
use witness::Answer;

/// The witness's port in the guest.
pub(crate) const PORT: u16 = 7;
/// How long a lost answer on the connection is waited for when all ends: longer than a takeover and TCP's own repetitions.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the last datagrams may take.
const GRACE: Duration = Duration::from_secs(2);

/// A client that asks. Dropping it ends it.
pub(crate) struct Oracle {
    stream: Arc<TcpStream>,
    shared: Arc<Shared>,
    /// What asks over the connection: it ends before the last answer is waited for.
    asker: Option<JoinHandle<Result<()>>>,
    others: Vec<JoinHandle<Result<()>>>,
}

/// What one of its threads does.
type Work = Box<dyn FnOnce(&Shared) -> Result<()> + Send>;

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    seen: Mutex<Seen>,
}

/// Begins to ask the witness of the guest at `guest` from the lab's client: over UDP and over one TCP connection, each every
/// `interval`. `name` makes the requests its own.
///
/// # Errors
/// The guest can't be reached.
pub(crate) fn start(
    client: &lab::Client,
    guest: Ipv4Addr,
    name: &str,
    interval: Duration,
) -> Result<Oracle> {
    ask_for_addresses_often(client)?;
    let to = SocketAddrV4::new(guest, PORT);
    let stream = connect(client, to)?;
    let socket = client_socket(client)?;
    socket.connect(to)?;
    start_on(socket, stream, name, interval)
}

/// Connects to the guest. Held output may answer a request for an address later than the client waits for it.
///
/// # Errors
/// The guest can't be reached for long.
pub(crate) fn connect(client: &lab::Client, to: SocketAddrV4) -> Result<TcpStream> {
    let mut last = None;
    let connected = process::poll(PATIENCE, Duration::from_millis(20), || {
        match client.visit(|| TcpStream::connect_timeout(&to.into(), PATIENCE)) {
            Ok(stream) => Ok(Some(stream)),
            Err(error) => {
                last = Some(error);
                Ok(None)
            }
        }
    })?;
    connected.with_context(|| format!("the guest can't be reached at {to}: {last:?}"))
}

fn start_on(
    socket: UdpSocket,
    stream: TcpStream,
    name: &str,
    interval: Duration,
) -> Result<Oracle> {
    stream.set_nodelay(true)?;
    let stream = Arc::new(stream);
    let shared = Arc::new(Shared::default());
    let spawn = |what: &str, work: Work| {
        let shared = Arc::clone(&shared);
        thread::Builder::new()
            .name(what.into())
            .spawn(move || work(&shared))
    };
    let (of_datagrams, of_lines) = (format!("{name}-u"), format!("{name}-t"));
    let (outward, inward) = (Arc::clone(&stream), Arc::clone(&stream));
    let others = vec![
        spawn(
            "oracle-udp",
            Box::new(move |shared| datagrams(&socket, shared, &of_datagrams, interval)),
        )?,
        spawn(
            "oracle-read",
            Box::new(move |shared| {
                read_lines(&inward, shared);
                Ok(())
            }),
        )?,
    ];
    let asker = spawn(
        "oracle-ask",
        Box::new(move |shared| {
            lines(&outward, shared, &of_lines, interval);
            Ok(())
        }),
    )?;
    Ok(Oracle {
        stream,
        shared,
        asker: Some(asker),
        others,
    })
}

impl Oracle {
    /// How many requests were answered so far, over UDP and over the connection.
    pub(crate) fn answered(&self) -> [usize; 2] {
        let seen = self.shared.seen();
        [&seen.datagrams, &seen.lines].map(|exchanges| {
            exchanges
                .iter()
                .filter(|exchange| !exchange.answers.is_empty())
                .count()
        })
    }

    /// Waits until some more requests were answered on both ways.
    ///
    /// # Errors
    /// They are not within `limit`.
    pub(crate) fn goes_on(&self, limit: Duration) -> Result<()> {
        let before = self.answered();
        process::poll(limit, Duration::from_millis(20), || {
            let now = self.answered();
            Ok((now[0] >= before[0] + 3 && now[1] >= before[1] + 3).then_some(()))
        })?
        .with_context(|| {
            let seen = self.shared.seen();
            format!(
                "the guest's witness answers no more{}",
                seen.lost_connection
                    .as_ref()
                    .map_or_else(String::new, |why| format!(" (its connection: {why})"))
            )
        })
    }

    /// Ends it: waits for what is still to be answered, and gives all that was seen.
    ///
    /// # Errors
    /// A thread of it failed.
    pub(crate) fn finish(mut self) -> Result<Seen> {
        self.end(PATIENCE)
    }

    /// Ends it where the guest is gone: what is not answered yet never will be.
    ///
    /// # Errors
    /// A thread of it failed.
    pub(crate) fn give_up(mut self) -> Result<Seen> {
        let mut seen = self.end(Duration::ZERO)?;
        seen.lost_connection = None;
        seen.lines.retain(|line| !line.answers.is_empty());
        Ok(seen)
    }

    fn end(&mut self, patience: Duration) -> Result<Seen> {
        self.shared.stop.store(true, Ordering::Release);
        if patience.is_zero() {
            // It may wait for room to write to a guest that is gone.
            let _ = self.stream.shutdown(Shutdown::Both);
        }
        join(self.asker.take())?;
        // An answer that does not come leaves its request without one; that is judged elsewhere.
        process::poll(patience, Duration::from_millis(10), || {
            let seen = self.shared.seen();
            let all = seen.lines.iter().all(|line| !line.answers.is_empty());
            Ok((all || seen.lost_connection.is_some()).then_some(()))
        })?;
        let lost = self.shared.seen().lost_connection.clone();
        // Ends the reader; a connection that is lost already needs no end.
        let _ = self.stream.shutdown(Shutdown::Both);
        self.others
            .drain(..)
            .try_for_each(|thread| join(Some(thread)))?;
        let mut seen = std::mem::take(&mut *self.shared.seen());
        seen.lost_connection = lost;
        Ok(seen)
    }
}

fn join(thread: Option<JoinHandle<Result<()>>>) -> Result<()> {
    let Some(thread) = thread else { return Ok(()) };
    thread
        .join()
        .map_err(|_| anyhow!("the oracle's client panicked"))?
}

impl Drop for Oracle {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

fn now() -> UnixSeconds {
    unix_seconds(SystemTime::now())
}

/// A request that is about to be sent.
fn exchange(request: &str) -> Exchange {
    Exchange {
        asked: now(),
        request: request.to_owned(),
        answers: Vec::new(),
    }
}

/// Asks over UDP, and takes the answers.
fn datagrams(socket: &UdpSocket, shared: &Shared, name: &str, interval: Duration) -> Result<()> {
    let mut asked: HashMap<String, usize> = HashMap::new();
    let mut next = Instant::now();
    let mut until = None;
    let mut buffer = [0; 2048];
    loop {
        if until.is_none() && shared.stopped() {
            until = Some(Instant::now() + GRACE);
        }
        match until {
            Some(until) => {
                let seen = shared.seen();
                let all = seen.datagrams.iter().rev().take(20);
                if Instant::now() >= until || all.clone().all(|one| !one.answers.is_empty()) {
                    return Ok(());
                }
            }
            None if Instant::now() >= next => {
                next += interval;
                let request = format!("{name}{}", asked.len());
                {
                    let mut seen = shared.seen();
                    asked.insert(request.clone(), seen.datagrams.len());
                    seen.datagrams.push(exchange(&request));
                }
                unless_absent(socket.send(request.as_bytes()))?;
            }
            None => {}
        }
        let wait = next.saturating_duration_since(Instant::now());
        socket.set_read_timeout(Some(wait.clamp(Duration::from_millis(1), interval)))?;
        let Some(length) = unless_absent(socket.recv(&mut buffer))? else {
            continue;
        };
        let at = now();
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let answer: Option<Answer> = text.parse().ok();
        let mut seen = shared.seen();
        let place = answer
            .as_ref()
            .and_then(|answer| asked.get(&answer.request));
        match (answer.clone(), place) {
            (Some(answer), Some(place)) => seen.datagrams[*place].answers.push((at, answer)),
            _ => seen.foreign.push(text),
        }
    }
}

/// Asks over the connection.
fn lines(mut stream: &TcpStream, shared: &Shared, name: &str, interval: Duration) {
    let mut next = Instant::now();
    for number in 0_usize.. {
        if shared.stopped() || shared.seen().lost_connection.is_some() {
            break;
        }
        let request = format!("{name}{number}");
        shared.seen().lines.push(exchange(&request));
        if let Err(error) = stream.write_all(format!("{request}\n").as_bytes()) {
            shared
                .seen()
                .lost_connection
                .get_or_insert(error.to_string());
            break;
        }
        next += interval;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

/// Takes the answers from the connection, which come in the order of the requests.
fn read_lines(stream: &TcpStream, shared: &Shared) {
    let mut from = BufReader::new(stream);
    for number in 0_usize.. {
        let mut text = String::new();
        let read = from.read_line(&mut text);
        let at = now();
        let mut seen = shared.seen();
        match read {
            Ok(length) if length > 0 => {}
            Ok(_) => {
                seen.lost_connection.get_or_insert("it was closed".into());
                break;
            }
            Err(error) => {
                seen.lost_connection.get_or_insert(error.to_string());
                break;
            }
        }
        let text = text.trim_end();
        match (text.parse(), seen.lines.get_mut(number)) {
            (Ok(answer), Some(line)) => line.answers.push((at, answer)),
            _ => seen.foreign.push(text.to_owned()),
        }
    }
}

/// Gives the witness an order, over a connection of its own.
///
/// # Errors
/// It is not reached within `limit`, or refuses.
pub(crate) fn order(
    client: &lab::Client,
    guest: Ipv4Addr,
    order: &str,
    limit: Duration,
) -> Result<()> {
    let stream = connect(client, SocketAddrV4::new(guest, PORT))?;
    stream.set_read_timeout(Some(limit))?;
    (&stream).write_all(format!("{}{order}\n", witness::ORDER).as_bytes())?;
    let mut text = String::new();
    BufReader::new(&stream)
        .read_line(&mut text)
        .with_context(|| format!("the witness does not say that it has done {order:?}"))?;
    ensure!(!text.is_empty(), "the witness closed the connection");
    if text.trim_end() != format!("done {order}") {
        bail!("the witness said {:?}", text.trim_end());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Oracle, start_on};
    use crate::{oracle::judge, process, udp::local};
    use std::{
        io::{BufRead as _, BufReader, Write as _},
        net::{TcpListener, TcpStream},
        sync::{Arc, Mutex},
        thread,
        time::Duration,
    };
    use witness::History;

    /// A client against a witness on this computer; after `good` answers over TCP its connection ends.
    fn against(good: usize) -> Oracle {
        let history = Arc::new(Mutex::new(History::default()));
        let (server, address) = local();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let of_datagrams = Arc::clone(&history);
        thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((length, from)) = server.recv_from(&mut buffer) {
                let request = std::str::from_utf8(&buffer[..length]).unwrap();
                let reply = of_datagrams.lock().unwrap().answer(request).to_string();
                // The client may have gone.
                let _ = server.send_to(reply.as_bytes(), from);
            }
        });
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            for line in BufReader::new(&stream).lines().take(good) {
                let Ok(line) = line else { return };
                let reply = history.lock().unwrap().answer(&line);
                writeln!(&stream, "{reply}").unwrap();
            }
        });
        let (socket, _) = local();
        socket.connect(address).unwrap();
        let stream = TcpStream::connect(to).unwrap();
        start_on(socket, stream, "test", Duration::from_millis(2)).unwrap()
    }

    #[test]
    fn what_a_good_witness_says_is_without_fault() {
        let oracle = against(usize::MAX);
        oracle.goes_on(Duration::from_secs(20)).unwrap();
        let seen = oracle.finish().unwrap();
        assert!(seen.answered() > 5 && !seen.lines.is_empty());
        assert_eq!(judge(&seen), []);
    }

    #[test]
    fn a_connection_that_ends_is_seen() {
        let oracle = against(4);
        let lost = || Ok(oracle.shared.seen().lost_connection.clone());
        process::poll(Duration::from_secs(20), Duration::from_millis(1), lost)
            .unwrap()
            .unwrap();
        let seen = oracle.finish().unwrap();
        assert!(seen.lost_connection.is_some());
        assert!(!judge(&seen).is_empty());
    }
}
