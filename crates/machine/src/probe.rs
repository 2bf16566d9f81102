//! What a host's KVM can do: its capabilities, and a trial of how fast it really runs a kernel.
//!
//! Some computers offer a `/dev/kvm` that runs programs at full speed but emulates a kernel (ring 0) instruction by
//! instruction: every capability is there and a kernel would still need hours to boot. Only a measurement tells. The
//! trial is a guest of a few instructions in long mode, run once as a program (CPL 3) and once as a kernel (CPL 0).

use crate::error::{Error, kvm};
use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use std::time::{Duration, Instant};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap};

/// A KVM extension that machines need or use, and what for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability {
    /// The name in the kernel's documentation (`Documentation/virt/kvm/api.rst`), without `KVM_CAP_`.
    pub name: &'static str,
    /// Whether this host has it.
    pub present: bool,
    /// Whether machines cannot run without it.
    pub required: bool,
    /// What it is for.
    pub purpose: &'static str,
}

/// Every capability that matters: name, number, whether machines cannot run without it, what it is for. The numbers are
/// the kernel's own (kvm-ioctls does not name them all).
const CAPABILITIES: &[(&str, u32, bool, &str)] = &[
    (
        "IRQCHIP",
        kvm_bindings::KVM_CAP_IRQCHIP,
        true,
        "interrupt controllers in the kernel",
    ),
    (
        "USER_MEMORY",
        kvm_bindings::KVM_CAP_USER_MEMORY,
        true,
        "guest memory",
    ),
    (
        "SET_TSS_ADDR",
        kvm_bindings::KVM_CAP_SET_TSS_ADDR,
        true,
        "real mode on Intel",
    ),
    (
        "EXT_CPUID",
        kvm_bindings::KVM_CAP_EXT_CPUID,
        true,
        "the guest's CPU model",
    ),
    ("PIT2", kvm_bindings::KVM_CAP_PIT2, true, "the legacy timer"),
    (
        "MP_STATE",
        kvm_bindings::KVM_CAP_MP_STATE,
        true,
        "several vCPUs",
    ),
    (
        "ADJUST_CLOCK",
        kvm_bindings::KVM_CAP_ADJUST_CLOCK,
        true,
        "kvm-clock that can be carried on",
    ),
    (
        "VCPU_EVENTS",
        kvm_bindings::KVM_CAP_VCPU_EVENTS,
        true,
        "capturing a vCPU",
    ),
    (
        "DEBUGREGS",
        kvm_bindings::KVM_CAP_DEBUGREGS,
        true,
        "capturing a vCPU",
    ),
    (
        "XSAVE",
        kvm_bindings::KVM_CAP_XSAVE,
        true,
        "capturing a vCPU",
    ),
    ("XCRS", kvm_bindings::KVM_CAP_XCRS, true, "capturing a vCPU"),
    (
        "SREGS2",
        kvm_bindings::KVM_CAP_SREGS2,
        true,
        "capturing a vCPU's page-table pointers (Linux 5.14)",
    ),
    (
        "GET_TSC_KHZ",
        kvm_bindings::KVM_CAP_GET_TSC_KHZ,
        true,
        "the guest's clock rate",
    ),
    (
        "IMMEDIATE_EXIT",
        kvm_bindings::KVM_CAP_IMMEDIATE_EXIT,
        true,
        "pausing without losing a signal",
    ),
    (
        "IOEVENTFD",
        kvm_bindings::KVM_CAP_IOEVENTFD,
        true,
        "devices that are notified without a full exit",
    ),
    (
        "MANUAL_DIRTY_LOG_PROTECT2",
        kvm_bindings::KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
        true,
        "finding changed memory (Linux 5.2)",
    ),
    (
        "IRQFD",
        kvm_bindings::KVM_CAP_IRQFD,
        false,
        "interrupts from devices' threads",
    ),
    (
        "READONLY_MEM",
        kvm_bindings::KVM_CAP_READONLY_MEM,
        false,
        "memory that the guest cannot change",
    ),
    (
        "XSAVE2",
        kvm_bindings::KVM_CAP_XSAVE2,
        false,
        "guests with large vector registers (Linux 5.17)",
    ),
    (
        "DIRTY_LOG_RING",
        kvm_bindings::KVM_CAP_DIRTY_LOG_RING,
        false,
        "finding changed memory by ring (Linux 5.11)",
    ),
    (
        "TSC_CONTROL",
        kvm_bindings::KVM_CAP_TSC_CONTROL,
        false,
        "moving guests between hosts of different clock rates",
    ),
];

