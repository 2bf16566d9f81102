//! The report: a page of HTML with all plots and tables, and the data behind them as CSV and JSON.

use super::{
    progress::{Begun, Run},
    promises,
};
use crate::report::{
    Computer, Row,
    plot::{Plot, Series},
};
use anyhow::{Context as _, Result};
use romulus_telephony::{
    report::{Cell, Column, Figure, Form, Page, Section, Table},
    sipstone::{
        jobs::Effort,
        tables::{self, CALLS, CAPACITY, MEDIA, REGISTRATIONS, SIGNALLING, STONES, TAKEOVERS},
    },
};
use std::{fs, path::Path};

/// The page's file.
pub(super) const PAGE: &str = "index.html";

/// What is said of the run as a whole.
pub(super) struct Facts {
    pub(super) begun: Begun,
    pub(super) computer: Computer,
    /// Hosts are emulated.
    pub(super) emulated: bool,
}

/// The promises as a table.
const PROMISES: Form = Form {
    name: "promises",
    title: "Promises, and what became of them",
    columns: &[
        Column {
            name: "what",
            unit: "",
        },
        Column {
            name: "value",
            unit: "",
        },
        Column {
            name: "unit",
            unit: "",
        },
        Column {
            name: "target",
            unit: "",
        },
        Column {
            name: "met",
            unit: "",
        },
    ],
};

/// Writes all that was measured so far into `folder`.
///
/// # Errors
/// A file can't be written.
pub(super) fn write(folder: &Path, facts: &Facts, run: &Run) -> Result<()> {
    let tables = tables::tables(run.lines())?;
    let promised = promised(&promises::rows(&run.lines().collect::<Vec<_>>()))?;
    for table in tables.iter().chain([&promised]) {
        let base = folder.join(table.form.name);
        put(&base.with_extension("csv"), &table.csv())?;
        let json = serde_json::to_string_pretty(&table.json())?;
        put(&base.with_extension("json"), &(json + "\n"))?;
    }
    let page = Page {
        title: "Romulus: the paper's experiments, and SIPstone".to_owned(),
        facts: told(facts, run),
        sections: sections(&tables, promised)?,
    };
    put(&folder.join(PAGE), &page.html())
}

fn put(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

fn told(facts: &Facts, run: &Run) -> Vec<(String, String)> {
    let Begun {
        effort,
        seed,
        commit,
    } = &facts.begun;
    let effort = match effort {
        Effort::Full => "full",
        Effort::Quick => "quick: every figure is of a few seconds, and rough",
        Effort::Smallest => "smallest: shows that it works",
    };
    let hosts = if facts.emulated {
        "emulated, with one processor each: only what stands side by side says something"
    } else {
        "this computer's own KVM"
    };
    let mut told = vec![
        ("commit".to_owned(), commit.clone()),
        ("computer".to_owned(), facts.computer.to_string()),
        ("hosts".to_owned(), hosts.to_owned()),
        (
            "guest".to_owned(),
            "Debian 12, Kamailio 5.6; load by SIPp".to_owned(),
        ),
        ("form".to_owned(), effort.to_owned()),
        ("seed".to_owned(), seed.to_string()),
        ("measured for".to_owned(), format!("{:.0} s", run.seconds())),
    ];
    if let Some(taken) = run.taken_at_most() {
        told.push((
            "taken from this computer by others".to_owned(),
            format!("at most {taken:.0} % during a piece of work"),
        ));
    }
    told
}

fn promised(rows: &[Row]) -> Result<Table> {
    let mut table = Table::new(&PROMISES);
    for row in rows {
        let met = match row.met {
            None => Cell::Missing(()),
            Some(true) => "yes".into(),
            Some(false) => "NO".into(),
        };
        table.add(vec![
            row.what.as_str().into(),
            row.value.into(),
            row.unit.into(),
            row.target
                .map_or(Cell::Missing(()), |target| target.text().into()),
            met,
        ])?;
    }
    Ok(table)
}

/// A plot of a table: which columns, told apart by what.
struct View {
    form: &'static Form,
    title: &'static str,
    x: &'static str,
    y: &'static str,
    by: &'static [&'static str],
    /// Only rows in which these columns say this, or nothing where it is empty.
    only: &'static [(&'static str, &'static str)],
}

/// Rows with epochs of Romulus's choice, whose host stayed.
const CALM: &[(&str, &str)] = &[("epoch", ""), ("power cut", "no")];

