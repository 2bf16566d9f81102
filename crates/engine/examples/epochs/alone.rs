//! What a pause costs where there is nothing but pauses: the same guest and the same calls, and nobody beside them who
//! encodes, sends, receives or decides. No engine can be faster on this computer.

use romulus_checkpoint::Staging;
use romulus_machine::{Error, PageSet, tiny::Tiny};
use std::{
    thread,
    time::{Duration, Instant},
};

/// From one pause to the next: about as long as the engine's epochs are with such a guest.
const EPOCH: Duration = Duration::from_millis(9);

/// Pauses a guest again and again for `time`, and gives the length of each pause, rising.
///
/// # Errors
/// There is no KVM here.
pub(crate) fn pauses(tiny: &Tiny, time: Duration) -> Result<Vec<Duration>, Error> {
    let mut paused = tiny.boot()?;
    paused.start_tracking()?;
    let memory = paused.memory().clone();
    let mut dirty = PageSet::new(&memory);
    let mut staging = Staging::new(tiny.pages * usize::from(tiny.vcpus));
    let mut machine = paused.resume()?;
    let mut lengths = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < time {
        thread::sleep(EPOCH);
        let kicked = Instant::now();
        let mut paused = machine.pause()?;
        paused.harvest(&mut dirty)?;
        staging.clear();
        staging.copy_together(&memory, dirty.iter(), |work| paused.together(work));
        paused.capture(staging.state())?;
        machine = paused.resume()?;
        lengths.push(kicked.elapsed());
    }
    lengths.sort_unstable();
    Ok(lengths)
}
