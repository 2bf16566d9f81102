//! What a command measured: a table for people, one JSON object for programs, and plots.

mod computer;
pub(crate) mod plot;
mod stolen;

pub(crate) use computer::{Computer, commit};
pub(crate) use stolen::ProcessorTimes;

use anyhow::Result;
use serde::Serialize;
use std::io::{IsTerminal, Write};

/// What one run measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    /// Name of the measurement.
    pub(crate) bench: String,
    /// The commit that was measured, with `+dirty` if files differed from it.
    pub(crate) commit: String,
    /// Where it was measured.
    pub(crate) computer: Computer,
    /// What was measured, in order.
    pub(crate) rows: Vec<Row>,
}

/// One measured value.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) what: String,
    /// Unit of all values in the row.
    pub(crate) unit: &'static str,
    /// What was seen; `None` if it could not be measured.
    pub(crate) value: Option<f64>,
    /// The same of what we compare with, in the same run.
    pub(crate) peer: Option<f64>,
    /// What is to be reached.
    pub(crate) target: Option<Target>,
    /// Whether it was reached; `None` without a target.
    pub(crate) met: Option<bool>,
}

/// The bound that a value is to keep.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(into = "f64")]
pub(crate) enum Target {
    /// The value is to be this or less.
    AtMost(f64),
    /// The value is to be this or more.
    AtLeast(f64),
}

/// For programs: the bound alone. Whether it was kept is in the row's `met`.
impl From<Target> for f64 {
    fn from(target: Target) -> Self {
        match target {
            Target::AtMost(bound) | Target::AtLeast(bound) => bound,
        }
    }
}

impl Target {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(bound) => value <= bound,
            Self::AtLeast(bound) => value >= bound,
        }
    }

    /// For people.
    pub(crate) fn text(self) -> String {
        match self {
            Self::AtMost(bound) => format!("≤ {}", number(bound)),
            Self::AtLeast(bound) => format!("≥ {}", number(bound)),
        }
    }
}

impl Row {
    /// A value alone.
    pub(crate) fn new(
        what: impl Into<String>,
        unit: &'static str,
        value: impl Into<Option<f64>>,
    ) -> Self {
        Self {
            what: what.into(),
            unit,
            value: value.into(),
            peer: None,
            target: None,
            met: None,
        }
    }

    /// Adds what the peer reached.
    pub(crate) fn peer(mut self, peer: impl Into<Option<f64>>) -> Self {
        self.peer = peer.into();
        self
    }

    /// Adds what is to be reached. A value that could not be measured does not meet its target.
    pub(crate) fn target(mut self, target: impl Into<Option<Target>>) -> Self {
        self.target = target.into();
        self.met = self
            .target
            .map(|target| self.value.is_some_and(|value| target.is_met(value)));
        self
    }

    fn cells(&self) -> [String; 6] {
        let text = |value: Option<f64>| value.map_or_else(|| "–".into(), number);
        let met = match self.met {
            None => "",
            Some(true) => "yes",
            Some(false) => "NO",
        };
        [
            self.what.clone(),
            text(self.value),
            self.unit.into(),
            self.peer.map_or_else(String::new, number),
            self.target.map_or_else(String::new, Target::text),
            met.into(),
        ]
    }
}

impl Report {
    /// An empty report of `bench`, with the commit, this computer and the kind of the lab's hosts filled in.
    pub(crate) fn new(bench: impl Into<String>, hosts: lab::Kind) -> Self {
        Self {
            bench: bench.into(),
            commit: computer::commit(),
            computer: Computer::describe(hosts),
            rows: Vec::new(),
        }
    }

