//! Each rule of DESIGN's "Detection" by itself.

mod noise;

use super::*;
use crate::id::{Generation, MachineId};

const MS: Duration = Duration::from_millis(1);

fn incarnation(n: u128) -> Incarnation {
    Incarnation::new(n).expect("not zero")
}

fn me() -> Incarnation {
    incarnation(1)
}

fn other() -> Incarnation {
    incarnation(2)
}

fn at(ms: u64) -> Time {
    Time(1_000_000_000) + MS * u32::try_from(ms).expect("small")
}

fn beat(sent: u64, echo: Option<Time>) -> Heartbeat {
    Heartbeat {
        machine: MachineId(0),
        from: other(),
        // Another clock altogether.
        sent: Time(sent),
        moves: true,
        activity: Activity::Backup,
        whole: true,
        uplink: Uplink::default(),
        generation: Generation(1),
        echoes: echo
            .map(|sent| Echo { of: me(), sent })
            .into_iter()
            .collect(),
    }
}

/// A detector that ticked and turned every 8 ms from 0 to `until` and heard nothing. Its `T_b` is
/// what it is.
fn quiet(until: u64) -> Detector {
    let timing = Timing::default();
    let timing = Timing {
        t_b_max: timing.t_b,
        ..timing
    };
    let mut detector = Detector::new(timing, at(0));
    run(&mut detector, 0, until);
    detector
}

/// It hears what arrives just then.
fn hear(detector: &mut Detector, ms: u64, beat: &Heartbeat) {
    detector.heard(at(ms), at(ms), beat, Lane::Link, me());
}

fn run(detector: &mut Detector, from: u64, until: u64) {
    for ms in (from..=until).step_by(8) {
        detector.tick(at(ms), true);
        detector.loop_turned(at(ms));
    }
}

#[test]
fn a_late_echo_is_not_fresh() {
    let mut detector = quiet(96);
    hear(&mut detector, 96, &beat(1, Some(at(10))));
    assert_eq!(
        detector.pass_until(other()),
        Some(at(80)),
        "T_p from when it was sent"
    );
    assert!(
        detector.heir_failed(at(96), other()),
        "86 ms old, whenever it came"
    );
    // An echo from the future buys no time.
    hear(&mut detector, 96, &beat(2, Some(at(5000))));
    assert_eq!(detector.pass_until(other()), Some(at(96 + 70)));
}

#[test]
fn the_backup_counts_from_when_it_last_vouched() {
    let mut detector = quiet(96);
    hear(&mut detector, 96, &beat(1, Some(at(2))));
    run(&mut detector, 104, 192);
    assert!(
        !detector.runner_failed(at(195), other(), true),
        "it vouched 99 ms ago"
    );
    run(&mut detector, 200, 200);
    assert!(detector.runner_failed(at(200), other(), true));
    // A duplicate renews nothing.
    hear(&mut detector, 200, &beat(1, Some(at(2))));
    assert!(detector.runner_failed(at(200), other(), true));
}

#[test]
fn the_backup_counts_from_the_arrival_of_what_it_reads_later() {
    let mut detector = quiet(96);
    detector.heard(at(104), at(98), &beat(1, Some(at(2))), Lane::Link, me());
    run(&mut detector, 104, 192);
    let due = detector.runner_due(at(192), other(), true);
    assert_eq!(due, Some(at(198)), "T_b after it arrived");
    assert!(!detector.runner_failed(at(197), other(), true));
    assert!(detector.runner_failed(at(198), other(), true));
    let over = detector.runner_due(at(198), other(), true);
    assert_eq!(over, None, "nothing is waited for that has come");
}

