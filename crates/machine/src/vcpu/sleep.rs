//! How long a vCPU has slept: KVM's own count of the time that a guest's HLT took.
//!
//! `KVM_GET_STATS_FD` (Linux 5.14, section 4.133 of the kernel's `Documentation/virt/kvm/api.rst`) gives a file with a header,
//! a description of each statistic, and their values. Of these `halt_wait_ns` is read.

use crate::ioctl;
use std::{
    fs::File,
    os::{fd::AsRawFd, unix::fs::FileExt as _},
    time::Duration,
};

/// The statistic.
const NAME: &[u8] = b"halt_wait_ns";
/// Bytes of `struct kvm_stats_header`.
const HEADER: usize = 24;
/// Bytes of `struct kvm_stats_desc` before the name.
const DESCRIPTION: usize = 16;
/// More descriptions than this has no kernel.
const DESCRIPTIONS_MAX: u32 = 1024;
/// A longer name has no statistic.
const NAME_MAX: u32 = 256;

/// Where a vCPU's time of sleep is read.
#[derive(Debug)]
pub(super) struct Sleep {
    file: File,
    offset: u64,
    /// What it was when it was last asked for.
    last: Duration,
}

impl Sleep {
    /// That of a vCPU; nothing where the kernel does not count it.
    pub(super) fn of(vcpu: &impl AsRawFd) -> Option<Self> {
        let file = ioctl::get_stats(vcpu).ok()?;
        let offset = find(&file)?;
        Some(Self {
            file,
            offset,
            last: Duration::ZERO,
        })
    }

    /// How long the vCPU has slept since this was last asked. A sleep counts when it has ended.
    pub(super) fn since_last(&mut self) -> Duration {
        let Some(now) = self.read() else {
            return Duration::ZERO;
        };
        let slept = now.saturating_sub(self.last);
        self.last = now;
        slept
    }

    fn read(&self) -> Option<Duration> {
        let mut value = [0; 8];
        self.file.read_exact_at(&mut value, self.offset).ok()?;
        Some(Duration::from_nanos(u64::from_ne_bytes(value)))
    }
}

/// The place of the value in the file.
fn find(file: &File) -> Option<u64> {
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0).ok()?;
    let field = |n: usize| number(&header[n * 4..]);
    let (name_size, count, descriptions, data) = (field(1)?, field(2)?, field(4)?, field(5)?);
    if count > DESCRIPTIONS_MAX || name_size > NAME_MAX {
        return None;
    }
    let mut description = vec![0; DESCRIPTION + name_size as usize];
    (0..u64::from(count)).find_map(|n| {
        let at = u64::from(descriptions) + n * description.len() as u64;
        file.read_exact_at(&mut description, at).ok()?;
        let name = description[DESCRIPTION..].split(|byte| *byte == 0).next()?;
        let offset = number(&description[8..])?;
        (name == NAME).then(|| u64::from(data) + u64::from(offset))
    })
}

fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file like the kernel's, with two statistics.
    fn file(name: &[u8]) -> Vec<u8> {
        let name_size = 32u32;
        let header = [0, name_size, 2, 24, 24 + name_size, 400];
        let mut bytes: Vec<u8> = header.iter().flat_map(|n: &u32| n.to_ne_bytes()).collect();
        bytes.resize(24 + name_size as usize, 0);
        for (name, offset) in [(&b"exits"[..], 0u32), (name, 8)] {
            for word in [0, 1 << 16, offset, 0] {
                bytes.extend(word.to_ne_bytes());
            }
            let end = bytes.len() + name_size as usize;
            bytes.extend(name);
            bytes.resize(end, 0);
        }
        bytes.resize(400, 0);
        bytes.extend([77u64, 5_000_000].iter().flat_map(|n| n.to_ne_bytes()));
        bytes
    }

    fn opened(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    #[test]
    fn the_statistic_is_found_by_its_name() {
        let file = opened(&file(NAME));
        let offset = find(&file).unwrap();
        assert_eq!(offset, 408);
        let mut sleep = Sleep {
            file,
            offset,
            last: Duration::from_millis(2),
        };
        assert_eq!(sleep.since_last(), Duration::from_millis(3));
        assert_eq!(sleep.since_last(), Duration::ZERO);
    }

    #[test]
    fn where_it_is_not_counted_nothing_is_found() {
        assert_eq!(find(&opened(&file(b"halt_wait"))), None);
        let whole = file(NAME);
        for length in [0, 10, 24, 60, 150] {
            assert_eq!(find(&opened(&whole[..length])), None, "{length}");
        }
        let mut many = whole;
        many[8..12].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(find(&opened(&many)), None);
    }

    #[test]
    fn this_computers_kernel_is_understood() {
        let Ok(kvm) = kvm_ioctls::Kvm::new() else {
            eprintln!("skipped: there is no /dev/kvm here");
            return;
        };
        let vm = kvm.create_vm().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        match Sleep::of(&vcpu) {
            Some(mut sleep) => assert_eq!(sleep.since_last(), Duration::ZERO, "it never ran"),
            None => eprintln!("this kernel does not count a guest's sleep"),
        }
    }
}
