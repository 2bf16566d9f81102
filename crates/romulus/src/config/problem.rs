//! Problems in a machine file, shown with their line.

use std::{
    fmt::{self, Write as _},
    io,
    ops::Range,
    path::{Path, PathBuf},
    string::FromUtf8Error,
};

/// Problems shown at most; a file that is no machine file at all should not fill the screen.
const SHOWN_MAX: usize = 20;
/// Characters of a source line shown at most.
const LINE_MAX: usize = 160;

/// One thing wrong in a machine file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Bytes of the text that it is about; `None` for something that is missing from the file as a whole.
    pub(super) span: Option<Range<usize>>,
    /// What is wrong and what would be right.
    pub(super) message: String,
}

/// Why a machine file cannot be used: every problem found in it, each with line, column and the line itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    file: PathBuf,
    text: String,
    problems: Vec<Problem>,
}

impl ConfigError {
    pub(super) fn new(file: &Path, text: &str, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| problem.span.as_ref().map_or(usize::MAX, |span| span.start));
        Self {
            file: file.to_owned(),
            text: text.to_owned(),
            problems,
        }
    }

    pub(super) fn unreadable(file: &Path, source: &io::Error) -> Self {
        let advice = match source.kind() {
            io::ErrorKind::NotFound => {
                "; give the path of a machine file, such as /etc/romulus/NAME.toml"
            }
            io::ErrorKind::PermissionDenied => "; run as a user who may read it",
            io::ErrorKind::IsADirectory => "; give the machine file inside it",
            _ => "",
        };
        Self::whole_file(
            file,
            format!("cannot read the machine file: {source}{advice}"),
        )
    }

    pub(super) fn not_text(file: &Path, error: &FromUtf8Error) -> Self {
        let at = error.utf8_error().valid_up_to();
        Self::whole_file(
            file,
            format!("not a machine file: byte {at} is not UTF-8 text"),
        )
    }

    fn whole_file(file: &Path, message: String) -> Self {
        Self::new(
            file,
            "",
            vec![Problem {
                span: None,
                message,
            }],
        )
    }

    /// Whether all that is wrong is that a protected machine has no uuid.
    pub fn lacks_only_uuid(&self) -> bool {
        matches!(&*self.problems, [problem] if problem.message == super::schema::NO_UUID)
    }

    /// The problems' texts, in the order of the file.
    #[cfg(test)]
    pub(crate) fn messages(&self) -> Vec<&str> {
        self.problems
            .iter()
            .map(|problem| problem.message.as_str())
            .collect()
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        for (index, problem) in self.problems.iter().take(SHOWN_MAX).enumerate() {
            if index > 0 {
                f.write_char('\n')?;
            }
            match &problem.span {
                None => write!(f, "{file}: {}", problem.message)?,
                Some(span) => {
                    let place = Place::of(&self.text, span);
                    let Place {
                        line,
                        column,
                        source,
                        mark,
                        ..
                    } = &place;
                    let indent = place.indent();
                    write!(f, "{file}:{line}:{column}: {}", problem.message)?;
                    write!(f, "\n  {line:>4} | {source}\n       | {indent}{mark}")?;
                }
            }
        }
        match self.problems.len().saturating_sub(SHOWN_MAX) {
            0 => Ok(()),
            more => write!(f, "\n{file}: and {more} more problems"),
        }
    }
}

impl std::error::Error for ConfigError {}

/// Where a span lies, for people.
struct Place<'a> {
    line: usize,
    column: usize,
    source: String,
    mark: String,
    before: &'a str,
}

impl<'a> Place<'a> {
    fn of(text: &'a str, span: &Range<usize>) -> Self {
        let start = floor_boundary(text, span.start);
        let end = floor_boundary(text, span.end.max(start));
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let before = &text[line_start..start];
        let marked = text[start..end.min(line_end).max(start)]
            .chars()
            .count()
            .max(1);
        let column = before.chars().count() + 1;
        Self {
            line: text[..start].matches('\n').count() + 1,
            column,
            // Control characters would let a file write to the operator's terminal.
            source: text[line_start..line_end]
                .trim_end_matches('\r')
                .chars()
                .take(LINE_MAX)
                .map(|c| {
                    if c.is_control() && c != '\t' {
                        '\u{fffd}'
                    } else {
                        c
                    }
                })
                .collect(),
            mark: "^".repeat(marked.min((LINE_MAX + 1).saturating_sub(column).max(1))),
            before,
        }
    }

    /// White space as wide as the text before the mark, whatever its tabs are set to.
    fn indent(&self) -> String {
        self.before
            .chars()
            .take(LINE_MAX)
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect()
    }
}

/// The largest character boundary of `text` that is not after `at`.
fn floor_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}
