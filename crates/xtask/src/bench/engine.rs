//! `cargo xtask bench engine`: how long an epoch takes on this computer's own KVM. The product's loop over the tiny
//! guest, which runs where a kernel cannot; primary and backup are in one process, linked over the loopback interface.

use crate::{
    compile::{self, Program},
    report::{Report, Row, Target},
};
use anyhow::{Context as _, Result, bail};
use images::Progress;
use std::{
    fmt::Write as _,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, ExitCode, Stdio},
};

/// How much longer a pause may be with the most memory than with the least, at the same number of dirty pages.
const GROWTH: f64 = 1.3;

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Two cases only, and for seconds
    #[arg(long)]
    quick: bool,
    /// Print one JSON object on standard output and nothing else there
    #[arg(long)]
    json: bool,
}

/// Measures.
///
/// # Errors
/// It does not compile, or ends before its time.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if !Path::new("/dev/kvm").exists() {
        eprintln!(
            "skipped: this computer has no /dev/kvm, and without KVM there are no epochs to measure"
        );
        return Ok(ExitCode::SUCCESS);
    }
    let progress = Progress::new();
    let program = compile::static_program(Program::Example("romulus-engine", "epochs"), &progress)?;
    let mut report = Report::new("engine", lab::Kind::Namespaces);
    let step = progress.step("measuring epochs");
    let mut child = Command::new(program)
        .args(args.quick.then_some("--quick"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("running the measurement")?;
    let lines = child.stdout.take().context("its output")?;
    let mut case = String::new();
    for line in BufReader::new(lines).lines() {
        let line = line.context("reading the measurement's output")?;
        let row = parse(&line).with_context(|| format!("an unexpected line: {line}"))?;
        if let Some((name, _)) = row.what.split_once(": ")
            && name != case
        {
            name.clone_into(&mut case);
            step.set(format!("measuring epochs: {case}"));
        }
        report.rows.push(row);
    }
    let status = child.wait().context("waiting for the measurement")?;
    if !status.success() {
        bail!("the measurement failed: {status}");
    }
    step.done("measured epochs");
    report.rows.extend(growth(&report.rows));
    if args.json {
        report.print(true)?;
    } else {
        print!("{}", table(&report));
    }
    Ok(ExitCode::SUCCESS)
}

/// A row from a line of the measurement: what, unit, value, target, peer.
fn parse(line: &str) -> Option<Row> {
    let mut fields = line.split('\t');
    let (what, unit) = (fields.next()?, fields.next()?);
    let value: f64 = fields.next()?.parse().ok()?;
    let target = match fields.next()? {
        "" => None,
        bound => Some(Target::AtMost(bound.parse().ok()?)),
    };
    let peer = match fields.next()? {
        "" => None,
        peer => Some(peer.parse().ok()?),
    };
    let unit = ["µs", "1/s", "bytes", ""]
        .into_iter()
        .find(|u| *u == unit)?;
    Some(Row::new(what, unit, value).target(target).peer(peer))
}

/// How much longer the pause is with 4 GiB than with 256 MiB.
fn growth(rows: &[Row]) -> Option<Row> {
    let pause = |memory: &str| {
        let what = format!("500 pages, {memory} MiB, 1 vCPU: pause p50");
        rows.iter().find(|row| row.what == what)?.value
    };
    let ratio = pause("4096")? / pause("256")?;
    let row = Row::new("500 pages: pause with 4 GiB against 256 MiB", "", ratio);
    Some(row.target(Target::AtMost(GROWTH)))
}

/// The table for people: a line for each phase, its quantiles beside each other.
fn table(report: &Report) -> String {
    const QUANTILES: [&str; 4] = ["p50", "p99", "p99.9", "max"];
    let mut out = format!("engine · commit {}\n{}\n", report.commit, report.computer);
    let mut case = "";
    let mut rest = &report.rows[..];
    while let Some((row, after)) = rest.split_first() {
        let (name, what) = row.what.split_once(": ").unwrap_or(("", &row.what));
        if name != case {
            case = name;
            // Writing to a String can't fail.
            let _ = write!(out, "\n{case}\n{:<34}", "");
            out += &QUANTILES.map(|q| format!("{q:>10}")).concat();
            out += "  unit   target\n";
        }
        let verdict = |row: &Row| {
            let (Some(target), Some(met)) = (row.target, row.met) else {
                return String::new();
            };
            let verdict = if met { "met" } else { "NOT met" };
            format!("≤ {} {verdict}", f64::from(target))
        };
        if let Some(phase) = what.strip_suffix(" p50") {
            let row = &rest[..QUANTILES.len().min(rest.len())];
            let values = row
                .iter()
                .map(|r| format!("{:>10.0}", r.value.unwrap_or(0.0)));
            let verdicts: Vec<String> = row
                .iter()
                .zip(QUANTILES)
                .filter(|(r, _)| r.target.is_some())
                .map(|(r, q)| format!("{q} {}", verdict(r)))
                .collect();
            let values: String = values.collect();
            let _ = writeln!(out, "  {phase:<32}{values}  µs     {}", verdicts.join(", "));
            if row.iter().any(|r| r.peer.is_some()) {
                let peers = row
                    .iter()
                    .map(|r| format!("{:>10.0}", r.peer.unwrap_or(0.0)));
                let peers: String = peers.collect();
                let name = format!("{phase}, the machine alone");
                let _ = writeln!(out, "  {name:<32}{peers}  µs");
            }
            rest = &rest[row.len()..];
            continue;
        }
        let value = row.value.unwrap_or(0.0);
        let _ = writeln!(
            out,
            "  {what:<32}{value:>10.2}{:>32}{:<5}  {}",
            "",
            row.unit,
            verdict(row)
        );
        rest = after;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_rows() {
        let row = parse("50 pages, 256 MiB, 1 vCPU: pause p50\tµs\t149.5\t150\t140").unwrap();
        assert_eq!((row.value, row.met), (Some(149.5), Some(true)));
        assert_eq!(row.peer, Some(140.0));
        let row = parse("a: b\tµs\t1\t\t").unwrap();
        assert_eq!((row.met, row.peer), (None, None));
        for wrong in [
            "",
            "a\tµs",
            "a\tµs\t1\t",
            "a\tµs\tx\t\t",
            "a\tfurlongs\t1\t\t",
        ] {
            assert!(parse(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn growth_is_a_ratio() {
        let row = |memory: u32, value| {
            Row::new(
                format!("500 pages, {memory} MiB, 1 vCPU: pause p50"),
                "µs",
                value,
            )
        };
        let rows = [row(256, 200.0), row(4096, 300.0)];
        let growth = growth(&rows).unwrap();
        assert_eq!((growth.value, growth.met), (Some(1.5), Some(false)));
        assert!(super::growth(&rows[..1]).is_none());
    }
}
