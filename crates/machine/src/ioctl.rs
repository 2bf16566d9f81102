//! KVM calls that kvm-ioctls lacks, or that it makes in a way that allocates. Numbers and structures are those of the
//! kernel's `Documentation/virt/kvm/api.rst`.

use crate::boot::registers::{CR0_PG, CR4_PAE, EFER_LMA};
use kvm_bindings::{
    kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1, kvm_dirty_log,
    kvm_dirty_log__bindgen_ty_1, kvm_dtable, kvm_irq_level, kvm_msr_entry, kvm_segment, kvm_sregs,
};
use std::{
    ffi::c_int,
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd as _, RawFd},
};
use vmm_sys_util::{
    ioctl::{ioctl, ioctl_with_mut_ptr, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref},
    ioctl_io_nr, ioctl_ior_nr, ioctl_iow_nr, ioctl_iowr_nr,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

const KVMIO: u32 = 0xae;
ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, kvm_dirty_log);
ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);
ioctl_iow_nr!(KVM_IRQ_LINE, KVMIO, 0x61, kvm_irq_level);
ioctl_iowr_nr!(KVM_GET_MSRS, KVMIO, 0x88, MsrsHeader);
ioctl_iow_nr!(KVM_SET_MSRS, KVMIO, 0x89, MsrsHeader);
ioctl_ior_nr!(KVM_GET_XSAVE, KVMIO, 0xa4, Xsave);
ioctl_ior_nr!(KVM_GET_XSAVE2, KVMIO, 0xcf, Xsave);
ioctl_iow_nr!(KVM_SET_XSAVE, KVMIO, 0xa5, Xsave);
ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);
ioctl_ior_nr!(KVM_GET_SREGS2, KVMIO, 0xcc, Sregs2);
ioctl_iow_nr!(KVM_SET_SREGS2, KVMIO, 0xcd, Sregs2);

/// `struct kvm_sregs2` as plain bytes (the one in kvm-bindings is not).
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Sregs2 {
    pub(crate) cs: kvm_segment,
    pub(crate) ds: kvm_segment,
    pub(crate) es: kvm_segment,
    pub(crate) fs: kvm_segment,
    pub(crate) gs: kvm_segment,
    pub(crate) ss: kvm_segment,
    pub(crate) tr: kvm_segment,
    pub(crate) ldt: kvm_segment,
    pub(crate) gdt: kvm_dtable,
    pub(crate) idt: kvm_dtable,
    pub(crate) cr0: u64,
    pub(crate) cr2: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
    pub(crate) cr8: u64,
    pub(crate) efer: u64,
    pub(crate) apic_base: u64,
    pub(crate) flags: u64,
    pub(crate) pdptrs: [u64; 4],
}

const _: () = assert!(size_of::<Sregs2>() == 320);

impl Sregs2 {
    /// What `KVM_GET_SREGS2` would give besides `sregs`; nothing where it would give more: the pointers of paging with PAE outside of
    /// long mode (Linux, `is_pae_paging`).
    pub(crate) fn of(sregs: &kvm_sregs) -> Option<Self> {
        let pae = sregs.cr0 & CR0_PG != 0 && sregs.cr4 & CR4_PAE != 0 && sregs.efer & EFER_LMA == 0;
        (!pae).then_some(Self {
            cs: sregs.cs,
            ds: sregs.ds,
            es: sregs.es,
            fs: sregs.fs,
            gs: sregs.gs,
            ss: sregs.ss,
            tr: sregs.tr,
            ldt: sregs.ldt,
            gdt: sregs.gdt,
            idt: sregs.idt,
            cr0: sregs.cr0,
            cr2: sregs.cr2,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            cr8: sregs.cr8,
            efer: sregs.efer,
            apic_base: sregs.apic_base,
            flags: 0,
            pdptrs: [0; 4],
        })
    }
}

/// Bytes of `struct kvm_xsave` before its flexible tail.
pub(crate) const XSAVE_MIN: usize = 4096;

/// Stands for `struct kvm_xsave` in the call's number, which counts only its first 4096 bytes.
#[repr(C)]
struct Xsave([u8; XSAVE_MIN]);

/// Room for one call of `KVM_GET_MSRS` or `KVM_SET_MSRS`: the header of `struct kvm_msrs` and its entries.
#[derive(Debug, Clone)]
pub(crate) struct MsrBuffer {
    /// First element: the header in the shape of an entry's first half, kept apart by `repr(C)`.
    words: Vec<u64>,
}

/// `struct kvm_msrs` without its entries.
#[repr(C)]
struct MsrsHeader {
    count: u32,
    padding: u32,
}

