//! Tables whose columns are known beforehand.

use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

/// A column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// What it says.
    pub name: &'static str,
    /// The unit of its numbers; empty where they have none.
    pub unit: &'static str,
}

/// What a table looks like before anything is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// Its name, which is that of its files.
    pub name: &'static str,
    /// What it shows, for people.
    pub title: &'static str,
    /// Its columns.
    pub columns: &'static [Column],
}

/// One value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Cell {
    /// A number in its column's unit.
    Number(f64),
    /// A word.
    Text(String),
    /// It could not be measured, or there is none.
    Missing(()),
}

impl Cell {
    /// The number, if it is one.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Text(_) | Self::Missing(()) => None,
        }
    }

    /// For people and for CSV: numbers with as many digits as say something.
    pub fn text(&self) -> String {
        match self {
            Self::Number(value) => {
                let digits = match value.abs() {
                    _ if value.fract() == 0.0 => 0,
                    magnitude if magnitude >= 1000.0 => 0,
                    magnitude if magnitude >= 10.0 => 1,
                    magnitude if magnitude >= 0.1 => 2,
                    _ => 4,
                };
                format!("{value:.digits$}")
            }
            Self::Text(text) => text.clone(),
            Self::Missing(()) => String::new(),
        }
    }
}

impl From<f64> for Cell {
    /// What is no number (0/0) is missing: JSON has no word for it.
    fn from(value: f64) -> Self {
        if value.is_finite() {
            Self::Number(value)
        } else {
            Self::Missing(())
        }
    }
}

impl From<u32> for Cell {
    fn from(value: u32) -> Self {
        Self::Number(f64::from(value))
    }
}

impl From<Option<f64>> for Cell {
    fn from(value: Option<f64>) -> Self {
        value.map_or(Self::Missing(()), Self::from)
    }
}

impl From<&str> for Cell {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<String> for Cell {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

/// A row that has not as many cells as its table has columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// The table.
    pub table: &'static str,
    /// Its columns.
    pub columns: usize,
    /// The row's cells.
    pub cells: usize,
}

impl std::fmt::Display for Misfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            table,
            columns,
            cells,
        } = self;
        write!(
            f,
            "a row of {cells} cells does not fit into the {columns} columns of {table}"
        )
    }
}

impl std::error::Error for Misfit {}

/// A table.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// What it looks like.
    pub form: &'static Form,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty one.
    pub fn new(form: &'static Form) -> Self {
        Self {
            form,
            rows: Vec::new(),
        }
    }

    /// Adds a row.
    ///
    /// # Errors
    /// It has more or fewer cells than there are columns.
    pub fn add(&mut self, row: Vec<Cell>) -> Result<(), Misfit> {
        if row.len() != self.form.columns.len() {
            return Err(Misfit {
                table: self.form.name,
                columns: self.form.columns.len(),
                cells: row.len(),
            });
        }
        self.rows.push(row);
        Ok(())
    }

    /// Its rows, each with a cell for each column.
    pub fn rows(&self) -> &[Vec<Cell>] {
        &self.rows
    }

    /// The place of a column.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.form
            .columns
            .iter()
            .position(|column| column.name == name)
    }

    /// RFC 4180, with the names of the columns, and their units in brackets, in the first line.
    pub fn csv(&self) -> String {
        let mut text = String::new();
        let mut line = |fields: Vec<String>| {
            let fields: Vec<String> = fields.iter().map(|field| quoted(field)).collect();
            text.push_str(&fields.join(","));
            text.push_str("\r\n");
        };
        line(self.form.columns.iter().map(Column::title).collect());
        for row in &self.rows {
            line(row.iter().map(full).collect());
        }
        text
    }

    /// `{"table","title","columns":[{"name","unit"}],"rows":[{name: value}]}`; what is missing is `null`.
    pub fn json(&self) -> serde_json::Value {
        let columns = self.form.columns.iter();
        let columns: Vec<_> = columns
            .map(|column| serde_json::json!({"name": column.name, "unit": column.unit}))
            .collect();
        let rows = self.rows.iter().map(|row| {
            let cells = self.form.columns.iter().zip(row);
            let cells = cells.map(|(column, cell)| {
                let value = match cell {
                    Cell::Number(number) => serde_json::json!(number),
                    Cell::Text(text) => serde_json::json!(text),
                    Cell::Missing(()) => serde_json::Value::Null,
                };
                (column.name.to_owned(), value)
            });
            serde_json::Value::Object(cells.collect())
        });
        serde_json::json!({
            "table": self.form.name,
            "title": self.form.title,
            "columns": columns,
            "rows": rows.collect::<Vec<_>>(),
        })
    }

    /// The points of a plot: `x` and `y` of each row in which both are numbers, by what stands in the columns `by`. Rows for
    /// which `wanted` is false are left out.
    pub fn series(
        &self,
        x: &str,
        y: &str,
        by: &[&str],
        wanted: impl Fn(&[Cell]) -> bool,
    ) -> Vec<(String, Vec<(f64, f64)>)> {
        let (Some(x), Some(y)) = (self.column(x), self.column(y)) else {
            return Vec::new();
        };
        let by: Vec<usize> = by.iter().filter_map(|name| self.column(name)).collect();
        let mut series: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
        for row in self.rows.iter().filter(|row| wanted(row)) {
            let (Some(x), Some(y)) = (row[x].number(), row[y].number()) else {
                continue;
            };
            let words: Vec<String> = by.iter().map(|column| row[*column].text()).collect();
            let name = words.join(", ");
            match series.iter_mut().find(|(known, _)| *known == name) {
                Some((_, points)) => points.push((x, y)),
                None => series.push((name, vec![(x, y)])),
            }
        }
        for (_, points) in &mut series {
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
        }
        series
    }
}

