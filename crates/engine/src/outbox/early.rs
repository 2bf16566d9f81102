//! What a backup told of its disks before the session's copy began here: it may be quicker than the thread that holds the
//! machine.

use romulus_protocol::id::SessionId;

/// Bytes of digests that are kept: those of some 300 GiB of disk. A backup that tells more before it is asked to is not to
/// take this host's memory.
const MOST: usize = 64 << 20;

/// One message of digests.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) disk: u16,
    pub(super) first: u64,
    pub(super) bytes: Vec<u8>,
    pub(super) last: bool,
}

/// Digests that nobody has asked for yet, of one session.
#[derive(Debug, Default)]
pub(super) struct Early {
    session: Option<SessionId>,
    told: Vec<Told>,
    bytes: usize,
}

impl Early {
    /// Keeps a message; those of any other session are forgotten. `false`: it is too much.
    pub(super) fn keep(&mut self, session: SessionId, told: Told) -> bool {
        if self.session != Some(session) {
            *self = Self {
                session: Some(session),
                ..Self::default()
            };
        }
        self.bytes = self.bytes.saturating_add(told.bytes.len());
        self.told.push(told);
        self.bytes <= MOST
    }

    /// Gives what was told for this session, in order, and forgets everything.
    pub(super) fn take(&mut self, session: SessionId) -> Vec<Told> {
        let early = std::mem::take(self);
        if early.session == Some(session) {
            early.told
        } else {
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Early, MOST, Told};
    use crate::backup::testing::session;

    fn told(first: u64, bytes: usize) -> Told {
        Told {
            disk: 0,
            first,
            bytes: vec![0; bytes],
            last: false,
        }
    }

    #[test]
    fn what_was_told_is_kept_for_its_own_session_in_order() {
        let mut early = Early::default();
        assert!(early.keep(session(1), told(7, 1)));
        assert!(early.keep(session(2), told(0, 1)) && early.keep(session(2), told(1, 1)));
        assert_eq!(early.take(session(2)), [told(0, 1), told(1, 1)]);
        assert_eq!(early.take(session(2)), []);
        assert!(early.keep(session(2), told(0, 1)));
        assert_eq!(early.take(session(3)), []);
    }

    #[test]
    fn it_is_bounded() {
        let mut early = Early::default();
        assert!(early.keep(session(1), told(0, MOST)));
        assert!(!early.keep(session(1), told(1, 1)));
    }
}
