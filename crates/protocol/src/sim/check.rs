//! What must never break, checked against what really happened; and the run's last part, where
//! nothing fails but what is meant to.

use crate::host::{RoleName, Source};
use crate::id::{Incarnation, Term};
use crate::record::Phase;
use crate::timing::Timing;

use super::engine::Process;
use super::history::Node;
use super::world::{Stage, World};
use super::{Broken, HOSTS, MS};

/// Once the faults stop: how long until somebody runs, and is protected again.
const RUNS_WITHIN: u64 = 4_000 * MS;
const PROTECTED_WITHIN: u64 = 6_000 * MS;
/// How long until the heir runs: the highest `T_b` on the slowest clock, the stall limit, two
/// answers of the arbiter, a load.
const TAKEOVER_WITHIN: u64 = 600 * MS;
/// How long a primary may believe in a backup that is gone, beyond the highest `T_a`: a slow clock,
/// and a tick.
const BELIEF: u64 = 40 * MS;

impl World<'_> {
    pub(super) fn incarnation(&self, of: Incarnation) -> Option<(usize, &Process)> {
        let processes = self.computers.iter().enumerate();
        processes
            .filter_map(|(h, c)| c.process.as_ref().map(|p| (h, p)))
            .find(|(_, p)| p.me == of)
    }

    /// A host believes that it is the runner in this term.
    pub(super) fn check_term(&mut self, term: Term) {
        self.outcome.terms += 1;
        if let Stage::Stopped(_) = self.stage {
            self.broke(Broken::Resurrected);
        }
        if term.0.0 <= self.launched {
            self.broke(Broken::TwoStarts);
        }
        self.launched = self.launched.max(term.0.0);
    }

    /// A term begins. Says from which state, unless that is already the end of the run.
    pub(super) fn check_start(&mut self, host: usize, source: Source, term: Term) -> Option<Node> {
        let late = term.0.0 < self.history.newest_term;
        self.history.newest_term = self.history.newest_term.max(term.0.0);
        let process = self.computers[host].process.as_ref()?;
        let (tip, whole) = match source {
            Source::Cold => (
                self.computers[host].disk.image,
                !self.computers[host].disk.mixed,
            ),
            Source::Replica { epoch, .. } => {
                let replica = process.replica.as_ref();
                let tip = replica.map_or(0, |r| r.state);
                (tip, replica.is_some_and(|r| r.whole && r.epoch == epoch))
            }
            Source::Paused => (
                process.guest.as_ref().map_or(0, |g| g.tip),
                process.guest.is_some(),
            ),
        };
        if !whole {
            self.broke(Broken::NotWhole);
            return None;
        }
        if late {
            // A newer term has begun before this thread came to it. What it does goes nowhere.
            return Some(tip);
        }
        let (loaded, promoted) = (process.loaded, process.promoted);
        if !loaded && source != Source::Paused {
            self.broke(Broken::CannotStart);
        }
        if promoted {
            self.history.accept_loss(tip);
        }
        self.check_yielded(host, source, tip, promoted);
        match source {
            Source::Cold => {
                self.outcome.boots += 1;
                self.check_boot(host, tip);
            }
            Source::Replica { .. } => {
                self.outcome.takeovers += 1;
                self.check_replica(host, tip);
            }
            Source::Paused if !self.history.may_start(tip) => self.broke(Broken::TwoHistories),
            Source::Paused => {}
        }
        self.computers[host].process.as_mut()?.promoted = false;
        Some(tip)
    }

    fn check_boot(&mut self, host: usize, tip: Node) {
        if !self.history.may_boot(tip) {
            self.broke(Broken::TwoHistories);
        }
        // The record before `running` still named the heir.
        let heir = self.before.heir.and_then(|heir| self.incarnation(heir));
        let Some((other, process)) = heir else { return };
        let calm = |until: u64| self.now > until + 400 * MS;
        let whole = process.host.status().whole && !process.broken;
        let steady = calm(self.path_trouble)
            && calm(self.computers[host].trouble)
            && calm(self.computers[other].trouble);
        if whole && steady && process.host.status().role != RoleName::Waiting {
            self.broke(Broken::ColdBeatLive);
        }
    }

    fn check_replica(&mut self, host: usize, tip: Node) {
        if !self.history.may_start(tip) {
            return self.broke(Broken::TwoHistories);
        }
        let Some(replica) = self.computers[host]
            .process
            .as_ref()
            .and_then(|p| p.replica.as_ref())
        else {
            return;
        };
        let (term, epoch) = (replica.term.0.0, replica.epoch.0);
        if self.computers[host]
            .process
            .as_ref()
            .is_some_and(|p| p.promoted)
        {
            return;
        }
        let lost = self.unheld_passed.iter().rev().take(200).any(|&node| {
            let operation = self.history.get(node);
            operation.term == term
                && operation.epoch > epoch + 2
                && !self.history.contains(tip, node)
        });
        let forgotten = self.history.back(tip, 100).any(|node| {
            let operation = self.history.get(node);
            let of_term = operation.term == term && operation.held && !operation.passed;
            of_term && !replica.held.iter().any(|(_, held)| *held == node)
        });
        if lost {
            self.broke(Broken::UnheldLoss);
        }
        if forgotten {
            self.broke(Broken::LostInFlight);
        }
    }

    /// A process drops what it has. Somebody else must have been put to `running` before.
    pub(super) fn check_drop(&mut self, host: usize) {
        let Some(process) = &self.computers[host].process else {
            return;
        };
        let replica = process.replica.as_ref().filter(|r| r.whole);
        let newest = match (&process.guest, replica) {
            (Some(guest), _) => guest.term.0.0 >= self.decided,
            (None, Some(replica)) => {
                replica.term.0.0 >= self.decided && self.stored.heir == Some(process.me)
            }
            (None, None) => false,
        };
        if newest {
            self.broke(Broken::Dropped);
        }
    }

    /// A process drops its replica to be filled anew. The record must not name it.
    pub(super) fn check_prepare(&mut self, host: usize) {
        let Some(process) = &self.computers[host].process else {
            return;
        };
        let whole = process.replica.as_ref().is_some_and(|r| r.whole);
        if whole && self.stored.heir == Some(process.me) {
            self.broke(Broken::Dropped);
        }
    }

    /// The record has changed.
    pub(super) fn check_record(&mut self) {
        if self.stored.phase == Phase::Running {
            if self.before.phase == Phase::Claimed {
                self.decided = self.stored.generation.0;
            }
            return;
        }
        let runner = self.stored.runner;
        self.strike_winner(runner);
        let promoted = self.promoted.iter().find(|(i, _)| *i == runner).copied();
        if let Some((runner, host)) = promoted {
            let replica = self
                .incarnation(runner)
                .and_then(|(_, p)| p.replica.as_ref());
            let state = replica.map_or(self.computers[host].disk.image, |r| r.state);
            self.history.accept_loss(state);
        }
        let named = [Some(self.before.runner), self.before.heir];
        let left_out = named.into_iter().flatten().any(|i| {
            let whole = self
                .incarnation(i)
                .is_some_and(|(_, p)| p.host.status().whole);
            whole && !self.stored.names(i)
        });
        if left_out && promoted.is_none() {
            self.broke(Broken::Forgotten);
        }
    }

    /// Held output leaves.
    pub(super) fn check_release(&mut self, host: usize, node: Node) {
        let record = self
            .arbiter
            .as_ref()
            .and_then(|a| a.record(super::world::MACHINE))
            .copied();
        let me = self.computers[host].process.as_ref().map(|p| p.me);
        if let Some(record) = record
            && record.phase == Phase::Running
            && Some(record.runner) == me
            && let Some((_, heir)) = record.heir.and_then(|heir| self.incarnation(heir))
            && !self.history.contains(heir.committed, node)
        {
            self.broke(Broken::OutputCommit);
        }
        if self.unheld {
            self.check_sender(node);
        }
        if !self.history.release(node) {
            self.broke(Broken::TwoHistories);
        }
    }

    /// Where some output is unheld, nobody sends once a newer term has begun.
    pub(super) fn check_sender(&mut self, node: Node) {
        // Output that is sent again has an older term than its sender; that is checked by history.
        let operation = *self.history.get(node);
        if operation.term < self.history.newest_term && !operation.held {
            self.broke(Broken::TwoSenders);
        }
    }

    /// Invariant 4: what calls itself protected is.
    pub(super) fn check_cover(&mut self, host: usize) {
        let record = self.arbiter.as_ref().map_or(self.stored, |a| {
            a.record(super::world::MACHINE)
                .copied()
                .unwrap_or(self.stored)
        });
        let Some(process) = &self.computers[host].process else {
            return;
        };
        if process.host.status().protected_since.is_none() {
            if let Some(process) = self.process(host) {
                process.lies_since = None;
            }
            return;
        }
        let me = process.me;
        let heir = record
            .heir
            .and_then(|heir| self.incarnation(heir))
            .map(|(_, heir)| heir);
        let replica = heir
            .and_then(|h| h.replica.as_ref())
            .filter(|r| r.session.runner == me);
        let covered = record.runner == me && replica.is_some_and(|r| r.whole);
        let Timing {
            t_a, t_b, t_b_max, ..
        } = self.timing;
        let longest = t_a.as_nanos() * t_b_max.as_nanos() / t_b.as_nanos();
        let belief = u64::try_from(longest).unwrap_or(u64::MAX) + BELIEF;
        let untried = covered && heir.is_some_and(|h| h.broken);
        let since = process.lies_since;
        let now = self.now;
        if untried || since.is_some_and(|since| now > since + belief) {
            self.broke(Broken::FalseCover);
        }
        if let Some(process) = self.process(host) {
            process.lies_since = if covered {
                None
            } else {
                Some(since.unwrap_or(now))
            };
        }
    }

    /// A host claims. In the last part of a run it needs a reason.
    pub(super) fn check_claim(&mut self, host: usize) {
        let Stage::Disturbed(_) = self.stage else {
            return;
        };
        let Some(process) = &self.computers[host].process else {
            return;
        };
        let Some(record) = process.host.status().record else {
            return;
        };
        let other = if record.runner == process.me {
            record.heir
        } else {
            Some(record.runner)
        };
        let Some((other, _)) = other.and_then(|other| self.incarnation(other)) else {
            return;
        };
        if self.now > self.computers[other].trouble + 500 * MS {
            self.broke(Broken::Needless);
        }
    }

    pub(super) fn runner(&self) -> Option<usize> {
        (0..HOSTS).find(|&host| {
            let computer = &self.computers[host];
            let well = self.now >= computer.hung_until.max(computer.stuck_until);
            well && self.role(host) == Some(RoleName::Primary)
                && computer.process.as_ref().is_some_and(|p| {
                    p.guest
                        .as_ref()
                        .is_some_and(|g| !g.paused && g.term.0.0 == self.history.newest_term)
                })
        })
    }

    pub(super) fn protected(&self) -> Option<usize> {
        self.runner().filter(|&host| {
            let process = self.computers[host].process.as_ref();
            process.is_some_and(|p| p.host.status().protected_since.is_some())
        })
    }

    /// Whether a primary and its heir both have their connection.
    pub(super) fn is_linked(&self, primary: usize) -> bool {
        let heir = self.stored.heir.and_then(|heir| self.incarnation(heir));
        let process = self.computers[primary].process.as_ref();
        let (Some((other, heir)), Some(process)) = (heir, process) else {
            return false;
        };
        let ends = (process.links[other], heir.links[primary]);
        matches!(ends, (Some(there), Some(back)) if there.number == back.number)
    }

    /// Moves the run on. True when it is over.
    pub(super) fn progress(&mut self) -> bool {
        match self.stage {
            Stage::Calm(since) => {
                if self.now > since + 300 * MS && self.protected().is_some() {
                    self.switch();
                } else if self.now > since + RUNS_WITHIN && self.runner().is_none() {
                    self.broke(Broken::NobodyRuns);
                } else if self.now > since + PROTECTED_WITHIN {
                    self.broke(Broken::NeverProtected);
                }
            }
            Stage::Switching(switching) => self.switching(switching),
            Stage::Muted(muted) => self.muted(muted),
            Stage::Disturbed(until) if self.now > until => match self.protected() {
                Some(primary) if self.is_linked(primary) => self.lose(primary),
                None if self.now > until + RUNS_WITHIN => self.broke(Broken::NeverProtected),
                Some(_) | None => {}
            },
            Stage::Lost(lost, since) => {
                if self.runner().is_some_and(|runner| runner != lost) {
                    self.stage = Stage::After(since + 1500 * MS);
                } else if self.now > since + TAKEOVER_WITHIN {
                    self.broke(Broken::NoTakeover);
                }
            }
            Stage::Stopped(until) if self.now > until => return true,
            Stage::After(until) if self.now > until => {
                if self.runner().is_none() {
                    self.broke(Broken::NobodyRuns);
                }
                return true;
            }
            Stage::Faults | Stage::Disturbed(_) | Stage::After(_) | Stage::Stopped(_) => {}
        }
        false
    }

    /// Disturbs the heir as an observer, or one path of two. That is nobody's death.
    pub(super) fn disturb(&mut self) {
        let until = self.now + self.random.between(120, 400) * MS;
        let primary = self.runner().unwrap_or(0);
        let heir = self
            .stored
            .heir
            .and_then(|heir| self.incarnation(heir))
            .map(|(host, _)| host);
        let kind = self.random.index(6);
        self.tell(|| format!("--- disturbance {kind} of the heir, {heir:?} ---"));
        let heir = heir.unwrap_or(primary);
        match kind {
            0 => self.hang(heir, until),
            1 => self.backlog(heir, until),
            2 => {
                let path = self.random.index(2);
                self.cut(path, primary, heir, until);
                self.cut(path, heir, primary, until);
            }
            // Longer than T_a and hardly T_b: it comes back to a heir that is well.
            3 => {
                let until = self.now + self.random.between(75, 95) * MS;
                self.hang(primary, until);
            }
            4 => return self.mute(primary, heir),
            _ => {}
        }
        self.stage = Stage::Disturbed(until + 300 * MS);
    }

    /// The primary of a protected machine is lost.
    fn lose(&mut self, primary: usize) {
        let kind = self.random.index(5);
        self.tell(|| format!("--- the primary, {primary}, is lost: {kind} ---"));
        let returns = self.now + 1_000 * MS;
        match kind {
            0 | 1 => {
                self.computers[primary].off_for_good = true;
                self.kill(primary, kind == 0);
            }
            2 => self.computers[primary].stuck_until = returns,
            3 => {
                self.stage = Stage::Stopped(self.now + 1_500 * MS);
                return self.handle(primary, crate::host::Event::Stop);
            }
            _ => {
                for other in (0..=HOSTS).filter(|&other| other != primary) {
                    self.split(primary, other, returns);
                }
                // The heir's end of the connection may notice at once.
                self.reset(primary);
            }
        }
        self.stage = Stage::Lost(primary, self.now);
    }
}
