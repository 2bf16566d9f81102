//! The protocol's time-outs, and the inequalities that make them safe.

use std::time::Duration;

use thiserror::Error;

use crate::guards::{Guard, Guards};

/// All time-outs. The names are DESIGN's ("Detection").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timing {
    /// From one heartbeat to the next; at least ten fit into `t_b`.
    pub heartbeat: Duration,
    /// The primary passes no output when its last echo is this old.
    pub t_p: Duration,
    /// The primary claims when its last echo is this old.
    pub t_a: Duration,
    /// The backup claims when its runner has been silent for this long.
    pub t_b: Duration,
    /// How far `t_b` may adapt upwards on a noisy host.
    pub t_b_max: Duration,
    /// The backup's wait after a closed connection, where no output is unheld.
    pub t_closed: Duration,
    /// The loser may claim when a claim has stood this long.
    pub t_c: Duration,
    /// Silence that a cold claim needs.
    pub t_cold: Duration,
    /// The epoch loop counts as moving when it turned at most this long ago.
    pub stall: Duration,
    /// From one try to the next of a request whose outcome is unknown.
    pub retry: Duration,
    /// From one read of the record to the next when all is quiet.
    pub poll: Duration,
    /// For how long an uplink must be gone here, and there on the other side, before the machine
    /// is switched over for it.
    pub t_uplink: Duration,
    /// No second such switchover within this time.
    pub t_hold: Duration,
    /// ρ: how much faster or slower than true time a clock may run, in parts per million.
    pub rho_ppm: u32,
}

impl Default for Timing {
    fn default() -> Timing {
        let ms = Duration::from_millis;
        Timing {
            heartbeat: ms(10),
            t_p: ms(70),
            t_a: ms(80),
            t_b: ms(100),
            t_b_max: ms(1000),
            t_closed: ms(30),
            t_c: ms(2000),
            t_cold: ms(3000),
            stall: ms(50),
            retry: ms(50),
            poll: ms(500),
            t_uplink: ms(200),
            t_hold: ms(10_000),
            rho_ppm: 500,
        }
    }
}

/// Which inequality does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TimingError {
    /// A time-out is zero.
    #[error("{0} is zero; every interval and time-out must be longer")]
    Zero(&'static str),
    /// Fewer than ten heartbeats in `T_b`.
    #[error(
        "fewer than ten heartbeats fit into T_b ({t_b:?}): send one every {at_most:?} or faster"
    )]
    Heartbeats {
        /// The configured `T_b`.
        t_b: Duration,
        /// The longest interval that will do.
        at_most: Duration,
    },
    /// `T_p > T_a`.
    #[error(
        "T_p ({t_p:?}) is longer than T_a ({t_a:?}): the primary must stop output before it claims"
    )]
    StopAfterClaim {
        /// The configured `T_p`.
        t_p: Duration,
        /// The configured `T_a`.
        t_a: Duration,
    },
    /// `T_p(1+ρ) ≥ T_b(1−ρ)`.
    #[error(
        "T_p ({t_p:?}) is too close to T_b ({t_b:?}) for clocks within {rho_ppm} ppm: \
         T_p(1+ρ) must be less than T_b(1−ρ)"
    )]
    Overlap {
        /// The configured `T_p`.
        t_p: Duration,
        /// The configured `T_b`.
        t_b: Duration,
        /// The configured ρ.
        rho_ppm: u32,
    },
    /// Two values are in the wrong order.
    #[error("{0} must be at most {1}")]
    Order(&'static str, &'static str),
    /// ρ is a million or more.
    #[error("ρ must be below 1 000 000 ppm")]
    Rho,
}

impl Timing {
    /// Checks every inequality.
    ///
    /// # Errors
    /// Names the first that does not hold.
    pub fn check(&self) -> Result<(), TimingError> {
        self.check_with(Guards::default())
    }

