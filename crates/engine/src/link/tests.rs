mod speed;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use romulus_protocol::id::{Epoch, Incarnation, SessionId};
use romulus_protocol::message::Message;
use romulus_protocol::wire::encode_message;

use super::*;

const LONG: Duration = Duration::from_mins(1);

fn here() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

fn secret(n: u8) -> Secret {
    Secret::from_seed(&[n; 32])
}

/// The terms of both sides, with room for a slow computer.
fn tls(me: u8, partner: u8) -> Terms {
    patient(Terms::tls(&secret(me), secret(partner).public()).expect("good keys"))
}

fn patient(terms: Terms) -> Terms {
    Terms {
        handshake: LONG,
        stall: LONG,
        ..terms
    }
}

/// What happened to a server that accepts once, and to its client.
fn meet(
    server: Terms,
    client: &Terms,
) -> (Result<Connection, LinkError>, Result<Connection, LinkError>) {
    let listener = Listener::bind(here()).expect("bound");
    let address = listener.address();
    let server = thread::spawn(move || listener.accept(&server));
    let client = connect(address, None, client, LONG);
    (server.join().expect("no panic"), client)
}

fn pair(encrypted: bool) -> (Connection, Connection) {
    let (server, client) = if encrypted {
        meet(tls(1, 2), &tls(2, 1))
    } else {
        meet(patient(Terms::insecure()), &patient(Terms::insecure()))
    };
    let (server, client) = (server.expect("a server"), client.expect("a client"));
    assert_eq!(server.is_encrypted(), encrypted);
    assert_eq!(client.is_encrypted(), encrypted);
    (server, client)
}

fn session() -> SessionId {
    SessionId {
        runner: Incarnation::new(7).expect("not zero"),
        number: 1,
    }
}

fn part(index: u32, length: usize) -> Message {
    // A period that fits no record or buffer, so that nothing lost or exchanged goes unnoticed.
    let period: Vec<u8> = (0..251).map(|byte| byte ^ index.to_le_bytes()[0]).collect();
    let mut bytes = period.repeat(length / period.len() + 1);
    bytes.truncate(length);
    Message::Part {
        session: session(),
        epoch: Epoch(3),
        index,
        bytes,
    }
}

fn refused(result: Result<Connection, LinkError>) -> LinkError {
    match result.expect_err("refused") {
        LinkError::Stranger { why, .. } => *why,
        error => error,
    }
}

#[test]
fn messages_of_all_sizes_arrive_whole_and_in_order() {
    for encrypted in [false, true] {
        let (server, client) = pair(encrypted);
        let (mut sender, _other) = server.split();
        let (_another, mut receiver) = client.split();
        let sizes = [0, 1, 15, 16_000, 16_384, 70_000, 1 << 20, 3, 5 << 20, 100];
        let sending = thread::spawn(move || {
            for (index, size) in (0..).zip(sizes) {
                sender.send_message(&part(index, size)).expect("sent");
            }
            // Many at once, in one call.
            let mut bytes = Vec::new();
            for epoch in 0..1000 {
                encode_message(&Message::Commit(session(), Epoch(epoch)), &mut bytes);
            }
            sender.send(&bytes).expect("sent");
        });
        for (index, size) in (0..).zip(sizes) {
            assert_eq!(receiver.receive().expect("received"), part(index, size));
        }
        for epoch in 0..1000 {
            let message = receiver.receive().expect("received");
            assert_eq!(message, Message::Commit(session(), Epoch(epoch)));
        }
        sending.join().expect("no panic");
        // The sender is gone: that ends it, with nothing lost before.
        assert!(matches!(receiver.receive(), Err(LinkError::Closed)));
    }
}

