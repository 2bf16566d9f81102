//! Takes keys out of a parsed TOML table one by one, so that what is left over is what nobody knows.

use super::problem::Problem;
use std::{cell::RefCell, fmt::Display, ops::Range};
use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue},
};

/// A value with its place.
pub(super) type Value<'i> = Spanned<DeValue<'i>>;

/// All problems found so far. Reading goes on after one, so that the operator sees them all at once.
#[derive(Default)]
pub(super) struct Problems(RefCell<Vec<Problem>>);

impl Problems {
    /// Notes a problem at a place; returns `None` to stand for the value that could not be read.
    pub(super) fn at<T>(&self, span: Range<usize>, message: impl Into<String>) -> Option<T> {
        self.0.borrow_mut().push(Problem {
            span: Some(span),
            message: message.into(),
        });
        None
    }

    /// Notes that something is missing from the file.
    pub(super) fn missing<T>(&self, message: impl Into<String>) -> Option<T> {
        self.0.borrow_mut().push(Problem {
            span: None,
            message: message.into(),
        });
        None
    }

    /// Every problem noted.
    pub(super) fn into_inner(self) -> Vec<Problem> {
        self.0.into_inner()
    }
}

/// A table whose keys are taken one after the other.
pub(super) struct Section<'i, 'p> {
    /// How the section is written in the file, such as `[boot]`; empty at the top.
    title: String,
    /// Where the section begins, for keys that it lacks; `None` where it is the whole file or is not there.
    span: Option<Range<usize>>,
    entries: Vec<(Spanned<DeString<'i>>, Value<'i>)>,
    known: Vec<&'static str>,
    problems: &'p Problems,
}

impl<'i, 'p> Section<'i, 'p> {
    pub(super) fn new(
        title: &str,
        span: Option<Range<usize>>,
        table: DeTable<'i>,
        problems: &'p Problems,
    ) -> Self {
        Self {
            title: title.to_owned(),
            span,
            entries: table.into_iter().collect(),
            known: Vec::new(),
            problems,
        }
    }

