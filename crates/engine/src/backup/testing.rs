//! A node without an engine, for tests: its host, its sockets, and a session that fills it.

use super::Backup;
use crate::{
    Report,
    arbiter::Client,
    clock,
    datagram::{Path, Paths},
    disks::{Replicas, WritableDisk},
    identity::Secret,
    link::{self, Connection, Listener, Terms},
    node::Node,
    orders::Orders,
    output::Output,
};
use romulus_checkpoint::{Encoder, Replica, Staging};
use romulus_machine::{Memory, Outgoing, tiny::Tiny};
use romulus_network::{HEADER, Mode};
use romulus_protocol::{
    host::{self, Event, Host},
    id::{Epoch, Generation, Incarnation, MachineId, SessionId, Term},
    message::{Checkpoint, Message},
    sidecar::Sidecar,
    timing::Timing,
};
use std::{
    convert::Infallible,
    io,
    net::UdpSocket,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

pub(crate) const MACHINE: MachineId = MachineId(5);
/// Guest memory in bytes: as little as there can be.
pub(crate) const MEMORY: u64 = 2 << 20;

pub(crate) fn incarnation(number: u128) -> Incarnation {
    Incarnation::new(number).unwrap()
}

/// A node, and what the world hears of it.
pub(crate) struct World {
    pub(crate) node: Arc<Node>,
    pub(crate) reports: Mutex<mpsc::Receiver<Report>>,
    _sidecars: Mutex<mpsc::Receiver<Sidecar>>,
    /// Where its heartbeats go.
    pub(crate) partner: UdpSocket,
    pub(crate) partner_key: crate::identity::Key,
    /// A copy of its socket towards the arbiter.
    pub(crate) polled: OwnedFd,
    _arbiter: UdpSocket,
}

/// A host that has just started and has never held the machine.
pub(crate) fn world() -> World {
    let here = || UdpSocket::bind("127.0.0.1:0").unwrap();
    let (partner, arbiter) = (here(), here());
    let secret = |n: u8| Secret::from_seed(&[n; 32]);
    let (me, other, judge) = (secret(1), secret(2), secret(3));
    let key = |a: &Secret, b: &Secret| a.shared(b.public(), "heartbeats").unwrap();
    let lane = Path {
        name: "replication",
        local: ([127, 0, 0, 1], 0).into(),
        peer: partner.local_addr().unwrap(),
    };
    let paths = Paths::open(&[lane], key(&me, &other)).unwrap();
    let client = Client::open(arbiter.local_addr().unwrap(), None, &me, judge.public()).unwrap();
    let polled = client.fd().try_clone_to_owned().unwrap();
    let config = host::Config {
        machine: MACHINE,
        unheld: false,
        preferred: true,
        timing: Timing::default(),
    };
    let host = Host::new(
        config,
        incarnation(1),
        Sidecar::empty(MACHINE),
        clock::now(),
    )
    .unwrap();
    let orders = Arc::new(Orders::default());
    let output = Arc::new(Output::new(1 << 20, vec![], Mode::Net, Arc::clone(&orders)));
    let (to_store, sidecars) = mpsc::channel();
    let (sender, reports) = mpsc::channel();
    let node = Node::new(host, orders, output, paths, client, to_store, sender);
    World {
        node: Arc::new(node),
        reports: Mutex::new(reports),
        _sidecars: Mutex::new(sidecars),
        partner,
        partner_key: key(&other, &me),
        polled,
        _arbiter: arbiter,
    }
}

/// The runner of these sessions.
pub(crate) const RUNNER: u128 = 2;

pub(crate) fn session(number: u64) -> SessionId {
    SessionId {
        runner: incarnation(RUNNER),
        number,
    }
}

pub(crate) fn term() -> Term {
    Term(Generation(3))
}

impl World {
    /// The runner's message arrives.
    pub(crate) fn hear(&self, message: Message) {
        self.node.handle(Event::Message {
            from: incarnation(RUNNER),
            message,
        });
    }

    /// The runner offers to fill this host, whose sidecar then says so.
    pub(crate) fn begin(&self, number: u64) {
        self.node.handle(Event::Connected(incarnation(RUNNER)));
        self.hear(Message::Begin {
            session: session(number),
            term: term(),
            generation: Generation(3),
            unheld: false,
        });
        assert_eq!(self.node.expected(), Some(session(number)));
        self.node.handle(Event::SidecarStored(true));
    }
}

/// What fills a replica.
pub(crate) struct Filler {
    encoder: Encoder,
    pub(crate) epoch: Epoch,
    /// The next epoch's held output.
    pub(crate) output: Vec<u8>,
}

/// An epoch's parts, and the message that ends it.
pub(crate) struct Filled {
    pub(crate) parts: Vec<Vec<u8>>,
    pub(crate) end: Checkpoint,
}

impl Filler {
    pub(crate) fn new(memory: &Memory) -> Filler {
        Filler {
            encoder: Encoder::new(memory.pages(), 1 << 20),
            epoch: Epoch(0),
            output: Vec::new(),
        }
    }

    /// The first pages of `memory`, this state, and a write to the first disk if there is one.
    pub(crate) fn fill(
        &mut self,
        memory: &Memory,
        state: &[u8],
        disk: Option<&[u8]>,
        flush: bool,
    ) -> Filled {
        self.epoch = self.epoch.next();
        let mut staging = Staging::new(1);
        staging.copy(memory, 0..8);
        staging.state().extend_from_slice(&[0; 4]);
        staging.state().extend_from_slice(state);
        if let Some(bytes) = disk {
            staging.disk().write(0, 0, bytes).unwrap();
        }
        if flush {
            staging.disk().flush();
        }
        staging.output().append(&mut self.output);
        let mut parts = Vec::new();
        let sealed = self
            .encoder
            .encode(&staging, &mut |_, part| {
                parts.push(part.to_vec());
                Ok::<_, Infallible>(())
            })
            .unwrap();
        let end = Checkpoint {
            session: session(1),
            term: term(),
            epoch: self.epoch,
            complete: true,
            released_through: Epoch(0),
            rx_next: 0,
            parts: sealed.parts,
            digest: sealed.digest,
        };
        Filled { parts, end }
    }
}

/// A replica for `memory`, in the first session, and the memory that it goes to.
pub(crate) fn backup(disks: &[WritableDisk], state: &std::path::Path) -> (Backup, Memory) {
    let backup = Backup::new(Replicas::open(disks, state).unwrap(), 1);
    let memory = Memory::shareable(MEMORY, false).unwrap();
    backup.prepare(session(1), replica(&memory)).unwrap();
    backup.machine(Some(memory.clone()));
    (backup, memory)
}

pub(crate) fn replica(memory: &Memory) -> Replica {
    Replica::new(memory.pages(), 64 << 20)
}

/// Makes every file of this process that is open at `path` another one: what follows on it fails
/// as that one does.
pub(crate) fn exchange(path: &std::path::Path, other: &str) {
    use std::os::fd::AsRawFd as _;
    let other = std::fs::File::options()
        .read(true)
        .write(true)
        .open(other)
        .unwrap();
    let mut found = 0;
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let entry = entry.unwrap();
        if std::fs::read_link(entry.path()).is_ok_and(|target| target == path) {
            let number: i32 = entry.file_name().to_str().unwrap().parse().unwrap();
            // SAFETY: both descriptors are open; whoever owns `number` goes on owning it.
            let result = unsafe { libc::dup2(other.as_raw_fd(), number) };
            assert_eq!(result, number);
            found += 1;
        }
    }
    assert!(found > 0, "{} is not open", path.display());
}

