//! When an epoch ends: the control law.
//!
//! DESIGN: "at once when held output waits, but no earlier than the last commit and no earlier
//! than resume + cost·d/(1−d), where cost is the running mean of pause and first-write faults and
//! d the share of time the guest is to have (0.8). Nothing held: the interval stretches from 25
//! to 250 ms, to 1 s when idle."
//!
//! Four things are added. A guest that sleeps most of the time need not have four fifths of it: it has
//! half as much again as it uses, or its clients would wait for nothing. After its output such a guest is left alone for 250 ms
//! and not for 25, if it has no more. A guest that hardly sleeps although it has
//! them may have up to half of the last fifth as well: what it cannot answer in time is asked again, and it would fall further and
//! further behind. And output that is held waits for the guest's share no longer than the longest
//! interval of a guest that writes without output (250 ms): after a burst, such as the end of a
//! first full copy, the mean of what epochs cost is seconds, and four times that would be a
//! silence in which clients give up.
//!
//! For comparisons with systems that have epochs of one length (Remus), [`Limits::fixed`] sets all of that aside.

use std::time::Duration;

use thiserror::Error;

use crate::time::Time;

/// What the law may choose from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// d: the share of time that the guest is to have, between 0 and 1. One that hardly sleeps may have half of the
    /// rest, too.
    pub share: f64,
    /// The interval after output, when none is held.
    pub shortest: Duration,
    /// How far it stretches while the guest writes without output.
    pub longest: Duration,
    /// How far it stretches while the guest does nothing.
    pub idle: Duration,
    /// An epoch that changed at most this many pages is idle.
    pub idle_pages: u64,
    /// Every epoch has this length, or ends with the last one's commit where that comes later, whatever waits and whatever
    /// the guest does: the other limits then mean nothing.
    pub fixed: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            share: 0.8,
            shortest: Duration::from_millis(25),
            longest: Duration::from_millis(250),
            idle: Duration::from_secs(1),
            idle_pages: 128,
            fixed: None,
        }
    }
}

/// What is wrong with [`Limits`].
#[derive(Clone, Copy, Debug, PartialEq, Error)]
pub enum LimitsError {
    /// The share is not above 0 and at most 0.99.
    #[error("the guest's share of time is {0}; it must be above 0 and at most 0.99")]
    Share(f64),
    /// The intervals are out of order, or the shortest is zero.
    #[error("epoch intervals must grow: 0 < shortest ({0:?}) ≤ longest ({1:?}) ≤ idle ({2:?})")]
    Order(Duration, Duration, Duration),
    /// The fixed length is zero.
    #[error("epochs of a fixed length must take longer than no time")]
    Fixed,
}

/// What one epoch cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// From the kick of the vCPUs to their resume.
    pub pause: Duration,
    /// The guest's time lost to first-write faults in the epoch.
    pub faults: Duration,
    /// Processor time that was taken from the guest while it ran: encoding and sending, on a host
    /// that has no processor to spare for them.
    pub taken: Duration,
    /// How long the guest slept in it, by its own will.
    pub slept: Duration,
    /// Pages that it, or the epoch before, changed: not those that were only looked at.
    pub changed_pages: u64,
    /// Whether the epoch produced held output.
    pub held_output: bool,
}

/// The law's state. Tell it of each resume and commit; ask when the running epoch is to end.
#[derive(Clone, Debug)]
pub struct Control {
    limits: Limits,
    /// The running mean of pause, faults and what was taken, in nanoseconds.
    cost: f64,
    /// The running mean of the share of all time in which the guest was awake, between 0 and 1.
    awake: f64,
    /// The running mean of the share of the guest's own time in which it slept, between 0 and 1.
    asleep: f64,
    interval: Duration,
    resumed: Time,
    committed: bool,
}

/// Weight of the newest epoch in the running mean.
const NEWEST: f64 = 0.125;
/// How much more time than it uses a guest has. One that is kept from running is awake all the time
/// that it has, so that its share grows by this from epoch to epoch, up to what it is to have.
const ROOM: f64 = 1.5;
/// Weight in the means of use and sleep of an epoch in which the guest hardly slept. Until its share has followed, a guest whose clients
/// have just come is kept from answering, and what they send again meanwhile is more of the same.
const NEWEST_BUSY: f64 = 0.5;
/// It hardly slept in an epoch if it did for less than this share of its own time.
const BUSY: f64 = 0.05;
/// A guest that sleeps for less than this share of its own time, on the mean, may have more.
const RESTED: f64 = 0.1;
/// A guest that sleeps for this share of its own time or more, on the mean, is at leisure: what it still does after its output is little,
/// and an epoch for that alone would only make its next writes first ones again.
const LEISURE: f64 = 0.5;