impl View {
    fn shows(&self, row: &[Cell]) -> bool {
        let says = |(name, text): &(&str, &str)| {
            let columns = self.form.columns.iter().zip(row);
            let mut found = columns.filter(|(column, _)| column.name == *name);
            found.next().is_some_and(|(_, cell)| match cell {
                Cell::Missing(()) => text.is_empty(),
                cell => cell.text() == *text,
            })
        };
        self.only.iter().all(says)
    }

    /// The plot, if there is anything to be seen.
    fn draw(&self, tables: &[Table]) -> Result<Option<Figure>> {
        let Some(table) = tables
            .iter()
            .find(|table| table.form.name == self.form.name)
        else {
            return Ok(None);
        };
        let series = table.series(self.x, self.y, self.by, |row| self.shows(row));
        if series.is_empty() {
            return Ok(None);
        }
        let titled = |name: &str| {
            let columns = self.form.columns.iter();
            let mut found = columns.filter(|column| column.name == name);
            found.next().map_or_else(String::new, Column::title)
        };
        let series = series.into_iter().map(|(name, points)| Series {
            name,
            points,
            joined: true,
        });
        let plot = Plot {
            title: self.title,
            x: &titled(self.x),
            y: &titled(self.y),
            series: series.collect(),
            marks: Vec::new(),
        };
        let name = self.form.name;
        Ok(Some(Figure {
            caption: self.title.to_owned(),
            data: vec![format!("{name}.csv"), format!("{name}.json")],
            svg: plot.svg()?,
        }))
    }
}

/// A part of the page: its tables and plots.
struct Part {
    title: &'static str,
    text: &'static str,
    forms: &'static [&'static Form],
    views: &'static [View],
}

const PARTS: &[Part] = &[
    Part {
        title: "1. Signalling: what it costs",
        text: "One registration a call, at rates stepped up until more than a tenth of the requests had to be sent again, or would have been over UDP \
               (no answer within 500 ms), or one was not answered. \
               The guest's share is what its own kernel counts; romulus's threads are told by their names; a host's share is all that its kernel did, \
               bridge and software interrupts included. CPU seconds per 1000 registrations are of the whole host while the load went on.",
        forms: &[&CAPACITY, &SIGNALLING],
        views: &[
            View {
                form: &SIGNALLING,
                title: "The primary's host, by rate",
                x: "rate",
                y: "primary host",
                by: &["mode", "transport"],
                only: &[],
            },
            View {
                form: &SIGNALLING,
                title: "The guest, by rate",
                x: "rate",
                y: "guest",
                by: &["mode", "transport"],
                only: &[],
            },
            View {
                form: &SIGNALLING,
                title: "Processor time of the primary's host per 1000 registrations",
                x: "rate",
                y: "primary per 1000",
                by: &["mode", "transport"],
                only: &[],
            },
            View {
                form: &SIGNALLING,
                title: "The backup's host, by rate",
                x: "rate",
                y: "backup host",
                by: &["mode", "transport"],
                only: &[],
            },
            View {
                form: &SIGNALLING,
                title: "Median response time, by rate",
                x: "rate",
                y: "p50",
                by: &["mode", "transport"],
                only: &[],
            },
        ],
    },
    Part {
        title: "2. Registrations while the host loses its power",
        text: "UDP, one TCP connection and a connection each at the same time; the power of the host that runs the machine is cut at a random moment. \
               Over UDP what was lost is sent again and hides an outage, so that repeated requests and times are shown as well. Afterwards the registrar \
               is asked for every contact that it acknowledged.",
        forms: &[&REGISTRATIONS, &TAKEOVERS],
        views: &[
            View {
                form: &REGISTRATIONS,
                title: "Registrations answered across a cut, by the epochs' length",
                x: "epoch",
                y: "answered",
                by: &["mode", "transport"],
                only: &[],
            },
            View {
                form: &REGISTRATIONS,
                title: "The longest response, by the epochs' length",
                x: "epoch",
                y: "longest",
                by: &["mode", "transport"],
                only: &[],
            },
            View {
                form: &REGISTRATIONS,
                title: "Median response time before the cut, by the epochs' length",
                x: "epoch",
                y: "p50 before",
                by: &["mode", "transport"],
                only: &[],
            },
        ],
    },
    Part {
        title: "3. Media",
        text: "Calls with media both ways (G.711, 20 ms a packet), set up over UDP by one and the same program that sends, paces and receives every packet \
               at both ends. Delay is one-way, through the relay and back, by one clock. MOS is of the E-model (G.107), with a playout buffer that does not \
               adapt. Passed at once is how many of the relay's packets did not wait for a commit; it is a little above 100 % where other packets did not, either.",
        forms: &[&MEDIA],
        views: &[
            View {
                form: &MEDIA,
                title: "99 of 100 packets took at most, by calls",
                x: "calls",
                y: "delay p99",
                by: &["mode"],
                only: CALM,
            },
            View {
                form: &MEDIA,
                title: "Loss, by calls",
                x: "calls",
                y: "lost",
                by: &["mode"],
                only: CALM,
            },
            View {
                form: &MEDIA,
                title: "Jitter, by calls",
                x: "calls",
                y: "jitter",
                by: &["mode"],
                only: CALM,
            },
            View {
                form: &MEDIA,
                title: "Mean opinion score, by calls",
                x: "calls",
                y: "MOS",
                by: &["mode"],
                only: CALM,
            },
            View {
                form: &MEDIA,
                title: "99 of 100 packets took at most, by the epochs' length",
                x: "epoch",
                y: "delay p99",
                by: &["mode", "power cut"],
                only: &[],
            },
            View {
                form: &MEDIA,
                title: "Mean opinion score, by the epochs' length",
                x: "epoch",
                y: "MOS",
                by: &["mode", "power cut"],
                only: &[],
            },
        ],
    },
    Part {
        title: "4. Calls in progress while the host loses its power",
        text: "Over UDP, TCP and TLS at the same time: calls that are up, with media; calls that ring and are answered after the cut; and dialogs from before in \
               which a re-INVITE, a BYE of either end or a CANCEL comes after it. A call is preserved if it ended as it was to at both ends and media flowed both ways \
               after the cut. The paper's layout has the SIP server and the relay in two machines on the same pair of hosts, in net and in no-net; ours has both in one \
               machine in split.",
        forms: &[&CALLS],
        views: &[],
    },
    Part {
        title: "5. SIPstone",
        text: "SIPstone's five tests with random (Poisson) arrivals over UDP. A rate is sustained if at most 5 % of its transactions fail, 95 % are answered \
               within 2 s, and at most a tenth of the requests was sent again. Registrations are not authenticated.",
        forms: &[&STONES],
        views: &[
            View {
                form: &STONES,
                title: "Failed transactions, by rate",
                x: "rate",
                y: "failed",
                by: &["test", "mode"],
                only: &[],
            },
            View {
                form: &STONES,
                title: "95 of 100 transactions were answered within, by rate",
                x: "rate",
                y: "p95",
                by: &["test", "mode"],
                only: &[],
            },
        ],
    },
];

