//! What is on its way when a host dies, in either direction, and is not to be lost.
//!
//! **Output.** A commit says that the backup has an epoch; whether the primary then really sent that epoch's frames, nobody
//! knows who sees it die. So a checkpoint carries its output, and the backup keeps what may not have left
//! ([`KeptOutput`]). Who takes over sends it again, before anything new. What comes twice is what IP networks may do at any
//! time.
//!
//! **Input.** What the guest was sent after the last commit is lost with the primary, and its senders would have to
//! notice and to repeat it. So the primary passes each frame on as it reads it; the backup keeps those that its
//! replica has not seen ([`KeptInput`]), and the guest finds them in its card when it goes on.

pub mod frames;
mod input;
mod output;
mod pure_ack;

pub use input::KeptInput;
pub use output::KeptOutput;

/// Which of it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Checkpoints carry held output, which is sent again at a takeover.
    pub output: bool,
    /// Frames that the guest gets are passed on to the backup, whose guest gets those that its last commit has not seen.
    pub input: bool,
}

impl Default for Keep {
    fn default() -> Keep {
        Keep {
            output: true,
            input: true,
        }
    }
}
