//! What one call does, and when. Pure.

use std::time::Duration;

/// How long after the last packets of media a call is hung up.
pub(super) const DRAIN: Duration = Duration::from_millis(500);

/// A point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// So long after all callees have registered.
    Start(Duration),
    /// So long after the event; not before there was one.
    Event(Duration),
}

impl Moment {
    /// By the probe's clock; `None` where it is not known yet.
    pub(super) fn at(self, start: Duration, event: Option<Duration>) -> Option<Duration> {
        match self {
            Self::Start(after) => Some(start + after),
            Self::Event(after) => Some(event? + after),
        }
    }
}

/// When a callee answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// After it has rung for so long.
    After(Duration),
    /// At a moment; if it does not ring yet, as soon as it does.
    At(Moment),
    /// Not at all.
    Never,
}

/// One end of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Who calls.
    Caller,
    /// Who is called.
    Callee,
}

/// How a call is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// One end hangs up; if the call is not answered by then, as soon as it is.
    HangUp {
        /// When.
        at: Moment,
        /// Which end.
        by: Side,
    },
    /// The caller wants no answer any more.
    Cancel {
        /// When; if it does not ring yet, as soon as it does.
        at: Moment,
    },
}

/// What one call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Script {
    /// When the caller calls.
    pub invite: Moment,
    /// When the callee answers.
    pub answer: Answer,
    /// When the caller offers the same again, in the middle of the call.
    pub reinvite: Option<Moment>,
    /// How it ends.
    pub end: End,
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The caller calls.
    Invite,
    /// The callee answers.
    Answer,
    /// The caller cancels.
    Cancel,
    /// The caller offers again.
    Reinvite,
    /// Both ends stop sending media.
    Hush,
    /// An end hangs up.
    HangUp(Side),
}

/// What has been done, or has happened, of a script.
#[allow(
    clippy::struct_excessive_bools,
    reason = "facts that hold or not, each by itself"
)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Course {
    /// It was called.
    pub(super) invited: bool,
    /// Since when the callee rings.
    pub(super) rings: Option<Duration>,
    /// The caller knows that it rings.
    pub(super) heard: bool,
    /// The callee has answered.
    pub(super) answered: bool,
    /// The caller has cancelled.
    pub(super) cancelled: bool,
    /// Both ends have the call.
    pub(super) up: bool,
    /// The caller has offered again.
    pub(super) changed: bool,
    /// Since when both ends send nothing.
    pub(super) hushed: Option<Duration>,
    /// An end has hung up.
    pub(super) hung_up: bool,
}

impl Course {
    /// The next step and when it is due; `None` while it waits for something else than time.
    pub(super) fn next(
        &self,
        script: &Script,
        start: Duration,
        event: Option<Duration>,
    ) -> Option<(Duration, Step)> {
        let at = |moment: Moment| moment.at(start, event);
        if !self.invited {
            return Some((at(script.invite)?, Step::Invite));
        }
        let answer = self.rings.filter(|_| !self.answered).and_then(|rings| {
            let due = match script.answer {
                Answer::After(time) => rings + time,
                Answer::At(moment) => at(moment)?.max(rings),
                Answer::Never => return None,
            };
            Some((due, Step::Answer))
        });
        let change = script
            .reinvite
            .filter(|_| self.up && !self.changed && self.hushed.is_none())
            .and_then(|moment| Some((at(moment)?, Step::Reinvite)));
        let end = match script.end {
            End::Cancel { at: moment } => (self.heard && !self.answered && !self.cancelled)
                .then(|| Some((at(moment)?, Step::Cancel))),
            End::HangUp { at: moment, by } => {
                (self.up && !self.hung_up).then(|| match self.hushed {
                    None => Some((at(moment)?, Step::Hush)),
                    Some(hushed) => Some((hushed + DRAIN, Step::HangUp(by))),
                })
            }
        };
        [answer, change, end.flatten()]
            .into_iter()
            .flatten()
            .min_by_key(|(due, _)| *due)
    }
}

#[cfg(test)]
mod tests {
    use super::{Answer, Course, DRAIN, End, Moment, Script, Side, Step};
    use std::time::Duration;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const SCRIPT: Script = Script {
        invite: Moment::Start(s(1)),
        answer: Answer::After(s(2)),
        reinvite: Some(Moment::Event(s(1))),
        end: End::HangUp {
            at: Moment::Event(s(5)),
            by: Side::Callee,
        },
    };

    #[test]
    fn steps_come_in_order_and_wait_for_what_they_need() {
        let mut course = Course::default();
        let next = |course: &Course, event| course.next(&SCRIPT, s(10), event);
        assert_eq!(next(&course, None), Some((s(11), Step::Invite)));
        course.invited = true;
        assert_eq!(next(&course, Some(s(12))), None);
        course.rings = Some(s(20));
        assert_eq!(next(&course, None), Some((s(22), Step::Answer)));
        course.answered = true;
        assert_eq!(next(&course, Some(s(12))), None, "it is not up yet");
        course.up = true;
        assert_eq!(next(&course, None), None, "there was no event");
        let event = Some(s(30));
        assert_eq!(next(&course, event), Some((s(31), Step::Reinvite)));
        course.changed = true;
        assert_eq!(next(&course, event), Some((s(35), Step::Hush)));
        course.hushed = Some(s(36));
        let bye = Step::HangUp(Side::Callee);
        assert_eq!(next(&course, event), Some((s(36) + DRAIN, bye)));
        course.hung_up = true;
        assert_eq!(next(&course, event), None);
    }

    #[test]
    fn a_call_that_rings_at_the_event_is_answered_or_cancelled_after_it() {
        let mut script = Script {
            answer: Answer::At(Moment::Event(s(2))),
            ..SCRIPT
        };
        let mut course = Course {
            invited: true,
            rings: Some(s(40)),
            ..Course::default()
        };
        assert_eq!(course.next(&script, s(0), None), None);
        assert_eq!(
            course.next(&script, s(0), Some(s(30))),
            Some((s(40), Step::Answer)),
            "not before it rings"
        );
        script.answer = Answer::Never;
        script.end = End::Cancel {
            at: Moment::Event(s(2)),
        };
        assert_eq!(course.next(&script, s(0), Some(s(30))), None);
        course.heard = true;
        assert_eq!(
            course.next(&script, s(0), Some(s(30))),
            Some((s(32), Step::Cancel))
        );
        course.cancelled = true;
        assert_eq!(course.next(&script, s(0), Some(s(30))), None);
    }
}
