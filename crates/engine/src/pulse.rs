//! The thread of the heartbeats: it reads its sockets, tells the host the time, and does nothing
//! that could take long.

#[cfg(test)]
mod tests;

use crate::arrival::{Clocks, arrival};
use crate::datagram::Received;
use crate::node::Node;
use romulus_protocol::{host::Event, lanes::Lane};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

/// The longest sleep, so that the end of the process is noticed.
const SLEEP_MAX: Duration = Duration::from_millis(100);

/// Runs until the process ends. `arbiter` is a copy of the socket towards it: its answers are
/// waited for at takeovers. Heartbeats are not: they are read when the next one is due, which saves
/// two of three wake-ups and makes an echo older by one interval at most. A silence none the less
/// begins when the last one arrived, as the kernel noted it.
pub(crate) fn run(node: &Arc<Node>, arbiter: &OwnedFd) {
    raise_priority();
    let mut events = Vec::new();
    let mut received = Vec::new();
    // When the reading began of which the newest datagrams were not yet part.
    let mut before = Clocks::now();
    while !node.is_ending() {
        let answered = wait(arbiter, node.sleep().min(SLEEP_MAX));
        events.clear();
        let begins = Clocks::now();
        {
            let mut paths = node.paths();
            received.extend(std::iter::from_fn(|| paths.receive()));
        }
        let ended = Clocks::now();
        events.extend(received.drain(..).map(|r| heard(r, &before, &ended)));
        before = begins;
        if answered {
            let mut arbiter = node.arbiter();
            while let Some(answer) = arbiter.receive() {
                events.push(Event::Arbiter(answer));
            }
        }
        // Everything that has arrived counts before the silence of what has not.
        events.push(Event::Tick { drained: true });
        node.handle_all(events.drain(..));
    }
}

/// What the host is told of a heartbeat that was not there before `before` and was at `after`.
fn heard(received: Received, before: &Clocks, after: &Clocks) -> Event {
    let Received { path, beat, wall } = received;
    Event::Heartbeat {
        beat,
        // The first path is the link's.
        lane: if path == 0 { Lane::Link } else { Lane::Other },
        // Without a note of the kernel's: just now, which is never too early.
        arrived: wall.map_or(after.boot(), |wall| arrival(wall, before, after)),
    }
}

/// Whether there is something to read.
fn wait(socket: &OwnedFd, at_most: Duration) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::IN)];
    let timeout = Timespec {
        tv_sec: i64::try_from(at_most.as_secs()).unwrap_or(0),
        tv_nsec: i64::from(at_most.subsec_nanos()),
    };
    // Interrupted or failed: the caller looks.
    poll(&mut polled, Some(&timeout)).map_or(true, |ready| ready > 0)
}

/// A busy host must not keep this thread from running: that would be a false alarm. Without the
/// permission it stays as it is.
fn raise_priority() {
    let priority = libc::sched_param { sched_priority: 10 };
    // SAFETY: the structure is valid for the call; only this thread (0) is concerned.
    let done = unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const priority) };
    if done != 0 {
        tracing::debug!("the heartbeats run without real-time priority");
    }
}
