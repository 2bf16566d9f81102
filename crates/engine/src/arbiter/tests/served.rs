use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use std::os::fd::OwnedFd;

use romulus_protocol::arbiter::{Answer, Ask, Request};
use romulus_protocol::id::{Generation, Incarnation, MachineId};
use romulus_protocol::record::{Change, Phase, Refusal, Right};
use romulus_protocol::wire::encode_request;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::super::{Client, Files, PURPOSE, Server, ServerConfig, ServerError, StoreError, name};
use crate::identity::Secret;

const MACHINE: MachineId = MachineId(0xfeed);

fn secret(n: u8) -> Secret {
    Secret::from_seed(&[n; 32])
}

fn me() -> Incarnation {
    Incarnation::new(1).expect("not zero")
}

/// A server in a thread of its own: number 100, which answers the hosts 1 and 2.
struct Running {
    addresses: Vec<SocketAddr>,
    stop: OwnedFd,
    thread: JoinHandle<Result<(), ServerError>>,
}

impl Running {
    fn start(store: &Path) -> Running {
        let here = (Ipv4Addr::LOCALHOST, 0).into();
        let server = Server::open(ServerConfig {
            listen: vec![here, here],
            records: Box::new(Files::open(store).expect("opened")),
            secret: secret(100),
            allowed: vec![*secret(1).public(), *secret(2).public()],
        });
        let server = server.expect("opened");
        let stop = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
        let stopped = stop.try_clone().expect("cloned");
        Running {
            addresses: server.addresses().to_vec(),
            thread: thread::spawn(move || server.run(stopped)),
            stop,
        }
    }

    fn client(&self, socket: usize, host: u8) -> Client {
        let arbiter = secret(100);
        let address = self.addresses[socket];
        Client::open(address, None, &secret(host), arbiter.public()).expect("opened")
    }

    fn stop(self) {
        rustix::io::write(&self.stop, &1_u64.to_ne_bytes()).expect("told");
        self.thread.join().expect("no panic").expect("ended well");
    }
}

fn request(number: u64, ask: Ask) -> Request {
    Request {
        machine: MACHINE,
        from: me(),
        number,
        ask,
    }
}

fn run(expected: u64) -> Ask {
    let change = Change {
        expected: Generation(expected),
        runner: me(),
        heir: None,
        phase: Phase::Running,
    };
    Ask::Change(Right::Named, change)
}

/// Waits for an answer. Nothing is lost between sockets of one computer, so one has to come.
fn answer(client: &mut Client) -> Answer {
    loop {
        if let Some(answer) = client.receive() {
            return answer;
        }
        let long = Timespec {
            tv_sec: 60,
            tv_nsec: 0,
        };
        let mut fds = [PollFd::from_borrowed_fd(client.fd(), PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&long)), Ok(1), "no answer");
    }
}

/// Number, generation, refusal.
fn ask(client: &mut Client, number: u64, ask: Ask) -> (u64, Option<u64>, Option<Refusal>) {
    client.send(&request(number, ask));
    let answer = answer(client);
    assert_eq!((answer.machine, answer.to), (MACHINE, me()));
    let generation = answer.record.map(|record| record.generation.0);
    (answer.number, generation, answer.refusal)
}

#[test]
fn records_outlive_the_server() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Running::start(dir.path());
    let (mut one, mut two) = (server.client(0, 1), server.client(1, 2));
    assert_eq!(ask(&mut one, 1, Ask::Read), (1, None, None));
    let absent = Some(Refusal::Absent);
    assert_eq!(ask(&mut one, 2, run(1)), (2, None, absent));
    assert_eq!(ask(&mut one, 3, Ask::Create), (3, Some(1), None));
    let exists = Some(Refusal::Exists);
    assert_eq!(ask(&mut two, 4, Ask::Create), (4, Some(1), exists));
    assert_eq!(ask(&mut two, 5, run(1)), (5, Some(2), None));
    let stale = Some(Refusal::Generation);
    assert_eq!(ask(&mut one, 6, run(1)), (6, Some(2), stale));
    server.stop();

    let server = Running::start(dir.path());
    let mut one = server.client(1, 1);
    assert_eq!(ask(&mut one, 7, Ask::Read), (7, Some(2), None));
    server.stop();
}

