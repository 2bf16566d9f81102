//! Status for people.

use crate::{api::model::Status, commands::Entry};
use std::{fmt::Write as _, time::SystemTime};

/// A table of machines.
pub(crate) fn machines(entries: &[Entry]) -> String {
    let mut rows =
        vec![["NAME", "STATE", "FOR", "PID", "VCPUS", "MEMORY", "OVERHEAD"].map(str::to_owned)];
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
            ],
            Entry::Silent { name, state, error } => {
                let _ = writeln!(remarks, "{name}: {error}");
                let state = state.map_or("unknown", crate::api::model::State::word);
                [name, state, "-", "-", "-", "-", "-"].map(str::to_owned)
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
    fn columns_line_up() {
        let rows = [["a", "b"], ["long", "c"]].map(|row| row.map(str::to_owned));
        assert_eq!(columns(&rows), "a     b\nlong  c\n");
    }
}
