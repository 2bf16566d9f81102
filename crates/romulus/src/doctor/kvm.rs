//! Findings about KVM: there, usable, complete, and fast.

use super::Finding;
use romulus_machine::{
    Error,
    probe::{self, Capability, Trial},
};
use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::MetadataExt as _,
    sync::mpsc,
    thread,
    time::Duration,
};

const DEVICE: &str = "/dev/kvm";
/// Version of KVM's interface in every kernel since 2.6.22.
const VERSION: i32 = 12;
/// A kernel that runs this many times slower than a program is emulated. Where the processor runs both it is 1, whatever
/// the computer; the emulation that was met took 1000 to 2500.
const SLOWDOWN_MAX: f64 = 10.0;
/// An exit that takes longer than this, in nanoseconds, makes machines slow: hardware needs one or two thousand.
const EXIT_SLOW_NS: f64 = 20_000.0;
/// How long the trial may take; it needs a fraction of a second.
const TRIAL_MAX: Duration = Duration::from_secs(20);

pub(super) fn findings() -> Vec<Finding> {
    let opened = OpenOptions::new().read(true).write(true).open(DEVICE);
    let mut findings = vec![device(opened.err())];
    match probe::capabilities() {
        Ok((version, capabilities)) => {
            findings.push(api(version));
            findings.push(self::capabilities(&capabilities));
            findings.extend(speed(try_out()));
        }
        Err(error) => tracing::debug!("no more about KVM: {error}"),
    }
    findings
}

fn device(error: Option<io::Error>) -> Finding {
    const CHECK: &str = "kvm-device";
    let Some(error) = error else {
        return Finding::ok(CHECK, format!("{DEVICE} is usable by this user"));
    };
    match error.kind() {
        io::ErrorKind::NotFound => {
            let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
            let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
            let advice = if has("svm") {
                "load its module: modprobe kvm_amd".to_owned()
            } else if has("vmx") {
                "load its module: modprobe kvm_intel".to_owned()
            } else {
                "the processor offers no virtualisation: switch it on in the firmware (SVM, VT-x), or allow nested \
                 virtualisation where this host is itself a virtual machine"
                    .to_owned()
            };
            Finding::problem(CHECK, format!("{DEVICE} does not exist"), advice)
        }
        io::ErrorKind::PermissionDenied => {
            let group = fs::metadata(DEVICE)
                .ok()
                .and_then(|device| group_name(device.gid()));
            let advice = match group.as_deref() {
                Some("root") | None => {
                    "run as root, or give a group access: chgrp kvm /dev/kvm && chmod 660 /dev/kvm"
                        .to_owned()
                }
                Some(group) => format!(
                    "add this user to its group, then log in anew: usermod -aG {group} USER"
                ),
            };
            Finding::problem(CHECK, format!("no permission for {DEVICE}"), advice)
        }
        _ => Finding::problem(
            CHECK,
            format!("{DEVICE} cannot be opened: {error}"),
            "look for kvm in the kernel's log: dmesg | grep -i kvm",
        ),
    }
}

fn group_name(gid: u32) -> Option<String> {
    let groups = fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
    })
}

fn api(version: i32) -> Finding {
    const CHECK: &str = "kvm-api";
    if version == VERSION {
        Finding::ok(CHECK, format!("version {version}"))
    } else {
        Finding::problem(
            CHECK,
            format!("version {version}, not {VERSION}"),
            "use a stock Linux kernel, 5.14 or newer",
        )
    }
}