impl MsrBuffer {
    /// A buffer that holds `entries`.
    pub(crate) fn new(entries: &[kvm_msr_entry]) -> Self {
        let mut words = Vec::with_capacity(1 + 2 * entries.len());
        words.push(u64::try_from(entries.len()).expect("few MSRs"));
        for entry in entries {
            words.extend([u64::from(entry.index), entry.data]);
        }
        Self { words }
    }

    fn len(&self) -> usize {
        (self.words.len() - 1) / 2
    }

    /// The entries as the bytes of `struct kvm_msr_entry`.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.words[1..].as_bytes()
    }
}

/// Reads the MSRs that `buffer` names. Returns how many could be read before the first that could not.
pub(crate) fn get_msrs(vcpu: &impl AsRawFd, buffer: &mut MsrBuffer) -> io::Result<usize> {
    debug_assert_eq!(buffer.words[0], buffer.len() as u64);
    // SAFETY: the first word is the header with the count of entries, which follow it in the same allocation.
    let n = unsafe { ioctl_with_mut_ptr(vcpu, KVM_GET_MSRS(), buffer.words.as_mut_ptr()) };
    count(n)
}

/// Sets the MSRs of `buffer`, in order. Returns how many were set before the first that was refused.
pub(crate) fn set_msrs(vcpu: &impl AsRawFd, buffer: &MsrBuffer) -> io::Result<usize> {
    debug_assert_eq!(buffer.words[0], buffer.len() as u64);
    // SAFETY: the first word is the header with the count of entries, which follow it in the same allocation.
    let n = unsafe { ioctl_with_ptr(vcpu, KVM_SET_MSRS(), buffer.words.as_ptr()) };
    count(n)
}

/// Reads what a vCPU's guest sees of its processor.
#[cfg(test)]
pub(crate) fn get_cpuid2(vcpu: &impl AsRawFd) -> io::Result<kvm_bindings::CpuId> {
    use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
    vmm_sys_util::ioctl_iowr_nr!(KVM_GET_CPUID2, KVMIO, 0x91, kvm_bindings::kvm_cpuid2);
    let mut cpuid = CpuId::new(KVM_MAX_CPUID_ENTRIES).map_err(io::Error::other)?;
    // SAFETY: the kernel writes as many entries as the structure says that it has room for.
    done(unsafe { ioctl_with_mut_ptr(vcpu, KVM_GET_CPUID2(), cpuid.as_mut_fam_struct_ptr()) })?;
    Ok(cpuid)
}

/// Reads the special registers, with the PAE page-directory pointers.
pub(crate) fn get_sregs2(vcpu: &impl AsRawFd) -> io::Result<Sregs2> {
    let mut sregs = Sregs2::default();
    // SAFETY: the kernel writes one `struct kvm_sregs2`, whose shape `Sregs2` has.
    done(unsafe { ioctl_with_mut_ref(vcpu, KVM_GET_SREGS2(), &mut sregs) })?;
    Ok(sregs)
}

/// Sets the special registers.
pub(crate) fn set_sregs2(vcpu: &impl AsRawFd, sregs: &Sregs2) -> io::Result<()> {
    // SAFETY: the kernel reads one `struct kvm_sregs2`, whose shape `Sregs2` has.
    done(unsafe { ioctl_with_ref(vcpu, KVM_SET_SREGS2(), sregs) })
}

/// Reads the extended processor state into `buffer`, whose length is what `KVM_CAP_XSAVE2` says, or [`XSAVE_MIN`]
/// where that capability is absent.
pub(crate) fn get_xsave(vcpu: &impl AsRawFd, buffer: &mut [u8]) -> io::Result<()> {
    assert!(buffer.len() >= XSAVE_MIN, "no room for struct kvm_xsave");
    let call = if buffer.len() > XSAVE_MIN {
        KVM_GET_XSAVE2()
    } else {
        KVM_GET_XSAVE()
    };
    // SAFETY: the kernel writes as many bytes as the capability says, at least 4096, and the caller sized the buffer so.
    done(unsafe { ioctl_with_mut_ptr(vcpu, call, buffer.as_mut_ptr()) })
}

/// Sets the extended processor state from a buffer as [`get_xsave`] fills it.
pub(crate) fn set_xsave(vcpu: &impl AsRawFd, buffer: &[u8]) -> io::Result<()> {
    assert!(buffer.len() >= XSAVE_MIN, "shorter than struct kvm_xsave");
    // SAFETY: the kernel reads as many bytes as `KVM_CAP_XSAVE2` says, and the caller checked the length against that.
    done(unsafe { ioctl_with_ptr(vcpu, KVM_SET_XSAVE(), buffer.as_ptr()) })
}

