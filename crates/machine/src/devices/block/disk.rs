//! Opening a disk's image, and refusing what is none.

use super::SECTOR;
use crate::{
    Error,
    config::{self, Config},
};
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::Path,
};

/// An image, opened and locked.
#[derive(Debug)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each says something of its own"
)]
pub(crate) struct Disk {
    /// The file, or block device.
    pub(crate) file: File,
    /// Its length in bytes, a multiple of [`SECTOR`].
    pub(crate) length: u64,
    /// Writes are refused.
    pub(crate) read_only: bool,
    /// Space can be given back.
    pub(crate) discard: bool,
    /// Zeros can be written without sending them.
    pub(crate) zero: bool,
    /// Sectors in one block of the host's, as a power of two.
    pub(crate) physical_exponent: u8,
    /// What is written is not written: a rehearsal's.
    pub(crate) pretends: bool,
}

/// Calls `fallocate`.
///
/// # Errors
/// What the kernel says; `EOPNOTSUPP` where the file system has no such thing.
pub(super) fn fallocate(fd: RawFd, mode: libc::c_int, at: u64, length: u64) -> io::Result<()> {
    let (Ok(at), Ok(length)) = (at.try_into(), length.try_into()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    loop {
        // SAFETY: no pointers are involved.
        if unsafe { libc::fallocate(fd, mode, at, length) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

impl Disk {
    /// Opens an image and locks it against other machines.
    ///
    /// # Errors
    /// A file that is missing, forbidden, in use, or no raw image, and what to do about it.
    pub(crate) fn open(path: &Path, read_only: bool) -> Result<Self, Error> {
        let fail = |source| Error::File {
            what: "disk",
            path: path.to_owned(),
            source,
        };
        let invalid = |why: String| Error::Invalid(format!("disk {}: {why}", path.display()));
        let metadata = std::fs::metadata(path).map_err(fail)?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            return Err(invalid("it is a directory, not an image".into()));
        }
        if !kind.is_file() && !kind.is_block_device() {
            return Err(invalid("it is neither a file nor a block device".into()));
        }
        let mut file = File::options()
            .read(true)
            .write(!read_only)
            .open(path)
            .map_err(fail)?;
        lock(&file, read_only).map_err(|error| match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => invalid(
                "another machine (or program) uses it; give each machine an image of its own"
                    .into(),
            ),
            _ => fail(error),
        })?;
        let length = file.seek(SeekFrom::End(0)).map_err(fail)?;
        if length == 0 {
            return Err(invalid("it is empty".into()));
        }
        let mut magic = [0; 4];
        file.seek(SeekFrom::Start(0)).map_err(fail)?;
        if length >= 4 {
            file.read_exact(&mut magic).map_err(fail)?;
        }
        if magic == *b"QFI\xfb" {
            return Err(invalid(
                "it is a qcow2 image; make it raw with \"qemu-img convert -O raw\"".into(),
            ));
        }
        if !length.is_multiple_of(SECTOR) {
            return Err(invalid(format!(
                "its length of {length} bytes is no multiple of {SECTOR}: it is truncated, or no raw image"
            )));
        }
        let (discard, zero) = if kind.is_block_device() {
            (device_discards(metadata.rdev()), true)
        } else {
            probe(&file, length)
        };
        let block = metadata.blksize().next_power_of_two().clamp(SECTOR, 4096);
        Ok(Self {
            file,
            length,
            read_only,
            discard,
            zero,
            physical_exponent: (block / SECTOR).trailing_zeros() as u8,
            pretends: false,
        })
    }

    /// Opens the images of all disks of a machine.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn open_all(config: &Config) -> Result<Vec<Self>, Error> {
        let disks = config.disks.iter();
        disks
            .map(|disk| Self::open(&disk.path, disk.read_only))
            .collect()
    }

    /// Opens the image of a machine that is being rehearsed: for reading alone, and beside the machine that has locked it. To the
    /// guest it is as writable as the real one, and can all that one could, because the guest may be using it.
    ///
    /// # Errors
    /// A file that is missing or forbidden.
    pub(crate) fn rehearse(configured: &config::Disk) -> Result<Self, Error> {
        let fail = |source| Error::File {
            what: "disk",
            path: configured.path.clone(),
            source,
        };
        let mut file = File::open(&configured.path).map_err(fail)?;
        let length = file.seek(SeekFrom::End(0)).map_err(fail)?;
        Ok(Self {
            file,
            length,
            read_only: configured.read_only,
            discard: true,
            zero: true,
            physical_exponent: 0,
            pretends: true,
        })
    }
}

/// Locks the whole file for as long as it is open (an open file description lock, which no other process of ours loses
/// by closing another descriptor). Readers share it.
fn lock(file: &File, read_only: bool) -> io::Result<()> {
    let kind = if read_only {
        libc::F_RDLCK
    } else {
        libc::F_WRLCK
    };
    let request = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: F_OFD_SETLK reads one flock.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether the file system can give space back, and can zero a range: tried behind the file's end, where it changes nothing.
fn probe(file: &File, length: u64) -> (bool, bool) {
    let behind = length.next_multiple_of(1 << 20);
    let can = |mode| {
        fallocate(
            file.as_raw_fd(),
            mode | libc::FALLOC_FL_KEEP_SIZE,
            behind,
            4096,
        )
        .is_ok()
    };
    let discard = can(libc::FALLOC_FL_PUNCH_HOLE);
    // A hole reads as zeros. (Zeroing behind the end would reserve space, so that is not tried.)
    (discard, discard)
}

/// Whether a block device discards: its queue says so.
fn device_discards(device: u64) -> bool {
    let queue = format!(
        "/sys/dev/block/{}:{}/queue/discard_max_bytes",
        libc::major(device),
        libc::minor(device)
    );
    std::fs::read_to_string(queue)
        .is_ok_and(|text| text.trim().parse::<u64>().is_ok_and(|bytes| bytes > 0))
}
