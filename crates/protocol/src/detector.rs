//! The failure detector: how old is the newest proof that the other side lives?
//!
//! Rules (DESIGN, "Detection"), and where each is kept:
//!
//! - Age counts from our own send time echoed back, so a late echo is not fresh: `Peer::echoed`.
//! - The backup's silence begins no earlier than the last time it vouched for the runner:
//!   `Peer::vouched`. Why: the primary passes unheld output until `T_p` after it *sent* the
//!   heartbeat whose echo it holds. The backup counts from when that heartbeat arrived, which is
//!   never before: were it to count from echoes alone, slow packets in the other direction would
//!   let it claim too soon. An echo is thus a lease.
//! - A heartbeat may be read later than it arrived ([`Detector::heard`]'s `arrived`). To count from
//!   the reading would be safe, too, and would claim later by as much.
//! - Nobody vouches for one who is not the runner, as far as he knows: a former heir that runs now
//!   must not keep its former runner going ([`Detector::beat`]'s `vouch`).
//! - Heartbeats attest that the epoch loop moves; one that does not is neither proof nor vouched
//!   for.
//! - Silence counts only while the observer ran on time and after it drained its sockets. That
//!   lengthens `T_a` and `T_b`, never `T_p`.
//! - On a noisy host `T_b` adapts upwards ([`Detector::t_b`]) and says so; the waits of the primary
//!   follow it ([`Detector::t_a`]), but for `T_p`: when output stops is a matter of safety. Noise is
//!   whatever was late and came: this host itself, an echo, or the other side's word after a
//!   silence. The longest such delay is remembered, and slowly forgotten.

#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::guards::{Guard, Guards};
use crate::heartbeat::{Activity, ECHOES_MAX, Echo, Heartbeat, Uplink};
use crate::id::Incarnation;
use crate::lanes::{Lane, Lanes};
use crate::time::Time;
use crate::timing::Timing;

/// Incarnations remembered at a time; the one heard longest ago makes room.
const PEERS_MAX: usize = 8;
/// Gaps remembered in which the observer did not run.
const LATE_MAX: usize = 16;
/// How long a delay is remembered for the adaptive `T_b`: it counts for less and less until then.
/// Long, because the delays that matter are rare ones: on a busy host minutes lie between them.
const NOISE_LASTS: Duration = Duration::from_mins(30);
/// `T_b` is this many times the longest delay remembered.
const NOISE_MARGIN: u32 = 2;

/// What is known of one other incarnation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Who.
    pub incarnation: Incarnation,
    /// When we last heard anything of it.
    pub heard: Time,
    /// The newest of our own send times that it has echoed while its loop moved.
    echoed: Option<Time>,
    /// When the newest heartbeat arrived that we vouch for.
    vouched: Option<Time>,
    /// The newest send time of its heartbeats, on its clock.
    newest: Time,
    /// The newest send time among those that said its loop moves: what we echo.
    moving: Option<Time>,
    /// Its connection is closed.
    pub closed: bool,
    /// What it last said it does.
    pub activity: Activity,
    /// Whether it last said that it holds whole state.
    pub whole: bool,
    /// What it last said of its uplinks.
    pub uplink: Uplink,
    /// Since when it has said that.
    pub uplink_since: Time,
    lanes: Lanes,
}

/// What was late and came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Late {
    /// This host: it did not run.
    Own,
    /// The echo of a heartbeat of its own.
    Echo,
    /// The other side's word.
    Silence,
}

/// A delay that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Noise {
    /// When it ended.
    pub at: Time,
    /// How long it was, and at most as long as `T_b` was then.
    pub delay: Duration,
    /// What was late.
    pub late: Late,
}

/// Which proof of life counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// The primary watches its heir: only echoes count.
    Heir,
    /// The backup watches its runner: echoes, and what it vouched for.
    Runner,
}

/// The detector of one host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Detector {
    timing: Timing,
    guards: Guards,
    started: Time,
    peers: Vec<Peer>,
    ticked: Time,
    drained: bool,
    sent: Option<Time>,
    loop_turned: Time,
    /// When the observer did not run: from, to.
    late: Vec<(Time, Time)>,
    /// The longest delay that is remembered.
    noise: Option<Noise>,
    t_b: Duration,
}

impl Detector {
    /// A detector that starts to watch at `now`.
    pub fn new(timing: Timing, now: Time) -> Detector {
        Detector::with_guards(timing, now, Guards::default())
    }

    pub(crate) fn with_guards(timing: Timing, now: Time, guards: Guards) -> Detector {
        Detector {
            timing,
            guards,
            started: now,
            peers: Vec::with_capacity(PEERS_MAX),
            ticked: now,
            drained: true,
            sent: None,
            loop_turned: now,
            late: Vec::with_capacity(LATE_MAX),
            noise: None,
            t_b: timing.t_b,
        }
    }