    /// The value of `key`, if the file has it.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Value<'i>> {
        self.known.push(key);
        let at = self
            .entries
            .iter()
            .position(|(name, _)| name.get_ref() == key)?;
        Some(self.entries.swap_remove(at).1)
    }

    /// The value of `key`; a problem if the file lacks it.
    pub(super) fn require(&mut self, key: &'static str, example: &str) -> Option<Value<'i>> {
        let value = self.take(key);
        if value.is_none() {
            let title = &self.title;
            let text = if title.is_empty() {
                format!("`{key}` is missing; write for example `{key} = {example}`")
            } else {
                format!("`{key}` is missing in {title}; write for example `{key} = {example}`")
            };
            match &self.span {
                Some(span) => self.problems.at::<()>(span.clone(), text),
                None => self.problems.missing(text),
            };
        }
        value
    }

    /// Text.
    pub(super) fn string(&self, key: &str, value: Value<'i>) -> Option<Spanned<String>> {
        let span = value.span();
        match value.into_inner() {
            DeValue::String(text) => Some(Spanned::new(span, text.into_owned())),
            other => self.wrong_type(span, key, "text in quotes", &other),
        }
    }

    /// Text that `read` turns into a value; its error says what is allowed.
    pub(super) fn parse<T, E: Display>(
        &self,
        key: &str,
        value: Value<'i>,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<Spanned<T>> {
        let text = self.string(key, value)?;
        let span = text.span();
        match read(text.get_ref()) {
            Ok(value) => Some(Spanned::new(span, value)),
            Err(error) => self.problems.at(span, format!("`{key}`: {error}")),
        }
    }

    /// A list of texts, each of which `read` turns into a value.
    pub(super) fn list<T, E: Display>(
        &self,
        key: &str,
        value: Value<'i>,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Option<Vec<T>> {
        let span = value.span();
        match value.into_inner() {
            DeValue::Array(array) => {
                // Every wrong one is told, not only the first.
                let parsed: Vec<Option<T>> = array
                    .into_iter()
                    .map(|element| self.parse(key, element, &read).map(Spanned::into_inner))
                    .collect();
                parsed.into_iter().collect()
            }
            other => self.wrong_type(span, key, "a list of texts in quotes", &other),
        }
    }

    /// A whole number from `least` to `most`.
    pub(super) fn integer(
        &self,
        key: &str,
        value: Value<'i>,
        least: u64,
        most: u64,
    ) -> Option<u64> {
        let span = value.span();
        let expected = format!("a whole number from {least} to {most}");
        match value.into_inner() {
            DeValue::Integer(number) => {
                match u64::from_str_radix(number.as_str(), number.radix()) {
                    Ok(number) if (least..=most).contains(&number) => Some(number),
                    // Too large for u64, or negative, is out of range like any other.
                    _ => self
                        .problems
                        .at(span, format!("`{key}` must be {expected}")),
                }
            }
            other => self.wrong_type(span, key, &expected, &other),
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self, key: &str, value: Value<'i>) -> Option<bool> {
        let span = value.span();
        match value.into_inner() {
            DeValue::Boolean(value) => Some(value),
            other => self.wrong_type(span, key, "true or false", &other),
        }
    }

    /// A number with or without a fraction.
    pub(super) fn number(&self, key: &str, value: Value<'i>) -> Option<Spanned<f64>> {
        let span = value.span();
        let number = match value.get_ref() {
            DeValue::Float(number) => number.as_str().parse().ok(),
            DeValue::Integer(number) if number.radix() == 10 => number.as_str().parse().ok(),
            _ => None,
        };
        match number {
            Some(number) => Some(Spanned::new(span, number)),
            None => self.wrong_type(span, key, "a number, such as 0.8", &value.into_inner()),
        }
    }

    /// The section `[key]`, if the file has it.
    pub(super) fn optional_section(&mut self, key: &'static str) -> Option<Self> {
        let there = self
            .entries
            .iter()
            .any(|(name, _)| name.get_ref().as_ref() == key);
        if there {
            Some(self.section(key))
        } else {
            self.known.push(key);
            None
        }
    }

    /// The section `[key]`, or an empty one where the file has none.
    pub(super) fn section(&mut self, key: &'static str) -> Self {
        let title = format!("[{key}]");
        match self.take(key) {
            None => Self::new(&title, None, DeTable::default(), self.problems),
            Some(value) => {
                let span = value.span();
                match value.into_inner() {
                    DeValue::Table(table) => Self::new(&title, Some(span), table, self.problems),
                    other => {
                        self.wrong_type::<()>(
                            span.clone(),
                            key,
                            &format!("a section, {title}"),
                            &other,
                        );
                        Self::new(&title, Some(span), DeTable::default(), self.problems)
                    }
                }
            }
        }
    }

    /// Every `[[key]]`, in the order of the file.
    pub(super) fn sections(&mut self, key: &'static str) -> Vec<Self> {
        let Some(value) = self.take(key) else {
            return Vec::new();
        };
        let span = value.span();
        let title = match self.title.trim_matches(['[', ']']) {
            "" => format!("[[{key}]]"),
            outer => format!("[[{outer}.{key}]]"),
        };
        let expected = format!("a list of sections, each written {title} with two brackets");
        let array = match value.into_inner() {
            DeValue::Array(array) => array,
            other => {
                self.wrong_type::<()>(span, key, &expected, &other);
                return Vec::new();
            }
        };
        let mut sections = Vec::new();
        for element in array {
            let span = element.span();
            match element.into_inner() {
                DeValue::Table(table) => {
                    sections.push(Self::new(&title, Some(span), table, self.problems));
                }
                other => {
                    self.wrong_type::<()>(span, key, &expected, &other);
                }
            }
        }
        sections
    }

    /// Where the section begins.
    pub(super) fn span(&self) -> Range<usize> {
        self.span.clone().unwrap_or(0..0)
    }

    /// Ends the section: whatever was not taken is unknown, with the nearest right key.
    pub(super) fn finish(self) {
        let place = match self.title.as_str() {
            "" => String::new(),
            title => format!(" in {title}"),
        };
        for (key, _) in &self.entries {
            let name = key.get_ref().as_ref();
            let advice = match nearest(name, &self.known) {
                Some(right) => format!("did you mean `{right}`?"),
                None => format!("known here: {}", self.known.join(", ")),
            };
            self.problems.at::<()>(
                key.span(),
                format!("unknown key `{}`{place}; {advice}", name.escape_debug()),
            );
        }
    }

    fn wrong_type<T>(
        &self,
        span: Range<usize>,
        key: &str,
        expected: &str,
        found: &DeValue<'_>,
    ) -> Option<T> {
        self.problems.at(
            span,
            format!("`{key}` must be {expected}, not {}", found.type_str()),
        )
    }
}

/// The known word that a misspelt one most likely means.
fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let word = word.to_lowercase().replace('-', "_");
    known
        .iter()
        .map(|right| (strsim::damerau_levenshtein(&word, right), *right))
        // A third of the letters wrong is a slip of the finger; more is another word.
        .filter(|(distance, right)| *distance <= (right.len().max(word.len())).div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, right)| right)
}
