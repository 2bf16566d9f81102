//! What a machine is connected to beyond its own devices: who gets the frames that it sends, who learns of those that it
//! gets, and of its disk writes. Protection hangs on here; a machine without ports works all the same.

use std::{fmt, io, sync::Arc};

/// Where frames that the guest sends go, when not straight to the tap.
pub trait Outlet: Send + Sync {
    /// One frame that the guest sent on card number `card` (in the order of the configuration).
    ///
    /// It is called by a device thread with the device's lock held, only while the machine runs and never while it is
    /// paused: what was sent before a pause is with the outlet when [`crate::Machine::pause`] returns. It must not block
    /// for long, because a pause waits for it. The guest sees the frame as sent when this returns.
    fn send(&self, card: usize, frame: &mut dyn Outgoing);
}

/// A frame on its way out: its virtio-net header (12 bytes) first, then Ethernet's.
///
/// The frame still lies in guest memory, and the guest may change it meanwhile. Only the header is a copy that was
/// checked. Whoever decides by a frame's content decides by a copy ([`Self::copy_to`]), and lets that copy go
/// ([`crate::TapWriter`]).
pub trait Outgoing {
    /// Length in bytes, header included; at least 26.
    fn length(&self) -> usize;

    /// Copies the frame's start into `into`, as much as fits; all of it fits into [`Self::length`] bytes.
    fn copy_to(&self, into: &mut [u8]);

    /// Sends the frame straight to the tap, without a copy.
    ///
    /// # Errors
    /// What the tap says. The frame then counts as dropped.
    fn pass(&mut self) -> io::Result<()>;
}

/// Who learns of frames that the guest gets.
pub trait Inlet: Send + Sync {
    /// One frame that was read from the tap of card number `card` (in the order of the configuration) and that the guest is
    /// about to get.
    ///
    /// It is called by a device thread with the device's lock held, only while the machine runs and never while it is
    /// paused: captured state contains exactly those frames of which the inlet has learned when [`crate::Machine::pause`] returns.
    /// Frames that came by [`crate::Paused::inject`] are not told. It must not block.
    fn received(&self, card: usize, frame: &dyn Incoming);
}

/// A frame on its way in: its virtio-net header (12 bytes; the last two may hold anything) first, then Ethernet's.
pub trait Incoming {
    /// Length in bytes, header included; at least 13.
    fn length(&self) -> usize;

    /// Copies the frame's start into `into`, as much as fits; all of it fits into [`Self::length`] bytes.
    fn copy_to(&self, into: &mut [u8]);
}

/// Who learns of disk writes, in the order in which they were done.
///
/// Each call is made by the disk's own thread after the file operation has succeeded and before the request is handed
/// back to the guest: what the guest was told before a pause is with the log when [`crate::Machine::pause`] returns.
/// Disks go on working while the machine is paused, so calls may come then, too; those requests are not handed
/// back yet, and captured state does them again.
///
/// An operation that failed is not told. What a failed write leaves in its range is undefined, for the guest as well.
pub trait DiskLog: Send + Sync {
    /// `data` stands on disk number `disk` (in the order of the configuration) from byte `at` on.
    fn wrote(&self, disk: usize, at: u64, data: &[u8]);

    /// `length` bytes from byte `at` on read as zeroes: the guest wrote zeroes or gave the space back.
    fn zeroed(&self, disk: usize, at: u64, length: u64);

    /// The guest is about to be told that everything written so far is durable.
    fn flushed(&self, disk: usize);
}

/// What a machine is connected to. The default is nothing: frames go straight to the taps, nobody learns of disk writes.
#[derive(Clone, Default)]
pub struct Ports {
    /// Who gets the frames that the guest sends.
    pub outlet: Option<Arc<dyn Outlet>>,
    /// Who learns of the frames that the guest gets.
    pub inlet: Option<Arc<dyn Inlet>>,
    /// Who learns of disk writes.
    pub disks: Option<Arc<dyn DiskLog>>,
    /// Whether guest memory is locked (`mlock`), and so given by the host at once: neither swapping nor a first touch
    /// delays the guest or a checkpoint.
    pub lock_memory: bool,
    /// Whether a machine that is prepared for a replica has memory of which private copies can be made
    /// ([`crate::Memory::shareable`]), for rehearsals.
    pub shareable: bool,
}

impl fmt::Debug for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ports")
            .field("outlet", &self.outlet.is_some())
            .field("inlet", &self.inlet.is_some())
            .field("disks", &self.disks.is_some())
            .field("lock_memory", &self.lock_memory)
            .field("shareable", &self.shareable)
            .finish()
    }
}
