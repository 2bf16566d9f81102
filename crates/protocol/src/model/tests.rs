use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};

use crate::guards::{Guard, Guards};

use super::TIMELESS;
use super::calm::Calm;
use super::lease::Lease;
use super::steps::{Bounds, Pair};
use super::world::World;

/// Small enough for every run of the tests.
const SMALL: Bounds = Bounds {
    faults: 1,
    generations: 3,
    operations: 1,
    epochs: 6,
    sessions: 1,
    lives: 2,
};

/// For guards that only a second session shows.
const TWO_SESSIONS: Bounds = Bounds {
    sessions: 2,
    ..SMALL
};

/// Heartbeats on their way to one host, and steps of time: `T_b` is five.
const BEATS: usize = 1;
const STEPS: u8 = 6;

/// One switchover, from a protected pair on; and whatever fails meanwhile.
const SWITCHOVER: Bounds = Bounds {
    generations: 4,
    ..SMALL
};

/// For guards that only two faults show.
const TWO_FAULTS: Bounds = Bounds { faults: 2, ..SMALL };

/// More states than any of the models has within its bounds: a complete exploration ends before.
const ALL: usize = 40_000_000;

/// Enough to miss a guard within few steps.
const SOME: usize = 400_000;

/// What an exploration showed.
struct Outcome {
    states: usize,
    /// The first property that did not hold, what broke, and after how many steps.
    found: Option<(String, usize)>,
    takeovers: bool,
    /// Whether every state within the bounds was seen.
    complete: bool,
    seconds: f64,
}

impl Outcome {
    fn line(&self, guard: Option<Guard>, model: &str) -> String {
        let removed = guard.map_or("none".into(), |guard| format!("`{guard:?}`"));
        let found = match &self.found {
            Some((what, steps)) => format!("{what} | {steps}"),
            None => "nothing | –".into(),
        };
        let (states, seconds) = (self.states, self.seconds);
        format!("| {removed} | {model} | {states} | {found} | {seconds:.1} s |")
    }
}

fn without(guard: Option<Guard>) -> Guards {
    guard.map_or(Guards::default(), |guard| Guards::default().without(guard))
}

fn check_pair(guard: Option<Guard>, bounds: Bounds, most: usize) -> Outcome {
    let first = World::beginnings(without(guard), &TIMELESS).expect("a pair that is protected");
    check_from(first.to_vec(), bounds, most)
}

/// A protected pair whose operator asks for a switchover at some time.
fn switchover(guard: Option<Guard>) -> Outcome {
    let first = World::beginnings(without(guard), &TIMELESS).expect("a pair that is protected");
    let [mut protected, _] = first;
    protected.switchovers = 1;
    check_from(vec![protected], SWITCHOVER, ALL)
}

fn check_from(mut first: Vec<World>, bounds: Bounds, most: usize) -> Outcome {
    let began = Instant::now();
    for world in &mut first {
        world.faults = bounds.faults;
        world.normalise(true);
    }
    let pair = Pair {
        bounds,
        calm: Calm::default(),
        first,
    };
    let checker = pair.checker().finish_when(HasDiscoveries::AnyFailures);
    let checker = checker.target_state_count(most).spawn_bfs().join();
    let mut discoveries = checker.discoveries();
    let takeovers = discoveries.remove("takeover").is_some();
    let complete = checker.state_count() < most;
    let found = discoveries.into_iter().next().map(|(name, path)| {
        let what = match path.last_state().broke {
            Some(broke) => format!("{broke:?}"),
            None => format!("not: {name}"),
        };
        (what, path.into_actions().len())
    });
    Outcome {
        states: checker.unique_state_count(),
        found,
        takeovers,
        complete,
        seconds: began.elapsed().as_secs_f64(),
    }
}

fn check_lease(guard: Option<Guard>) -> Outcome {
    let began = Instant::now();
    let lease = Lease::new(without(guard), BEATS, STEPS).expect("a pair that is protected");
    let checker = lease.checker().finish_when(HasDiscoveries::AnyFailures);
    let checker = checker.target_state_count(ALL).spawn_bfs().join();
    let mut discoveries = checker.discoveries();
    let takeovers = discoveries.remove("takeover").is_some();
    let complete = checker.state_count() < ALL;
    let found = discoveries.into_iter().next();
    Outcome {
        states: checker.unique_state_count(),
        found: found.map(|(name, path)| (format!("not: {name}"), path.into_actions().len())),
        takeovers,
        complete,
        seconds: began.elapsed().as_secs_f64(),
    }
}

#[test]
fn a_pair_keeps_one_history_and_somebody_runs() {
    let outcome = check_pair(None, SMALL, ALL);
    assert_eq!(outcome.found, None);
    assert!(outcome.complete, "not all states were seen");
    assert!(outcome.takeovers, "without a takeover nothing was tested");
}

#[test]
fn a_switchover_loses_nothing_and_somebody_runs() {
    let outcome = switchover(None);
    eprintln!("{}", outcome.line(None, "switchover, one fault"));
    assert_eq!(outcome.found, None);
    assert!(outcome.complete, "not all states were seen");
    assert!(outcome.takeovers, "without a takeover nothing was tested");
}

