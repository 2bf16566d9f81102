//! What is to be reached, as rows with a target each.

use crate::report::{Row, Target};
use romulus_telephony::{
    report::Cell,
    sipstone::tables::{FORMS, Line, REGISTRATIONS, TAKEOVERS},
};

/// What the first answer may take longer than `T_b`.
const BEYOND_T_B_MS: f64 = crate::demo::BEYOND_T_B_MS;

/// The rows of those promises about which something was measured.
pub(super) fn rows(lines: &[&Line]) -> Vec<Row> {
    let mut rows = Vec::new();
    rows.extend(registrations(lines));
    rows
}

/// A line's cell by its column's name.
fn cell<'a>(line: &'a Line, column: &str) -> Option<&'a Cell> {
    let form = FORMS.iter().find(|form| form.name == line.table)?;
    let index = form.columns.iter().position(|known| known.name == column)?;
    line.cells.get(index)
}

fn number(line: &Line, column: &str) -> Option<f64> {
    cell(line, column)?.number()
}

fn has(line: &Line, column: &str, text: &str) -> bool {
    cell(line, column).is_some_and(|cell| cell.text() == text)
}

/// All lines of a table in which a column says something.
fn of<'a>(
    lines: &'a [&Line],
    table: &'a str,
    column: &'a str,
    text: &'a str,
) -> impl Iterator<Item = &'a Line> {
    lines
        .iter()
        .copied()
        .filter(move |line| line.table == table && has(line, column, text))
}

/// The worst of a column that is to be large; `None` if a line has none.
fn least<'a>(lines: impl Iterator<Item = &'a Line>, column: &str) -> Option<f64> {
    let values: Option<Vec<f64>> = lines.map(|line| number(line, column)).collect();
    values?.into_iter().min_by(f64::total_cmp)
}

fn registrations(lines: &[&Line]) -> Vec<Row> {
    let net = || of(lines, REGISTRATIONS.name, "mode", "net");
    let takeovers = || of(lines, TAKEOVERS.name, "mode", "net");
    if net().next().is_none() || takeovers().next().is_none() {
        return Vec::new();
    }
    let lost: Option<f64> = takeovers().map(|line| number(line, "lost")).sum();
    let kept = takeovers().all(|line| has(line, "connections kept", "yes"));
    let beyond: Option<Vec<f64>> = takeovers()
        .map(|line| Some(number(line, "first answer over UDP")? - number(line, "T_b")?))
        .collect();
    let beyond = beyond.and_then(|all| all.into_iter().max_by(f64::total_cmp));
    let mut rows: Vec<Row> = ["UDP", "TCP_1", "TCP_N"]
        .into_iter()
        .map(|transport| {
            let answered = least(
                net().filter(|line| has(line, "transport", transport)),
                "answered",
            );
            Row::new(
                format!("net: registrations answered across a power cut, {transport}, worst cut"),
                "%",
                answered,
            )
            .target(Target::AtLeast(100.0))
        })
        .collect();
    rows.extend([
        Row::new("net: acknowledged contacts lost, all cuts", "", lost).target(Target::AtMost(0.0)),
        Row::new(
            "net: TCP connections kept across every cut",
            "%",
            if kept { 100.0 } else { 0.0 },
        )
        .target(Target::AtLeast(100.0)),
        Row::new(
            "net: first answer over UDP beyond T_b, worst cut",
            "ms",
            beyond,
        )
        .target(Target::AtMost(BEYOND_T_B_MS)),
    ]);
    rows
}

#[cfg(test)]
mod tests {
    use super::rows;
    use romulus_telephony::{
        report::Cell,
        sipstone::tables::{Line, REGISTRATIONS, TAKEOVERS},
    };

    fn registrations(mode: &str, transport: &str, answered: f64) -> Line {
        let mut cells = vec![Cell::Missing(()); REGISTRATIONS.columns.len()];
        cells[0] = mode.into();
        cells[3] = transport.into();
        cells[5] = answered.into();
        Line::new(&REGISTRATIONS, cells)
    }

    fn takeover(first: Option<f64>, lost: f64, kept: &str) -> Line {
        let mut cells = vec![Cell::Missing(()); TAKEOVERS.columns.len()];
        cells[0] = "net".into();
        cells[3] = 500.0.into();
        cells[6] = first.into();
        cells[10] = lost.into();
        cells[11] = kept.into();
        Line::new(&TAKEOVERS, cells)
    }

    fn met(lines: &[Line]) -> Vec<Option<bool>> {
        let lines: Vec<&Line> = lines.iter().collect();
        rows(&lines).iter().map(|row| row.met).collect()
    }

    fn good() -> Vec<Line> {
        let mut lines: Vec<Line> = ["UDP", "TCP_1", "TCP_N"]
            .map(|transport| registrations("net", transport, 100.0))
            .into();
        // What no-net does is measured, not promised.
        lines.push(registrations("no-net", "UDP", 3.0));
        lines.push(takeover(Some(640.0), 0.0, "yes"));
        lines
    }

    #[test]
    fn nothing_is_promised_of_what_was_not_measured() {
        assert!(rows(&[]).is_empty());
    }

    #[test]
    fn the_worst_cut_counts() {
        assert_eq!(met(&good()), [Some(true); 6]);
        let mut worse = good();
        worse.push(registrations("net", "TCP_1", 99.0));
        assert_eq!(met(&worse)[1], Some(false));
        let mut worse = good();
        worse.push(takeover(Some(651.0), 1.0, "no"));
        assert_eq!(met(&worse)[3..], [Some(false); 3]);
    }

    #[test]
    fn what_could_not_be_measured_is_not_met() {
        let mut silent = good();
        silent.push(takeover(None, 0.0, "yes"));
        assert_eq!(met(&silent)[5], Some(false));
    }
}
