//! The two halves of a connection.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use romulus_protocol::message::Message;
use romulus_protocol::wire::{HEADER, Header, decode_message, encode_message};
use rustix::event::PollFlags;
use rustix::net::RecvFlags;

use super::socket::{Direct, receive, wait};
use super::{Channel, Closer, LinkError, shut, tls};

/// How much is encrypted and handed to the kernel at once, in bytes: some records of 16 KiB
/// (RFC 8446, section 5.1).
const BATCH: usize = 64 << 10;
/// How much the receiver takes from the kernel at once, in bytes.
const RAW: usize = 256 << 10;
/// The least room for plain bytes before more are read: one record.
const ROOM: usize = 16 << 10;

fn lock(state: &Mutex<rustls::Connection>) -> MutexGuard<'_, rustls::Connection> {
    // A thread that panicked holds no bytes back: the library's state is whole between its calls.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The half that sends. The only one to write to the socket: the order of records is that of
/// their encryption.
#[derive(Debug)]
pub struct Sender {
    socket: Arc<OwnedFd>,
    channel: Channel,
    stall: Duration,
    buffer: Vec<u8>,
}

impl Sender {
    pub(super) fn new(socket: Arc<OwnedFd>, channel: Channel, stall: Duration) -> Sender {
        Sender {
            socket,
            channel,
            stall,
            buffer: Vec::new(),
        }
    }

    /// Sends one message. The buffer that it is encoded in is kept for the next.
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub fn send_message(&mut self, message: &Message) -> Result<(), LinkError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        encode_message(message, &mut buffer);
        let result = self.send(&buffer);
        self.buffer = buffer;
        result
    }

    /// Sends bytes: encoded messages, any number of them. Returns when the kernel has taken all,
    /// which is not when they arrive.
    ///
    /// # Errors
    /// When the connection is closed or broken, or the other side has taken nothing for
    /// [`super::Terms::stall`]. After an error a message may have been sent in part: the
    /// connection is of no more use.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        let mut rest = bytes;
        loop {
            match self.push(&mut rest) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let until = Instant::now() + self.stall;
                    if !wait(self.socket.as_fd(), PollFlags::OUT, until)? {
                        return Err(LinkError::TimedOut("take what is sent"));
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Hands one batch to the kernel, or what it takes of it at once; whether all is sent.
    fn push(&self, rest: &mut &[u8]) -> io::Result<bool> {
        let mut socket = Direct(self.socket.as_fd());
        let Some(channel) = &self.channel else {
            let sent = socket.write(rest)?;
            *rest = &rest[sent..];
            return Ok(rest.is_empty());
        };
        let mut state = lock(channel);
        if !rest.is_empty() {
            // It takes no more than fits in its own bounded buffer.
            let batch = &rest[..rest.len().min(BATCH)];
            let taken = state.writer().write(batch)?;
            *rest = &rest[taken..];
        }
        // The socket is not waited for with the lock held: the other half has to go on reading,
        // or two hosts that both send much would wait for each other for ever.
        state.write_tls(&mut socket)?;
        Ok(rest.is_empty() && !state.wants_write())
    }

    /// A handle that ends the connection from any thread.
    pub fn closer(&self) -> Closer {
        Closer::new(&self.socket)
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        shut(&self.socket);
    }
}

/// The half that receives.
#[derive(Debug)]
pub struct Receiver {
    socket: Arc<OwnedFd>,
    channel: Channel,
    /// Bytes from the socket, encrypted; unused on plain TCP.
    raw: Window,
    /// Plain bytes.
    plain: Window,
}

impl Receiver {
    pub(super) fn new(socket: Arc<OwnedFd>, channel: Channel) -> Receiver {
        Receiver {
            raw: Window::new(if channel.is_some() { RAW } else { 0 }),
            plain: Window::new(RAW),
            socket,
            channel,
        }
    }

    /// Waits for the next message.
    ///
    /// # Errors
    /// When the connection is closed or broken, or what arrives is no message. The connection is
    /// then of no more use.
    pub fn receive(&mut self) -> Result<Message, LinkError> {
        loop {
            let bytes = self.plain.bytes();
            if bytes.len() >= HEADER {
                let length = Header::decode(bytes)?.frame();
                if let Some(frame) = bytes.get(..length) {
                    let message = decode_message(frame)?;
                    self.plain.consume(length);
                    return Ok(message);
                }
            }
            self.fill()?;
        }
    }

    /// Gets more plain bytes. The buffer grows as they come, not as a header promises.
    fn fill(&mut self) -> Result<(), LinkError> {
        let socket = self.socket.as_fd();
        let room = self.plain.room(ROOM);
        let Some(channel) = &self.channel else {
            let length = receive(socket, room, RecvFlags::empty())?;
            return self.plain.filled(length);
        };
        loop {
            {
                let mut state = lock(channel);
                match state.reader().read(room) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    result => return self.plain.filled(result?),
                }
                if !self.raw.bytes().is_empty() {
                    // It takes a part of a record at a time, so this is short.
                    let taken = state.read_tls(&mut self.raw.bytes())?;
                    self.raw.consume(taken);
                    if taken == 0 {
                        return Err(LinkError::Closed);
                    }
                    state.process_new_packets().map_err(tls::explain)?;
                    continue;
                }
            }
            let length = receive(socket, self.raw.room(RAW), RecvFlags::empty())?;
            self.raw.filled(length)?;
        }
    }

    /// A handle that ends the connection from any thread.
    pub fn closer(&self) -> Closer {
        Closer::new(&self.socket)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        shut(&self.socket);
    }
}

/// A buffer that is filled at its end and emptied at its front.
#[derive(Debug)]
struct Window {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Window {
    fn new(size: usize) -> Window {
        Window {
            buffer: vec![0; size],
            start: 0,
            end: 0,
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Room behind the bytes, `least` bytes or more of it.
    fn room(&mut self, least: usize) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.buffer.len() - self.end < least && self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.buffer.len() - self.end < least {
            let length = (2 * self.buffer.len()).max(self.end + least);
            self.buffer.resize(length, 0);
        }
        &mut self.buffer[self.end..]
    }

    /// The first bytes of the room now hold `length` bytes; none means that the other side ended.
    fn filled(&mut self, length: usize) -> Result<(), LinkError> {
        self.end += length;
        if length == 0 {
            return Err(LinkError::Closed);
        }
        Ok(())
    }

    fn consume(&mut self, length: usize) {
        self.start += length;
    }
}
