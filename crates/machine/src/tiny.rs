//! A guest of a few instructions, for benchmarks and for tests where `/dev/kvm` cannot run a kernel.
//!
//! Some computers offer a KVM that emulates privileged code, far too slowly for a kernel, but runs unprivileged code at
//! full speed. This guest is in 64-bit mode at privilege level 3 from its first instruction: each vCPU counts rounds,
//! and in each round writes the count to the start of some pages of its own. It runs in the same machine as a kernel.
//!
//! The guest's addresses are its page numbers ([`Memory`]) times 4096, so that its pages may lie on both sides of the
//! gap below 4 GiB.

use crate::{
    Error, Memory, Paused,
    boot::registers::{CR0_ET, CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME, segment},
    config::Config,
    error::kvm,
    ioctl,
    memory::PAGE,
    ports::Ports,
};
use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_mp_state, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use std::{io, path::PathBuf};
use vm_memory::{Bytes, GuestAddress};

/// Where the instructions lie.
const CODE: u64 = 0x4000;
/// Page of the first vCPU's count of rounds; those of the others follow.
const COUNTERS: usize = 8;
/// Page tables: level 4, level 3, then a level-2 table for each GiB.
const LEVEL_4: u64 = 0x1_0000;
const LEVEL_3: u64 = 0x1_1000;
const LEVEL_2: u64 = 0x1_2000;
/// The first page that the guest may be told to write.
pub const FIRST_FREE_PAGE: usize = 512;

const HUGE: u64 = 2 << 20;
const ENTRIES: u64 = 512;
/// Present, writable, for user mode.
const USER: u64 = 0b111;
const LARGE: u64 = 1 << 7;
/// Memory beyond cannot be mapped, or the tables would reach into the free pages.
const MEMORY_MAX: u64 = 64 << 30;

/// The loop. RDI: address of the first page; RSI: number of pages; R8: distance in bytes; R9: address of the count;
/// R10: turns to wait after each round.
const PROGRAM: [u8; 36] = [
    0x49, 0x8b, 0x01, // round: mov rax, [r9]
    0x48, 0xff, 0xc0, //        inc rax
    0x49, 0x89, 0x01, //        mov [r9], rax
    0x48, 0x89, 0xfb, //        mov rbx, rdi
    0x48, 0x89, 0xf2, //        mov rdx, rsi
    0x48, 0x89, 0x03, // page:  mov [rbx], rax
    0x4c, 0x01, 0xc3, //        add rbx, r8
    0x48, 0xff, 0xca, //        dec rdx
    0x75, 0xf5, //              jnz page
    0x4c, 0x89, 0xd1, //        mov rcx, r10
    0x48, 0xff, 0xc9, // wait:  dec rcx
    0x79, 0xfb, //              jns wait
    0xeb, 0xdc, //              jmp round
];

/// What each vCPU does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tiny {
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Guest memory in bytes.
    pub memory: u64,
    /// Pages that each vCPU writes in a round, at least 1.
    pub pages: usize,
    /// Distance from one of these pages to the next, in pages, at least 1.
    pub stride: usize,
    /// First page of the first vCPU, at least [`FIRST_FREE_PAGE`]; the next vCPU's first page follows the last one of
    /// this, and so on.
    pub first_page: usize,
    /// Turns of an empty loop after each round.
    pub wait: u32,
}

impl Tiny {
    /// The configuration of the machine that runs it: for [`Paused::restore`] and [`Paused::prepare`].
    pub fn config(&self) -> Config {
        Config {
            name: "tiny".into(),
            vcpus: self.vcpus,
            memory: self.memory,
            kernel: PathBuf::new(),
            initrd: None,
            command_line: String::new(),
            kernel_cache: None,
            nics: Vec::new(),
            disks: Vec::new(),
            entropy: false,
        }
    }

    /// Makes the machine, paused before its first instruction.
    ///
    /// # Errors
    /// As [`Paused::boot`]; pages that do not exist.
    pub fn boot(&self) -> Result<Paused, Error> {
        self.boot_with(&Ports::default())
    }

    /// [`Self::boot`] with `ports`. This guest has no cards and no disks, so that of them only the locking matters.
    ///
    /// # Errors
    /// As [`Self::boot`]; memory that cannot be locked.
    pub fn boot_with(&self, ports: &Ports) -> Result<Paused, Error> {
        let program = |memory: &Memory, vcpus: &[VcpuFd]| {
            self.check(memory)?;
            write_memory(memory).map_err(|e| Error::Invalid(format!("tiny guest: {e}")))?;
            for (vcpu, index) in vcpus.iter().zip(0..) {
                self.set_registers(vcpu, index)?;
            }
            Ok(())
        };
        Paused::with_program(&self.config(), Box::new(io::sink()), ports, program)
    }

