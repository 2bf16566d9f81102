//! The guest and its epochs, on the primary; their arrival, on the backup.

use crate::host::{Event, Sealed, Source};
use crate::id::{Epoch, SessionId, Term};
use crate::message::{Checkpoint, Message};

use super::engine::Guest;
use super::history::Node;
use super::world::World;
use super::{Happening, MS};

impl World<'_> {
    pub(super) fn run_term(&mut self, host: usize, source: Source, term: Term) {
        let Some(tip) = self.check_start(host, source, term) else {
            return;
        };
        let life = self.computers[host].life;
        let Some(process) = self.computers[host].process.as_mut() else {
            return;
        };
        process.versions += 1;
        let version = process.versions;
        let held = match source {
            Source::Cold => std::collections::VecDeque::new(),
            Source::Replica { .. } => process.replica.take().map(|r| r.held).unwrap_or_default(),
            Source::Paused => process.guest.take().map(|g| g.held).unwrap_or_default(),
        };
        process.replica = None;
        process.guest = Some(Guest {
            term,
            tip,
            epoch: Epoch(1),
            paused: false,
            waiting: false,
            resting: false,
            sealing: false,
            // Sent again before any new output.
            held: held.into_iter().map(|(_, node)| (Epoch(1), node)).collect(),
            session: None,
            rounds: 0,
            version,
            timer: 0,
        });
        self.computers[host].disk.image = tip;
        self.soon(
            MS,
            3 * MS,
            Happening::Operation {
                host,
                life,
                version,
            },
        );
    }

    pub(super) fn operation(&mut self, host: usize, life: u64, version: u64) {
        let blocked = self.blocked_until(host);
        let (flush, held) = (
            self.random.chance(15),
            !self.unheld || self.random.chance(60),
        );
        let process = self.computers[host].process.as_ref();
        let held = held || process.is_some_and(|process| !process.host.unheld());
        let Some(guest) = self.computers[host]
            .process
            .as_mut()
            .and_then(|p| p.guest.as_mut())
        else {
            return;
        };
        if guest.version != version {
            return;
        }
        let next = if self.now < blocked {
            blocked
        } else {
            self.now + self.random.between(2 * MS, 12 * MS)
        };
        let stands = guest.paused || guest.waiting || guest.sealing;
        if self.now >= blocked && !stands {
            let (term, epoch) = (guest.term.0.0, guest.epoch);
            let node = self.history.add(guest.tip, term, epoch.0, held, flush);
            guest.tip = node;
            if held {
                guest.held.push_back((epoch, node));
            }
            self.computers[host].disk.image = node;
            if !held {
                self.pass_unheld(host, node);
            }
            self.release(host);
        }
        self.at(
            next,
            Happening::Operation {
                host,
                life,
                version,
            },
        );
    }

    pub(super) fn pass_unheld(&mut self, host: usize, node: Node) {
        let now = self.clock(host);
        let Some(process) = &self.computers[host].process else {
            return;
        };
        let epoch = Epoch(self.history.get(node).epoch);
        if process.permit.allows(now, epoch, true) {
            self.check_sender(node);
            self.history.pass_unheld(node);
            self.unheld_passed.push(node);
        }
    }

    pub(super) fn release(&mut self, host: usize) {
        loop {
            let now = self.clock(host);
            if self.now < self.computers[host].hung_until {
                return;
            }
            let Some(process) = self.computers[host].process.as_mut() else {
                return;
            };
            let permit = process.permit;
            let Some(guest) = process.guest.as_mut() else {
                return;
            };
            let Some((epoch, node)) = guest.held.front().copied() else {
                return;
            };
            if !permit.allows(now, epoch, false) {
                return;
            }
            guest.held.pop_front();
            self.check_release(host, node);
        }
    }

    pub(super) fn copy(&mut self, host: usize, session: SessionId) {
        let rounds = self.random.between(1, 4);
        if let Some(guest) = self.process(host).and_then(|p| p.guest.as_mut()) {
            guest.session = Some(session);
            guest.rounds = rounds;
            guest.waiting = false;
            self.plan_epoch(host);
        }
    }

    pub(super) fn plan_epoch(&mut self, host: usize) {
        let life = self.computers[host].life;
        let Some(process) = self.process(host) else {
            return;
        };
        process.versions += 1;
        let version = process.versions;
        if let Some(guest) = &mut process.guest {
            guest.timer = version;
            self.soon(
                5 * MS,
                25 * MS,
                Happening::EpochEnds {
                    host,
                    life,
                    version,
                },
            );
        }
    }

    pub(super) fn epoch_ends(&mut self, host: usize, life: u64, version: u64) {
        let blocked = self.blocked_until(host);
        if self.now < blocked {
            return self.again(
                blocked,
                Happening::EpochEnds {
                    host,
                    life,
                    version,
                },
            );
        }
        let Some(guest) = self.process(host).and_then(|p| p.guest.as_mut()) else {
            return;
        };
        if guest.timer != version || guest.session.is_none() || guest.paused {
            return;
        }
        guest.waiting = true;
        self.seal_if_allowed(host);
    }

    pub(super) fn seal_if_allowed(&mut self, host: usize) {
        let blocked = self.blocked_until(host);
        if self.now < blocked {
            return;
        }
        let Some(process) = self.process(host) else {
            return;
        };
        let Some(guest) = &mut process.guest else {
            return;
        };
        let due = guest.waiting || guest.resting;
        let stands = guest.paused || guest.sealing;
        let Some(session) = guest.session.filter(|_| due && !stands) else {
            return;
        };
        if !process.host.may_seal(session) {
            return;
        }
        guest.waiting = false;
        guest.rounds = guest.rounds.saturating_sub(1);
        let released_through = guest
            .held
            .front()
            .map_or(guest.epoch, |(e, _)| Epoch(e.0 - 1));
        guest.sealing = true;
        let sealed = Sealed {
            term: guest.term,
            session,
            complete: guest.rounds == 0,
            released_through,
            rx_next: 0,
            rests: guest.resting,
        };
        let life = self.computers[host].life;
        let pause = if self.random.chance(10) {
            20 * MS
        } else {
            MS / 2
        };
        self.soon(0, pause, Happening::Sealed { host, life, sealed });
    }

    /// The pause with which an epoch ends is over. Anything may have happened to its host meanwhile.
    pub(super) fn sealed(&mut self, host: usize, life: u64, sealed: Sealed) {
        let blocked = self.blocked_until(host);
        if self.now < blocked {
            return self.again(blocked, Happening::Sealed { host, life, sealed });
        }
        let of_term = |guest: &Guest| guest.term == sealed.term;
        let guest = self.process(host).and_then(|p| p.guest.as_mut());
        if let Some(guest) = guest.filter(|guest| of_term(guest)) {
            guest.sealing = false;
            // Unless the rest was given up meanwhile.
            guest.paused |= sealed.rests && guest.resting;
        }
        self.sealed_for = Some(sealed.session);
        self.handle(host, Event::Sealed(sealed));
        self.sealed_for = None;
        let Some(process) = self.process(host) else {
            return;
        };
        let guest = process.guest.as_mut().filter(|guest| of_term(guest));
        let Some(guest) = guest else {
            return;
        };
        guest.epoch = guest.epoch.next();
        if !sealed.rests {
            self.plan_epoch(host);
        }
    }

    pub(super) fn apply(&mut self, host: usize, session: SessionId, epoch: Epoch) {
        let computer = &mut self.computers[host];
        let Some(process) = &mut computer.process else {
            return;
        };
        let Some(parcel) = process.arrived.take() else {
            return;
        };
        let Message::Checkpoint(Checkpoint {
            complete,
            released_through,
            term,
            ..
        }) = parcel.message
        else {
            return;
        };
        let Some(replica) = process.replica.as_mut().filter(|r| r.session == session) else {
            return;
        };
        replica.epoch = epoch;
        replica.term = term;
        replica.state = parcel.state;
        // A checkpoint carries what its primary still holds: all that an earlier one had and more.
        replica.held.extend(
            parcel
                .held
                .into_iter()
                .filter(|(e, _)| *e == epoch || !replica.whole),
        );
        replica.held.retain(|(e, _)| *e > released_through);
        computer.disk.mixed = !(replica.whole || complete);
        replica.whole |= complete;
        if replica.whole {
            process.committed = parcel.state;
        }
        computer.disk.image = parcel.state;
    }
}