/// What is dropped gets no answer at all, so the first answer is that to the good request which
/// follows on the same socket.
#[test]
fn only_the_allowed_are_answered() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Running::start(dir.path());
    let mut good = server.client(0, 1);
    let to = server.addresses[0];
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
    let key = secret(1)
        .shared(secret(100).public(), PURPOSE)
        .expect("safe");
    let wrong = secret(3)
        .shared(secret(100).public(), PURPOSE)
        .expect("safe");
    let datagram = |host: u8, key: &crate::identity::Key| {
        let mut bytes = name(secret(host).public()).to_vec();
        encode_request(&request(1, Ask::Create), key, &mut bytes);
        bytes
    };
    let fine = datagram(1, &key);
    let mut flipped = fine.clone();
    *flipped.last_mut().expect("a byte") ^= 1;
    let bad = [
        datagram(3, &wrong), // not allowed
        datagram(1, &wrong), // under an allowed one's name
        datagram(2, &key),   // one allowed one under another's name
        flipped,
        fine[..fine.len() - 1].to_vec(),
        fine[8..].to_vec(), // no name
        Vec::new(),
        vec![0; 60_000],
    ];
    for bytes in bad {
        socket.send_to(&bytes, to).expect("sent");
    }
    assert_eq!(ask(&mut good, 9, Ask::Read), (9, None, None));
    socket
        .set_read_timeout(Some(Duration::from_mins(1)))
        .expect("set");
    socket.send_to(&fine, to).expect("sent");
    let mut buffer = [0; 1024];
    let (length, _) = socket.recv_from(&mut buffer).expect("an answer");
    let first = romulus_protocol::wire::decode_answer(&buffer[..length], &key);
    let first = first.expect("authentic");
    assert_eq!((first.number, first.refusal), (1, None), "the first of all");
    server.stop();
}

/// Somebody records a change and its answer, and sends both again later.
#[test]
fn a_replay_changes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Running::start(dir.path());
    let mut host = server.client(0, 1);
    assert_eq!(ask(&mut host, 1, Ask::Create), (1, Some(1), None));
    let key = secret(1)
        .shared(secret(100).public(), PURPOSE)
        .expect("safe");
    let mut old = name(secret(1).public()).to_vec();
    encode_request(&request(2, run(1)), &key, &mut old);
    assert_eq!(ask(&mut host, 2, run(1)), (2, Some(2), None));
    assert_eq!(ask(&mut host, 3, run(2)), (3, Some(3), None));
    let thief = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
    thief
        .set_read_timeout(Some(Duration::from_mins(1)))
        .expect("set");
    thief.send_to(&old, server.addresses[0]).expect("sent");
    let mut buffer = [0; 1024];
    let (length, _) = thief.recv_from(&mut buffer).expect("an answer");
    assert_eq!(ask(&mut host, 4, Ask::Read), (4, Some(3), None));
    // The answer, to the host: it names the request that it answers.
    let address = rustix::net::getsockname(host.fd()).expect("bound");
    let port = SocketAddr::try_from(address).expect("an address").port();
    let to = (Ipv4Addr::LOCALHOST, port);
    thief.send_to(&buffer[..length], to).expect("sent");
    let replayed = answer(&mut host);
    assert_eq!(
        (replayed.number, replayed.refusal),
        (2, Some(Refusal::Generation))
    );
    // Forged, it is dropped.
    buffer[40] ^= 1;
    thief.send_to(&buffer[..length], to).expect("sent");
    assert_eq!(ask(&mut host, 5, Ask::Read), (5, Some(3), None));
    server.stop();
}

/// A directory that cannot be written to: the change is refused and the record is what it was.
#[test]
fn what_cannot_be_stored_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Running::start(dir.path());
    let mut host = server.client(0, 1);
    assert_eq!(ask(&mut host, 1, Ask::Create), (1, Some(1), None));
    // A folder under the draft's name fails every attempt, whoever runs this test.
    let draft = dir.path().join(format!("{MACHINE}.draft"));
    std::fs::create_dir(&draft).expect("made");
    let refused = Some(Refusal::NotStored);
    assert_eq!(ask(&mut host, 2, run(1)), (2, Some(1), refused));
    assert_eq!(ask(&mut host, 3, Ask::Read), (3, Some(1), None));
    std::fs::remove_dir(&draft).expect("removed");
    assert_eq!(ask(&mut host, 4, run(1)), (4, Some(2), None));
    server.stop();
}

#[test]
fn a_server_that_cannot_be_right_does_not_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let open = |listen: &str| {
        Ok::<_, Box<dyn Error>>(Server::open(ServerConfig {
            listen: vec![listen.parse().expect("an address")],
            records: Box::new(Files::open(dir.path())?),
            secret: secret(100),
            allowed: Vec::new(),
        })?)
    };
    let error = open("192.0.2.1:0").expect_err("another computer's address");
    assert!(
        matches!(error.downcast_ref(), Some(ServerError::Listen { .. })),
        "{error}"
    );
    let running = open("127.0.0.1:0").expect("opened");
    let error = open("127.0.0.1:0").expect_err("the store is taken");
    assert!(error.is::<StoreError>(), "{error}");
    drop(running);
    std::fs::write(dir.path().join("x"), "x").expect("written");
    let error = open("127.0.0.1:0").expect_err("a foreign file");
    assert!(error.to_string().contains("/x does not belong"), "{error}");
}
