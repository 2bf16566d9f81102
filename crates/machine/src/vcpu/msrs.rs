//! Which model-specific registers are part of a vCPU's state.

use crate::ioctl::{self, MsrBuffer};
use kvm_bindings::kvm_msr_entry;
use std::{io, ops::RangeInclusive, os::fd::AsRawFd};

/// Time stamp counter: written first, so that everything after it is in its time.
pub(crate) const TSC: u32 = 0x10;
/// The local APIC's timer: written last, because it may expire at once.
const TSC_DEADLINE: u32 = 0x6e0;
/// Memory types: the default one.
pub(crate) const MTRR_DEFAULT: u32 = 0x2ff;

/// Memory types (Intel SDM volume 3, section 12.11): KVM keeps them, but does not list them.
const UNLISTED: [RangeInclusive<u32>; 6] = [
    0x200..=0x20f,
    0x250..=0x250,
    0x258..=0x259,
    0x268..=0x26f,
    MTRR_DEFAULT..=MTRR_DEFAULT,
    0x277..=0x277,
];

/// Listed by KVM, but no part of a guest's state: what the host is, what other places carry, and performance
/// counters, which the guest does not have.
const LEFT_OUT: [RangeInclusive<u32>; 18] = [
    // The clock's pages under their old numbers; the new ones are in the list as well.
    0x11..=0x12,
    // The wall clock's page: to write this MSR makes KVM write that page, so that loading state would change memory. A
    // guest that wants to know writes it anew each time.
    0x4b56_4d00..=0x4b56_4d00,
    // SMBASE: no system management mode here.
    0x9e..=0x9e,
    // Performance counters, Intel's and AMD's.
    0xc1..=0xc8,
    0x186..=0x18d,
    0x309..=0x30b,
    0x329..=0x329,
    0x38d..=0x390,
    0x3f1..=0x3f2,
    0x4c1..=0x4c8,
    0xc001_0000..=0xc001_0007,
    0xc001_0200..=0xc001_020b,
    0xc000_0300..=0xc000_0302,
    // Microcode revision, platform and architectural capabilities, all the host's.
    0x8b..=0x8b,
    0xce..=0xce,
    0x10a..=0x10a,
    // Capabilities of nested virtualisation.
    0x480..=0x491,
    // Hyper-V's.
    0x4000_0000..=0x4000_01ff,
];

/// Whether `index` may belong to a vCPU's state.
fn is_state(index: u32) -> bool {
    !LEFT_OUT.iter().any(|range| range.contains(&index))
}

/// Where `index` stands in the order of restoring.
fn order(index: u32) -> (u8, u32) {
    match index {
        TSC => (0, index),
        TSC_DEADLINE => (2, index),
        _ => (1, index),
    }
}

/// Sorts out, once for a machine, which MSRs are saved: of those that KVM lists (and the memory types) the ones that
/// this vCPU reads, and takes back the value that it has.
///
/// # Errors
/// KVM refuses to be asked.
pub(crate) fn choose(vcpu: &impl AsRawFd, listed: &[u32]) -> io::Result<Vec<u32>> {
    let mut indices: Vec<u32> = listed
        .iter()
        .copied()
        .chain(UNLISTED.into_iter().flatten())
        .filter(|i| is_state(*i))
        .collect();
    indices.sort_unstable_by_key(|i| order(*i));
    indices.dedup();
    let mut chosen = Vec::new();
    for index in indices {
        let mut one = buffer(&[index]);
        if ioctl::get_msrs(vcpu, &mut one)? != 1 {
            continue;
        }
        // Writing the counter back would move it; that it can be written is certain.
        if index == TSC || ioctl::set_msrs(vcpu, &one)? == 1 {
            chosen.push(index);
        }
    }
    Ok(chosen)
}

/// A buffer for one call, with values of zero.
pub(crate) fn buffer(indices: &[u32]) -> MsrBuffer {
    let entries: Vec<_> = indices
        .iter()
        .map(|index| kvm_msr_entry {
            index: *index,
            ..Default::default()
        })
        .collect();
    MsrBuffer::new(&entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_comes_first_and_its_timer_last() {
        let mut all = vec![TSC_DEADLINE, 0xc000_0080, TSC, 0x174];
        all.sort_unstable_by_key(|i| order(*i));
        assert_eq!(all, [TSC, 0x174, 0xc000_0080, TSC_DEADLINE]);
    }

    #[test]
    fn system_calls_and_paravirtual_clock_are_state() {
        for index in [
            0x174,
            0xc000_0081,
            0xc000_0102,
            0x4b56_4d01,
            0x48,
            0x277,
            TSC,
        ] {
            assert!(is_state(index), "{index:#x}");
        }
        for index in [0x12, 0x186, 0xc001_0004, 0x10a, 0x4000_0000, 0x4b56_4d00] {
            assert!(!is_state(index), "{index:#x}");
        }
    }
}
