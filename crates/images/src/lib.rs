//! Images out of Debian packages: kernels, initial RAM file systems, guest images.
//!
//! Everything comes straight from the archive of a Debian suite, with apt's own verification, needs no container
//! engine and, but for [`ensure_packages`], no root. What is built is kept in [`cache_dir`] under a digest of all that
//! went into it; the same inputs give the same bytes.

mod archive;
mod cache;
mod certificate;
mod cpio;
mod elf;
mod ext4;
mod guest;
mod initramfs;
mod kernel;
mod modules;
mod packages;
mod progress;
mod recipe;
mod run;
mod suite;
mod tree;
mod unpacked;
mod wheel;

pub use cache::cache_dir;
pub use guest::{GuestImage, GuestKind, build_guest, guest_names, guests_dir, verify_guest};
pub use initramfs::Initramfs;
pub use kernel::Kernel;
pub use packages::ensure_packages;
pub use progress::{Progress, Step};
pub use recipe::{Recipe, RecipeError};
pub use suite::{Suite, UnknownSuite};
pub use unpacked::{unpacked, unpacked_with_dependencies};
