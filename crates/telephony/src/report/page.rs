//! One page of HTML with all tables and plots in it: it can be sent by mail and opened anywhere.

use super::{Cell, Table};
use std::fmt::Write as _;

/// A plot.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// What it shows.
    pub caption: String,
    /// The files with its data, beside the page.
    pub data: Vec<String>,
    /// The plot as an SVG document.
    pub svg: String,
}

/// A part of the page.
#[derive(Debug, Clone, PartialEq)]
pub struct Section {
    /// Its heading.
    pub title: String,
    /// What was done and how it is to be read, a paragraph each.
    pub text: Vec<String>,
    /// Plots.
    pub figures: Vec<Figure>,
    /// Tables.
    pub tables: Vec<Table>,
}

/// The page.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// Its title.
    pub title: String,
    /// What was measured where, as names and values.
    pub facts: Vec<(String, String)>,
    /// Its parts.
    pub sections: Vec<Section>,
}

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}\
h1{font-size:1.6rem}h2{font-size:1.25rem;margin-top:2.5rem;border-bottom:1px solid #ccc}\
table{border-collapse:collapse;font-size:.82rem;margin:.5rem 0}th,td{padding:.2rem .5rem;border-bottom:1px solid #ddd;text-align:left}\
th{background:#f4f4f4;vertical-align:bottom}td.n{text-align:right;font-variant-numeric:tabular-nums}\
.wide{overflow-x:auto}figure{margin:1rem 0}figcaption{font-size:.85rem;color:#555}svg{max-width:100%;height:auto}\
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem}dt{color:#666}dd{margin:0}\
td.no{background:#fbdcdc}td.yes{background:#dff3df}";

impl Page {
    /// The page as text.
    pub fn html(&self) -> String {
        let mut out = String::new();
        let title = escape(&self.title);
        // Writing to a string does not fail.
        let _ = write!(
            out,
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n<style>{STYLE}</style>\n\
             </head>\n<body>\n<h1>{title}</h1>\n<dl>\n"
        );
        for (name, value) in &self.facts {
            let _ = writeln!(out, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(value));
        }
        out.push_str("</dl>\n");
        for section in &self.sections {
            section.write(&mut out);
        }
        out.push_str("</body>\n</html>\n");
        out
    }
}

impl Section {
    fn write(&self, out: &mut String) {
        let _ = writeln!(out, "<section>\n<h2>{}</h2>", escape(&self.title));
        for text in &self.text {
            let _ = writeln!(out, "<p>{}</p>", escape(text));
        }
        for figure in &self.figures {
            let data = figure.data.join(", ");
            let _ = writeln!(
                out,
                "<figure>\n{}\n<figcaption>{} ({})</figcaption>\n</figure>",
                within(&figure.svg),
                escape(&figure.caption),
                escape(&data)
            );
        }
        for table in &self.tables {
            write_table(table, out);
        }
        out.push_str("</section>\n");
    }
}

fn write_table(table: &Table, out: &mut String) {
    let _ = write!(
        out,
        "<h3>{}</h3>\n<div class=\"wide\"><table>\n<tr>",
        escape(table.form.title)
    );
    for column in table.form.columns {
        let _ = write!(out, "<th>{}</th>", escape(&column.title()));
    }
    out.push_str("</tr>\n");
    for row in table.rows() {
        out.push_str("<tr>");
        for cell in row {
            let text = escape(&cell.text());
            let _ = match (cell, text.as_str()) {
                (Cell::Number(_), _) => write!(out, "<td class=\"n\">{text}</td>"),
                (Cell::Missing(()), _) => write!(out, "<td class=\"n\">–</td>"),
                (Cell::Text(_), "yes" | "NO") => {
                    write!(out, "<td class=\"{}\">{text}</td>", text.to_lowercase())
                }
                (Cell::Text(_), _) => write!(out, "<td>{text}</td>"),
            };
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n");
}

/// An SVG document as a part of a page: without the XML declaration, and without the name of its language, which a page
/// knows.
fn within(svg: &str) -> String {
    let begin = svg.find("<svg").unwrap_or(0);
    svg[begin..].replace(" xmlns=\"http://www.w3.org/2000/svg\"", "")
}

/// Text as HTML, also within quotes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{Figure, Page, Section, escape};
    use crate::report::{Cell, Column, Form, Table};

    const EVIL: &str = "<script src='http://x'>\"&";

    const FORM: Form = Form {
        name: "t",
        title: "a < b",
        columns: &[
            Column {
                name: "<i>",
                unit: "ms",
            },
            Column {
                name: "met",
                unit: "",
            },
        ],
    };

    fn page() -> Page {
        let mut table = Table::new(&FORM);
        table.add(vec![EVIL.into(), "NO".into()]).unwrap();
        table.add(vec![1.5.into(), Cell::Missing(())]).unwrap();
        Page {
            title: EVIL.into(),
            facts: vec![(EVIL.into(), EVIL.into())],
            sections: vec![Section {
                title: EVIL.into(),
                text: vec![EVIL.into()],
                figures: vec![Figure {
                    caption: EVIL.into(),
                    data: vec![EVIL.into()],
                    svg: "<?xml version=\"1.0\"?><svg width=\"1\" xmlns=\"http://www.w3.org/2000/svg\"><text>t</text></svg>"
                        .into(),
                }],
                tables: vec![table],
            }],
        }
    }

    #[test]
    fn nothing_that_was_measured_is_markup() {
        let html = page().html();
        assert!(!html.contains("<script") && !html.contains("<i>"), "{html}");
        assert_eq!(html.matches("&lt;script src=&#39;").count(), 9, "{html}");
        assert!(html.contains("<td class=\"no\">NO</td>"));
        assert!(html.contains("<td class=\"n\">1.50</td><td class=\"n\">–</td>"));
    }

    #[test]
    fn plots_are_in_the_page_and_nothing_is_elsewhere() {
        let html = page().html().replace(&escape(EVIL), "");
        assert!(html.contains("<svg width=\"1\"><text>t</text></svg>"));
        for outside in [
            "http:", "https:", "src=", "href=", "url(", "@import", "<?xml",
        ] {
            assert!(!html.contains(outside), "{outside}: {html}");
        }
    }
}
