//! The long look: `T_b` at its default, nothing fails.

use super::{Stand, busy::Busy, computer_load, record::Seen, seen};
use crate::{
    assets::Image,
    compile::target_folder,
    journal, live,
    machine_file::FIRST_GUEST,
    pair::Pair,
    probe::{self, Question},
    report::{
        Row, Target,
        plot::{Plot, Series},
    },
    sipp,
};
use anyhow::{Context as _, Result};
use serde::Serialize;
use std::{
    thread,
    time::{Duration, Instant},
};

/// From one look at the hosts to the next: each look is a program that runs there.
const LOOK: Duration = Duration::from_secs(5);
/// Five registrations a second: what clients see meanwhile.
const CALM: Duration = Duration::from_millis(200);
/// How long the guest may take to come up.
const BOOT_LIMIT: Duration = Duration::from_mins(4);

/// One look at both hosts.
#[derive(Debug, Clone, Serialize)]
struct Look {
    seconds: f64,
    /// `T_b` of each host, in milliseconds, where it answered.
    t_b_ms: [Option<f64>; 2],
    /// Whether the host that runs the machine says that it is protected.
    protected: bool,
    takeovers: usize,
    cover_lost: usize,
    claims: usize,
    computer_load: Option<f64>,
}

/// Watches a protected pair for `time`.
///
/// # Errors
/// There is no protected pair. What goes wrong later ends the look early.
pub(super) fn run(stand: &Stand<'_>, time: Duration) -> Result<Vec<Row>> {
    let step = stand.progress.step("a pair of hosts is made and protected");
    let guest = stand.assets.guest(Image::REGISTRAR_12)?;
    let mut pair = Pair::new(stand.lab, stand.assets, guest, |file| {
        if let Some(protection) = &mut file.protection {
            // The product's own defaults, not what is advised for such hosts.
            protection.t_b = None;
        }
    })?;
    for side in 0..2 {
        pair.run(side)?;
    }
    pair.running(0)?.wait_console("GUEST UP", BOOT_LIMIT)?;
    pair.wait_protected(None)?;
    step.done("the machine is protected");
    let busy = (0..2)
        .map(|side| Busy::start(pair.host(side), stand.load))
        .collect::<Result<Vec<_>>>()?;
    let server = sipp::sip(FIRST_GUEST);
    let probe = probe::start(stand.lab.client(), server, Question::Register, CALM)?;

    let journal = journal::of_figures("bench-noise")?;
    journal.empty()?;
    let step = stand.progress.step(format!(
        "watching the pair for {:.0} minutes, each host's processor {} % busy (figures go to {})",
        time.as_secs_f64() / 60.0,
        stand.load,
        journal.path().display()
    ));
    let begin = Instant::now();
    let before = seen(&pair)?;
    let mut looks: Vec<Look> = Vec::new();
    while begin.elapsed() < time {
        match look(&mut pair, before, begin) {
            Ok(look) => {
                journal.add(&look)?;
                live::tell(&step, &look.text());
                looks.push(look);
            }
            Err(error) => {
                stand.progress.note(format!("broken off: {error:#}"));
                break;
            }
        }
        thread::sleep(LOOK.min(time.saturating_sub(begin.elapsed())));
    }
    let watched = begin.elapsed();
    let seen = seen(&pair)?.since(before);
    let shares = busy
        .iter()
        .map(|busy| busy.percent().ok().flatten())
        .collect::<Vec<_>>();
    let questions = probe.finish()?;
    let pauses = pauses(&pair).unwrap_or_default();
    // They tell what each claim was made of, and cost nothing.
    pair.keep_logs(stand.logs)?;
    step.done(format!(
        "{:.0} s: {} takeovers, cover lost {} times, {} claims",
        watched.as_secs_f64(),
        seen.takeovers,
        seen.cover_lost,
        seen.claims
    ));
    let path = plot(&looks).write(&target_folder().join("reports"), "bench-noise")?;
    stand
        .progress
        .note(format!("T_b over time: {}", path.display()));
    let mut rows = rows(watched, seen, &looks);
    rows.extend(
        shares
            .into_iter()
            .zip(1..)
            .map(|(share, host)| Row::new(format!("processor of host {host}, busy"), "%", share)),
    );
    rows.extend(pauses);
    let times = questions.response_ms();
    let unanswered = questions.questions.len() - times.count();
    rows.extend([
        Row::new(
            "registrations asked for",
            "",
            count(questions.questions.len()),
        ),
        Row::new("… not answered at the first try", "", count(unanswered)),
        Row::new("… response time p50", "ms", times.median()),
        Row::new("… response time p99", "ms", times.percentile(99.0)),
        Row::new("… longest response time", "ms", times.max()),
    ]);
    Ok(rows)
}

/// How long the guest stood still for its epochs, since the runner's process started.
fn pauses(pair: &Pair<'_>) -> Result<Vec<Row>> {
    let pauses = pair.pauses()?;
    Ok(vec![
        Row::new("pause p50", "ms", pauses.p50_ms()),
        Row::new("pause p99", "ms", pauses.p99_ms()),
    ])
}

