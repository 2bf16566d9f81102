//! The machine as a whole, and the types that keep its order of life.

mod build;
mod handle;
mod likeness;

pub use handle::{Handle, Statistics};
pub use likeness::{Likeness, likeness};

use crate::{
    Error,
    chipset::Chipset,
    config::Config,
    devices::{CableEnd, Devices, TapWriter},
    error::kvm,
    exit::ExitLatch,
    ioctl,
    memory::Memory,
    page_set::{PageSet, for_each_used},
    ports::Ports,
    state::{Reader, Writer, kind},
    vcpu::Team,
};
use handle::Shared;
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_cpuid_entry2, kvm_userspace_memory_region};
use kvm_ioctls::{VcpuFd, VmFd};
use std::{
    convert::Infallible,
    io::Write,
    sync::Arc,
    time::{Duration, Instant},
};

/// Version of the sections written here.
const VERSION: u16 = 1;

/// A guest that stood still for longer is told so, that its watchdogs forgive. Shorter stops stay below every
/// watchdog, and telling would cost a call and a dirty page at each epoch.
const FORGIVE_AFTER: Duration = Duration::from_millis(100);

/// The parts of a machine. They are dropped from the top: first the threads that use the rest.
struct Core {
    team: Team,
    shared: Arc<Shared>,
    chipset: Arc<Chipset>,
    devices: Arc<Devices>,
    latch: Arc<ExitLatch>,
    vm: Arc<VmFd>,
    memory: Memory,
    /// What all vCPUs see in common.
    cpuid: Vec<kvm_cpuid_entry2>,
    vcpus: u8,
    tracking: bool,
    /// Pages that the last harvest left in KVM's log.
    left: usize,
    /// Room for the pages that a harvest takes out of KVM's log.
    taken: PageSet,
    life: Life,
}

/// What a machine's vCPUs and devices hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    /// Nothing that could run: it was prepared, or state was refused half-way.
    Empty,
    /// The start of a program, or state that was loaded.
    Ready,
    /// What came of running it.
    Lived,
}

/// The pages that a harvest leaves writable.
#[derive(Clone, Copy)]
enum Warm<'a> {
    /// None.
    None,
    /// They are in the harvest nevertheless.
    Given(&'a PageSet),
    /// They are left for a later one.
    Left(&'a PageSet),
}

/// How long the steps of a pause took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StopTimes {
    /// From the kick until every vCPU was parked.
    pub park: Duration,
    /// From there until the devices were quiet.
    pub quiesce: Duration,
}

/// A machine whose vCPUs run. Dropping it stops and frees everything.
pub struct Machine {
    core: Core,
}

/// A machine whose vCPUs are parked and whose devices are quiesced. Dropping it frees everything.
pub struct Paused {
    core: Core,
    since: Instant,
    stop: StopTimes,
    /// The guest's watchdogs are to be told of the stop, however short it was here.
    forgive: bool,
}

impl Paused {
    /// Makes a new machine with its kernel loaded, paused before its first instruction. What the guest writes to its
    /// serial port goes to `console`.
    ///
    /// # Errors
    /// A file, tap or permission that is missing, by name; a kernel that is none.
    pub fn boot(config: &Config, console: Box<dyn Write + Send>) -> Result<Self, Error> {
        Self::boot_with(config, console, &Ports::default())
    }

    /// [`Self::boot`], connected to `ports`.
    ///
    /// # Errors
    /// As [`Self::boot`]; memory that cannot be locked.
    pub fn boot_with(
        config: &Config,
        console: Box<dyn Write + Send>,
        ports: &Ports,
    ) -> Result<Self, Error> {
        Ok(Self::fresh(build::boot(config, console, ports)?))
    }

    /// Makes a machine that stands ready for captured state ([`Self::load`]): memory is mapped, and locked if asked,
    /// vCPUs, devices and threads are made. Its taps are opened and configured but shut, so that no stale frame is in
    /// them when it runs. `config` describes the captured machine; its kernel, initrd and command line are not looked at.
    ///
    /// # Errors
    /// As [`Self::boot_with`].
    pub fn prepare(
        config: &Config,
        console: Box<dyn Write + Send>,
        ports: &Ports,
    ) -> Result<Self, Error> {
        Ok(Self::fresh(build::bare(config, console, ports)?))
    }

