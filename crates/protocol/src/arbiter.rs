//! The arbiter: keeper of the records, durable before it answers.
//!
//! It is told what arrives and what its store did, and answers with what to store and what to
//! say. While a change of one machine is being stored, later requests for that machine wait: a
//! read must not show what a crash could still undo. A store that fails leaves the record as it
//! was: a full disk makes the arbiter refuse, never forget.

use std::collections::{BTreeMap, VecDeque};

use crate::guards::{Guard, Guards};
use crate::id::{Incarnation, MachineId};
use crate::record::{Change, Record, Refusal, Right};

/// Requests of one machine that may wait for its store; more are refused as [`Refusal::Busy`].
const WAITING_MAX: usize = 64;

/// What may be asked of the arbiter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Ask {
    /// The record as it stands. Reading permits nothing.
    Read,
    /// A compare-and-set.
    Change(Right, Change),
    /// A record for a new machine (`romulus create`); `from` is the creator.
    Create,
}

/// A request to the arbiter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// The machine it is about.
    pub machine: MachineId,
    /// Who asks.
    pub from: Incarnation,
    /// Chosen by the sender, returned in the answer.
    pub number: u64,
    /// What is asked.
    pub ask: Ask,
}

/// The arbiter's answer: always with the record as it stands, so that a refusal also informs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Answer {
    /// The machine.
    pub machine: MachineId,
    /// The incarnation that asked.
    pub to: Incarnation,
    /// The request's number.
    pub number: u64,
    /// The durable record, if there is one.
    pub record: Option<Record>,
    /// Why a change was not applied; nothing for a read or an applied change.
    pub refusal: Option<Refusal>,
}

impl Request {
    /// What is to become of the record that stands: nothing for a read, else the record to store.
    /// Whoever stores it must make sure that this record still stood when it did.
    ///
    /// # Errors
    /// Says why the request is refused.
    pub fn decide(&self, record: Option<&Record>) -> Result<Option<Record>, Refusal> {
        self.decide_by(record, Guards::default())
    }

    fn decide_by(
        &self,
        record: Option<&Record>,
        guards: Guards,
    ) -> Result<Option<Record>, Refusal> {
        match (&self.ask, record) {
            (Ask::Read, _) => Ok(None),
            (Ask::Create, None) => Ok(Some(Record::new(self.machine, self.from))),
            (Ask::Create, Some(_)) => Err(Refusal::Exists),
            (Ask::Change(..), None) => Err(Refusal::Absent),
            (Ask::Change(right, change), Some(record)) => {
                record.change(self.from, right, change, guards).map(Some)
            }
        }
    }

    /// Its answer.
    pub fn answer(&self, record: Option<Record>, refusal: Option<Refusal>) -> Answer {
        Answer {
            machine: self.machine,
            to: self.from,
            number: self.number,
            record,
            refusal,
        }
    }
}

/// What the arbiter is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A request arrived from the client known to the edge as `client`.
    Request {
        /// Where the answer goes.
        client: u64,
        /// The request.
        request: Request,
    },
    /// The record of this machine, last given by [`Action::Store`], is durable.
    Stored(MachineId),
    /// It is not, for example because the disk is full. The store must make sure that a later
    /// [`Action::Store`] of the same machine takes precedence over what it may have left behind.
    NotStored(MachineId),
}

/// What the arbiter wants done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Make this record durable, then say [`Event::Stored`].
    Store(Record),
    /// Send an answer.
    Answer {
        /// Where it goes.
        client: u64,
        /// The answer.
        answer: Answer,
    },
}

#[derive(Debug, Default, PartialEq, Eq, Hash, Clone)]
struct Machine {
    record: Option<Record>,
    storing: Option<(Record, u64, Request)>,
    waiting: VecDeque<(u64, Request)>,
}

/// The arbiter's state: one record a machine.
#[derive(Debug, Default, Clone, PartialEq, Eq, Hash)]
pub struct Arbiter {
    machines: BTreeMap<MachineId, Machine>,
    actions: VecDeque<Action>,
    guards: Guards,
}

impl Arbiter {
    /// An arbiter that starts from the records in its store.
    pub fn new(records: impl IntoIterator<Item = Record>) -> Arbiter {
        let machine = |record: Record| {
            let machine = Machine {
                record: Some(record),
                ..Machine::default()
            };
            (record.machine, machine)
        };
        Arbiter {
            machines: records.into_iter().map(machine).collect(),
            ..Arbiter::default()
        }
    }

    /// The same arbiter with other guards.
    #[cfg(any(test, feature = "weaken"))]
    #[must_use]
    pub fn with_guards(mut self, guards: Guards) -> Arbiter {
        self.guards = guards;
        self
    }

    /// The durable record of a machine.
    pub fn record(&self, machine: MachineId) -> Option<&Record> {
        self.machines.get(&machine)?.record.as_ref()
    }

    /// The next thing to do, oldest first.
    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Takes an event.
    pub fn handle(&mut self, event: Event) {
        match event {
            Event::Request { client, request } => self.request(client, request),
            Event::Stored(machine) => self.stored(machine, true),
            Event::NotStored(machine) => self.stored(machine, false),
        }
    }

    fn request(&mut self, client: u64, request: Request) {
        let known = self.machines.contains_key(&request.machine);
        if !known && request.ask != Ask::Create {
            let refusal = (request.ask != Ask::Read).then_some(Refusal::Absent);
            self.answer(client, &request, None, refusal);
            return;
        }
        let machine = self.machines.entry(request.machine).or_default();
        if machine.storing.is_none() {
            self.decide(client, request);
        } else if machine.waiting.len() < WAITING_MAX {
            machine.waiting.push_back((client, request));
        } else {
            let record = machine.record;
            self.answer(client, &request, record, Some(Refusal::Busy));
        }
    }

