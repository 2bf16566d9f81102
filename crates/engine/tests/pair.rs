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
