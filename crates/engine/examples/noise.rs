//! What a shorter `T_b` gains and costs on this computer as busy as it is: the product's own threads over the tiny guest, two hosts
//! in one process over the loopback interface. For each `T_b`, which does not adapt: takeovers while nothing fails, and the time
//! from one side's end to the other's start. Prints a table (`Markdown`).
//!
//! `nice -n -10 cargo run -p romulus-engine --example noise [SECONDS [MILLISECONDS...]]`, beside a load of your choice

#[path = "../tests/pair/bench.rs"]
#[allow(dead_code, reason = "the tests need more of it")]
mod bench;

use bench::{Bench, Life, Options};
use romulus_network::Mode;
use romulus_protocol::{host::RoleName, timing::Timing};
use std::{
    thread,
    time::{Duration, Instant},
};

/// How long a takeover or a full copy may take before it counts as none.
const PATIENCE: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(1);
/// How often a side ends at each value.
const ENDS: usize = 5;

fn main() {
    let numbers: Vec<u64> = std::env::args()
        .skip(1)
        .map(|text| text.parse().expect("a number"))
        .collect();
    let seconds = numbers.first().copied().unwrap_or(40);
    let values = match numbers.get(1..) {
        Some(values) if !values.is_empty() => values.to_vec(),
        _ => vec![20, 50, 100, 200, 500, 1000, 2000],
    };
    println!(
        "| T_b, ms | watched, s | of it protected, % | takeovers without a failure, an hour | takeover, median and worst, ms |"
    );
    println!("| ---: | ---: | ---: | ---: | ---: |");
    for value in values {
        println!(
            "{}",
            measure(Duration::from_millis(value), Duration::from_secs(seconds))
        );
    }
}

/// The time-outs that a machine file with this `t_b` and `t_b_max` gives.
fn timing(t_b: Duration) -> Timing {
    let default = Timing::default();
    let scaled = |time: Duration| time.mul_f64(t_b.as_secs_f64() / default.t_b.as_secs_f64());
    Timing {
        heartbeat: scaled(default.heartbeat),
        t_p: scaled(default.t_p),
        t_a: scaled(default.t_a),
        t_b,
        t_b_max: t_b,
        t_closed: scaled(default.t_closed),
        t_c: scaled(default.t_c),
        t_cold: Duration::from_secs(3),
        stall: scaled(default.stall),
        retry: scaled(default.retry),
        poll: scaled(default.poll),
        ..default
    }
}

fn measure(t_b: Duration, watch: Duration) -> String {
    let options = Options {
        timing: timing(t_b),
        ..Options::default()
    };
    let tiny = options.tiny.clone();
    let Some(bench) = Bench::with(options) else {
        return "there is no KVM here".to_owned();
    };
    // With some output unheld a closed link does not shorten the wait.
    let start = |index| bench.start_as(index, tiny.clone(), Vec::new(), Mode::Split(Vec::new()));
    let mut sides = [start(0), start(1)];
    let name = t_b.as_millis();
    if wait(PATIENCE, || runner(&sides, false)).is_none() {
        return format!("| {name} | 0 | never runs | – | – |");
    }
    wait(PATIENCE, || runner(&sides, true));
    let begin = Instant::now();
    let (mut looks, mut covered, mut takeovers) = (0_u32, 0_u32, 0_u32);
    let mut last = None;
    while begin.elapsed() < watch {
        looks += 1;
        covered += u32::from(runner(&sides, true).is_some());
        if let Some(now) = runner(&sides, false) {
            takeovers += u32::from(last.is_some_and(|last| last != now));
            last = Some(now);
        }
        thread::sleep(LOOK * 5);
    }
    let watched = begin.elapsed().as_secs_f64();
    let mut times = Vec::new();
    for _ in 0..ENDS {
        let Some(running) = wait(PATIENCE, || runner(&sides, true)) else {
            break;
        };
        let [first, second] = sides;
        let (ends, stays) = if running == 0 {
            (first, second)
        } else {
            (second, first)
        };
        let begin = Instant::now();
        ends.vanish();
        let taken = wait(PATIENCE, || runs(&stays).then(|| begin.elapsed()));
        times.extend(taken.map(|time| time.as_secs_f64() * 1e3));
        let again = start(running);
        sides = if running == 0 {
            [again, stays]
        } else {
            [stays, again]
        };
    }
    times.sort_by(f64::total_cmp);
    let taken = match (times.get(times.len() / 2), times.last()) {
        (Some(median), Some(worst)) => {
            format!("{median:.0}, {worst:.0} ({} of {ENDS})", times.len())
        }
        _ => "–".to_owned(),
    };
    format!(
        "| {name} | {watched:.0} | {:.0} | {:.0} | {taken} |",
        f64::from(covered) / f64::from(looks.max(1)) * 100.0,
        f64::from(takeovers) / watched * 3600.0
    )
}

fn runs(life: &Life) -> bool {
    life.status().host.role == RoleName::Primary
}

/// Which side runs the machine, and is protected if that is asked for.
fn runner(sides: &[Life; 2], protected: bool) -> Option<usize> {
    sides
        .iter()
        .position(|life| runs(life) && (!protected || life.status().host.protected_since.is_some()))
}

fn wait<T>(limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let until = Instant::now() + limit;
    loop {
        let seen = condition();
        if seen.is_some() || Instant::now() >= until {
            return seen;
        }
        thread::sleep(LOOK);
    }
}