impl Control {
    /// A law that has seen nothing yet; the guest runs since `now`.
    ///
    /// # Errors
    /// Says what is wrong with the limits.
    pub fn new(limits: Limits, now: Time) -> Result<Control, LimitsError> {
        if !(limits.share > 0.0 && limits.share <= 0.99) {
            return Err(LimitsError::Share(limits.share));
        }
        if limits.shortest.is_zero()
            || limits.shortest > limits.longest
            || limits.longest > limits.idle
        {
            return Err(LimitsError::Order(
                limits.shortest,
                limits.longest,
                limits.idle,
            ));
        }
        if limits.fixed.is_some_and(|fixed| fixed.is_zero()) {
            return Err(LimitsError::Fixed);
        }
        Ok(Control {
            limits,
            cost: 0.0,
            awake: 1.0,
            asleep: RESTED,
            interval: limits.shortest,
            resumed: now,
            committed: true,
        })
    }

    /// The guest runs again after an epoch that cost this. Its commit is still to come.
    pub fn resumed(&mut self, now: Time, cost: Cost) {
        let spent = (cost.pause + cost.faults + cost.taken).min(self.dearest());
        // Nanoseconds of a pause are far below 2^52.
        #[allow(clippy::cast_precision_loss)]
        let spent = spent.as_nanos() as f64;
        self.cost = if self.cost == 0.0 {
            spent
        } else {
            self.cost + NEWEST * (spent - self.cost)
        };
        let all = now.since(self.resumed);
        if !all.is_zero() {
            let ran = all.saturating_sub(cost.pause);
            let slept = cost.slept.min(ran);
            let awake = ran.saturating_sub(slept).as_secs_f64() / all.as_secs_f64();
            let busy = slept < ran.mul_f64(BUSY);
            let newest = if busy { NEWEST_BUSY } else { NEWEST };
            self.awake += newest * (awake - self.awake);
            if !ran.is_zero() {
                let asleep = slept.as_secs_f64() / ran.as_secs_f64();
                self.asleep += newest * (asleep - self.asleep);
            }
        }
        let idle = cost.changed_pages <= self.limits.idle_pages;
        let ceiling = if idle {
            self.limits.idle
        } else {
            self.limits.longest
        };
        self.interval = match cost.held_output {
            true if self.asleep >= LEISURE => self.limits.longest,
            true => self.limits.shortest,
            false => (self.interval * 2).min(ceiling),
        };
        self.resumed = now;
        self.committed = false;
    }

    /// The last sealed epoch was committed.
    pub fn committed(&mut self) {
        self.committed = true;
    }

    /// When the running epoch is to end, if nothing else happens: nothing while the last sealed
    /// epoch is uncommitted. `held` says whether held output waits in the running epoch.
    pub fn end(&self, held: bool) -> Option<Time> {
        if !self.committed {
            return None;
        }
        if let Some(fixed) = self.limits.fixed {
            return Some(self.resumed + fixed);
        }
        let earliest = self.resumed + self.owed();
        Some(if held {
            earliest
        } else {
            earliest.max(self.resumed + self.interval)
        })
    }

    /// The running mean of what an epoch costs.
    pub fn cost(&self) -> Duration {
        // The mean of durations is not negative and no longer than the longest of them.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Duration::from_nanos(self.cost as u64)
    }

    /// What an epoch counts for at most: more than what lets held output wait for the longest interval would only
    /// have those after it wait, too.
    fn dearest(&self) -> Duration {
        let share = self.limits.share;
        self.limits.longest.mul_f64((1.0 - share) / share)
    }

