//! The rows of the table: what happens, what is to follow, and how it is done.

mod arbiter;
mod etcd;
mod guests;
mod hosts;
mod load;
mod paths;
mod processes;
mod split;
mod switchovers;

use super::stand::Stand;
use anyhow::Result;

/// Where the machine's disk is, on both hosts.
pub(crate) const IMAGE: &str = "/images/data.img";

/// How a pair is set up, where it is not the usual way. Rows of one setting share a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Setting {
    /// Whether the arbiter's records are in etcd.
    pub(crate) etcd: bool,
    /// The pair's mode.
    pub(crate) mode: Option<&'static str>,
}

/// One event, and what it does to a protected pair.
pub(crate) struct Row {
    /// Its name: `table/NAME` for whoever asks for it.
    pub(crate) name: &'static str,
    /// What happens.
    pub(crate) event: &'static str,
    /// What is to follow.
    pub(crate) follows: &'static str,
    /// Whether it is part of the short form.
    pub(crate) short: bool,
    /// How the pair is set up.
    pub(crate) setting: Setting,
    /// Lets it happen, and leaves the machine protected.
    pub(crate) play: fn(&mut Stand<'_>) -> Result<()>,
}

impl Row {
    const fn new(
        name: &'static str,
        event: &'static str,
        follows: &'static str,
        play: fn(&mut Stand<'_>) -> Result<()>,
    ) -> Self {
        Self {
            name,
            event,
            follows,
            short: false,
            setting: Setting {
                etcd: false,
                mode: None,
            },
            play,
        }
    }

    const fn short(mut self) -> Self {
        self.short = true;
        self
    }

    const fn mode(mut self, mode: &'static str) -> Self {
        self.setting.mode = Some(mode);
        self
    }

    const fn etcd(mut self) -> Self {
        self.setting.etcd = true;
        self
    }
}

/// All rows, in the order in which they run.
pub(crate) fn all() -> Vec<&'static Row> {
    [
        hosts::ALL,
        paths::ALL,
        switchovers::ALL,
        processes::ALL,
        arbiter::ALL,
        etcd::ALL,
        guests::ALL,
        load::ALL,
        split::ALL,
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::all;
    use std::collections::HashSet;

    #[test]
    fn rows_have_names_of_their_own_and_say_what_is_to_follow() {
        let names: HashSet<&str> = all().iter().map(|row| row.name).collect();
        assert_eq!(names.len(), all().len());
        for row in all() {
            assert!(row.name.chars().all(|c| c.is_ascii_lowercase() || c == '-'));
            assert!(!row.event.is_empty() && !row.follows.is_empty());
        }
    }
}
