//! The targets' programs, made by cargo-fuzz, which is installed where it is missing.

use crate::compile::{cargo, target_folder, workspace};
use anyhow::{Context as _, Result, bail, ensure};
use images::{Progress, cache_dir, ensure_packages};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The release of cargo-fuzz that is used.
const VERSION: &str = "0.13.2";
/// libFuzzer itself is C++, and compiled with the targets.
const COMPILER: [&str; 1] = ["g++"];
/// The only kind of computer that Romulus knows.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// A target and its program.
#[derive(Debug, Clone)]
pub(super) struct Program {
    pub(super) target: String,
    pub(super) path: PathBuf,
}

/// Where everything lies that fuzzing makes: programs, working corpora, logs, and what was found.
pub(super) fn folder() -> PathBuf {
    target_folder().join("fuzz")
}

/// The targets' names, sorted.
pub(super) fn targets() -> Result<Vec<String>> {
    let folder = workspace().join("fuzz/fuzz_targets");
    let mut targets = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            targets.extend(
                path.file_stem()
                    .and_then(|name| name.to_str())
                    .map(String::from),
            );
        }
    }
    targets.sort();
    Ok(targets)
}

/// Builds all targets (what they share is most of the work) and gives the programs of these.
///
/// No sanitizer: that would need an unstable compiler, and what is fuzzed is safe code but for a few lines. What a
/// sanitizer would say of memory, the targets count themselves.
pub(super) fn programs(targets: &[String], progress: &Progress) -> Result<Vec<Program>> {
    ensure_packages(&COMPILER, progress)?;
    let tool = tool(progress)?;
    let step = progress.step("building the fuzz targets");
    let output = Command::new(&tool)
        .args(["fuzz", "build", "--sanitizer", "none", "--fuzz-dir", "fuzz"])
        .args(["--target", TRIPLE, "--target-dir"])
        .arg(folder())
        .env("CARGO", cargo().get_program())
        .current_dir(workspace())
        .stdin(Stdio::null())
        .output()
        .context("running cargo-fuzz")?;
    if !output.status.success() {
        bail!(
            "the fuzz targets can't be built:\n{}",
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    step.done("built the fuzz targets");
    let release = folder().join(TRIPLE).join("release");
    let program = |target: &String| {
        let path = release.join(target);
        ensure!(
            path.is_file(),
            "cargo-fuzz built no {}: is {target} a [[bin]] in fuzz/Cargo.toml?",
            path.display()
        );
        let target = target.clone();
        Ok(Program { target, path })
    };
    targets.iter().map(program).collect()
}

/// cargo-fuzz, in this release, from the cache.
fn tool(progress: &Progress) -> Result<PathBuf> {
    let root = cache_dir()
        .join("tools")
        .join(format!("cargo-fuzz-{VERSION}"));
    let tool = root.join("bin/cargo-fuzz");
    if is_there(&tool) {
        return Ok(tool);
    }
    let step = progress.step(format!("installing cargo-fuzz {VERSION} (once)"));
    let installed = cargo()
        .args(["install", "--locked", "--quiet", "--version", VERSION])
        .arg("--root")
        .arg(&root)
        .arg("cargo-fuzz")
        // Where this program's own build was told to put things.
        .env_remove("CARGO_TARGET_DIR")
        .status()
        .context("running cargo")?;
    ensure!(
        installed.success() && is_there(&tool),
        "cargo-fuzz can't be installed; try: cargo install --locked --version {VERSION} --root {} cargo-fuzz",
        root.display()
    );
    step.done(format!("installed cargo-fuzz {VERSION}"));
    Ok(tool)
}

fn is_there(tool: &Path) -> bool {
    Command::new(tool)
        .args(["fuzz", "--version"])
        .output()
        .is_ok_and(|output| output.status.success())
}

#[cfg(test)]
mod tests {
    use super::targets;
    use crate::compile::workspace;
    use std::fs;

    /// Whoever adds a program adds seeds, and a line that makes cargo-fuzz build it.
    #[test]
    fn every_target_has_a_program_and_a_corpus() {
        let manifest = fs::read_to_string(workspace().join("fuzz/Cargo.toml")).unwrap();
        let manifest: toml::Table = manifest.parse().unwrap();
        let mut programs: Vec<_> = manifest["bin"]
            .as_array()
            .unwrap()
            .iter()
            .map(|bin| bin["name"].as_str().unwrap().to_owned())
            .collect();
        programs.sort();
        assert_eq!(targets().unwrap(), programs);
        for target in programs {
            let corpus = workspace().join("fuzz/corpus").join(&target);
            assert!(corpus.is_dir(), "{target} has no corpus");
        }
    }
}
