//! The two threads of media: one sends all streams' packets when they are due, one receives and books them.

use super::{
    Account, Codec, Header, Mark, PACKET, Pacing, PacingReport, SAMPLES, Sent, encode, parse,
    socket::{Clock, note_arrivals, on_time, receive},
};
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
};
use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, UdpSocket},
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// How soon the sender looks for streams that have begun, and the receiver for the end of the run.
const LOOK: Duration = Duration::from_millis(5);
/// Room for what may arrive; a packet of ours is far smaller.
const LONGEST: usize = 2048;

/// Where one end of a call has its media.
struct Leg {
    socket: UdpSocket,
    sends: u32,
    expects: u32,
}

/// What the sender needs of a stream.
#[derive(Debug, Clone, Copy)]
struct Target {
    leg: usize,
    to: SocketAddr,
    codec: Codec,
}

#[derive(Default)]
struct Sending {
    pacing: Pacing,
    /// By stream.
    targets: Vec<Option<Target>>,
    refused: u64,
}

#[derive(Default)]
struct Receiving {
    /// By stream.
    accounts: Vec<Account>,
    strays: u64,
}

struct Shared {
    clock: Clock,
    run: u32,
    stop: AtomicBool,
    poll: OwnedFd,
    legs: Mutex<Vec<Arc<Leg>>>,
    sending: Mutex<Sending>,
    receiving: Mutex<Receiving>,
}