fn capabilities(all: &[Capability]) -> Finding {
    const CHECK: &str = "kvm-capabilities";
    let missing = |required: bool| {
        let names = all
            .iter()
            .filter(|capability| !capability.present && capability.required == required);
        names
            .map(|capability| format!("{} ({})", capability.name, capability.purpose))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let (needed, useful) = (missing(true), missing(false));
    let present = all.iter().filter(|capability| capability.present).count();
    if !needed.is_empty() {
        Finding::problem(
            CHECK,
            format!("missing: {needed}"),
            "use a stock Linux kernel, 5.14 or newer",
        )
    } else if !useful.is_empty() {
        let advice = "machines run without; a newer kernel or processor may have it";
        Finding::warning(
            CHECK,
            format!(
                "{present} of {}; missing, but not needed: {useful}",
                all.len()
            ),
            advice,
        )
    } else {
        Finding::ok(CHECK, format!("all {present}"))
    }
}

/// Runs the trial in a thread, because a KVM that is broken enough may never come back from it.
fn try_out() -> Result<Trial, String> {
    let (sender, result) = mpsc::channel();
    let run = move || {
        // Nobody waits any more when it took too long.
        let _ = sender.send(probe::trial());
    };
    thread::Builder::new()
        .name("trial".into())
        .spawn(run)
        .map_err(|error| format!("no thread for it: {error}"))?;
    match result.recv_timeout(TRIAL_MAX) {
        Ok(Ok(trial)) => Ok(trial),
        Ok(Err(Error::Invalid(text))) => Err(text),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!(
            "a few instructions did not end within {TRIAL_MAX:?}"
        )),
    }
}

fn speed(trial: Result<Trial, String>) -> Vec<Finding> {
    const CHECK: &str = "kvm-kernel-speed";
    const EXIT: &str = "kvm-exit-time";
    let advice = "use a computer whose processor virtualises (bare metal, or a cloud's metal or nested-virtualisation type); \
                  the kernel's log says what kind of KVM this is";
    let trial = match trial {
        Ok(trial) => trial,
        Err(error) => {
            return vec![Finding::problem(
                CHECK,
                format!("a guest kernel does not run: {error}"),
                advice,
            )];
        }
    };
    let slowdown = trial.slowdown();
    let figures = format!(
        "a turn of a loop takes a program {:.2} ns, a kernel {:.2} ns, privileged {:.0} ns",
        trial.program_ns, trial.kernel_ns, trial.privileged_ns
    );
    // Written so that a figure that is no number is a problem, too.
    let mut findings = vec![if slowdown <= SLOWDOWN_MAX {
        Finding::ok(
            CHECK,
            format!("guest kernels run on the processor itself ({figures})"),
        )
    } else {
        let text = format!(
            "this KVM emulates guest kernels: {slowdown:.0} times slower than programs ({figures})"
        );
        Finding::problem(CHECK, text, advice)
    }];
    let microseconds = trial.exit_ns / 1000.0;
    findings.push(if trial.exit_ns <= EXIT_SLOW_NS {
        Finding::ok(EXIT, format!("{microseconds:.1} µs for an exit and back"))
    } else {
        let text = format!("{microseconds:.0} µs for an exit and back; hardware needs 1 to 2 µs");
        Finding::warning(
            EXIT,
            text,
            "machines run, but input and output are slow; nested virtualisation does that",
        )
    });
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    fn level(kernel_ns: f64) -> Level {
        let trial = Trial {
            program_ns: 0.5,
            kernel_ns,
            privileged_ns: 300.0,
            exit_ns: 1500.0,
        };
        speed(Ok(trial))[0].level
    }

    #[test]
    fn an_emulated_kernel_is_a_problem() {
        assert_eq!(level(0.5), Level::Ok);
        assert_eq!(level(1.1), Level::Ok);
        assert_eq!(level(1067.0), Level::Problem);
        assert_eq!(level(f64::NAN), Level::Problem);
        assert_eq!(speed(Err("it broke".into()))[0].level, Level::Problem);
    }

    #[test]
    fn missing_capabilities_are_named_with_their_purpose() {
        let capability = |present, required| Capability {
            name: "X",
            present,
            required,
            purpose: "something",
        };
        assert_eq!(capabilities(&[capability(true, true)]).level, Level::Ok);
        assert_eq!(
            capabilities(&[capability(false, false)]).level,
            Level::Warning
        );
        let finding = capabilities(&[capability(true, true), capability(false, true)]);
        assert_eq!(finding.level, Level::Problem);
        assert!(finding.text.contains("X (something)"), "{}", finding.text);
    }

    #[test]
    fn what_keeps_kvm_away_is_told_apart() {
        let missing = device(Some(io::ErrorKind::NotFound.into()));
        assert!(missing.text.contains("does not exist"), "{}", missing.text);
        let denied = device(Some(io::ErrorKind::PermissionDenied.into()));
        assert!(denied.text.contains("no permission"), "{}", denied.text);
        assert!(missing.advice.is_some() && denied.advice.is_some());
        assert_eq!(device(None).level, Level::Ok);
    }
}
