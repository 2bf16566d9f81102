//! A line that changes every second while something goes on.

use images::Step;
use std::io::{IsTerminal as _, stderr};

/// Shows `text` as the step's newest state: in place on a terminal, as a line of its own elsewhere.
pub(crate) fn tell(step: &Step, text: &str) {
    if stderr().is_terminal() {
        step.set(text);
    } else {
        eprintln!("    {text}");
    }
}
