//! Every reachable state of a small pair, with the shipped state machines in it. MODEL.md says what
//! is covered and what is left out.
//!
//! Two models, because time matters in one way for held output and in another for unheld:
//!
//! | module | holds |
//! | --- | --- |
//! | [`world`], [`steps`] | two hosts, their link, their disks, the arbiter; time-outs expire whenever they like |
//! | [`check`], [`calm`] | invariants 3 and 6 there |
//! | [`lease`] | a protected pair with unheld output, whose clocks run at different rates |
//! | [`normal`], [`clocks`] | what makes them finitely many: times relative to now, lives without their common beginning |

mod calm;
mod check;
mod clocks;
mod lease;
mod normal;
mod steps;
mod tests;
mod world;

use std::time::Duration;

use crate::id::{Incarnation, MachineId};
use crate::timing::Timing;

pub(crate) use clocks::{Clocks, NOW};

const MACHINE: MachineId = MachineId(1);

/// From one heartbeat to the next. All other times are counted in it.
const TICK: Duration = Duration::from_millis(1);

/// The shortest time-outs that [`Timing::check`] lets pass.
const TIMING: Timing = Timing {
    heartbeat: TICK,
    t_p: Duration::from_millis(7),
    t_a: Duration::from_millis(8),
    t_b: Duration::from_millis(10),
    t_b_max: Duration::from_millis(10),
    t_closed: Duration::from_millis(4),
    t_c: Duration::from_millis(10),
    t_cold: Duration::from_millis(10),
    stall: Duration::from_millis(5),
    retry: Duration::from_millis(1),
    poll: Duration::from_millis(4),
    t_uplink: Duration::from_millis(1),
    t_hold: Duration::from_millis(10),
    rho_ppm: 500,
};

/// Where time-outs expire whenever they like.
const TIMELESS: world::Setting = world::Setting {
    timing: TIMING,
    unheld: false,
    ticks: [TICK; 2],
    // One and a half T_cold, twice T_b, and more.
    horizon: Duration::from_millis(22),
};

/// The `life`th process of a host. The lowest byte is the host: [`Incarnation`] explains why.
fn incarnation(host: usize, life: u8) -> Incarnation {
    let number = u128::from(life) << 8 | host as u128;
    Incarnation::new(number).unwrap_or_else(|| unreachable!("lives count from 1"))
}
