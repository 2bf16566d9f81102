//! What became of one stream, from the packets that arrived. Pure: the time of each arrival is given.

use super::{CLOCK, Concealment, Conditions, Header, INTERVAL, Mark, mos, rating};
use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};

/// More packets than a stream may have, two hours of them: an index beyond is no packet of ours, and must not take memory.
const MOST: u32 = 2 * 3600 * 50;

/// When a packet was sent and when it first arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Times {
    sent: Duration,
    arrived: Duration,
}

/// Interarrival jitter (RFC 3550, section 6.4.1 and appendix A.8) over packets in order of arrival, in ms.
#[derive(Debug, Clone, Copy, Default)]
struct Jitter {
    last: Option<(Duration, u32)>,
    now: f64,
    max: f64,
    sum: f64,
    steps: u32,
}

impl Jitter {
    fn step(&mut self, at: Duration, timestamp: u32) {
        if let Some((last_at, last_timestamp)) = self.last {
            // Timestamps wrap, and one that is late has a smaller one.
            let ticks = timestamp.wrapping_sub(last_timestamp).cast_signed();
            let nominal = f64::from(ticks) / CLOCK;
            let real = at.as_secs_f64() - last_at.as_secs_f64();
            let difference = (real - nominal).abs() * 1e3;
            self.now += (difference - self.now) / 16.0;
            self.max = self.max.max(self.now);
            self.sum += self.now;
            self.steps += 1;
        }
        self.last = Some((at, timestamp));
    }

    fn mean(&self) -> f64 {
        if self.steps == 0 {
            0.0
        } else {
            self.sum / f64::from(self.steps)
        }
    }
}

/// The receiving end's book of one stream.
#[derive(Clone, Default)]
pub struct Account {
    /// By index; `None` for one that has not arrived.
    packets: Vec<Option<Times>>,
    received: u32,
    duplicates: u32,
    reordered: u32,
    restarts: u32,
    ssrc: Option<u32>,
    jitter: Jitter,
    /// By how much the header's sequence number is ahead of the packet's index.
    ahead: Option<u16>,
    gaps: Gaps,
}

impl fmt::Debug for Account {
    /// Without the packets: they are thousands.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Account")
            .field("received", &self.received)
            .field("duplicates", &self.duplicates)
            .field("reordered", &self.reordered)
            .finish_non_exhaustive()
    }
}

/// The longest time without a new packet.
#[derive(Debug, Clone, Copy, Default)]
struct Gaps {
    last: Option<Duration>,
    longest: Duration,
    began: Duration,
}

impl Gaps {
    fn arrived(&mut self, at: Duration) {
        if let Some(last) = self.last {
            self.between(last, at);
        }
        self.last = self.last.max(Some(at));
    }

    fn between(&mut self, from: Duration, to: Duration) {
        let gap = to.saturating_sub(from);
        if gap > self.longest {
            self.longest = gap;
            self.began = from;
        }
    }
}

/// What the sending end says of the stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// Packets that were sent.
    pub packets: u32,
    /// When the first one was sent.
    pub first: Duration,
    /// When the last one was sent.
    pub last: Duration,
    /// The longest time from one to the next: what of a receiver's gap is the sender's own doing.
    pub longest_gap: Duration,
}

/// What the listener is assumed to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Playout {
    /// How much later than the middle packet one may come and still be played. What comes later is lost to the ear.
    pub buffer: Duration,
    /// What covers lost packets.
    pub concealment: Concealment,
}

impl Default for Playout {
    /// 60 ms, as telephones have, with the concealment of G.711's appendix I.
    fn default() -> Self {
        Self {
            buffer: Duration::from_millis(60),
            concealment: Concealment::Plc,
        }
    }
}

/// What became of a stream. Times are in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The number in the header of the last packet that arrived: what a capture knows the stream by.
    pub ssrc: Option<u32>,
    /// Packets that were sent.
    pub sent: u32,
    /// Packets that arrived, each counted as often as it did.
    pub received: u32,
    /// Packets that never arrived.
    pub lost: u32,
    /// Packets that arrived after one that was sent later.
    pub reordered: u32,
    /// Arrivals of packets that had arrived before.
    pub duplicates: u32,
    /// How often the header's sequence numbers began anew, or jumped.
    pub restarts: u32,
    /// The longest time without a new packet, its beginning and the stream's end included.
    pub longest_gap_ms: f64,
    /// When that began, by the probe's clock, in seconds.
    pub gap_began: f64,
    /// The longest time between two packets at the sender: it is part of the above.
    pub sender_gap_ms: f64,
    /// One-way delay: the middle one; `None` if nothing arrived, as for the two others.
    pub delay_p50_ms: Option<f64>,
    /// One-way delay that 99 of 100 packets do not exceed.
    pub delay_p99_ms: Option<f64>,
    /// The longest one-way delay.
    pub delay_max_ms: Option<f64>,
    /// RFC 3550's jitter, the mean of its values after each packet.
    pub jitter_ms: f64,
    /// The largest of them.
    pub jitter_max_ms: f64,
    /// Packets that arrived too late to be played ([`Playout`]).
    pub late: u32,
    /// The E-model's rating: what is not played counts as lost, and the buffer as delay.
    pub r: f64,
    /// The mean opinion score for it.
    pub mos: f64,
}

