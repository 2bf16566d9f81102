//! Findings about the host around KVM: network, memory, limits, time.

use super::Finding;
use crate::{
    bridge::{self, Interfaces},
    runtime::RuntimeDir,
    table,
};
use romulus_machine::config::MEMORY_MIN;
use rustix::{
    fs::{Access, access},
    process::{Resource, getrlimit},
    thread::{CapabilitySet, capabilities},
};
use std::{
    fs::{self, OpenOptions},
    io,
    path::Path,
    time::Duration,
};

/// Descriptors that one machine of many cards and disks needs, with room to spare.
const FILES_MIN: u64 = 256;

pub(super) fn findings() -> Vec<Finding> {
    let effective = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    let has = |capability| effective.contains(capability);
    let interfaces = Interfaces::here();
    let names = interfaces.bridges();
    let waits = |name: &String| Some((name.clone(), interfaces.port_wait(name)?));
    let waiting: Vec<_> = names.iter().filter_map(waits).collect();
    vec![
        tap(
            OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/net/tun")
                .err(),
            has(CapabilitySet::NET_ADMIN),
        ),
        bridges(&names, &waiting),
        memory(
            fs::read_to_string("/proc/meminfo")
                .ok()
                .as_deref()
                .and_then(available),
        ),
        locked(
            getrlimit(Resource::Memlock).current,
            has(CapabilitySet::IPC_LOCK),
        ),
        files(getrlimit(Resource::Nofile).current),
        large_pages(
            fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")
                .ok()
                .as_deref(),
        ),
        clock(
            fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource")
                .ok()
                .as_deref(),
        ),
        runtime_directory(),
    ]
}

fn tap(error: Option<io::Error>, net_admin: bool) -> Finding {
    const CHECK: &str = "tap";
    const DEVICE: &str = "/dev/net/tun";
    match (error.map(|error| (error.kind(), error)), net_admin) {
        (None, true) => Finding::ok(CHECK, "taps can be made"),
        (None, false) => Finding::warning(
            CHECK,
            "this user may not make taps (no CAP_NET_ADMIN)",
            "make them beforehand: ip tuntap add dev tap0 mode tap user USER && ip link set tap0 master br0 up",
        ),
        (Some((io::ErrorKind::NotFound, _)), _) => Finding::problem(
            CHECK,
            format!("{DEVICE} does not exist"),
            "load its module: modprobe tun",
        ),
        (Some((io::ErrorKind::PermissionDenied, _)), _) => Finding::problem(
            CHECK,
            format!("no permission for {DEVICE}"),
            format!(
                "allow it: chmod 666 {DEVICE} (the default of Linux; each tap has an owner of its own)"
            ),
        ),
        (Some((_, error)), _) => Finding::problem(
            CHECK,
            format!("{DEVICE} cannot be opened: {error}"),
            "load its module: modprobe tun",
        ),
    }
}

/// `waiting` are those whose ports pass nothing at first, and for how long.
fn bridges(names: &[String], waiting: &[(String, Duration)]) -> Finding {
    const CHECK: &str = "bridge";
    if names.is_empty() {
        let advice = "make one with your network's own tools, or: ip link add br0 type bridge && ip link set eth0 master br0";
        return Finding::warning(CHECK, "there is no bridge for machines to join", advice);
    }
    let names = names.join(", ");
    let Some((first, wait)) = waiting.first() else {
        return Finding::ok(CHECK, names);
    };
    let all: Vec<&str> = waiting.iter().map(|(name, _)| name.as_str()).collect();
    Finding::warning(
        CHECK,
        format!(
            "{names}; spanning tree protocol on {}: a machine that is taken over is silent for {} s",
            all.join(", "),
            wait.as_secs_f64()
        ),
        bridge::advice(first),
    )
}

/// Memory that can be had without swapping, in bytes (proc(5), `MemAvailable`).
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

fn memory(available: Option<u64>) -> Finding {
    const CHECK: &str = "memory";
    match available {
        None => Finding::warning(
            CHECK,
            "cannot be told",
            "mount proc: mount -t proc proc /proc",
        ),
        Some(bytes) if bytes < MEMORY_MIN => {
            let text = format!(
                "{} free; the smallest machine needs {}",
                table::size(bytes),
                table::size(MEMORY_MIN)
            );
            Finding::problem(CHECK, text, "stop something, or add memory")
        }
        Some(bytes) => Finding::ok(CHECK, format!("{} free", table::size(bytes))),
    }
}

