//! The protocol's state machine behind a mutex, and the hands that carry out what it wants.

use crate::{
    Report,
    arbiter::Client,
    clock,
    datagram::Paths,
    input::Input,
    orders::{Order, Orders},
    outbox::{Item, Outbox},
    output::Output,
    phases::Phases,
};
use romulus_checkpoint::Staging;
use romulus_network::Mode;
use romulus_protocol::{
    detector::{Late, Noise},
    heartbeat::Uplink,
    host::{Action, Event, Host, Notice, Status, Switch},
    id::{Epoch, Incarnation, SessionId},
    message::Message,
    sidecar::Sidecar,
};
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What all threads of one engine share.
///
/// Locks are taken in this order, and none is held while an earlier one is taken: the replica's,
/// the host's, then any of the others. (The warm pages' comes before all of them at a seal; their
/// link's writer takes it alone.)
pub(crate) struct Node {
    host: Mutex<Host>,
    pub(crate) orders: Arc<Orders>,
    pub(crate) output: Arc<Output>,
    pub(crate) input: Arc<Input>,
    pub(crate) phases: Phases,
    paths: Mutex<Paths>,
    arbiter: Mutex<Client>,
    peers: Mutex<Vec<(Incarnation, Arc<Outbox>)>>,
    /// To the thread that makes them durable; gone when that is to end.
    sidecars: Mutex<Option<mpsc::Sender<Sidecar>>>,
    reports: Mutex<mpsc::Sender<Report>>,
    /// The session whose parts are welcome.
    expected: Mutex<Option<SessionId>>,
    /// The session that was offered last, and to whom.
    offered: Mutex<Option<(SessionId, Incarnation)>>,
    /// The checkpoint that the host has accepted and that is still to be applied.
    accepted: Mutex<Option<(SessionId, Epoch)>>,
    /// The mode that the operator wants, until it is in force.
    wanted_mode: Mutex<Option<Mode>>,
    /// The epoch that has just been sealed, until it goes to its link.
    staged: Mutex<Option<Staging>>,
    /// Stagings that nobody uses at the moment.
    spare: Mutex<Vec<Staging>>,
    ending: AtomicBool,
    /// The watched interfaces, and whether each has a carrier.
    uplinks: Mutex<Vec<(String, bool)>>,
    /// The last `T_b` that the log was told of.
    told_t_b: Mutex<Duration>,
    pub(crate) figures: Figures,
}

/// Counters for people.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) epochs: AtomicU64,
    pub(crate) dirty_pages: AtomicU64,
    pub(crate) first_writes: AtomicU64,
    pub(crate) sent_bytes: AtomicU64,
    pub(crate) sent_pages: AtomicU64,
    pub(crate) copied: AtomicU64,
    pub(crate) to_copy: AtomicU64,
    /// How often the replica was rehearsed.
    pub(crate) rehearsals: AtomicU64,
    /// Processor time of the last epoch's encoding and sending, in nanoseconds.
    pub(crate) last_work: AtomicU64,
    /// Pages of the last epoch whose content was not what it had been before.
    pub(crate) last_changed: AtomicU64,
}

/// Whether a `T_b` differs enough from the last one that was told: on a noisy host it moves many times a minute.
fn is_news(told: Duration, t_b: Duration) -> bool {
    told.abs_diff(t_b) * 4 >= told.max(t_b)
}

impl Node {
    #[allow(clippy::too_many_arguments, reason = "each is made by somebody else")]
    pub(crate) fn new(
        host: Host,
        orders: Arc<Orders>,
        output: Arc<Output>,
        paths: Paths,
        arbiter: Client,
        sidecars: mpsc::Sender<Sidecar>,
        reports: mpsc::Sender<Report>,
    ) -> Node {
        Node {
            host: Mutex::new(host),
            orders,
            output,
            input: Arc::default(),
            phases: Phases::default(),
            paths: Mutex::new(paths),
            arbiter: Mutex::new(arbiter),
            peers: Mutex::default(),
            sidecars: Mutex::new(Some(sidecars)),
            reports: Mutex::new(reports),
            expected: Mutex::default(),
            offered: Mutex::default(),
            accepted: Mutex::default(),
            wanted_mode: Mutex::default(),
            staged: Mutex::default(),
            spare: Mutex::default(),
            ending: AtomicBool::new(false),
            uplinks: Mutex::default(),
            told_t_b: Mutex::default(),
            figures: Figures::default(),
        }
    }

    /// Tells the host of an event and does what it wants.
    pub(crate) fn handle(&self, event: Event) {
        self.handle_all(std::iter::once(event));
    }

