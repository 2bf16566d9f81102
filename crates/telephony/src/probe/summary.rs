//! The media of all calls together, in a few figures.

use super::{Outcome, StreamOutcome};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// All streams of a run. Times are in milliseconds; `None` where nothing arrived.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Streams: two a call.
    pub streams: usize,
    /// Packets that were sent.
    pub sent: u64,
    /// Packets that never arrived.
    pub lost: u64,
    /// Packets that arrived too late to be played.
    pub late: u64,
    /// Packets that arrived after one that was sent later.
    pub reordered: u64,
    /// Arrivals of packets that had arrived before.
    pub duplicates: u64,
    /// Lost packets in percent.
    pub loss_percent: f64,
    /// The longest time without a packet in any stream.
    pub longest_gap_ms: f64,
    /// The longest time between two packets of a stream at the sender.
    pub sender_gap_ms: f64,
    /// One-way delay over all packets: the middle one.
    pub delay_p50_ms: Option<f64>,
    /// What 99 of 100 do not exceed.
    pub delay_p99_ms: Option<f64>,
    /// The longest.
    pub delay_max_ms: Option<f64>,
    /// The mean of the streams' jitter.
    pub jitter_ms: f64,
    /// The largest jitter at any moment of any stream.
    pub jitter_max_ms: f64,
    /// The worst stream's mean opinion score.
    pub mos_min: Option<f64>,
    /// The mean of the streams' scores.
    pub mos_mean: Option<f64>,
}

impl Summary {
    /// Over all streams of a run.
    pub fn of(outcome: &Outcome) -> Self {
        Self::over(outcome.streams())
    }

    /// Over some streams.
    pub fn over<'a>(streams: impl Iterator<Item = &'a StreamOutcome>) -> Self {
        let mut summary = Self::default();
        let mut delays: Vec<Duration> = Vec::new();
        let (mut jitter, mut mos) = (0.0, 0.0);
        for stream in streams {
            let report = &stream.report;
            summary.streams += 1;
            summary.sent += u64::from(report.sent);
            summary.lost += u64::from(report.lost);
            summary.late += u64::from(report.late);
            summary.reordered += u64::from(report.reordered);
            summary.duplicates += u64::from(report.duplicates);
            summary.longest_gap_ms = summary.longest_gap_ms.max(report.longest_gap_ms);
            summary.sender_gap_ms = summary.sender_gap_ms.max(report.sender_gap_ms);
            summary.jitter_max_ms = summary.jitter_max_ms.max(report.jitter_max_ms);
            jitter += report.jitter_ms;
            mos += report.mos;
            summary.mos_min = Some(
                summary
                    .mos_min
                    .map_or(report.mos, |min| min.min(report.mos)),
            );
            let times = stream.account.times();
            delays.extend(times.map(|(sent, arrived)| arrived.saturating_sub(sent)));
        }
        delays.sort_unstable();
        let count = summary.streams;
        let delay = |percent: usize| {
            let rank = (delays.len() * percent).div_ceil(100).max(1);
            delays.get(rank - 1).map(|delay| delay.as_secs_f64() * 1e3)
        };
        summary.delay_p50_ms = delay(50);
        summary.delay_p99_ms = delay(99);
        summary.delay_max_ms = delay(100);
        summary.loss_percent = share(summary.lost, summary.sent) * 100.0;
        if count > 0 {
            let count = u32::try_from(count).map_or(f64::from(u32::MAX), f64::from);
            summary.jitter_ms = jitter / count;
            summary.mos_mean = Some(mos / count);
        }
        summary
    }

    /// A line for people.
    pub fn line(&self) -> String {
        let ms = |value: Option<f64>| value.map_or_else(|| "–".into(), |ms| format!("{ms:.1}"));
        let score =
            |value: Option<f64>| value.map_or_else(|| "–".into(), |mos| format!("{mos:.2}"));
        format!(
            "{} streams: {} of {} packets lost ({:.2} %), {} late, {} reordered, {} twice; longest gap {:.0} ms \
             (sender {:.0} ms); delay p50 {} ms, p99 {} ms, max {} ms; jitter {:.2} ms; MOS {} (worst {})",
            self.streams,
            self.lost,
            self.sent,
            self.loss_percent,
            self.late,
            self.reordered,
            self.duplicates,
            self.longest_gap_ms,
            self.sender_gap_ms,
            ms(self.delay_p50_ms),
            ms(self.delay_p99_ms),
            ms(self.delay_max_ms),
            self.jitter_ms,
            score(self.mos_mean),
            score(self.mos_min),
        )
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "packets of a run are far fewer than 2⁵²"
)]
fn share(part: u64, all: u64) -> f64 {
    if all == 0 {
        0.0
    } else {
        part as f64 / all as f64
    }
}

