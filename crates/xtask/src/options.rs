//! When a SIP server answers: an OPTIONS request every few milliseconds over UDP until the first answer.

use crate::udp::{bound_to, client_socket, unless_absent};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How long one request waits for its answer before the next one goes out.
const INTERVAL: Duration = Duration::from_millis(5);

/// A watch for the first answer, on a thread of its own. Dropping it ends it.
pub(crate) struct Watch {
    thread: Option<JoinHandle<Result<Instant>>>,
    stop: Arc<AtomicBool>,
}

/// Starts to watch `server` from the lab's client, at most for `limit`.
///
/// # Errors
/// The client's network can't be used.
pub(crate) fn watch(client: &lab::Client, server: SocketAddrV4, limit: Duration) -> Result<Watch> {
    watch_every(client, server, limit, INTERVAL)
}

/// [`watch`] with an interval of its own: what is asked while a server starts waits in its queue and has to be answered
/// before anything else.
///
/// # Errors
/// Those of [`watch`].
pub(crate) fn watch_every(
    client: &lab::Client,
    server: SocketAddrV4,
    limit: Duration,
    interval: Duration,
) -> Result<Watch> {
    ask_for_addresses_often(client)?;
    start(client_socket(client)?, server, limit, interval)
}

fn start(
    socket: UdpSocket,
    server: SocketAddrV4,
    limit: Duration,
    interval: Duration,
) -> Result<Watch> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let thread = thread::Builder::new()
        .name("await-sip".into())
        .spawn(move || first_answer(&socket, server, limit, interval, &stopped))?;
    Ok(Watch {
        thread: Some(thread),
        stop,
    })
}

impl Watch {
    /// Waits for the first answer and tells when it came.
    ///
    /// # Errors
    /// No answer came in time.
    pub(crate) fn wait(mut self) -> Result<Instant> {
        let thread = self
            .thread
            .take()
            .context("the watch has been waited for")?;
        thread
            .join()
            .map_err(|_| anyhow!("the watch for SIP panicked"))?
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Checks that `server` answers: waits for one answer, at most for `limit`.
///
/// # Errors
/// It does not.
pub(crate) fn answers(client: &lab::Client, server: SocketAddrV4, limit: Duration) -> Result<()> {
    watch(client, server, limit)?.wait().map(drop)
}

/// Linux asks for an unknown neighbour's address once a second: measured times would be rounded up to that. In the
/// client's namespace it asks every 20 ms.
pub(crate) fn ask_for_addresses_often(client: &lab::Client) -> Result<()> {
    const SCRIPT: &str = "for file in /proc/sys/net/ipv4/neigh/*/retrans_time_ms; do echo 20 > $file || exit 1; done";
    let status = client.command("sh")?.args(["-c", SCRIPT]).status()?;
    ensure!(
        status.success(),
        "the client's namespace refuses to set the interval of address requests"
    );
    Ok(())
}

/// Asks until there is an answer; gives its time.
fn first_answer(
    socket: &UdpSocket,
    server: SocketAddrV4,
    limit: Duration,
    interval: Duration,
    stop: &AtomicBool,
) -> Result<Instant> {
    let from = bound_to(socket)?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(interval))?;
    let start = Instant::now();
    let mut buffer = [0; 2048];
    for number in 1_u32.. {
        if start.elapsed() > limit || stop.load(Ordering::Relaxed) {
            break;
        }
        unless_absent(socket.send(request(*server.ip(), from, number).as_bytes()))?;
        let asked = Instant::now();
        while asked.elapsed() < interval {
            match unless_absent(socket.recv(&mut buffer))? {
                Some(length) if is_answer(&buffer[..length]) => return Ok(Instant::now()),
                Some(_) => {}
                // Refused at once while the server is not up: don't flood it.
                None => thread::sleep(interval.saturating_sub(asked.elapsed())),
            }
        }
    }
    bail!(
        "no SIP answer from {server} within {:.1} s",
        start.elapsed().as_secs_f64()
    )
}

/// An OPTIONS request (RFC 3261, section 11.1), a transaction of its own for each number.
fn request(host: Ipv4Addr, from: SocketAddrV4, number: u32) -> String {
    let (address, port) = (from.ip(), from.port());
    format!(
        "OPTIONS sip:{host} SIP/2.0\r\n\
         Via: SIP/2.0/UDP {from};branch=z9hG4bK-watch-{port}-{number};rport\r\n\
         Max-Forwards: 70\r\n\
         To: <sip:{host}>\r\n\
         From: <sip:watch@{address}>;tag=watch-{port}\r\n\
         Call-ID: watch-{port}@{address}\r\n\
         CSeq: {number} OPTIONS\r\n\
         Contact: <sip:watch@{from}>\r\n\
         Content-Length: 0\r\n\r\n"
    )
}

/// Whether a datagram is a successful SIP answer. A server that is not ready may say so with 5xx.
fn is_answer(datagram: &[u8]) -> bool {
    datagram.starts_with(b"SIP/2.0 200 ")
}

#[cfg(test)]
mod tests {
    use super::{INTERVAL, is_answer, request, start};
    use crate::udp::local;
    use std::{net::Ipv4Addr, thread, time::Duration};

    #[test]
    fn only_success_counts_as_an_answer() {
        assert!(is_answer(b"SIP/2.0 200 OK\r\n"));
        assert!(!is_answer(b"SIP/2.0 503 Not Ready\r\n"));
        assert!(!is_answer(b"SIP"));
    }

    #[test]
    fn each_request_is_a_transaction_of_its_own() {
        let (host, from) = (
            Ipv4Addr::new(192, 0, 2, 100),
            "192.0.2.254:4000".parse().unwrap(),
        );
        let (one, two) = (request(host, from, 1), request(host, from, 2));
        assert!(one.ends_with("\r\n\r\n"));
        assert!(one.contains("branch=z9hG4bK-watch-4000-1;") && two.contains("CSeq: 2 OPTIONS"));
    }

    #[test]
    fn it_asks_until_the_server_is_ready() {
        let (server, address) = local();
        let answering = thread::spawn(move || {
            let mut buffer = [0; 2048];
            for answer in ["SIP/2.0 503 Starting\r\n\r\n", "SIP/2.0 200 OK\r\n\r\n"] {
                let (_, from) = server.recv_from(&mut buffer).unwrap();
                assert!(buffer.starts_with(b"OPTIONS sip:127.0.0.1 SIP/2.0\r\n"));
                server.send_to(answer.as_bytes(), from).unwrap();
            }
        });
        start(local().0, address, Duration::from_secs(10), INTERVAL)
            .unwrap()
            .wait()
            .unwrap();
        answering.join().unwrap();
    }

    #[test]
    fn silence_is_an_error() {
        let (_silent, address) = local();
        let error = start(local().0, address, Duration::from_millis(30), INTERVAL)
            .unwrap()
            .wait()
            .unwrap_err();
        assert!(
            error.to_string().contains("no SIP answer from 127.0.0.1"),
            "{error}"
        );
    }
}
