//! Puts a machine together, in the order that KVM needs.

use super::{Core, Shared, slot_of};
use crate::{
    Error,
    boot::{self, registers},
    chipset::Chipset,
    config::{Config, MEMORY_MIN, VCPUS_MAX},
    devices::Devices,
    error::kvm,
    exit::ExitLatch,
    memory::{Memory, Region},
    vcpu::{Bus, Caps, Team, Vcpu, cpuid},
};
use kvm_bindings::{
    KVM_CAP_PMU_CAPABILITY, KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, KVM_PMU_CAP_DISABLE,
    kvm_cpuid_entry2, kvm_enable_cap, kvm_userspace_memory_region,
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
pub(super) fn boot(config: &Config, console: Box<dyn Write + Send>) -> Result<Core, Error> {
    let parts = Parts::new(config, console, None)?;
    let entry = boot::load(config, &parts.memory, &parts.devices.slots())?;
    for vcpu in &parts.vcpus {
        registers::set_msrs(vcpu)?;
    }
    registers::set(parts.memory.ram(), &parts.vcpus[0], entry)?;
    parts.start(config)
}

/// A machine whose memory and processors are as KVM makes them.
pub(super) fn bare(
    config: &Config,
    console: Box<dyn Write + Send>,
    cpuid: Option<Vec<kvm_cpuid_entry2>>,
) -> Result<Core, Error> {
    Parts::new(config, console, cpuid)?.start(config)
}

/// A machine whose processors and memory `program` makes ready.
pub(super) fn with_program(
    config: &Config,
    console: Box<dyn Write + Send>,
    program: impl FnOnce(&Memory, &[VcpuFd]) -> Result<(), Error>,
) -> Result<Core, Error> {
    let parts = Parts::new(config, console, None)?;
    program(&parts.memory, &parts.vcpus)?;
    parts.start(config)
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
        cpuid: Option<Vec<kvm_cpuid_entry2>>,
    ) -> Result<Self, Error> {
        check(config)?;
        let kvm = open()?;
        let vm = Arc::new(kvm.create_vm().map_err(self::kvm("KVM_CREATE_VM"))?);
        disable_performance_counters(&vm);
        vm.set_tss_address(TSS)
            .map_err(self::kvm("KVM_SET_TSS_ADDR"))?;
        let chipset = Arc::new(Chipset::new(Arc::clone(&vm), console)?);
        let memory = Memory::new(config.memory)?;
        for region in memory.regions() {
            set_slot(&vm, region, 0)?;
        }
        let devices = Devices::new(config, memory.ram().clone(), chipset.lines())?;
        connect(&vm, &devices, memory.regions().len())?;
        let cpuid = if let Some(captured) = cpuid {
            captured
        } else {
            let supported = kvm
                .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
                .map_err(self::kvm("KVM_GET_SUPPORTED_CPUID"))?;
            cpuid::common(supported.as_slice(), config.vcpus)
        };
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

    fn start(self, config: &Config) -> Result<Core, Error> {
        let listed = self
            .kvm
            .get_msr_index_list()
            .map_err(kvm("KVM_GET_MSR_INDEX_LIST"))?;
        let caps = Arc::new(Caps::new(&self.vm, &self.vcpus[0], listed.as_slice())?);
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
        })
    }
}

/// Refuses what cannot be built.
fn check(config: &Config) -> Result<(), Error> {
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
fn open() -> Result<Kvm, Error> {
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
fn disable_performance_counters(vm: &VmFd) {
    let disable = kvm_enable_cap {
        cap: KVM_CAP_PMU_CAPABILITY,
        args: [KVM_PMU_CAP_DISABLE.into(), 0, 0, 0],
        ..Default::default()
    };
    if let Err(error) = vm.enable_cap(&disable) {
        tracing::debug!(%error, "KVM keeps the performance counters");
    }
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
