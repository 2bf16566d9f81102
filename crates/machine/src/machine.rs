//! The machine as a whole, and the types that keep its order of life.

mod build;
mod handle;

pub use handle::{Handle, Statistics};

use crate::{
    Error,
    chipset::Chipset,
    config::Config,
    devices::Devices,
    dirty::DirtyPages,
    error::kvm,
    exit::ExitLatch,
    ioctl,
    memory::Memory,
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
}

/// A machine whose vCPUs run. Dropping it stops and frees everything.
pub struct Machine {
    core: Core,
}

/// A machine whose vCPUs are parked and whose devices are quiesced. Dropping it frees everything.
pub struct Paused {
    core: Core,
    since: Instant,
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
        Ok(Self::fresh(build::boot(config, console)?))
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
        let mut reader = Reader::new(state);
        let cpuid = read_shape(&mut reader, config.vcpus, config.memory)?;
        let mut core = build::bare(config, console, Some(cpuid))?;
        fill(&core.memory)?;
        core.team.restore(&mut reader)?;
        core.chipset.restore(&mut reader)?;
        core.devices.restore(&mut reader)?;
        if !reader.is_empty() {
            return Err(Error::Invalid(
                "captured state: something follows its last section".into(),
            ));
        }
        Ok(Self {
            forgive: true,
            ..Self::fresh(core)
        })
    }

    /// Makes a machine whose memory and processors `program` makes ready.
    pub(crate) fn with_program(
        config: &Config,
        console: Box<dyn Write + Send>,
        program: impl FnOnce(&Memory, &[VcpuFd]) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        Ok(Self::fresh(build::with_program(config, console, program)?))
    }

    fn fresh(core: Core) -> Self {
        Self {
            core,
            since: Instant::now(),
            forgive: false,
        }
    }

    /// Lets it run.
    ///
    /// # Errors
    /// A thread could not be started.
    pub fn resume(mut self) -> Result<Machine, Error> {
        let forgive = self.forgive || self.since.elapsed() > FORGIVE_AFTER;
        self.core.chipset.resume();
        self.core.devices.run()?;
        self.core.team.run(forgive)?;
        Ok(Machine { core: self.core })
    }

    /// Appends the machine's whole state but for its memory to `out`: vCPUs, chipset, clock, devices.
    ///
    /// # Errors
    /// KVM refuses to give a part of it. Then `out` holds a part that is of no use.
    pub fn capture(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        let core = &mut self.core;
        let mut writer = Writer::new(out);
        write_shape(&mut writer, core.vcpus, core.memory.size(), &core.cpuid);
        core.team.save(&mut writer)?;
        core.chipset.save(&mut writer)?;
        core.devices.save(&mut writer);
        Ok(())
    }

    /// The machine's memory.
    pub fn memory(&self) -> &Memory {
        &self.core.memory
    }

    /// Lets the guest's clock jump forward by `time` (for the time in which it did not exist anywhere).
    ///
    /// # Errors
    /// KVM refuses.
    pub fn advance_clock(&mut self, time: Duration) -> Result<(), Error> {
        self.core.chipset.advance_clock(time)
    }

    /// From now on, every page that changes is noted, until [`Self::stop_tracking`]. What changed before is not in the
    /// first harvest: copy all memory between this call and the next [`Self::resume`], or while the machine runs.
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
        Ok(())
    }

    /// Replaces the content of `into` by the pages that changed since the last harvest, or since
    /// [`Self::start_tracking`]: those that KVM saw the guest write, and those that the machine itself wrote. The log
    /// starts anew. Nothing is allocated.
    ///
    /// # Errors
    /// Tracking is off, `into` was made for another machine's memory, or KVM refuses; after the last, the log may have
    /// lost pages, so that all of memory must be taken as changed.
    pub fn harvest(&mut self, into: &mut DirtyPages) -> Result<(), Error> {
        let core = &self.core;
        if !core.tracking {
            return Err(Error::Invalid(
                "pages can be harvested only while they are tracked".into(),
            ));
        }
        if !into.fits(&core.memory) {
            return Err(Error::Invalid(
                "a set of pages of another machine's memory".into(),
            ));
        }
        for (index, region) in core.memory.regions().iter().enumerate() {
            let words = into.words(index);
            ioctl::get_dirty_log(&*core.vm, region.slot, words)
                .map_err(kvm("KVM_GET_DIRTY_LOG"))?;
            // KVM does not see what user space writes.
            core.memory
                .log(index)
                .take(|word, bits| words[word] |= bits);
        }
        into.recount();
        Ok(())
    }

    /// The handle that works from any thread.
    pub fn handle(&self) -> Handle {
        Handle::new(&self.core.latch, &self.core.shared)
    }
}

impl Machine {
    /// Parks every vCPU and quiesces the devices.
    ///
    /// # Errors
    /// The machine has stopped by itself meanwhile.
    pub fn pause(mut self) -> Result<Paused, Error> {
        let core = &mut self.core;
        core.team.park()?;
        core.devices.quiesce();
        core.chipset.pause();
        // Nothing can change a vCPU any more: its thread saves it while this one harvests and copies.
        core.team.begin_save();
        Ok(Paused::fresh(self.core))
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
fn write_shape(writer: &mut Writer<'_>, vcpus: u8, memory: u64, cpuid: &[kvm_cpuid_entry2]) {
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
fn read_shape(
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
mod tests {
    use super::*;

    #[test]
    fn the_shape_must_agree() {
        let mut out = Vec::new();
        let entry = kvm_cpuid_entry2 {
            function: 1,
            eax: 2,
            ..Default::default()
        };
        write_shape(&mut Writer::new(&mut out), 2, 512 << 20, &[entry]);
        let read = |vcpus, memory| read_shape(&mut Reader::new(&out), vcpus, memory);
        assert_eq!(read(2, 512 << 20).unwrap(), [entry]);
        assert!(
            read(1, 512 << 20)
                .unwrap_err()
                .to_string()
                .contains("512 MiB and 2 vCPUs")
        );
        assert!(read(2, 256 << 20).is_err());
    }
}