fn look(pair: &mut Pair<'_>, before: Seen, begin: Instant) -> Result<Look> {
    pair.arbiter.still_runs()?;
    let mut t_b_ms = [None; 2];
    let mut protected = false;
    for (side, t_b_ms) in t_b_ms.iter_mut().enumerate() {
        let status = pair.status(side).context("a host's process has ended")?;
        if let Some(status) = &status {
            *t_b_ms = status.cover().map(|cover| cover.t_b().as_secs_f64() * 1e3);
            protected |= status.is_protected_here();
        }
    }
    let seen = seen(pair)?.since(before);
    Ok(Look {
        seconds: begin.elapsed().as_secs_f64(),
        t_b_ms,
        protected,
        takeovers: seen.takeovers,
        cover_lost: seen.cover_lost,
        claims: seen.claims,
        computer_load: computer_load(),
    })
}

impl Look {
    fn text(&self) -> String {
        let ms = |t_b: Option<f64>| t_b.map_or_else(|| "?".to_owned(), |ms| format!("{ms:.0}"));
        format!(
            "{:>5.0} s  T_b {} and {} ms, {}, {} takeovers, cover lost {} times",
            self.seconds,
            ms(self.t_b_ms[0]),
            ms(self.t_b_ms[1]),
            if self.protected {
                "protected"
            } else {
                "NOT protected"
            },
            self.takeovers,
            self.cover_lost
        )
    }
}

fn rows(watched: Duration, seen: Seen, looks: &[Look]) -> Vec<Row> {
    let mut rows = vec![
        Row::new("watched", "s", watched.as_secs_f64().round()),
        Row::new("takeovers without a failure", "", count(seen.takeovers))
            .target(Target::AtMost(0.0)),
        Row::new("cover lost without a failure", "", count(seen.cover_lost)),
        Row::new("claims, whoever won", "", count(seen.claims)),
    ];
    let covered = seen.covered / watched.as_secs_f64() * 100.0;
    rows.push(Row::new(
        "time in which somebody was named to take over",
        "%",
        Some(covered).filter(|share| share.is_finite()),
    ));
    for side in 0..2 {
        let t_b = looks.iter().filter_map(|look| look.t_b_ms[side]);
        let t_b = crate::distribution::Distribution::new(t_b.collect());
        let host = side + 1;
        rows.extend([
            Row::new(
                format!("T_b of host {host}, lowest"),
                "ms",
                t_b.percentile(0.0),
            ),
            Row::new(format!("T_b of host {host}, median"), "ms", t_b.median()),
            Row::new(format!("T_b of host {host}, highest"), "ms", t_b.max()),
        ]);
    }
    let load = looks.iter().filter_map(|look| look.computer_load);
    let load = crate::distribution::Distribution::new(load.collect());
    rows.extend([
        Row::new(
            "tasks that wanted this computer's processors, median",
            "",
            load.median(),
        ),
        Row::new("… highest", "", load.max()),
    ]);
    rows
}

/// A number of things.
fn count(number: usize) -> Option<f64> {
    u32::try_from(number).ok().map(f64::from)
}

fn plot(looks: &[Look]) -> Plot<'static> {
    let series = (0..2).map(|side| Series {
        name: format!("T_b of host {}", side + 1),
        points: looks
            .iter()
            .filter_map(|look| Some((look.seconds, look.t_b_ms[side]?)))
            .collect(),
        joined: true,
    });
    Plot {
        title: "T_b on two busy hosts",
        x: "seconds",
        y: "T_b, ms",
        series: series.collect(),
        marks: looks
            .windows(2)
            .filter(|pair| pair[1].takeovers > pair[0].takeovers)
            .map(|pair| (pair[1].seconds, "takeover without a failure".to_owned()))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Duration, Look, Seen, plot, rows};

    fn look(seconds: f64, protected: bool, takeovers: usize) -> Look {
        Look {
            seconds,
            t_b_ms: [Some(100.0 + seconds), None],
            protected,
            takeovers,
            cover_lost: 0,
            claims: takeovers,
            computer_load: Some(2.0),
        }
    }

    #[test]
    fn a_takeover_without_a_failure_misses_the_target_and_is_in_the_plot() {
        let looks = [look(0.0, true, 0), look(5.0, false, 1), look(10.0, true, 1)];
        let seen = |takeovers| Seen {
            takeovers,
            ..Seen::default()
        };
        let met = |takeovers| {
            let rows = rows(Duration::from_secs(10), seen(takeovers), &looks);
            rows.iter().filter_map(|row| row.met).collect::<Vec<_>>()
        };
        assert_eq!((met(0), met(1)), (vec![true], vec![false]));
        let plot = plot(&looks);
        assert_eq!(plot.marks.len(), 1);
        assert_eq!(plot.series[0].points.len(), 3);
        assert!(
            plot.series[1].points.is_empty(),
            "a host that did not answer"
        );
    }

    #[test]
    fn a_run_without_a_look_has_no_figures_of_it() {
        let rows = rows(Duration::ZERO, Seen::default(), &[]);
        let share = rows.iter().find(|row| row.what.contains("named"));
        assert_eq!(share.map(|row| row.value), Some(None));
    }
}