    /// Makes a machine around `memory` (a [`Memory::private_copy`]) in which captured state can be let run for trial: it stands ready
    /// for [`Self::load`]. What its guest does reaches nothing outside of it. Each card has a cable instead of a tap, whose other end is returned in the order
    /// of the configuration, its console is lost, and its disks are read but not written. `config` describes the captured machine.
    ///
    /// # Errors
    /// KVM refuses, or `memory` is not as large as the configured one; a disk that is missing.
    pub fn rehearse(config: &Config, memory: Memory) -> Result<(Self, Vec<CableEnd>), Error> {
        if memory.size() != config.memory {
            return Err(Error::Invalid(
                "a machine is to run in memory of another size".into(),
            ));
        }
        let (core, ends) = build::rehearsal(config, memory)?;
        Ok((Self::fresh(core), ends))
    }

    /// Takes captured state into a machine that has never run. Memory must hold what belongs to it by the time of
    /// [`Self::resume`]; it is neither read nor written here. It may be called again and again: each call replaces what the
    /// last one loaded. The guest's clock goes on from the captured value at once ([`Self::advance_clock`] adds to that).
    ///
    /// At resume the guest's watchdogs are told to forgive, interrupts that were pending are raised again, and every queue
    /// is looked at.
    ///
    /// # Errors
    /// State that is damaged, or of a machine of another shape; KVM refuses a part of it; a tap was deleted meanwhile. After that this machine holds no
    /// state: it can neither run nor be captured until other state is loaded. A machine that has run takes none; it
    /// stays as it was.
    pub fn load(&mut self, state: &[u8]) -> Result<(), Error> {
        let core = &mut self.core;
        if core.life == Life::Lived {
            return Err(Error::Invalid(
                "a machine that has run takes no captured state".into(),
            ));
        }
        core.life = Life::Empty;
        let mut reader = Reader::new(state);
        let cpuid = read_shape(&mut reader, core.vcpus, core.memory.size())?;
        let differs = (core.cpuid != cpuid).then(|| {
            // Until all vCPUs have it, none of the two is known to be right.
            core.cpuid.clear();
            &cpuid[..]
        });
        core.team.restore(&mut reader, differs)?;
        core.cpuid = cpuid;
        core.chipset.restore(&mut reader)?;
        core.devices.restore(&mut reader)?;
        if !reader.is_empty() {
            return Err(Error::Invalid(
                "captured state: something follows its last section".into(),
            ));
        }
        core.devices.check_taps()?;
        core.life = Life::Ready;
        self.forgive = true;
        Ok(())
    }

    /// Makes a machine out of captured state, paused where it was captured. `fill` writes the captured memory.
    /// `config` describes the same machine; its kernel, initrd and command line are not looked at.
    ///
    /// # Errors
    /// As [`Self::boot`]; state that is damaged or of a machine of another shape; what `fill` returns.
    pub fn restore(
        config: &Config,
        console: Box<dyn Write + Send>,
        state: &[u8],
        fill: impl FnOnce(&Memory) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        // Before anything is made: the likeliest mistake.
        read_shape(&mut Reader::new(state), config.vcpus, config.memory)?;
        let mut machine = Self::prepare(config, console, &Ports::default())?;
        fill(machine.memory())?;
        machine.load(state)?;
        machine.open_taps()?;
        Ok(machine)
    }

    /// Brings the taps of the cards up, so that frames pass. It may be called again; where it never was,
    /// [`Self::resume`] does it.
    ///
    /// # Errors
    /// A tap that is gone, or may not be brought up by this user.
    pub fn open_taps(&self) -> Result<(), Error> {
        self.core.devices.open_taps()
    }

    /// Takes frames in that have come for the guest while it stands, so many of each card at most: the machine's
    /// [`Inlet`](crate::Inlet) learns of them as of all others, and the guest gets them first when it goes on, like what is
    /// [injected](Self::inject). Some hundreds wait so at most. Returns how many were taken.
    pub fn take_in(&self, frames: usize) -> usize {
        self.core.devices.take_in(frames)
    }