    /// Prints the report on standard output: with `json` one object and nothing else, else a table.
    ///
    /// # Errors
    /// Standard output can't be written.
    pub(crate) fn print(&self, json: bool) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if json {
            serde_json::to_writer_pretty(&mut out, self)?;
            writeln!(out)?;
        } else {
            let bold = out.is_terminal();
            out.write_all(self.table(bold).as_bytes())?;
        }
        Ok(out.flush()?)
    }

    /// The table for people. Columns that no row fills are left out.
    fn table(&self, bold: bool) -> String {
        const TITLES: [&str; 6] = ["what", "value", "unit", "peer", "target", "met"];
        let rows: Vec<[String; 6]> = self.rows.iter().map(Row::cells).collect();
        let widths: Vec<usize> = (0..TITLES.len())
            .map(|column| {
                let widest = rows
                    .iter()
                    .map(|row| row[column].chars().count())
                    .max()
                    .unwrap_or(0);
                if widest == 0 {
                    0
                } else {
                    widest.max(TITLES[column].len())
                }
            })
            .collect();
        let shown = |column: &usize| widths[*column] > 0;
        let line = |cells: [&str; 6]| {
            let padded = (0..TITLES.len()).filter(shown).map(|column| {
                let cell = cells[column];
                let pad = " ".repeat(widths[column].saturating_sub(cell.chars().count()));
                match TITLES[column] {
                    "value" | "peer" | "target" => pad + cell,
                    _ => cell.to_owned() + &pad,
                }
            });
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        let titles = line(TITLES);
        let rule = (0..TITLES.len())
            .filter(shown)
            .map(|column| "─".repeat(widths[column]));
        let mut lines = vec![
            format!("{} · commit {}", self.bench, self.commit),
            self.computer.to_string(),
            String::new(),
            if bold {
                format!("\x1b[1m{titles}\x1b[0m")
            } else {
                titles
            },
            rule.collect::<Vec<_>>().join("──"),
        ];
        lines.extend(
            rows.iter()
                .map(|row| line(row.each_ref().map(String::as_str))),
        );
        lines.join("\n") + "\n"
    }
}

/// A number with as many digits as say something.
pub(crate) fn number(value: f64) -> String {
    let digits = match value.abs() {
        _ if value.fract() == 0.0 => 0,
        magnitude if magnitude >= 100.0 => 0,
        magnitude if magnitude >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::{Computer, Report, Row, Target, number};
    use serde_json::json;

    fn report() -> Report {
        Report {
            bench: "machine".into(),
            commit: "abc1234".into(),
            computer: Computer {
                cpu: "A CPU".into(),
                cores: 2,
                memory_mib: 1024,
                kernel: "6.1.0".into(),
                lab: "QEMU TCG".into(),
            },
            rows: vec![
                Row::new("boot", "ms", 1234.5)
                    .peer(2000.0)
                    .target(Target::AtMost(2000.0)),
                Row::new("rate", "1/s", 90.0).target(Target::AtLeast(100.0)),
                Row::new("nothing seen", "ms", None).target(Target::AtMost(1.0)),
            ],
        }
    }

    #[test]
    fn json_has_the_agreed_form() {
        let value = serde_json::to_value(report()).unwrap();
        assert_eq!(value["bench"], "machine");
        assert_eq!(value["computer"]["cores"], 2);
        assert_eq!(
            value["rows"][0],
            json!({"what": "boot", "unit": "ms", "value": 1234.5, "peer": 2000.0, "target": 2000.0, "met": true})
        );
        assert_eq!(value["rows"][1]["met"], false);
        assert_eq!(
            value["rows"][2]["met"], false,
            "what was not measured is not met"
        );
    }

    #[test]
    fn a_row_without_a_target_is_neither_met_nor_missed() {
        assert_eq!(Row::new("p50", "ms", 3.0).target(None).met, None);
    }

    #[test]
    fn the_table_is_aligned_and_leaves_empty_columns_out() {
        let text = report().table(false);
        let lines: Vec<&str> = text.lines().skip(3).collect();
        assert!(lines[0].starts_with("what"), "{text}");
        let unit = |line: &str| line.chars().take(30).collect::<String>();
        assert!(
            unit(lines[2]).contains("1234 ") || unit(lines[2]).contains("1235 "),
            "{text}"
        );
        assert!(text.contains("NO"));
        let mut plain = report();
        plain.rows = vec![Row::new("a", "ms", 1.0)];
        assert!(!plain.table(false).contains("target"));
    }

    #[test]
    fn numbers_have_sensible_digits() {
        assert_eq!(
            [2.0, 1234.56, 12.34, 0.123].map(number),
            ["2", "1235", "12.3", "0.12"]
        );
    }
}
