//! The ACPI tables: reduced hardware (ACPI 6.5, section 4.1), with the devices that the machine has.

use crate::{
    Error,
    boot::reset_vector,
    chipset::{power, serial},
    devices::Slot,
    memory::Ram,
};
use acpi_tables::{
    Aml,
    aml::{
        self, Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name, Notify, Package, Path,
        ResourceTemplate,
    },
    fadt::{FADTBuilder, Flags},
    gas::{AccessSize, AddressSpace, GAS},
    madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic},
    rsdp::Rsdp,
    sdt::Sdt,
    xsdt::XSDT,
};
use vm_memory::{Bytes, GuestAddress};

/// Where the root pointer lies; the tables follow. Firmware's old place, which kernels search too.
pub(crate) const RSDP: u64 = 0xe_0000;
/// End of the room for tables, which the memory map gives as reserved.
pub(crate) const END: u64 = 0x10_0000;

/// Devices are named `V000` to `V255`.
const SLOTS_MAX: usize = 256;

const OEM: [u8; 6] = *b"ROMULS";
const TABLE: [u8; 8] = *b"ROMULUS ";
/// Distance between local APIC and I/O APIC, as KVM's in-kernel controllers have them.
const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;

/// FADT `IAPC_BOOT_ARCH`: no VGA, no CMOS clock (ACPI 6.5, table 5.11).
const NO_VGA_NO_CMOS: u16 = 1 << 2 | 1 << 5;

/// Writes all tables for `vcpus` processors and the virtio devices in `slots`.
///
/// # Errors
/// The tables do not fit into their room.
pub(crate) fn write(ram: &Ram, vcpus: u8, slots: &[Slot]) -> Result<(), Error> {
    if slots.len() > SLOTS_MAX {
        return Err(Error::Invalid(format!(
            "{} devices: a machine has at most {SLOTS_MAX}",
            slots.len()
        )));
    }
    let mut at = RSDP + 64;
    let mut put = |bytes: &[u8]| {
        let start = at;
        at = (start + bytes.len() as u64).next_multiple_of(64);
        // The last bytes of the room are the reset vector's.
        if at > reset_vector::ADDRESS {
            return Err(Error::Invalid(
                "the ACPI tables do not fit: fewer devices".into(),
            ));
        }
        ram.write_slice(bytes, GuestAddress(start))
            .map_err(|e| Error::Invalid(format!("ACPI tables: {e}")))?;
        Ok(start)
    };
    let dsdt = put(dsdt(slots)?.as_slice())?;
    let fadt = put(&bytes_of(&fadt(dsdt).finalize()))?;
    let madt = put(&bytes_of(&madt(vcpus)))?;
    let mut xsdt = XSDT::new(OEM, TABLE, 1);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = put(&bytes_of(&xsdt))?;
    ram.write_slice(&bytes_of(&Rsdp::new(OEM, xsdt)), GuestAddress(RSDP))
        .map_err(|e| Error::Invalid(format!("ACPI tables: {e}")))
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(dsdt: u64) -> FADTBuilder {
    let port = |port: u16| {
        GAS::new(
            AddressSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            u64::from(port),
        )
    };
    let mut fadt = FADTBuilder::new(OEM, TABLE, 1)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = NO_VGA_NO_CMOS.into();
    fadt.reset_reg = port(power::RESET);
    fadt.reset_value = power::RESET_VALUE;
    fadt.sleep_control_reg = port(power::SLEEP_CONTROL);
    fadt.sleep_status_reg = port(power::SLEEP_STATUS);
    fadt
}

fn madt(vcpus: u8) -> MADT {
    let mut madt = MADT::new(OEM, TABLE, 1, LocalInterruptController::Address(LOCAL_APIC));
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IO_APIC, 0));
    madt
}

