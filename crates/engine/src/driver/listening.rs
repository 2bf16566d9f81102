//! For how long a host takes in what comes for a guest that stands for a switchover.

use romulus_protocol::time::Time;
use std::time::Duration;

/// From one look for frames to the next: a request waits so long beside what the switchover takes anyway.
const LOOK: Duration = Duration::from_millis(1);
/// How long it goes on at most: a host that waits for longer to hear who runs the machine has other troubles, and what
/// came then is nobody's use any more.
const LONGEST: Duration = Duration::from_secs(2);

/// Whether it does, and until when.
#[derive(Debug, Default)]
pub(super) struct Listening {
    until: Option<Time>,
}

impl Listening {
    /// The guest stands since `now`.
    pub(super) fn begin(&mut self, now: Time) {
        self.until = Some(now + LONGEST);
    }

    /// It stands here no more, or has stood for too long.
    pub(super) fn end(&mut self) {
        self.until = None;
    }

    /// Whether it has begun and not been ended.
    pub(super) fn has_begun(&self) -> bool {
        self.until.is_some()
    }

    /// Whether the guest has stood for too long.
    pub(super) fn is_over(&self, now: Time) -> bool {
        self.until.is_none_or(|until| now >= until)
    }

    /// When to look next.
    pub(super) fn next(&self, now: Time) -> Option<Time> {
        self.has_begun().then(|| now + LOOK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = Time(1_000_000_000);

    #[test]
    fn it_looks_again_and_again_but_not_for_ever() {
        let mut listening = Listening::default();
        assert!(listening.is_over(START) && listening.next(START).is_none());
        listening.begin(START);
        let mut now = START;
        let mut looks = 0;
        while !listening.is_over(now) {
            looks += 1;
            assert!(looks < 100_000, "it never ends");
            now = listening.next(now).expect("it listens and never looks");
        }
        assert!(looks > 100, "{looks} looks");
        assert_eq!(now.since(START), LONGEST);
    }

    #[test]
    fn what_was_ended_does_not_look_and_may_begin_again() {
        let mut listening = Listening::default();
        listening.begin(START);
        listening.end();
        assert!(!listening.has_begun() && listening.is_over(START));
        assert_eq!(listening.next(START), None);
        listening.begin(START);
        assert!(listening.has_begun() && !listening.is_over(START));
    }
}
