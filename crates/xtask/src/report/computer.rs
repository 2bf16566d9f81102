//! Where and of what a measurement was made.

use serde::Serialize;
use std::{fmt, fs, process::Command};

/// The computer that measured, and what its lab hosts were.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Computer {
    /// Model of the processor.
    pub(crate) cpu: String,
    /// Logical processors.
    pub(crate) cores: usize,
    /// Memory in MiB.
    pub(crate) memory_mib: u64,
    /// Release of the running kernel.
    pub(crate) kernel: String,
    /// What the hosts were: emulated, or this computer's own KVM.
    pub(crate) lab: String,
}

impl Computer {
    /// Describes this computer, and the lab's hosts by their kind.
    pub(crate) fn describe(hosts: lab::Kind) -> Self {
        let lab = match hosts {
            lab::Kind::Qemu => "QEMU TCG, AMD with SVM emulated",
            lab::Kind::Namespaces => "namespaces on this computer's KVM",
        };
        let cpu_info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let memory_info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            cpu: field(&cpu_info, "model name")
                .unwrap_or("unknown")
                .to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: field(&memory_info, "MemTotal")
                .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok())
                .map_or(0, |kib| kib / 1024),
            kernel: release.trim().to_owned(),
            lab: lab.to_owned(),
        }
    }
}

impl fmt::Display for Computer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cpu,
            cores,
            memory_mib,
            kernel,
            lab,
        } = self;
        write!(
            f,
            "{cpu} × {cores}, {memory_mib} MiB, Linux {kernel} · lab: {lab}"
        )
    }
}

/// The value of `name : value` in a file of such lines.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

/// The commit of the work tree, with `+dirty` if tracked files differ from it, or `unknown` outside a clone.
pub(crate) fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .arg("-C")
            .arg(env!("CARGO_MANIFEST_DIR"))
            .args(arguments)
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(hash) = git(&["rev-parse", "--short", "HEAD"]) else {
        return "unknown".into();
    };
    let dirty = git(&["status", "--porcelain", "--untracked-files=no"])
        .is_some_and(|changes| !changes.is_empty());
    if dirty { hash + "+dirty" } else { hash }
}

#[cfg(test)]
mod tests {
    use super::field;

    #[test]
    fn fields_of_proc_files_are_found() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2:1\n";
        assert_eq!(field(text, "model name"), Some("Some CPU @ 2:1"));
        assert_eq!(field(text, "model"), None);
    }
}
