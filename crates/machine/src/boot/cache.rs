//! Kernels kept unpacked from one start to the next.
//!
//! A kept file is named by the digest of the packed kernel. It ends with a trailer of 16 bytes: a mark, the length of
//! what comes before (u64, little endian) and its CRC-32C (u32). A file that does not match is made again.

use super::{
    image::{self, BzImage, Image},
    unpack,
};
use crate::Error;
use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::{fd::FromRawFd, unix::fs::FileExt},
    path::{Path, PathBuf},
};

const MARK: u32 = 0x4c4d_4f52;
const TRAILER: usize = 16;

/// Unpacks the kernel at `kernel` into the folder `cache` ahead of time, if it is a packed one. Returns whether a
/// start from that cache will find it unpacked.
///
/// # Errors
/// The kernel is none, or damaged.
pub fn prepare(kernel: &Path, cache: &Path) -> Result<bool, Error> {
    match image::open(kernel)? {
        Image::Elf(_) => Ok(false),
        Image::BzImage(bz) => Ok(unpacked(kernel, &bz, Some(cache))?.is_some()),
    }
}

/// The ELF file inside of a packed kernel: from the cache, or unpacked now (and kept, where there is a cache).
/// `None` if it is packed in a way that is not known here: then it can unpack itself.
pub(super) fn unpacked(
    path: &Path,
    bz: &BzImage,
    cache: Option<&Path>,
) -> Result<Option<File>, Error> {
    let file_error = |source| Error::File {
        what: "kernel",
        path: path.to_owned(),
        source,
    };
    let Some((payload, size)) = bz.payload().map_err(file_error)? else {
        return Ok(None);
    };
    let kept = cache.map(|folder| {
        let digest = blake3::hash(&payload).to_hex();
        folder.join(format!("{digest}.vmlinux"))
    });
    if let Some(file) = kept.as_deref().and_then(open_kept) {
        return Ok(Some(file));
    }
    let Some(elf) = unpack::unpack(&payload, size).map_err(file_error)? else {
        return Ok(None);
    };
    drop(payload);
    if let Some(kept) = &kept {
        match keep(kept, &elf) {
            Ok(file) => return Ok(Some(file)),
            Err(error) => {
                tracing::warn!(file = %kept.display(), %error, "cannot keep the unpacked kernel");
            }
        }
    }
    let mut file = anonymous_file().map_err(file_error)?;
    file.write_all(&elf).map_err(file_error)?;
    Ok(Some(file))
}

/// Opens a kept kernel and checks that it is whole.
fn open_kept(path: &Path) -> Option<File> {
    let file = File::open(path).ok()?;
    match check(&file) {
        Ok(true) => Some(file),
        Ok(false) => {
            tracing::warn!(file = %path.display(), "the kept kernel is damaged; unpacking it again");
            None
        }
        Err(error) => {
            tracing::warn!(file = %path.display(), %error, "the kept kernel cannot be read; unpacking it again");
            None
        }
    }
}

fn check(mut file: &File) -> io::Result<bool> {
    let length = file.metadata()?.len();
    let Some(content) = length.checked_sub(TRAILER as u64) else {
        return Ok(false);
    };
    let mut found = [0; TRAILER];
    file.read_exact_at(&mut found, content)?;
    file.seek(SeekFrom::Start(0))?;
    let mut reader = file.take(content);
    let mut buffer = vec![0; 128 << 10];
    let mut sum = 0;
    loop {
        match reader.read(&mut buffer)? {
            0 => break,
            n => sum = crc32c::crc32c_append(sum, &buffer[..n]),
        }
    }
    Ok(found == trailer(content, sum))
}

/// Writes `elf` to a temporary file beside `path` and renames it, so that no reader ever sees half of it.
fn keep(path: &Path, elf: &[u8]) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let temporary = PathBuf::from(format!("{}.{}", path.display(), std::process::id()));
    let result = (|| {
        let mut file = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&temporary)?;
        file.write_all(elf)?;
        file.write_all(&trailer(elf.len() as u64, crc32c::crc32c(elf)))?;
        fs::rename(&temporary, path)?;
        Ok(file)
    })();
    if result.is_err() {
        // It may not even exist; what matters is already being reported.
        let _ = fs::remove_file(&temporary);
    }
    result
}

fn trailer(length: u64, sum: u32) -> [u8; TRAILER] {
    let mut bytes = [0; TRAILER];
    bytes[..4].copy_from_slice(&MARK.to_le_bytes());
    bytes[4..12].copy_from_slice(&length.to_le_bytes());
    bytes[12..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// A file that exists only as long as it is open.
fn anonymous_file() -> io::Result<File> {
    // SAFETY: the name is a terminated string; a descriptor that is returned is new and nobody else's.
    unsafe {
        let fd = libc::memfd_create(c"kernel".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(File::from_raw_fd(fd))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_kernel_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deeper/x.vmlinux");
        assert!(open_kept(&path).is_none());
        keep(&path, b"content").unwrap();
        assert!(open_kept(&path).is_some());
        assert_eq!(
            fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "no temporary file stays"
        );
    }

    #[test]
    fn a_damaged_one_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.vmlinux");
        keep(&path, b"content").unwrap();
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            assert!(open_kept(&path).is_none(), "{cut} bytes");
        }
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &bytes).unwrap();
            assert!(open_kept(&path).is_none(), "bit {bit}");
        }
    }

    #[test]
    fn an_unwritable_cache_is_no_reason_to_fail() {
        assert!(keep(Path::new("/proc/nowhere/x.vmlinux"), b"x").is_err());
    }
}
