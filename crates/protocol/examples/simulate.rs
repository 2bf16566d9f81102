//! Runs the protocol's simulator over many seeds.
//!
//! `cargo run --release -p romulus-protocol --features simulator --example simulate [FIRST [COUNT]]`
//! or, to see one run, `SIM_SEED=n` in the environment.

use std::collections::BTreeMap;
use std::time::Instant;

use romulus_protocol::{Guards, sim};

fn main() {
    if let Some(seed) = std::env::var("SIM_SEED").ok().and_then(|s| s.parse().ok()) {
        let mut guards = Guards::default();
        if let Ok(name) = std::env::var("SIM_WITHOUT") {
            let all = romulus_protocol::Guard::ALL;
            let found = all.iter().find(|g| format!("{g:?}") == name);
            guards = found.map_or(guards, |g| guards.without(*g));
        }
        let outcome = sim::run(seed, guards, Some(&mut |line| println!("{line}")));
        println!("{outcome:?}");
        return;
    }
    let mut arguments = std::env::args()
        .skip(1)
        .map(|a| a.parse::<u64>().expect("a number"));
    let first = arguments.next().unwrap_or(0);
    let count = arguments.next().unwrap_or(10_000);
    let began = Instant::now();
    let (mut steps, mut terms, mut takeovers, mut boots) = (0, 0, 0, 0);
    let (mut switchovers, mut switched) = (0, 0);
    let mut broken: BTreeMap<sim::Broken, Vec<u64>> = BTreeMap::new();
    for seed in first..first + count {
        let outcome = sim::run(seed, Guards::default(), None);
        steps += outcome.steps;
        terms += outcome.terms;
        takeovers += outcome.takeovers;
        boots += outcome.boots;
        switchovers += outcome.switchovers;
        switched += outcome.switched;
        if let Some(what) = outcome.broken {
            broken.entry(what).or_default().push(seed);
        }
    }
    println!(
        "{count} seeds in {:.1} s: {steps} events, {terms} terms, {takeovers} takeovers, {boots} cold starts, {switchovers} switchovers begun, {switched} done",
        began.elapsed().as_secs_f64()
    );
    for (what, seeds) in &broken {
        let some: Vec<_> = seeds.iter().take(8).collect();
        println!("  {what}: {} seeds, for example {some:?}", seeds.len());
    }
    if !broken.is_empty() {
        std::process::exit(1);
    }
}
