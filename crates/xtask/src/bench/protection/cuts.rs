//! The power of the host that runs the machine is cut, at random moments, again and again.

use crate::{
    crossing::{self, Crossing, Plan},
    demo::BEYOND_T_B_MS,
    distribution::Distribution,
    hosts,
    pair::Pair,
    report::{Row, Target},
};
use anyhow::Result;
use images::Progress;
use lab::Lab;
use romulus_telephony::random::Random;
use std::{path::Path, time::Duration};

/// How long the load of a cut goes on, in seconds.
const SECONDS: u32 = 15;
/// The first and the last moment of a cut, in milliseconds after the load's start.
const FROM_MS: u64 = 2_000;
const TO_MS: u64 = 9_000;

/// What all cuts showed.
#[derive(Default)]
pub(super) struct Cuts {
    /// Registrations a second while the power was cut, over all transports.
    rate: u32,
    crossings: Vec<Crossing>,
    /// Cuts after which something could not even be measured.
    broken: Vec<String>,
}

/// Cuts the power `times` times under a load of `rate` registrations a second. Between cuts the lost host is given its
/// power back and the same command, as an operator would; where that does not lead to a protected machine, both hosts are
/// made anew, and it counts as a fault.
///
/// # Errors
/// Not even a fresh pair can be made.
pub(super) fn run<'lab>(
    lab: &'lab Lab,
    make: &dyn Fn() -> Result<Pair<'lab>>,
    rate: u32,
    times: u32,
    seed: u64,
    logs: &Path,
    progress: &Progress,
) -> Result<Cuts> {
    let mut cuts = Cuts {
        rate,
        ..Cuts::default()
    };
    let mut random = Random::new(seed);
    let mut pair: Option<Pair<'lab>> = None;
    for number in 1..=times {
        let after = Duration::from_millis(random.between(FROM_MS, TO_MS));
        let step = progress.step(format!(
            "cut {number} of {times}: after {:.1} s, at {rate} registrations/s",
            after.as_secs_f64()
        ));
        let mut current = match pair.take() {
            Some(pair) => pair,
            None => fresh(lab, make)?,
        };
        let plan = Plan {
            name: format!("cut{number}"),
            rates: [rate.div_ceil(3); 3],
            seconds: SECONDS,
            cut_after: Some(after),
        };
        match crossing::run(lab.client(), &mut current, &plan, None) {
            Ok(crossing) => {
                let faults = crossing.faults();
                step.done(format!("cut {number}: {}", summary(&crossing)));
                if !faults.is_empty() {
                    progress.note(format!("cut {number}: {}", faults.join("; ")));
                }
                let late = (crossing.first_udp)
                    .is_none_or(|first| (first - crossing.t_b.as_secs_f64()) * 1e3 > BEYOND_T_B_MS);
                if late || !faults.is_empty() {
                    let folder = logs.join(format!("cut-{number}"));
                    current.keep_logs(&folder)?;
                    crossing.write(&folder.join("answers.csv"))?;
                }
                cuts.crossings.push(crossing);
                if number < times {
                    let step = progress.step("the lost host comes back");
                    match restore(&mut current) {
                        Ok(()) => {
                            step.done("the lost host is the backup, and the machine is protected");
                            pair = Some(current);
                        }
                        Err(error) => cuts.break_off(number, &error, &current, logs, progress)?,
                    }
                }
            }
            Err(error) => cuts.break_off(number, &error, &current, logs, progress)?,
        }
    }
    Ok(cuts)
}

/// A pair on hosts that were just switched on.
fn fresh<'lab>(lab: &'lab Lab, make: &dyn Fn() -> Result<Pair<'lab>>) -> Result<Pair<'lab>> {
    hosts::restart(lab)?;
    make()
}

/// What an operator does: power, and the same command.
fn restore(pair: &mut Pair<'_>) -> Result<()> {
    for side in 0..2 {
        if !pair.is_up(side) {
            pair.return_host(side)?;
        }
    }
    pair.wait_protected(None).map(drop)
}

fn summary(crossing: &Crossing) -> String {
    let (wanted, ok) = crossing.totals();
    let ms = |seconds: Option<f64>| {
        seconds.map_or_else(|| "never".to_owned(), |s| format!("{:.0} ms", s * 1e3))
    };
    format!(
        "{ok}/{wanted} ok, first answer after {} (T_b {} ms), TCP {}, {} of {} contacts lost, connections {}",
        ms(crossing.first_udp),
        crossing.t_b.as_millis(),
        ms(crossing.first_tcp),
        crossing.lost.len(),
        crossing.acknowledged,
        if crossing.connections_kept() {
            "kept"
        } else {
            "LOST"
        }
    )
}

impl Cuts {
    fn break_off(
        &mut self,
        number: u32,
        error: &anyhow::Error,
        pair: &Pair<'_>,
        logs: &Path,
        progress: &Progress,
    ) -> Result<()> {
        progress.note(format!("cut {number}: {error:#}"));
        self.broken.push(format!("{error:#}"));
        pair.keep_logs(&logs.join(format!("cut-{number}")))
    }

