//! Other programs, run with their failures made readable.

use std::io::ErrorKind;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, anyhow, bail};

/// Runs a program to its end and gives its output; an exit status other than 0 is an error that quotes the end of what
/// it said. `what` names the doing in that error.
pub(crate) fn output(command: &mut Command, what: &str) -> Result<Output> {
    let program = command.get_program().to_string_lossy().into_owned();
    // The sbin directories hold mke2fs and depmod and are not on every user's path.
    let path = std::env::var("PATH").unwrap_or_default();
    command
        .env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin"))
        .env("LC_ALL", "C.UTF-8");
    let output = command.output().map_err(|e| match e.kind() {
        ErrorKind::NotFound => anyhow!("cannot run {program}: not found"),
        _ => anyhow!("cannot run {program}: {e}"),
    })?;
    if !output.status.success() {
        let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
        if said.trim().is_empty() {
            said = String::from_utf8_lossy(&output.stdout).into_owned();
        }
        let lines: Vec<&str> = said.lines().filter(|l| !l.trim().is_empty()).collect();
        bail!(
            "{what} failed ({}): {}",
            output.status,
            lines[lines.len().saturating_sub(12)..].join("\n")
        );
    }
    Ok(output)
}

/// As [`output`], for a program of which only the success counts.
pub(crate) fn quiet(command: &mut Command, what: &str) -> Result<()> {
    output(command.stdin(Stdio::null()), what).map(drop)
}

/// As [`output`], giving standard output as text.
pub(crate) fn text(command: &mut Command, what: &str) -> Result<String> {
    let output = output(command.stdin(Stdio::null()), what)?;
    String::from_utf8(output.stdout)
        .with_context(|| format!("{what} printed something that is not UTF-8"))
}
