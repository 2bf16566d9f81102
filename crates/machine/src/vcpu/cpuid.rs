//! What the guest sees of its processors: the host's features without those that cannot move to another host or that
//! write to memory behind dirty tracking, and a plain topology of one socket.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// KVM's own leaf: paravirtual features (the kernel's `Documentation/virt/kvm/x86/cpuid.rst`).
const KVM_FEATURES: u32 = 0x4000_0001;
/// Asynchronous page faults, in their three bits: the host would write into a guest that is paused.
const ASYNC_PAGE_FAULTS: u32 = 1 << 4 | 1 << 10 | 1 << 14;

/// Leaf 1 ECX: Intel's virtualisation. A guest that runs guests of its own has state in the kernel that is not captured.
const VMX: u32 = 1 << 5;
/// Leaf `0x8000_0001` ECX: AMD's, likewise, with its secure start.
const SVM: u32 = 1 << 2 | 1 << 12;
/// Leaf 7 EBX: enclaves, whose memory nobody else can read.
const SGX: u32 = 1 << 2;
/// Leaf 7 ECX: enclaves' launch control.
const SGX_LC: u32 = 1 << 30;
/// Leaf 1 ECX: the local APIC's timer can be set to a TSC value. KVM has it, but does not say so here.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: there is a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: the count of logical processors is valid.
const HTT: u32 = 1 << 28;
/// Leaf 1 EBX bits 8–15: 64 bytes a cache line, in units of 8.
const CACHE_LINE: u32 = 8 << 8;

/// Turns what the host supports into what every vCPU of a machine with `vcpus` of them has in common.
pub(crate) fn common(supported: &[kvm_cpuid_entry2], vcpus: u8) -> Vec<kvm_cpuid_entry2> {
    let n = u32::from(vcpus);
    let id_bits = id_bits(vcpus);
    let mut entries = Vec::with_capacity(supported.len());
    for entry in supported {
        let mut e = *entry;
        e.padding = [0; 3];
        match e.function {
            1 => {
                e.ebx = e.ebx & 0xff | CACHE_LINE | n << 16;
                e.ecx = e.ecx & !VMX | HYPERVISOR | TSC_DEADLINE;
                e.edx = if n > 1 { e.edx | HTT } else { e.edx & !HTT };
            }
            // Intel's caches: those beyond the second level are shared by all, the others by nobody.
            4 if e.eax & 0x1f != 0 => {
                let level = e.eax >> 5 & 7;
                let sharing = if level > 2 { n - 1 } else { 0 };
                e.eax = e.eax & 0x3fff | sharing << 14 | (n - 1) << 26;
            }
            7 if e.index == 0 => (e.ebx, e.ecx) = (e.ebx & !SGX, e.ecx & !SGX_LC),
            0x8000_0001 => e.ecx &= !SVM,
            // No performance counters: they cost exits and cannot be carried exactly. Enclaves; AMD's virtualisation; encrypted memory.
            0xa | 0x12 | 0x8000_000a | 0x8000_001f => {
                (e.eax, e.ebx, e.ecx, e.edx) = (0, 0, 0, 0);
            }
            // Topology comes below.
            0xb | 0x1f | 0x8000_0026 => continue,
            KVM_FEATURES => e.eax &= !ASYNC_PAGE_FAULTS,
            0x8000_0008 => e.ecx = id_bits << 12 | (n - 1),
            // AMD's caches, likewise.
            0x8000_001d if e.eax & 0x1f != 0 => {
                let level = e.eax >> 5 & 7;
                let sharing = if level > 2 { n - 1 } else { 0 };
                e.eax = e.eax & 0x3fff | sharing << 14;
            }
            // One thread a core, one node. (EAX is the number of whichever processor this ran on.)
            0x8000_001e => (e.eax, e.ebx, e.ecx) = (0, 0, 0),
            _ => {}
        }
        entries.push(e);
    }
    if entries.iter().any(|e| e.function == 0 && e.eax >= 0xb) {
        entries.extend(extended_topology(n, id_bits));
    }
    entries
}

/// Leaf 0xB: threads (one a core), then cores.
fn extended_topology(n: u32, id_bits: u32) -> [kvm_cpuid_entry2; 3] {
    const BY_INDEX: u32 = kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    let level = |index, eax, ebx, kind: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: BY_INDEX,
        eax,
        ebx,
        ecx: kind << 8 | index,
        ..Default::default()
    };
    [
        level(0, 0, 1, 1),
        level(1, id_bits, n, 2),
        level(2, 0, 0, 0),
    ]
}

/// Bits that number `vcpus` processors.
fn id_bits(vcpus: u8) -> u32 {
    vcpus.next_power_of_two().trailing_zeros()
}

