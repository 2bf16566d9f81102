//! A server in this process, and a host that asks it.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::LazyLock;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use romulus_protocol::arbiter::{Answer, Ask, Request};
use romulus_protocol::id::{Generation, Incarnation, MachineId};
use romulus_protocol::record::{Change, Phase, Refusal, Right};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use romulus_engine::arbiter::{Client, Server, ServerConfig, ServerError};
use romulus_engine::identity::Secret;
use romulus_etcd::{Etcd, EtcdConfig, EtcdError};

pub(crate) const MACHINE: MachineId = MachineId(0xfeed);

/// The arbiter's secret, and those of the hosts 1 and 2.
static SECRETS: LazyLock<[Secret; 3]> = LazyLock::new(|| {
    let directory = tempfile::tempdir().expect("a directory");
    ["0", "1", "2"].map(|name| Secret::create(&directory.path().join(name)).expect("made"))
});

fn secret(n: usize) -> &'static Secret {
    &SECRETS[n]
}

pub(crate) fn me() -> Incarnation {
    Incarnation::new(1).expect("not zero")
}

/// A server in a thread of its own: which answers the hosts 1 and 2.
pub(crate) struct Running {
    pub(crate) addresses: Vec<SocketAddr>,
    stop: OwnedFd,
    thread: JoinHandle<Result<(), ServerError>>,
}

impl Running {
    pub(crate) fn start(config: &EtcdConfig) -> Result<Running, EtcdError> {
        let records = Box::new(Etcd::open(config)?);
        let here = (Ipv4Addr::LOCALHOST, 0).into();
        let server = Server::open(ServerConfig {
            listen: vec![here, here],
            records,
            secret: secret(0).clone(),
            allowed: vec![*secret(1).public(), *secret(2).public()],
        });
        let server = server.expect("opened");
        let stop = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
        let stopped = stop.try_clone().expect("cloned");
        Ok(Running {
            addresses: server.addresses().to_vec(),
            thread: thread::spawn(move || server.run(stopped)),
            stop,
        })
    }

    pub(crate) fn client(&self, socket: usize, host: usize) -> Client {
        let arbiter = secret(0);
        let address = self.addresses[socket];
        Client::open(address, None, secret(host), arbiter.public()).expect("opened")
    }

    pub(crate) fn stop(self) {
        rustix::io::write(&self.stop, &1_u64.to_ne_bytes()).expect("told");
        self.thread.join().expect("no panic").expect("ended well");
    }
}

pub(crate) fn request(number: u64, ask: Ask) -> Request {
    Request {
        machine: MACHINE,
        from: me(),
        number,
        ask,
    }
}

pub(crate) fn run(expected: u64) -> Ask {
    let change = Change {
        expected: Generation(expected),
        runner: me(),
        heir: None,
        phase: Phase::Running,
    };
    Ask::Change(Right::Named, change)
}

/// Waits for an answer. Nothing is lost between sockets of one computer, so one has to come.
pub(crate) fn answer(client: &mut Client) -> Answer {
    heard(client, Duration::from_mins(1)).expect("no answer")
}

/// The answer, if one comes in time.
pub(crate) fn heard(client: &mut Client, within: Duration) -> Option<Answer> {
    let end = Instant::now() + within;
    loop {
        if let Some(answer) = client.receive() {
            return Some(answer);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        let left = Timespec::try_from(left).expect("not for years");
        let mut fds = [PollFd::from_borrowed_fd(client.fd(), PollFlags::IN)];
        poll(&mut fds, Some(&left)).expect("waited");
    }
}

/// Number, generation, refusal.
pub(crate) fn ask(
    client: &mut Client,
    number: u64,
    ask: Ask,
) -> (u64, Option<u64>, Option<Refusal>) {
    client.send(&request(number, ask));
    let answer = answer(client);
    assert_eq!((answer.machine, answer.to), (MACHINE, me()));
    let generation = answer.record.map(|record| record.generation.0);
    (answer.number, generation, answer.refusal)
}
