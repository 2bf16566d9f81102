//! `romulus doctor`: can this host run machines, and if not, what to do.

mod host;
mod kvm;

use crate::{
    cli, commands,
    exit::{Code, Failure},
};
use serde::Serialize;
use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _},
};

/// How a finding bears on machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// As it should be.
    Ok,
    /// Machines run, but something is worse than it could be.
    Warning,
    /// Machines do not run.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    /// What was looked at: a short name that stays the same, for programs.
    check: &'static str,
    level: Level,
    /// What was found.
    text: String,
    /// What to do about it; `None` where all is well.
    advice: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, text: impl Into<String>) -> Self {
        Self {
            check,
            level: Level::Ok,
            text: text.into(),
            advice: None,
        }
    }

    fn warning(check: &'static str, text: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            check,
            level: Level::Warning,
            text: text.into(),
            advice: Some(advice.into()),
        }
    }

    fn problem(check: &'static str, text: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            check,
            level: Level::Problem,
            text: text.into(),
            advice: Some(advice.into()),
        }
    }
}

/// Everything that was found.
#[derive(Debug, Serialize)]
struct Report {
    /// Whether machines can run here: there is no problem.
    can_run: bool,
    findings: Vec<Finding>,
}

impl Report {
    fn new(findings: Vec<Finding>) -> Self {
        Self {
            can_run: findings
                .iter()
                .all(|finding| finding.level != Level::Problem),
            findings,
        }
    }

    fn text(&self, colour: bool) -> String {
        let width = self
            .findings
            .iter()
            .map(|finding| finding.check.len())
            .max()
            .unwrap_or(0);
        let mut text = String::new();
        for finding in &self.findings {
            let (word, code) = match finding.level {
                Level::Ok => ("ok", "32"),
                Level::Warning => ("warning", "33"),
                Level::Problem => ("problem", "31"),
            };
            let word = format!("{word:<8}");
            let word = if colour {
                format!("\x1b[{code}m{word}\x1b[0m")
            } else {
                word
            };
            let _ = writeln!(text, "{word} {:<width$}  {}", finding.check, finding.text);
            if let Some(advice) = &finding.advice {
                let _ = writeln!(text, "{:9}{:width$}  -> {advice}", "", "");
            }
        }
        let verdict = if self.can_run {
            "This host can run machines."
        } else {
            "This host cannot run machines."
        };
        let _ = writeln!(text, "\n{verdict}");
        text
    }
}

/// Looks at everything and reports.
pub(crate) fn doctor(args: &cli::Doctor) -> Result<Code, Failure> {
    let mut findings = kvm::findings();
    findings.extend(host::findings());
    let report = Report::new(findings);
    if args.json {
        commands::print_json(&report)?;
    } else {
        commands::print(report.text(io::stdout().is_terminal()).as_bytes())?;
    }
    Ok(if report.can_run {
        Code::Done
    } else {
        Code::Failed
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_problem_stops_machines() {
        let warning = Finding::warning("a", "found", "do this");
        assert!(Report::new(vec![Finding::ok("b", "fine"), warning.clone()]).can_run);
        let report = Report::new(vec![warning, Finding::problem("long", "found", "do that")]);
        assert!(!report.can_run);
        assert_eq!(
            report.text(false),
            "warning  a     found\n               -> do this\nproblem  long  found\n               -> do that\n\nThis host cannot run machines.\n"
        );
    }
}