    /// The pages that vCPU number `index` writes, in the order in which it writes them.
    pub fn pages_of(&self, index: u8) -> impl Iterator<Item = usize> {
        let first = self.first_page + usize::from(index) * self.pages * self.stride;
        (0..self.pages).map(move |n| first + n * self.stride)
    }

    /// How many rounds vCPU number `index` has begun.
    ///
    /// # Panics
    /// There is no such vCPU.
    pub fn rounds(&self, memory: &Memory, index: u8) -> u64 {
        assert!(index < self.vcpus, "the guest has {} vCPUs", self.vcpus);
        word(memory, COUNTERS + usize::from(index))
    }

    /// Checks that `memory` is what an instant of this guest's life leaves: in each vCPU's pages, the running round's
    /// count up to some page, and the round's before from there on.
    ///
    /// # Errors
    /// The first page that is wrong.
    pub fn check_whole(&self, memory: &Memory) -> Result<(), String> {
        for index in 0..self.vcpus {
            let round = self.rounds(memory, index);
            let mut expected = round;
            for page in self.pages_of(index) {
                let found = word(memory, page);
                if found + 1 == round {
                    expected = found;
                }
                if found != expected {
                    return Err(format!(
                        "vCPU {index}, round {round}: page {page} holds {found}, not {expected}"
                    ));
                }
            }
        }
        Ok(())
    }

    fn check(&self, memory: &Memory) -> Result<(), Error> {
        let wrong = |why: &str| Err(Error::Invalid(format!("tiny guest: {why}")));
        if self.pages == 0 || self.stride == 0 || self.first_page < FIRST_FREE_PAGE {
            return wrong("it must write at least one page, and none of its own");
        }
        if memory.size() > MEMORY_MAX {
            return wrong("too much memory");
        }
        if self
            .pages_of(self.vcpus - 1)
            .last()
            .is_none_or(|last| last >= memory.pages())
        {
            return wrong("its pages do not fit into its memory");
        }
        Ok(())
    }

    fn set_registers(&self, vcpu: &VcpuFd, index: u8) -> Result<(), Error> {
        let mut sregs = ioctl::get_sregs2(vcpu).map_err(kvm("KVM_GET_SREGS2"))?;
        let data = segment(0x2b, 3, 3, false);
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.cs = segment(0x33, 0xb, 3, true);
        sregs.tr = kvm_segment {
            s: 0,
            db: 0,
            ..segment(0x40, 0xb, 0, false)
        };
        sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
        sregs.cr3 = LEVEL_4;
        sregs.cr4 |= CR4_PAE;
        sregs.efer |= EFER_LME | EFER_LMA;
        ioctl::set_sregs2(vcpu, &sregs).map_err(kvm("KVM_SET_SREGS2"))?;
        let address = |page: usize| (page * PAGE) as u64;
        let regs = kvm_regs {
            rip: CODE,
            rflags: 2,
            rdi: address(
                self.pages_of(index)
                    .next()
                    .expect("checked: at least one page"),
            ),
            rsi: self.pages as u64,
            r8: address(self.stride),
            r9: address(COUNTERS + usize::from(index)),
            r10: self.wait.into(),
            ..Default::default()
        };
        vcpu.set_regs(&regs).map_err(kvm("KVM_SET_REGS"))?;
        let runnable = kvm_mp_state {
            mp_state: KVM_MP_STATE_RUNNABLE,
        };
        vcpu.set_mp_state(runnable).map_err(kvm("KVM_SET_MP_STATE"))
    }
}

fn write_memory(memory: &Memory) -> Result<(), vm_memory::GuestMemoryError> {
    let ram = memory.ram();
    ram.write_slice(&PROGRAM, GuestAddress(CODE))?;
    ram.write_obj(LEVEL_3 | USER, GuestAddress(LEVEL_4))?;
    for n in 0..memory.size() / HUGE {
        let table = LEVEL_2 + n / ENTRIES * PAGE as u64;
        if n % ENTRIES == 0 {
            ram.write_obj(table | USER, GuestAddress(LEVEL_3 + n / ENTRIES * 8))?;
        }
        let page = usize::try_from(n * (HUGE / PAGE as u64)).expect("x86-64 addresses fit");
        let target = memory.address(page).expect("within the memory's size");
        ram.write_obj(target | USER | LARGE, GuestAddress(table + n % ENTRIES * 8))?;
    }
    Ok(())
}

/// The first eight bytes of page number `page`.
fn word(memory: &Memory, page: usize) -> u64 {
    let address = memory.address(page).expect("the guest's own page");
    memory
        .ram()
        .read_obj(GuestAddress(address))
        .expect("within one page of memory")
}