/// Asks KVM for its interface's version (12 for every kernel since 2.6.22) and for each capability that matters.
///
/// # Errors
/// `/dev/kvm` cannot be opened.
pub fn capabilities() -> Result<(i32, Vec<Capability>), Error> {
    let device = Kvm::new().map_err(kvm("open /dev/kvm"))?;
    let found = CAPABILITIES
        .iter()
        .map(|&(name, number, required, purpose)| {
            let present = device.check_extension_raw(libc::c_ulong::from(number)) > 0;
            Capability {
                name,
                present,
                required,
                purpose,
            }
        })
        .collect();
    Ok((device.get_api_version(), found))
}

/// How fast KVM ran the trial's guest: nanoseconds, with fractions, for one turn of a loop.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trial {
    /// An empty loop as a program (CPL 3).
    pub program_ns: f64,
    /// The same loop as a kernel (CPL 0).
    pub kernel_ns: f64,
    /// What only a kernel may do: page-table pointer, MSR, TLB.
    pub privileged_ns: f64,
    /// One exit to this process and back (port output).
    pub exit_ns: f64,
}

impl Trial {
    /// How many times slower a kernel runs than a program. About 1 where the processor runs both.
    pub fn slowdown(&self) -> f64 {
        self.kernel_ns / self.program_ns
    }
}

/// Runs the trial. It takes a fraction of a second where kernels run at speed, and some seconds where they are emulated.
///
/// # Errors
/// KVM refuses a call, or cannot go on running the guest: such a KVM runs no kernel.
pub fn trial() -> Result<Trial, Error> {
    let guest = TinyGuest::new()?;
    Ok(Trial {
        program_ns: guest.time(Ring::Program, &COUNT_DOWN)?,
        kernel_ns: guest.time(Ring::Kernel, &COUNT_DOWN)?,
        privileged_ns: guest.time(Ring::Kernel, &PRIVILEGED)?,
        exit_ns: guest.time(Ring::Kernel, &EXITS)?,
    })
}

/// `dec rsi; jnz`, and at the end an exit.
const COUNT_DOWN: [u8; 7] = [0x48, 0xff, 0xce, 0x75, 0xfb, 0xe6, END_PORT];

/// Reads and writes CR3, writes an MSR and drops a TLB entry, `rsi` times.
const PRIVILEGED: [u8; 25] = [
    0x0f, 0x20, 0xd8, // mov rax, cr3
    0x0f, 0x22, 0xd8, // mov cr3, rax
    0xb9, 0x02, 0x01, 0x00, 0xc0, // mov ecx, MSR_KERNEL_GS_BASE
    0x0f, 0x32, // rdmsr
    0x0f, 0x30, // wrmsr
    0x0f, 0x01, 0x3f, // invlpg [rdi]
    0x48, 0xff, 0xce, // dec rsi
    0x75, 0xe7, // jnz to the beginning
    0xe6, END_PORT,
];

/// Writes to a port that is not the end's, `rsi` times.
const EXITS: [u8; 9] = [
    0xe6, OTHER_PORT, 0x48, 0xff, 0xce, 0x75, 0xf9, 0xe6, END_PORT,
];

/// A write to this port ends a run.
const END_PORT: u8 = 0xf4;
/// A write to this port only exits.
const OTHER_PORT: u8 = 0x80;

/// One large page holds everything.
const MEMORY: usize = 2 << 20;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const CODE: u64 = 0x4000;
const STACK: u64 = 0x8000;

/// Turns of the first, shortest run: enough to see, few enough to end soon even when every turn takes microseconds.
const TURNS_MIN: u64 = 256;
/// A run that lasts this long is measured well enough.
const LONG_ENOUGH: Duration = Duration::from_millis(5);
/// Runs of which the fastest counts: whatever else the computer does only slows a run down.
const RUNS: u32 = 3;

#[derive(Clone, Copy)]
enum Ring {
    Program,
    Kernel,
}

/// One vCPU in long mode with one identity-mapped page; no interrupts, no devices.
struct TinyGuest {
    // Before the memory, so that KVM lets go of it first.
    vcpu: std::cell::RefCell<VcpuFd>,
    _vm: VmFd,
    memory: GuestMemoryMmap<()>,
    reset: kvm_sregs,
}

