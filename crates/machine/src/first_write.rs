//! What it costs a guest to write to a page for the first time while its pages are tracked.
//!
//! Each such write leaves the guest, once for each page and epoch. How long that takes differs by a factor of a hundred between
//! hosts, so it is measured, with the tiny guest, which runs anywhere.

use crate::{DirtyPages, Error, Machine, Memory, tiny::Tiny};
use std::{
    thread,
    time::{Duration, Instant},
};

/// Pages that are written: enough that their faults outweigh what else happens.
const PAGES: usize = 256;
/// Measurements, of which the median counts: what disturbs a busy host makes one too long or, where it falls on the
/// rounds without faults, too short.
const TIMES: usize = 9;
/// How often the guest's progress is looked at.
const LOOK: Duration = Duration::from_micros(100);
/// A guest that makes no progress for so long does not run at all.
const PATIENCE: Duration = Duration::from_secs(5);

/// Measures it, in some milliseconds.
///
/// # Errors
/// The tiny guest cannot be made here, or does not run.
pub fn first_write_cost() -> Result<Duration, Error> {
    let tiny = Tiny {
        vcpus: 1,
        memory: crate::config::MEMORY_MIN,
        pages: PAGES,
        stride: 1,
        first_page: 1024,
        wait: 0,
    };
    let paused = tiny.boot()?;
    let memory = paused.memory().clone();
    let mut dirty = DirtyPages::new(&memory);
    let mut machine = paused.resume()?;
    // Before pages are tracked, each is given to the guest once.
    wait_rounds(&tiny, &memory, 2)?;
    let mut paused = machine.pause()?;
    paused.start_tracking()?;
    machine = paused.resume()?;
    let mut costs = Vec::with_capacity(TIMES);
    for _ in 0..TIMES {
        // With all its pages written, a round shows what a round costs without faults.
        let (rounds, took) = wait_rounds(&tiny, &memory, 64)?;
        let round = took / u32::try_from(rounds).unwrap_or(u32::MAX);
        machine = protect(machine, &mut dirty)?;
        // The round that was under way, and a whole one: every page was written.
        let (rounds, took) = wait_rounds(&tiny, &memory, 2)?;
        let plain = round * u32::try_from(rounds).unwrap_or(u32::MAX);
        costs.push(took.saturating_sub(plain) / u32::try_from(PAGES).unwrap_or(1));
    }
    drop(machine);
    costs.sort_unstable();
    Ok(costs[TIMES / 2])
}

/// Makes the next write to each page a first one again.
fn protect(machine: Machine, dirty: &mut DirtyPages) -> Result<Machine, Error> {
    let mut paused = machine.pause()?;
    paused.harvest(dirty)?;
    paused.resume()
}

/// Waits until the guest has begun so many rounds more: how many it was, and how long it took.
fn wait_rounds(tiny: &Tiny, memory: &Memory, count: u64) -> Result<(u64, Duration), Error> {
    let (before, begun) = (tiny.rounds(memory, 0), Instant::now());
    loop {
        let (rounds, took) = (tiny.rounds(memory, 0) - before, begun.elapsed());
        if rounds >= count {
            return Ok((rounds, took));
        }
        if took > PATIENCE {
            return Err(Error::Invalid(
                "the tiny guest makes no progress on this host's KVM".into(),
            ));
        }
        // On a host with one processor the guest needs it meanwhile.
        thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_write_costs_something() {
        if !std::path::Path::new("/dev/kvm").exists() {
            eprintln!("skipped: there is no /dev/kvm here");
            return;
        }
        let cost = first_write_cost().unwrap();
        println!("a first write costs {cost:?}");
        assert!(cost > Duration::ZERO, "every one leaves the guest");
        assert!(cost < Duration::from_millis(10), "{cost:?}");
    }
}
