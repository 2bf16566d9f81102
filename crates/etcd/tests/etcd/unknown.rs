//! Changes whose outcome nobody can know.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use romulus_etcd::EtcdConfig;
use romulus_protocol::arbiter::{Ask, Request};
use romulus_protocol::id::MachineId;
use romulus_protocol::record::Refusal;

use crate::node::{Nodes, is_here};
use crate::running::{Running, answer, ask, heard, request, run};

/// Longer than an arbiter asks its etcd.
const LONG: Duration = Duration::from_secs(4);

/// What happens to changes on their way to etcd. Reads always pass.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Fate {
    Pass,
    /// The connection breaks before etcd hears of it.
    CutBefore,
    /// etcd hears of it, and the connection breaks before its answer.
    CutAfter,
    /// etcd hears of it, and its answer never comes.
    Swallow,
    /// It stays on the way until changes may pass.
    Hold,
    /// etcd makes it and says that it has failed, as it does when its disk is full.
    Fail,
}

/// A way to etcd that breaks on demand.
struct Way {
    address: SocketAddr,
    fate: Arc<AtomicU8>,
    met: Arc<AtomicUsize>,
}

impl Way {
    fn to(node: SocketAddr) -> Way {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
        let address = listener.local_addr().expect("bound");
        let fate = Arc::new(AtomicU8::new(Fate::Pass as u8));
        let met = Arc::new(AtomicUsize::new(0));
        let way = Way {
            address,
            fate: Arc::clone(&fate),
            met: Arc::clone(&met),
        };
        // It ends with the tests' process.
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.expect("a connection");
                let (fate, met) = (Arc::clone(&fate), Arc::clone(&met));
                thread::spawn(move || carry(client, node, &fate, &met));
            }
        });
        way
    }

    fn config(&self, nodes: &Nodes) -> EtcdConfig {
        let endpoint = format!("http://{}", self.address);
        EtcdConfig {
            endpoints: vec![endpoint.parse().expect("an endpoint")],
            ..nodes.config(0)
        }
    }

    fn set(&self, fate: Fate) {
        self.met.store(0, Ordering::SeqCst);
        self.fate.store(fate as u8, Ordering::SeqCst);
    }
}

