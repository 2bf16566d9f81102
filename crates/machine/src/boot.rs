//! Loads a kernel and everything it finds at its start (the kernel's `Documentation/arch/x86/boot.rst`).

mod cache;
mod image;
pub(crate) mod registers;
pub(crate) mod reset_vector;
mod unpack;

use crate::{
    Error, acpi,
    config::Config,
    devices::Slot,
    memory::{HIGH_START, LOW_END, Memory, PAGE, Ram},
};
use image::Image;
use linux_loader::loader::{
    KernelLoader,
    bootparam::{boot_params, setup_header},
    elf::Elf,
};
use registers::Entry;
use std::{fs::File, path::Path};
use vm_memory::{ByteValued, Bytes, GuestAddress};

pub use cache::prepare as prepare_kernel;

/// Where the boot parameters ("zero page") lie.
const BOOT_PARAMETERS: u64 = 0x7000;
/// Where the command line lies.
const COMMAND_LINE: u64 = 0x2_0000;
/// End of conventional memory below the old video memory; firmware's data area would be above.
const CONVENTIONAL_END: u64 = 0x9_fc00;
/// Nothing of a kernel may lie below.
const KERNEL_MIN: u64 = 0x10_0000;
/// The longest command line that Linux on x86 takes, for a kernel that does not say (`COMMAND_LINE_SIZE` less the end).
const COMMAND_LINE_MAX: u32 = 2047;
/// The highest address of an initrd, for a kernel that does not say.
const INITRD_MAX: u64 = 0x7fff_ffff;

/// e820 types.
const USABLE: u32 = 1;
const RESERVED: u32 = 2;

/// Loads what `config` names, for the devices in `slots`, and says where the first vCPU starts.
///
/// # Errors
/// Files that are missing or not what they should be; things that do not fit; each with its reason.
pub(crate) fn load(config: &Config, memory: &Memory, slots: &[Slot]) -> Result<Entry, Error> {
    let kernel = load_kernel(config, memory)?;
    let mut params = boot_params {
        hdr: kernel.header,
        acpi_rsdp_addr: acpi::RSDP,
        ..Default::default()
    };
    write_command_line(memory.ram(), &config.command_line, &mut params.hdr)?;
    if let Some(path) = &config.initrd {
        load_initrd(path, memory, kernel.end, &mut params)?;
    }
    params.hdr.type_of_loader = 0xff;
    let map = memory_map(memory);
    for (entry, (start, length, kind)) in params.e820_table.iter_mut().zip(&map) {
        entry.addr = *start;
        entry.size = *length;
        entry.r#type = *kind;
    }
    params.e820_entries = u8::try_from(map.len()).expect("a handful");
    memory
        .ram()
        .write_slice(params.as_slice(), GuestAddress(BOOT_PARAMETERS))
        .map_err(|e| Error::Invalid(format!("boot parameters: {e}")))?;
    acpi::write(memory.ram(), config.vcpus, slots)?;
    reset_vector::write(memory.ram())?;
    Ok(Entry {
        address: kernel.entry,
        parameter: BOOT_PARAMETERS,
    })
}

/// A kernel in guest memory.
struct Loaded {
    entry: u64,
    /// The first address after everything that it needs before it manages its memory itself.
    end: u64,
    header: setup_header,
}

fn load_kernel(config: &Config, memory: &Memory) -> Result<Loaded, Error> {
    let path = &config.kernel;
    match image::open(path)? {
        Image::Elf(file) => load_elf(path, file, image::default_header(), memory),
        Image::BzImage(bz) => match cache::unpacked(path, &bz, config.kernel_cache.as_deref())? {
            Some(elf) => load_elf(path, elf, bz.header, memory),
            None => load_bzimage(path, bz, memory),
        },
    }
}

fn load_elf(
    path: &Path,
    mut file: File,
    header: setup_header,
    memory: &Memory,
) -> Result<Loaded, Error> {
    image::check_elf(path, &file)?;
    let low_end = low_end(memory);
    let loaded = Elf::load(
        memory.ram(),
        None,
        &mut file,
        Some(GuestAddress(KERNEL_MIN)),
    )
    .map_err(|e| Error::Invalid(format!("kernel {}: {e}", path.display())))?;
    if loaded.kernel_end > low_end || loaded.kernel_load.0 >= loaded.kernel_end {
        return Err(Error::Invalid(format!(
            "kernel {} needs memory up to {:#x}, the machine has {low_end:#x}: give it more",
            path.display(),
            loaded.kernel_end
        )));
    }
    Ok(Loaded {
        entry: loaded.kernel_load.0,
        end: loaded.kernel_end,
        header,
    })
}

