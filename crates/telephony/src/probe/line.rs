//! What signalling goes over: a socket for datagrams, or a connection with or without TLS.

use super::tls;
use crate::call::{Message, Reader, Transport};
use rustls::{ClientConfig, ClientConnection, pki_types::ServerName};
use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

/// How long a connection may take until it can be used: the server may be an emulated machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// One socket or connection to the server.
pub(super) struct Line {
    kind: Kind,
    local: SocketAddr,
    lost: bool,
}

enum Kind {
    Udp(UdpSocket),
    Tcp(Box<Stream>),
}

struct Stream {
    socket: TcpStream,
    tls: Option<ClientConnection>,
    reader: Reader,
    /// Without TLS: what the kernel has not taken yet.
    waiting: Vec<u8>,
}

/// Makes lines to one server.
pub(super) struct Lines {
    server: SocketAddr,
    local: IpAddr,
    transport: Transport,
    tls: Option<Arc<ClientConfig>>,
}

impl Lines {
    /// For lines from `local` to `server`.
    ///
    /// # Errors
    /// TLS can't be used.
    pub(super) fn new(server: SocketAddr, local: IpAddr, transport: Transport) -> io::Result<Self> {
        let tls = (transport == Transport::Tls).then(tls::config);
        Ok(Self {
            server,
            local,
            transport,
            tls: tls.transpose().map_err(io::Error::other)?,
        })
    }

    /// A new line.
    ///
    /// # Errors
    /// The server can't be reached.
    pub(super) fn open(&self) -> io::Result<Line> {
        if self.transport == Transport::Udp {
            let socket = UdpSocket::bind((self.local, 0))?;
            socket.connect(self.server)?;
            socket.set_nonblocking(true)?;
            let local = socket.local_addr()?;
            return Ok(Line {
                kind: Kind::Udp(socket),
                local,
                lost: false,
            });
        }
        let mut socket = self.connect()?;
        socket.set_nodelay(true)?;
        let mut tls = None;
        if let Some(config) = &self.tls {
            let name = ServerName::IpAddress(self.server.ip().into());
            let connection =
                ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
            let connection = tls.insert(connection);
            socket.set_read_timeout(Some(PATIENCE))?;
            while connection.is_handshaking() {
                connection.complete_io(&mut socket)?;
            }
        }
        socket.set_nonblocking(true)?;
        Ok(Line {
            local: socket.local_addr()?,
            kind: Kind::Tcp(Box::new(Stream {
                socket,
                tls,
                reader: Reader::default(),
                waiting: Vec::new(),
            })),
            lost: false,
        })
    }

    /// A connection from `local`: an address of its own, so that nothing leaves by another way.
    fn connect(&self) -> io::Result<TcpStream> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};
        let family = if self.server.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &SocketAddr::new(self.local, 0))?;
        let limit = Some(PATIENCE);
        rustix::net::sockopt::set_socket_timeout(
            &socket,
            rustix::net::sockopt::Timeout::Send,
            limit,
        )?;
        connect(&socket, &self.server)?;
        Ok(TcpStream::from(socket))
    }
}

impl Line {
    /// Where it is bound.
    pub(super) fn local(&self) -> SocketAddr {
        self.local
    }

    /// Whether its connection is gone.
    pub(super) fn is_lost(&self) -> bool {
        self.lost
    }

    /// Sends a message. What cannot be sent is lost, or the connection is: that shows by itself.
    pub(super) fn send(&mut self, message: &Message) {
        let bytes = message.encode();
        match &mut self.kind {
            // A datagram may get lost on its first step too.
            Kind::Udp(socket) => drop(socket.send(&bytes)),
            Kind::Tcp(stream) => {
                let taken = match &mut stream.tls {
                    Some(tls) => tls.writer().write_all(&bytes),
                    None => stream.waiting.write_all(&bytes),
                };
                self.lost |= taken.is_err();
            }
        }
        self.flush();
    }

    /// Sends what waits.
    pub(super) fn flush(&mut self) {
        if let Kind::Tcp(stream) = &mut self.kind
            && !self.lost
        {
            self.lost |= stream.flush().is_err();
        }
    }

    /// Gives all whole messages that have come. What is no message is left out of datagrams, and ends a connection.
    pub(super) fn receive(&mut self, mut take: impl FnMut(Message)) {
        match &mut self.kind {
            Kind::Udp(socket) => {
                let mut buffer = [0; 8192];
                loop {
                    match socket.recv(&mut buffer) {
                        Ok(length) => {
                            if let Ok(message) = Message::parse(&buffer[..length]) {
                                take(message);
                            }
                        }
                        // Of an earlier datagram, while the server is away.
                        Err(error)
                            if matches!(
                                error.kind(),
                                ErrorKind::ConnectionRefused | ErrorKind::Interrupted
                            ) => {}
                        Err(_) => return,
                    }
                }
            }
            Kind::Tcp(stream) => {
                if !self.lost {
                    let ended = stream.fill();
                    loop {
                        match stream.reader.take() {
                            Ok(Some(message)) => take(message),
                            Ok(None) => break,
                            Err(_) => {
                                self.lost = true;
                                return;
                            }
                        }
                    }
                    self.lost |= ended.is_err();
                }
            }
        }
        self.flush();
    }
}

impl Stream {
    /// Reads all that is there; an error once the connection has ended.
    fn fill(&mut self) -> io::Result<()> {
        let mut buffer = [0; 8192];
        loop {
            let length = match &mut self.tls {
                Some(tls) => match tls.read_tls(&mut self.socket) {
                    Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
                    Ok(_) => {
                        let state = tls.process_new_packets().map_err(io::Error::other)?;
                        let mut rest = state.plaintext_bytes_to_read();
                        while rest > 0 {
                            let length = tls.reader().read(&mut buffer)?;
                            self.reader.push(&buffer[..length]);
                            rest = rest.saturating_sub(length.max(1));
                        }
                        continue;
                    }
                    Err(error) => Err(error),
                },
                None => self.socket.read(&mut buffer),
            };
            match length {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.reader.push(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        loop {
            let wants = self.tls.as_ref().is_some_and(|tls| tls.wants_write());
            let sent = match &mut self.tls {
                Some(tls) if wants => tls.write_tls(&mut self.socket),
                None if !self.waiting.is_empty() => self.socket.write(&self.waiting),
                _ => return Ok(()),
            };
            match sent {
                Ok(length) => {
                    self.waiting.drain(..length.min(self.waiting.len()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.kind {
            Kind::Udp(socket) => socket.as_fd(),
            Kind::Tcp(stream) => stream.socket.as_fd(),
        }
    }
}
