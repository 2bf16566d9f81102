//! Python packages that Debian does not have, as wheels of the Python package index.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::{self, Digest};
use crate::packages::ensure_packages;
use crate::progress::Progress;
use crate::recipe::Wheel;
use crate::run;
use crate::suite::Suite;

/// Where Debian's Python finds packages that do not belong to one release of Python alone.
pub(crate) const PACKAGES: &str = "/usr/lib/python3/dist-packages";
/// The Debian package with the interpreter and the least of the standard library.
pub(crate) const PYTHON: &str = "python3-minimal";
/// The oldest C library that a wheel may name (its minor release), by PEP 600.
const OLDEST_GLIBC: u32 = 5;

/// A tree that holds `wheels` at [`PACKAGES`], made for the suite's Python. pip downloads them as this computer's own pip is
/// configured, and refuses whatever has another digest than the recipe's; nothing in them is run.
pub(crate) fn unpacked(wheels: &[Wheel], suite: Suite, progress: &Progress) -> Result<PathBuf> {
    let mut digest = Digest::new("wheels 1");
    digest.add(suite.python());
    for wheel in wheels {
        digest.add(requirement(wheel));
    }
    let name = format!("{}-{suite}-{}", wheels[0].package, digest.short());
    cache::entry(&cache::cache_dir(), "wheels", &name, |tree| {
        ensure_packages(&["python3-pip"], progress)?;
        let step = progress.step(format!("downloading wheels for Python {}", suite.python()));
        let wanted = tree.join("requirements.txt");
        let text: String = wheels.iter().map(requirement).collect();
        fs::write(&wanted, text).with_context(|| format!("cannot write {}", wanted.display()))?;
        run::quiet(&mut pip(suite, &wanted, tree), "pip install")?;
        fs::remove_file(&wanted).with_context(|| format!("cannot remove {}", wanted.display()))?;
        step.done(format!("wheels for Python {}", suite.python()));
        Ok(())
    })
}

/// Debian's own pip, not one that is first on somebody's path.
fn pip(suite: Suite, wanted: &Path, tree: &Path) -> Command {
    let mut pip = Command::new("/usr/bin/python3");
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-input",
        "--no-cache-dir",
    ])
    .args(["--disable-pip-version-check", "--root-user-action=ignore"])
    .args(["--no-deps", "--no-compile", "--only-binary=:all:"])
    .args(["--require-hashes", "--implementation=cp"])
    .args(["--python-version", suite.python()]);
    for minor in (OLDEST_GLIBC..=suite.glibc_minor()).rev() {
        pip.arg(format!("--platform=manylinux_2_{minor}_x86_64"));
    }
    pip.arg("--target")
        .arg(tree.join(PACKAGES.trim_start_matches('/')))
        .arg("--requirement")
        .arg(wanted);
    pip
}

/// The wheel as a line of pip's requirements file.
fn requirement(wheel: &Wheel) -> String {
    let Wheel {
        package,
        version,
        sha256,
    } = wheel;
    let mut words = vec![format!("{package}=={version}")];
    words.extend(
        sha256
            .iter()
            .map(|digest| format!("--hash=sha256:{digest}")),
    );
    words.join(" ") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wheel_is_asked_for_by_version_and_digests() {
        let wheel = Wheel {
            package: "rtp.io".into(),
            version: "1.1.1".into(),
            sha256: vec!["ab".into(), "cd".into()],
        };
        assert_eq!(
            requirement(&wheel),
            "rtp.io==1.1.1 --hash=sha256:ab --hash=sha256:cd\n"
        );
    }

    #[test]
    fn pip_is_asked_for_the_suites_python_and_c_library_and_to_check_digests() {
        let pip = pip(Suite::Bookworm, Path::new("r"), Path::new("t"));
        let words: Vec<_> = pip.get_args().map(|w| w.to_string_lossy()).collect();
        let has = |word: &str| words.iter().any(|w| w == word);
        assert!(has("--require-hashes") && has("--only-binary=:all:") && has("3.11"));
        assert!(has("--platform=manylinux_2_36_x86_64"));
        assert!(!has("--platform=manylinux_2_37_x86_64"));
    }
}
