//! How speech sounds: the E-model (ITU-T G.107), and the mean opinion score that it stands for.
//!
//! All parameters that a measurement does not give have the Recommendation's default values (G.107, table 2); what a codec
//! and its loss concealment bear is from G.113, appendix I. Names of the formulas' parts are the Recommendation's.

use std::time::Duration;

/// How a receiver of G.711 covers what was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concealment {
    /// With the concealment of G.711, appendix I.
    Plc,
    /// Not at all: silence.
    None,
}

impl Concealment {
    /// The packet-loss robustness factor Bpl (G.113, table I.4: 10 ms frames; the same for 20 ms by common use).
    const fn bpl(self) -> f64 {
        match self {
            Self::Plc => 25.1,
            Self::None => 4.3,
        }
    }
}

/// What a listener has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conditions {
    /// From mouth to ear: packetisation, network, and the wait until it is played.
    pub one_way: Duration,
    /// Share of packets that are not played, 0 to 1.
    pub loss: f64,
    /// How much longer runs of lost packets are than if each were lost by chance: 1 for chance.
    pub burst_ratio: f64,
    /// What covers them.
    pub concealment: Concealment,
}

/// OLR = SLR + RLR in dB, and their parts.
const SLR: f64 = 8.0;
const RLR: f64 = 2.0;
/// Sidetone masking rating, D-value of the telephone at the receiving side: their sum is the listener sidetone rating.
const STMR: f64 = 15.0;
const DR: f64 = 3.0;
/// D-value of the telephone at the sending side.
const DS: f64 = 3.0;
/// Talker echo loudness rating in dB.
const TELR: f64 = 65.0;
/// Weighted echo path loss in dB.
const WEPL: f64 = 110.0;
/// Quantisation distortion units.
const QDU: f64 = 1.0;
/// Circuit noise in dBm0p, noise floor at the receiving side in dBmp, room noise at the sending and the receiving side in dB(A).
const NC: f64 = -70.0;
const NFOR: f64 = -64.0;
const PS: f64 = 35.0;
const PR: f64 = 35.0;

/// The transmission rating factor R (G.107, equation 7-1): 93.2 without impairment, and less for each. Advantage is 0.
pub fn rating(conditions: Conditions) -> f64 {
    let milliseconds = conditions.one_way.as_secs_f64() * 1e3;
    let no = noise();
    let ro = 15.0 - 1.5 * (SLR + no);
    ro - simultaneous(ro, no, milliseconds)
        - delay(ro, no, milliseconds)
        - equipment(
            conditions.loss,
            conditions.burst_ratio,
            conditions.concealment,
        )
}

/// The mean opinion score, 1 (bad) to 4.5, of a rating (G.107, annex B).
pub fn mos(rating: f64) -> f64 {
    if rating <= 0.0 {
        1.0
    } else if rating >= 100.0 {
        4.5
    } else {
        // The cubic dips below 1 for the smallest ratings.
        (1.0 + 0.035 * rating + rating * (rating - 60.0) * (100.0 - rating) * 7e-6).max(1.0)
    }
}

/// No: all noise, at the receiver's 0 dBr point.
fn noise() -> f64 {
    let olr = SLR + RLR;
    let nos = PS - SLR - DS - 100.0 + 0.004 * (PS - olr - DS - 14.0).powi(2);
    let pre = PR + 10.0 * (1.0 + 10_f64.powf((10.0 - (STMR + DR)) / 10.0)).log10();
    let nor = RLR - 121.0 + pre + 0.008 * (pre - 35.0).powi(2);
    let nfo = NFOR + RLR;
    let power = |level: f64| 10_f64.powf(level / 10.0);
    10.0 * (power(NC) + power(nos) + power(nor) + power(nfo)).log10()
}

/// Is: what happens at the same time as speech.
fn simultaneous(ro: f64, no: f64, t: f64) -> f64 {
    let xolr = SLR + RLR + 0.2 * (64.0 + no - RLR);
    let iolr = 20.0 * ((1.0 + (xolr / 8.0).powi(8)).powf(1.0 / 8.0) - xolr / 8.0);
    let stmro =
        -10.0 * (10_f64.powf(-STMR / 10.0) + (-t / 4.0).exp() * 10_f64.powf(-TELR / 10.0)).log10();
    let part = |shift: f64, scale: f64, power: i32| {
        (1.0 + ((stmro + shift) / scale).powi(power)).powf(1.0 / f64::from(power))
    };
    let ist = 12.0 * part(-13.0, 6.0, 8) - 28.0 * part(1.0, 19.4, 35) - 13.0 * part(-3.0, 33.0, 13)
        + 29.0;
    iolr + ist + quantisation(ro)
}

