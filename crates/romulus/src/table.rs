//! Status for people.

use crate::{
    api::model::{PhaseTiming, Protection, Status},
    commands::Entry,
};
use std::{fmt::Write as _, time::SystemTime};

/// A table of machines.
pub(crate) fn machines(entries: &[Entry]) -> String {
    let mut rows = vec![
        [
            "NAME",
            "STATE",
            "FOR",
            "PID",
            "VCPUS",
            "MEMORY",
            "OVERHEAD",
            "PROTECTED",
        ]
        .map(str::to_owned),
    ];
    let mut remarks = String::new();
    for entry in entries {
        rows.push(match entry {
            Entry::Known(status) => [
                status.name.clone(),
                status.state.word().to_owned(),
                ago(&status.since),
                status.pid.to_string(),
                status.vcpus.to_string(),
                size(status.memory),
                status.overhead.map_or_else(|| "?".to_owned(), size),
                match &status.protection {
                    None => "-".to_owned(),
                    Some(protection) => yes(protection.protected).to_owned(),
                },
            ],
            Entry::Silent { name, state, error } => {
                let _ = writeln!(remarks, "{name}: {error}");
                let state = state.map_or("unknown", crate::api::model::State::word);
                [name, state, "-", "-", "-", "-", "-", "-"].map(str::to_owned)
            }
        });
    }
    columns(&rows) + &remarks
}

/// Everything about one machine.
pub(crate) fn details(status: &Status) -> String {
    let mut text = String::new();
    let mut line = |key: &str, value: String| {
        let _ = writeln!(text, "{key:<10}{value}");
    };
    line("name", status.name.clone());
    line(
        "state",
        format!(
            "{} for {} (since {})",
            status.state.word(),
            ago(&status.since),
            status.since
        ),
    );
    line(
        "process",
        format!(
            "pid {}, romulus {}, started {}",
            status.pid, status.version, status.started
        ),
    );
    line("restarts", status.restarts.to_string());
    line("vcpus", format!("{}, {} exits", status.vcpus, status.exits));
    let overhead = status.overhead.map_or_else(|| "unknown".to_owned(), size);
    line(
        "memory",
        format!("{}, {overhead} resident beyond it", size(status.memory)),
    );
    if let Some(protection) = &status.protection {
        cover(protection, &mut line);
    }
    for nic in &status.nics {
        let bridge = nic
            .bridge
            .as_ref()
            .map(|bridge| format!(" on {bridge}"))
            .unwrap_or_default();
        line(
            "nic",
            format!("{}{bridge}, {}, mtu {}", nic.tap, nic.mac, nic.mtu),
        );
        line(
            "",
            format!(
                "sent {} frames, {}; received {} frames, {}",
                nic.tx_frames,
                size(nic.tx_bytes),
                nic.rx_frames,
                size(nic.rx_bytes)
            ),
        );
    }
    for disk in &status.disks {
        line(
            "disk",
            format!(
                "{}{}",
                disk.path,
                if disk.read_only { ", read-only" } else { "" }
            ),
        );
        line(
            "",
            format!(
                "{} reads, {}; {} writes, {}; {} flushes; {} errors",
                disk.reads,
                size(disk.read_bytes),
                disk.writes,
                size(disk.written_bytes),
                disk.flushes,
                disk.errors
            ),
        );
    }
    text
}

fn yes(yes: bool) -> &'static str {
    if yes { "yes" } else { "NO" }
}

fn cover(protection: &Protection, line: &mut impl FnMut(&str, String)) {
    let known = |number: Option<u64>| number.map_or_else(|| "?".to_owned(), |n| n.to_string());
    let since = protection.since.as_ref().map_or_else(String::new, |since| {
        format!(" for {} (since {since})", ago(since))
    });
    line("protected", format!("{}{since}", yes(protection.protected)));
    line(
        "role",
        format!("{} on {}", protection.role, protection.host),
    );
    let changing = if protection.mode_changes {
        ", another one waits for the arbiter and the end of this cover"
    } else {
        ""
    };
    line("mode", format!("{}{changing}", protection.mode));
    let reached = if protection.partner.is_some() {
        "connected"
    } else {
        "NOT connected"
    };
    line("partner", format!("{}, {reached}", protection.partner_host));
    if !protection.uplinks.is_empty() {
        let here = protection.uplinks.iter().map(|uplink| {
            let state = if uplink.up { "up" } else { "DOWN" };
            format!("{} {state}", uplink.interface)
        });
        let there = protection.partner_uplinks.map_or_else(
            || "unknown".to_owned(),
            |n| format!("{} of {} up", n.up, n.of),
        );
        let here = here.collect::<Vec<_>>().join(", ");
        line(
            "uplink",
            format!("{here}; on {}: {there}", protection.partner_host),
        );
    }
    if let Some(copied) = protection.copied {
        // A share of pages; nobody has so many that a hundredfold overflows.
        let percent = copied.done.saturating_mul(100) / copied.all.max(1);
        line(
            "copy",
            format!("{percent} %, {} of {} pages", copied.done, copied.all),
        );
    }
    line(
        "term",
        format!(
            "{}, epoch {}, {} not committed",
            known(protection.term),
            protection.epoch,
            protection.lag
        ),
    );
    let phase = protection.phase.as_deref().unwrap_or("unknown");
    let answers = if protection.arbiter_answers {
        "answers"
    } else {
        "does NOT answer"
    };
    line(
        "arbiter",
        format!(
            "{answers}, generation {}, {phase}",
            known(protection.generation)
        ),
    );
    line("T_b", time(protection.t_b_us.saturating_mul(1000)));
    line(
        "epochs",
        format!(
            "{}, {} pages each ({} first writes), {} sent",
            protection.epochs,
            protection.dirty_pages_mean,
            protection.first_writes_mean,
            size(protection.sent_bytes)
        ),
    );
    line(
        "held",
        format!(
            "{} frames, {}; {} frames lost, {} passed at once",
            protection.held_frames,
            size(protection.held_bytes),
            protection.dropped_frames,
            protection.at_once_frames
        ),
    );
    line(
        "in flight",
        format!(
            "{} frames passed on, {} not; at the takeover {} sent again, {} given again",
            protection.passed_on_frames,
            protection.skipped_frames,
            protection.sent_again_frames,
            protection.given_again_frames
        ),
    );
    if protection.rehearsals > 0 {
        line("rehearsals", protection.rehearsals.to_string());
    }
}

