//! Removes each guard in turn and prints how many seeds the simulator needs to miss it.
//!
//! `cargo run --release -p romulus-protocol --features simulator --example guards [SEEDS]`

use std::time::Instant;

use romulus_protocol::{Guard, Guards, sim};

fn main() {
    let most = std::env::args()
        .nth(1)
        .map_or(10_000, |a| a.parse::<u64>().expect("a number"));
    println!("| guard removed | seeds needed | seen as |");
    println!("| --- | --- | --- |");
    let began = Instant::now();
    let mut unseen = 0;
    for guard in Guard::ALL {
        let guards = Guards::default().without(*guard);
        let found =
            (0..most).find_map(|seed| sim::run(seed, guards, None).broken.map(|b| (seed, b)));
        if let Some((seed, broken)) = found {
            println!("| `{guard:?}` | {} | {broken} |", seed + 1);
        } else {
            unseen += 1;
            println!("| `{guard:?}` | **not within {most}** | – |");
        }
    }
    println!(
        "\n{} guards, {unseen} of them removed without a trace, {:.0} s",
        Guard::ALL.len(),
        began.elapsed().as_secs_f64()
    );
    if unseen > 0 {
        std::process::exit(1);
    }
}
