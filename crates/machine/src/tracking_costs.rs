//! What it costs to track a guest's pages.
//!
//! The first write to a page leaves the guest, once for each page and epoch. How long that takes differs by a factor of a
//! hundred between hosts, so it is measured, with the tiny guest, which runs anywhere.

use crate::{Error, Memory, PageSet, memory::PAGE, tiny::Tiny};
use std::{
    thread,
    time::{Duration, Instant},
};

/// Pages that are written: enough that their faults outweigh what else happens, such as the guest's waking up.
const PAGES: usize = 1024;
#[allow(clippy::cast_possible_truncation, reason = "1024")]
const PAGES_U32: u32 = PAGES as u32;
/// The first of them.
const FIRST_PAGE: usize = 1024;
/// Measurements. What disturbs a busy host makes them longer.
const TIMES: usize = 9;
/// From one look at the guest's progress to the next.
const LOOK: Duration = Duration::from_micros(100);
/// The same where the guest's processor is the only one: each look takes it away for tens of microseconds, which would
/// count as the guest's.
const LOOK_ALONE: Duration = Duration::from_millis(2);
/// A guest that makes no progress for so long does not run at all.
const PATIENCE: Duration = Duration::from_secs(5);

/// What tracking costs on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrackingCosts {
    /// The guest's first write to a page that is tracked: the exit, and the page's entry made writable.
    pub first_write: Duration,
    /// Copying a page and comparing it with another.
    pub copy: Duration,
}

/// Measures it, in some tens of milliseconds; in half a second where exits are emulated.
///
/// # Errors
/// The tiny guest cannot be made here, or does not run.
pub fn tracking_costs() -> Result<TrackingCosts, Error> {
    let tiny = Tiny {
        vcpus: 1,
        memory: crate::config::MEMORY_MIN,
        pages: PAGES,
        stride: 1,
        first_page: FIRST_PAGE,
        wait: 0,
    };
    let alone = thread::available_parallelism().is_ok_and(|processors| processors.get() == 1);
    let look = if alone { LOOK_ALONE } else { LOOK };
    let paused = tiny.boot()?;
    let memory = paused.memory().clone();
    let mut dirty = PageSet::new(&memory);
    let begin = Begin::now(&tiny, &memory);
    let mut machine = paused.resume()?;
    // Before pages are tracked, each is given to the guest once.
    begin.wait(2, look)?;
    let mut paused = machine.pause()?;
    paused.start_tracking()?;
    machine = paused.resume()?;
    let mut with_faults = [(0, Duration::MAX); TIMES];
    let mut round = Duration::MAX;
    for times in &mut with_faults {
        // With all its pages written, a round shows what a round costs without faults.
        let (rounds, took) = Begin::now(&tiny, &memory).wait(64, look)?;
        round = round.min(took / rounds);
        // The next write to each page is a first one again.
        let mut paused = machine.pause()?;
        paused.harvest(&mut dirty)?;
        // Before the guest goes on: it may have this thread's processor at once.
        let begin = Begin::now(&tiny, &memory);
        machine = paused.resume()?;
        // The round that was under way, and a whole one: every page was written.
        *times = begin.wait(2, look)?;
    }
    drop(machine);
    Ok(TrackingCosts {
        first_write: first_write(&with_faults, round),
        copy: copy_cost(&memory),
    })
}

/// What one of [`PAGES`] first writes took on the median, where so many rounds took so long with them and one takes
/// `round` without.
fn first_write(with_faults: &[(u32, Duration)], round: Duration) -> Duration {
    let faults = with_faults
        .iter()
        .map(|&(rounds, took)| took.saturating_sub(round.saturating_mul(rounds)));
    let mut faults: Vec<Duration> = faults.collect();
    faults.sort_unstable();
    faults.get(faults.len() / 2).copied().unwrap_or_default() / PAGES_U32
}

/// What it takes to copy a page and to compare it with its copy.
fn copy_cost(memory: &Memory) -> Duration {
    let pages = FIRST_PAGE..FIRST_PAGE + PAGES;
    let mut copies = vec![[0; PAGE]; PAGES];
    let mut least = Duration::MAX;
    for _ in 0..TIMES {
        let begun = Instant::now();
        let mut same = 0;
        for (page, copy) in pages.clone().zip(&mut copies) {
            memory.read_page(page, copy);
            same += usize::from(memory.page_is(page, copy));
        }
        std::hint::black_box(same);
        least = least.min(begun.elapsed() / PAGES_U32);
    }
    least
}

/// A moment from which the guest's rounds are counted.
struct Begin<'a> {
    tiny: &'a Tiny,
    memory: &'a Memory,
    rounds: u64,
    at: Instant,
}

impl<'a> Begin<'a> {
    fn now(tiny: &'a Tiny, memory: &'a Memory) -> Self {
        Self {
            tiny,
            memory,
            rounds: tiny.rounds(memory, 0),
            at: Instant::now(),
        }
    }

    /// Waits until the guest has begun so many rounds more, with a look at it every `look`: how many it was, and how long
    /// it took.
    fn wait(&self, count: u64, look: Duration) -> Result<(u32, Duration), Error> {
        loop {
            let rounds = self.tiny.rounds(self.memory, 0) - self.rounds;
            let took = self.at.elapsed();
            if rounds >= count {
                return Ok((u32::try_from(rounds).unwrap_or(u32::MAX), took));
            }
            if took > PATIENCE {
                return Err(Error::Invalid(
                    "the tiny guest makes no progress on this host's KVM".into(),
                ));
            }
            thread::sleep(look);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_disturbs_a_measurement_does_not_count() {
        let (us, ms) = (Duration::from_micros, Duration::from_millis);
        // Faults of 20 us, and rounds of 10 us: once in peace, once beside others, once after a late look.
        let faults = us(20) * PAGES_U32;
        let times = [
            (2, faults + us(20)),
            (2, faults + us(20) + ms(9)),
            (702, faults + us(7020)),
        ];
        assert_eq!(first_write(&times, us(10)), us(20));
        // Something was wrong with the rounds: no panic.
        assert_eq!(first_write(&times, ms(100)), Duration::ZERO);
    }

    #[test]
    fn nothing_is_for_nothing() {
        if !std::path::Path::new("/dev/kvm").exists() {
            eprintln!("skipped: there is no /dev/kvm here");
            return;
        }
        let costs = tracking_costs().unwrap();
        println!("{costs:?}");
        for cost in [costs.first_write, costs.copy] {
            assert!(cost > Duration::ZERO, "{costs:?}");
            assert!(cost < Duration::from_millis(10), "{costs:?}");
        }
    }
}
