//! What the operator says: stop, promote, another mode.

use crate::guards::Guard;
use crate::message::Message;
use crate::record::{Phase, Right};
use crate::sidecar::DiskState;
use crate::time::Time;

use super::seat::Why;
use super::storing::Then;
use super::{Action, Host, Notice, Role, Stays};

impl Host {
    /// A guest stopped on purpose is never resurrected: a primary ends only when its record has
    /// no heir.
    pub(super) fn stop(&mut self, now: Time) {
        match &mut self.role {
            Role::Primary(primary) => {
                primary.stopping = true;
                self.go_on(Stays::Ends);
                self.primary_tick(now);
            }
            Role::Backup(replica) => {
                let bye = replica.session;
                self.send(bye.runner, Message::Bye(bye));
                self.end();
            }
            Role::Waiting(_) | Role::Frozen(_) => self.end(),
            Role::Ended => {}
        }
    }

    pub(super) fn end(&mut self) {
        self.role = Role::Ended;
        self.act(Action::End);
    }

    /// Puts the wanted mode in force when nobody relies on the old one: a backup chooses by it how soon a closed connection is
    /// a failure. A runner must be alone for that; on any other host it is about sessions to come.
    pub(super) fn change_mode(&mut self) {
        let Some(unheld) = self.wanted_mode else {
            return;
        };
        let alone = match &self.role {
            Role::Primary(primary) => !primary.fills() && self.is_alone(primary),
            Role::Waiting(_) | Role::Backup(_) | Role::Frozen(_) | Role::Ended => true,
        };
        if alone || !self.guards.on(Guard::ModeAlone) {
            self.wanted_mode = None;
            self.config.unheld = unheld;
            self.act(Action::Mode { unheld });
        }
    }

    /// The operator accepts the loss of whatever the record's runner and heir hold.
    pub(super) fn promote(&mut self, now: Time) {
        let ready = match &self.role {
            Role::Waiting(_) => self.sidecar.state == DiskState::InSync,
            Role::Backup(replica) => replica.is_whole(),
            Role::Frozen(frozen) => frozen.usable(),
            Role::Primary(_) | Role::Ended => false,
        };
        let known = self.seat.view().is_some();
        if !ready || !known {
            self.notice(Notice::CannotPromote);
            return;
        }
        if let Role::Waiting(_) = self.role {
            let sidecar = self.sidecar.with(self.me);
            self.store(sidecar, Then::Promote);
            return;
        }
        if let Role::Backup(_) = self.role {
            self.freeze();
        }
        self.ask(
            now,
            Why::Claim,
            Right::Operator,
            self.me,
            None,
            Phase::Claimed,
        );
    }
}
