//! A registrar and stateless proxy for tests, on loopback: enough SIP to route calls and nothing else. It can be deaf for a while,
//! as a server is during a takeover.

use romulus_telephony::call::{Message, Method, Reader, Transport};
use std::{
    collections::HashMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

#[derive(Default)]
struct State {
    /// Where each user registered from.
    users: HashMap<String, SocketAddr>,
    connections: HashMap<SocketAddr, TcpStream>,
}

/// The server. Its threads end with the test's process.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    transport: Transport,
    state: Arc<Mutex<State>>,
    deaf: Arc<AtomicBool>,
    unheard: Arc<AtomicUsize>,
    udp: Option<Arc<UdpSocket>>,
}

impl Server {
    pub(crate) fn start(transport: Transport) -> Self {
        let mut server = Self {
            address: ([127, 0, 0, 1], 0).into(),
            transport,
            state: Arc::default(),
            deaf: Arc::default(),
            unheard: Arc::default(),
            udp: None,
        };
        if transport == Transport::Udp {
            let socket = Arc::new(UdpSocket::bind(server.address).unwrap());
            server.address = socket.local_addr().unwrap();
            server.udp = Some(Arc::clone(&socket));
            let serving = server.clone();
            thread::spawn(move || {
                let mut buffer = [0; 8192];
                loop {
                    let Ok((length, from)) = socket.recv_from(&mut buffer) else {
                        continue;
                    };
                    // What comes meanwhile is lost, as at a host without power.
                    if serving.deaf.load(Ordering::Acquire) {
                        serving.unheard.fetch_add(1, Ordering::AcqRel);
                    } else {
                        serving.handle(&Message::parse(&buffer[..length]).unwrap(), from);
                    }
                }
            });
        } else {
            let listener = TcpListener::bind(server.address).unwrap();
            server.address = listener.local_addr().unwrap();
            let serving = server.clone();
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let (serving, stream) = (serving.clone(), stream.unwrap());
                    thread::spawn(move || serving.serve(stream));
                }
            });
        }
        server
    }

    pub(crate) fn set_deaf(&self, deaf: bool) {
        self.deaf.store(deaf, Ordering::Release);
    }

    /// How many datagrams, or pieces of streams, came while it was deaf.
    pub(crate) fn unheard(&self) -> usize {
        self.unheard.load(Ordering::Acquire)
    }

    /// Closes all connections.
    pub(crate) fn hang_up(&self) {
        for stream in self.state.lock().unwrap().connections.values() {
            stream.shutdown(std::net::Shutdown::Both).unwrap();
        }
    }

    fn serve(&self, mut stream: TcpStream) {
        let from = stream.peer_addr().unwrap();
        let copy = stream.try_clone().unwrap();
        self.state.lock().unwrap().connections.insert(from, copy);
        let mut reader = Reader::default();
        let mut buffer = [0; 8192];
        while let Ok(length) = stream.read(&mut buffer)
            && length > 0
        {
            // What comes meanwhile waits: the connection survives.
            let deaf = self.deaf.load(Ordering::Acquire);
            self.unheard.fetch_add(usize::from(deaf), Ordering::AcqRel);
            while self.deaf.load(Ordering::Acquire) {
                thread::sleep(Duration::from_millis(1));
            }
            reader.push(&buffer[..length]);
            while let Some(message) = reader.take().unwrap() {
                self.handle(&message, from);
            }
        }
    }

    fn handle(&self, message: &Message, from: SocketAddr) {
        let text = String::from_utf8(message.encode()).unwrap();
        let (first, rest) = text.split_once("\r\n").unwrap();
        let Some(method) = message.method() else {
            // An answer goes back to whoever stands below us.
            let (ours, rest) = rest.split_once("\r\n").unwrap();
            assert!(ours.starts_with("Via: ") && ours.contains(&self.address.to_string()));
            let via = rest
                .lines()
                .find_map(|line| line.strip_prefix("Via: "))
                .unwrap();
            let to = via.split([' ', ';']).nth(1).unwrap().parse().unwrap();
            self.send(to, &format!("{first}\r\n{rest}"));
            return;
        };
        if *method == Method::Register {
            let user = message.address("To").unwrap().user().unwrap();
            let user = user.to_owned();
            self.state.lock().unwrap().users.insert(user, from);
            let answer = Message::answer(message, 200, "OK");
            self.send(from, &String::from_utf8(answer.encode()).unwrap());
            return;
        }
        let uri = first.split(' ').nth(1).unwrap();
        let (user, host) = uri.strip_prefix("sip:").unwrap().split_once('@').unwrap();
        let host = host.split(';').next().unwrap();
        // A contact says where it is, an address of record does not.
        let to = host
            .parse()
            .ok()
            .or_else(|| self.state.lock().unwrap().users.get(user).copied());
        let Some(to) = to else {
            if *method != Method::Ack {
                let answer = Message::answer(message, 404, "Not Found");
                self.send(from, &String::from_utf8(answer.encode()).unwrap());
            }
            return;
        };
        let below = message.via().unwrap().branch().unwrap().to_owned();
        let via = format!(
            "Via: SIP/2.0/{} {};branch={below}-x",
            self.transport.name(),
            self.address
        );
        let initial = message.address("To").unwrap().tag().is_none();
        let route = if initial && *method == Method::Invite {
            format!("Record-Route: <sip:{};lr>\r\n", self.address)
        } else {
            // The ACK of a refusal goes where its INVITE went.
            let routed = initial || *method == Method::Ack || rest.contains("\r\nRoute: <sip:");
            assert!(routed, "{text}");
            String::new()
        };
        let rest: String = rest
            .split_inclusive("\r\n")
            .filter(|line| !line.starts_with("Route: "))
            .collect();
        self.send(to, &format!("{first}\r\n{via}\r\n{route}{rest}"));
    }

    fn send(&self, to: SocketAddr, text: &str) {
        if let Some(udp) = &self.udp {
            udp.send_to(text.as_bytes(), to).unwrap();
        } else if let Some(mut stream) = self.state.lock().unwrap().connections.get(&to) {
            // One that was closed meanwhile gets nothing.
            let _ = stream.write_all(text.as_bytes());
        }
    }
}