impl Account {
    /// Books the arrival of a packet. Gives whether its mark can be one of this stream's.
    pub fn arrived(&mut self, at: Duration, header: &Header, mark: &Mark) -> bool {
        if mark.index >= MOST {
            return false;
        }
        self.received += 1;
        self.ssrc = Some(header.ssrc);
        self.jitter.step(at, header.timestamp);
        let Ok(index) = usize::try_from(mark.index) else {
            return false;
        };
        // The low half: sequence numbers have 16 bits.
        let ahead = header.sequence.wrapping_sub((mark.index & 0xffff) as u16);
        if self.ahead.is_some_and(|before| before != ahead) {
            self.restarts += 1;
        }
        self.ahead = Some(ahead);
        if index >= self.packets.len() {
            self.packets.resize(index + 1, None);
        } else if self.packets[index].is_some() {
            self.duplicates += 1;
            return true;
        } else {
            self.reordered += 1;
        }
        self.packets[index] = Some(Times {
            sent: mark.sent,
            arrived: at,
        });
        self.gaps.arrived(at);
        true
    }

    /// When each packet that arrived was sent and when it arrived, in the order in which they were sent.
    pub fn times(&self) -> impl Iterator<Item = (Duration, Duration)> {
        self.packets
            .iter()
            .flatten()
            .map(|times| (times.sent, times.arrived))
    }

    /// How many packets arrived that were sent at `moment` or later.
    pub fn arrived_since(&self, moment: Duration) -> usize {
        self.times().filter(|(sent, _)| *sent >= moment).count()
    }

    /// Takes stock.
    pub fn report(&self, sent: Sent, playout: Playout) -> Report {
        let mut delays: Vec<Duration> = self
            .times()
            .map(|(sent, arrived)| arrived.saturating_sub(sent))
            .collect();
        delays.sort_unstable();
        let middle = percentile(&delays, 50);
        // A sender that ended early, and packets of which it does not know, are none that were lost.
        let all = sent
            .packets
            .max(u32::try_from(self.packets.len()).unwrap_or(u32::MAX));
        let different = u32::try_from(delays.len()).unwrap_or(u32::MAX);
        let played = self.played(all, middle.unwrap_or_default() + playout.buffer);
        let late = different - played.count;
        let loss = if all == 0 {
            // Nothing was sent, so that nothing was heard.
            1.0
        } else {
            1.0 - f64::from(played.count) / f64::from(all)
        };
        let r = rating(Conditions {
            one_way: INTERVAL + middle.unwrap_or_default() + playout.buffer,
            loss,
            burst_ratio: played.mean_run * (1.0 - loss),
            concealment: playout.concealment,
        });
        let mut gaps = self.gaps;
        if sent.packets > 0 {
            let first = self.times().map(|(_, arrived)| arrived).min();
            gaps.between(sent.first, first.unwrap_or(sent.last));
            gaps.between(self.gaps.last.unwrap_or(sent.first), sent.last);
        }
        Report {
            ssrc: self.ssrc,
            sent: sent.packets,
            received: self.received,
            lost: all - different,
            reordered: self.reordered,
            duplicates: self.duplicates,
            restarts: self.restarts,
            longest_gap_ms: ms(gaps.longest),
            gap_began: gaps.began.as_secs_f64(),
            sender_gap_ms: ms(sent.longest_gap),
            delay_p50_ms: middle.map(ms),
            delay_p99_ms: percentile(&delays, 99).map(ms),
            delay_max_ms: delays.last().copied().map(ms),
            jitter_ms: self.jitter.mean(),
            jitter_max_ms: self.jitter.max,
            late,
            r,
            mos: mos(r),
        }
    }

    /// Which of `all` packets came within `limit`.
    fn played(&self, all: u32, limit: Duration) -> Played {
        let (mut count, mut missing, mut runs, mut run) = (0_u32, 0_u32, 0_u32, false);
        for index in 0..all {
            let times = usize::try_from(index)
                .ok()
                .and_then(|index| self.packets.get(index).copied().flatten());
            if times.is_some_and(|times| times.arrived.saturating_sub(times.sent) <= limit) {
                count += 1;
                run = false;
            } else {
                missing += 1;
                runs += u32::from(!run);
                run = true;
            }
        }
        let mean_run = if runs == 0 {
            1.0
        } else {
            f64::from(missing) / f64::from(runs)
        };
        Played { count, mean_run }
    }
}

struct Played {
    /// How many.
    count: u32,
    /// The mean length of runs of others.
    mean_run: f64,
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The smallest value that at least `percent` of all do not exceed (nearest rank).
pub(super) fn percentile<T: Copy>(sorted: &[T], percent: usize) -> Option<T> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
mod tests;
