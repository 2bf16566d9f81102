//! What a machine is made of, already parsed and checked for form. Reading files and naming keys is the binary's work.

use std::path::PathBuf;

/// The smallest memory that a machine may have, in bytes.
pub const MEMORY_MIN: u64 = 128 << 20;
/// The largest number of vCPUs that a machine may have.
pub const VCPUS_MAX: u8 = 4;
/// The largest MTU that a network card offers, in bytes.
pub const MTU_MAX: u16 = 9000;

/// Everything needed to build a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Name for logs and thread names.
    pub name: String,
    /// Number of vCPUs, 1 to [`VCPUS_MAX`].
    pub vcpus: u8,
    /// Guest memory in bytes, a multiple of 2 MiB, at least [`MEMORY_MIN`].
    pub memory: u64,
    /// Kernel file: a `vmlinux` (ELF) or a `bzImage`, as a distribution ships it.
    pub kernel: PathBuf,
    /// Initial RAM disk, where there is one.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub command_line: String,
    /// Where an unpacked kernel is kept from one start to the next; `None` unpacks at every start.
    pub kernel_cache: Option<PathBuf>,
    /// Network cards, in the order that the guest finds them.
    pub nics: Vec<Nic>,
    /// Disks, in the order that the guest finds them (`/dev/vda`, `/dev/vdb`, …).
    pub disks: Vec<Disk>,
    /// Whether the guest has a virtio entropy device.
    pub entropy: bool,
}

/// One network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// Name of the host's tap. It is made if it does not exist (and then goes with the process).
    pub tap: String,
    /// Bridge of the operator's that the tap joins. `None` leaves the tap where it is.
    pub bridge: Option<String>,
    /// The card's MAC address.
    pub mac: [u8; 6],
    /// Largest frame payload in bytes, 68 to [`MTU_MAX`].
    pub mtu: u16,
    /// Whether checksum and segmentation offloads are offered to the guest.
    pub offload: bool,
}

/// One disk, kept in a raw image file or a block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The image.
    pub path: PathBuf,
    /// Refuse the guest's writes.
    pub read_only: bool,
    /// Serial number that the guest sees, at most 20 bytes of ASCII.
    pub serial: String,
}
