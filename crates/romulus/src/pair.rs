//! `romulus pair`: this host's identity.

use crate::{
    cli, commands,
    exit::{Code, Failure, OrExit as _},
};
use anyhow::Context as _;
use romulus_engine::identity::{IdentityError, Secret};
use serde::Serialize;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// What `--json` prints.
#[derive(Serialize)]
struct Paired<'a> {
    identity: String,
    file: &'a Path,
    /// Whether it was made just now.
    new: bool,
}

/// Shows the identity; makes it if there is none.
pub(crate) fn pair(args: &cli::Pair) -> Result<Code, Failure> {
    let file = &args.identity;
    let there = file
        .try_exists()
        .with_context(|| format!("cannot look for {}", file.display()))
        .or_exit(Code::NoPermission)?;
    let secret = if there { load(file)? } else { create(file)? };
    let identity = secret.public().to_string();
    if args.json {
        let paired = Paired {
            identity,
            file,
            new: !there,
        };
        commands::print_json(&paired)?;
        return Ok(Code::Done);
    }
    let made = if there { "is" } else { "was made and is" };
    let text = format!(
        "This host's secret {made} in {}. Its public form:

  {identity}

On a host that runs machines, write it into its [[protection.host]] in the machine file of both hosts:

  identity = \"{identity}\"

and, on the arbiter, on a line of its own into the file of `romulus arbiter --allow`.
On the arbiter, write it into every machine file:

  arbiter_identity = \"{identity}\"
",
        file.display()
    );
    commands::print(text.as_bytes())?;
    Ok(Code::Done)
}

fn create(file: &Path) -> Result<Secret, Failure> {
    let directory = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make the directory {}", directory.display()))
        .or_exit(Code::CannotCreate)?;
    Secret::create(file).or_exit(Code::CannotCreate)
}

/// Reads this host's secret, with the exit code for whatever is wrong with it.
pub(crate) fn load(file: &Path) -> Result<Secret, Failure> {
    Secret::load(file).map_err(|error| {
        let (code, advice) = match &error {
            IdentityError::File { error, .. } => match error.kind() {
                io::ErrorKind::NotFound => (
                    Code::NoInput,
                    format!("; `romulus pair --identity {}` makes it", file.display()),
                ),
                io::ErrorKind::PermissionDenied => (
                    Code::NoPermission,
                    "; run as the user who owns it".to_owned(),
                ),
                _ => (Code::NoInput, String::new()),
            },
            IdentityError::Mode { .. } => (Code::NoPermission, String::new()),
            _ => (Code::NoInput, String::new()),
        };
        Failure {
            code,
            error: anyhow::anyhow!("this host's identity: {error}{advice}"),
        }
    })
}
