//! Datagrams and connections between hosts.

use crate::host::{Action, Event};
use crate::id::Incarnation;
use crate::message::Message;

use super::engine::Parcel;
use super::network::{Link, Stream};
use super::world::{Stage, World};
use super::{HOSTS, Happening, MS};

impl World<'_> {
    pub(super) fn datagram(&mut self, path: usize, from: usize, to: usize, event: &Event) {
        let life = self.computers[to].life;
        for at in self
            .network
            .datagram(self.now, path, from, to, &mut self.random)
            .into_iter()
            .flatten()
        {
            self.at(
                at,
                Happening::Datagram {
                    host: to,
                    life,
                    event: Box::new(event.clone()),
                },
            );
        }
    }

    /// A datagram reaches a host, which may read it later.
    pub(super) fn datagram_arrives(&mut self, host: usize, mut event: Event) {
        let now = self.clock(host);
        let computer = &self.computers[host];
        let mut waits = self.now < computer.hung_until.max(computer.backlog_until);
        if let Event::Heartbeat { arrived, .. } = &mut event {
            *arrived = now;
            waits |= self.reads_late;
        }
        if let Some(process) = self.process(host) {
            process.inbox.push(event);
        }
        if !waits {
            self.read(host);
        }
    }

    /// A host reads everything that has arrived.
    pub(super) fn read(&mut self, host: usize) {
        let inbox = self.process(host).map(|p| std::mem::take(&mut p.inbox));
        for event in inbox.unwrap_or_default() {
            self.handle(host, event);
        }
    }

    pub(super) fn send(&mut self, host: usize, to: Incarnation, message: Message) {
        let Some(process) = &self.computers[host].process else {
            return;
        };
        let Some(link) = process
            .links
            .iter()
            .flatten()
            .find(|l| l.peer == to)
            .copied()
        else {
            return;
        };
        let (state, held) = match (&message, &process.guest) {
            (Message::Checkpoint(cp), Some(guest)) => {
                let of_epoch = guest.held.iter().filter(|(epoch, _)| *epoch <= cp.epoch);
                (guest.tip, of_epoch.copied().collect())
            }
            _ => (0, Vec::new()),
        };
        let parcel = Parcel {
            message,
            state,
            held,
        };
        let Some(number) = self.stream_from(link.number, host) else {
            return;
        };
        let Some(stream) = self.streams.get(&number) else {
            return;
        };
        let to = stream.to;
        let at = self.now + self.network.delay(self.now, host, to, &mut self.random);
        let Some(stream) = self.streams.get_mut(&number) else {
            return;
        };
        let at = stream.queue.back().map_or(at, |(last, _)| at.max(*last));
        stream.queue.push_back((at, parcel));
        if !std::mem::replace(&mut stream.pumping, true) {
            self.at(at, Happening::Pump { stream: number });
        }
    }

    pub(super) fn stream_from(&self, connection: u64, host: usize) -> Option<u64> {
        [connection * 2, connection * 2 + 1]
            .into_iter()
            .find(|number| self.streams.get(number).is_some_and(|s| s.from == host))
    }

    pub(super) fn pump(&mut self, number: u64) {
        let now = self.now;
        let Some(stream) = self.streams.get(&number) else {
            return;
        };
        let (from, to, receiver) = (stream.from, stream.to, stream.receiver);
        let computer = &self.computers[to];
        let Some(process) = computer.process.as_ref().filter(|p| p.me == receiver) else {
            self.streams.remove(&number);
            return;
        };
        let open = process.links[from].is_some_and(|l| l.number == stream.number);
        // What an engine had already read of a connection that has since been closed.
        if !open && !stream.straggles {
            self.streams.remove(&number);
            return;
        }
        let blocked = self.blocked_until(to);
        if now < blocked {
            return self.again(blocked, Happening::Pump { stream: number });
        }
        if !open && stream.lingers > 0 {
            let Some(stream) = self.streams.get_mut(&number) else {
                return;
            };
            let later = now + std::mem::take(&mut stream.lingers);
            return self.at(later, Happening::Pump { stream: number });
        }
        if self.network.paths[0][from][to].is_cut(now) {
            return self.at(now + 5 * MS, Happening::Pump { stream: number });
        }
        let Some(stream) = self.streams.get_mut(&number) else {
            return;
        };
        let sender = stream.sender;
        let prepare = |action: &Action| matches!(action, Action::Prepare(_));
        let process = self.computers[to].process.as_ref();
        let prepares = process.is_some_and(|p| p.orders.iter().any(prepare));
        match stream.queue.front() {
            None => stream.pumping = false,
            Some((at, _)) if *at > now => {
                let at = *at;
                self.at(at, Happening::Pump { stream: number });
            }
            // Nothing of a session is taken before there is a replica for it.
            Some((_, parcel)) if prepares && matches!(parcel.message, Message::Checkpoint(_)) => {
                self.at(now + MS / 10, Happening::Pump { stream: number });
            }
            Some(_) => {
                let Some((_, parcel)) = stream.queue.pop_front() else {
                    return;
                };
                self.at(now, Happening::Pump { stream: number });
                let message = parcel.message.clone();
                if let Some(process) = self.process(to) {
                    process.arrived = Some(parcel);
                }
                self.handle(
                    to,
                    Event::Message {
                        from: sender,
                        message,
                    },
                );
            }
        }
    }

    pub(super) fn connect(&mut self, a: usize, b: usize) {
        self.soon(20 * MS, 60 * MS, Happening::Connect { a, b });
        let cut = self.network.paths[0][a][b].is_cut(self.now)
            || self.network.paths[0][b][a].is_cut(self.now);
        let hung = self.now
            < self.computers[a]
                .hung_until
                .max(self.computers[b].hung_until);
        let (first, second) = (&self.computers[a].process, &self.computers[b].process);
        if let (Some(first), Some(second)) = (first, second) {
            let whole = match (first.links[b], second.links[a]) {
                (Some(there), Some(back)) => {
                    there.number == back.number && there.peer == second.me && back.peer == first.me
                }
                _ => false,
            };
            if !whole {
                return self.reconnect(a, b, cut || hung);
            }
            if !cut && !hung {
                return;
            }
        }
        // Each end gives up by itself, in its own time.
        for (host, other) in [(a, b), (b, a)] {
            let link = self.computers[host]
                .process
                .as_ref()
                .and_then(|p| p.links[other]);
            let Some(link) = link.filter(|_| self.random.chance(6)) else {
                continue;
            };
            let (life, number) = (self.computers[host].life, link.number);
            self.at(self.now, Happening::Closed { host, life, number });
            // Its last word may get through, and in the calm it does.
            let told = self.stage != Stage::Faults || self.random.chance(50);
            if told && !self.network.paths[0][host][other].is_cut(self.now) {
                let (host, life) = (other, self.computers[other].life);
                self.soon(0, 3 * MS, Happening::Closed { host, life, number });
            }
        }
    }

    pub(super) fn reconnect(&mut self, a: usize, b: usize, impossible: bool) {
        if impossible {
            return;
        }
        let (Some(x), Some(y)) = (&self.computers[a].process, &self.computers[b].process) else {
            return;
        };
        // They would not greet each other, or not agree.
        let refused = x.host.changes_mode() || y.host.changes_mode();
        if refused || x.host.unheld() != y.host.unheld() {
            return;
        }
        let (x, y) = (x.me, y.me);
        self.connections += 1;
        let number = self.connections;
        for (index, from, to, sender, receiver) in [(0, a, b, x, y), (1, b, a, y, x)] {
            let straggles = self.random.chance(30);
            let lingers = match self.random.index(3) {
                0 => self.random.between(50, 900) * MS,
                _ => 0,
            };
            let queue = std::collections::VecDeque::new();
            let stream = Stream {
                number,
                from,
                to,
                sender,
                receiver,
                queue,
                pumping: false,
                straggles,
                lingers,
            };
            self.streams.insert(number * 2 + index, stream);
        }
        for (host, other, peer) in [(a, b, y), (b, a, x)] {
            if let Some(process) = self.process(host) {
                process.links[other] = Some(Link { number, peer });
            }
            self.handle(host, Event::Connected(peer));
        }
    }

    pub(super) fn closed(&mut self, host: usize, number: u64) {
        if self.now < self.computers[host].hung_until {
            let (at, life) = (self.computers[host].hung_until, self.computers[host].life);
            return self.again(at, Happening::Closed { host, life, number });
        }
        let Some(process) = self.process(host) else {
            return;
        };
        let Some(slot) = process
            .links
            .iter_mut()
            .find(|l| l.is_some_and(|l| l.number == number))
        else {
            return;
        };
        let Some(link) = slot.take() else { return };
        self.tell(|| format!("{host}: link to {} closes", link.peer));
        self.handle(host, Event::Closed(link.peer));
    }

    /// A host gives up its end of a link. The other end learns of it if anything passes that way.
    pub(super) fn close_link(&mut self, host: usize, peer: Incarnation) {
        let Some(process) = &self.computers[host].process else {
            return;
        };
        let links = process.links.iter().enumerate();
        let mut found = links.filter_map(|(other, link)| link.map(|link| (other, link)));
        let Some((other, link)) = found.find(|(_, link)| link.peer == peer) else {
            return;
        };
        let (number, life) = (link.number, self.computers[host].life);
        self.soon(0, MS, Happening::Closed { host, life, number });
        if !self.network.paths[0][host][other].is_cut(self.now) {
            let life = self.computers[other].life;
            let host = other;
            self.soon(MS / 10, 3 * MS, Happening::Closed { host, life, number });
        }
    }

    pub(super) fn reset(&mut self, host: usize) {
        let Some(process) = &self.computers[host].process else {
            return;
        };
        let links: Vec<(usize, u64)> = (0..HOSTS)
            .filter_map(|other| process.links[other].map(|l| (other, l.number)))
            .collect();
        for (other, number) in links {
            for end in [host, other] {
                let life = self.computers[end].life;
                self.soon(
                    0,
                    20 * MS,
                    Happening::Closed {
                        host: end,
                        life,
                        number,
                    },
                );
            }
        }
    }
}
