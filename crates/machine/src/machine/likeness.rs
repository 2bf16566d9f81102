//! What two hosts must have alike for one to take the other's machine.

use super::{VERSION, build};
use crate::{
    Error, chipset,
    config::Config,
    devices, error,
    state::kind,
    vcpu::{self, cpuid},
};
use std::{
    fs::File,
    io::{Seek, SeekFrom},
};
use zerocopy::IntoBytes;

/// Digests of what a machine would be on this host. State captured on one host is for hosts of the same likeness; that
/// they agree does not prove that the state will load, but where they differ it need not be tried.
///
/// The numbers of vCPUs and the size of memory are not in it: they stand in the captured state, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Likeness {
    /// The processors that guests would see (vendor, model, features: all of CPUID but what differs from vCPU to vCPU), the
    /// size of their extended state, and which MSRs are saved.
    pub processor: u128,
    /// Cards (MAC, MTU, offloads), disks (size, read-only, serial number) and other devices, in their order, and the
    /// versions of all sections of captured state.
    pub devices: u128,
}

/// Says what a machine of this `config` would be on this host. Its taps and its kernel need not be there, its disks must;
/// another process may be using them.
///
/// # Errors
/// KVM that is missing or refuses; a disk that cannot be opened.
pub fn likeness(config: &Config) -> Result<Likeness, Error> {
    build::check(config)?;
    Ok(Likeness {
        processor: processor(config)?,
        devices: devices(config)?,
    })
}

/// A digest of fields, each with its length, so that no two lists of fields look the same.
struct Digest(blake3::Hasher);

impl Digest {
    fn new(context: &str) -> Self {
        Self(blake3::Hasher::new_derive_key(context))
    }

    fn put(&mut self, field: &[u8]) {
        self.0.update(&(field.len() as u64).to_le_bytes());
        self.0.update(field);
    }

    fn finish(&self) -> u128 {
        let mut bytes = [0; 16];
        self.0.finalize_xof().fill(&mut bytes);
        u128::from_le_bytes(bytes)
    }
}

fn processor(config: &Config) -> Result<u128, Error> {
    let kvm = build::open()?;
    // Which MSRs a vCPU has only a vCPU tells, in a machine like those that run.
    let vm = kvm.create_vm().map_err(error::kvm("KVM_CREATE_VM"))?;
    build::disable_performance_counters(&vm);
    vm.create_irq_chip()
        .map_err(error::kvm("KVM_CREATE_IRQCHIP"))?;
    let vcpu = vm.create_vcpu(0).map_err(error::kvm("KVM_CREATE_VCPU"))?;
    let mut entries = build::guest_cpuid(&kvm, config.vcpus)?;
    vcpu.set_cpuid2(&cpuid::of_vcpu(&entries, 0))
        .map_err(error::kvm("KVM_SET_CPUID2"))?;
    let caps = build::caps(&kvm, &vm, &vcpu)?;

    let mut digest = Digest::new("romulus 2026 likeness of processors");
    entries.sort_by_key(|e| (e.function, e.index));
    for entry in &entries {
        digest.put(entry.as_bytes());
    }
    digest.put(&(caps.xsave as u64).to_le_bytes());
    digest.put(caps.msrs.as_bytes());
    Ok(digest.finish())
}

fn devices(config: &Config) -> Result<u128, Error> {
    let mut digest = Digest::new("romulus 2026 likeness of devices");
    let versions = [
        (kind::SHAPE, VERSION),
        (kind::VCPU, vcpu::state::VERSION),
        (kind::CHIPSET, chipset::VERSION),
        (kind::SERIAL, chipset::serial::VERSION),
        (kind::POWER, chipset::power::VERSION),
        (kind::TRANSPORT, devices::VERSION),
    ];
    for (kind, version) in versions {
        digest.put(&kind.to_le_bytes());
        digest.put(&version.to_le_bytes());
    }
    for nic in &config.nics {
        digest.put(b"card");
        digest.put(&nic.mac);
        digest.put(&nic.mtu.to_le_bytes());
        digest.put(&[nic.offload.into()]);
    }
    for disk in &config.disks {
        let size = File::open(&disk.path)
            .and_then(|mut file| file.seek(SeekFrom::End(0)))
            .map_err(|source| Error::File {
                what: "disk",
                path: disk.path.clone(),
                source,
            })?;
        digest.put(b"disk");
        digest.put(&size.to_le_bytes());
        digest.put(&[disk.read_only.into()]);
        digest.put(disk.serial.as_bytes());
    }
    if config.entropy {
        digest.put(b"entropy");
    }
    Ok(digest.finish())
}
