//! Carrying out the faults, and ending them.

use crate::host::{Event, RoleName};
use crate::id::Incarnation;

use super::faults::Fault;
use super::network::{ARBITER, Network, PATHS};
use super::world::{FAULTS_END, Stage, World};
use super::{HOSTS, Happening, MS};

impl World<'_> {
    pub(super) fn hang(&mut self, host: usize, until: u64) {
        let life = self.computers[host].life;
        let computer = &mut self.computers[host];
        computer.hung_until = computer.hung_until.max(until);
        computer.trouble = computer.trouble.max(until);
        if let Some(process) = &mut computer.process {
            process.lies_since = None;
        }
        self.at(until + MS / 20, Happening::Wake { host, life });
    }

    /// Now and then the winner of a claim dies before it runs.
    pub(super) fn strike_winner(&mut self, winner: Incarnation) {
        if self.stage != Stage::Faults || !self.random.chance(8) {
            return;
        }
        if let Some((host, _)) = self.incarnation(winner) {
            let returns = self.random.between(10, 700) * MS;
            let death = Happening::Fault(Fault::Kill { host, returns });
            self.soon(0, 40 * MS, death);
        }
    }

    pub(super) fn backlog(&mut self, host: usize, until: u64) {
        let life = self.computers[host].life;
        let computer = &mut self.computers[host];
        computer.backlog_until = computer.backlog_until.max(until);
        computer.trouble = computer.trouble.max(until);
        self.at(until + MS / 20, Happening::Wake { host, life });
    }

    pub(super) fn cut(&mut self, path: usize, from: usize, to: usize, until: u64) {
        let direction = &mut self.network.paths[path][from][to];
        direction.cut_until = direction.cut_until.max(until);
        if from != ARBITER && to != ARBITER {
            self.path_trouble = self.path_trouble.max(until);
        }
    }

    pub(super) fn split(&mut self, a: usize, b: usize, until: u64) {
        for path in 0..PATHS {
            self.cut(path, a, b, until);
            self.cut(path, b, a, until);
        }
    }

    /// The operator changes a host's file and tells its process.
    pub(super) fn change_mode(&mut self, host: usize) {
        let unheld = self.mode;
        if self.now < self.computers[host].hung_until {
            let at = self.computers[host].hung_until + MS;
            return self.again(at, Happening::Mode { host });
        }
        self.computers[host].unheld = unheld;
        if self.computers[host].process.is_none() {
            return;
        }
        self.tell(|| format!("{host}: unheld is to be {unheld}"));
        self.handle(host, Event::Mode { unheld });
        self.reset(host);
    }

    pub(super) fn heal(&mut self) {
        self.tell(|| "--- the faults stop ---".into());
        self.stage = Stage::Calm(self.now);
        self.network = Network::new();
        self.arbiter_full_until = 0;
        self.at(self.now, Happening::StartArbiter);
        for host in 0..HOSTS {
            let life = self.computers[host].life;
            let computer = &mut self.computers[host];
            computer.hung_until = self.now.min(computer.hung_until);
            computer.backlog_until = self.now.min(computer.backlog_until);
            computer.stuck_until = self.now.min(computer.stuck_until);
            computer.load_fails_until = 0;
            computer.sidecar_fails_until = 0;
            computer.uplink.mend(self.now);
            if let Some(process) = &mut computer.process {
                process.broken = false;
            }
            self.at(self.now + MS / 20, Happening::Wake { host, life });
            self.at(self.now, Happening::Tick { host, life });
            self.soon(0, 50 * MS, Happening::Start { host });
        }
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        self.tell(|| format!("fault: {fault:?}"));
        let now = self.now;
        match fault {
            Fault::Switchover { host } if self.stage == Stage::Faults => {
                self.ask_switchover(self.runner().unwrap_or(host));
            }
            Fault::Switchover { .. } => {}
            Fault::Uplink { host, lasts } => self.computers[host].uplink.fail(now, now + lasts),
            Fault::PowerOff { host, returns } | Fault::Kill { host, returns } => {
                self.kill(host, matches!(fault, Fault::PowerOff { .. }));
                self.at(now + returns, Happening::Start { host });
            }
            Fault::Hang { host, lasts } => self.hang(host, now + lasts),
            Fault::Backlog { host, lasts } => self.backlog(host, now + lasts),
            Fault::Stuck { host, lasts } => {
                self.computers[host].stuck_until = now + lasts;
                self.computers[host].trouble = self.computers[host].trouble.max(now + lasts);
            }
            Fault::Cut {
                path,
                from,
                to,
                lasts,
            } => self.cut(path, from, to, now + lasts),
            Fault::Split { a, b, lasts } => self.split(a, b, now + lasts),
            Fault::Isolate { host, lasts } => {
                for other in (0..=HOSTS).filter(|&other| other != host) {
                    self.split(host, other, now + lasts);
                }
            }
            Fault::Slow {
                from,
                to,
                slow,
                lasts,
            } => {
                for path in 0..PATHS {
                    let direction = &mut self.network.paths[path][from][to];
                    direction.slow_until = now + lasts;
                    direction.slow = slow;
                }
                self.path_trouble = self.path_trouble.max(now + lasts);
            }
            Fault::Lossy { lasts } => {
                for direction in self.network.paths.iter_mut().flatten().flatten() {
                    direction.lossy_until = now + lasts;
                }
                self.path_trouble = self.path_trouble.max(now + lasts);
            }
            Fault::Reset { host } => self.reset(host),
            Fault::ArbiterDown { returns } => {
                self.arbiter = None;
                self.at(now + returns, Happening::StartArbiter);
            }
            Fault::ArbiterFull { lasts } => self.arbiter_full_until = now + lasts,
            Fault::SidecarFull { host, lasts } => {
                self.computers[host].sidecar_fails_until = now + lasts;
            }
            Fault::ReplicaLost { host } => {
                if self.now < self.computers[host].hung_until
                    || self.role(host) != Some(RoleName::Backup)
                {
                    return;
                }
                let Some(process) = self.process(host) else {
                    return;
                };
                if let Some(replica) = &mut process.replica {
                    replica.whole = false;
                    self.handle(host, Event::ReplicaLost);
                }
            }
            Fault::Abandon { host, returns } => {
                for other in (0..HOSTS).filter(|&other| other != host) {
                    self.kill(other, true);
                    self.at(now + returns, Happening::Start { host: other });
                }
                for wait in [40, 200, 400] {
                    self.at(now + wait * MS, Happening::Promote { host });
                }
            }
            Fault::Mode { unheld } => {
                self.mode = unheld;
                // So long may the hosts differ.
                let within = if self.random.chance(50) { 300 } else { 1_500 };
                let within = (within * MS).min(FAULTS_END.saturating_sub(now));
                for host in 0..HOSTS {
                    self.soon(0, within, Happening::Mode { host });
                }
            }
            Fault::LoadFails { host, lasts } => self.computers[host].load_fails_until = now + lasts,
        }
    }
}
