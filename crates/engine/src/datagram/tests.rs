use std::net::UdpSocket;
use std::time::Duration;

use romulus_protocol::heartbeat::{Activity, Echo, Uplink};
use romulus_protocol::id::{Generation, Incarnation, MachineId};
use romulus_protocol::time::Time;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;
use crate::clock;
use crate::identity::Secret;

fn here() -> SocketAddr {
    (std::net::Ipv4Addr::LOCALHOST, 0).into()
}

fn beat(sent: u64) -> Heartbeat {
    let me = Incarnation::new(5).expect("not zero");
    Heartbeat {
        machine: MachineId(1),
        from: me,
        sent: Time(sent),
        moves: true,
        activity: Activity::Primary,
        whole: true,
        uplink: Uplink { up: 1, of: 2 },
        generation: Generation(3),
        echoes: vec![Echo {
            of: me,
            sent: Time(1),
        }],
    }
}

fn key(a: u8, b: u8) -> Key {
    let (a, b) = (Secret::from_seed(&[a; 32]), Secret::from_seed(&[b; 32]));
    a.shared(b.public(), "heartbeats").expect("safe")
}

/// Two partners' paths with two lanes each, on ports that nobody else has.
fn pair(a: Key, b: Key) -> (Paths, Paths) {
    let mut ours = Paths::open(&[lane("replication"), lane("control")], a).expect("opened");
    let mut theirs = Paths::open(&[lane("replication"), lane("control")], b).expect("opened");
    for (one, other) in ours.lanes.iter_mut().zip(&mut theirs.lanes) {
        one.path.peer = other.socket.address().expect("an address");
        other.path.peer = one.socket.address().expect("an address");
    }
    (ours, theirs)
}

fn lane(name: &'static str) -> Path {
    Path {
        name,
        local: here(),
        peer: here(),
    }
}

/// Waits until every socket has something, and takes all of it.
fn drain(paths: &mut Paths) -> Vec<(usize, u64)> {
    wait(paths);
    std::iter::from_fn(|| paths.receive())
        .map(|received| (received.path, received.beat.sent.0))
        .collect()
}

/// Waits until every socket has something.
fn wait(paths: &Paths) {
    for fd in paths.fds() {
        let long = Timespec {
            tv_sec: 60,
            tv_nsec: 0,
        };
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&long)), Ok(1));
    }
}

#[test]
fn the_kernel_notes_when_a_heartbeat_arrives_and_not_when_it_is_read() {
    let (mut ours, mut theirs) = pair(key(1, 2), key(2, 1));
    for sent in 1..20 {
        let before = clock::wall();
        ours.send(&beat(sent));
        wait(&theirs);
        let there = clock::wall();
        for path in 0..2 {
            let received = theirs.receive().expect("waited for");
            assert_eq!((received.path, received.beat.sent), (path, Time(sent)));
            let wall = received.wall.expect("noted");
            assert!(
                before <= wall && wall <= there,
                "{before:?} {wall:?} {there:?}"
            );
        }
        assert_eq!(theirs.receive(), None);
    }
}

#[test]
fn a_heartbeat_comes_on_every_path() {
    let (mut ours, mut theirs) = pair(key(1, 2), key(2, 1));
    assert_eq!(theirs.receive(), None);
    ours.send(&beat(1));
    ours.send(&beat(2));
    assert_eq!(drain(&mut theirs), [(0, 1), (0, 2), (1, 1), (1, 2)]);
    theirs.send(&beat(9));
    assert_eq!(drain(&mut ours), [(0, 9), (1, 9)]);
    for (_, counts) in theirs.counts() {
        let expected = Counts {
            sent: 1,
            received: 2,
            ..Counts::default()
        };
        assert_eq!(counts, expected);
    }
}

#[test]
fn what_is_not_the_partners_is_dropped() {
    let (mut ours, mut theirs) = pair(key(1, 2), key(2, 1));
    let to = theirs.lanes[0].socket.address().expect("an address");
    // A forger that sits at the right address.
    let right = std::mem::replace(&mut ours.key, key(1, 3));
    ours.send(&beat(1));
    // Bytes that are no frame, one cut short, one too long.
    let mut bytes = Vec::new();
    encode_heartbeat(&beat(1), &right, &mut bytes);
    let mut long = bytes.clone();
    long.resize(HEARTBEAT_MAX + 100, 0);
    for bytes in [&b"x"[..], &bytes[..bytes.len() - 1], &[], &long] {
        ours.lanes[0].socket.send(bytes, to).expect("sent");
    }
    // A good one, from elsewhere: a replay by a stranger.
    let stranger = UdpSocket::bind(here()).expect("bound");
    stranger.send_to(&bytes, to).expect("sent");
    // And then a good one.
    ours.key = right;
    ours.send(&beat(7));
    assert_eq!(drain(&mut theirs), [(0, 7), (1, 7)]);
    let dropped: Vec<u64> = theirs.counts().map(|(_, counts)| counts.dropped).collect();
    assert_eq!(dropped, [6, 1]);
}

#[test]
fn what_was_authentic_is_the_partners_from_its_own_address_only() {
    let (mut ours, mut theirs) = pair(key(1, 2), key(2, 1));
    ours.send(&beat(1));
    assert_eq!(drain(&mut theirs), [(0, 1), (1, 1)]);
    // A stranger says byte by byte what the partner has said.
    let stranger = UdpSocket::bind(here()).expect("bound");
    let bytes = ours.out.clone();
    for lane in &theirs.lanes {
        let to = lane.socket.address().expect("an address");
        stranger.send_to(&bytes, to).expect("sent");
    }
    assert_eq!(drain(&mut theirs), []);
    let dropped: Vec<u64> = theirs.counts().map(|(_, counts)| counts.dropped).collect();
    assert_eq!(dropped, [1, 1]);
}

#[test]
fn a_path_that_fails_does_not_stop_the_other() {
    let (mut ours, mut theirs) = pair(key(1, 2), key(2, 1));
    // An address that a socket of this family cannot send to.
    ours.lanes[0].path.peer = (std::net::Ipv6Addr::LOCALHOST, 9).into();
    ours.send(&beat(4));
    theirs.lanes.remove(0);
    assert_eq!(drain(&mut theirs), [(0, 4)]);
    let unsent: Vec<(u64, u64)> = ours
        .counts()
        .map(|(_, counts)| (counts.sent, counts.unsent))
        .collect();
    assert_eq!(unsent, [(0, 1), (1, 0)]);
}

#[test]
fn an_address_of_another_host_is_refused() {
    let path = Path {
        local: "192.0.2.1:0".parse().expect("an address"),
        ..lane("control")
    };
    let error = Paths::open(&[path], key(1, 2)).expect_err("refused");
    assert!(error.to_string().contains("control"), "{error}");
}

/// Nothing waits, whatever happens.
#[test]
fn nobody_there_costs_nothing() {
    let (mut ours, theirs) = pair(key(1, 2), key(2, 1));
    drop(theirs);
    for sent in 0..100 {
        ours.send(&beat(sent));
    }
    assert_eq!(ours.receive(), None);
    let fds: Vec<_> = ours.fds().collect();
    let mut fds: Vec<PollFd> = fds
        .iter()
        .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
        .collect();
    let none = Duration::ZERO.try_into().expect("short");
    assert_eq!(poll(&mut fds, Some(&none)), Ok(0));
}
