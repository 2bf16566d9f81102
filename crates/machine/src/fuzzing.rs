//! Captured state, as far as it is looked at without KVM: shape, CPUID, one vCPU's fields, and all of the devices.

use crate::{
    Error,
    config::{Config, Disk, MEMORY_MIN, Nic},
    devices::{self, Devices},
    machine::{read_shape, write_shape},
    state::{Reader, Writer, kind},
    vcpu,
};
use kvm_bindings::kvm_cpuid_entry2;
use std::convert::Infallible;
use vmm_sys_util::tempfile::TempFile;

/// Bytes of extended processor state: less than any processor has, so that there is less to look at.
const XSAVE: usize = 64;

/// Devices that state is loaded into, again and again: a card, a disk, and the entropy device.
#[derive(Debug)]
pub struct Loader {
    devices: Devices,
    memory: u64,
    /// The disk.
    _image: TempFile,
}

impl Loader {
    /// Makes the devices.
    ///
    /// # Errors
    /// What the host cannot give.
    pub fn new() -> Result<Self, Error> {
        let host = |source| Error::Host {
            what: "a disk without a machine".into(),
            source,
        };
        let image = TempFile::new().map_err(|error| host(error.into()))?;
        image.as_file().set_len(64 << 10).map_err(host)?;
        let config = Config {
            name: "any".into(),
            vcpus: 1,
            memory: MEMORY_MIN,
            kernel: "/".into(),
            initrd: None,
            command_line: String::new(),
            kernel_cache: None,
            nics: vec![Nic {
                tap: "none".into(),
                bridge: None,
                mac: [2, 0, 0, 0, 0, 1],
                mtu: 1500,
                offload: true,
            }],
            disks: vec![Disk {
                path: image.as_path().into(),
                read_only: false,
                serial: "one".into(),
            }],
            entropy: true,
        };
        Ok(Self {
            devices: devices::fuzzing::devices(&config)?,
            memory: config.memory,
            _image: image,
        })
    }

    /// Loads captured state.
    ///
    /// # Errors
    /// State that is damaged, or of another machine.
    pub fn load(&self, state: &[u8]) -> Result<(), Error> {
        let mut reader = Reader::new(state);
        read_shape(&mut reader, 1, self.memory)?;
        vcpu::state::check(vcpu::state::section(&mut reader, 0)?, XSAVE)?;
        self.devices.restore(&mut reader)?;
        if reader.is_empty() {
            Ok(())
        } else {
            Err(Error::Invalid("something follows the last section".into()))
        }
    }

    /// The state as the devices have it now, behind those of a processor at its start.
    pub fn capture(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = Writer::new(&mut out);
        write_shape(&mut writer, 1, self.memory, &[kvm_cpuid_entry2::default()]);
        let Ok(()) = writer.section::<Infallible>(kind::VCPU, 0, vcpu::state::VERSION, |payload| {
            vcpu::state::put_reset(payload, XSAVE);
            Ok(())
        });
        self.devices.save(&mut writer);
        out
    }

    /// Writes a register of a device, as a driver does.
    pub fn write(&self, device: usize, offset: u64, value: u32) {
        if let Some(slot) = self.devices.slots().get(device) {
            self.devices
                .mmio_write(slot.base + offset, &value.to_le_bytes());
        }
    }

    /// Reads a register of a device.
    pub fn read(&self, device: usize, offset: u64) -> u32 {
        let mut word = [0; 4];
        if let Some(slot) = self.devices.slots().get(device) {
            self.devices.mmio_read(slot.base + offset, &mut word);
        }
        u32::from_le_bytes(word)
    }
}
