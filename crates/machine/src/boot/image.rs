//! What kind of kernel a file holds, and whether it is whole.

use crate::{Error, memory::Ram};
use linux_loader::loader::bootparam::setup_header;
use std::{
    fs::File,
    io::{self, ErrorKind, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::Path,
};
use vm_memory::{ByteValued, Bytes, GuestAddress};

/// Where the setup header starts in a bzImage.
const HEADER: usize = 0x1f1;
/// `jump` of the setup header, whose second byte says where the header ends.
const JUMP: usize = 0x200;
/// The magic number "`HdrS`".
const MAGIC: u32 = 0x5372_6448;
const BOOT_FLAG: u16 = 0xaa55;
/// The oldest protocol that says whether a kernel has a 64-bit entry point.
const PROTOCOL: u16 = 0x020c;
/// `xloadflags`: there is a 64-bit entry point.
const KERNEL_64: u16 = 1;
const SECTOR: u64 = 512;

/// A kernel file, opened.
pub(super) enum Image {
    /// `vmlinux`.
    Elf(File),
    /// `bzImage`, which is what distributions call `vmlinuz`.
    BzImage(BzImage),
}

/// A packed kernel.
pub(super) struct BzImage {
    pub(super) file: File,
    pub(super) header: setup_header,
    /// Where the protected-mode part starts in the file.
    start: u64,
    /// Its length.
    pub(super) length: u64,
}

/// Opens a kernel file and checks its form.
pub(super) fn open(path: &Path) -> Result<Image, Error> {
    let file_error = |source| Error::File {
        what: "kernel",
        path: path.to_owned(),
        source,
    };
    let refuse = |why: String| Error::Invalid(format!("kernel {} {why}", path.display()));
    let file = File::open(path).map_err(file_error)?;
    let metadata = file.metadata().map_err(file_error)?;
    if !metadata.is_file() {
        return Err(refuse("is not a file".into()));
    }
    let mut head = [0u8; 1024];
    let got = read_up_to(&file, &mut head).map_err(file_error)?;
    if head.starts_with(b"\x7fELF") {
        return Ok(Image::Elf(file));
    }
    if got < head.len() {
        return Err(refuse(format!("is no kernel: it has only {got} bytes")));
    }
    let (header, start, length) = parse(&head, metadata.len()).map_err(refuse)?;
    Ok(Image::BzImage(BzImage {
        file,
        header,
        start,
        length,
    }))
}

/// Takes the setup header out of a file's first bytes; says where the protected-mode part starts and how long it is.
fn parse(head: &[u8; 1024], file_length: u64) -> Result<(setup_header, u64, u64), String> {
    let mut header = setup_header::default();
    let end = JUMP + 2 + usize::from(head[JUMP + 1]);
    let length = (end - HEADER).min(size_of::<setup_header>());
    header.as_mut_slice()[..length].copy_from_slice(&head[HEADER..HEADER + length]);
    if header.boot_flag != BOOT_FLAG || header.header != MAGIC {
        return Err("is no Linux kernel for x86 (neither an ELF file nor a bzImage)".into());
    }
    let version = header.version;
    if version < PROTOCOL || header.xloadflags & KERNEL_64 == 0 {
        return Err(format!(
            "has no 64-bit entry point (boot protocol {}.{:02}): use a 64-bit kernel of version 3.8 or newer",
            version >> 8,
            version & 0xff
        ));
    }
    // 0 means 4, for kernels older than any that gets here.
    let sectors = if header.setup_sects == 0 {
        4
    } else {
        u64::from(header.setup_sects)
    };
    let start = (sectors + 1) * SECTOR;
    let length = u64::from(header.syssize) * 16;
    if start + length > file_length || length == 0 {
        return Err(format!(
            "is truncated: {file_length} bytes of {}",
            start + length
        ));
    }
    Ok((header, start, length))
}

impl BzImage {
    /// The packed kernel inside: its bytes, and what they unpack to in bytes. `None` if the header names none.
    pub(super) fn payload(&self) -> io::Result<Option<(Vec<u8>, usize)>> {
        let (offset, length) = (
            u64::from(self.header.payload_offset),
            u64::from(self.header.payload_length),
        );
        // The size stands in the payload's last four bytes.
        if offset == 0 || length < 8 || offset + length > self.length {
            return Ok(None);
        }
        let mut bytes = vec![0; usize::try_from(length).expect("32 bits")];
        self.file.read_exact_at(&mut bytes, self.start + offset)?;
        let size = bytes.split_off(bytes.len() - 4);
        let size = u32::from_le_bytes([size[0], size[1], size[2], size[3]]);
        Ok(Some((bytes, size as usize)))
    }

    /// Reads the protected-mode part into guest memory.
    pub(super) fn read_into(&mut self, ram: &Ram, at: GuestAddress) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(self.start))?;
        let length = usize::try_from(self.length).expect("32 bits of 16 bytes");
        ram.read_exact_volatile_from(at, &mut self.file, length)
            .map_err(io::Error::other)
    }
}