/// The tiny guest; nothing where there is no KVM.
pub(crate) fn tiny() -> Option<Tiny> {
    if !std::path::Path::new("/dev/kvm").exists() {
        eprintln!("skipped: there is no /dev/kvm here");
        return None;
    }
    Some(Tiny {
        vcpus: 1,
        memory: 128 << 20,
        pages: 50,
        stride: 3,
        first_page: 1024,
        wait: 1000,
    })
}

/// Both ends of a link in plain text.
pub(crate) fn linked() -> (Connection, Connection) {
    let terms = Terms::insecure();
    let listener = Listener::bind(([127, 0, 0, 1], 0).into()).unwrap();
    thread::scope(|scope| {
        let call = || link::connect(listener.address(), None, &terms, Duration::from_secs(30));
        let ours = scope.spawn(call);
        let theirs = listener.accept(&terms).unwrap();
        (ours.join().unwrap().unwrap(), theirs)
    })
}

/// Looks for something until it is there.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A frame, all of it zeroes.
pub(crate) struct Blank;

impl Outgoing for Blank {
    fn length(&self) -> usize {
        HEADER + 60
    }

    fn copy_to(&self, into: &mut [u8]) {
        into.fill(0);
    }

    fn pass(&mut self) -> io::Result<()> {
        panic!("nothing may pass at once here");
    }
}