impl TinyGuest {
    fn new() -> Result<Self, Error> {
        let kvm_device = Kvm::new().map_err(kvm("open /dev/kvm"))?;
        let vm = kvm_device.create_vm().map_err(kvm("KVM_CREATE_VM"))?;
        vm.set_tss_address(0xfffb_d000)
            .map_err(kvm("KVM_SET_TSS_ADDR"))?;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)])
            .map_err(|error| host("memory for a trial", error))?;
        let address = memory
            .get_host_address(GuestAddress(0))
            .map_err(|error| host("memory for a trial", error))?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: address as u64,
        };
        // SAFETY: the region is the whole of a mapping that `memory` owns, and the guest is dropped before it.
        unsafe { vm.set_user_memory_region(region) }.map_err(kvm("KVM_SET_USER_MEMORY_REGION"))?;
        let vcpu = vm.create_vcpu(0).map_err(kvm("KVM_CREATE_VCPU"))?;
        let cpuid = kvm_device
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(kvm("KVM_GET_SUPPORTED_CPUID"))?;
        vcpu.set_cpuid2(&cpuid).map_err(kvm("KVM_SET_CPUID2"))?;
        // Present, writable, open to programs; the last one a large page.
        for (address, entry) in [(PML4, PDPT | 0x7), (PDPT, PD | 0x7), (PD, 0x87)] {
            memory
                .write_obj(entry, GuestAddress(address))
                .map_err(|error| host("page tables for a trial", error))?;
        }
        let reset = vcpu.get_sregs().map_err(kvm("KVM_GET_SREGS"))?;
        Ok(Self {
            vcpu: vcpu.into(),
            _vm: vm,
            memory,
            reset,
        })
    }

    /// The time of one turn of `code`, in nanoseconds.
    fn time(&self, ring: Ring, code: &[u8]) -> Result<f64, Error> {
        self.memory
            .write_slice(code, GuestAddress(CODE))
            .map_err(|error| host("code for a trial", error))?;
        let mut turns = TURNS_MIN;
        while self.run(ring, turns)? < LONG_ENOUGH {
            turns *= 2;
        }
        let mut fastest = Duration::MAX;
        for _ in 0..RUNS {
            fastest = fastest.min(self.run(ring, turns)?);
        }
        #[expect(
            clippy::cast_precision_loss,
            reason = "a measurement is not exact to begin with"
        )]
        Ok(fastest.as_nanos() as f64 / turns as f64)
    }

    fn run(&self, ring: Ring, turns: u64) -> Result<Duration, Error> {
        let mut vcpu = self.vcpu.borrow_mut();
        vcpu.set_sregs(&self.long_mode(ring))
            .map_err(kvm("KVM_SET_SREGS"))?;
        vcpu.set_regs(&kvm_regs {
            rip: CODE,
            rsi: turns,
            rdi: CODE,
            rsp: STACK,
            // Bit 1 is always set; I/O privilege 3 lets a program end its run.
            rflags: 0x3002,
            ..kvm_regs::default()
        })
        .map_err(kvm("KVM_SET_REGS"))?;
        let begin = Instant::now();
        loop {
            match vcpu.run() {
                Ok(VcpuExit::IoOut(port, _)) if port == u16::from(END_PORT) => {
                    return Ok(begin.elapsed());
                }
                // Of no interest but for the time that it takes.
                Ok(VcpuExit::IoOut(..)) => {}
                Ok(exit) => {
                    return Err(Error::Invalid(format!(
                        "KVM could not run a few instructions: {exit:?}"
                    )));
                }
                Err(error) if error.errno() == libc::EINTR => {}
                Err(error) => return Err(kvm("KVM_RUN")(error)),
            }
        }
    }

    fn long_mode(&self, ring: Ring) -> kvm_sregs {
        let level = match ring {
            Ring::Kernel => 0,
            Ring::Program => 3,
        };
        let code = kvm_segment {
            limit: u32::MAX,
            selector: 0x08 | u16::from(level),
            type_: 0xb,
            present: 1,
            dpl: level,
            s: 1,
            l: 1,
            g: 1,
            ..kvm_segment::default()
        };
        let data = kvm_segment {
            selector: 0x10 | u16::from(level),
            type_: 0x3,
            l: 0,
            db: 1,
            ..code
        };
        kvm_sregs {
            cs: code,
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            cr0: 0x8000_0033, // paging, protected mode, FPU as after a kernel's start
            cr3: PML4,
            cr4: 0x20,   // physical address extension
            efer: 0x500, // long mode, enabled and active
            ..self.reset
        }
    }
}

fn host(what: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Host {
        what: what.to_owned(),
        source: std::io::Error::other(error),
    }
}