/// Copies the dirty log of memory slot `slot` into `bitmap`, one bit a page. Where `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2` is
/// enabled, as in every machine here, nothing else happens: the log goes on, and the pages stay writable.
///
/// `bitmap` must have a bit for every page of the slot, rounded up to 64.
pub(crate) fn get_dirty_log(vm: &impl AsRawFd, slot: u32, bitmap: &mut [u64]) -> io::Result<()> {
    let log = kvm_dirty_log {
        slot,
        padding1: 0,
        __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 {
            dirty_bitmap: bitmap.as_mut_ptr().cast(),
        },
    };
    // SAFETY: the kernel writes one bit a page of the slot, and the bitmap was made from that slot's length.
    done(unsafe { ioctl_with_ref(vm, KVM_GET_DIRTY_LOG(), &log) })
}

/// Takes the pages of `bitmap` out of the dirty log of memory slot `slot` and write-protects them, so that the next write
/// to each is logged again. The first bit is that of page `first_page`, a multiple of 64.
///
/// # Errors
/// The kernel refuses; a range beyond the slot among other things.
pub(crate) fn clear_dirty_log(
    vm: &impl AsRawFd,
    slot: u32,
    first_page: usize,
    bitmap: &[u64],
) -> io::Result<()> {
    let pages = u32::try_from(bitmap.len() * 64).map_err(io::Error::other)?;
    let log = kvm_clear_dirty_log {
        slot,
        num_pages: pages,
        first_page: first_page as u64,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
            dirty_bitmap: bitmap.as_ptr().cast_mut().cast(),
        },
    };
    // SAFETY: the kernel reads `num_pages` bits, which `bitmap` has, and writes nothing.
    done(unsafe { ioctl_with_ref(vm, KVM_CLEAR_DIRTY_LOG(), &log) })
}

/// Opens the statistics of a machine or a vCPU.
pub(crate) fn get_stats(of: &impl AsRawFd) -> io::Result<File> {
    // SAFETY: the call has no argument.
    let fd = unsafe { ioctl(of, KVM_GET_STATS_FD()) };
    done(fd)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Sets an interrupt line. Synchronous: on return the interrupt controllers have seen it.
pub(crate) fn irq_line(vm: RawFd, gsi: u32, active: bool) -> io::Result<()> {
    let mut level = kvm_irq_level::default();
    level.__bindgen_anon_1.irq = gsi;
    level.level = u32::from(active);
    // SAFETY: the kernel reads one `struct kvm_irq_level`.
    done(unsafe { libc::ioctl(vm, KVM_IRQ_LINE(), &raw const level) })
}

fn done(result: c_int) -> io::Result<()> {
    count(result).map(|_| ())
}

fn count(result: c_int) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some KVMs leave that mode by themselves, so that only here it is sure to be seen.
    #[test]
    fn paging_with_pae_outside_of_long_mode_has_more_than_sregs() {
        for (cr0, cr4, efer, all) in [
            (0, 0, 0, true),
            (CR0_PG, 0, 0, true),
            (0, CR4_PAE, 0, true),
            (CR0_PG, CR4_PAE, EFER_LMA, true),
            (CR0_PG, CR4_PAE, 0, false),
        ] {
            let sregs = kvm_sregs {
                cr0,
                cr4,
                efer,
                cr3: 0x7000,
                ..Default::default()
            };
            let found = Sregs2::of(&sregs);
            assert_eq!(found.map(|sregs| sregs.cr3), all.then_some(0x7000));
        }
    }

    /// The numbers of the kernel's `include/uapi/linux/kvm.h` on x86-64.
    #[test]
    fn call_numbers_are_the_kernels() {
        assert_eq!(KVM_GET_DIRTY_LOG(), 0x4010_ae42);
        assert_eq!(KVM_CLEAR_DIRTY_LOG(), 0xc018_aec0);
        assert_eq!(KVM_IRQ_LINE(), 0x4008_ae61);
        assert_eq!(KVM_GET_MSRS(), 0xc008_ae88);
        assert_eq!(KVM_SET_MSRS(), 0x4008_ae89);
        assert_eq!(KVM_GET_XSAVE(), 0x9000_aea4);
        assert_eq!(KVM_SET_XSAVE(), 0x5000_aea5);
        assert_eq!(KVM_GET_XSAVE2(), 0x9000_aecf);
        assert_eq!(KVM_GET_STATS_FD(), 0xaece);
        assert_eq!(KVM_GET_SREGS2(), 0x8140_aecc);
        assert_eq!(KVM_SET_SREGS2(), 0x4140_aecd);
    }

    #[test]
    fn an_msr_buffer_has_the_kernels_layout() {
        let entry = kvm_msr_entry {
            index: 0x10,
            data: 7,
            ..Default::default()
        };
        let buffer = MsrBuffer::new(&[entry, entry]);
        assert_eq!(buffer.words, [2, 0x10, 7, 0x10, 7]);
        assert_eq!(buffer.as_bytes(), [entry, entry].as_bytes());
    }
}
