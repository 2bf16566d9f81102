//! One epoch's end: pause, harvest, copy, capture, seal, resume. Nothing here allocates or waits,
//! once the buffers have grown.

use crate::{
    backup, clock,
    disks::WriteLog,
    full_copy::FullCopy,
    node::Node,
    output::{Output, Seal},
    phases::Phase,
};
use romulus_checkpoint::Staging;
use romulus_machine::{Error, Machine, PageSet, Paused, WarmPages};
use romulus_protocol::{
    host::{Event, Sealed},
    id::{SessionId, Term},
    time::Time,
};
use std::time::{Duration, Instant};

/// What an epoch cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    /// When the guest went on.
    pub(crate) resumed: Time,
    /// How long it stood.
    pub(crate) pause: Duration,
    /// Pages that it may have changed.
    pub(crate) dirty: usize,
    /// Of these, the pages whose first write left the guest.
    pub(crate) first_writes: usize,
    /// What became of its output.
    pub(crate) seal: Seal,
    times: [Duration; 6],
}

impl Ended {
    /// The guest rested after it, and goes on only now.
    pub(crate) fn rested_until(&mut self, now: Time) {
        self.pause += now.since(self.resumed);
        self.resumed = now;
    }

    /// Notes how long everything took.
    pub(crate) fn record(&self, node: &Node) {
        let phases = [
            Phase::Park,
            Phase::Quiesce,
            Phase::Harvest,
            Phase::Copy,
            Phase::State,
            Phase::Resume,
        ];
        for (phase, time) in phases.into_iter().zip(self.times) {
            node.phases.record(phase, time);
        }
        node.phases.record(Phase::Pause, self.pause);
    }
}

/// The machine after an epoch's end.
pub(crate) enum After {
    /// It goes on.
    Runs(Machine),
    /// It rests: that was its last epoch here, for all that is known.
    Rests(Paused),
}

/// Ends the running epoch of `machine`, in this term and for this session. The first whole epoch is the one that is sealed when the full copy has read all. Those before it leave out pages that it will only read later, and pages that
/// change all the time. With `rests` the guest does not go on after it.
///
/// # Errors
/// The machine has ended, or KVM refuses: then there is no machine any more.
#[allow(clippy::too_many_arguments, reason = "all that an epoch touches")]
pub(crate) fn seal(
    machine: Machine,
    (term, session): (Term, SessionId),
    node: &Node,
    output: &Output,
    disks: &WriteLog,
    dirty: &mut PageSet,
    warm: &WarmPages,
    mut staging: Staging,
    full_copy: &FullCopy,
    rests: bool,
) -> Result<(After, Ended), Error> {
    let begun = Instant::now();
    let mut paused = machine.pause()?;
    let parked = Instant::now();
    let full = full_copy.copied();
    let first_writes = if full.all {
        paused.harvest_but(dirty, warm.pages())?
    } else {
        paused.harvest_without(dirty, warm.pages())?
    };
    let harvested = Instant::now();
    staging.clear();
    staging.copy_together(
        paused.memory(),
        dirty.iter().take_while(|page| *page < full.reached),
        |work| paused.together(work),
    );
    let copied = Instant::now();
    let state = staging.state();
    backup::join(state, |out| output.save_addresses(out));
    paused.capture(state)?;
    let captured = Instant::now();
    let seal = output.seal();
    disks.seal(staging.disk());
    node.stage(staging);
    // Told before the guest goes on: the host must know which epoch runs whenever it decides what
    // may leave.
    node.handle(Event::Sealed(Sealed {
        term,
        session,
        complete: full.all,
        released_through: seal.released_through,
        rx_next: node.input.next(),
        rests,
    }));
    let stop = paused.stop_times();
    let after = if rests {
        After::Rests(paused)
    } else {
        After::Runs(paused.resume()?)
    };
    let end = Instant::now();
    node.unstage();
    let ended = Ended {
        resumed: clock::now(),
        pause: end - begun,
        dirty: dirty.count(),
        first_writes,
        seal,
        times: [
            stop.park,
            stop.quiesce,
            harvested - parked,
            copied - harvested,
            captured - copied,
            end - captured,
        ],
    };
    Ok((after, ended))
}
