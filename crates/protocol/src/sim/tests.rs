//! A few hundred seeds with all guards: what continuous integration runs.

use super::*;

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
