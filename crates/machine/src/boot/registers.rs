//! The state in which the first vCPU enters a kernel: 64-bit mode, as the boot protocol's "64-bit boot" wants it.

use crate::{
    Error,
    error::kvm,
    ioctl::{self, MsrBuffer},
    memory::Ram,
    vcpu::msrs,
};
use kvm_bindings::{kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

/// Where execution starts, and what it finds in RSI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) address: u64,
    pub(crate) parameter: u64,
}

const GDT: u64 = 0x500;
const STACK_TOP: u64 = 0x8ff0;
/// Page tables: one level-4 table, one level-3 table, then a level-2 table for each GiB.
const LEVEL_4: u64 = 0x9000;
const LEVEL_3: u64 = 0xa000;
const LEVEL_2: u64 = 0xb000;
/// What is mapped: everything below 4 GiB, where a kernel and what it is given can lie.
const GIBS: u64 = 4;

pub(crate) const CR0_PE: u64 = 1;
pub(crate) const CR0_ET: u64 = 1 << 4;
pub(crate) const CR0_PG: u64 = 1 << 31;
pub(crate) const CR4_PAE: u64 = 1 << 5;
pub(crate) const EFER_LME: u64 = 1 << 8;
pub(crate) const EFER_LMA: u64 = 1 << 10;
const RFLAGS_RESERVED: u64 = 2;
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;
/// `MTRRdefType`: enabled, write-back. Firmware would have set it.
const WRITE_BACK: u64 = 1 << 11 | 6;

/// The segments that the protocol names: `__BOOT_CS` 0x10 and `__BOOT_DS` 0x18, flat, and a task segment.
const GDT_ENTRIES: [u64; 5] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x008f_8b00_0000_ffff,
];

/// Makes `vcpu` ready to enter at `entry`, and writes the tables that this takes.
pub(crate) fn set(ram: &Ram, vcpu: &VcpuFd, entry: Entry) -> Result<(), Error> {
    write_tables(ram).map_err(|e| Error::Invalid(format!("boot tables: {e}")))?;
    let mut sregs = ioctl::get_sregs2(vcpu).map_err(kvm("KVM_GET_SREGS2"))?;
    let data = segment(0x18, 3, 0, false);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.cs = segment(0x10, 0xb, 0, true);
    sregs.tr = kvm_segment {
        s: 0,
        db: 0,
        ..segment(0x20, 0xb, 0, false)
    };
    sregs.gdt.base = GDT;
    sregs.gdt.limit = u16::try_from(size_of_val(&GDT_ENTRIES) - 1).expect("40 bytes");
    // No interrupt descriptors: interrupts are off, and a fault this early is a reset.
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.cr3 = LEVEL_4;
    sregs.cr4 |= CR4_PAE;
    sregs.efer |= EFER_LME | EFER_LMA;
    ioctl::set_sregs2(vcpu, &sregs).map_err(kvm("KVM_SET_SREGS2"))?;
    let regs = kvm_regs {
        rflags: RFLAGS_RESERVED,
        rip: entry.address,
        rsi: entry.parameter,
        rsp: STACK_TOP,
        rbp: STACK_TOP,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(kvm("KVM_SET_REGS"))?;
    let fpu = kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    };
    vcpu.set_fpu(&fpu).map_err(kvm("KVM_SET_FPU"))
}

/// What firmware would have left in every processor's MSRs.
pub(crate) fn set_msrs(vcpu: &VcpuFd) -> Result<(), Error> {
    let memory_type = kvm_msr_entry {
        index: msrs::MTRR_DEFAULT,
        data: WRITE_BACK,
        ..Default::default()
    };
    match ioctl::set_msrs(vcpu, &MsrBuffer::new(&[memory_type])) {
        Ok(1) => Ok(()),
        Ok(_) => Err(Error::Invalid(
            "KVM does not take the default memory type (MTRRdefType)".into(),
        )),
        Err(error) => Err(kvm("KVM_SET_MSRS")(error)),
    }
}

/// A flat segment of privilege level `level`: of 64-bit code if `long`, else of 32 bits.
pub(crate) fn segment(selector: u16, kind: u8, level: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_: kind,
        present: 1,
        dpl: level,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

fn write_tables(ram: &Ram) -> Result<(), vm_memory::GuestMemoryError> {
    for (entry, at) in GDT_ENTRIES.iter().zip((GDT..).step_by(8)) {
        ram.write_obj(*entry, GuestAddress(at))?;
    }
    ram.write_obj(LEVEL_3 | PRESENT_WRITABLE, GuestAddress(LEVEL_4))?;
    for gib in 0..GIBS {
        let table = LEVEL_2 + gib * 0x1000;
        ram.write_obj(table | PRESENT_WRITABLE, GuestAddress(LEVEL_3 + gib * 8))?;
    }
    let mut page = 0u64;
    for at in (LEVEL_2..LEVEL_2 + GIBS * 0x1000).step_by(8) {
        ram.write_obj(page | PRESENT_WRITABLE | LARGE, GuestAddress(at))?;
        page += 2 << 20;
    }
    Ok(())
}