    /// The time that the guest must have had before its next pause.
    fn owed(&self) -> Duration {
        let lacking = 1.0 - (self.asleep / RESTED).min(1.0);
        let rest = 1.0 - self.limits.share;
        let most = self.limits.share + rest * 0.5 * lacking;
        let share = (self.awake * ROOM).min(most);
        let owed = self.cost().mul_f64(share / (1.0 - share));
        owed.min(self.limits.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn cost(pause: Duration, changed_pages: u64, held_output: bool) -> Cost {
        Cost {
            pause,
            faults: Duration::ZERO,
            taken: Duration::ZERO,
            slept: Duration::ZERO,
            changed_pages,
            held_output,
        }
    }

    fn control() -> Control {
        Control::new(Limits::default(), Time(0)).expect("the defaults are right")
    }

    #[test]
    fn held_output_ends_the_epoch_when_the_guest_has_had_its_share() {
        let mut control = control();
        control.resumed(Time(0), cost(MS, 100, true));
        assert_eq!(control.end(true), None, "no earlier than the last commit");
        control.committed();
        // d = 0.8: four times the cost belongs to the guest.
        let end = control.end(true).expect("committed");
        assert!(end >= Time(3_999_999) && end <= Time(4_000_001), "{end:?}");
        assert_eq!(control.end(false), Some(Time(25_000_000)));
    }

    #[test]
    fn a_fixed_length_is_kept_whatever_waits() {
        let limits = Limits {
            fixed: Some(40 * MS),
            ..Limits::default()
        };
        let mut control = Control::new(limits, Time(0)).expect("40 ms will do");
        for held in [true, false, true] {
            control.resumed(Time(0), cost(MS, 0, held));
            assert_eq!(control.end(held), None, "no earlier than the last commit");
            control.committed();
            assert_eq!(control.end(held), Some(Time(0) + 40 * MS));
        }
    }

    #[test]
    fn nothing_held_stretches_the_interval() {
        let mut control = control();
        let mut seen = Vec::new();
        for _ in 0..6 {
            control.resumed(Time(0), cost(MS / 10, 1000, false));
            control.committed();
            seen.push(
                control
                    .end(false)
                    .expect("committed")
                    .since(Time(0))
                    .as_millis(),
            );
        }
        assert_eq!(seen, [50, 100, 200, 250, 250, 250]);
        for _ in 0..3 {
            control.resumed(Time(0), cost(MS / 10, 0, false));
            control.committed();
        }
        assert_eq!(control.end(false), Some(Time(0) + Duration::from_secs(1)));
        control.resumed(Time(0), cost(MS / 10, 0, true));
        control.committed();
        assert_eq!(
            control.end(false),
            Some(Time(0) + 25 * MS),
            "output makes it short again"
        );
    }

    #[test]
    fn an_answer_of_a_guest_that_sleeps_takes_one_epoch_and_not_four() {
        let mut control = control();
        let mut now = Time(0);
        let mut after_output = |slept: Duration| {
            for _ in 0..40 {
                now = now + 100 * MS;
                let cost = Cost {
                    slept,
                    ..cost(MS, 500, true)
                };
                control.resumed(now, cost);
            }
            control.committed();
            let held = control.end(true).expect("committed").since(now);
            (control.end(false).expect("committed").since(now), held)
        };
        let (next, held) = after_output(90 * MS);
        assert_eq!(next, 250 * MS, "nothing is written meanwhile");
        assert!(held < 5 * MS, "the next answer waits for nothing: {held:?}");
        assert_eq!(after_output(20 * MS).0, 25 * MS, "it goes on writing");
    }

    /// A guest that never sleeps and has output all the time, on hosts whose pause costs ever more: it keeps its share, and half
    /// of the rest, as long as its output need not wait longer than the longest interval.
    #[test]
    fn the_guest_has_its_share_whatever_a_pause_costs() {
        for pause in [MS / 10, MS, 10 * MS, 60 * MS] {
            let mut control = control();
            let mut now = Time(0) + MS;
            let (mut ran, mut paused) = (Duration::ZERO, Duration::ZERO);
            for _ in 0..200 {
                now = now + pause;
                paused += pause;
                control.resumed(now, cost(pause, 500, true));
                control.committed();
                let end = control.end(true).expect("committed");
                ran += end.since(now);
                now = end;
            }
            let share = ran.as_secs_f64() / (ran + paused).as_secs_f64();
            let longest = Limits::default().longest.as_secs_f64();
            let expected = f64::min(0.9, longest / (longest + pause.as_secs_f64()));
            assert!(
                (share - expected).abs() < 0.01,
                "pause {pause:?}: share {share}"
            );
        }
    }

    /// Runs a guest that has output all the time and needs `demand` of all time to do its work, and
    /// gives the share of time that it had in the end.
    fn share_of(demand: f64, pause: Duration) -> f64 {
        let mut control = control();
        let (mut now, mut ran) = (Time(0) + MS, MS);
        let mut share = 0.0;
        for _ in 0..400 {
            let work = (ran + pause).mul_f64(demand).min(ran);
            let slept = ran.saturating_sub(work);
            now = now + pause;
            control.resumed(
                now,
                Cost {
                    slept,
                    ..cost(pause, 500, true)
                },
            );
            control.committed();
            // A commit takes its time, too.
            ran = control
                .end(true)
                .expect("committed")
                .since(now)
                .max(pause / 4);
            now = now + ran;
            share = ran.as_secs_f64() / (ran + pause).as_secs_f64();
        }
        share
    }

    /// Its clients came all at once: before they ask again (500 ms, RFC 3261's T1) it has what it needs.
    #[test]
    fn a_guest_that_wakes_up_soon_has_its_share() {
        let mut control = control();
        let pause = 4 * MS;
        let mut now = Time(0) + MS;
        let mut ran = MS;
        let mut epoch = |asleep: f64| {
            now = now + pause;
            let slept = ran.mul_f64(asleep);
            let cost = cost(pause, 500, true);
            control.resumed(now, Cost { slept, ..cost });
            control.committed();
            ran = control.end(true).expect("committed").since(now).max(pause);
            now = now + ran;
            (now, ran.as_secs_f64() / (ran + pause).as_secs_f64())
        };
        let mut calm = (Time(0), 1.0);
        for _ in 0..200 {
            calm = epoch(0.9);
        }
        assert!(calm.1 <= 0.51, "a calm guest has {}", calm.1);
        let mut awake = calm;
        while awake.1 < 0.79 {
            awake = epoch(0.0);
        }
        let took = awake.0.since(calm.0);
        assert!(took < 100 * MS, "it took {took:?}");
        while awake.1 < 0.88 {
            awake = epoch(0.0);
        }
        let took = awake.0.since(calm.0);
        assert!(took < 400 * MS, "it took {took:?} to have the most");
        for _ in 0..50 {
            awake = epoch(0.0);
        }
        assert!(awake.1 > 0.89, "in the end it had {}", awake.1);
    }

    #[test]
    fn a_guest_has_half_as_much_again_as_it_uses() {
        for (demand, share) in [
            (0.02, 0.2),
            (0.3, 0.45),
            (0.5, 0.75),
            (0.7, 0.8),
            (1.0, 0.9),
        ] {
            for pause in [MS / 10, 4 * MS, 20 * MS] {
                let had = share_of(demand, pause);
                assert!((had - share).abs() < 0.01, "{demand} {pause:?}: {had}");
            }
        }
    }

    /// A burst costs seconds an epoch. What is held then waits no longer than the longest interval.
    #[test]
    fn held_output_never_waits_for_seconds() {
        let mut control = control();
        for pause in [2000 * MS, 500 * MS, MS, MS] {
            control.resumed(Time(0), cost(pause, 50_000, true));
            control.committed();
            let end = control.end(true).expect("committed");
            assert!(end <= Time(0) + Limits::default().longest, "{end:?}");
        }
    }

    /// The end of a first full copy, for one.
    #[test]
    fn a_burst_is_soon_forgotten() {
        let mut control = control();
        for _ in 0..10 {
            control.resumed(Time(0), cost(2000 * MS, 50_000, true));
        }
        for _ in 0..16 {
            control.resumed(Time(0), cost(MS, 50, true));
        }
        control.committed();
        let end = control.end(true).expect("committed");
        assert!(end < Time(0) + 40 * MS, "{end:?}");
    }

    #[test]
    fn wrong_limits_are_refused() {
        let share = Limits {
            share: 1.0,
            ..Limits::default()
        };
        assert!(matches!(
            Control::new(share, Time(0)),
            Err(LimitsError::Share(_))
        ));
        let nan = Limits {
            share: f64::NAN,
            ..Limits::default()
        };
        assert!(Control::new(nan, Time(0)).is_err());
        let order = Limits {
            longest: MS,
            ..Limits::default()
        };
        assert!(matches!(
            Control::new(order, Time(0)),
            Err(LimitsError::Order(..))
        ));
        let fixed = Limits {
            fixed: Some(Duration::ZERO),
            ..Limits::default()
        };
        assert!(matches!(
            Control::new(fixed, Time(0)),
            Err(LimitsError::Fixed)
        ));
    }
}
