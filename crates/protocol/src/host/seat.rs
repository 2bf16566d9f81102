//! The host's view of the record, and the one request whose outcome is unknown.
//!
//! DESIGN: "A read that shows the old generation settles nothing: the request may still arrive.
//! Its sender keeps holding and frozen until the record's generation has passed the one it
//! expected; to settle it, it sends another change against that generation. Lower generations are
//! ignored." So a request here is sent again and again until the generation has passed: whichever
//! copy arrives first makes it pass, and all others fail.

use std::time::Duration;

use crate::arbiter::{Answer, Ask, Request};
use crate::guards::{Guard, Guards};
use crate::id::{Generation, Incarnation, MachineId};
use crate::record::{Change, Phase, Record, Refusal, Right};
use crate::time::Time;

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Why {
    /// To name an heir.
    Name,
    /// To let the heir go, or to settle a naming whose outcome is unknown.
    LetGo,
    /// To claim: as runner, as heir, from cold, for the operator.
    Claim,
    /// To set `running`.
    Run,
    /// To hand a claim back.
    HandBack,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pending {
    why: Why,
    right: Right,
    change: Change,
    /// Whom an earlier request against the same generation may have named.
    named: Option<Incarnation>,
    sent: Time,
}

/// What an answer meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// Nothing new.
    None,
    /// The record is older than one seen before, or absent, though it was asked for later.
    Lower {
        /// What the arbiter gave.
        record: Option<Record>,
    },
    /// The record is newer than what was known. If a request waited for that, it is settled.
    Record {
        /// What the settled request was for.
        settled: Option<Why>,
    },
    /// A weakened protocol took a read of the old generation for an answer.
    GaveUp(Why),
}

/// See the module's text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Seat {
    machine: MachineId,
    me: Incarnation,
    guards: Guards,
    view: Option<Record>,
    /// The record has at least this generation: a runner said so. An older one is not the record.
    floor: Generation,
    /// When the present generation was first seen.
    since: Time,
    pending: Option<Pending>,
    number: u64,
    /// The number of the first request that was sent after the present record was learned.
    fresh: u64,
    asked: Option<Time>,
    /// Since when nothing that was asked was answered.
    unanswered: Option<Time>,
}

impl Seat {
    pub(super) fn new(machine: MachineId, me: Incarnation, guards: Guards) -> Seat {
        Seat {
            machine,
            me,
            guards,
            view: None,
            floor: Generation(0),
            since: Time(0),
            pending: None,
            number: 0,
            fresh: 0,
            asked: None,
            unanswered: None,
        }
    }

    pub(super) fn view(&self) -> Option<&Record> {
        self.view.as_ref()
    }

    /// A runner speaks of this generation. What is known is forgotten if it is older: whoever
    /// acted on it would act on the past.
    pub(super) fn heard_of(&mut self, generation: Generation) {
        self.floor = self.floor.max(generation);
        if self.view.is_some_and(|r| r.generation < generation) {
            self.view = None;
        }
    }

    /// For how long the present generation has stood, as far as this host has seen.
    pub(super) fn stood(&self, now: Time) -> Duration {
        now.since(self.since)
    }

    /// Whether no request's outcome is unknown.
    pub(super) fn is_idle(&self) -> bool {
        self.pending.is_none()
    }

    pub(super) fn waits_for(&self, why: Why) -> bool {
        self.pending.as_ref().is_some_and(|p| p.why == why)
    }

    /// The record's heir, or the one that a request may have made heir.
    pub(super) fn possible_heir(&self) -> Option<Incarnation> {
        let named = self.view.and_then(|r| r.heir);
        named.or_else(|| self.pending.as_ref().and_then(|p| p.named))
    }

    /// A request, not yet of unknown outcome: for reads.
    pub(super) fn request(&mut self, ask: Ask) -> Request {
        self.number += 1;
        Request {
            machine: self.machine,
            from: self.me,
            number: self.number,
            ask,
        }
    }

