//! Two engines, an arbiter, and the tiny guest: in one process, over the loopback interface.
//!
//! The tiny guest runs where `/dev/kvm` cannot run a kernel. Where there is no `/dev/kvm` at all,
//! these tests say so and pass.

mod pair {
    pub(crate) mod bench;
}

use pair::bench::Bench;
use romulus_engine::{Ended, Report};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(30);

#[test]
fn a_pair_protects_and_takes_over() {
    let Some(bench) = Bench::new() else { return };
    let first = bench.start(0);
    let (_, taken) = first.running(LONG);
    assert!(!taken);
    let second = bench.start(1);
    first.until(LONG, |report| matches!(report, Report::Protected(true)));
    // Epochs go on.
    let before = first.status().epochs;
    first.wait(LONG, |status| status.epochs > before + 3);
    let rounds = first.rounds();
    // It dies without a word: its links close, its heartbeats end.
    first.vanish();
    let (term, taken) = second.running(LONG);
    assert!(taken, "term {term}");
    second.wait_rounds(LONG, rounds);
    // Its partner comes back as another incarnation and is filled.
    let third = bench.start(0);
    second.until(LONG, |report| matches!(report, Report::Protected(true)));
    assert!(third.is_backup());
    second.vanish();
    let (again, taken) = third.running(LONG);
    assert!(taken && again > term);
}

#[test]
fn a_machine_that_is_stopped_is_not_resurrected() {
    let Some(bench) = Bench::new() else { return };
    let first = bench.start(0);
    first.running(LONG);
    let second = bench.start(1);
    first.until(LONG, |report| matches!(report, Report::Protected(true)));
    first.stop();
    let ended = first.ended(LONG);
    assert_eq!(ended, Ended::Stopped);
    // The other has dropped the replica, and its disk was never the record's.
    second.wait(LONG, |status| !status.host.whole);
    assert!(second.stays_idle(Duration::from_secs(2)));
}

#[test]
fn a_backup_may_go_and_come_back() {
    let Some(bench) = Bench::new() else { return };
    let first = bench.start(0);
    first.running(LONG);
    let second = bench.start(1);
    first.until(LONG, |report| matches!(report, Report::Protected(true)));
    second.vanish();
    first.until(LONG, |report| matches!(report, Report::Protected(false)));
    let third = bench.start(1);
    first.until(LONG, |report| matches!(report, Report::Protected(true)));
    assert!(third.is_backup());
}

#[test]
fn a_machine_is_handed_over_and_back_with_all_that_it_had_done() {
    let Some(bench) = Bench::new() else { return };
    let first = bench.start(0);
    first.running(LONG);
    let second = bench.start(1);
    let (mut from, mut to) = (&first, &second);
    let mut term = 0;
    for _ in 0..2 {
        from.until(LONG, |report| matches!(report, Report::Protected(true)));
        let rounds = from.counter();
        from.switch_over();
        from.until(LONG, |report| {
            assert!(!matches!(report, Report::Stays(_)), "{report:?}");
            matches!(report, Report::Idle)
        });
        let (next, taken) = to.running(LONG);
        assert!(taken && next > term, "term {next} after {term}");
        term = next;
        assert_eq!(to.began_whole(), Ok(()));
        // It rests where it was handed over, and went on from there.
        let last = rounds();
        assert_eq!(to.began_at(), last);
        to.wait_rounds(LONG, last);
        assert_eq!(rounds(), last, "the guest runs on where it was");
        std::mem::swap(&mut from, &mut to);
    }
    from.until(LONG, |report| matches!(report, Report::Protected(true)));
    assert!(to.is_backup());
}

#[test]
fn a_machine_whose_backup_dies_in_a_switchover_stays() {
    let Some(bench) = Bench::new() else { return };
    let first = bench.start(0);
    first.running(LONG);
    let mut second = bench.start(1);
    for _ in 0..3 {
        first.until(LONG, |report| matches!(report, Report::Protected(true)));
        first.switch_over();
        // At whatever step it is: what was handed over is taken back, what only rests goes on.
        second.vanish();
        first.until(LONG, |report| matches!(report, Report::Stays(_)));
        let rounds = first.rounds();
        first.wait_rounds(LONG, rounds + 1);
        second = bench.start(1);
    }
    first.until(LONG, |report| matches!(report, Report::Protected(true)));
    assert!(second.is_backup());
}