/// As far as the tests below look for a guard's absence.
#[test]
fn two_faults_break_nothing_soon() {
    let outcome = two_faults(None);
    assert_eq!(outcome.found, None);
    assert!(outcome.takeovers, "without a takeover nothing was tested");
}

#[test]
fn no_unheld_output_leaves_once_another_has_started() {
    let outcome = check_lease(None);
    assert_eq!(outcome.found, None);
    assert!(outcome.complete, "not all states were seen");
    assert!(outcome.takeovers, "without a takeover nothing was tested");
}

/// A test for each guard: without it, something breaks.
macro_rules! missed {
    ($($test:ident: $guard:ident, $found:expr;)*) => {$(
        #[test]
        fn $test() {
            let outcome = $found(Some(Guard::$guard));
            assert!(outcome.found.is_some(), "nothing broke in {} states", outcome.states);
        }
    )*};
}

fn two_faults(guard: Option<Guard>) -> Outcome {
    check_pair(guard, TWO_FAULTS, SOME)
}

fn one_fault(guard: Option<Guard>) -> Outcome {
    check_pair(guard, SMALL, ALL)
}

fn two_sessions(guard: Option<Guard>) -> Outcome {
    check_pair(guard, TWO_SESSIONS, ALL)
}

missed! {
    output_commit: OutputCommit, two_faults;
    arbiter_compares: ArbiterCompares, two_faults;
    arbiter_durable: ArbiterDurable, two_faults;
    own_incarnation: OwnIncarnation, two_faults;
    none_before_release: NoneBeforeRelease, two_faults;
    fence_claim: FenceClaim, two_faults;
    lower_ignored: LowerIgnored, two_faults;
    read_never: ReadNever, two_faults;
    two_steps: TwoSteps, two_faults;
    loser_stays_heir: LoserStaysHeir, two_faults;
    keep_until_running: KeepUntilRunning, two_faults;
    running_clears_heir: RunningClearsHeir, two_faults;
    stale_claim: StaleClaim, two_faults;
    hand_back: HandBack, two_faults;
    sidecar_adds: SidecarAdds, two_faults;
    cold_keeps_heir: ColdKeepsHeir, two_faults;
    only_heir_beats: OnlyHeirBeats, two_faults;
    claim_whole: ClaimWhole, two_faults;
    name_covers: NameCovers, one_fault;
    hold_before_naming: HoldBeforeNaming, one_fault;
    fence_naming: FenceNaming, one_fault;
    stop_at_tp: StopAtTp, check_lease;
    own_send_time: OwnSendTime, check_lease;
    lease: Lease, check_lease;
    clock_rates: ClockRates, check_lease;
    freeze: Freeze, check_lease;
    closed_only_held: ClosedOnlyHeld, check_lease;
    switch_at_rest: SwitchAtRest, switchover;
    switch_committed: SwitchCommitted, switchover;
    switch_gives_up: SwitchGivesUp, switchover;
    switch_takes_back: SwitchTakesBack, switchover;
}

/// What the table in MODEL.md says.
#[test]
#[ignore = "minutes: searches for what each guard's absence breaks"]
fn search() {
    use Guard as G;
    println!("| guard removed | model | states | found | steps | time |");
    println!("| --- | --- | --- | --- | --- | --- |");
    let tell = |guard, model, outcome: Outcome| println!("{}", outcome.line(guard, model));
    tell(None, "lease", check_lease(None));
    tell(None, "pair, one fault", one_fault(None));
    tell(None, "pair, two faults", two_faults(None));
    let lease = [
        G::StopAtTp,
        G::OwnSendTime,
        G::Lease,
        G::ClockRates,
        G::Freeze,
        G::ClosedOnlyHeld,
        G::VouchForRunner,
    ];
    for guard in lease.map(Some) {
        tell(guard, "lease", check_lease(guard));
    }
    // Only many steps from a runner that is alone show these; two faults make too many states.
    let naming = [G::NameCovers, G::HoldBeforeNaming, G::FenceNaming];
    for guard in naming.map(Some) {
        tell(guard, "pair, one fault", one_fault(guard));
    }
    let sessions = [G::NoneBeforeResync, G::SessionCommits, G::HeirWhole];
    let switches = [
        G::SwitchProtected,
        G::SwitchAtRest,
        G::SwitchCommitted,
        G::SwitchFreezes,
        G::SwitchGivesUp,
        G::SwitchTakesBack,
        G::YieldOfSession,
    ];
    let others = G::ALL.iter().copied();
    let others = others.filter(|g| {
        ![&lease[..], &naming, &sessions, &switches]
            .iter()
            .any(|list| list.contains(g))
    });
    for guard in others {
        if World::beginnings(without(Some(guard)), &TIMELESS).is_some() {
            tell(Some(guard), "pair, two faults", two_faults(Some(guard)));
        }
    }
    tell(None, "switchover, one fault", switchover(None));
    for guard in switches.map(Some) {
        tell(guard, "switchover, one fault", switchover(guard));
    }
    for guard in sessions.map(Some) {
        tell(guard, "pair, two sessions", two_sessions(guard));
    }
    tell(None, "pair, two sessions", two_sessions(None));
}
