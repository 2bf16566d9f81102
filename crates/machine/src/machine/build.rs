//! Puts a machine together, in the order that KVM needs.

use super::{Core, Life, Shared, slot_of};
use crate::{
    Error,
    boot::{self, registers},
    chipset::Chipset,
    config::{Config, MEMORY_MIN, VCPUS_MAX},
    devices::{CableEnd, Devices, InterruptLine},
    error::kvm,
    exit::ExitLatch,
    memory::{Memory, Ram, Region},
    page_set::PageSet,
    ports::Ports,
    vcpu::{Bus, Caps, Team, Vcpu, cpuid},
};
use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CAP_PMU_CAPABILITY, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
    KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, KVM_PMU_CAP_DISABLE, kvm_cpuid_entry2, kvm_enable_cap,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use std::{
    io::{self, Write},
    sync::Arc,
};

/// Where KVM keeps three pages of its own on Intel hosts, in the gap below 4 GiB.
const TSS: usize = 0xfffb_d000;
/// Memory must be a multiple of this, so that huge pages fit.
const MEMORY_UNIT: u64 = 2 << 20;

/// What the host must be able to do, with the name that its documentation has.
const NEEDED: [(Cap, &str); 7] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
];

/// A machine with a kernel in its memory.
pub(super) fn boot(
    config: &Config,
    console: Box<dyn Write + Send>,
    ports: &Ports,
) -> Result<Core, Error> {
    let made = Parts::new(config, console, ports, false)?;
    let entry = boot::load(config, &made.memory, &made.devices.slots())?;
    for vcpu in &made.vcpus {
        registers::set_msrs(vcpu)?;
    }
    registers::set(made.memory.ram(), &made.vcpus[0], entry)?;
    made.devices.open_taps()?;
    made.start(config, Life::Ready)
}

/// A machine whose memory and processors are as KVM makes them, with its taps shut.
pub(super) fn bare(
    config: &Config,
    console: Box<dyn Write + Send>,
    ports: &Ports,
) -> Result<Core, Error> {
    Parts::new(config, console, ports, true)?.start(config, Life::Empty)
}

/// A machine around `memory` that reaches nothing outside, for a rehearsal, with the other ends of its cards' cables.
pub(super) fn rehearsal(config: &Config, memory: Memory) -> Result<(Core, Vec<CableEnd>), Error> {
    check(config)?;
    let mut ends = Vec::new();
    let parts = Parts::around(config, Box::new(io::sink()), memory, |ram, lines| {
        let (devices, others) = Devices::rehearse(config, ram, lines)?;
        ends = others;
        Ok(devices)
    })?;
    Ok((parts.start(config, Life::Empty)?, ends))
}

/// A machine whose processors and memory `program` makes ready.
pub(super) fn with_program(
    config: &Config,
    console: Box<dyn Write + Send>,
    ports: &Ports,
    program: impl FnOnce(&Memory, &[VcpuFd]) -> Result<(), Error>,
) -> Result<Core, Error> {
    let made = Parts::new(config, console, ports, false)?;
    program(&made.memory, &made.vcpus)?;
    made.devices.open_taps()?;
    made.start(config, Life::Ready)
}

/// A machine before its threads.
struct Parts {
    kvm: Kvm,
    vm: Arc<VmFd>,
    memory: Memory,
    chipset: Arc<Chipset>,
    devices: Arc<Devices>,
    vcpus: Vec<VcpuFd>,
    cpuid: Vec<kvm_cpuid_entry2>,
}

impl Parts {
    fn new(
        config: &Config,
        console: Box<dyn Write + Send>,
        ports: &Ports,
        shut: bool,
    ) -> Result<Self, Error> {
        check(config)?;
        let memory = if ports.shareable && shut {
            Memory::shareable(config.memory, ports.lock_memory)?
        } else {
            Memory::new(config.memory)?
        };
        if ports.lock_memory {
            memory.lock()?;
        }
        Self::around(config, console, memory, |ram, lines| {
            Devices::new(config, ram, lines, ports, shut)
        })
    }

    fn around(
        config: &Config,
        console: Box<dyn Write + Send>,
        memory: Memory,
        devices: impl FnOnce(Ram, Arc<dyn InterruptLine>) -> Result<Devices, Error>,
    ) -> Result<Self, Error> {
        let kvm = open()?;
        let vm = Arc::new(kvm.create_vm().map_err(self::kvm("KVM_CREATE_VM"))?);
        disable_performance_counters(&vm);
        protect_by_hand(&vm)?;
        vm.set_tss_address(TSS)
            .map_err(self::kvm("KVM_SET_TSS_ADDR"))?;
        let chipset = Arc::new(Chipset::new(Arc::clone(&vm), console)?);
        for region in memory.regions() {
            set_slot(&vm, region, 0)?;
        }
        let devices = devices(memory.ram().clone(), chipset.lines())?;
        connect(&vm, &devices, memory.regions().len())?;
        let cpuid = guest_cpuid(&kvm, config.vcpus)?;
        let vcpus = (0..config.vcpus)
            .map(|index| {
                let vcpu = vm
                    .create_vcpu(index.into())
                    .map_err(self::kvm("KVM_CREATE_VCPU"))?;
                vcpu.set_cpuid2(&cpuid::of_vcpu(&cpuid, index))
                    .map_err(self::kvm("KVM_SET_CPUID2"))?;
                Ok(vcpu)
            })
            .collect::<Result<_, Error>>()?;
        Ok(Self {
            kvm,
            vm,
            memory,
            chipset,
            devices: Arc::new(devices),
            vcpus,
            cpuid,
        })
    }