/// Both sides send far more than the sockets hold, and each reads only as fast as it can. If a
/// sender that waits for the socket kept its own receiver out, this would stand still for ever.
#[test]
fn both_directions_flow_at_once() {
    const COUNT: u32 = 60;
    for encrypted in [false, true] {
        let (server, client) = pair(encrypted);
        let half = |connection: Connection| -> [JoinHandle<()>; 2] {
            let (mut sender, mut receiver) = connection.split();
            let (done, finished) = mpsc::channel();
            let writing = thread::spawn(move || {
                for index in 0..COUNT {
                    sender.send_message(&part(index, 1 << 20)).expect("sent");
                }
                finished.recv().expect("the other half finished");
            });
            let reading = thread::spawn(move || {
                for index in 0..COUNT {
                    assert_eq!(receiver.receive().expect("received"), part(index, 1 << 20));
                }
                done.send(()).expect("the other half waits");
                // Until the other side has had all, too.
                let _ = receiver.receive();
            });
            [writing, reading]
        };
        let threads = [half(server), half(client)];
        for thread in threads.into_iter().flatten() {
            thread.join().expect("no panic");
        }
    }
}

#[test]
fn a_server_with_another_key_is_refused() {
    // The client was paired with 3 and meets 1.
    let (server, client) = meet(tls(1, 2), &tls(2, 3));
    assert!(matches!(refused(client), LinkError::WrongKey));
    assert!(matches!(refused(server), LinkError::Refused));
}

#[test]
fn a_client_with_another_key_is_refused() {
    // The server was paired with 2 and meets 4, which holds the server's right key.
    let (server, client) = meet(tls(1, 2), &tls(4, 1));
    let error = refused(server);
    assert!(matches!(error, LinkError::WrongKey), "{error:?}");
    assert!(error.to_string().contains("wrong key"), "{error}");
    let error = refused(client);
    assert!(matches!(error, LinkError::Refused), "{error:?}");
}

#[test]
fn tls_and_plain_do_not_meet() {
    let plain = patient(Terms::insecure());
    let (server, client) = meet(tls(1, 2), &plain);
    assert!(matches!(refused(server), LinkError::Mixed));
    let error = refused(client);
    assert!(
        matches!(
            error,
            LinkError::Mixed | LinkError::Closed | LinkError::Broken(_)
        ),
        "{error:?}"
    );
    let (server, client) = meet(plain, &tls(2, 1));
    assert!(matches!(refused(server), LinkError::Mixed));
    let error = refused(client);
    assert!(
        matches!(
            error,
            LinkError::Mixed | LinkError::Closed | LinkError::Broken(_)
        ),
        "{error:?}"
    );
}

/// Strangers that connect and say nothing, or nonsense, or drop by drop, while the partner comes.
#[test]
fn strangers_do_not_keep_the_partner_waiting() {
    let listener = Listener::bind(here()).expect("bound");
    let address = listener.address();
    let closer = listener.closer();
    let (found, finds) = mpsc::channel();
    let serving = thread::spawn(move || {
        let mut turned_away = 0;
        loop {
            match listener.accept(&tls(1, 2)) {
                Ok(connection) => found.send(connection).expect("wanted"),
                Err(LinkError::Stranger { .. }) => turned_away += 1,
                Err(LinkError::Closed) => return turned_away,
                Err(error) => panic!("{error}"),
            }
        }
    });
    let silent: Vec<TcpStream> = (0..40)
        .map(|_| TcpStream::connect(address).expect("connected"))
        .collect();
    let mut rude = TcpStream::connect(address).expect("connected");
    rude.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("written");
    // It is told so, and let go: with TLS's alert or without.
    let _ = rude.read_to_end(&mut Vec::new());
    // There are more than may wait at once: the first is let go, long before its time is over.
    let mut first = &silent[0];
    first.set_read_timeout(Some(LONG / 2)).expect("set");
    match first.read(&mut [0; 1]) {
        Ok(0) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        other => panic!("{other:?}"),
    }
    let client = connect(address, None, &tls(2, 1), LONG).expect("let in");
    let server = finds.recv().expect("found");
    let (mut sender, _receiver) = client.split();
    let (_sender, mut receiver) = server.split();
    sender.send_message(&Message::Stopped).expect("sent");
    assert_eq!(receiver.receive().expect("received"), Message::Stopped);
    closer.close();
    assert!(serving.join().expect("no panic") >= 1);
    drop(silent);
}

#[test]
fn a_silent_stranger_is_turned_away_in_time() {
    let listener = Listener::bind(here()).expect("bound");
    let _silent = TcpStream::connect(listener.address()).expect("connected");
    let terms = Terms {
        handshake: Duration::from_millis(50),
        ..tls(1, 2)
    };
    let error = listener.accept(&terms).expect_err("turned away");
    assert!(error.is_timeout(), "{error:?}");
}