#[test]
fn no_arrival_is_taken_for_earlier_than_it_can_have_been_or_for_later_than_now() {
    for (arrived, counts) in [(at(3), at(96)), (at(96), at(96)), (at(5000), at(104))] {
        let mut detector = quiet(96);
        let beat = beat(1, Some(at(2)));
        detector.heard(at(104), arrived, &beat, Lane::Link, me());
        run(&mut detector, 104, 184);
        let due = detector.runner_due(at(184), other(), true);
        assert_eq!(due, Some(counts + MS * 100), "all was read at 96 ms");
    }
    // Where not all was read, it may have lain there before.
    let mut detector = quiet(96);
    detector.tick(at(100), false);
    let beat = beat(1, Some(at(2)));
    detector.heard(at(104), at(50), &beat, Lane::Link, me());
    detector.tick(at(104), true);
    let due = detector.runner_due(at(104), other(), true);
    assert_eq!(due, Some(at(150)));
}

#[test]
fn the_primary_is_told_when_the_silence_of_its_heir_is_long_enough() {
    let mut detector = quiet(96);
    hear(&mut detector, 96, &beat(1, Some(at(40))));
    let due = detector.heir_due(at(97), other());
    assert_eq!(due, Some(at(40 + 80)), "T_a after the newest echo was sent");
    assert!(!detector.heir_failed(at(119), other()));
    assert!(detector.heir_failed(at(120), other()));
    assert_eq!(detector.heir_due(at(120), other()), None);
}

#[test]
fn a_runner_whose_loop_stalls_is_as_good_as_silent() {
    let mut detector = quiet(8);
    hear(&mut detector, 8, &beat(1, Some(at(8))));
    for ms in (16..=120).step_by(8) {
        run(&mut detector, ms, ms);
        let stalled = Heartbeat {
            moves: false,
            ..beat(ms, Some(at(ms)))
        };
        hear(&mut detector, ms, &stalled);
    }
    assert!(detector.runner_failed(at(120), other(), true));
}

#[test]
fn our_own_lateness_does_not_count_and_the_sockets_come_first() {
    let mut detector = quiet(8);
    hear(&mut detector, 8, &beat(1, Some(at(8))));
    // The host stands still for two seconds.
    detector.tick(at(2008), false);
    detector.loop_turned(at(2008));
    assert_eq!(
        detector.silence(at(2008), other(), Watch::Runner),
        None,
        "unread sockets"
    );
    // What waited there is from just before the gap.
    hear(&mut detector, 2008, &beat(2, Some(at(9))));
    detector.tick(at(2009), true);
    assert!(!detector.heir_failed(at(2009), other()));
    assert_eq!(
        detector.pass_until(other()),
        Some(at(79)),
        "T_p forgives nothing"
    );
    run(&mut detector, 2016, 2112);
    assert!(
        detector.heir_failed(at(2112), other()),
        "but silence after it counts"
    );
}

#[test]
fn a_host_whose_own_loop_stalls_says_nothing_of_others() {
    let mut detector = quiet(8);
    hear(&mut detector, 8, &beat(1, Some(at(8))));
    for ms in (16..=200).step_by(8) {
        detector.tick(at(ms), true);
    }
    assert_eq!(detector.silence(at(200), other(), Watch::Heir), None);
    let say = Heartbeat {
        from: me(),
        ..beat(0, None)
    };
    let said = detector.beat(at(200), say, |_| true);
    assert!(!said.moves && said.echoes.is_empty());
}

#[test]
fn a_closed_connection_shortens_the_wait_where_all_is_held() {
    let mut detector = quiet(8);
    hear(&mut detector, 8, &beat(1, Some(at(8))));
    detector.connection(at(10), other(), false);
    run(&mut detector, 16, 40);
    assert!(detector.runner_failed(at(40), other(), false));
    assert!(!detector.runner_failed(at(40), other(), true));
    detector.connection(at(40), other(), true);
    assert!(
        !detector.runner_failed(at(40), other(), false),
        "a new one takes that back"
    );
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut detector = quiet(8);
    for n in 2..100 {
        let stranger = Heartbeat {
            from: incarnation(n),
            ..beat(1, None)
        };
        hear(&mut detector, 9, &stranger);
    }
    assert_eq!(detector.peers().count(), PEERS_MAX);
    let say = Heartbeat {
        from: me(),
        ..beat(0, None)
    };
    detector.loop_turned(at(100));
    assert_eq!(
        detector.beat(at(100), say, |_| true).echoes.len(),
        ECHOES_MAX
    );
}
