//! The report of `cargo xtask sipstone`: its smallest form, from end to end.

use super::{Scenario, case::Case};
use crate::{
    assets::Image,
    sipstone::{self, Begun, Measured},
};
use anyhow::{Context as _, Result, ensure};
use romulus_telephony::sipstone::{
    jobs::{EXPERIMENTS, Effort},
    tables::FORMS,
};
use serde_json::Value;
use std::{fs, path::Path};

/// This file's scenarios.
pub(super) const ALL: &[Scenario] = &[Scenario::pair(
    "sipstone/report",
    "registrations at a rate and across a power cut, and the report of them",
    &[Image::SIPSTONE_12],
    report,
)];

/// What the smallest form measures: tables, and how many rows each has at least.
const TABLES: [(&str, usize); 4] = [
    ("signalling", 1),
    ("capacity", 1),
    ("registrations", 3),
    ("takeovers", 1),
];

fn report(case: &Case) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let begun = Begun {
        effort: Effort::Smallest,
        seed: 5,
        commit: "test".to_owned(),
    };
    let measure = || {
        let begun = begun.clone();
        sipstone::measure(
            &case.lab,
            &case.assets,
            case.logs(),
            begun,
            true,
            &EXPERIMENTS,
            folder.path(),
        )
    };
    let Measured { report, failures } = measure()?;
    ensure!(failures.is_empty(), "not measured: {}", failures.join("; "));
    for (name, rows) in TABLES {
        table(folder.path(), name, rows)?;
    }
    page(folder.path())?;
    ensure!(
        report.rows.iter().all(|row| row.target.is_some()) && report.rows.len() == 6,
        "{} promises, of which not each has a target",
        report.rows.len()
    );
    for row in report.rows.iter().filter(|row| row.unit == "%") {
        ensure!(row.met == Some(true), "{}: {:?}", row.what, row.value);
    }
    Ok(())
}

/// A table's two files say the same, and every cell that has to be there is.
fn table(folder: &Path, name: &str, rows: usize) -> Result<()> {
    let read = |ending: &str| {
        let path = folder.join(format!("{name}.{ending}"));
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    let json: Value = serde_json::from_str(&read("json")?)?;
    let of_table = json["rows"].as_array().context("a table without rows")?;
    ensure!(of_table.len() >= rows, "{name} has {} rows", of_table.len());
    let csv = read("csv")?;
    ensure!(
        csv.lines().count() == of_table.len() + 1,
        "{name}.csv and {name}.json differ"
    );
    let form = FORMS.iter().find(|form| form.name == name);
    let form = form.context("there is no such table")?;
    for row in of_table {
        for column in form.columns {
            let value = row
                .get(column.name)
                .with_context(|| format!("{name} has a row without {}", column.name))?;
            // The interval is Romulus's own, and the clock of a lost host is not asked.
            let may_miss = ["epoch"].contains(&column.name);
            ensure!(
                may_miss || !value.is_null(),
                "{name}: nothing for {} in {row}",
                column.name
            );
        }
    }
    Ok(())
}

/// The page has plots and tables, and needs nothing that is not in it.
fn page(folder: &Path) -> Result<()> {
    let html = fs::read_to_string(folder.join("index.html"))?;
    for inside in [
        "<svg",
        "<table",
        "<circle",
        "seed",
        "What is to be reached",
        "TCP_N",
    ] {
        ensure!(html.contains(inside), "the page has no {inside}");
    }
    for outside in [
        "http:", "https:", "src=", "href=", "url(", "@import", "<script",
    ] {
        ensure!(!html.contains(outside), "the page refers to {outside}");
    }
    Ok(())
}