/// Puts in what differs between the vCPUs: their number.
pub(crate) fn of_vcpu(common: &[kvm_cpuid_entry2], index: u8) -> CpuId {
    let id = u32::from(index);
    let mut entries = common.to_vec();
    for e in &mut entries {
        match e.function {
            1 => e.ebx = e.ebx & 0x00ff_ffff | id << 24,
            0xb => e.edx = id,
            0x8000_001e => {
                e.eax = id;
                e.ebx |= id;
            }
            _ => {}
        }
    }
    CpuId::from_entries(&entries).expect("not more entries than KVM gave")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Vec<kvm_cpuid_entry2> {
        let leaf = |function, eax, ebx, ecx, edx| kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        };
        vec![
            leaf(0, 0x1f, 0, 0, 0),
            leaf(1, 0, 0x2f40_0842, VMX | 1, HTT),
            leaf(7, 0, u32::MAX, u32::MAX, u32::MAX),
            leaf(0x12, 1, 1, 1, 1),
            leaf(4, 0xfc00_4121, 0, 0, 0),
            leaf(0xa, 7, 7, 7, 7),
            leaf(0xb, 1, 2, 0x100, 47),
            leaf(0x1f, 1, 2, 0x100, 47),
            leaf(KVM_FEATURES, u32::MAX, 0, 0, 0),
            leaf(0x8000_0001, 0, 0, SVM | 1, 1),
            leaf(0x8000_000a, 1, 1, 1, 1),
            leaf(0x8000_001f, 1, 1, 1, 1),
            leaf(0x8000_001e, 47, 0x117, 3, 0),
        ]
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *entries
            .iter()
            .find(|e| e.function == function && e.index == index)
            .unwrap()
    }

    #[test]
    fn the_hosts_topology_does_not_show() {
        let common = common(&host(), 3);
        for id in 0..3 {
            let cpu = of_vcpu(&common, id);
            let cpu = cpu.as_slice();
            let one = find(cpu, 1, 0);
            assert_eq!(one.ebx, u32::from(id) << 24 | 3 << 16 | 8 << 8 | 0x42);
            assert_eq!(one.edx & HTT, HTT);
            assert_eq!(
                one.ecx & (HYPERVISOR | TSC_DEADLINE),
                HYPERVISOR | TSC_DEADLINE
            );
            let (threads, cores) = (find(cpu, 0xb, 0), find(cpu, 0xb, 1));
            assert_eq!((threads.eax, threads.ebx, threads.ecx), (0, 1, 0x100));
            assert_eq!((cores.eax, cores.ebx, cores.ecx), (2, 3, 0x201));
            assert_eq!((threads.edx, cores.edx), (id.into(), id.into()));
            let amd = find(cpu, 0x8000_001e, 0);
            assert_eq!((amd.eax, amd.ebx, amd.ecx), (id.into(), id.into(), 0));
            assert!(cpu.iter().all(|e| e.function != 0x1f));
        }
    }

    #[test]
    fn a_single_vcpu_has_no_siblings() {
        let one = find(&common(&host(), 1), 1, 0);
        assert_eq!(one.edx & HTT, 0);
        assert_eq!(find(&common(&host(), 1), 4, 0).eax >> 26, 0);
    }

    /// Two hosts are compared by it, and state is, whichever processor it was asked on.
    #[test]
    fn what_all_have_in_common_names_no_processor() {
        let common = common(&host(), 2);
        assert_eq!(find(&common, 1, 0).ebx >> 24, 0);
        assert_eq!(find(&common, 0xb, 0).edx, 0);
        assert_eq!(find(&common, 0x8000_001e, 0).eax, 0);
    }

    #[test]
    fn what_cannot_be_carried_is_hidden() {
        let common = common(&host(), 1);
        assert_eq!(find(&common, KVM_FEATURES, 0).eax & ASYNC_PAGE_FAULTS, 0);
        // Counters, virtualisation, enclaves and encrypted memory; what stands beside them stays.
        for leaf in [0xa, 0x12, 0x8000_000a, 0x8000_001f] {
            let e = find(&common, leaf, 0);
            assert_eq!([e.eax, e.ebx, e.ecx, e.edx], [0; 4], "{leaf:#x}");
        }
        assert_eq!(find(&common, 1, 0).ecx & (VMX | 1), 1);
        assert_eq!(find(&common, 0x8000_0001, 0).ecx, 1);
        let features = find(&common, 7, 0);
        assert_eq!((features.ebx, features.ecx), (!SGX, !SGX_LC));
        assert_eq!(features.edx, u32::MAX);
    }
}
