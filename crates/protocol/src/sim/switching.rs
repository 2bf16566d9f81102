//! Switchovers: what the operator and the uplinks do, and what must come of it.

use crate::heartbeat::Uplink;
use crate::host::{Event, Source};
use crate::id::Incarnation;

use super::faults::Fault;
use super::history::Node;
use super::world::{Stage, World};
use super::{Broken, Happening, MS};

/// How long a switchover may take when nothing else happens: two slow answers of the arbiter, a
/// load, a few heartbeats; for an uplink `t_hold` before that.
const SWITCHED_WITHIN: u64 = 400 * MS;
/// From one look at an uplink to the next, at most.
const UNSEEN: u64 = 20 * MS;
/// How long after a change a host may go by what was before: the slowest path, and a tick.
const STALE: u64 = 200 * MS;
/// How long the machine must stay where it is when moving would be wrong.
const STAYS_FOR: u64 = 1_200 * MS;

/// A host's uplink.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cable {
    /// When it last failed, and when it came back or will.
    down: u64,
    up: u64,
}

impl Cable {
    pub(super) fn fail(&mut self, now: u64, until: u64) {
        // A blink may have passed unseen.
        if now >= self.up + UNSEEN {
            self.down = now;
        }
        self.up = self.up.max(until);
    }

    pub(super) fn mend(&mut self, now: u64) {
        self.up = self.up.min(now);
    }

    pub(super) fn state(self, now: u64) -> Uplink {
        Uplink {
            up: u8::from(now >= self.up),
            of: 1,
        }
    }

    /// For how long it has been gone.
    fn gone_for(self, now: u64) -> Option<u64> {
        (now < self.up).then(|| now - self.down)
    }
}

/// What is done in the calm, and who ran the machine then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Switching {
    kind: Kind,
    from: usize,
    heir: usize,
    until: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The operator asks.
    Operator,
    /// The runner's uplink fails.
    Uplink,
    /// The heir's fails as soon as it runs the machine, and the other is there again.
    Back,
    /// Both fail.
    Both,
    /// The runner's fails for less than `t_uplink`.
    Blink,
}