/// Refuses ELF files that are no kernel, or not whole.
pub(super) fn check_elf(path: &Path, file: &File) -> Result<(), Error> {
    /// Bytes of a 64-bit ELF header, and of a program header.
    const ELF_HEADER: usize = 64;
    const PROGRAM_HEADER: usize = 56;
    const X86_64: u16 = 62;
    const LOAD: u32 = 1;
    let file_error = |source| Error::File {
        what: "kernel",
        path: path.to_owned(),
        source,
    };
    let refuse = |why: &str| Err(Error::Invalid(format!("kernel {} {why}", path.display())));
    let length = file.metadata().map_err(file_error)?.len();
    let mut head = [0u8; ELF_HEADER];
    if read_up_to(file, &mut head).map_err(file_error)? < ELF_HEADER {
        return refuse("is truncated");
    }
    let half = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    if head[4] != 2 || head[5] != 1 || half(18) != X86_64 {
        return refuse("is an ELF file, but not for x86-64");
    }
    let table = u64::from_le_bytes(head[32..40].try_into().expect("8 bytes"));
    let mut loads = 0;
    for n in 0..u64::from(half(56)) {
        let mut entry = [0u8; PROGRAM_HEADER];
        let at = table.checked_add(n * PROGRAM_HEADER as u64);
        let read = at.map(|at| file.read_exact_at(&mut entry, at));
        match read {
            Some(Ok(())) => {}
            Some(Err(error)) if error.kind() != ErrorKind::UnexpectedEof => {
                return Err(file_error(error));
            }
            _ => return refuse("is truncated: its program headers are missing"),
        }
        let word = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().expect("8 bytes"));
        if u32::from_le_bytes(entry[..4].try_into().expect("4 bytes")) != LOAD {
            continue;
        }
        loads += 1;
        let (offset, bytes, in_memory) = (word(8), word(32), word(40));
        if offset.checked_add(bytes).is_none_or(|end| end > length) {
            return refuse("is truncated: a segment ends behind the file");
        }
        if bytes > in_memory {
            return refuse("is damaged: a segment is larger in the file than in memory");
        }
    }
    // Linux is linked into the upper half of the address space, but for its per-processor data, which is at 0.
    let entry = u64::from_le_bytes(head[24..32].try_into().expect("8 bytes"));
    if loads == 0 || half(16) != 2 || entry < super::KERNEL_MIN {
        return refuse("is an ELF file, but no kernel (vmlinux)");
    }
    Ok(())
}

/// A setup header for a `vmlinux`, which has none.
pub(super) fn default_header() -> setup_header {
    setup_header {
        boot_flag: BOOT_FLAG,
        header: MAGIC,
        version: PROTOCOL,
        kernel_alignment: 0x0100_0000,
        ..Default::default()
    }
}

fn read_up_to(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read_at(&mut buffer[got..], got as u64) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}