fn locked(limit: Option<u64>, ipc_lock: bool) -> Finding {
    const CHECK: &str = "locked-memory";
    match limit {
        _ if ipc_lock => Finding::ok(CHECK, "not limited (CAP_IPC_LOCK)"),
        None => Finding::ok(CHECK, "not limited"),
        Some(limit) if limit >= MEMORY_MIN => {
            Finding::ok(CHECK, format!("up to {}", table::size(limit)))
        }
        Some(limit) => Finding::warning(
            CHECK,
            format!(
                "only {} may be locked, so the host may swap guests out",
                table::size(limit)
            ),
            "raise it: LimitMEMLOCK=infinity in the systemd unit, or memlock in /etc/security/limits.conf",
        ),
    }
}

fn files(limit: Option<u64>) -> Finding {
    const CHECK: &str = "open-files";
    match limit {
        Some(limit) if limit < FILES_MIN => Finding::warning(
            CHECK,
            format!("only {limit} may be open"),
            "raise it: LimitNOFILE=1024 in the systemd unit, or ulimit -n 1024",
        ),
        Some(limit) => Finding::ok(CHECK, format!("up to {limit}")),
        None => Finding::ok(CHECK, "not limited"),
    }
}

fn large_pages(enabled: Option<&str>) -> Finding {
    const CHECK: &str = "huge-pages";
    let advice = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled";
    let chosen = enabled.and_then(|text| text.split(['[', ']']).nth(1));
    match chosen {
        Some(mode @ ("always" | "madvise")) => Finding::ok(CHECK, format!("transparent ({mode})")),
        Some(mode) => Finding::warning(
            CHECK,
            format!("transparent huge pages are off ({mode}); guests run a little slower"),
            advice,
        ),
        None => Finding::warning(
            CHECK,
            "this kernel has no transparent huge pages; guests run a little slower",
            "use a stock kernel",
        ),
    }
}

fn clock(source: Option<&str>) -> Finding {
    const CHECK: &str = "clock";
    match source.map(str::trim) {
        Some(source @ ("tsc" | "kvm-clock" | "hyperv_clocksource_tsc_page")) => {
            Finding::ok(CHECK, source)
        }
        Some(source) => Finding::warning(
            CHECK,
            format!("{source} is slow to read, so guests' time is too"),
            "see why the kernel left tsc: dmesg | grep -i -e tsc -e clocksource",
        ),
        None => Finding::warning(
            CHECK,
            "cannot be told",
            "mount sysfs: mount -t sysfs sysfs /sys",
        ),
    }
}

fn runtime_directory() -> Finding {
    const CHECK: &str = "runtime-directory";
    let advice = "set ROMULUS_RUNTIME_DIR to a directory that this user may write";
    let directory = match RuntimeDir::of_user() {
        Ok(directory) => directory,
        Err(failure) => return Finding::problem(CHECK, failure.error.to_string(), advice),
    };
    let path = directory.path();
    let exists = path
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"));
    match access(exists, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => Finding::ok(CHECK, path.display().to_string()),
        Err(error) => Finding::problem(
            CHECK,
            format!("{} cannot be written: {error}", exists.display()),
            advice,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn taps_need_the_device_and_the_right() {
        assert_eq!(tap(None, true).level, Level::Ok);
        assert_eq!(tap(None, false).level, Level::Warning);
        assert_eq!(
            tap(Some(io::ErrorKind::NotFound.into()), true).level,
            Level::Problem
        );
        assert_eq!(
            tap(Some(io::ErrorKind::PermissionDenied.into()), true).level,
            Level::Problem
        );
    }

    #[test]
    fn figures_are_judged() {
        assert_eq!(
            available("MemTotal: 1 kB\nMemAvailable:    4096 kB\n"),
            Some(4 << 20)
        );
        assert_eq!(memory(Some(4 << 20)).level, Level::Problem);
        assert_eq!(memory(Some(4 << 30)).level, Level::Ok);
        assert_eq!(locked(Some(8 << 20), false).level, Level::Warning);
        assert_eq!(locked(Some(8 << 20), true).level, Level::Ok);
        assert_eq!(files(Some(64)).level, Level::Warning);
        assert_eq!(
            large_pages(Some("always [madvise] never\n")).level,
            Level::Ok
        );
        assert_eq!(
            large_pages(Some("always madvise [never]\n")).level,
            Level::Warning
        );
        assert_eq!(clock(Some("hpet\n")).level, Level::Warning);
        assert_eq!(bridges(&[], &[]).level, Level::Warning);
        let names = ["br0".to_owned(), "br1".to_owned()];
        assert_eq!(bridges(&names, &[]).level, Level::Ok);
        let waiting = [("br1".to_owned(), Duration::from_secs(30))];
        let finding = bridges(&names, &waiting);
        assert_eq!(finding.level, Level::Warning);
        assert!(finding.text.contains("on br1: ") && finding.text.contains("30 s"));
    }
}