impl Column {
    /// Its name, and its unit in brackets.
    pub fn title(&self) -> String {
        let mut title = self.name.to_owned();
        if !self.unit.is_empty() {
            // Writing to a string does not fail.
            let _ = write!(title, " [{}]", self.unit);
        }
        title
    }
}

/// A cell with all its digits.
fn full(cell: &Cell) -> String {
    match cell {
        Cell::Number(number) => number.to_string(),
        Cell::Text(_) | Cell::Missing(()) => cell.text(),
    }
}

/// A field of CSV. What a spreadsheet would take for a formula is kept from being one.
fn quoted(field: &str) -> String {
    let number = field.parse::<f64>().is_ok();
    let formula = !number && field.starts_with(['=', '+', '-', '@']);
    let field = if formula {
        format!("'{field}")
    } else {
        field.to_owned()
    };
    if field.contains(['"', ',', '\r', '\n']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field
    }
}

#[cfg(test)]
mod tests {
    use super::{Cell, Column, Form, Misfit, Table};
    use serde_json::json;

    const FORM: Form = Form {
        name: "t",
        title: "T",
        columns: &[
            Column {
                name: "who",
                unit: "",
            },
            Column {
                name: "rate",
                unit: "1/s",
            },
            Column {
                name: "time",
                unit: "ms",
            },
        ],
    };

    fn table(rows: &[(&str, f64, Option<f64>)]) -> Table {
        let mut table = Table::new(&FORM);
        for (who, rate, time) in rows {
            table
                .add(vec![(*who).into(), (*rate).into(), (*time).into()])
                .unwrap();
        }
        table
    }

    #[test]
    fn csv_is_quoted_and_no_formula() {
        let csv = table(&[
            ("a \"b\", c\nd", 1.5, None),
            ("=1+2", -3.0, Some(1.0 / 3.0)),
        ])
        .csv();
        assert_eq!(
            csv,
            "who,rate [1/s],time [ms]\r\n\"a \"\"b\"\", c\nd\",1.5,\r\n'=1+2,-3,0.3333333333333333\r\n"
        );
    }

    #[test]
    fn json_has_every_cell_by_its_columns_name() {
        let value = table(&[("a", 1.5, None)]).json();
        assert_eq!(
            value["rows"],
            json!([{"who": "a", "rate": 1.5, "time": null}])
        );
        assert_eq!(value["columns"][1], json!({"name": "rate", "unit": "1/s"}));
    }

    #[test]
    fn a_row_that_does_not_fit_is_refused() {
        let mut table = table(&[]);
        assert_eq!(
            table.add(vec![1_u32.into()]),
            Err(Misfit {
                table: "t",
                columns: 3,
                cells: 1
            })
        );
        assert!(table.rows().is_empty());
    }

    #[test]
    fn what_is_no_number_is_missing() {
        assert_eq!(Cell::from(f64::NAN), Cell::Missing(()));
        let cells = vec![Cell::from(1.5), Cell::from("x"), Cell::from(None)];
        let text = serde_json::to_string(&cells).unwrap();
        assert_eq!(text, "[1.5,\"x\",null]");
        assert_eq!(serde_json::from_str::<Vec<Cell>>(&text).unwrap(), cells);
    }

    #[test]
    fn series_are_sorted_and_told_apart() {
        let table = table(&[
            ("b", 2.0, Some(20.0)),
            ("a", 1.0, Some(5.0)),
            ("b", 1.0, Some(10.0)),
            ("b", 3.0, None),
        ]);
        assert_eq!(
            table.series("rate", "time", &["who"], |_| true),
            [
                ("b".to_owned(), vec![(1.0, 10.0), (2.0, 20.0)]),
                ("a".to_owned(), vec![(1.0, 5.0)])
            ]
        );
        assert!(table.series("rate", "nothing", &[], |_| true).is_empty());
        let only = table.series("rate", "time", &["who"], |row| row[0].text() == "a");
        assert_eq!(only.len(), 1);
    }
}