    pub(crate) fn check_with(&self, guards: Guards) -> Result<(), TimingError> {
        let all = [
            ("the heartbeat interval", self.heartbeat),
            ("T_p", self.t_p),
            ("T_a", self.t_a),
            ("T_b", self.t_b),
            ("T_closed", self.t_closed),
            ("T_c", self.t_c),
            ("T_cold", self.t_cold),
            ("the stall limit", self.stall),
            ("the retry interval", self.retry),
            ("the poll interval", self.poll),
            ("t_uplink", self.t_uplink),
            ("t_hold", self.t_hold),
        ];
        if let Some((name, _)) = all.iter().find(|(_, d)| d.is_zero()) {
            return Err(TimingError::Zero(name));
        }
        if self.rho_ppm >= 1_000_000 {
            return Err(TimingError::Rho);
        }
        if self.heartbeat * 10 > self.t_b {
            return Err(TimingError::Heartbeats {
                t_b: self.t_b,
                at_most: self.t_b / 10,
            });
        }
        if self.t_p > self.t_a {
            return Err(TimingError::StopAfterClaim {
                t_p: self.t_p,
                t_a: self.t_a,
            });
        }
        // In whole numbers: nanoseconds × parts per million fit into 128 bits with room to spare.
        let (million, rho) = (1_000_000, u128::from(self.rho_ppm));
        let slow = self.t_p.as_nanos() * (million + rho);
        let fast = self.t_b.as_nanos() * (million - rho);
        if slow >= fast && guards.on(Guard::ClockRates) {
            return Err(TimingError::Overlap {
                t_p: self.t_p,
                t_b: self.t_b,
                rho_ppm: self.rho_ppm,
            });
        }
        let ordered = [
            (self.t_closed <= self.t_b, "T_closed", "T_b"),
            (self.t_b <= self.t_b_max, "T_b", "the highest T_b"),
            (self.stall <= self.t_b, "the stall limit", "T_b"),
            (self.t_b_max <= self.t_c, "the highest T_b", "T_c"),
            (self.t_b_max <= self.t_cold, "the highest T_b", "T_cold"),
            (self.t_uplink <= self.t_hold, "t_uplink", "t_hold"),
        ];
        match ordered.iter().find(|(holds, ..)| !holds) {
            Some(&(_, first, second)) => Err(TimingError::Order(first, second)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_safe() {
        assert_eq!(Timing::default().check(), Ok(()));
    }

    #[test]
    fn clocks_that_drift_narrow_the_window() {
        let ms = Duration::from_millis;
        let tight = Timing {
            t_p: ms(99),
            t_a: ms(99),
            ..Timing::default()
        };
        assert_eq!(tight.check(), Ok(()));
        let drifting = Timing {
            rho_ppm: 6_000,
            ..tight
        };
        assert!(matches!(drifting.check(), Err(TimingError::Overlap { .. })));
        // The edge itself: 95 ms × 1.05 = 99.75 ms, 105 ms × 0.95 = 99.75 ms.
        let edge = Timing {
            t_p: ms(95),
            t_a: ms(95),
            t_b: ms(105),
            rho_ppm: 50_000,
            ..Timing::default()
        };
        assert!(matches!(edge.check(), Err(TimingError::Overlap { .. })));
    }

    #[test]
    fn each_inequality_is_enforced() {
        let ms = Duration::from_millis;
        let default = Timing::default();
        let slow = Timing {
            heartbeat: ms(11),
            ..default
        };
        assert!(matches!(slow.check(), Err(TimingError::Heartbeats { .. })));
        let late = Timing {
            t_p: ms(90),
            ..default
        };
        assert!(matches!(
            late.check(),
            Err(TimingError::StopAfterClaim { .. })
        ));
        let zero = Timing {
            t_c: Duration::ZERO,
            ..default
        };
        assert_eq!(zero.check(), Err(TimingError::Zero("T_c")));
        let cold = Timing {
            t_cold: ms(900),
            ..default
        };
        assert!(matches!(cold.check(), Err(TimingError::Order(..))));
    }
}
