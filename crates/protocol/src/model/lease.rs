//! Unheld output is bounded by time alone: nobody passes it once another has started.
//!
//! A protected pair whose primary's clock is as slow as ρ allows, and whose heir's is as fast. In
//! each step true time passes, both hosts send a heartbeat, and any heartbeat may be lost, or
//! arrive at any later time and in any order. Requests reach the arbiter when they like, too.

use std::time::Duration;

use stateright::{Model, Property};

use crate::guards::{Guard, Guards};
use crate::heartbeat::Heartbeat;
use crate::host::RoleName;
use crate::id::Epoch;
use crate::timing::Timing;

use super::TIMING;
use super::world::{Setting, World};

/// A tenth less and a tenth more than true time, of which a step is two milliseconds: as few steps
/// in `T_b` as there can be if observers are to run on time.
const TICKS: [Duration; 2] = [Duration::from_micros(1800), Duration::from_micros(2200)];

/// All.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub(super) world: World,
    /// Steps of time that are still to come.
    left: u8,
    /// Heartbeats on their way to each host.
    beats: [Vec<Heartbeat>; 2],
}

/// What may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Time passes; whether each host's heartbeat is under way and not lost.
    Time { sent: [bool; 2] },
    /// A heartbeat arrives.
    Hear { host: usize, at: usize },
    /// A change reaches the arbiter, and its answer the sender.
    Request { at: usize },
    /// The heir learns that its connection is closed.
    Closed { host: usize },
}

/// The model.
pub(super) struct Lease {
    pub(super) first: State,
    /// Heartbeats on their way to one host at a time.
    pub(super) beats: usize,
}

impl Lease {
    pub(super) fn new(guards: Guards, beats: usize, left: u8) -> Option<Lease> {
        let us = Duration::from_micros;
        // As close together as whole steps can tell: T_p has passed at the primary's fifth step and
        // T_b at the heir's. The primary claims one step later, so that T_p alone must stop it.
        let mut timing = Timing {
            heartbeat: us(1100),
            t_p: us(8900),
            t_a: us(10_000),
            t_b: us(11_000),
            t_b_max: us(11_000),
            t_closed: us(4400),
            t_c: us(11_000),
            t_cold: us(11_000),
            rho_ppm: 100_000,
            ..TIMING
        };
        if !guards.on(Guard::ClockRates) {
            (timing.t_p, timing.t_a) = (timing.t_b, timing.t_b);
        }
        let setting = Setting {
            timing,
            unheld: true,
            ticks: TICKS,
            horizon: timing.t_b + us(1000),
        };
        let [mut world, _] = World::beginnings(guards, &setting)?;
        world.normalise(false);
        let beats_of = [Vec::new(), Vec::new()];
        Some(Lease {
            first: State {
                world,
                left,
                beats: beats_of,
            },
            beats,
        })
    }
}

impl State {
    fn normalise(&mut self) {
        let mut beats: Vec<&mut Heartbeat> = self.beats.iter_mut().flatten().collect();
        self.world.normalise_with(false, &mut beats);
        for beats in &mut self.beats {
            beats.sort_unstable_by_key(|b| (b.sent, b.echoes.first().map(|e| e.sent)));
        }
    }

    /// Whether a host passes unheld output, now, although a newer term than its own has begun.
    pub(super) fn two_send(&self) -> bool {
        (0..2).any(|host| {
            self.world.process(host).is_some_and(|process| {
                let older = process
                    .guest
                    .as_ref()
                    .is_some_and(|g| g.term < self.world.newest);
                let permit = process.host.permit();
                older && permit.allows(process.now, Epoch(u64::MAX), true)
            })
        })
    }
}

impl Model for Lease {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![self.first.clone()]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        let room = |host: usize| state.beats[host].len() < self.beats;
        for sent in [[false, false], [true, false], [false, true], [true, true]] {
            if state.left > 0 && (!sent[0] || room(1)) && (!sent[1] || room(0)) {
                steps.push(Step::Time { sent });
            }
        }
        for host in 0..2 {
            for at in 0..state.beats[host].len() {
                steps.push(Step::Hear { host, at });
            }
        }
        if state.world.link.as_ref().is_some_and(|l| l.open[1]) {
            steps.push(Step::Closed { host: 1 });
        }
        for at in 0..state.world.requests.len() {
            steps.push(Step::Request { at });
        }
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        let mut next = state.clone();
        let world = &mut next.world;
        match step {
            Step::Time { sent } => {
                next.left -= 1;
                for (host, sent) in sent.into_iter().enumerate() {
                    let beat = world.tick(host);
                    if let Some(beat) = beat.filter(|_| sent) {
                        next.beats[1 - host].push(beat);
                    }
                }
            }
            Step::Hear { host, at } => {
                let beat = next.beats[host].remove(at);
                world.hear(host, beat);
            }
            Step::Request { at } => world.heard(at),
            Step::Closed { host } => world.closed(host),
        }
        next.normalise();
        (next != *state).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("one sender", |_, state: &State| !state.two_send()),
            Property::always("one history", |_, state: &State| {
                state.world.broke.is_none()
            }),
            Property::sometimes("takeover", |_, state: &State| {
                state.world.role(1) == Some(RoleName::Primary)
            }),
        ]
    }
}