/// The phases of an epoch.
pub(crate) fn timing(phases: &[PhaseTiming]) -> String {
    let mut rows = vec![["PHASE", "COUNT", "P50", "P99", "P99.9", "MAX"].map(str::to_owned)];
    for phase in phases {
        let figure = |nanoseconds| match phase.count {
            0 => "-".to_owned(),
            _ => time(nanoseconds),
        };
        rows.push([
            phase.phase.clone(),
            phase.count.to_string(),
            figure(phase.p50_ns),
            figure(phase.p99_ns),
            figure(phase.p999_ns),
            figure(phase.max_ns),
        ]);
    }
    columns(&rows)
}

/// A time in the largest unit that keeps a digit before the point.
fn time(nanoseconds: u64) -> String {
    const UNITS: [&str; 4] = ["ns", "µs", "ms", "s"];
    let (mut whole, mut rest, mut unit) = (nanoseconds, 0, 0);
    while whole >= 1000 && unit + 1 < UNITS.len() {
        rest = whole % 1000 / 100;
        whole /= 1000;
        unit += 1;
    }
    match rest {
        0 => format!("{whole} {}", UNITS[unit]),
        tenths => format!("{whole}.{tenths} {}", UNITS[unit]),
    }
}

/// Left-aligned columns, two spaces apart.
pub(crate) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Time since a moment, in its two largest units.
fn ago(since: &str) -> String {
    let elapsed = humantime::parse_rfc3339(since)
        .ok()
        .and_then(|since| SystemTime::now().duration_since(since).ok());
    match elapsed {
        None => "?".to_owned(),
        Some(elapsed) => {
            let whole = std::time::Duration::from_secs(elapsed.as_secs());
            let text = humantime::format_duration(whole).to_string();
            text.split(' ').take(2).collect::<Vec<_>>().join(" ")
        }
    }
}

/// A size in the largest binary unit that keeps a digit before the point.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut whole, mut rest, mut unit) = (bytes, 0, 0);
    while whole >= 1024 && unit + 1 < UNITS.len() {
        rest = whole % 1024 * 10 / 1024;
        whole /= 1024;
        unit += 1;
    }
    match rest {
        0 => format!("{whole} {}", UNITS[unit]),
        tenths => format!("{whole}.{tenths} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(512 << 20), "512 MiB");
        assert_eq!(size((3 << 30) + (1 << 29)), "3.5 GiB");
        assert_eq!(size(u64::MAX), "16777215.9 TiB");
    }

    #[test]
    fn times_read_well() {
        assert_eq!(time(0), "0 ns");
        assert_eq!(time(999), "999 ns");
        assert_eq!(time(45_060), "45 µs");
        assert_eq!(time(1_250_000), "1.2 ms");
        assert_eq!(time(100_000_000), "100 ms");
        assert_eq!(time(90_000_000_000), "90 s");
    }

    #[test]
    fn a_phase_that_was_never_measured_has_no_figures() {
        let phase = |phase: &str, count, time| PhaseTiming {
            phase: phase.to_owned(),
            count,
            total_ns: count * time,
            p50_ns: time,
            p99_ns: time,
            p999_ns: time,
            max_ns: 2 * time,
            buckets: Vec::new(),
        };
        let text = timing(&[phase("park", 3, 45_000), phase("send", 0, 0)]);
        let rows: Vec<Vec<&str>> = text
            .lines()
            .map(|line| {
                line.split("  ")
                    .filter(|cell| !cell.is_empty())
                    .map(str::trim)
                    .collect()
            })
            .collect();
        assert_eq!(rows[1], ["park", "3", "45 µs", "45 µs", "45 µs", "90 µs"]);
        assert_eq!(rows[2], ["send", "0", "-", "-", "-", "-"]);
    }

    #[test]
    fn columns_line_up() {
        let rows = [["a", "b"], ["long", "c"]].map(|row| row.map(str::to_owned));
        assert_eq!(columns(&rows), "a     b\nlong  c\n");
    }
}
