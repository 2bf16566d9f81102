//! The tables that results go into.

use crate::report::{Cell, Column, Form, Misfit, Table};
use serde::{Deserialize, Serialize};

const fn column(name: &'static str, unit: &'static str) -> Column {
    Column { name, unit }
}

/// Experiment 1: a row for each rate that was tried.
pub const SIGNALLING: Form = Form {
    name: "signalling",
    title: "What registrations cost, by rate",
    columns: &[
        column("mode", ""),
        column("transport", ""),
        column("rate", "1/s"),
        column("wanted", ""),
        column("answered", ""),
        column("sent again", ""),
        column("p50", "ms"),
        column("p99", "ms"),
        column("sustained", ""),
        column("guest", "% of a core"),
        column("process", "% of a core"),
        column("vCPU threads", "% of a core"),
        column("device threads", "% of a core"),
        column("checkpoint thread", "% of a core"),
        column("sender thread", "% of a core"),
        column("other threads", "% of a core"),
        column("primary host", "% of a core"),
        column("of it softirq", "% of a core"),
        column("backup process", "% of a core"),
        column("backup host", "% of a core"),
        column("guest per 1000", "CPU s"),
        column("primary per 1000", "CPU s"),
        column("backup per 1000", "CPU s"),
        column("taken by others", "%"),
    ],
};

/// Experiments 1 and 5: the highest rate that was sustained.
pub const CAPACITY: Form = Form {
    name: "capacity",
    title: "The highest rate that was sustained",
    columns: &[
        column("experiment", ""),
        column("mode", ""),
        column("test", ""),
        column("highest", "1/s"),
        column("higher was tried", ""),
    ],
};

/// Experiment 2: a row for each transport and cut.
pub const REGISTRATIONS: Form = Form {
    name: "registrations",
    title: "Registrations while the host lost its power",
    columns: &[
        column("mode", ""),
        column("epoch", "ms"),
        column("cut", ""),
        column("transport", ""),
        column("wanted", ""),
        column("answered", "%"),
        column("sent again", ""),
        column("p50 before", "ms"),
        column("p50 after", "ms"),
        column("p99", "ms"),
        column("longest", "ms"),
    ],
};

/// Experiment 2: a row for each cut.
pub const TAKEOVERS: Form = Form {
    name: "takeovers",
    title: "The takeovers",
    columns: &[
        column("mode", ""),
        column("epoch", "ms"),
        column("cut", ""),
        column("T_b", "ms"),
        column("detected", "ms"),
        column("running", "ms"),
        column("first answer over UDP", "ms"),
        column("next answer over open TCP", "ms"),
        column("longest silence", "ms"),
        column("acknowledged", ""),
        column("lost", ""),
        column("connections kept", ""),
    ],
};

/// Experiment 3: a row for each number of calls.
pub const MEDIA: Form = Form {
    name: "media",
    title: "The media of calls: all streams of a run together",
    columns: &[
        column("mode", ""),
        column("epoch", "ms"),
        column("calls", ""),
        column("power cut", ""),
        column("length", "s"),
        column("preserved", "%"),
        column("streams", ""),
        column("packets", ""),
        column("lost", "%"),
        column("late", ""),
        column("reordered", ""),
        column("twice", ""),
        column("longest gap", "ms"),
        column("sender's gap", "ms"),
        column("delay p50", "ms"),
        column("delay p99", "ms"),
        column("delay max", "ms"),
        column("jitter", "ms"),
        column("jitter max", "ms"),
        column("MOS", ""),
        column("MOS of the worst", ""),
        column("sender late p99", "ms"),
        column("primary host", "% of a core"),
        column("per call-minute", "CPU s"),
        column("pause p99", "ms"),
        column("passed at once", "%"),
        column("T_b", "ms"),
    ],
};

/// Experiment 4: a row for each kind of call and transport.
pub const CALLS: Form = Form {
    name: "calls",
    title: "Calls in progress while the host lost its power",
    columns: &[
        column("layout", ""),
        column("mode", ""),
        column("cut", ""),
        column("transport", ""),
        column("what came after it", ""),
        column("calls", ""),
        column("preserved", ""),
        column("share", "%"),
        column("longest gap", "ms"),
        column("lost", "%"),
        column("jitter", "ms"),
        column("MOS of the worst", ""),
        column("length", "s"),
        column("T_b", "ms"),
    ],
};

/// Experiment 5: a row for each rate that was tried.
pub const STONES: Form = Form {
    name: "sipstone",
    title: "SIPstone's tests, by rate",
    columns: &[
        column("mode", ""),
        column("test", ""),
        column("rate", "1/s"),
        column("wanted", ""),
        column("answered", ""),
        column("failed", "%"),
        column("sent again", ""),
        column("p50", "ms"),
        column("p95", "ms"),
        column("sustained", ""),
    ],
};

/// Every table.
pub const FORMS: [&Form; 7] = [
    &SIGNALLING,
    &CAPACITY,
    &REGISTRATIONS,
    &TAKEOVERS,
    &MEDIA,
    &CALLS,
    &STONES,
];

/// A row of one of [`FORMS`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// The table's name.
    pub table: String,
    /// A cell for each column.
    pub cells: Vec<Cell>,
}

impl Line {
    /// A row for `form`.
    pub fn new(form: &Form, cells: Vec<Cell>) -> Self {
        Self {
            table: form.name.to_owned(),
            cells,
        }
    }

    /// Whether there is such a table, with as many columns.
    pub fn fits(&self) -> bool {
        FORMS
            .iter()
            .any(|form| form.name == self.table && form.columns.len() == self.cells.len())
    }
}

/// Sorts lines into their tables; tables without any are left out.
///
/// # Errors
/// A line does not fit.
pub fn tables<'a>(lines: impl Iterator<Item = &'a Line>) -> Result<Vec<Table>, Misfit> {
    let mut tables = FORMS.map(Table::new);
    for line in lines {
        let fitting = tables
            .iter_mut()
            .find(|table| table.form.name == line.table);
        if let Some(table) = fitting {
            table.add(line.cells.clone())?;
        }
    }
    Ok(tables
        .into_iter()
        .filter(|table| !table.rows().is_empty())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::{CAPACITY, FORMS, Line, tables};

    #[test]
    fn names_are_those_of_files_and_unique() {
        for (index, form) in FORMS.iter().enumerate() {
            assert!(
                form.name
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c == '-')
            );
            assert!(FORMS[..index].iter().all(|other| other.name != form.name));
            for (index, column) in form.columns.iter().enumerate() {
                let earlier = &form.columns[..index];
                assert!(earlier.iter().all(|other| other.name != column.name));
            }
        }
    }

    #[test]
    fn lines_go_into_their_tables() {
        let line = Line::new(
            &CAPACITY,
            vec![
                1_u32.into(),
                "net".into(),
                "UDP".into(),
                90.0.into(),
                "yes".into(),
            ],
        );
        assert!(line.fits());
        let all = tables([line.clone(), line.clone()].iter()).unwrap();
        assert_eq!((all.len(), all[0].rows().len()), (1, 2));
        let mut short = line;
        short.cells.pop();
        assert!(!short.fits() && tables([short].iter()).is_err());
    }
}
