//! The link between the two hosts: who calls whom, who reads, who writes.
//!
//! The first host of the machine file listens, the second calls it, again and again until it
//! answers. Each link has two threads: this one's reader, and a [`Writer`].

use crate::{
    backup::Backup,
    clock,
    link::{self, Connection, LinkError, Listener, Receiver, Terms},
    node::{Node, lock},
    orders::Order,
    outbox::{Item, Outbox, Writer},
    phases::Phase,
};
use romulus_protocol::{
    host::Event,
    id::Incarnation,
    message::{Hello, Message},
    time::Time,
};
use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

/// How long an attempt to connect may take.
const ATTEMPT: Duration = Duration::from_secs(1);
/// From a failed attempt to the next.
const AGAIN: Duration = Duration::from_millis(100);
/// After a partner that does not fit: it will not fit soon.
const MISFIT: Duration = Duration::from_secs(5);

/// How the partner is reached.
pub(crate) enum Way {
    /// It calls here.
    Listen(Listener),
    /// It is called there, from this address.
    Call(SocketAddr, IpAddr),
}

/// What every link of a process needs.
pub(crate) struct Links {
    pub(crate) node: Arc<Node>,
    pub(crate) backup: Arc<Backup>,
    pub(crate) terms: Terms,
    pub(crate) hello: Hello,
    /// When the newest epoch was sealed: for the time to its commit.
    pub(crate) sealed: Arc<Mutex<Option<Time>>>,
    pub(crate) name: String,
}

impl Links {
    /// Makes links until the process ends.
    pub(crate) fn run(self, way: &Way) {
        let links = Arc::new(self);
        let mut complained = String::new();
        while !links.node.is_ending() {
            let connection = match way {
                Way::Listen(listener) => listener.accept(&links.terms),
                Way::Call(to, from) => link::connect(*to, Some(*from), &links.terms, ATTEMPT),
            };
            match connection {
                Ok(connection) => {
                    complained.clear();
                    if links.serve(connection, matches!(way, Way::Listen(_))) {
                        continue;
                    }
                }
                Err(error) => {
                    // Said once, not at every try.
                    let text = error.to_string();
                    if text != complained && !error.is_timeout() {
                        tracing::warn!("no link to the other host: {text}");
                        complained = text;
                    }
                }
            }
            if matches!(way, Way::Call(..)) {
                thread::sleep(AGAIN);
            }
        }
    }

    /// Serves one connection; a listener's in a thread of its own, so that a partner that comes
    /// back is let in while its old connection is still thought to live.
    fn serve(self: &Arc<Self>, connection: Connection, apart: bool) -> bool {
        let links = Arc::clone(self);
        let work = move || links.talk(connection);
        if !apart {
            work();
            return false;
        }
        let spawned = thread::Builder::new()
            .name(format!("{} link", self.name))
            .spawn(work);
        if let Err(error) = &spawned {
            tracing::error!(%error, "no thread for the link");
        }
        spawned.is_ok()
    }

    fn talk(&self, connection: Connection) {
        let closer = connection.closer();
        if self.node.changes_mode() {
            closer.close();
            return;
        }
        let (mut sender, mut receiver) = connection.split();
        let peer = match self.greet(&mut sender, &mut receiver) {
            Ok(Some(peer)) => peer,
            Ok(None) => {
                closer.close();
                thread::sleep(MISFIT);
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "the link ended before it began");
                return;
            }
        };
        let outbox = Arc::new(Outbox::new(closer));
        let writer = Writer::new(Arc::clone(&self.node), Arc::clone(&outbox), sender);
        let thread = thread::Builder::new()
            .name(format!("{} sender", self.name))
            .spawn(move || writer.run());
        let Ok(thread) = thread else {
            tracing::error!("no thread for the link");
            return;
        };
        tracing::info!(%peer, "linked with the other host");
        self.node.connected(peer, &outbox);
        let why = self.read(peer, &mut receiver, &outbox);
        outbox.close();
        self.node.closed(peer, &outbox);
        tracing::info!(%peer, "the link is closed: {why}");
        if thread.join().is_err() {
            tracing::error!("the link's sender panicked");
        }
    }

    /// Says who we are and learns who it is; nothing if the two cannot work together.
    fn greet(
        &self,
        sender: &mut link::Sender,
        receiver: &mut Receiver,
    ) -> Result<Option<Incarnation>, LinkError> {
        let ours = Hello {
            unheld: self.node.unheld(),
            ..self.hello.clone()
        };
        sender.send_message(&Message::Hello(ours.clone()))?;
        let Message::Hello(hello) = receiver.receive()? else {
            tracing::error!("the other host does not introduce itself");
            return Ok(None);
        };
        if let Err(mismatch) = ours.fits(&hello) {
            let text = format!("the other host cannot be the partner: {mismatch}");
            tracing::error!("{text}");
            self.node.report(crate::Report::Notice(text));
            return Ok(None);
        }
        if hello.from == self.hello.from {
            tracing::error!("the other host says that it is this one");
            return Ok(None);
        }
        Ok(Some(hello.from))
    }

    /// Reads until the link ends, and says why it did.
    fn read(&self, peer: Incarnation, receiver: &mut Receiver, outbox: &Outbox) -> String {
        loop {
            let message = match receiver.receive() {
                Ok(message) => message,
                Err(error) => return error.to_string(),
            };
            let result = match message {
                Message::Part {
                    session,
                    epoch,
                    index,
                    bytes,
                } => self
                    .backup
                    .part(&self.node, session, epoch.0, index, &bytes),
                Message::Digests {
                    session,
                    disk,
                    first,
                    bytes,
                    last,
                } => {
                    outbox.push(Item::Digests {
                        session,
                        disk,
                        first,
                        bytes,
                        last,
                    });
                    Ok(())
                }
                Message::Frame {
                    session,
                    number,
                    card,
                    bytes,
                } => {
                    let card = usize::from(card);
                    if let Some(late) = self.backup.frame(session, number, card, bytes) {
                        self.node.orders.push(Order::Late(card, late));
                    }
                    Ok(())
                }
                Message::Checkpoint(checkpoint) => {
                    self.backup.checkpoint(&self.node, peer, checkpoint)
                }
                message => {
                    if matches!(message, Message::Begin { .. }) {
                        self.be_ready();
                    }
                    self.acknowledge(peer, message);
                    Ok(())
                }
            };
            if let Err(error) = result {
                tracing::error!("{error}; the replica stays at its last commit");
                return error.to_string();
            }
        }
    }

    /// Whoever wants to fill this host waits until there is a machine to be filled: to make one
    /// and to lock its memory may take longer than a link bears silence.
    fn be_ready(&self) {
        let order = || self.node.orders.push(Order::Ready);
        if !self.backup.await_machine(&self.node, order) && !self.node.is_ending() {
            thread::sleep(MISFIT);
        }
    }

    fn acknowledge(&self, peer: Incarnation, message: Message) {
        let answer = matches!(message, Message::Commit(..) | Message::Received(..));
        let commit = matches!(message, Message::Commit(..));
        self.node.handle(Event::Message {
            from: peer,
            message,
        });
        if !answer {
            return;
        }
        self.node.orders.push(Order::Acknowledged);
        if commit && let Some(sealed) = lock(&self.sealed).take() {
            let time = clock::now().since(sealed);
            self.node.phases.record(Phase::Commit, time);
        }
    }
}