#[cfg(test)]
mod tests {
    use super::Summary;
    use crate::{
        media::{Account, Header, INTERVAL, Mark, Playout, SAMPLES, Sent},
        probe::StreamOutcome,
    };
    use std::time::Duration;

    fn packet(index: u32) -> (Header, Mark) {
        let mark = Mark {
            run: 1,
            stream: 0,
            index,
            sent: INTERVAL * index,
        };
        let header = Header {
            marker: false,
            payload_type: 0,
            sequence: (index & 0xffff) as u16,
            timestamp: index * SAMPLES,
            ssrc: 1,
        };
        (header, mark)
    }

    /// A stream of 100 packets, each `delay` ms on its way; the first `lost` of its second half do not arrive.
    fn stream(delay: u64, lost: u32) -> StreamOutcome {
        let mut account = Account::default();
        for index in (0..50).chain(50 + lost..100_u32) {
            let (header, mark) = packet(index);
            account.arrived(mark.sent + Duration::from_millis(delay), &header, &mark);
        }
        let sent = Sent {
            packets: 100,
            first: Duration::ZERO,
            last: INTERVAL * 99,
            longest_gap: INTERVAL,
        };
        StreamOutcome {
            report: account.report(sent, Playout::default()),
            account,
            sent,
        }
    }

    #[test]
    fn figures_are_over_all_packets_and_the_worst_stream() {
        let streams = [stream(5, 0), stream(15, 20)];
        let summary = Summary::over(streams.iter());
        assert_eq!((summary.streams, summary.sent, summary.lost), (2, 200, 20));
        assert!((summary.loss_percent - 10.0).abs() < 1e-9);
        assert!((summary.longest_gap_ms - 420.0).abs() < 1e-6);
        assert!((summary.sender_gap_ms - 20.0).abs() < 1e-6);
        assert_eq!(summary.delay_p50_ms, Some(5.0));
        assert_eq!(summary.delay_p99_ms, Some(15.0));
        let (worst, mean) = (summary.mos_min.unwrap(), summary.mos_mean.unwrap());
        assert!((worst - streams[1].report.mos).abs() < 1e-9 && worst < mean);
        assert_eq!(Summary::over([].iter()).mos_min, None);
    }

    #[test]
    fn media_flows_after_a_moment_if_at_least_half_of_it_arrives() {
        let after = |stream: StreamOutcome, ms| stream.flowed_since(Duration::from_millis(ms));
        assert!(after(stream(5, 20), 1000));
        assert!(!after(stream(5, 30), 1000));
        // Nothing was sent after the end.
        assert!(!after(stream(5, 0), 1980));
        // A stream that began after the moment, and of which all arrived.
        let mut late = stream(5, 0);
        late.sent.first = INTERVAL * 80;
        late.account = Account::default();
        for index in 80..100 {
            let (header, mark) = packet(index);
            late.account.arrived(mark.sent, &header, &mark);
        }
        assert!(late.flowed_since(INTERVAL * 10));
    }
}
