//! What is to be reached, as rows with a target each.

use super::dialogs::ENCRYPTED;
use crate::report::{Row, Target};
use romulus_telephony::{
    report::Cell,
    sipstone::tables::{CALLS, FORMS, Line, MEDIA, REGISTRATIONS, TAKEOVERS},
};

/// What the first answer may take longer than `T_b`.
const BEYOND_T_B_MS: f64 = crate::demo::BEYOND_T_B_MS;
/// What a call of a minute is, in seconds, and how good it is to be.
const MINUTE: f64 = 60.0;
const MOS: f64 = 4.0;
/// How many of a relay's packets are to have passed at once, in percent. In `net` none does; but what is counted is what was
/// passed, beside what a relay that never loses one would have sent.
const AT_ONCE: f64 = 90.0;

/// How many of a relay's packets may come too late to be heard, in percent, if the machine alone is still to be said to carry that many
/// calls. Beyond that there is nothing to compare with.
const LATE_PERCENT: f64 = 1.0;

/// The rows of those promises about which something was measured.
pub(super) fn rows(lines: &[&Line]) -> Vec<Row> {
    let mut rows = Vec::new();
    rows.extend(registrations(lines));
    rows.extend(calls(lines));
    rows.extend(long_calls(lines));
    rows.extend(split(lines));
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

/// Whether Romulus chose how long epochs were. Fixed ones are there to be compared, and the shortest starve an emulated host: how fast
/// and how good it is then is no promise.
fn own_epochs(line: &Line) -> bool {
    number(line, "epoch").is_none()
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
        .filter(|line| own_epochs(line))
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

/// The greatest of a column; `None` if a line has none.
fn most<'a>(lines: impl Iterator<Item = &'a Line>, column: &str) -> Option<f64> {
    let values: Option<Vec<f64>> = lines.map(|line| number(line, column)).collect();
    values?.into_iter().max_by(f64::total_cmp)
}

fn encrypted(line: &Line) -> bool {
    has(line, "what came after it", ENCRYPTED)
}

/// Calls that were up, or rang, when the power was cut: in our layout, and in the paper's.
fn calls(lines: &[&Line]) -> Vec<Row> {
    let mut rows = Vec::new();
    for mode in ["split", "net and no-net"] {
        let cut = || of(lines, CALLS.name, "mode", mode);
        if cut().any(encrypted) {
            rows.push(
                Row::new(
                    format!("{mode}: encrypted calls that went on without another handshake"),
                    "%",
                    least(cut().filter(|line| encrypted(line)), "share"),
                )
                .target(Target::AtLeast(100.0)),
            );
        }
        for transport in ["UDP", "TCP", "TLS"] {
            let over = || cut().filter(move |line| has(line, "transport", transport));
            let rang = |line: &Line| {
                cell(line, "what came after it").is_some_and(|cell| cell.text().ends_with(" rang"))
            };
            for (what, ringing) in [("established", false), ("ringing", true)] {
                let of_kind =
                    || over().filter(move |line| rang(line) == ringing && !encrypted(line));
                if of_kind().next().is_some() {
                    rows.push(
                        Row::new(
                            format!(
                                "{mode}: {what} calls preserved across a power cut, {transport}, worst kind"
                            ),
                            "%",
                            least(of_kind(), "share"),
                        )
                        .target(Target::AtLeast(100.0)),
                    );
                }
            }
        }
    }
    rows
}

/// The media of calls in `split` across a cut.
fn long_calls(lines: &[&Line]) -> Vec<Row> {
    let across = || {
        let of_calls = of(lines, CALLS.name, "mode", "split");
        let of_media = of(lines, MEDIA.name, "mode", "split")
            .filter(|line| has(line, "power cut", "yes") && own_epochs(line));
        of_calls
            .chain(of_media)
            .filter(|line| number(line, "longest gap").is_some())
    };
    let mut rows = Vec::new();
    if across().next().is_some() {
        let beyond = across().map(|line| Some(number(line, "longest gap")? - number(line, "T_b")?));
        let beyond: Option<Vec<f64>> = beyond.collect();
        let beyond = beyond.and_then(|all| all.into_iter().max_by(f64::total_cmp));
        rows.push(
            Row::new(
                "split: longest gap of a call's media beyond T_b, worst cut",
                "ms",
                beyond,
            )
            .target(Target::AtMost(BEYOND_T_B_MS)),
        );
    }
    let long = || across().filter(|line| number(line, "length").is_some_and(|s| s >= MINUTE));
    if long().next().is_some() {
        rows.push(
            Row::new(
                "split: MOS over a call of a minute with a power cut in it, worst call",
                "",
                least(long(), "MOS of the worst"),
            )
            .target(Target::AtLeast(MOS)),
        );
    }
    rows
}

/// What `split` costs media while nothing happens, beside the machine alone with as many calls.
fn split(lines: &[&Line]) -> Vec<Row> {
    let calm = |mode: &'static str| {
        of(lines, MEDIA.name, "mode", mode)
            .filter(|line| has(line, "power cut", "no") && own_epochs(line))
    };
    let pairs: Vec<(&Line, &Line)> = calm("split")
        .filter_map(|line| {
            let calls = number(line, "calls")?;
            let alone = calm("unprotected").find(|alone| number(alone, "calls") == Some(calls))?;
            let late = number(alone, "late")? / number(alone, "packets")? * 100.0;
            (late <= LATE_PERCENT).then_some((line, alone))
        })
        .collect();
    let mut rows = Vec::new();
    for (line, alone) in &pairs {
        let calls = number(line, "calls").unwrap_or_default();
        let difference = |column: &str| Some(number(line, column)? - number(alone, column)?);
        let pause = number(line, "pause p99").map(Target::AtMost);
        rows.extend([
            Row::new(
                format!(
                    "split, {calls} calls: delay p99 beyond the unprotected one, target: a pause"
                ),
                "ms",
                difference("delay p99"),
            )
            .peer(number(alone, "delay p99"))
            .target(pause),
            Row::new(
                format!("split, {calls} calls: loss, peer: unprotected"),
                "%",
                number(line, "lost"),
            )
            .peer(number(alone, "lost"))
            .target(number(alone, "lost").map(Target::AtMost)),
        ]);
    }
    let carried = || pairs.iter().map(|(line, _)| *line);
    if carried().next().is_some() {
        let held = least(carried(), "passed at once");
        rows.push(
            Row::new(
                "split: media packets that waited for no commit, fewest",
                "%",
                // Other packets may pass at once as well.
                held.map(|percent| percent.min(100.0)),
            )
            .target(Target::AtLeast(AT_ONCE)),
        );
    }
    let lost = most(carried(), "late");
    rows.extend(lost.map(|late| Row::new("split: packets too late to be heard", "", late)));
    rows
}

