//! Steps shown to people while something takes its time.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Shows steps on standard error: a spinner each on a terminal, otherwise a plain line when a step begins and one when
/// it ends.
#[derive(Clone, Debug)]
pub struct Progress {
    output: Output,
}

#[derive(Clone, Debug)]
enum Output {
    Hidden,
    Lines,
    Spinners(MultiProgress),
}

impl Progress {
    /// Progress for people.
    pub fn new() -> Self {
        let output = if stderr().is_terminal() {
            Output::Spinners(MultiProgress::new())
        } else {
            Output::Lines
        };
        Self { output }
    }

    /// Shows nothing: for tests and for programs that are read by programs.
    pub fn hidden() -> Self {
        Self {
            output: Output::Hidden,
        }
    }

    /// Begins a step, for example "downloading the kernel". It ends with [`Step::done`]; a step that is dropped before
    /// that leaves the screen silently, for the error that is on its way says what happened.
    pub fn step(&self, text: impl Into<String>) -> Step {
        let text = text.into();
        let bar = match &self.output {
            Output::Hidden => None,
            Output::Lines => {
                eprintln!("  … {text}");
                None
            }
            Output::Spinners(all) => {
                let bar = all.add(ProgressBar::new_spinner());
                if let Ok(style) =
                    ProgressStyle::with_template("  {spinner} {wide_msg} {elapsed:.dim}")
                {
                    bar.set_style(style);
                }
                bar.set_message(text);
                bar.enable_steady_tick(Duration::from_millis(120));
                Some(bar)
            }
        };
        Step {
            progress: self.clone(),
            bar,
            started: Instant::now(),
        }
    }

    /// Says something that is not a step, for example a warning, without disturbing the spinners.
    pub fn note(&self, text: impl AsRef<str>) {
        self.line(&format!("  ! {}", text.as_ref()));
    }

    fn line(&self, text: &str) {
        match &self.output {
            Output::Hidden => {}
            Output::Lines => eprintln!("{text}"),
            Output::Spinners(all) => all.suspend(|| eprintln!("{text}")),
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

/// One step that is under way.
#[derive(Debug)]
pub struct Step {
    progress: Progress,
    bar: Option<ProgressBar>,
    started: Instant,
}

impl Step {
    /// Changes the text of the step. Without a terminal nothing is said: the lines would pile up.
    pub fn set(&self, text: impl Into<String>) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.into());
        }
    }

    /// Ends the step and leaves `text` on the screen with the time that it took.
    pub fn done(mut self, text: impl Into<String>) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let seconds = self.started.elapsed().as_secs_f64();
        self.progress
            .line(&format!("  ✓ {} ({seconds:.1} s)", text.into()));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