    /// Tells the host of several events at once.
    pub(crate) fn handle_all(&self, events: impl IntoIterator<Item = Event>) {
        let mut host = lock(&self.host);
        // A link that is closed because this process ends is nobody's loss: the other host is to learn of the end by
        // itself, and not to be let go.
        if self.is_ending() {
            return;
        }
        for event in events {
            host.handle(clock::now(), event);
            while let Some(action) = host.poll() {
                self.perform(action);
            }
        }
    }

    /// What the host says of itself.
    pub(crate) fn status(&self) -> Status {
        lock(&self.host).status()
    }

    /// The machine is to have this mode. Where it matters to the other host, the links are closed, and none is opened before the
    /// mode is in force: until both hosts have it, the machine is not protected.
    pub(crate) fn set_mode(&self, mode: Mode) {
        let unheld = mode.leaves_unheld();
        let (in_force, changing) = {
            let host = lock(&self.host);
            (host.unheld(), host.changes_mode())
        };
        if unheld == in_force && !changing {
            self.output.set_mode(mode);
            return;
        }
        *lock(&self.wanted_mode) = Some(mode);
        self.handle(Event::Mode { unheld });
        self.close_links();
    }

    /// Whether some output is not held.
    pub(crate) fn unheld(&self) -> bool {
        lock(&self.host).unheld()
    }

    /// Whether a mode is wanted that is not in force yet.
    pub(crate) fn changes_mode(&self) -> bool {
        lock(&self.host).changes_mode()
    }

    /// Whether the running epoch may end for this session.
    pub(crate) fn may_seal(&self, session: SessionId) -> bool {
        lock(&self.host).may_seal(session)
    }

    /// How long the heartbeat thread may sleep.
    pub(crate) fn sleep(&self) -> Duration {
        let now = clock::now();
        lock(&self.host).deadline(now).since(now)
    }

