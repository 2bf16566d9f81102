//! `T_b` on hosts that are busy with other things: delays that came and went, made up and written
//! down, and what the detector makes of them.

use super::*;

fn adaptive() -> Detector {
    Detector::new(Timing::default(), at(0))
}

/// Heartbeats come every 10 ms of `from..until`, each with a fresh echo, and the detector runs.
fn lively(detector: &mut Detector, from: u64, until: u64) {
    for ms in (from..until).step_by(10) {
        hear(detector, ms, &beat(ms + 1, Some(at(ms))));
        detector.tick(at(ms), true);
        detector.loop_turned(at(ms));
    }
}

/// The detector runs, and nothing comes.
fn silent(detector: &mut Detector, from: u64, until: u64) {
    run(detector, from, until);
}

const USUAL: Duration = Duration::from_millis(100);

#[test]
fn what_is_never_late_changes_nothing() {
    let mut detector = adaptive();
    lively(&mut detector, 0, 60_000);
    assert_eq!(detector.t_b(), USUAL);
    assert_eq!(detector.t_a(), Timing::default().t_a);
}

#[test]
fn a_silence_that_ended_is_noise() {
    let mut detector = adaptive();
    lively(&mut detector, 0, 1_000);
    silent(&mut detector, 1_000, 1_070);
    assert_eq!(detector.t_b(), USUAL, "it may be a failure as yet");
    lively(&mut detector, 1_080, 1_100);
    // From 990 to 1080: 90 ms.
    assert_eq!(
        detector.noise().map(|noise| noise.late),
        Some(Late::Silence)
    );
    assert_eq!(detector.t_b(), 180 * MS);
    assert_eq!(detector.t_a(), 144 * MS, "T_a is as much longer");
    assert_eq!(
        detector.pass_until(other()),
        Some(at(1_090) + Timing::default().t_p),
        "T_p is not"
    );
}

#[test]
fn an_echo_that_was_late_is_noise_and_so_is_this_host() {
    let mut detector = adaptive();
    lively(&mut detector, 0, 100);
    hear(&mut detector, 100, &beat(101, Some(at(10))));
    // What was echoed before was newer.
    assert_eq!(detector.tick(at(100), true), None);
    for ms in (110..200).step_by(10) {
        hear(&mut detector, ms, &beat(ms + 1, Some(at(ms - 60))));
        detector.tick(at(ms), true);
    }
    assert_eq!(detector.t_b(), 120 * MS, "twice 60 ms");
    assert_eq!(detector.noise().map(|noise| noise.late), Some(Late::Echo));
    detector.tick(at(290), true);
    assert_eq!(
        detector.t_b(),
        200 * MS,
        "100 ms at once in which this host did not run"
    );
    assert_eq!(detector.noise().map(|noise| noise.late), Some(Late::Own));
}

#[test]
fn a_frozen_host_is_silent_on_purpose() {
    let mut detector = adaptive();
    lively(&mut detector, 0, 1_000);
    for ms in (1_000..1_090).step_by(10) {
        let frozen = Heartbeat {
            moves: false,
            activity: Activity::Frozen,
            ..beat(ms + 1, None)
        };
        hear(&mut detector, ms, &frozen);
        detector.tick(at(ms), true);
        detector.loop_turned(at(ms));
    }
    let thawed = Heartbeat {
        activity: Activity::Primary,
        ..beat(1_091, Some(at(1_089)))
    };
    hear(&mut detector, 1_090, &thawed);
    detector.tick(at(1_090), true);
    assert_eq!(detector.t_b(), USUAL);
}

#[test]
fn one_delay_at_most_doubles_it_and_it_never_grows_beyond_its_bound() {
    let mut detector = adaptive();
    lively(&mut detector, 0, 1_000);
    let mut said = Vec::new();
    for late in [5_000, 10_000, 15_000, 20_000, 25_000] {
        said.extend(detector.tick(at(late), true));
        lively(&mut detector, late + 10, late + 100);
    }
    assert_eq!(said, [200 * MS, 400 * MS, 800 * MS, 1_000 * MS]);
}

#[test]
fn it_is_forgotten_slowly() {
    let mut detector = adaptive();
    lively(&mut detector, 0, 1_000);
    // 100 ms, from 990 on.
    lively(&mut detector, 1_090, 1_100);
    assert_eq!(detector.t_b(), 200 * MS);
    let later = |minutes: u64| at(1_090 + minutes * 60_000);
    let mut after = |minutes| {
        // Ten milliseconds before: the way there is not watched.
        detector.ticked = later(minutes);
        detector.tick(later(minutes), true);
        detector.t_b()
    };
    assert_eq!(after(1), 200 * MS);
    assert_eq!(after(6), 160 * MS, "a fifth of its half hour is over");
    assert_eq!(after(20), USUAL);
    // Something shorter counts only when it is more than what is left.
    assert_eq!(after(31), USUAL);
    assert_eq!(detector.noise().map(|noise| noise.at), Some(later(0)));
}

/// Half an hour between two hosts that stand still now and then, each for up to `longest` ms:
/// how often the backup would have taken over without a failure.
fn false_takeovers(timing: Timing, seed: u64, longest: u64) -> usize {
    let mut random = seed;
    // The multiplier and increment of Knuth's MMIX.
    let mut below = |bound: u64| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % bound
    };
    let mut detector = Detector::new(timing, at(0));
    let mut now = 0;
    let mut failed = 0;
    while now < 1_800_000 {
        let calm = 500 + below(4_000);
        lively(&mut detector, now, now + calm);
        now += calm;
        // Short delays are common, long ones rare, as on real hosts: the inverse of a uniform value.
        let late = (longest / (1 + below(100))).max(10);
        // The other host stands still, or this one, or both.
        let observed = below(3) > 0;
        if observed {
            silent(&mut detector, now, now + late);
        } else {
            detector.tick(at(now + late), false);
            detector.loop_turned(at(now + late));
        }
        now += late;
        failed += usize::from(observed && detector.runner_failed(at(now), other(), true));
    }
    failed
}

#[test]
fn half_an_hour_of_delays_teaches_more_than_a_fixed_wait_knows() {
    let adaptive = Timing::default();
    let fixed = Timing {
        t_b_max: adaptive.t_b,
        ..adaptive
    };
    let all = |timing| {
        (0..8)
            .map(|seed| false_takeovers(timing, seed, 400))
            .collect::<Vec<_>>()
    };
    let (learns, does_not) = (all(adaptive), all(fixed));
    // Before it has seen anything it cannot know; T_b of 800 ms takes three delays at most.
    assert!(learns.iter().all(|failed| *failed <= 3), "{learns:?}");
    assert!(does_not.iter().all(|failed| *failed >= 10), "{does_not:?}");
}

#[test]
fn a_detector_that_has_just_started_knows_nothing_yet() {
    let mut detector = adaptive();
    silent(&mut detector, 0, 104);
    assert_eq!(detector.t_b(), USUAL);
    assert!(detector.runner_failed(at(104), other(), true));
}