/// Media of a run: its streams, and the threads that serve them. Dropping it ends them.
pub struct Media {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What became of all streams.
#[derive(Debug, Clone, Default)]
pub struct Streams {
    /// The receiver's books, by stream.
    pub accounts: Vec<Account>,
    /// What was sent, by stream.
    pub sent: Vec<Sent>,
    /// How late the sender was.
    pub pacing: PacingReport,
    /// Packets that were due and that the kernel did not take: they count as sent, and so as lost.
    pub refused: u64,
    /// Datagrams that belong to no stream of this run, or came to the wrong end.
    pub strays: u64,
}

impl Media {
    /// Starts the threads. `run` is a number that no other run has: packets of another are strays. Threads have the
    /// network namespace of the caller's.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn start(clock: Clock, run: u32) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            clock,
            run,
            stop: AtomicBool::new(false),
            poll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            legs: Mutex::default(),
            sending: Mutex::default(),
            receiving: Mutex::default(),
        });
        let spawn = |name: &str, work: fn(&Shared)| {
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name(name.into())
                .spawn(move || work(&shared))
        };
        let threads = vec![spawn("rtp-send", send)?, spawn("rtp-receive", book)?];
        Ok(Self { shared, threads })
    }

    /// Takes one end of a call: from `socket` it will send stream `sends`, and what arrives there is booked as stream
    /// `expects`. Gives the end's number.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn open(&self, socket: UdpSocket, sends: u32, expects: u32) -> io::Result<usize> {
        socket.set_nonblocking(true)?;
        note_arrivals(&socket)?;
        let leg = Arc::new(Leg {
            socket,
            sends,
            expects,
        });
        let mut legs = lock(&self.shared.legs);
        let number = legs.len();
        epoll::add(
            &self.shared.poll,
            &leg.socket,
            epoll::EventData::new_u64(number as u64),
            epoll::EventFlags::IN,
        )?;
        legs.push(leg);
        let mut receiving = lock(&self.shared.receiving);
        let most = sends.max(expects) as usize + 1;
        if receiving.accounts.len() < most {
            receiving.accounts.resize(most, Account::default());
        }
        Ok(number)
    }

    /// Lets an end send its stream to `to` from now on; where it does so already, the rest goes to `to`.
    pub fn send(&self, end: usize, to: SocketAddr, codec: Codec) {
        let Some(leg) = lock(&self.shared.legs).get(end).map(Arc::clone) else {
            return;
        };
        let mut sending = lock(&self.shared.sending);
        let index = leg.sends as usize;
        if sending.targets.len() <= index {
            sending.targets.resize(index + 1, None);
        }
        sending.targets[index] = Some(Target {
            leg: end,
            to,
            codec,
        });
        sending.pacing.begin(leg.sends, self.shared.clock.now());
    }

    /// Lets an end send no more.
    pub fn hush(&self, end: usize) {
        if let Some(leg) = lock(&self.shared.legs).get(end) {
            lock(&self.shared.sending).pacing.end(leg.sends);
        }
    }

    /// How many packets have arrived of the stream that an end expects.
    pub fn arrived(&self, end: usize) -> usize {
        let Some(leg) = lock(&self.shared.legs).get(end).map(Arc::clone) else {
            return 0;
        };
        lock(&self.shared.receiving)
            .accounts
            .get(leg.expects as usize)
            .map_or(0, |account| account.times().count())
    }

    /// Ends it and gives what became of the streams. What is still on its way counts as lost: whoever wants it waits a
    /// moment between [`Self::hush`] and this.
    pub fn finish(mut self) -> Streams {
        self.stop();
        let receiving = std::mem::take(&mut *lock(&self.shared.receiving));
        let sending = lock(&self.shared.sending);
        let streams = u32::try_from(receiving.accounts.len()).unwrap_or(u32::MAX);
        Streams {
            accounts: receiving.accounts,
            sent: (0..streams).map(|n| sending.pacing.sent(n)).collect(),
            pacing: sending.pacing.report(),
            refused: sending.refused,
            strays: receiving.strays,
        }
    }

    fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Drop for Media {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn send(shared: &Shared) {
    on_time();
    while !shared.stop.load(Ordering::Acquire) {
        let legs = lock(&shared.legs).clone();
        let mut sending = lock(&shared.sending);
        loop {
            let now = shared.clock.now();
            let Some((stream, index)) = sending.pacing.take(now) else {
                break;
            };
            let target = sending.targets.get(stream as usize).copied().flatten();
            if let Some(target) = target
                && let Some(leg) = legs.get(target.leg)
            {
                let packet = packet(shared.run, stream, index, target.codec, now);
                let sent = leg.socket.send_to(&packet, target.to);
                sending.refused += u64::from(sent.is_err());
            }
        }
        let next = sending.pacing.next();
        drop(sending);
        let look = shared.clock.now() + LOOK;
        shared
            .clock
            .sleep_until(next.map_or(look, |next| next.min(look)));
    }
}

/// Packet `index` of a stream. Where sequence numbers and timestamps begin depends on the stream, as it should be random
/// (RFC 3550, section 5.1), and wraps soon enough to be seen in a test of a minute for some.
fn packet(run: u32, stream: u32, index: u32, codec: Codec, now: Duration) -> [u8; PACKET] {
    let start = run.wrapping_add(stream).wrapping_mul(0x9e37_79b9);
    let header = Header {
        marker: index == 0,
        payload_type: codec.payload_type(),
        sequence: ((start >> 16).wrapping_add(index) & 0xffff) as u16,
        timestamp: start.wrapping_add(index.wrapping_mul(SAMPLES)),
        ssrc: start.rotate_left(7) ^ 0x5052_6d52,
    };
    let mark = Mark {
        run,
        stream,
        index,
        sent: now,
    };
    encode(header, mark, codec)
}

fn book(shared: &Shared) {
    let mut events: Vec<epoll::Event> = Vec::with_capacity(256);
    let mut buffer = [0; LONGEST];
    let wait = Timespec::try_from(LOOK * 4).ok();
    while !shared.stop.load(Ordering::Acquire) {
        events.clear();
        // An error can only be a signal's interruption; the next turn asks again.
        let _ = epoll::wait(&shared.poll, spare_capacity(&mut events), wait.as_ref());
        if events.is_empty() {
            continue;
        }
        let legs = lock(&shared.legs).clone();
        let mut receiving = lock(&shared.receiving);
        for event in &events {
            let number = usize::try_from({ event.data }.u64()).unwrap_or(usize::MAX);
            if let Some(leg) = legs.get(number) {
                drain(shared, leg, &mut receiving, &mut buffer);
            }
        }
    }
}

/// Books all that has arrived at one end.
fn drain(shared: &Shared, leg: &Leg, receiving: &mut Receiving, buffer: &mut [u8]) {
    loop {
        match receive(&leg.socket, &shared.clock, buffer) {
            Ok((length, at)) => {
                let ours = parse(&buffer[..length])
                    .and_then(|(header, mark)| Some((header, mark?)))
                    .filter(|(_, mark)| mark.run == shared.run && mark.stream == leg.expects);
                let account = receiving.accounts.get_mut(leg.expects as usize);
                let booked = match (ours, account) {
                    (Some((header, mark)), Some(account)) => account.arrived(at, &header, &mark),
                    _ => false,
                };
                receiving.strays += u64::from(!booked);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Nothing more; or the kernel tells of a datagram sent earlier, and takes that word back by telling it.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Media;
    use crate::media::{Codec, Playout, socket::Clock};
    use std::{
        net::{SocketAddr, UdpSocket},
        thread,
        time::{Duration, Instant},
    };

    fn local() -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    fn until(what: &str, condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(30), "{what}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn both_ends_of_a_call_hear_each_other() {
        let media = Media::start(Clock::start(), 77).unwrap();
        let ((one, at_one), (other, at_other)) = (local(), local());
        let (one, other) = (
            media.open(one, 0, 1).unwrap(),
            media.open(other, 1, 0).unwrap(),
        );
        media.send(one, at_other, Codec::Pcmu);
        media.send(other, at_one, Codec::Pcma);
        until("media flows", || {
            media.arrived(one) > 10 && media.arrived(other) > 10
        });
        media.hush(one);
        media.hush(other);
        let (seen, sent) = (media.arrived(one), media.arrived(other));
        until("all has arrived", || {
            thread::sleep(Duration::from_millis(50));
            media.arrived(one) >= seen && media.arrived(other) >= sent
        });
        let streams = media.finish();
        assert_eq!((streams.strays, streams.refused), (0, 0));
        for (account, sent) in streams.accounts.iter().zip(&streams.sent) {
            let report = account.report(*sent, Playout::default());
            assert!(sent.packets > 10);
            assert_eq!(
                (report.lost, report.duplicates, report.reordered),
                (0, 0, 0)
            );
            assert_eq!(report.restarts, 0);
        }
    }

    #[test]
    fn what_belongs_to_nobody_is_a_stray() {
        let media = Media::start(Clock::start(), 1).unwrap();
        let another = Media::start(Clock::start(), 2).unwrap();
        let ((here, at_here), (there, _)) = (local(), local());
        let end = media.open(here, 0, 1).unwrap();
        let foreign = another.open(there, 1, 0).unwrap();
        another.send(foreign, at_here, Codec::Pcmu);
        let (socket, _) = local();
        socket.send_to(b"no RTP at all", at_here).unwrap();
        until("strays are seen", || {
            super::lock(&media.shared.receiving).strays > 3
        });
        assert_eq!(media.arrived(end), 0);
    }

    #[test]
    fn what_belongs_to_another_end_is_a_stray() {
        let media = Media::start(Clock::start(), 1).unwrap();
        let ((here, at_here), (there, _)) = (local(), local());
        let end = media.open(here, 0, 1).unwrap();
        let other = media.open(there, 2, 3).unwrap();
        media.send(other, at_here, Codec::Pcmu);
        until("strays are seen", || {
            super::lock(&media.shared.receiving).strays > 3
        });
        assert_eq!(media.arrived(end), 0);
    }
}
