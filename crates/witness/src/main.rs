//! `witness PORT [DISK]`: answers every datagram, and every line of a TCP connection, at this port with its number. An
//! answer is on the disk before it leaves. What begins with `!` is an order and is not counted:
//!
//! - `!media ADDRESS:PORT MS` sends an RTP packet there every MS milliseconds;
//! - `!dirty PAGES` changes so many pages of memory, once; `!dirty PAGES SECONDS` goes on doing so for that long.

use std::{
    env,
    fs::{File, OpenOptions},
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};
use witness::{Answer, History, LONGEST, ORDER, RECORD, RECORDS, records};

/// A write returns when it is durable (Linux on x86-64).
const O_DSYNC: i32 = 0o10_000;
/// Bytes of a page.
const PAGE: usize = 4096;
/// Sound in an RTP packet of 20 ms of G.711.
const SOUND: usize = 160;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let served = match arguments.as_slice() {
        [port] => serve(port, None),
        [port, disk] => serve(port, Some(disk)),
        _ => {
            eprintln!("usage: witness PORT [DISK]");
            return ExitCode::from(2);
        }
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("witness: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The history, and where it is written down.
struct Book {
    history: History,
    disk: Option<File>,
}

struct Service {
    book: Mutex<Book>,
    memory: Arc<Mutex<Vec<u8>>>,
}

fn serve(port: &str, disk: Option<&str>) -> io::Result<()> {
    let port: u16 = port.parse().map_err(io::Error::other)?;
    let service = Arc::new(Service {
        book: Mutex::new(Book::open(disk)?),
        memory: Arc::default(),
    });
    let datagrams = UdpSocket::bind(("0.0.0.0", port))?;
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    let of_datagrams = Arc::clone(&service);
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        loop {
            // An error belongs to one datagram: the next may do better.
            let Ok((length, from)) = datagrams.recv_from(&mut buffer) else {
                continue;
            };
            if let Some(reply) = of_datagrams.reply(&String::from_utf8_lossy(&buffer[..length])) {
                let _ = datagrams.send_to(reply.as_bytes(), from);
            }
        }
    });
    for stream in listener.incoming().flatten() {
        let service = Arc::clone(&service);
        thread::spawn(move || service.connection(&stream));
    }
    Ok(())
}

impl Book {
    /// Goes on where the disk ends.
    fn open(disk: Option<&str>) -> io::Result<Self> {
        let Some(path) = disk else {
            return Ok(Self {
                history: History::default(),
                disk: None,
            });
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(O_DSYNC)
            .open(path)?;
        let mut content = Vec::new();
        let room = RECORDS * RECORD as u64;
        io::Read::by_ref(&mut file)
            .take(room)
            .read_to_end(&mut content)?;
        Ok(Self {
            history: records(&content)
                .last()
                .map_or_else(History::default, History::after),
            disk: Some(file),
        })
    }

    fn answer(&mut self, request: &str) -> io::Result<Answer> {
        let mut history = self.history;
        let answer = history.answer(request);
        if let Some(disk) = &self.disk {
            disk.write_all_at(&answer.record(), answer.offset())?;
        }
        self.history = history;
        Ok(answer)
    }
}

impl Service {
    fn connection(&self, stream: &TcpStream) {
        // Small answers that wait for each other would only make it slow.
        let _ = stream.set_nodelay(true);
        let mut lines = BufReader::new(stream);
        let mut line = String::new();
        while lines
            .by_ref()
            .take(2048)
            .read_line(&mut line)
            .is_ok_and(|length| length > 0)
        {
            let reply = self.reply(line.trim_end());
            if reply.is_none_or(|reply| writeln!(&*stream, "{reply}").is_err()) {
                return;
            }
            line.clear();
        }
    }

    /// `None` if the request could not be counted: then it is not answered.
    fn reply(&self, request: &str) -> Option<String> {
        if let Some(order) = request.strip_prefix(ORDER) {
            return Some(match self.obey(order) {
                Ok(()) => format!("done {order}"),
                Err(error) => format!("failed {order}: {error}"),
            });
        }
        if request.len() > LONGEST || request.contains('\n') {
            return None;
        }
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        match book.answer(request) {
            Ok(answer) => Some(answer.to_string()),
            Err(error) => {
                eprintln!("witness: the disk: {error}");
                None
            }
        }
    }

    fn obey(&self, order: &str) -> io::Result<()> {
        let words: Vec<&str> = order.split_whitespace().collect();
        match words.as_slice() {
            ["media", to, interval] => {
                let to: SocketAddr = to.parse().map_err(io::Error::other)?;
                let interval = Duration::from_millis(interval.parse().map_err(io::Error::other)?);
                let socket = UdpSocket::bind(("0.0.0.0", 0))?;
                thread::spawn(move || media(&socket, to, interval));
                Ok(())
            }
            ["dirty", pages] => {
                dirty(&self.memory, pages.parse().map_err(io::Error::other)?);
                Ok(())
            }
            ["dirty", pages, seconds] => {
                let pages = pages.parse().map_err(io::Error::other)?;
                let until = Instant::now()
                    + Duration::from_secs(seconds.parse().map_err(io::Error::other)?);
                let memory = Arc::clone(&self.memory);
                thread::spawn(move || {
                    while Instant::now() < until {
                        dirty(&memory, pages);
                        thread::sleep(Duration::from_millis(20));
                    }
                });
                Ok(())
            }
            _ => Err(io::Error::other("unknown")),
        }
    }
}

/// Gives each page another content.
fn dirty(memory: &Mutex<Vec<u8>>, pages: usize) {
    let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
    if memory.len() < pages * PAGE {
        memory.resize(pages * PAGE, 0);
    }
    for page in memory.chunks_exact_mut(PAGE).take(pages) {
        page[0] = page[0].wrapping_add(1);
    }
}

/// Sends sound for ever, each packet at its time.
fn media(socket: &UdpSocket, to: SocketAddr, interval: Duration) {
    let mut next = Instant::now();
    for number in 0_u32.. {
        let mut packet = vec![0x80, 0];
        let sequence = (number & 0xffff).to_be_bytes();
        packet.extend_from_slice(&sequence[2..]);
        packet.extend_from_slice(&number.wrapping_mul(160).to_be_bytes());
        packet.extend_from_slice(b"WITN");
        packet.resize(packet.len() + SOUND, 0xff);
        // Who does not listen may say so; the sound goes on.
        let _ = socket.send_to(&packet, to);
        next += interval;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}