fn sections(tables: &[Table], promised: Table) -> Result<Vec<Section>> {
    let mut sections = Vec::new();
    if !promised.rows().is_empty() {
        sections.push(Section {
            title: "What is to be reached".to_owned(),
            text: Vec::new(),
            figures: Vec::new(),
            tables: vec![promised],
        });
    }
    for part in PARTS {
        let of_part = |table: &&Table| part.forms.iter().any(|form| form.name == table.form.name);
        let shown: Vec<Table> = tables.iter().filter(of_part).cloned().collect();
        let figures = part.views.iter().map(|view| view.draw(tables));
        let figures: Vec<Figure> = figures
            .filter_map(Result::transpose)
            .collect::<Result<_>>()?;
        if shown.is_empty() {
            continue;
        }
        sections.push(Section {
            title: part.title.to_owned(),
            text: vec![part.text.to_owned()],
            figures,
            tables: shown,
        });
    }
    Ok(sections)
}

#[cfg(test)]
mod tests {
    use super::{CALM, PARTS, View};
    use romulus_telephony::{report::Cell, sipstone::tables::FORMS, sipstone::tables::MEDIA};

    #[test]
    fn every_table_has_its_part_and_every_plot_its_columns() {
        for form in FORMS {
            assert!(
                PARTS.iter().any(|part| part.forms.contains(&form)),
                "{} is shown nowhere",
                form.name
            );
        }
        for view in PARTS.iter().flat_map(|part| part.views) {
            let only = view.only.iter().map(|(name, _)| name);
            for name in [view.x, view.y].iter().chain(view.by).chain(only) {
                assert!(
                    view.form.columns.iter().any(|column| column.name == *name),
                    "{}: {name}",
                    view.title
                );
            }
        }
    }

    #[test]
    fn a_plot_shows_only_the_rows_that_it_is_of() {
        let view = View {
            form: &MEDIA,
            title: "",
            x: "calls",
            y: "lost",
            by: &[],
            only: CALM,
        };
        let row = |epoch: Cell, cut: &str| ["split".into(), epoch, 1.0.into(), cut.into()];
        assert!(view.shows(&row(Cell::Missing(()), "no")));
        assert!(!view.shows(&row(Cell::Missing(()), "yes")));
        assert!(!view.shows(&row(25.0.into(), "no")));
    }
}
