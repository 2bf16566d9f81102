//! Streams with known faults.

use super::{Account, MOST, Playout, Report, Sent};
use crate::media::{Header, INTERVAL, Mark, SAMPLES};
use proptest::prelude::*;
use std::time::Duration;

const fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn packet(index: u32) -> (Header, Mark) {
    let header = Header {
        marker: index == 0,
        payload_type: 0,
        sequence: (index & 0xffff) as u16,
        timestamp: index.wrapping_mul(SAMPLES),
        ssrc: 1,
    };
    let mark = Mark {
        run: 1,
        stream: 0,
        index,
        sent: INTERVAL * index,
    };
    (header, mark)
}

/// Books packets, each with its delay in ms.
fn account(arrivals: &[(u32, u64)]) -> Account {
    let mut account = Account::default();
    for (index, delay) in arrivals {
        let (header, mark) = packet(*index);
        assert!(account.arrived(mark.sent + millis(*delay), &header, &mark));
    }
    account
}

fn sent(packets: u32) -> Sent {
    Sent {
        packets,
        first: Duration::ZERO,
        last: INTERVAL * packets.saturating_sub(1),
        longest_gap: INTERVAL,
    }
}

fn report(packets: u32, arrivals: &[(u32, u64)]) -> Report {
    account(arrivals).report(sent(packets), Playout::default())
}

fn near(value: f64, wanted: f64) {
    assert!((value - wanted).abs() < 1e-6, "{value}, not {wanted}");
}

#[test]
fn an_even_stream_has_nothing_wrong() {
    let arrivals: Vec<_> = (0..500).map(|index| (index, 5)).collect();
    let report = report(500, &arrivals);
    assert_eq!(
        (report.received, report.lost, report.reordered, report.late),
        (500, 0, 0, 0)
    );
    assert_eq!((report.duplicates, report.restarts), (0, 0));
    near(report.longest_gap_ms, 20.0);
    near(report.jitter_ms, 0.0);
    near(report.delay_max_ms.unwrap(), 5.0);
    assert!(report.mos > 4.3, "{report:?}");
}

#[test]
fn each_fault_is_counted_as_what_it_is() {
    // 3 lost, 5 after 6, 7 twice, and the last one lost.
    let report = report(
        10,
        &[
            (0, 5),
            (1, 5),
            (2, 5),
            (4, 5),
            (6, 5),
            (5, 30),
            (7, 15),
            (7, 16),
            (8, 5),
        ],
    );
    assert_eq!((report.sent, report.received, report.lost), (10, 9, 2));
    assert_eq!(
        (report.reordered, report.duplicates, report.late),
        (1, 1, 0)
    );
}

#[test]
fn a_gap_is_seen_at_the_beginning_and_at_the_end_too() {
    let middle = report(100, &[(0, 0), (1, 0), (20, 0), (99, 0)]);
    near(middle.longest_gap_ms, 79.0 * 20.0);
    near(middle.gap_began, 0.4);
    let early = report(100, &(60..100).map(|n| (n, 0)).collect::<Vec<_>>());
    near(early.longest_gap_ms, 60.0 * 20.0);
    let late = report(100, &(0..60).map(|n| (n, 0)).collect::<Vec<_>>());
    near(late.longest_gap_ms, 40.0 * 20.0);
    near(late.gap_began, 59.0 * 0.02);
    near(report(100, &[]).longest_gap_ms, 99.0 * 20.0);
}

#[test]
fn what_froze_comes_late_and_is_lost_to_the_ear() {
    // Half a second in which packets wait and then come all at once: nothing is lost, the worst waited 500 ms.
    let arrivals: Vec<_> = (0..500_u32)
        .map(|n| match n {
            100..=124 => (n, 5 + 20 * u64::from(125 - n)),
            _ => (n, 5),
        })
        .collect();
    let report = report(500, &arrivals);
    assert_eq!(report.lost, 0);
    near(report.longest_gap_ms, 520.0);
    near(report.delay_max_ms.unwrap(), 505.0);
    // Those that waited for 60 ms or less are played.
    assert_eq!(report.late, 22);
    assert!(report.mos < 4.3);
}

#[test]
fn jitter_is_that_of_the_rfc() {
    // One packet 16 ms late: |D| is 16 there and back.
    let mut arrivals: Vec<_> = (0..4).map(|n| (n, 0)).collect();
    arrivals[2].1 = 16;
    let report = report(4, &arrivals);
    let second = 1.0 + (16.0 - 1.0) / 16.0;
    near(report.jitter_max_ms, second);
    near(report.jitter_ms, (0.0 + 1.0 + second) / 3.0);
}

#[test]
fn numbers_that_begin_anew_are_seen_and_change_nothing_else() {
    let mut account = Account::default();
    for index in 0..20 {
        let (mut header, mark) = packet(index);
        if index >= 10 {
            header.sequence = header.sequence.wrapping_add(4711);
        }
        account.arrived(mark.sent, &header, &mark);
    }
    let report = account.report(sent(20), Playout::default());
    assert_eq!((report.restarts, report.lost), (1, 0));
}

#[test]
fn media_after_a_moment_is_what_was_sent_after_it() {
    let account = account(&[(0, 100), (1, 100), (5, 100), (6, 100)]);
    assert_eq!(account.arrived_since(millis(100)), 2);
    assert_eq!(account.arrived_since(millis(121)), 0);
}

#[test]
fn an_index_that_cannot_be_takes_no_memory() {
    let mut account = Account::default();
    for index in [MOST, u32::MAX] {
        let (header, mark) = packet(index);
        assert!(!account.arrived(Duration::ZERO, &header, &mark));
    }
    assert_eq!(account.packets.capacity(), 0);
}

#[test]
fn nothing_sent_is_nothing_heard() {
    let report = report(0, &[]);
    assert_eq!((report.lost, report.delay_p50_ms), (0, None));
    assert!(report.mos < 1.5);
}

proptest! {
    #[test]
    fn the_books_balance(arrivals in proptest::collection::vec((0_u32..200, 0_u64..500), 0..300), sent_packets in 0_u32..250) {
        let report = report(sent_packets, &arrivals);
        let all = sent_packets.max(arrivals.iter().map(|(index, _)| index + 1).max().unwrap_or(0));
        prop_assert_eq!(report.received as usize, arrivals.len());
        prop_assert_eq!(report.lost + report.received - report.duplicates, all);
        prop_assert!(report.late + report.lost <= all);
        prop_assert!((1.0..=4.5).contains(&report.mos), "{}", report.mos);
        prop_assert!(report.delay_p50_ms <= report.delay_p99_ms && report.delay_p99_ms <= report.delay_max_ms);
    }
}