#[cfg(test)]
mod tests {
    use super::rows;
    use romulus_telephony::{
        report::{Cell, Form},
        sipstone::tables::{CALLS, Line, MEDIA, REGISTRATIONS, TAKEOVERS},
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
    fn with_fixed_epochs_no_time_is_promised_but_nothing_may_be_lost() {
        let mut fixed = good();
        let mut slow = takeover(Some(2000.0), 1.0, "yes");
        slow.cells[1] = 5.0.into();
        fixed.push(slow);
        assert_eq!(met(&fixed)[3..], [Some(false), Some(true), Some(true)]);
    }

    #[test]
    fn what_could_not_be_measured_is_not_met() {
        let mut silent = good();
        silent.push(takeover(None, 0.0, "yes"));
        assert_eq!(met(&silent)[5], Some(false));
    }

    /// A line with cells by their columns' names.
    fn line(form: &'static Form, cells: &[(&str, Cell)]) -> Line {
        let all = form.columns.iter().map(|column| {
            let mut found = cells.iter().filter(|(name, _)| *name == column.name);
            found
                .next()
                .map_or(Cell::Missing(()), |(_, cell)| cell.clone())
        });
        Line::new(form, all.collect())
    }

    fn call(after: &str, share: f64, gap: Option<f64>, mos: f64) -> Line {
        line(
            &CALLS,
            &[
                ("mode", "split".into()),
                ("transport", "TLS".into()),
                ("what came after it", after.into()),
                ("share", share.into()),
                ("longest gap", gap.into()),
                ("MOS of the worst", mos.into()),
                ("length", 60.0.into()),
                ("T_b", 500.0.into()),
            ],
        )
    }

    #[test]
    fn calls_are_preserved_and_their_gaps_short() {
        let good = [
            call("BYE by the caller", 100.0, Some(650.0), 4.0),
            call("answer to one that rang", 100.0, None, 0.0),
        ];
        assert_eq!(met(&good), [Some(true); 4]);
        let bad = [
            call("BYE by the caller", 100.0, Some(651.0), 3.9),
            call("BYE by the callee", 50.0, Some(20.0), 4.4),
            call("CANCEL of one that rang", 0.0, None, 0.0),
        ];
        assert_eq!(met(&bad), [Some(false); 4]);
    }

    fn media(mode: &str, p99: f64, lost: f64, at_once: f64) -> Line {
        line(
            &MEDIA,
            &[
                ("mode", mode.into()),
                ("calls", 2.0.into()),
                ("power cut", "no".into()),
                ("delay p99", p99.into()),
                ("lost", lost.into()),
                ("pause p99", 5.0.into()),
                ("passed at once", at_once.into()),
                ("packets", 1000.0.into()),
                ("late", 0.0.into()),
            ],
        )
    }

    #[test]
    fn what_the_machine_alone_does_not_carry_is_not_compared() {
        let mut alone = media("unprotected", 10.0, 0.0, 0.0);
        let late = MEDIA.columns.iter().position(|c| c.name == "late").unwrap();
        alone.cells[late] = 10.0.into();
        let over = [media("split", 5000.0, 80.0, 7.0), alone.clone()];
        assert_eq!(met(&over).len(), 4);
        alone.cells[late] = 11.0.into();
        let over = [media("split", 5000.0, 80.0, 7.0), alone];
        assert!(met(&over).is_empty());
    }

    #[test]
    fn split_is_compared_with_the_machine_alone() {
        let alone = media("unprotected", 10.0, 0.0, 0.0);
        let good = [media("split", 15.0, 0.0, 101.0), alone.clone()];
        assert_eq!(met(&good), [Some(true), Some(true), Some(true), None]);
        let bad = [media("split", 15.1, 0.1, 50.0), alone];
        assert_eq!(met(&bad), [Some(false), Some(false), Some(false), None]);
    }
}