    fn start(self, config: &Config, life: Life) -> Result<Core, Error> {
        let caps = Arc::new(caps(&self.kvm, &self.vm, &self.vcpus[0])?);
        let vcpus = self
            .vcpus
            .into_iter()
            .zip(0..)
            .map(|(fd, index)| Vcpu::new(fd, index, Arc::clone(&caps)))
            .collect();
        let latch = Arc::new(ExitLatch::default());
        let bus = Bus {
            chipset: Arc::clone(&self.chipset),
            devices: Arc::clone(&self.devices),
        };
        let team = Team::start(vcpus, &bus, Arc::clone(&latch), &config.name)?;
        let shared = Arc::new(Shared {
            chipset: Arc::clone(&self.chipset),
            devices: Arc::clone(&self.devices),
            exits: Box::new(team.exit_counter()),
        });
        let taken = PageSet::new(&self.memory);
        Ok(Core {
            team,
            shared,
            chipset: self.chipset,
            devices: self.devices,
            latch,
            vm: self.vm,
            memory: self.memory,
            cpuid: self.cpuid,
            vcpus: config.vcpus,
            tracking: false,
            left: 0,
            taken,
            life,
        })
    }
}

/// What every vCPU of a machine with `vcpus` of them has in common on this host.
pub(super) fn guest_cpuid(kvm: &Kvm, vcpus: u8) -> Result<Vec<kvm_cpuid_entry2>, Error> {
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(self::kvm("KVM_GET_SUPPORTED_CPUID"))?;
    Ok(cpuid::common(supported.as_slice(), vcpus))
}

/// What the state of a vCPU consists of on this host. `first` has its CPUID.
pub(super) fn caps(kvm: &Kvm, vm: &VmFd, first: &VcpuFd) -> Result<Caps, Error> {
    let listed = kvm
        .get_msr_index_list()
        .map_err(self::kvm("KVM_GET_MSR_INDEX_LIST"))?;
    Caps::new(vm, first, listed.as_slice())
}

/// Refuses what cannot be built.
pub(super) fn check(config: &Config) -> Result<(), Error> {
    if config.vcpus == 0 || config.vcpus > VCPUS_MAX {
        return Err(Error::Invalid(format!(
            "{} vCPUs: a machine has 1 to {VCPUS_MAX}",
            config.vcpus
        )));
    }
    if config.memory < MEMORY_MIN || !config.memory.is_multiple_of(MEMORY_UNIT) {
        return Err(Error::Invalid(format!(
            "{} bytes of memory: a machine has at least {} MiB, and a multiple of {} MiB",
            config.memory,
            MEMORY_MIN >> 20,
            MEMORY_UNIT >> 20
        )));
    }
    Ok(())
}

/// Opens KVM and checks that it can do what is needed.
pub(super) fn open() -> Result<Kvm, Error> {
    let unusable = |source| Error::Host {
        what: "/dev/kvm".into(),
        source,
    };
    let kvm = Kvm::new().map_err(|error| unusable(error.into()))?;
    for (cap, name) in NEEDED {
        if !kvm.check_extension(cap) {
            return Err(unusable(io::Error::other(format!(
                "lacks {name}, which Linux 5.17 or newer on x86-64 has"
            ))));
        }
    }
    Ok(kvm)
}

/// The guest has none (its CPUID says so); where KVM lets us, it need not even emulate them.
pub(super) fn disable_performance_counters(vm: &VmFd) {
    let disable = kvm_enable_cap {
        cap: KVM_CAP_PMU_CAPABILITY,
        args: [KVM_PMU_CAP_DISABLE.into(), 0, 0, 0],
        ..Default::default()
    };
    if let Err(error) = vm.enable_cap(&disable) {
        tracing::debug!(%error, "KVM keeps the performance counters");
    }
}

/// Leaves it to this process which pages are write-protected again, and when.
fn protect_by_hand(vm: &VmFd) -> Result<(), Error> {
    let by_hand = kvm_enable_cap {
        cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
        args: [KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE.into(), 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&by_hand)
        .map_err(kvm("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 (Linux 5.2)"))
}

/// Tells KVM about a region of memory, or changes its flags.
pub(super) fn set_slot(vm: &VmFd, region: &Region, flags: u32) -> Result<(), Error> {
    // SAFETY: the region is mapped in full, and the machine that owns the VM owns the mapping for as long.
    unsafe { vm.set_user_memory_region(slot_of(region, flags)) }
        .map_err(kvm("KVM_SET_USER_MEMORY_REGION"))
}

/// Registers the devices' doorbells and, where the host can, their register pages, in memory slots from `first_slot` on.
fn connect(vm: &VmFd, devices: &Devices, first_slot: usize) -> Result<(), Error> {
    for bell in devices.doorbells() {
        vm.register_ioevent(bell.event, &IoEventAddress::Mmio(bell.address), bell.value)
            .map_err(kvm("KVM_IOEVENTFD"))?;
    }
    if !vm.check_extension(Cap::ReadonlyMem) {
        return Ok(());
    }
    for (page, slot) in devices.register_pages().into_iter().zip(first_slot..) {
        let region = kvm_userspace_memory_region {
            slot: u32::try_from(slot).expect("a handful"),
            flags: KVM_MEM_READONLY,
            guest_phys_addr: page.guest,
            memory_size: crate::memory::PAGE as u64,
            userspace_addr: page.host,
        };
        // SAFETY: the page stays valid as long as the devices, which go after the vCPUs; and the guest cannot write it.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(kvm("KVM_SET_USER_MEMORY_REGION (read-only)"))?;
    }
    Ok(())
}