    pub(crate) fn paths(&self) -> MutexGuard<'_, Paths> {
        lock(&self.paths)
    }

    pub(crate) fn arbiter(&self) -> MutexGuard<'_, Client> {
        lock(&self.arbiter)
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// Nothing is heard of or done any more. What was begun is done.
    pub(crate) fn end(&self) {
        let _host = lock(&self.host);
        self.ending.store(true, Ordering::Release);
        *lock(&self.sidecars) = None;
    }

    /// These interfaces are watched, and this is what they are now.
    pub(crate) fn watch_uplinks(&self, names: &[String], up: &[bool]) {
        *lock(&self.uplinks) = names.iter().cloned().zip(up.iter().copied()).collect();
        for (name, up) in lock(&self.uplinks).iter() {
            if !up {
                tracing::warn!("the uplink {name} has no carrier, or does not exist");
            }
        }
        self.tell_uplinks();
    }

    /// This is what the watched interfaces are now.
    pub(crate) fn uplinks_seen(&self, seen: &[bool]) {
        let mut changed = false;
        for ((name, up), seen) in lock(&self.uplinks).iter_mut().zip(seen) {
            if up != seen {
                *up = *seen;
                changed = true;
                if *up {
                    tracing::info!("the uplink {name} is there again");
                } else {
                    tracing::warn!("the uplink {name} is gone");
                }
            }
        }
        if changed {
            self.tell_uplinks();
        }
    }

    /// Nothing is known of them any more.
    pub(crate) fn uplinks_unknown(&self) {
        lock(&self.uplinks).clear();
        self.tell_uplinks();
    }

    /// Whether each watched interface has a carrier.
    pub(crate) fn uplinks(&self) -> Vec<bool> {
        lock(&self.uplinks).iter().map(|(_, up)| *up).collect()
    }

    fn tell_uplinks(&self) {
        let up = self.uplinks();
        // A file names no more than 16.
        let count = |number: usize| u8::try_from(number).unwrap_or(u8::MAX);
        self.handle(Event::Uplink(Uplink {
            up: count(up.iter().filter(|up| **up).count()),
            of: count(up.len()),
        }));
    }

    /// There is a link to this incarnation; a second one replaces the first.
    pub(crate) fn connected(&self, peer: Incarnation, outbox: &Arc<Outbox>) {
        {
            let mut peers = lock(&self.peers);
            for (incarnation, old) in peers.iter() {
                if *incarnation == peer {
                    old.close();
                }
            }
            peers.retain(|(incarnation, _)| *incarnation != peer);
            peers.push((peer, Arc::clone(outbox)));
        }
        self.handle(Event::Connected(peer));
    }

    /// This link is closed. (If another has replaced it, the host was told.)
    pub(crate) fn closed(&self, peer: Incarnation, outbox: &Arc<Outbox>) {
        let mut peers = lock(&self.peers);
        let before = peers.len();
        peers.retain(|(_, other)| !Arc::ptr_eq(other, outbox));
        let was_current = peers.len() < before;
        drop(peers);
        if was_current {
            self.handle(Event::Closed(peer));
        }
    }

    /// Closes every link: the process ends, or its machine is about to be another one.
    pub(crate) fn close_links(&self) {
        for (_, outbox) in lock(&self.peers).iter() {
            outbox.close();
        }
    }

    /// The link to an incarnation.
    pub(crate) fn outbox(&self, peer: Incarnation) -> Option<Arc<Outbox>> {
        let peers = lock(&self.peers);
        let found = peers.iter().find(|(incarnation, _)| *incarnation == peer);
        found.map(|(_, outbox)| Arc::clone(outbox))
    }

    /// The link to the backup that this session fills.
    pub(crate) fn outbox_of(&self, session: SessionId) -> Option<Arc<Outbox>> {
        let offered = *lock(&self.offered);
        let (_, peer) = offered.filter(|(offered, _)| *offered == session)?;
        self.outbox(peer)
    }

    /// The host offers this session to that peer.
    pub(crate) fn offers(&self, session: SessionId, to: Incarnation) {
        *lock(&self.offered) = Some((session, to));
    }

    /// The links there are.
    pub(crate) fn partners(&self) -> Vec<Incarnation> {
        lock(&self.peers).iter().map(|(peer, _)| *peer).collect()
    }

    /// The session whose parts are welcome.
    pub(crate) fn expected(&self) -> Option<SessionId> {
        *lock(&self.expected)
    }

    /// Whether the host has just accepted a checkpoint, which is then to be applied.
    pub(crate) fn take_accepted(&self) -> Option<(SessionId, Epoch)> {
        lock(&self.accepted).take()
    }

    /// The sealed epoch's content, for the checkpoint that the host is about to send.
    pub(crate) fn stage(&self, staging: Staging) {
        *lock(&self.staged) = Some(staging);
    }

    /// Gives back a staging that nobody took.
    pub(crate) fn unstage(&self) {
        if let Some(staging) = lock(&self.staged).take() {
            self.recycle(staging);
        }
    }

    pub(crate) fn recycle(&self, staging: Staging) {
        lock(&self.spare).push(staging);
    }

    /// A staging that nobody uses.
    pub(crate) fn spare(&self) -> Option<Staging> {
        lock(&self.spare).pop()
    }

    /// Tells the binary.
    pub(crate) fn report(&self, report: Report) {
        // Nobody listens any more when the process is ending.
        let _ = lock(&self.reports).send(report);
    }

    /// Does one thing. The host's mutex is held: nothing here may wait.
    fn perform(&self, action: Action) {
        match action {
            Action::Arbiter(request) => self.arbiter().send(&request),
            Action::Heartbeat(beat) => self.paths().send(&beat),
            Action::Send { to, message } => self.send(to, message),
            Action::Permit(permit) => self.output.permit(permit),
            Action::CloseLink(peer) => {
                if let Some(outbox) = self.outbox(peer) {
                    outbox.close();
                }
            }
            Action::Copy(session) => self.orders.push(Order::Copy(session)),
            Action::EndCopy(session) => self.orders.push(Order::EndCopy(session)),
            Action::Freeze => self.orders.push(Order::Freeze),
            Action::Rest => self.orders.push(Order::Rest),
            Action::Thaw => self.orders.push(Order::Thaw),
            Action::Load(source) => self.orders.push(Order::Load(source)),
            Action::Run { source, term } => {
                // What a former runner still sends when it returns is for nobody.
                *lock(&self.expected) = None;
                self.orders.push(Order::Run { source, term });
            }
            Action::Discard => {
                *lock(&self.expected) = None;
                self.orders.push(Order::Discard);
            }
            Action::Prepare(session) => {
                *lock(&self.expected) = Some(session);
                self.orders.push(Order::Prepare(session));
            }
            Action::Apply { session, epoch } => *lock(&self.accepted) = Some((session, epoch)),
            Action::Try(session) => self.orders.push(Order::Try(session)),
            Action::StoreSidecar(sidecar) => {
                if let Some(sidecars) = &*lock(&self.sidecars) {
                    // The thread ends only with the process.
                    let _ = sidecars.send(sidecar);
                }
            }
            Action::Notice(notice) => self.notice(notice),
            Action::Mode { .. } => {
                if let Some(mode) = lock(&self.wanted_mode).take() {
                    tracing::info!(mode = mode.name(), "the mode is in force");
                    self.output.set_mode(mode);
                }
            }
            Action::End => self.orders.push(Order::End),
        }
    }

    fn send(&self, to: Incarnation, message: Message) {
        // Whoever ends an epoch takes back what was not sent: nobody else's message may.
        let Some(outbox) = self.outbox(to) else {
            return;
        };
        if let Message::Begin { session, .. } = message {
            self.offers(session, to);
        }
        match message {
            Message::Checkpoint(checkpoint) => {
                if let Some(staging) = lock(&self.staged).take() {
                    // The loop wakes the sender when the guest runs again.
                    outbox.push_quietly(Item::Epoch(checkpoint, staging));
                }
            }
            message => outbox.push(Item::Message(message)),
        }
    }

    fn notice(&self, notice: Notice) {
        let text = match notice {
            Notice::Running { term } => format!("runs the machine here, in term {term}"),
            // Whoever runs the engine says this in its own words.
            Notice::Protected(protected) => return self.report(Report::Protected(protected)),
            Notice::Adapted { t_b, noise } => {
                let mut told = lock(&self.told_t_b);
                if !is_news(*told, t_b) {
                    return;
                }
                *told = t_b;
                let t_b = t_b.as_millis();
                let Some(Noise { delay, late, .. }) = noise else {
                    return;
                };
                let delay = delay.as_millis();
                let why = match late {
                    Late::Own => format!("this host did not run for {delay} ms"),
                    Late::Echo => format!("a heartbeat's echo took {delay} ms"),
                    Late::Silence => format!("the other host was silent for {delay} ms"),
                };
                format!("noise: T_b is now {t_b} ms ({why})")
            }
            Notice::Arbiter { answers: true } => "the arbiter answers".to_owned(),
            Notice::Arbiter { answers: false } => {
                "the arbiter does not answer: nobody could take over now".to_owned()
            }
            Notice::Refused(refusal) => format!("the arbiter refuses: {refusal}"),
            Notice::RecordLost { record: None } => {
                "the arbiter has no record of this machine: `romulus create` makes the first one; \
                 if there was one, the arbiter has lost it"
                    .to_owned()
            }
            Notice::RecordLost {
                record: Some(record),
            } => format!(
                "the arbiter has an older record (generation {}) than it once gave: it has lost state",
                record.generation
            ),
            Notice::Claims { silence, t_b } => {
                let silent = silence.map_or_else(String::new, |silence| {
                    format!("the other host was silent for {} ms, ", silence.as_millis())
                });
                format!("claims the machine: {silent}T_b is {} ms", t_b.as_millis())
            }
            Notice::SwitchesOver(Switch::Operator) => {
                "hands the machine over to the other host".to_owned()
            }
            Notice::SwitchesOver(Switch::Uplink) => {
                "this host's uplink is gone, and there on the other host: hands the machine over"
                    .to_owned()
            }
            Notice::Stays(why) => {
                self.report(Report::Stays(why));
                format!("no switchover: {why}")
            }
            Notice::LinkDead => {
                "the replication path carries nothing any more, though the other host lives"
                    .to_owned()
            }
            Notice::ReplicaBroken => "the replica cannot be used".to_owned(),
            Notice::CannotPromote => {
                "there is nothing whole here to promote, or the arbiter was never reached"
                    .to_owned()
            }
        };
        tracing::info!("{text}");
        self.report(Report::Notice(text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::testing::{incarnation, world};

    /// Its links close because it ends: that must not let its heir go.
    #[test]
    fn who_ends_hears_nothing_more() {
        let runner = incarnation(2);
        for ends in [false, true] {
            let world = world();
            world.begin(1);
            let expected = world.node.expected();
            assert!(expected.is_some());
            if ends {
                world.node.end();
            }
            world.node.handle(Event::Closed(runner));
            assert_eq!(world.node.expected() == expected, ends);
        }
    }

    #[test]
    fn a_small_change_of_t_b_is_no_news() {
        let ms = Duration::from_millis;
        assert!(is_news(Duration::ZERO, ms(100)), "the first");
        assert!(!is_news(ms(100), ms(113)) && !is_news(ms(113), ms(100)));
        assert!(is_news(ms(100), ms(200)) && is_news(ms(200), ms(100)));
    }
}
