//! The host's uplinks: whether the interfaces that carry the machine's service have a carrier, as
//! the kernel tells it by itself (rtnetlink's group of links).

mod links;
#[cfg(test)]
mod tests;

use crate::node::Node;
use links::{Links, News};
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{RouteNetlinkMessage, link::LinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{io, time::Duration};

/// The kernel's group of news about links (`RTNLGRP_LINK`, as bits).
const LINK_NEWS: u32 = 1;
/// Longer than any datagram of the kernel's about links: it fills at most 32 KiB with one.
const DATAGRAM_MAX: usize = 64 << 10;
/// The longest wait, so that the end of the process is noticed.
const WAIT: Duration = Duration::from_millis(100);
/// How long the kernel may take to list its links.
const LIST: Duration = Duration::from_secs(2);

/// Interfaces that are watched.
pub(crate) struct Watch {
    socket: Socket,
    links: Links,
    buffer: Vec<u8>,
}

impl Watch {
    /// Begins to watch; what the interfaces are at the moment is known when it returns.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub(crate) fn open(names: &[String]) -> io::Result<Watch> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        // News before the list: what changes meanwhile comes after it.
        socket.bind(&SocketAddr::new(0, LINK_NEWS))?;
        socket.set_non_blocking(true)?;
        let mut watch = Watch {
            socket,
            links: Links::new(names),
            buffer: Vec::with_capacity(DATAGRAM_MAX),
        };
        watch.list()?;
        let until = std::time::Instant::now() + LIST;
        while watch.links.is_listing() {
            if std::time::Instant::now() >= until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            watch.look(WAIT)?;
        }
        Ok(watch)
    }

    /// Which of them have a carrier, in the order of their names.
    pub(crate) fn up(&self) -> Vec<bool> {
        self.links.up()
    }

    /// Asks for all links.
    fn list(&mut self) -> io::Result<()> {
        self.links.begin_list();
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_DUMP | NLM_F_REQUEST;
        let payload = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(payload));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        Ok(())
    }

    /// Reads what has come, and waits for it at most so long.
    fn look(&mut self, at_most: Duration) -> io::Result<()> {
        let mut polled = [PollFd::new(&self.socket, PollFlags::IN)];
        let timeout = Timespec {
            tv_sec: i64::try_from(at_most.as_secs()).unwrap_or(0),
            tv_nsec: at_most.subsec_nanos().into(),
        };
        match poll(&mut polled, Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        loop {
            self.buffer.clear();
            match self.socket.recv_from(&mut self.buffer, 0) {
                // Anybody on this host may send to the socket; only the kernel is believed.
                Ok((_, from)) if from.port_number() != 0 => {}
                Ok(_) => {
                    if self.links.read(&self.buffer) == News::Missed {
                        self.list()?;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // News were lost: all is asked for again.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => self.list()?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Tells the node what the interfaces are, at every change, until the process ends.
    pub(crate) fn run(mut self, node: &Node) {
        while !node.is_ending() {
            if let Err(error) = self.look(WAIT) {
                // Believed to be as it was: nothing is done for an uplink of which nothing is known.
                tracing::error!("this host's uplinks are not watched any more: {error}");
                node.uplinks_unknown();
                return;
            }
            node.uplinks_seen(&self.up());
        }
    }
}
