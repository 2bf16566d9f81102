//! What stands at the reset vector.
//!
//! There is no firmware, but Linux goes to where it would be: on a system with hardware-reduced ACPI it restarts through
//! EFI, and without EFI through the BIOS, by a jump in real mode to f000:fff0 (`native_machine_emergency_restart`). Zeros
//! there would be executed for ever; this code writes the reset register instead.

use crate::{
    Error, acpi,
    chipset::power::{RESET, RESET_VALUE},
    memory::Ram,
};
use vm_memory::{Bytes, GuestAddress};

/// f000:fff0, where an x86 processor starts.
pub(crate) const ADDRESS: u64 = 0xf_fff0;
/// The code has the 16 bytes up to the end of the first MiB.
const LENGTH: usize = 9;

const _: () = assert!(ADDRESS + LENGTH as u64 <= acpi::END);

/// Writes the code to its place.
///
/// # Errors
/// The machine has no memory there.
pub(crate) fn write(ram: &Ram) -> Result<(), Error> {
    ram.write_slice(&code(), GuestAddress(ADDRESS))
        .map_err(|e| Error::Invalid(format!("reset vector: {e}")))
}

fn code() -> [u8; LENGTH] {
    let [low, high] = RESET.to_le_bytes();
    [
        0xb0,
        RESET_VALUE, // mov al, RESET_VALUE
        0xba,
        low,
        high, // mov dx, RESET
        0xee, // out dx, al
        0xf4, // hlt
        0xeb,
        0xfd, // jmp back to the hlt
    ]
}