    /// Gives card number `card` (in the order of the configuration) a frame that its guest gets before anything from the tap,
    /// with its virtio-net header in front, as a tap would give it. A frame that the card could not have received, or for
    /// a card that is not there, is dropped. Until the guest has room for it, it is no part of captured state.
    pub fn inject(&self, card: usize, frame: &[u8]) {
        self.core.devices.inject(card, frame);
    }

    /// A writer for each card's tap, in the order of the configuration.
    pub fn taps(&self) -> Vec<TapWriter> {
        self.core.devices.taps()
    }

    /// Makes a machine whose memory and processors `program` makes ready.
    pub(crate) fn with_program(
        config: &Config,
        console: Box<dyn Write + Send>,
        ports: &Ports,
        program: impl FnOnce(&Memory, &[VcpuFd]) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let core = build::with_program(config, console, ports, program)?;
        Ok(Self::fresh(core))
    }

    fn fresh(core: Core) -> Self {
        Self {
            core,
            since: Instant::now(),
            stop: StopTimes::default(),
            forgive: false,
        }
    }

    /// Lets it run.
    ///
    /// # Errors
    /// It was prepared and holds no state; a tap could not be brought up or a thread not be started.
    pub fn resume(mut self) -> Result<Machine, Error> {
        self.check_life()?;
        self.core.devices.open_taps()?;
        self.core.life = Life::Lived;
        let forgive = self.forgive || self.since.elapsed() > FORGIVE_AFTER;
        self.core.chipset.resume();
        self.core.devices.run()?;
        self.core.team.run(forgive)?;
        Ok(Machine { core: self.core })
    }

    /// Appends the machine's whole state but for its memory to `out`: vCPUs, chipset, clock, devices.
    ///
    /// # Errors
    /// KVM refuses to give a part of it; then `out` holds a part that is of no use. The machine was prepared and holds no
    /// state.
    pub fn capture(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        self.check_life()?;
        let core = &mut self.core;
        let mut writer = Writer::new(out);
        write_shape(&mut writer, core.vcpus, core.memory.size(), &core.cpuid);
        core.team.save(&mut writer)?;
        core.chipset.save(&mut writer)?;
        core.devices.save(&mut writer);
        Ok(())
    }

    fn check_life(&self) -> Result<(), Error> {
        if self.core.life == Life::Empty {
            return Err(Error::Invalid(
                "the machine was prepared for captured state, but none was loaded".into(),
            ));
        }
        Ok(())
    }

    /// The machine's memory.
    pub fn memory(&self) -> &Memory {
        &self.core.memory
    }

    /// How long the pause took that gave this. Zero for a machine that has not run.
    pub fn stop_times(&self) -> StopTimes {
        self.stop
    }