    /// `T_b` as it is now: the configured one, or longer on a noisy host.
    pub fn t_b(&self) -> Duration {
        self.t_b
    }

    /// The delay to which `T_b` has adapted.
    pub fn noise(&self) -> Option<Noise> {
        self.noise
    }

    /// `T_a` as it is now: as long in relation to `T_b` as it is configured.
    pub fn t_a(&self) -> Duration {
        let (t_a, t_b) = (self.timing.t_a, self.timing.t_b);
        scaled(t_a, self.t_b.as_nanos(), t_b.as_nanos())
    }

    /// What is known of `incarnation`.
    pub fn peer(&self, incarnation: Incarnation) -> Option<&Peer> {
        self.peers.iter().find(|p| p.incarnation == incarnation)
    }

    /// All that is known of anybody.
    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter()
    }

    /// The epoch loop turned.
    pub fn loop_turned(&mut self, now: Time) {
        self.loop_turned = now;
    }

    /// Whether the epoch loop has turned after `time`.
    pub fn turned_since(&self, time: Time) -> bool {
        self.loop_turned > time
    }

    /// The observer runs, and says whether it has read everything that had arrived. Returns the
    /// new `T_b` when it changed.
    pub fn tick(&mut self, now: Time, drained: bool) -> Option<Duration> {
        let gap = now.since(self.ticked);
        self.ticked = now;
        self.drained = drained;
        if gap > self.timing.heartbeat * 2 {
            if self.late.len() == LATE_MAX {
                self.late.remove(0);
            }
            self.late.push((now - gap, now));
            self.noticed(now, gap, Late::Own);
        }
        self.adapt(now)
    }

    /// A heartbeat was read, which arrived at `arrived`. It must be authentic and of this machine.
    pub fn heard(
        &mut self,
        now: Time,
        arrived: Time,
        beat: &Heartbeat,
        lane: Lane,
        me: Incarnation,
    ) {
        // What is read now was not there when everything had been read.
        let unread_since = if self.drained { self.ticked } else { Time(0) };
        let arrived = arrived.max(unread_since).min(now);
        let own = self.guards.on(Guard::OwnSendTime);
        let moves = beat.moves || !self.guards.on(Guard::LoopMoves);
        let peer = self.entry(now, beat.from);
        let (last, did) = (peer.echoed.max(peer.vouched), peer.activity);
        peer.heard = now;
        peer.lanes.heard(now, lane);
        if beat.sent > peer.newest {
            peer.newest = beat.sent;
            peer.activity = beat.activity;
            peer.whole = beat.whole;
            if beat.uplink != peer.uplink {
                (peer.uplink, peer.uplink_since) = (beat.uplink, now);
            }
        }
        if !moves {
            return;
        }
        // Only what is newer than all before renews the lease: a duplicate or a straggler
        // proves nothing about now.
        if peer.moving.is_none_or(|newest| beat.sent > newest) {
            peer.moving = Some(beat.sent);
            peer.vouched = Some(arrived);
            // A silence that ended was noise. A frozen host is silent on purpose.
            if let Some(last) = last
                && did != Activity::Frozen
            {
                let silence = arrived.since(last).saturating_sub(self.late_since(last));
                self.noticed(now, silence, Late::Silence);
            }
        }
        let peer = self.entry(now, beat.from);
        let Some(echo) = beat.echoes.iter().find(|e| e.of == me) else {
            return;
        };
        // An echo of the future is a broken clock or a broken peer; it must not buy time.
        let sent = if own { echo.sent.min(now) } else { now };
        if peer.echoed.is_none_or(|newest| sent > newest) {
            peer.echoed = Some(sent);
            self.noticed(now, now.since(sent), Late::Echo);
        }
    }

    /// The connection to `incarnation` opened or closed.
    pub fn connection(&mut self, now: Time, incarnation: Incarnation, open: bool) {
        let peer = self.entry(now, incarnation);
        peer.closed = !open;
        peer.lanes.link(now, open);
    }

    /// A message came over the link with `incarnation`.
    pub fn link_moved(&mut self, now: Time, incarnation: Incarnation) {
        if let Some(peer) = self.peers.iter_mut().find(|p| p.incarnation == incarnation) {
            peer.lanes.link_moved(now);
        }
    }

    /// Whose link carries nothing any more although its host lives (see [`crate::lanes`]). Each is
    /// told once.
    pub fn dead_link(&mut self, now: Time) -> Option<Incarnation> {
        if !self.drained || !self.guards.on(Guard::SilentLane) {
            return None;
        }
        let dead = self.peers.iter().find(|peer| {
            let since = peer.lanes.silent_since(now, self.t_b);
            since.is_some_and(|since| {
                now.since(since).saturating_sub(self.late_since(since)) >= self.t_b * 2
            })
        })?;
        let incarnation = dead.incarnation;
        self.entry(now, incarnation).lanes.link(now, false);
        Some(incarnation)
    }

    /// When a heartbeat is due.
    pub fn due(&self) -> Option<Time> {
        self.sent.map(|sent| sent + self.timing.heartbeat)
    }

    /// The heartbeat of now: `say` holds what the host says of itself; `vouch` says for whom it
    /// vouches.
    pub fn beat(
        &mut self,
        now: Time,
        mut say: Heartbeat,
        vouch: impl Fn(&Peer) -> bool,
    ) -> Heartbeat {
        self.sent = Some(now);
        say.sent = now;
        say.moves &= self.moves(now);
        say.echoes.clear();
        if say.moves {
            // Former incarnations fall silent and to the end.
            self.peers
                .sort_unstable_by_key(|p| std::cmp::Reverse(p.heard));
            let echo = |p: &Peer| {
                p.moving.map(|sent| Echo {
                    of: p.incarnation,
                    sent,
                })
            };
            let vouched = self.peers.iter().filter(|p| vouch(p)).filter_map(echo);
            say.echoes.extend(vouched.take(ECHOES_MAX));
        }
        say
    }

    /// Whether our own epoch loop moves.
    pub fn moves(&self, now: Time) -> bool {
        now.since(self.loop_turned) <= self.timing.stall
    }

    /// Until when the primary may pass output on the word of `heir`: `T_p` after the send time of
    /// the newest heartbeat that it echoed.
    pub fn pass_until(&self, heir: Incarnation) -> Option<Time> {
        self.peer(heir)?.echoed.map(|sent| sent + self.timing.t_p)
    }

    /// How old our newest heartbeat is that `incarnation` echoed.
    pub fn echo_age(&self, now: Time, incarnation: Incarnation) -> Option<Duration> {
        self.peer(incarnation)?.echoed.map(|sent| now.since(sent))
    }

    /// How long `incarnation` has been silent, as far as silence counts; nothing when it cannot
    /// be said now. One that was never heard is silent since the detector started.
    pub fn silence(&self, now: Time, incarnation: Incarnation, watch: Watch) -> Option<Duration> {
        if !self.drained && self.guards.on(Guard::DrainFirst) {
            return None;
        }
        // A stalled loop vouches for nobody, so nobody vouches for it: that silence is its own.
        if !self.moves(now) && self.guards.on(Guard::OwnLoop) {
            return None;
        }
        let Some(peer) = self.peer(incarnation) else {
            return Some(now.since(self.started));
        };
        let leased = watch == Watch::Runner && self.guards.on(Guard::Lease);
        let vouched = if leased { peer.vouched } else { None };
        let since = peer.echoed.max(vouched).unwrap_or(self.started);
        Some(now.since(since).saturating_sub(self.late_since(since)))
    }

    /// Whether the primary is to claim: its heir has been silent for `T_a`.
    pub fn heir_failed(&self, now: Time, heir: Incarnation) -> bool {
        self.silence(now, heir, Watch::Heir)
            .is_some_and(|silence| silence >= self.t_a())
    }

    /// When [`Detector::heir_failed`] will say so if nothing is heard until then. Nothing once it
    /// does, or when that cannot be said now.
    pub fn heir_due(&self, now: Time, heir: Incarnation) -> Option<Time> {
        let silence = self.silence(now, heir, Watch::Heir)?;
        long_enough_at(now, silence, self.t_a())
    }

    /// Whether the backup is to claim: its runner has been silent for `T_b`, or for `T_closed`
    /// after its connection closed, where no output is `unheld`.
    pub fn runner_failed(&self, now: Time, runner: Incarnation, unheld: bool) -> bool {
        self.silence(now, runner, Watch::Runner)
            .is_some_and(|silence| silence >= self.patience(runner, unheld))
    }

    /// When [`Detector::runner_failed`] will say so if nothing is heard until then. Nothing once it
    /// does, or when that cannot be said now.
    pub fn runner_due(&self, now: Time, runner: Incarnation, unheld: bool) -> Option<Time> {
        let silence = self.silence(now, runner, Watch::Runner)?;
        long_enough_at(now, silence, self.patience(runner, unheld))
    }

    /// The silence of a runner that is enough.
    fn patience(&self, runner: Incarnation, unheld: bool) -> Duration {
        let closed = self.peer(runner).is_some_and(|p| p.closed);
        if closed && (!unheld || !self.guards.on(Guard::ClosedOnlyHeld)) {
            self.timing.t_closed
        } else {
            self.t_b
        }
    }

    /// For how long since `since` the observer did not run. A proof of life may arrive after such
    /// a gap and be from before it.
    fn late_since(&self, since: Time) -> Duration {
        if !self.guards.on(Guard::OwnLateness) {
            return Duration::ZERO;
        }
        self.late
            .iter()
            .map(|(from, to)| to.since(since.max(*from)))
            .sum()
    }

    fn entry(&mut self, now: Time, incarnation: Incarnation) -> &mut Peer {
        let found = self.peers.iter().position(|p| p.incarnation == incarnation);
        let index = found.unwrap_or_else(|| {
            if self.peers.len() == PEERS_MAX {
                let oldest = (0..PEERS_MAX).min_by_key(|&i| self.peers[i].heard);
                self.peers.swap_remove(oldest.unwrap_or(0));
            }
            self.peers.push(Peer {
                incarnation,
                heard: now,
                echoed: None,
                vouched: None,
                newest: Time(0),
                moving: None,
                closed: false,
                activity: Activity::Waiting,
                whole: false,
                uplink: Uplink::default(),
                uplink_since: now,
                lanes: Lanes::default(),
            });
            self.peers.len() - 1
        });
        &mut self.peers[index]
    }

    /// Something was late and came. One delay at most doubles `T_b`: a host that stood still for
    /// long, or a path that was cut, says little of what is usual.
    fn noticed(&mut self, now: Time, delay: Duration, late: Late) {
        let delay = delay.min(self.t_b);
        if delay >= self.usual(now) {
            self.noise = Some(Noise {
                at: now,
                delay,
                late,
            });
        }
    }

    /// What is left of the longest delay remembered.
    fn usual(&self, now: Time) -> Duration {
        self.noise
            .map_or(Duration::ZERO, |Noise { at, delay, .. }| {
                let left = NOISE_LASTS.saturating_sub(now.since(at));
                scaled(delay, left.as_nanos(), NOISE_LASTS.as_nanos())
            })
    }

    fn adapt(&mut self, now: Time) -> Option<Duration> {
        // In whole heartbeats: finer steps would tell nothing, many times a second.
        let step = self.timing.heartbeat;
        let beats = (self.usual(now) * NOISE_MARGIN)
            .as_nanos()
            .div_ceil(step.as_nanos());
        let wanted = scaled(step, beats, 1);
        let t_b = wanted.clamp(self.timing.t_b, self.timing.t_b_max);
        (t_b != self.t_b).then(|| {
            self.t_b = t_b;
            t_b
        })
    }
}