#[test]
fn a_listener_that_says_nothing_is_given_up() {
    let mute = std::net::TcpListener::bind(here()).expect("bound");
    let address = mute.local_addr().expect("an address");
    let error = connect(address, None, &tls(1, 2), Duration::from_millis(50));
    assert!(error.expect_err("given up").is_timeout());
}

#[test]
fn a_closer_ends_both_halves_and_the_listener() {
    for encrypted in [false, true] {
        let (server, client) = pair(encrypted);
        let closer = server.closer();
        let (mut sender, mut receiver) = server.split();
        let reading = thread::spawn(move || receiver.receive());
        let writing = thread::spawn(move || {
            let bytes = vec![0; 1 << 16];
            loop {
                if let Err(error) = sender.send(&bytes) {
                    return error;
                }
            }
        });
        closer.close();
        let read = reading.join().expect("no panic");
        assert!(matches!(read, Err(LinkError::Closed)), "{read:?}");
        let written = writing.join().expect("no panic");
        assert!(matches!(written, LinkError::Closed), "{written:?}");
        drop(client);
    }
    let listener = Listener::bind(here()).expect("bound");
    let closer = listener.closer();
    let accepts = thread::spawn(move || listener.accept(&Terms::insecure()).map(drop));
    closer.close();
    assert!(matches!(
        accepts.join().expect("no panic"),
        Err(LinkError::Closed)
    ));
    // Both are gone: nothing to do.
    closer.close();
}

#[test]
fn a_partner_that_takes_nothing_is_given_up() {
    for encrypted in [false, true] {
        let (mut server, client) = pair(encrypted);
        server.stall = Duration::from_millis(50);
        let (mut sender, _receiver) = server.split();
        let bytes = vec![0; 64 << 20];
        let error = sender.send(&bytes).expect_err("given up");
        assert!(error.is_timeout(), "{error:?}");
        drop(client);
    }
}

#[test]
fn what_is_no_message_ends_the_connection() {
    let (server, client) = pair(false);
    let (mut sender, _a) = server.split();
    let (_b, mut receiver) = client.split();
    sender.send(&[0x55; 64]).expect("sent");
    assert!(matches!(
        receiver.receive(),
        Err(LinkError::Wire(WireError::Magic))
    ));
}

/// A man in the middle who changes one byte after the handshake is noticed by TLS, before any
/// decoder sees it.
#[test]
fn a_byte_changed_on_the_way_is_noticed() {
    let listener = Listener::bind(here()).expect("bound");
    let address = listener.address();
    let middle = std::net::TcpListener::bind(here()).expect("bound");
    let through = middle.local_addr().expect("an address");
    let server = thread::spawn(move || listener.accept(&tls(1, 2)).expect("let in"));
    let (go, change) = mpsc::channel();
    let relay = thread::spawn(move || {
        let (near, _) = middle.accept().expect("a client");
        let far = TcpStream::connect(address).expect("the server");
        let (mut back, mut home) = (
            far.try_clone().expect("cloned"),
            near.try_clone().expect("cloned"),
        );
        thread::spawn(move || std::io::copy(&mut back, &mut home));
        let (mut near, mut far) = (near, far);
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = near.read(&mut buffer) {
            if change.try_recv().is_ok() {
                buffer[length - 1] ^= 1;
            }
            if far.write_all(&buffer[..length]).is_err() {
                return;
            }
        }
    });
    let client = connect(through, None, &tls(2, 1), LONG).expect("let in");
    let server = server.join().expect("no panic");
    let (mut sender, _a) = client.split();
    let (_b, mut receiver) = server.split();
    sender.send_message(&Message::Stopped).expect("sent");
    assert_eq!(receiver.receive().expect("received"), Message::Stopped);
    go.send(()).expect("the relay runs");
    sender.send_message(&Message::Stopped).expect("sent");
    let error = receiver.receive().expect_err("noticed");
    assert!(matches!(error, LinkError::Tls(_)), "{error:?}");
    drop((sender, receiver));
    relay.join().expect("no panic");
}