    /// Lets the guest's clock jump forward by `time` (for the time in which it did not exist anywhere). The clock of a
    /// paused machine goes on by itself, from a capture or a load on as well: that time is not to be added again.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn advance_clock(&mut self, time: Duration) -> Result<(), Error> {
        self.core.chipset.advance_clock(time)
    }

    /// From now on, every page that changes is noted, until [`Self::stop_tracking`]. What changed before is not in the
    /// first harvest: copy all memory between this call and the next [`Self::resume`], or while the machine runs.
    ///
    /// From here on KVM maps the guest by 4 KiB pages, so that a write dirties no more than its page: it takes its huge
    /// mappings apart, or maps anew at the next fault, whatever lies underneath (huge or locked pages of this process). After
    /// [`Self::stop_tracking`] it goes back to huge mappings.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn start_tracking(&mut self) -> Result<(), Error> {
        self.set_tracking(true)?;
        for index in 0..self.core.memory.regions().len() {
            self.core.memory.log(index).clear();
        }
        Ok(())
    }

    /// Stops noting changes; the guest runs faster.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn stop_tracking(&mut self) -> Result<(), Error> {
        self.set_tracking(false)
    }

    fn set_tracking(&mut self, on: bool) -> Result<(), Error> {
        if self.core.tracking == on {
            return Ok(());
        }
        for region in self.core.memory.regions() {
            let flags = if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
            build::set_slot(&self.core.vm, region, flags)?;
        }
        self.core.tracking = on;
        self.core.left = 0;
        Ok(())
    }

    /// Replaces the content of `into` by the pages that changed since the last harvest, or since
    /// [`Self::start_tracking`]: those that KVM saw the guest write, and those that the machine itself wrote. The log
    /// starts anew. Nothing is allocated.
    ///
    /// # Errors
    /// Tracking is off, `into` was made for another machine's memory, or KVM refuses; after the last, the log may have
    /// lost pages, so that all of memory must be taken as changed.
    pub fn harvest(&mut self, into: &mut PageSet) -> Result<(), Error> {
        self.harvest_log(into, Warm::None).map(|_| ())
    }

    /// As [`Self::harvest`], but pages of `warm` that the guest has written stay writable: its next write to them is
    /// not noted, costs it nothing, and each harvest gives them until one is made in which they are not warm. Gives the
    /// number of pages that the guest wrote first since the last harvest: each left the guest once.
    ///
    /// # Errors
    /// As [`Self::harvest`]; `warm` was made for another machine's memory.
    pub fn harvest_but(&mut self, into: &mut PageSet, warm: &PageSet) -> Result<usize, Error> {
        self.harvest_log(into, Warm::Given(warm))
    }

    /// As [`Self::harvest_but`], but without the pages that stay writable: they are left for a later harvest, which gives them
    /// whether the guest has written them again or not. For as long as nothing depends on what is harvested being all:
    /// before a first full copy is whole, a page that changes all the time need not be copied.
    ///
    /// # Errors
    /// As [`Self::harvest_but`].
    pub fn harvest_without(&mut self, into: &mut PageSet, warm: &PageSet) -> Result<usize, Error> {
        self.harvest_log(into, Warm::Left(warm))
    }

    /// Does `work` in this thread and, where the host has processors for that, in those of the vCPUs, which have nothing to do
    /// but to be saved. On return all have returned from it.
    ///
    /// # Panics
    /// `work` has.
    pub fn together(&self, work: &(dyn Fn() + Sync)) {
        self.core.team.together(work);
    }

    fn harvest_log(&mut self, into: &mut PageSet, warm: Warm<'_>) -> Result<usize, Error> {
        let leave = matches!(warm, Warm::Left(_));
        let warm = match warm {
            Warm::None => None,
            Warm::Given(warm) | Warm::Left(warm) => Some(warm),
        };
        let core = &mut self.core;
        if !core.tracking {
            return Err(Error::Invalid(
                "pages can be harvested only while they are tracked".into(),
            ));
        }
        if !into.fits(&core.memory) || warm.is_some_and(|warm| !warm.fits(&core.memory)) {
            return Err(Error::Invalid(
                "a set of pages of another machine's memory".into(),
            ));
        }
        let (mut found, mut left) = (0, 0);
        for (index, region) in core.memory.regions().iter().enumerate() {
            let words = into.words_mut(index);
            ioctl::get_dirty_log(&*core.vm, region.slot, words)
                .map_err(kvm("KVM_GET_DIRTY_LOG"))?;
            let warm = warm.map(|warm| warm.words(index));
            // Zeroes alone between harvests, so that it need not be gone through again.
            let taken = core.taken.words_mut(index);
            let mut span: Option<(usize, usize)> = None;
            for_each_used(words, |n, word| {
                let stays = warm.map_or(0, |warm| warm[n] & *word);
                let back = *word & !stays;
                found += word.count_ones() as usize;
                left += stays.count_ones() as usize;
                if back != 0 {
                    taken[n] = back;
                    span = Some((span.map_or(n, |(first, _)| first), n));
                }
                if leave {
                    *word = back;
                }
            });
            // The kernel looks at all that it is given.
            if let Some((first, last)) = span {
                let taken = &mut taken[first..=last];
                let cleared = ioctl::clear_dirty_log(&*core.vm, region.slot, first * 64, taken);
                taken.fill(0);
                cleared.map_err(kvm("KVM_CLEAR_DIRTY_LOG"))?;
            }
            // KVM does not see what user space writes.
            core.memory
                .log(index)
                .take(|word, bits| words[word] |= bits);
        }
        into.recount();
        let written_first = found - core.left.min(found);
        core.left = left;
        Ok(written_first)
    }

    /// The handle that works from any thread.
    pub fn handle(&self) -> Handle {
        Handle::new(&self.core.latch, &self.core.shared)
    }
}