/// Loads a packed kernel as it is: it unpacks itself. For payloads that are in a form not known here.
fn load_bzimage(path: &Path, mut bz: image::BzImage, memory: &Memory) -> Result<Loaded, Error> {
    /// The 64-bit entry point lies here in the loaded image.
    const ENTRY_64: u64 = 0x200;
    let start = bz.header.pref_address.max(KERNEL_MIN);
    let end = start.saturating_add(bz.length.max(u64::from(bz.header.init_size)));
    if end > low_end(memory) {
        return Err(Error::Invalid(format!(
            "kernel {} needs memory up to {end:#x}, the machine has {:#x}: give it more",
            path.display(),
            low_end(memory)
        )));
    }
    bz.read_into(memory.ram(), GuestAddress(start))
        .map_err(|source| Error::File {
            what: "kernel",
            path: path.to_owned(),
            source,
        })?;
    Ok(Loaded {
        entry: start + ENTRY_64,
        end,
        header: bz.header,
    })
}

fn write_command_line(ram: &Ram, text: &str, header: &mut setup_header) -> Result<(), Error> {
    let most = match header.cmdline_size {
        0 => COMMAND_LINE_MAX,
        n => n.min(0xffff),
    };
    if text.len() > most as usize {
        return Err(Error::Invalid(format!(
            "the kernel command line has {} bytes; this kernel takes {most}",
            text.len()
        )));
    }
    if text.contains('\0') {
        return Err(Error::Invalid(
            "the kernel command line contains a zero byte".into(),
        ));
    }
    let write = |bytes: &[u8], at| {
        ram.write_slice(bytes, GuestAddress(at))
            .map_err(|e| Error::Invalid(format!("kernel command line: {e}")))
    };
    write(text.as_bytes(), COMMAND_LINE)?;
    write(&[0], COMMAND_LINE + text.len() as u64)?;
    header.cmd_line_ptr = u32::try_from(COMMAND_LINE).expect("in the first megabyte");
    Ok(())
}

/// Reads the initrd straight into guest memory, as high as the kernel accepts it.
fn load_initrd(
    path: &Path,
    memory: &Memory,
    kernel_end: u64,
    params: &mut boot_params,
) -> Result<(), Error> {
    let file_error = |source| Error::File {
        what: "initrd",
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(file_error)?;
    let metadata = file.metadata().map_err(file_error)?;
    if !metadata.is_file() {
        return Err(Error::Invalid(format!(
            "initrd {} is not a file",
            path.display()
        )));
    }
    let size = metadata.len();
    let start = initrd_start(
        size,
        params.hdr.initrd_addr_max.into(),
        kernel_end,
        low_end(memory),
    )
    .map_err(|why| Error::Invalid(format!("initrd {} {why}", path.display())))?;
    let length = usize::try_from(size).expect("it fits below 4 GiB");
    memory
        .ram()
        .read_exact_volatile_from(GuestAddress(start), &mut file, length)
        .map_err(|e| Error::Invalid(format!("initrd {}: {e}", path.display())))?;
    params.hdr.ramdisk_image = u32::try_from(start).expect("below 4 GiB");
    params.hdr.ramdisk_size = u32::try_from(size).expect("below 4 GiB");
    Ok(())
}

/// Where an initrd of `size` bytes goes: as high as possible below `kernel_limit` (the last address that the kernel
/// accepts, 0 if it does not say) and the end of low memory. The error says why there is no place.
fn initrd_start(
    size: u64,
    kernel_limit: u64,
    kernel_end: u64,
    low_end: u64,
) -> Result<u64, String> {
    if size == 0 {
        return Err("is empty".into());
    }
    let limit = if kernel_limit == 0 {
        INITRD_MAX
    } else {
        kernel_limit
    };
    let top = low_end.min(limit + 1);
    let bottom = kernel_end.next_multiple_of(PAGE as u64);
    match top.checked_sub(size).map(|s| s & !(PAGE as u64 - 1)) {
        Some(start) if start >= bottom => Ok(start),
        _ => Err(format!(
            "has {} MiB, of which only {} fit beside the kernel: give the machine more memory or a smaller initrd",
            size.div_ceil(1 << 20),
            top.saturating_sub(bottom) >> 20
        )),
    }
}

/// The first address after low memory.
fn low_end(memory: &Memory) -> u64 {
    memory.size().min(LOW_END)
}

/// What the kernel is told about physical memory: start, length and e820 type.
fn memory_map(memory: &Memory) -> Vec<(u64, u64, u32)> {
    let low_end = low_end(memory);
    let mut map = vec![
        (0, CONVENTIONAL_END, USABLE),
        (acpi::RSDP, acpi::END - acpi::RSDP, RESERVED),
        (KERNEL_MIN, low_end - KERNEL_MIN, USABLE),
    ];
    if memory.size() > low_end {
        map.push((HIGH_START, memory.size() - low_end, USABLE));
    }
    map
}

#[cfg(test)]
mod tests;