    /// A change against the present generation. From here on its outcome is unknown. One that
    /// waits already against the same generation is replaced but stays possible.
    pub(super) fn ask(
        &mut self,
        now: Time,
        why: Why,
        right: Right,
        runner: Incarnation,
        heir: Option<Incarnation>,
        phase: Phase,
    ) -> Option<Request> {
        let expected = self.view?.generation;
        let change = Change {
            expected,
            runner,
            heir,
            phase,
        };
        let before = self.pending.take().and_then(|p| p.named);
        let named = if why == Why::Name { heir } else { before };
        self.pending = Some(Pending {
            why,
            right: right.clone(),
            change,
            named,
            sent: now,
        });
        self.expect_answer(now);
        Some(self.request(Ask::Change(right, change)))
    }

    /// The request that waits, once more, when it has waited for `every`.
    pub(super) fn retry(&mut self, now: Time, every: Duration) -> Option<Request> {
        let guard = match self.pending.as_ref()?.why {
            Why::Name => Guard::FenceNaming,
            _ => Guard::FenceClaim,
        };
        let pending = self.pending.as_mut()?;
        if now.since(pending.sent) < every {
            return None;
        }
        pending.sent = now;
        let ask = Ask::Change(pending.right.clone(), pending.change);
        self.expect_answer(now);
        let ask = if self.guards.on(guard) {
            ask
        } else {
            Ask::Read
        };
        Some(self.request(ask))
    }

    pub(super) fn asked(&mut self, now: Time) {
        self.asked = Some(now);
        self.expect_answer(now);
    }

    pub(super) fn read_due(&self, now: Time, every: Duration) -> bool {
        self.asked.is_none_or(|asked| now.since(asked) >= every)
    }

    /// For how long nothing was answered although something was asked.
    pub(super) fn unanswered(&self, now: Time) -> Duration {
        self.unanswered
            .map_or(Duration::ZERO, |since| now.since(since))
    }

    /// Forgets a request that the won `running` has settled.
    pub(super) fn forget_pending(&mut self) {
        self.pending = None;
    }

    pub(super) fn learn(&mut self, now: Time, answer: &Answer) -> News {
        if answer.refusal == Some(Refusal::Damaged) {
            // It says nothing of the record, so the question stands.
            return News::None;
        }
        self.unanswered = None;
        let known = self.view.map_or(self.floor, |r| r.generation);
        let lower = |record| {
            // An answer to an old request may well be old; to a newer one it is an error.
            if answer.number >= self.fresh && known > Generation(0) {
                News::Lower { record }
            } else {
                News::None
            }
        };
        let Some(record) = answer.record else {
            return if known == Generation(0) {
                News::Lower { record: None }
            } else {
                lower(None)
            };
        };
        if record.machine != self.machine {
            return News::None;
        }
        if record.generation < known && self.guards.on(Guard::LowerIgnored) {
            return lower(Some(record));
        }
        if self.view.is_some_and(|r| r.generation == record.generation) {
            return self.same(answer);
        }
        self.view = Some(record);
        self.since = now;
        self.fresh = self.number + 1;
        let passed = |p: &mut Pending| record.generation > p.change.expected;
        let settled = self.pending.take_if(passed).map(|p| p.why);
        News::Record { settled }
    }

    /// The generation has not moved. That settles nothing, unless a guard is removed.
    fn same(&mut self, answer: &Answer) -> News {
        let Some(pending) = &self.pending else {
            return News::None;
        };
        let guard = match pending.why {
            Why::Name => Guard::FenceNaming,
            Why::LetGo => return News::None,
            Why::Claim | Why::Run | Why::HandBack => Guard::FenceClaim,
        };
        let read = answer.refusal.is_none_or(|r| r == Refusal::NotStored);
        if self.guards.on(guard) || !read {
            return News::None;
        }
        let why = pending.why;
        self.pending = None;
        News::GaveUp(why)
    }

    fn expect_answer(&mut self, now: Time) {
        self.unanswered.get_or_insert(now);
    }
}

#[cfg(test)]
impl Seat {
    /// Forgets what only notices depend on: numbers of requests, and how long nothing was answered.
    pub(super) fn rebase(&mut self, clocks: &crate::model::Clocks) {
        clocks.own(&mut self.since);
        if let Some(pending) = &mut self.pending {
            clocks.own(&mut pending.sent);
        }
        (self.number, self.fresh) = (0, 0);
        (self.asked, self.unanswered) = (None, None);
    }
}