    /// The rows of the report. `beyond_ms` is what the first answer may take longer than `T_b`.
    #[allow(clippy::cast_precision_loss, reason = "numbers of cuts and contacts")]
    pub(super) fn rows(&self, beyond_ms: f64) -> Vec<Row> {
        let mut rows = vec![
            Row::new(
                "power cuts",
                "",
                (self.crossings.len() + self.broken.len()) as f64,
            ),
            Row::new(
                "cuts after which the pair was not protected again by itself",
                "",
                self.broken.len() as f64,
            )
            .target(Target::AtMost(0.0)),
            Row::new(
                "registrations a second across the cuts, all transports",
                "1/s",
                f64::from(self.rate),
            ),
        ];
        for (index, (transport, _)) in crossing::TRANSPORTS.into_iter().enumerate() {
            let loads = self.crossings.iter().filter_map(|c| c.loads.get(index));
            let (mut wanted, mut ok, mut again) = (0, 0, 0);
            for (_, outcome) in loads {
                wanted += outcome.wanted;
                ok += outcome.ok;
                again += outcome.retransmissions;
            }
            let share = (wanted > 0).then(|| f64::from(ok) / f64::from(wanted) * 100.0);
            let name = transport.name();
            rows.extend([
                Row::new(format!("{name}: registrations completed"), "%", share)
                    .target(Target::AtLeast(100.0)),
                Row::new(format!("{name}: requests sent again"), "", f64::from(again)),
            ]);
        }
        let kept = self.crossings.iter().filter(|c| c.connections_kept());
        let share =
            (!self.crossings.is_empty()).then(|| kept.count() as f64 / self.crossings.len() as f64);
        let sum =
            |count: fn(&Crossing) -> usize| self.crossings.iter().map(count).sum::<usize>() as f64;
        rows.extend([
            Row::new(
                "cuts across which every TCP connection was kept",
                "%",
                share.map(|share| share * 100.0),
            )
            .target(Target::AtLeast(100.0)),
            Row::new(
                "contacts acknowledged before a cut",
                "",
                sum(|c| c.acknowledged),
            ),
            Row::new(
                "acknowledged contacts that the registrar lost",
                "",
                sum(|c| c.lost.len()),
            )
            .target(Target::AtMost(0.0)),
        ]);
        let beyond = self.ms(|c| Some(c.first_udp? - c.t_b.as_secs_f64()));
        rows.push(
            Row::new(
                "first answer over UDP beyond T_b, worst cut",
                "ms",
                beyond.max(),
            )
            .target(Target::AtMost(beyond_ms)),
        );
        rows.extend(self.times());
        rows
    }

    /// Medians and worst cases of what was timed.
    fn times(&self) -> Vec<Row> {
        type Time = fn(&Crossing) -> Option<f64>;
        let all: [(&str, Time); 8] = [
            ("T_b of the backup", |c| Some(c.t_b.as_secs_f64())),
            ("cut to the first answer, UDP", |c| c.first_udp),
            ("cut to the next answer on an open TCP connection", |c| {
                c.first_tcp
            }),
            ("longest time without any answer", |c| c.longest_gap),
            ("cut to detected", |c| c.steps.detected),
            ("cut to the arbiter's claim", |c| c.steps.claimed),
            ("cut to the replica loaded", |c| c.steps.loaded),
            ("cut to running", |c| c.steps.running),
        ];
        let rows = all.into_iter().flat_map(|(name, time)| {
            let times = self.ms(time);
            [
                Row::new(format!("{name}, median"), "ms", times.median()),
                Row::new(format!("{name}, worst"), "ms", times.max()),
            ]
        });
        rows.collect()
    }

    fn ms(&self, seconds: impl Fn(&Crossing) -> Option<f64>) -> Distribution {
        let times = self.crossings.iter().filter_map(seconds);
        Distribution::new(times.map(|seconds| seconds * 1e3).collect())
    }

    /// All response times by transport, in seconds since their run's cut.
    pub(super) fn timelines(&self) -> Vec<(String, Vec<(f64, f64)>)> {
        crossing::TRANSPORTS
            .into_iter()
            .enumerate()
            .map(|(index, (transport, _))| {
                let points = self.crossings.iter().filter_map(|crossing| {
                    let (_, outcome) = crossing.loads.get(index)?;
                    Some(outcome.timeline_since(crossing.cut?))
                });
                (transport.name().to_owned(), points.flatten().collect())
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{Cuts, FROM_MS, TO_MS};
    use romulus_telephony::random::Random;

    #[test]
    fn a_seed_gives_the_same_moments_again_and_they_are_in_the_load() {
        let moments = |seed| {
            let mut random = Random::new(seed);
            (0..100)
                .map(|_| random.between(FROM_MS, TO_MS))
                .collect::<Vec<_>>()
        };
        assert_eq!(moments(7), moments(7));
        assert_ne!(moments(7), moments(8));
        assert!(moments(7).iter().all(|at| (FROM_MS..TO_MS).contains(at)));
    }

    #[test]
    fn cuts_that_broke_the_pair_meet_no_target() {
        let cuts = Cuts {
            broken: vec!["nobody runs it".into()],
            ..Cuts::default()
        };
        let rows = cuts.rows(150.0);
        let missed = rows.iter().filter(|row| row.met == Some(false)).count();
        let met = rows.iter().filter(|row| row.met == Some(true)).count();
        // No contact was lost; everything else was not even measured.
        assert_eq!((missed, met), (6, 1), "{rows:?}");
    }
}