fn dsdt(slots: &[Slot]) -> Result<Sdt, Error> {
    let mut body = Vec::new();
    for (slot, uid) in slots.iter().zip(0u32..) {
        virtio(*slot, uid)?.append_to(&mut body);
    }
    Device::new(
        "_SB_.COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &aml::ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&ports(serial::PORT, 8), &edge(serial::GSI)]),
            ),
        ],
    )
    .to_aml_bytes(&mut body);
    Device::new(
        "_SB_.PWRB".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C0C")),
            &Name::new("_UID".into(), &aml::ZERO),
        ],
    )
    .to_aml_bytes(&mut body);
    // Reduced hardware has no fixed power button: a Generic Event Device (ACPI 6.5, section 5.6.9) turns an interrupt
    // into the button's notification 0x80, "pressed".
    Device::new(
        "_SB_.GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &aml::ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&edge(power::BUTTON_GSI)]),
            ),
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![&Notify::new(&Path::new("\\_SB_.PWRB"), &0x80u8)],
            ),
        ],
    )
    .to_aml_bytes(&mut body);
    // The kernel's Documentation/virt/kvm... and QEMU's docs/specs/pvpanic name this device and its one port.
    Device::new(
        "_SB_.PVPC".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new("_UID".into(), &aml::ZERO),
            &Name::new("_STA".into(), &0x0fu8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&ports(power::PANIC, 1)]),
            ),
        ],
    )
    .to_aml_bytes(&mut body);
    // Sleep type 5 in the sleep control register means "off".
    Name::new(
        "_S5_".into(),
        &Package::new(vec![
            &power::SLEEP_TYPE_OFF,
            &aml::ZERO,
            &aml::ZERO,
            &aml::ZERO,
        ]),
    )
    .to_aml_bytes(&mut body);
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, 1);
    table.append_slice(&body);
    table.update_checksum();
    Ok(table)
}

/// A virtio device on the memory-mapped transport, under the name that Linux's driver binds to.
struct Virtio {
    path: String,
    uid: u32,
    base: u32,
    length: u32,
    gsi: u32,
}

fn virtio(slot: Slot, uid: u32) -> Result<Virtio, Error> {
    let (Ok(base), Ok(length)) = (u32::try_from(slot.base), u32::try_from(slot.length)) else {
        return Err(Error::Invalid(format!(
            "device registers at {:#x} are above 4 GiB",
            slot.base
        )));
    };
    Ok(Virtio {
        path: format!("_SB_.V{uid:03}"),
        uid,
        base,
        length,
        gsi: slot.gsi,
    })
}

impl Virtio {
    fn append_to(&self, body: &mut Vec<u8>) {
        Device::new(
            Path::new(&self.path),
            vec![
                &Name::new("_HID".into(), &"LNRO0005"),
                &Name::new("_UID".into(), &self.uid),
                &Name::new("_CCA".into(), &aml::ONE),
                &Name::new(
                    "_CRS".into(),
                    &ResourceTemplate::new(vec![
                        &Memory32Fixed::new(true, self.base, self.length),
                        &edge(self.gsi),
                    ]),
                ),
            ],
        )
        .to_aml_bytes(body);
    }
}

fn edge(gsi: u32) -> Interrupt {
    // Consumer, edge-triggered, active high, exclusive.
    Interrupt::new(true, true, false, false, gsi)
}

fn ports(first: u16, length: u8) -> IO {
    IO::new(first, first, 1, length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;

    fn table_at(ram: &Ram, at: u64) -> Vec<u8> {
        let length: u32 = ram.read_obj(GuestAddress(at + 4)).unwrap();
        let mut table = vec![0; length as usize];
        ram.read_slice(&mut table, GuestAddress(at)).unwrap();
        assert_eq!(
            table.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)),
            0,
            "checksum"
        );
        table
    }

    fn u64_at(table: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(table[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn the_chain_of_tables_holds() {
        let memory = Memory::new(128 << 20).unwrap();
        let slots: Vec<_> = (0..6)
            .map(|n| Slot {
                base: 0xd000_0000 + u64::from(n) * 0x1000,
                length: 0x1000,
                gsi: 5 + n,
            })
            .collect();
        write(memory.ram(), 4, &slots).unwrap();
        let mut rsdp = [0u8; 36];
        memory
            .ram()
            .read_slice(&mut rsdp, GuestAddress(RSDP))
            .unwrap();
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        let xsdt = table_at(memory.ram(), u64_at(&rsdp, 24));
        let fadt = table_at(memory.ram(), u64_at(&xsdt, 36));
        let madt = table_at(memory.ram(), u64_at(&xsdt, 44));
        assert_eq!((&fadt[..4], &madt[..4]), (&b"FACP"[..], &b"APIC"[..]));
        assert_eq!(madt.len(), 44 + 4 * 8 + 12);
        let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
        assert_eq!(flags & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10);
        assert_eq!(u64_at(&fadt, 120), u64::from(power::RESET));
        let dsdt = table_at(memory.ram(), u64_at(&fadt, 140));
        for name in [&b"V005"[..], b"COM1", b"GED_", b"PWRB", b"PVPC", b"_S5_"] {
            assert!(dsdt.windows(4).any(|w| w == name), "{name:?}");
        }
    }

    #[test]
    fn too_many_devices_are_refused() {
        let memory = Memory::new(128 << 20).unwrap();
        let slot = Slot {
            base: 0xd000_0000,
            length: 0x1000,
            gsi: 5,
        };
        assert!(write(memory.ram(), 1, &vec![slot; 2000]).is_err());
    }
}
