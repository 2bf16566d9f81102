//! When packets are due, and how late the sender itself was. Pure.

use super::{INTERVAL, Sent, account::percentile};
use serde::{Deserialize, Serialize};
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    time::Duration,
};

/// A stream that is being sent.
#[derive(Debug, Clone, Copy, Default)]
struct Stream {
    sent: Sent,
    ended: bool,
}

/// Deadlines of all streams. Each stream's are fixed when it begins, so that a late packet delays no other: what was
/// missed is caught up, as a telephone does.
#[derive(Debug, Default)]
pub struct Pacing {
    due: BinaryHeap<Reverse<(Duration, u32)>>,
    streams: HashMap<u32, Stream>,
    /// How late each packet was, in ns.
    late: Vec<u32>,
}

/// How late the sender was: what of the measured delays and gaps is not the network's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct PacingReport {
    /// Packets that were sent.
    pub packets: usize,
    /// The middle one, in ms.
    pub p50_ms: f64,
    /// What 99 of 100 do not exceed, in ms.
    pub p99_ms: f64,
    /// The worst, in ms.
    pub max_ms: f64,
}

impl Pacing {
    /// Lets a stream begin: its first packet is due within an interval from `now`, at a point of its own, so that the
    /// packets of many streams do not leave at once.
    pub fn begin(&mut self, stream: u32, now: Duration) {
        if self.streams.contains_key(&stream) {
            return;
        }
        self.streams.insert(stream, Stream::default());
        // The golden ratio spreads any number of points evenly.
        let phase = (f64::from(stream) * 0.618_033_988_749_895).fract();
        self.due
            .push(Reverse((now + INTERVAL.mul_f64(phase), stream)));
    }

    /// Lets a stream end: no more packets of it.
    pub fn end(&mut self, stream: u32) {
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.ended = true;
        }
    }

    /// When the next packet is due.
    pub fn next(&self) -> Option<Duration> {
        self.due.peek().map(|Reverse((due, _))| *due)
    }

    /// A packet that is due: its stream, and which packet of the stream it is.
    pub fn take(&mut self, now: Duration) -> Option<(u32, u32)> {
        while let Some(Reverse((due, number))) = self.due.peek().copied() {
            if due > now {
                return None;
            }
            self.due.pop();
            let Some(stream) = self.streams.get_mut(&number).filter(|s| !s.ended) else {
                continue;
            };
            self.due.push(Reverse((due + INTERVAL, number)));
            let late = now.saturating_sub(due).as_nanos();
            self.late.push(u32::try_from(late).unwrap_or(u32::MAX));
            let sent = &mut stream.sent;
            if sent.packets == 0 {
                sent.first = now;
            } else {
                sent.longest_gap = sent.longest_gap.max(now.saturating_sub(sent.last));
            }
            sent.last = now;
            sent.packets += 1;
            return Some((number, sent.packets - 1));
        }
        None
    }

    /// What was sent of a stream.
    pub fn sent(&self, stream: u32) -> Sent {
        self.streams
            .get(&stream)
            .map_or_else(Sent::default, |stream| stream.sent)
    }

    /// How late packets were.
    pub fn report(&self) -> PacingReport {
        let mut late = self.late.clone();
        late.sort_unstable();
        let ms = |nanoseconds: Option<u32>| f64::from(nanoseconds.unwrap_or(0)) / 1e6;
        PacingReport {
            packets: late.len(),
            p50_ms: ms(percentile(&late, 50)),
            p99_ms: ms(percentile(&late, 99)),
            max_ms: ms(late.last().copied()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Pacing;
    use crate::media::INTERVAL;
    use std::time::Duration;

    const fn micros(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    #[test]
    fn deadlines_are_absolute() {
        let mut pacing = Pacing::default();
        pacing.begin(0, micros(1000));
        assert_eq!(pacing.take(micros(999)), None);
        // The first one 3 ms late, the second on time all the same.
        assert_eq!(pacing.take(micros(4000)), Some((0, 0)));
        assert_eq!(pacing.next(), Some(micros(21_000)));
        assert_eq!(pacing.take(micros(21_000)), Some((0, 1)));
        let report = pacing.report();
        assert!((report.max_ms - 3.0).abs() < 1e-9 && report.p50_ms == 0.0);
        assert_eq!(pacing.sent(0).longest_gap, micros(17_000));
    }

    #[test]
    fn what_was_missed_is_caught_up() {
        let mut pacing = Pacing::default();
        pacing.begin(0, Duration::ZERO);
        let now = INTERVAL * 5;
        let taken: Vec<_> = std::iter::from_fn(|| pacing.take(now)).collect();
        assert_eq!(taken, (0..6).map(|n| (0, n)).collect::<Vec<_>>());
    }

    #[test]
    fn streams_are_spread_over_the_interval() {
        let mut pacing = Pacing::default();
        for stream in 0..100 {
            pacing.begin(stream, Duration::ZERO);
        }
        let mut dues = Vec::new();
        for _ in 0..100 {
            let due = pacing.next().unwrap();
            assert!(pacing.take(due).is_some());
            dues.push(due);
        }
        let widest = dues
            .windows(2)
            .map(|pair| pair[1].saturating_sub(pair[0]))
            .max();
        assert!(dues[99] < INTERVAL && widest.unwrap() < micros(500));
    }

    #[test]
    fn a_stream_that_ended_sends_no_more_and_begins_only_once() {
        let mut pacing = Pacing::default();
        pacing.begin(0, Duration::ZERO);
        pacing.begin(0, Duration::ZERO);
        assert_eq!(pacing.take(Duration::ZERO), Some((0, 0)));
        assert_eq!(pacing.take(Duration::ZERO), None);
        pacing.end(0);
        assert_eq!(pacing.take(INTERVAL * 9), None);
        assert_eq!(pacing.next(), None);
        assert_eq!(pacing.sent(0).packets, 1);
    }
}