impl World<'_> {
    /// The operator asks on this host.
    pub(super) fn ask_switchover(&mut self, host: usize) {
        if self.now >= self.computers[host].hung_until {
            self.handle(host, Event::Switchover);
        }
    }

    /// Now and then the connection ends over which a yield was sent, and whoever has read it is
    /// kept from running for so long that the machine may have come back meanwhile.
    pub(super) fn mislay_yield(&mut self, host: usize, to: Incarnation) {
        if self.stage != Stage::Faults || !self.random.chance(15) {
            return;
        }
        let process = self.computers[host].process.as_ref();
        let mut links = process.iter().flat_map(|p| p.links.iter().flatten());
        let Some(link) = links.find(|link| link.peer == to).copied() else {
            return;
        };
        let lingers = self.random.between(300, 1_500) * MS;
        let back = self.random.between(200, 500) * MS;
        self.at(
            self.now + back,
            Happening::Fault(Fault::Switchover { host }),
        );
        let stream = self.stream_from(link.number, host);
        if let Some(stream) = stream.and_then(|number| self.streams.get_mut(&number)) {
            (stream.straggles, stream.lingers) = (true, lingers);
            let (number, ends) = (link.number, [stream.from, stream.to]);
            for host in ends {
                let life = self.computers[host].life;
                self.at(self.now, Happening::Closed { host, life, number });
            }
        }
    }

    fn t_hold(&self) -> u64 {
        u64::try_from(self.timing.t_hold.as_nanos()).unwrap_or(0)
    }

    /// Nothing fails, the machine is protected: a switchover must come about, or must not.
    pub(super) fn switch(&mut self) {
        let Some(from) = self.protected().filter(|&host| self.is_linked(host)) else {
            return;
        };
        let heir = self.stored.heir.and_then(|heir| self.incarnation(heir));
        let Some((heir, _)) = heir else { return };
        let (now, long) = (self.now, self.now + 60_000 * MS);
        let kind = match self.random.index(10) {
            0 | 1 => Kind::Operator,
            2 => Kind::Uplink,
            3 => Kind::Back,
            4 => Kind::Both,
            5 => Kind::Blink,
            _ => return self.disturb(),
        };
        self.tell(|| format!("--- {kind:?}: {from} runs the machine, {heir} is its heir ---"));
        let patience = match kind {
            Kind::Operator => SWITCHED_WITHIN,
            Kind::Uplink | Kind::Back => SWITCHED_WITHIN + self.t_hold() * 11 / 10,
            Kind::Both | Kind::Blink => STAYS_FOR,
        };
        match kind {
            Kind::Operator => self.ask_switchover(from),
            Kind::Uplink | Kind::Back => self.computers[from].uplink.fail(now, long),
            Kind::Both => {
                // No host may look better even for a moment.
                self.computers[heir].uplink.fail(now, long);
                self.computers[from].uplink.fail(now, long);
            }
            Kind::Blink => {
                let lasts = self.random.between(10, 45) * MS;
                self.computers[from].uplink.fail(now, now + lasts);
            }
        }
        self.stage = Stage::Switching(Switching {
            kind,
            from,
            heir,
            until: now + patience,
        });
    }

    /// Moves it on.
    pub(super) fn switching(&mut self, switching: Switching) {
        let Switching {
            kind,
            from,
            heir,
            until,
        } = switching;
        let moved = self.runner().is_some_and(|runner| runner != from);
        match kind {
            Kind::Operator | Kind::Uplink | Kind::Back if moved => {
                self.computers[from].uplink.mend(self.now);
                if kind == Kind::Back && from != heir {
                    self.computers[heir]
                        .uplink
                        .fail(self.now, self.now + 60_000 * MS);
                    let until = self.now + self.t_hold() * 11 / 10 + 4 * SWITCHED_WITHIN;
                    self.stage = Stage::Switching(Switching {
                        kind: Kind::Uplink,
                        from: heir,
                        heir: from,
                        until,
                    });
                } else {
                    self.settle_down();
                }
            }
            Kind::Operator | Kind::Uplink | Kind::Back if self.now > until => {
                self.broke(Broken::NoSwitchover);
            }
            Kind::Both | Kind::Blink if self.now > until => self.settle_down(),
            _ => {}
        }
    }

    /// The calm goes on.
    fn settle_down(&mut self) {
        for computer in &mut self.computers {
            computer.uplink.mend(self.now);
        }
        self.stage = Stage::Calm(self.now);
    }

    /// A guest is to rest: only one that is protected.
    pub(super) fn check_rest(&mut self, host: usize) {
        self.outcome.switchovers += 1;
        let process = self.computers[host].process.as_ref();
        if process.is_some_and(|p| p.host.status().protected_since.is_none()) {
            self.broke(Broken::Uncovered);
        }
    }

    /// The machine is switched over for an uplink.
    pub(super) fn check_switch(&mut self, host: usize) {
        let (now, clocks) = (self.now, |time: u64| time * 94 / 100);
        let t_uplink = u64::try_from(self.timing.t_uplink.as_nanos()).unwrap_or(0);
        let gone = self.computers[host].uplink.gone_for(now);
        // It may just have come back.
        let gone = gone.unwrap_or(now - self.computers[host].uplink.down.min(now));
        let heir = self.stored.heir.and_then(|heir| self.incarnation(heir));
        let other = heir.and_then(|(other, _)| self.computers[other].uplink.gone_for(now));
        let again = self.switched_at.replace(now);
        let soon = again.is_some_and(|at| now - at < clocks(self.t_hold()));
        if gone + 12 * MS < clocks(t_uplink) || other.is_some_and(|time| time > STALE) || soon {
            self.broke(Broken::Flaps);
        }
    }

    /// A term begins after a guest was yielded: with all that it had done.
    pub(super) fn check_yielded(&mut self, host: usize, source: Source, tip: Node, promoted: bool) {
        let Some(yielded) = self.yielded.take() else {
            return;
        };
        if promoted || source == Source::Cold {
            return;
        }
        if !self.history.contains(tip, yielded) {
            self.broke(Broken::SwitchLost);
        } else if matches!(source, Source::Replica { .. }) {
            self.tell(|| format!("{host} runs what was yielded to it"));
            self.outcome.switched += 1;
        }
    }
}
