//! Guest memory.

use vm_memory::{GuestMemoryMmap, bitmap::AtomicBitmap};

/// Guest memory as devices see it: every write through it marks its page in the bitmap, because KVM's own log does not
/// see what user space writes.
pub type Ram = GuestMemoryMmap<AtomicBitmap>;
