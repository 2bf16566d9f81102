//! What protection costs while nothing fails: processor and network when idle, time when there is hardly a load.

use crate::{
    distribution::Distribution,
    machine_file::FIRST_GUEST,
    pair::Pair,
    probe::{self, Question, Seen},
    sipp,
};
use anyhow::{Context as _, Result, ensure};
use lab::Host;
use std::{
    thread,
    time::{Duration, Instant},
};

/// Five registrations a second.
const CALM: Duration = Duration::from_millis(200);
/// Clock ticks a second in `/proc`: the same on every Linux that has a user space (`sysconf(_SC_CLK_TCK)`).
const TICKS: f64 = 100.0;

/// What a machine under hardly any load shows.
pub(super) struct Calm {
    response_ms: Distribution,
    /// The median pause of the epochs, where there are any.
    pub(super) pause_ms: Option<f64>,
    pub(super) pause_p99_ms: Option<f64>,
    pub(super) dirty_pages: Option<f64>,
}

impl Calm {
    pub(super) fn median_ms(&self) -> Option<f64> {
        self.response_ms.median()
    }

    pub(super) fn p99_ms(&self) -> Option<f64> {
        self.response_ms.percentile(99.0)
    }

    /// A line for people.
    pub(super) fn summary(&self) -> String {
        format!(
            "{} answers, p50 {:.1} ms",
            self.response_ms.count(),
            self.median_ms().unwrap_or(f64::NAN)
        )
    }
}

/// Registers one user five times a second for `time`. A pair's epochs are asked for as well.
///
/// # Errors
/// The client's network can't be used, or hardly anything was answered.
pub(super) fn calm(client: &lab::Client, pair: Option<&Pair<'_>>, time: Duration) -> Result<Calm> {
    let probe = probe::start(client, sipp::sip(FIRST_GUEST), Question::Register, CALM)?;
    thread::sleep(time);
    let Seen { questions } = &probe.finish()?;
    let asked = questions.len();
    let seen = Seen {
        // The first ones find unresolved addresses and cold caches.
        questions: questions.iter().skip(asked / 10).copied().collect(),
    };
    let response_ms = seen.response_ms();
    ensure!(
        response_ms.count() * 10 >= seen.questions.len() * 9 && response_ms.count() > 0,
        "of {} registrations only {} were answered",
        seen.questions.len(),
        response_ms.count()
    );
    let mut calm = Calm {
        response_ms,
        pause_ms: None,
        pause_p99_ms: None,
        dirty_pages: None,
    };
    if let Some(pair) = pair {
        let runner = pair.runner()?.context("no host runs the machine")?;
        let phases = pair.timing(runner)?;
        let pause = phases
            .iter()
            .find(|phase| phase.name == "pause")
            .context("`romulus status --timing` has no phase `pause`")?;
        calm.pause_ms = pause.p50_ms();
        calm.pause_p99_ms = pause.p99_ms();
        let status = pair.status(runner)?;
        calm.dirty_pages = status.and_then(|status| pages(status.cover()?.dirty_pages_mean));
    }
    Ok(calm)
}

fn pages(number: u64) -> Option<f64> {
    u32::try_from(number).ok().map(f64::from)
}

/// What one host's process costs.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct HostCost {
    /// In percent of a core.
    pub(super) percent: f64,
    /// Without the threads that are the guest's own processors.
    pub(super) percent_without_vcpus: f64,
}

/// What an idle pair costs.
pub(super) struct Idle {
    pub(super) primary: HostCost,
    pub(super) backup: HostCost,
    /// On the replication network, both ways, in Mbit/s.
    pub(super) mbits: f64,
}

/// Watches an idle pair for `time`.
///
/// # Errors
/// A host can't be reached.
pub(super) fn idle(pair: &Pair<'_>, time: Duration) -> Result<Idle> {
    let runner = pair.runner()?.context("no host runs the machine")?;
    let start = Instant::now();
    let before = Sample::take(pair, runner)?;
    thread::sleep(time);
    let after = Sample::take(pair, runner)?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(Idle {
        primary: after.primary.since(before.primary, seconds),
        backup: after.backup.since(before.backup, seconds),
        #[allow(clippy::cast_precision_loss, reason = "bytes of half a minute")]
        mbits: (after.bytes.saturating_sub(before.bytes)) as f64 * 8.0 / 1e6 / seconds,
    })
}

struct Sample {
    primary: Ticks,
    backup: Ticks,
    bytes: u64,
}

impl Sample {
    fn take(pair: &Pair<'_>, runner: usize) -> Result<Self> {
        let bytes = pair.host(runner).sh(
            "cat /sys/class/net/rep/statistics/rx_bytes /sys/class/net/rep/statistics/tx_bytes",
        )?;
        let bytes = bytes
            .split_whitespace()
            .map(str::parse::<u64>)
            .sum::<Result<u64, _>>()
            .context("the bytes of the replication network")?;
        Ok(Self {
            primary: ticks(pair.host(runner), pair.running(runner)?.pid())?,
            backup: ticks(pair.host(1 - runner), pair.running(1 - runner)?.pid())?,
            bytes,
        })
    }
}

/// Processor time of a process, in clock ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Ticks {
    all: u32,
    vcpus: u32,
}

impl Ticks {
    fn since(self, before: Self, seconds: f64) -> HostCost {
        let percent = |ticks: u32| f64::from(ticks) / TICKS / seconds * 100.0;
        let all = self.all.saturating_sub(before.all);
        let vcpus = self.vcpus.saturating_sub(before.vcpus);
        HostCost {
            percent: percent(all),
            percent_without_vcpus: percent(all.saturating_sub(vcpus)),
        }
    }
}

fn ticks(host: &Host, pid: i32) -> Result<Ticks> {
    let text = host.sh(&format!("cat /proc/{pid}/task/*/stat"))?;
    parse_ticks(&text).with_context(|| format!("the threads of process {pid}: {text}"))
}

/// Sums user and system time over `/proc/PID/task/*/stat` (proc(5)). A thread's name, in parentheses, may hold anything.
fn parse_ticks(text: &str) -> Option<Ticks> {
    let mut ticks = Ticks::default();
    for line in text.lines() {
        let (head, rest) = line.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let time = fields.get(11)?.parse::<u32>().ok()? + fields.get(12)?.parse::<u32>().ok()?;
        ticks.all += time;
        if head.contains(" vcpu") {
            ticks.vcpus += time;
        }
    }
    (ticks.all > 0).then_some(ticks)
}

#[cfg(test)]
mod tests {
    use super::{Ticks, parse_ticks};

    #[test]
    fn the_guests_own_threads_are_told_by_their_names() {
        let rest = "S 1 1 1 0 -1 0 0 0 0 0 30 12 0 0 20 0 9 0 7";
        let text = format!("7 (romulus) {rest}\n8 (registrar vcpu0) {rest}\n9 (a) b) {rest}\n");
        assert_eq!(
            parse_ticks(&text),
            Some(Ticks {
                all: 126,
                vcpus: 42
            })
        );
        assert_eq!(parse_ticks(""), None);
        assert_eq!(parse_ticks("7 (romulus) S 1"), None);
    }

    #[test]
    fn cost_is_a_share_of_the_time() {
        let before = Ticks {
            all: 100,
            vcpus: 50,
        };
        let after = Ticks {
            all: 160,
            vcpus: 90,
        };
        let cost = after.since(before, 20.0);
        assert!((cost.percent - 3.0).abs() < 1e-9);
        assert!((cost.percent_without_vcpus - 1.0).abs() < 1e-9);
    }
}
