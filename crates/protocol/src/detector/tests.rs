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

fn run(detector: &mut Detector, from: u64, until: u64) {
    for ms in (from..=until).step_by(8) {
        detector.tick(at(ms), true);
        detector.loop_turned(at(ms));
    }
}

#[test]
fn a_late_echo_is_not_fresh() {
    let mut detector = quiet(96);
    detector.heard(at(96), &beat(1, Some(at(10))), Lane::Link, me());
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
    detector.heard(at(96), &beat(2, Some(at(5000))), Lane::Link, me());
    assert_eq!(detector.pass_until(other()), Some(at(96 + 70)));
}

#[test]
fn the_backup_counts_from_when_it_last_vouched() {
    let mut detector = quiet(96);
    detector.heard(at(96), &beat(1, Some(at(2))), Lane::Link, me());
    run(&mut detector, 104, 192);
    assert!(
        !detector.runner_failed(at(195), other(), true),
        "it vouched 99 ms ago"
    );
    run(&mut detector, 200, 200);
    assert!(detector.runner_failed(at(200), other(), true));
    // A duplicate renews nothing.
    detector.heard(at(200), &beat(1, Some(at(2))), Lane::Link, me());
    assert!(detector.runner_failed(at(200), other(), true));
}

#[test]
fn a_runner_whose_loop_stalls_is_as_good_as_silent() {
    let mut detector = quiet(8);
    detector.heard(at(8), &beat(1, Some(at(8))), Lane::Link, me());
    for ms in (16..=120).step_by(8) {
        run(&mut detector, ms, ms);
        let stalled = Heartbeat {
            moves: false,
            ..beat(ms, Some(at(ms)))
        };
        detector.heard(at(ms), &stalled, Lane::Link, me());
    }
    assert!(detector.runner_failed(at(120), other(), true));
}

#[test]
fn our_own_lateness_does_not_count_and_the_sockets_come_first() {
    let mut detector = quiet(8);
    detector.heard(at(8), &beat(1, Some(at(8))), Lane::Link, me());
    // The host stands still for two seconds.
    detector.tick(at(2008), false);
    detector.loop_turned(at(2008));
    assert_eq!(
        detector.silence(at(2008), other(), Watch::Runner),
        None,
        "unread sockets"
    );
    // What waited there is from just before the gap.
    detector.heard(at(2008), &beat(2, Some(at(9))), Lane::Link, me());
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
    detector.heard(at(8), &beat(1, Some(at(8))), Lane::Link, me());
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
    detector.heard(at(8), &beat(1, Some(at(8))), Lane::Link, me());
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
        detector.heard(at(9), &stranger, Lane::Link, me());
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
