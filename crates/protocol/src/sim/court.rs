//! The arbiter's process: its requests, its store, its answers.

use crate::arbiter::{self, Arbiter, Request};
use crate::host::Event;
use crate::record::Record;

use super::faults::Fault;
use super::network::ARBITER;
use super::world::{MACHINE, Stage, World};
use super::{Happening, MS};

impl World<'_> {
    pub(super) fn ask_arbiter(&mut self, host: usize, request: &Request) {
        let arrivals = self
            .network
            .datagram(self.now, 1, host, ARBITER, &mut self.random);
        for at in arrivals.into_iter().flatten() {
            self.at(at, Happening::Request(Box::new(request.clone())));
        }
    }

    pub(super) fn request(&mut self, request: Request) {
        let Some(arbiter) = &mut self.arbiter else {
            return;
        };
        let client = u64::try_from(request.from.get() & 0xff).unwrap_or(0);
        arbiter.handle(arbiter::Event::Request { client, request });
        self.drive_arbiter();
    }

    pub(super) fn drive_arbiter(&mut self) {
        while let Some(action) = self.arbiter.as_mut().and_then(Arbiter::poll) {
            match action {
                arbiter::Action::Store(record) => {
                    let ok = self.now >= self.arbiter_full_until;
                    let life = self.arbiter_life;
                    let record = Box::new(record);
                    self.soon(MS / 10, 3 * MS, Happening::Stored { life, record, ok });
                }
                arbiter::Action::Answer { client, answer } => {
                    let host = usize::try_from(client).unwrap_or(0);
                    self.datagram_from_arbiter(host, answer);
                }
            }
        }
    }

    pub(super) fn datagram_from_arbiter(&mut self, host: usize, answer: arbiter::Answer) {
        let life = self.computers[host].life;
        let arrivals = self
            .network
            .datagram(self.now, 1, ARBITER, host, &mut self.random);
        for at in arrivals.into_iter().flatten() {
            let event = Box::new(Event::Arbiter(answer));
            self.at(at, Happening::Datagram { host, life, event });
        }
    }

    pub(super) fn arbiter_stored(&mut self, life: u64, record: &Record, ok: bool) {
        if life != self.arbiter_life || self.arbiter.is_none() {
            return;
        }
        // A write that was reported as failed may yet be found after a restart.
        if ok || self.random.chance(50) {
            self.tell(|| {
                format!(
                    "arbiter: {record:?}{}",
                    if ok { "" } else { " (reported as failed)" }
                )
            });
            if let Some(before) = self.arbiter.as_ref().and_then(|a| a.record(MACHINE)) {
                self.before = *before;
            }
            self.stored = *record;
            self.check_record();
        }
        let event = if ok {
            arbiter::Event::Stored(MACHINE)
        } else {
            arbiter::Event::NotStored(MACHINE)
        };
        // It may also crash between the write and the answer.
        if self.stage == Stage::Faults && self.random.chance(1) {
            return self.fault(Fault::ArbiterDown { returns: 30 * MS });
        }
        if let Some(arbiter) = &mut self.arbiter {
            arbiter.handle(event);
        }
        self.drive_arbiter();
    }
}
