//! A part of what the examples `simulate` and `guards` do: as much as continuous integration has
//! time for.

use super::*;
use crate::guards::Guard;

/// How many seeds, and from which: `SIM_SEEDS` and `SIM_SEED` in the environment say otherwise.
fn seeds(usual: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|s| s.parse::<u64>().ok());
    let first = number("SIM_SEED").unwrap_or(0);
    first..first + number("SIM_SEEDS").unwrap_or(usual)
}

#[test]
fn a_seed_replays_a_run() {
    let outcome = |seed| {
        let mut lines = Vec::new();
        let mut trace = |line| lines.push(line);
        let outcome = run(seed, Guards::default(), Some(&mut trace));
        (outcome.steps, outcome.at, lines)
    };
    assert_eq!(outcome(3), outcome(3));
    assert_ne!(outcome(3).2, outcome(4).2);
}

#[test]
fn nothing_breaks() {
    let mut takeovers = 0;
    for seed in seeds(300) {
        let outcome = run(seed, Guards::default(), None);
        takeovers += outcome.takeovers;
        let broken = outcome.broken;
        assert_eq!(
            broken,
            None,
            "SIM_SEED={seed}: {}",
            broken.map_or(String::new(), |b| b.to_string())
        );
    }
    assert!(
        takeovers > 0,
        "a simulation without a takeover tests nothing"
    );
}

/// The guards that are missed soon. The example `guards` measures all of them.
#[test]
fn guards_are_missed() {
    let soon = [
        Guard::OutputCommit,
        Guard::Backpressure,
        Guard::ArbiterCompares,
        Guard::ArbiterDurable,
        Guard::OwnIncarnation,
        Guard::HeirWhole,
        Guard::HoldBeforeNaming,
        Guard::SessionCommits,
        Guard::NoneBeforeResync,
        Guard::NoneBeforeRelease,
        Guard::ReadNever,
        Guard::TwoSteps,
        Guard::LoserStaysHeir,
        Guard::RunningClearsHeir,
        Guard::StopAtTp,
        Guard::OwnLateness,
        Guard::DrainFirst,
    ];
    for guard in soon {
        let guards = Guards::default().without(guard);
        let missed = (0..60).any(|seed| run(seed, guards, None).broken.is_some());
        assert!(
            missed,
            "{guard:?} was removed, and 60 seeds did not show it"
        );
    }
}