    fn decide(&mut self, client: u64, request: Request) {
        let Some(machine) = self.machines.get_mut(&request.machine) else {
            return;
        };
        let record = machine.record;
        match request.decide_by(record.as_ref(), self.guards) {
            Err(refusal) => self.answer(client, &request, record, Some(refusal)),
            Ok(None) => self.answer(client, &request, record, None),
            Ok(Some(next)) if self.guards.on(Guard::ArbiterDurable) => {
                machine.storing = Some((next, client, request));
                self.actions.push_back(Action::Store(next));
            }
            Ok(Some(next)) => {
                machine.record = Some(next);
                self.answer(client, &request, Some(next), None);
                self.actions.push_back(Action::Store(next));
            }
        }
    }

    fn stored(&mut self, id: MachineId, durable: bool) {
        let Some(machine) = self.machines.get_mut(&id) else {
            return;
        };
        let Some((record, client, request)) = machine.storing.take() else {
            return;
        };
        let refusal = if durable {
            machine.record = Some(record);
            None
        } else {
            Some(Refusal::NotStored)
        };
        let record = machine.record;
        self.answer(client, &request, record, refusal);
        // Those that waited see the record as it is now, until one of them changes it again.
        while let Some(machine) = self.machines.get_mut(&id) {
            if machine.storing.is_some() {
                break;
            }
            let Some((client, request)) = machine.waiting.pop_front() else {
                if machine.record.is_none() {
                    self.machines.remove(&id);
                }
                break;
            };
            self.decide(client, request);
        }
    }

    fn answer(
        &mut self,
        client: u64,
        request: &Request,
        record: Option<Record>,
        refusal: Option<Refusal>,
    ) {
        let answer = request.answer(record, refusal);
        self.actions.push_back(Action::Answer { client, answer });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Generation;
    use crate::record::Phase;

    const MACHINE: MachineId = MachineId(9);

    fn me() -> Incarnation {
        Incarnation::new(1).expect("not zero")
    }

    fn request(number: u64, ask: Ask) -> Event {
        Event::Request {
            client: number,
            request: Request {
                machine: MACHINE,
                from: me(),
                number,
                ask,
            },
        }
    }

    fn run(expected: u64) -> Ask {
        let change = Change {
            expected: Generation(expected),
            runner: me(),
            heir: None,
            phase: Phase::Running,
        };
        Ask::Change(Right::Named, change)
    }

    fn answers(arbiter: &mut Arbiter) -> Vec<(u64, Option<u64>, Option<Refusal>)> {
        let mut answers = Vec::new();
        while let Some(action) = arbiter.poll() {
            if let Action::Answer { client, answer } = action {
                answers.push((
                    client,
                    answer.record.map(|r| r.generation.0),
                    answer.refusal,
                ));
            }
        }
        answers
    }

    #[test]
    fn nothing_is_answered_before_it_is_durable() {
        let mut arbiter = Arbiter::new([Record::new(MACHINE, me())]);
        arbiter.handle(request(1, run(1)));
        arbiter.handle(request(2, Ask::Read));
        arbiter.handle(request(3, run(1)));
        assert_eq!(answers(&mut arbiter), []);
        arbiter.handle(Event::Stored(MACHINE));
        assert_eq!(
            answers(&mut arbiter),
            [
                (1, Some(2), None),
                (2, Some(2), None),
                (3, Some(2), Some(Refusal::Generation))
            ]
        );
    }

    #[test]
    fn a_full_disk_makes_it_refuse_and_not_forget() {
        let mut arbiter = Arbiter::new([Record::new(MACHINE, me())]);
        arbiter.handle(request(1, run(1)));
        arbiter.handle(Event::NotStored(MACHINE));
        arbiter.handle(request(2, Ask::Read));
        assert_eq!(
            answers(&mut arbiter),
            [(1, Some(1), Some(Refusal::NotStored)), (2, Some(1), None)]
        );
        arbiter.handle(request(3, run(1)));
        arbiter.handle(Event::Stored(MACHINE));
        assert_eq!(answers(&mut arbiter), [(3, Some(2), None)]);
    }

    #[test]
    fn a_failed_create_leaves_no_machine() {
        let mut arbiter = Arbiter::default();
        arbiter.handle(request(1, Ask::Create));
        arbiter.handle(Event::NotStored(MACHINE));
        assert_eq!(answers(&mut arbiter), [(1, None, Some(Refusal::NotStored))]);
        arbiter.handle(request(2, Ask::Create));
        arbiter.handle(Event::Stored(MACHINE));
        arbiter.handle(request(3, Ask::Create));
        assert_eq!(
            answers(&mut arbiter),
            [(2, Some(1), None), (3, Some(1), Some(Refusal::Exists))]
        );
    }

    #[test]
    fn the_queue_of_a_machine_is_bounded() {
        let mut arbiter = Arbiter::new([Record::new(MACHINE, me())]);
        arbiter.handle(request(0, run(1)));
        for number in 1..=WAITING_MAX as u64 + 1 {
            arbiter.handle(request(number, Ask::Read));
        }
        assert_eq!(
            answers(&mut arbiter),
            [(WAITING_MAX as u64 + 1, Some(1), Some(Refusal::Busy))]
        );
    }
}
