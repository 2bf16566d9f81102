//! Carrying out what a host's state machine wants done.

use crate::arbiter;
use crate::guards::Guard;
use crate::host::{Action, Event, Notice, Source, Switch};
use crate::id::{Epoch, Term};
use crate::lanes::Lane;
use crate::message::Message;
use crate::record::Refusal;

use super::engine::Replica;
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
                        let event = Event::Heartbeat(beat.clone(), lane);
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
            Action::Copy(session) => self.copy(host, session),
            Action::EndCopy(session) => {
                if let Some(guest) = self.process(host).and_then(|p| p.guest.as_mut())
                    && guest.session == Some(session)
                {
                    guest.session = None;
                    guest.waiting = false;
                }
            }
            Action::Rest => {
                self.check_rest(host);
                if let Some(guest) = self.process(host).and_then(|p| p.guest.as_mut()) {
                    guest.resting = true;
                }
            }
            Action::Freeze | Action::Thaw => {
                let frozen = action == Action::Freeze;
                let Some(process) = self.process(host) else {
                    return;
                };
                process.frozen = frozen;
                let Some(guest) = &mut process.guest else {
                    return;
                };
                guest.paused = frozen;
                let filling = guest.session.is_some();
                if std::mem::take(&mut guest.resting) && !frozen && filling {
                    self.plan_epoch(host);
                }
            }
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
            other => self.perform_engine(host, other),
        }
    }

    /// What concerns machine, replica and disk.
    fn perform_engine(&mut self, host: usize, action: Action) {
        let life = self.computers[host].life;
        match action {
            Action::Load(source) => {
                let flaky = self.now < self.computers[host].load_fails_until;
                let broken = self.process(host).is_some_and(|p| p.broken) && source != Source::Cold;
                let ok = !flaky && !broken;
                if let Some(process) = self.process(host) {
                    process.loaded = ok;
                }
                let event = Box::new(Event::Loaded(ok));
                self.soon(MS, 20 * MS, Happening::Done { host, life, event });
            }
            Action::Run { source, term } => self.run_term(host, source, term),
            Action::Discard => {
                self.check_drop(host);
                let Some(process) = self.process(host) else {
                    return;
                };
                process.guest = None;
                process.replica = None;
                process.frozen = false;
            }
            Action::Prepare(session) => {
                self.check_prepare(host);
                let Some(process) = self.process(host) else {
                    return;
                };
                process.guest = None;
                process.frozen = false;
                process.replica = Some(Replica {
                    session,
                    term: Term::default(),
                    epoch: Epoch(0),
                    state: 0,
                    whole: false,
                    held: std::collections::VecDeque::new(),
                });
            }
            Action::Apply { session, epoch } => self.apply(host, session, epoch),
            Action::Try(session) => {
                let loaded = self.process(host).is_some_and(|p| !p.broken);
                let event = Box::new(Event::Tried { session, loaded });
                self.soon(MS, 10 * MS, Happening::Done { host, life, event });
            }
            Action::StoreSidecar(sidecar) => {
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
            _ => {}
        }
    }
}