/// Carries requests to etcd one by one, and its answers back.
fn carry(mut client: TcpStream, node: SocketAddr, fate: &AtomicU8, met: &AtomicUsize) {
    let mut etcd = TcpStream::connect(node).expect("connected");
    while let Some(asked) = message(&mut client) {
        let is = |f: Fate| fate.load(Ordering::SeqCst) == f as u8;
        let change = asked.starts_with(b"POST /v3/kv/txn");
        if change && !is(Fate::Pass) {
            met.fetch_add(1, Ordering::SeqCst);
        }
        if change && is(Fate::CutBefore) {
            break;
        }
        while change && is(Fate::Hold) {
            thread::sleep(Duration::from_millis(2));
        }
        etcd.write_all(&asked).expect("sent");
        let Some(said) = message(&mut etcd) else {
            break;
        };
        if change && is(Fate::CutAfter) {
            break;
        }
        if change && is(Fate::Swallow) {
            continue;
        }
        if change && is(Fate::Fail) {
            let body = r#"{"error":"etcdserver: mvcc: database space exceeded","message":"etcdserver: mvcc: database space exceeded","code":8}"#;
            let head = format!(
                "HTTP/1.1 429 Too Many Requests\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            client
                .write_all(format!("{head}{body}").as_bytes())
                .expect("sent");
            continue;
        }
        if client.write_all(&said).is_err() {
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
}

/// One request or answer of HTTP with its body, whose length its head tells.
fn message(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        bytes.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
    let (_, rest) = head.split_once("content-length:")?;
    let length = rest.lines().next()?.trim().parse().ok()?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    bytes.extend(body);
    Some(bytes)
}

/// Whether a change was made or not: if the arbiter cannot know, it says nothing. Then it says how
/// things stand.
#[test]
fn what_cannot_be_known_is_not_answered() {
    if !is_here() {
        return;
    }
    let nodes = Nodes::start(1);
    let way = Way::to(nodes.nodes[0].address);
    let server = Running::start(&way.config(&nodes)).expect("opened");
    let mut client = server.client(0, 1);
    assert_eq!(ask(&mut client, 1, Ask::Create), (1, Some(1), None));
    let mut generation = 1;
    let mut number = 10;
    for (fate, made) in [
        (Fate::CutBefore, false),
        (Fate::CutAfter, true),
        (Fate::Swallow, true),
        (Fate::Fail, true),
    ] {
        way.set(fate);
        number += 10;
        client.send(&request(number, run(generation)));
        assert_eq!(heard(&mut client, LONG), None, "nobody can know");
        // It was tried, and not again by the arbiter itself.
        assert_eq!(way.met.load(Ordering::SeqCst), 1);
        way.set(Fate::Pass);
        generation += u64::from(made);
        let now = (number + 1, Some(generation), None);
        assert_eq!(ask(&mut client, number + 1, Ask::Read), now);
        // Asked again, it is made now, or was.
        let again = ask(&mut client, number + 2, run(generation - u64::from(made)));
        if made {
            let stale = Some(Refusal::Generation);
            assert_eq!(again, (number + 2, Some(generation), stale));
        } else {
            generation += 1;
            assert_eq!(again, (number + 2, Some(generation), None));
        }
    }
    server.stop();
}

/// One machine's change hangs; others are served meanwhile.
#[test]
fn a_change_that_hangs_holds_up_nobody() {
    if !is_here() {
        return;
    }
    let nodes = Nodes::start(1);
    let way = Way::to(nodes.nodes[0].address);
    let server = Running::start(&way.config(&nodes)).expect("opened");
    let mut one = server.client(0, 1);
    assert_eq!(ask(&mut one, 1, Ask::Create), (1, Some(1), None));
    way.set(Fate::Hold);
    one.send(&request(2, run(1)));
    while way.met.load(Ordering::SeqCst) == 0 {
        thread::yield_now();
    }
    // More than may wait for etcd at one time, had any of them to wait for the change.
    let mut two = server.client(1, 2);
    for number in 3..40 {
        two.send(&request(number, Ask::Read));
        assert_eq!(answer(&mut two).number, number);
    }
    // It was not given up meanwhile.
    assert_eq!(heard(&mut one, Duration::ZERO), None);
    way.set(Fate::Pass);
    let made = answer(&mut one);
    assert_eq!((made.number, made.refusal), (2, None));
    server.stop();
}

/// One machine's requests pile up; those beyond what may wait are as if lost, and another machine's
/// has its place.
#[test]
fn one_machine_does_not_take_what_others_need() {
    const MAY_WAIT: usize = 16;
    if !is_here() {
        return;
    }
    let nodes = Nodes::start(1);
    let way = Way::to(nodes.nodes[0].address);
    let server = Running::start(&way.config(&nodes)).expect("opened");
    let mut client = server.client(0, 1);
    assert_eq!(ask(&mut client, 1, Ask::Create), (1, Some(1), None));
    way.set(Fate::Hold);
    for number in 10..50 {
        client.send(&request(number, run(1)));
    }
    let other = Request {
        machine: MachineId(7),
        ..request(50, Ask::Read)
    };
    client.send(&other);
    // Datagrams are taken in their order: those before it wait now, or are gone.
    assert_eq!(answer(&mut client).number, 50);
    way.set(Fate::Pass);
    let (mut made, mut stale) = (0, 0);
    while let Some(answer) = heard(&mut client, LONG) {
        match answer.refusal {
            None => made += 1,
            Some(refusal) => {
                assert_eq!(refusal, Refusal::Generation);
                stale += 1;
            }
        }
    }
    assert_eq!((made, stale), (1, MAY_WAIT - 1));
    server.stop();
}

/// A node of another cluster, and one that was put back to an older state, are not believed.
#[test]
fn what_is_not_the_same_etcd_is_not_believed() {
    if !is_here() {
        return;
    }
    let (mut nodes, other) = (Nodes::start(1), Nodes::start(1));
    // It is far ahead, so nothing but its name tells it from the first.
    for _ in 0..10 {
        other.nodes[0].put("/x", b"x");
    }
    let mut config = nodes.config(0);
    config.endpoints.extend(other.config(0).endpoints);
    let server = Running::start(&config).expect("opened");
    let mut client = server.client(0, 1);
    assert_eq!(ask(&mut client, 1, Ask::Create), (1, Some(1), None));
    nodes.nodes[0].kill();
    client.send(&request(2, Ask::Read));
    assert_eq!(heard(&mut client, LONG), None, "the other knows nothing");

    // The same cluster with none of its data, as after a copy was put back.
    nodes.nodes[0].forget();
    nodes.nodes[0].start();
    nodes.answer();
    client.send(&request(3, Ask::Read));
    assert_eq!(heard(&mut client, LONG), None, "it knows less than it did");
    server.stop();
}