impl Machine {
    /// How long the guest has slept since this was last asked: the time that even its busiest vCPU spent in HLT. Where the
    /// kernel does not count that (before Linux 5.15) it never sleeps.
    pub fn slept(&mut self) -> Duration {
        self.core.team.slept()
    }

    /// Parks every vCPU and quiesces the devices.
    ///
    /// # Errors
    /// The machine has stopped by itself meanwhile.
    pub fn pause(mut self) -> Result<Paused, Error> {
        let core = &mut self.core;
        let kicked = Instant::now();
        core.team.park()?;
        let parked = Instant::now();
        core.devices.quiesce();
        core.chipset.pause();
        // Nothing can change a vCPU any more: its thread saves it while this one harvests and copies.
        core.team.begin_save();
        let since = Instant::now();
        Ok(Paused {
            core: self.core,
            since,
            stop: StopTimes {
                park: parked - kicked,
                quiesce: since - parked,
            },
            forgive: false,
        })
    }

    /// As [`Paused::inject`], while the guest runs.
    pub fn inject(&self, card: usize, frame: &[u8]) {
        self.core.devices.inject_now(card, frame);
    }

    /// The machine's memory. While the guest runs, pages that are read may be torn.
    pub fn memory(&self) -> &Memory {
        &self.core.memory
    }

    /// A writer for each card's tap, in the order of the configuration.
    pub fn taps(&self) -> Vec<TapWriter> {
        self.core.devices.taps()
    }

    /// The handle that works from any thread.
    pub fn handle(&self) -> Handle {
        Handle::new(&self.core.latch, &self.core.shared)
    }
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Paused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Paused").finish_non_exhaustive()
    }
}

/// Writes what a machine must have in common with the state that it takes.
pub(crate) fn write_shape(
    writer: &mut Writer<'_>,
    vcpus: u8,
    memory: u64,
    cpuid: &[kvm_cpuid_entry2],
) {
    let shape = writer.section(kind::SHAPE, 0, VERSION, |p| {
        p.put(&memory);
        p.put(&vcpus);
        Ok::<_, Infallible>(())
    });
    let cpuid = writer.section(kind::CPUID, 0, VERSION, |p| {
        p.put(&u32::try_from(cpuid.len()).expect("at most 256"));
        for entry in cpuid {
            p.put(entry);
        }
        Ok::<_, Infallible>(())
    });
    match (shape, cpuid) {
        (Ok(()), Ok(())) => {}
    }
}

/// Reads what [`write_shape`] wrote and compares it with the machine that is to take the state.
pub(crate) fn read_shape(
    reader: &mut Reader<'_>,
    vcpus: u8,
    memory: u64,
) -> Result<Vec<kvm_cpuid_entry2>, Error> {
    let mut fields = reader.section(kind::SHAPE, 0, VERSION)?;
    let (their_memory, their_vcpus) = (fields.get::<u64>()?, fields.get::<u8>()?);
    if (their_memory, their_vcpus) != (memory, vcpus) {
        return Err(fields
            .invalid(format!(
                "of a machine with {} MiB and {their_vcpus} vCPUs; this one has {} MiB and {vcpus}",
                their_memory >> 20,
                memory >> 20
            ))
            .into());
    }
    fields.finish()?;
    let mut fields = reader.section(kind::CPUID, 0, VERSION)?;
    let count = fields.get::<u32>()?;
    if count as usize > kvm_bindings::KVM_MAX_CPUID_ENTRIES {
        return Err(fields.invalid(format!("{count} CPUID entries")).into());
    }
    let entries = (0..count).map(|_| fields.get()).collect::<Result<_, _>>()?;
    fields.finish()?;
    Ok(entries)
}

/// What KVM is told about a region of memory.
fn slot_of(region: &crate::memory::Region, flags: u32) -> kvm_userspace_memory_region {
    kvm_userspace_memory_region {
        slot: region.slot,
        flags,
        guest_phys_addr: region.start,
        memory_size: region.length,
        userspace_addr: region.host as u64,
    }
}

#[cfg(test)]
mod tests;