/// When a silence that has lasted for `silence` will have lasted for `enough`.
fn long_enough_at(now: Time, silence: Duration, enough: Duration) -> Option<Time> {
    let left = enough.checked_sub(silence)?;
    (!left.is_zero()).then(|| now + left)
}

/// `duration`·`times`/`of`; as long as can be where that is too long.
fn scaled(duration: Duration, times: u128, of: u128) -> Duration {
    let nanoseconds = duration.as_nanos().saturating_mul(times) / of.max(1);
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

#[cfg(test)]
impl Detector {
    /// Whoever watches its heir counts echoes alone.
    pub(crate) fn forget_vouched(&mut self) {
        self.peers.iter_mut().for_each(|p| p.vouched = None);
    }

    /// Times relative to now. What is too old to count is gone, and so is the order of peers,
    /// which matters only where there are more of them than a heartbeat has echoes.
    pub(crate) fn rebase(&mut self, clocks: &crate::model::Clocks) {
        clocks.own(&mut self.started);
        clocks.own(&mut self.ticked);
        clocks.own(&mut self.loop_turned);
        self.sent.iter_mut().for_each(|sent| clocks.own(sent));
        for peer in &mut self.peers {
            clocks.own(&mut peer.heard);
            peer.echoed.iter_mut().for_each(|t| clocks.own(t));
            peer.vouched.iter_mut().for_each(|t| clocks.own(t));
            clocks.of(peer.incarnation, &mut peer.newest);
            let of = peer.incarnation;
            peer.moving.iter_mut().for_each(|t| clocks.of(of, t));
            // Nobody watches an uplink in the model.
            peer.uplink_since = Time(0);
            peer.lanes.rebase(clocks);
            if clocks.is_warm() {
                peer.heard = crate::model::NOW;
            }
            if clocks.is_coarse() {
                // Each heartbeat is newer than the one before.
                peer.newest = Time(0);
            }
        }
        self.peers
            .retain(|p| clocks.lives(p.incarnation) || clocks.recent(p.heard));
        self.peers.sort_unstable_by_key(|p| p.incarnation);
        for (from, to) in &mut self.late {
            clocks.own(from);
            clocks.own(to);
        }
        self.late.retain(|(from, to)| from < to);
        if self.timing.t_b == self.timing.t_b_max {
            self.noise = None;
        }
    }
}
