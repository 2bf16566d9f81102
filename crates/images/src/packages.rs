//! The Debian packages of this computer that the lab and the builders need.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::progress::Progress;
use crate::run;

/// Installs those of the Debian packages `names` that this computer lacks. Nothing is downloaded or asked when all are
/// there.
///
/// # Errors
/// Fails, with the command to type, if something is missing and this process is not root or apt cannot install it.
pub fn ensure_packages(names: &[&str], progress: &Progress) -> Result<()> {
    let missing = missing(names)?;
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    let by_hand = format!("apt-get update && apt-get install --no-install-recommends {list}");
    if !is_root()? {
        bail!(
            "these Debian packages are needed and not installed: {list}\nInstall them with: sudo sh -c '{by_hand}'"
        );
    }
    let step = progress.step(format!("installing {list}"));
    let install = || {
        run::quiet(
            apt()
                .args(["install", "--yes", "--no-install-recommends"])
                .args(&missing),
            "apt-get install",
        )
    };
    if install().is_err() {
        // The lists may be missing or old (they are both on a fresh computer).
        step.set("updating the package lists");
        run::quiet(apt().arg("update"), "apt-get update")
            .with_context(|| format!("to do it by hand: {by_hand}"))?;
        step.set(format!("installing {list}"));
        install().with_context(|| format!("cannot install {list}; to do it by hand: {by_hand}"))?;
    }
    step.done(format!("installed {list}"));
    Ok(())
}

fn apt() -> Command {
    let mut apt = Command::new("apt-get");
    apt.args(["-q", "-o", "DPkg::Lock::Timeout=600"])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null());
    apt
}

fn missing<'a>(names: &[&'a str]) -> Result<Vec<&'a str>> {
    // dpkg-query fails when one of the names is unknown, and still prints the others: its output is what counts.
    let output = Command::new("dpkg-query")
        .args([
            "--show",
            "--showformat=${db:Status-Status} ${Package}\n",
            "--",
        ])
        .args(names)
        .output()
        .context("cannot run dpkg-query: is this a Debian system?")?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(names
        .iter()
        .copied()
        .filter(|name| {
            !text
                .lines()
                .any(|l| l.strip_prefix("installed ") == Some(name))
        })
        .collect())
}

fn is_root() -> Result<bool> {
    Ok(run::text(Command::new("id").arg("-u"), "id")?.trim() == "0")
}
