//! Programs of this workspace, built as they go into hosts: optimised, and static, so that they run in any of them.

use anyhow::{Context as _, Result, bail};
use images::Progress;
use serde::Deserialize;
use std::{
    env,
    ffi::OsString,
    path::PathBuf,
    process::{Command, Stdio},
};

/// The only kind of computer that Romulus knows.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What to build.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Program<'a> {
    /// A package's main program, of the same name.
    Main(&'a str),
    /// An example of a package.
    Example(&'a str, &'a str),
}

/// Builds a program, if it is not up to date, and gives its file.
///
/// # Errors
/// It does not compile; the compiler's messages have gone to standard error.
pub(crate) fn static_program(program: Program<'_>, progress: &Progress) -> Result<PathBuf> {
    let (package, name, kind): (_, _, &[&str]) = match program {
        Program::Main(package) => (package, package, &["--bin", package]),
        Program::Example(package, example) => (package, example, &["--example", example]),
    };
    let step = progress.step(format!("building {name}"));
    let output = cargo()
        .args(["build", "--release", "--package", package])
        .args(kind)
        .args(["--target", TARGET, "--config"])
        .arg(format!(
            "target.{TARGET}.rustflags=[\"-Ctarget-feature=+crt-static\"]"
        ))
        .args(["--message-format", "json-render-diagnostics", "--quiet"])
        .stderr(Stdio::inherit())
        .output()
        .context("running cargo")?;
    if !output.status.success() {
        bail!("{name} does not compile");
    }
    let path = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| executable(line, name))
        .next_back()
        .with_context(|| format!("cargo built {name} but named no file of it"))?;
    step.done(format!("built {name}"));
    Ok(path)
}

/// Cargo, run in this workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(workspace());
    command
}

/// The workspace's folder.
pub(crate) fn workspace() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .canonicalize()
        .unwrap_or_else(|_| PathBuf::from("."))
}

/// Cargo's target folder, where reports and kept logs go too.
pub(crate) fn target_folder() -> PathBuf {
    let folder =
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    workspace().join(folder)
}

/// The program's file, if a line of Cargo's messages tells of the program `name`.
fn executable(line: &str, name: &str) -> Option<PathBuf> {
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
        target: Target,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
    }
    let message: Message = serde_json::from_str(line).ok()?;
    message.executable.filter(|_| message.target.name == name)
}

#[cfg(test)]
mod tests {
    use super::executable;
    use std::path::PathBuf;

    #[test]
    fn the_file_comes_from_cargos_messages() {
        let artifact = r#"{"reason":"compiler-artifact","target":{"name":"romulus"},"executable":"/t/romulus"}"#;
        assert_eq!(
            executable(artifact, "romulus"),
            Some(PathBuf::from("/t/romulus"))
        );
        assert_eq!(executable(artifact, "other"), None);
        let library =
            r#"{"reason":"compiler-artifact","target":{"name":"romulus"},"executable":null}"#;
        assert_eq!(executable(library, "romulus"), None);
        assert_eq!(
            executable(r#"{"reason":"build-finished","success":true}"#, "romulus"),
            None
        );
    }
}
