//! Sidecars on their way to the disk, in order, each with what may happen only after it.

use std::collections::VecDeque;

use crate::id::SessionId;
use crate::sidecar::{DiskState, Sidecar};
use crate::time::Time;

use super::{Action, Host};

/// What a durable sidecar allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Then {
    /// Nothing waits for it.
    Nothing,
    /// The cold claim may be sent.
    Claim,
    /// The operator's claim may be sent.
    Promote,
    /// The first resync block may be written.
    Ready(SessionId),
    /// The replica may be called whole.
    Whole(SessionId),
}

/// The queue. Its first entry is with the engine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Stores {
    queue: VecDeque<(Sidecar, Then)>,
    failed: bool,
}

impl Host {
    pub(super) fn store(&mut self, sidecar: Sidecar, then: Then) {
        self.stores.queue.push_back((sidecar.clone(), then));
        if self.stores.queue.len() == 1 {
            self.act(Action::StoreSidecar(sidecar));
        }
    }

    pub(super) fn is_storing(&self) -> bool {
        !self.stores.queue.is_empty()
    }

    /// What the disk's sidecar will be when all is stored.
    pub(super) fn coming_sidecar(&self) -> &Sidecar {
        self.stores
            .queue
            .back()
            .map_or(&self.sidecar, |(sidecar, _)| sidecar)
    }

    pub(super) fn sidecar_stored(&mut self, now: Time, durable: bool) {
        if !durable {
            // Tried again at the next tick: what waits for it waits on.
            self.stores.failed = true;
            return;
        }
        let Some((sidecar, then)) = self.stores.queue.pop_front() else {
            return;
        };
        self.sidecar = sidecar;
        if let Some((next, _)) = self.stores.queue.front() {
            let next = next.clone();
            self.act(Action::StoreSidecar(next));
        }
        match then {
            Then::Nothing => {}
            Then::Claim => self.cold_claim(now),
            Then::Promote => self.promote_stored(now),
            Then::Ready(session) => self.ready(session),
            Then::Whole(session) => {
                if self.sidecar.state == DiskState::InSync {
                    self.whole(session);
                }
            }
        }
    }

    pub(super) fn retry_store(&mut self) {
        if std::mem::take(&mut self.stores.failed)
            && let Some((sidecar, _)) = self.stores.queue.front()
        {
            let sidecar = sidecar.clone();
            self.act(Action::StoreSidecar(sidecar));
        }
    }
}
