//! A state's normal form: what cannot matter is taken out, so that there are finitely many states.

use crate::arbiter::{Ask, Request};
use crate::guards::Guard;
use crate::heartbeat::Heartbeat;
use crate::id::Incarnation;
use crate::message::Message;
use crate::time::Time;

use super::clocks::{Clocks, NOW};
use super::world::{Life, World};

impl World {
    /// The state's normal form: two states that differ only in what cannot matter are one.
    pub(super) fn normalise(&mut self, coarse: bool) {
        self.normalise_with(coarse, &mut []);
    }

    /// The same, with heartbeats that are on their way.
    pub(super) fn normalise_with(&mut self, coarse: bool, beats: &mut [&mut Heartbeat]) {
        let coarse = coarse.then_some(self.setting.timing.t_p);
        let clocks = self.computers.iter().filter_map(|c| c.process.as_ref());
        let all: Vec<(Incarnation, Time)> = clocks.map(|p| (p.me, p.now)).collect();
        let (horizon, warm) = (self.setting.horizon, self.setting.unheld);
        let clocks = Clocks {
            own: NOW,
            all: &all,
            coarse,
            horizon,
            warm,
        };
        for beat in beats {
            clocks.of(beat.from, &mut beat.sent);
            for echo in &mut beat.echoes {
                clocks.of(echo.of, &mut echo.sent);
            }
        }
        for computer in &mut self.computers {
            if let Some(process) = &mut computer.process {
                let own = process.now;
                process.host.rebase(&Clocks {
                    own,
                    all: &all,
                    coarse,
                    horizon,
                    warm,
                });
                process.now = NOW;
            }
        }
        if self.guards.on(Guard::ArbiterCompares) {
            // They would be refused, and say no more than a read.
            let generation = self.record.generation;
            let newer =
                |r: &Request| matches!(&r.ask, Ask::Change(_, c) if c.expected >= generation);
            self.requests.retain(newer);
        }
        self.requests.sort_by_key(order);
        self.forget_beginning();
    }

    /// What all lives have in common makes no difference.
    fn forget_beginning(&mut self) {
        let mut lives: Vec<&mut Life> = vec![&mut self.released];
        let mut guests = Vec::new();
        for computer in &mut self.computers {
            lives.push(&mut computer.image);
            if let Some(process) = &mut computer.process {
                lives.extend(process.replica.as_mut().map(|r| &mut r.life));
                if let Some(guest) = &mut process.guest {
                    lives.push(&mut guest.life);
                    guests.push((&mut guest.epochs, lives.len() - 1));
                }
            }
        }
        if let Some(link) = &mut self.link {
            for parcel in link.to.iter_mut().flatten() {
                if matches!(parcel.message, Message::Checkpoint(_)) {
                    lives.push(&mut parcel.life);
                }
            }
        }
        let first = lives[0].clone();
        let common = lives.iter().fold(first.len(), |common, life| {
            let same = life.iter().zip(&first).take_while(|(a, b)| a == b).count();
            common.min(same)
        });
        for life in &mut lives {
            life.drain(..common);
        }
        for (epochs, life) in guests {
            let older = epochs.len().saturating_sub(lives[life].len());
            epochs.drain(..older);
        }
    }
}

/// Any order will do, as long as it is one.
fn order(request: &Request) -> (Incarnation, Option<(u64, Incarnation, Option<Incarnation>)>) {
    let change = match &request.ask {
        Ask::Change(_, change) => Some((change.expected.0, change.runner, change.heir)),
        _ => None,
    };
    (request.from, change)
}