/// Iq: what quantising costs.
fn quantisation(ro: f64) -> f64 {
    let q = 37.0 - 15.0 * QDU.log10();
    let g = 1.07 + 0.258 * q + 0.0602 * q * q;
    let y = (ro - 100.0) / 15.0 + 46.0 / 8.4 - g / 9.0;
    let z = 46.0 / 30.0 - g / 40.0;
    15.0 * (1.0 + 10_f64.powf(y) + 10_f64.powf(z)).log10()
}

/// Id: what comes later than speech. The round trip is twice the way there.
fn delay(ro: f64, no: f64, t: f64) -> f64 {
    let terv =
        TELR - 40.0 * ((1.0 + t / 10.0) / (1.0 + t / 150.0)).log10() + 6.0 * (-0.3 * t * t).exp();
    let roe = -1.5 * (no - RLR);
    let re = 80.0 + 2.5 * (terv - 14.0);
    let talker =
        ((roe - re) / 2.0 + ((roe - re).powi(2) / 4.0 + 100.0).sqrt() - 1.0) * (1.0 - (-t).exp());
    let rle = 10.5 * (WEPL + 7.0) * (2.0 * t + 1.0).powf(-0.25);
    let listener = (ro - rle) / 2.0 + ((ro - rle).powi(2) / 4.0 + 169.0).sqrt();
    let long = if t <= 100.0 {
        0.0
    } else {
        let x = (t / 100.0).log2();
        25.0 * ((1.0 + x.powi(6)).powf(1.0 / 6.0) - 3.0 * (1.0 + (x / 3.0).powi(6)).powf(1.0 / 6.0)
            + 2.0)
    };
    talker + listener + long
}

/// Ie,eff: the codec (0 for G.711) and what of it was lost.
fn equipment(loss: f64, burst_ratio: f64, concealment: Concealment) -> f64 {
    let percent = (loss * 100.0).clamp(0.0, 100.0);
    95.0 * percent / (percent / burst_ratio.max(1.0) + concealment.bpl())
}

#[cfg(test)]
mod tests {
    use super::{Concealment, Conditions, mos, rating};
    use std::time::Duration;

    const BEST: Conditions = Conditions {
        one_way: Duration::ZERO,
        loss: 0.0,
        burst_ratio: 1.0,
        concealment: Concealment::Plc,
    };

    fn near(value: f64, wanted: f64, within: f64) {
        assert!((value - wanted).abs() <= within, "{value}, not {wanted}");
    }

    fn after(milliseconds: u64) -> f64 {
        rating(Conditions {
            one_way: Duration::from_millis(milliseconds),
            ..BEST
        })
    }

    #[test]
    fn without_impairment_it_is_the_recommendations_value() {
        near(rating(BEST), 93.2, 0.05);
        near(mos(rating(BEST)), 4.41, 0.005);
    }

    #[test]
    fn delay_costs_what_the_recommendation_says() {
        // G.107, figure 1 in effect: hardly anything below 150 ms, a fifth of it all at 400 ms.
        let values = [0, 50, 100, 150, 200, 300, 400, 600].map(after);
        assert!(values.is_sorted_by(|a, b| a >= b), "{values:?}");
        assert!(values[3] > 85.0, "{values:?}");
        assert!((60.0..75.0).contains(&values[6]), "{values:?}");
    }

    #[test]
    fn loss_costs_less_with_concealment() {
        let at = |loss, concealment| {
            rating(Conditions {
                loss,
                concealment,
                ..BEST
            })
        };
        // 95 · P/(P + Bpl).
        near(rating(BEST) - at(0.01, Concealment::Plc), 95.0 / 26.1, 1e-9);
        near(rating(BEST) - at(0.01, Concealment::None), 95.0 / 5.3, 1e-9);
        near(
            rating(BEST) - at(1.0, Concealment::None),
            9500.0 / 104.3,
            1e-9,
        );
        assert!(mos(at(1.0, Concealment::None)) < 1.05);
    }

    #[test]
    fn the_same_loss_in_bursts_is_worse() {
        let at = |burst_ratio| {
            rating(Conditions {
                loss: 0.1,
                burst_ratio,
                ..BEST
            })
        };
        assert!(at(4.0) < at(1.0));
        near(at(0.1), at(1.0), 1e-9);
    }

    #[test]
    fn scores_stay_in_their_range() {
        near(mos(-5.0), 1.0, 0.0);
        near(mos(0.5), 1.0, 0.0);
        near(mos(100.0), 4.5, 0.0);
        near(mos(50.0), 2.575, 1e-9);
        // Table B.1: users satisfied above 80 (4.03), many dissatisfied below 70 (3.60).
        near(mos(80.0), 4.03, 0.01);
        near(mos(70.0), 3.60, 0.01);
    }
}
