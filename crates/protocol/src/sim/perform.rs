//! Carrying out what a host's state machine wants done.

use crate::arbiter;
use crate::guards::Guard;
use crate::host::{Action, Event, Notice, Switch};
use crate::lanes::Lane;
use crate::message::Message;
use crate::record::Refusal;
use crate::time::Time;

use super::network::PATHS;
use super::world::World;
use super::{Broken, HOSTS, Happening, MS};

impl World<'_> {
    pub(super) fn perform(&mut self, host: usize, action: Action) {
        if !matches!(
            action,
            Action::Heartbeat(_) | Action::Permit(_) | Action::Apply { .. }
        ) && !matches!(&action, Action::Arbiter(r) if r.ask == arbiter::Ask::Read)
            && !matches!(
                &action,
                Action::Send {
                    message: Message::Checkpoint(_) | Message::Commit(..),
                    ..
                }
            )
        {
            self.tell(|| format!("{host}: {action:?}"));
        }
        match action {
            Action::Arbiter(request) => self.ask_arbiter(host, &request),
            Action::Heartbeat(beat) => {
                let paths = if self.guards.on(Guard::EveryPath) {
                    PATHS
                } else {
                    1
                };
                for other in (0..HOSTS).filter(|&other| other != host) {
                    for path in 0..paths {
                        let lane = if path == 0 { Lane::Link } else { Lane::Other };
                        let event = Event::Heartbeat {
                            beat: beat.clone(),
                            lane,
                            // Known when it does.
                            arrived: Time(0),
                        };
                        self.datagram(path, host, other, &event);
                    }
                }
            }
            // What was copied in the pause belongs to another full copy: there is nothing to send.
            Action::Send {
                message: Message::Checkpoint(checkpoint),
                ..
            } if self.sealed_for != Some(checkpoint.session) => {}
            Action::Send { to, message } => {
                let checkpoint = matches!(message, Message::Checkpoint(_));
                let lag = self.process(host).map(|p| p.host.status().lag);
                if checkpoint && lag > Some(1) {
                    self.broke(Broken::Unbounded);
                }
                if let Message::Yield(_) = message {
                    let guest = self.process(host).and_then(|p| p.guest.as_ref());
                    self.yielded = guest.map(|guest| guest.tip);
                    self.send(host, to, message);
                    return self.mislay_yield(host, to);
                }
                self.send(host, to, message);
            }
            Action::Permit(permit) => {
                if let Some(process) = self.process(host) {
                    process.permit = permit;
                }
                self.release(host);
            }
            Action::CloseLink(peer) => self.close_link(host, peer),
            Action::Notice(Notice::Claims { .. }) => self.check_claim(host),
            Action::Notice(Notice::SwitchesOver(Switch::Uplink)) => self.check_switch(host),
            Action::Notice(Notice::Refused(
                Refusal::Shape | Refusal::NotNamed | Refusal::Exists,
            )) => {
                self.broke(Broken::Refused);
            }
            Action::End => {
                self.computers[host].off_for_good = true;
                self.kill(host, false);
            }
            Action::Notice(_) => {}
            Action::Apply { session, epoch } => self.apply(host, session, epoch),
            Action::StoreSidecar(sidecar) => {
                let life = self.computers[host].life;
                let sidecar = Box::new(sidecar);
                self.soon(
                    MS / 5,
                    5 * MS,
                    Happening::Sidecar {
                        host,
                        life,
                        sidecar,
                    },
                );
            }
            order => self.order(host, order),
        }
    }
}
