//! A host acts when a silence is long enough, and not with its next heartbeat.

use super::*;

/// How long after now it claims, when it hears nothing more and looks only when it said that it
/// would.
fn claims_after(bench: &mut Bench) -> Duration {
    let began = bench.now;
    bench.give(Event::Tick { drained: true });
    for _ in 0..100 {
        let due = bench.host.deadline(bench.now);
        assert!(due > bench.now, "it would look again and again");
        bench.now = due;
        bench.give(Event::LoopTurned);
        let actions = bench.give(Event::Tick { drained: true });
        if !changes(&actions).is_empty() {
            return bench.now.since(began);
        }
    }
    unreachable!("it never claims")
}

/// The same from a heartbeat on that comes `since` milliseconds after one of its own.
fn claims_after_a_beat(mut bench: Bench, since: u32, activity: Activity) -> Duration {
    bench.pass(16 * MS);
    bench.now = bench.now + since * MS;
    bench.beat(activity);
    claims_after(&mut bench)
}

#[test]
fn a_backup_claims_when_its_runner_has_been_silent_for_t_b() {
    for since in [1, 3, 7, 9] {
        let claims = claims_after_a_beat(Bench::heir(), since, Activity::Primary);
        assert_eq!(claims, Timing::default().t_b);
    }
}

#[test]
fn a_backup_that_reads_late_claims_as_early() {
    let mut bench = Bench::heir();
    bench.pass(16 * MS);
    let arrived = bench.now + MS;
    bench.now = bench.now + 8 * MS;
    bench.beat_from(Activity::Primary, Lane::Link, arrived);
    assert_eq!(claims_after(&mut bench) + 7 * MS, Timing::default().t_b);
}

#[test]
fn a_primary_claims_when_its_heir_has_echoed_nothing_for_t_a() {
    for since in [1, 3, 7, 9] {
        let claims = claims_after_a_beat(Bench::protected(), since, Activity::Backup);
        assert_eq!(claims, Timing::default().t_a);
    }
}
