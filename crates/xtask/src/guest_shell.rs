//! Commands in a guest, by its shell on the network (`service.shell` on its command line).

use crate::process;
use anyhow::{Context as _, Result};
use std::{io::Write as _, net::Ipv4Addr, process::Stdio, time::Duration};

/// Runs a script in the guest at `guest`; gives what it printed and its status.
///
/// # Errors
/// The guest can't be reached, or does not answer within `limit`.
pub(crate) fn run(
    client: &lab::Client,
    guest: Ipv4Addr,
    script: &str,
    limit: Duration,
) -> Result<(String, i32)> {
    const END: &str = "scenario-status:";
    let mut input = tempfile::tempfile()?;
    // Two parts, so that the end is not found in what the shell might echo.
    writeln!(
        input,
        "({script}\n) 2>&1 </dev/null; status=$?; echo; echo {END}$status; exit"
    )?;
    std::io::Seek::rewind(&mut input)?;
    let mut command = client.command("socat")?;
    command
        .args(["-t", &limit.as_secs().to_string(), "-"])
        .arg(format!("TCP:{guest}:23"))
        .stdin(Stdio::from(input));
    let output = process::output_within(&mut command, limit)
        .with_context(|| format!("in the guest: `{script}`"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (printed, status) = text.rsplit_once(END).with_context(|| {
        format!(
            "the guest's shell did not answer: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        )
    })?;
    let status = status
        .trim()
        .parse()
        .context("the guest's shell gave no status")?;
    Ok((printed.trim_end().to_owned(), status))
}
