//! What the thread that holds the machine is told: it obeys in order, and not while it ends an epoch,
//! is stuck, or did not get a processor. Anything may have happened to its host before it does.

use crate::host::{Action, Event, Source};
use crate::id::{Epoch, Term};

use super::engine::Replica;
use super::world::World;
use super::{Happening, MS};

impl World<'_> {
    /// The host wants something of that thread.
    pub(super) fn order(&mut self, host: usize, action: Action) {
        match action {
            Action::Rest => self.check_rest(host),
            Action::Run { term, .. } => self.check_term(term),
            _ => {}
        }
        let late = if self.random.chance(10) {
            20 * MS
        } else {
            MS / 5
        };
        let life = self.computers[host].life;
        let Some(process) = self.process(host) else {
            return;
        };
        process.orders.push_back(action);
        if process.orders.len() == 1 {
            self.soon(0, late, Happening::Orders { host, life });
        }
    }

    /// It looks for orders.
    pub(super) fn orders(&mut self, host: usize, life: u64) {
        let blocked = self.blocked_until(host);
        if self.now < blocked {
            return self.again(blocked, Happening::Orders { host, life });
        }
        let Some(process) = self.process(host) else {
            return;
        };
        if process.guest.as_ref().is_some_and(|guest| guest.sealing) {
            return self.at(self.now + MS / 10, Happening::Orders { host, life });
        }
        let Some(action) = process.orders.pop_front() else {
            return;
        };
        if !process.orders.is_empty() {
            self.at(self.now, Happening::Orders { host, life });
        }
        self.obey(host, &action);
        self.seal_if_allowed(host);
    }

    fn obey(&mut self, host: usize, action: &Action) {
        let life = self.computers[host].life;
        match *action {
            Action::Copy(session) => self.copy(host, session),
            Action::EndCopy(session) => {
                if let Some(guest) = self.process(host).and_then(|p| p.guest.as_mut())
                    && guest.session == Some(session)
                {
                    guest.session = None;
                    guest.waiting = false;
                }
            }
            Action::Rest => {
                if let Some(guest) = self.process(host).and_then(|p| p.guest.as_mut()) {
                    guest.resting = true;
                }
            }
            Action::Freeze | Action::Thaw => {
                let frozen = *action == Action::Freeze;
                let Some(guest) = self.process(host).and_then(|p| p.guest.as_mut()) else {
                    return;
                };
                guest.paused = frozen;
                let filling = guest.session.is_some();
                if std::mem::take(&mut guest.resting) && !frozen && filling {
                    self.plan_epoch(host);
                }
            }
            Action::Load(source) => {
                let flaky = self.now < self.computers[host].load_fails_until;
                let broken = self.process(host).is_some_and(|p| p.broken) && source != Source::Cold;
                let ok = !flaky && !broken;
                if let Some(process) = self.process(host) {
                    process.loaded = ok;
                }
                let event = Box::new(Event::Loaded(ok));
                self.soon(MS, 20 * MS, Happening::Done { host, life, event });
            }
            Action::Run { source, term } => self.run_term(host, source, term),
            Action::Discard => {
                self.check_drop(host);
                let Some(process) = self.process(host) else {
                    return;
                };
                process.guest = None;
                process.replica = None;
            }
            Action::Prepare(session) => {
                self.check_prepare(host);
                let Some(process) = self.process(host) else {
                    return;
                };
                process.guest = None;
                process.replica = Some(Replica {
                    session,
                    term: Term::default(),
                    epoch: Epoch(0),
                    state: 0,
                    whole: false,
                    held: std::collections::VecDeque::new(),
                });
            }
            Action::Try(session) => {
                let loaded = self.process(host).is_some_and(|p| !p.broken);
                let event = Box::new(Event::Tried { session, loaded });
                self.soon(MS, 10 * MS, Happening::Done { host, life, event });
            }
            _ => {}
        }
    }
}
