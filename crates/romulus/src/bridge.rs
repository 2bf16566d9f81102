//! Bridges on this host, as a takeover meets them: the machine's port comes up in that moment.

use romulus_machine::config::Config;
use std::{fs, path::PathBuf, time::Duration};

/// Where the kernel tells about network interfaces.
const INTERFACES: &str = "/sys/class/net";

/// The host's network interfaces. Tests have a folder of their own.
pub(crate) struct Interfaces(PathBuf);

impl Interfaces {
    /// Those of the network namespace that this process is in.
    pub(crate) fn here() -> Self {
        Self(INTERFACES.into())
    }

    /// The names of all bridges, sorted.
    pub(crate) fn bridges(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.0) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .flatten()
            .filter(|entry| entry.path().join("bridge").is_dir())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// How long a port of this bridge passes nothing after it came up: with the kernel's spanning tree protocol it listens, then
    /// learns, for one forward delay each (IEEE 802.1D, 8.4; `Documentation/networking/bridge.rst`). `None` where it passes
    /// frames at once, and where there is no such bridge. What a daemon does that speaks the protocol instead is not known.
    pub(crate) fn port_wait(&self, bridge: &str) -> Option<Duration> {
        const KERNEL_STP: &str = "1";
        let read = |what: &str| {
            let file = self.0.join(bridge).join("bridge").join(what);
            fs::read_to_string(file).ok()
        };
        if read("stp_state")?.trim() != KERNEL_STP {
            return None;
        }
        let delay: u64 = read("forward_delay")?.trim().parse().ok()?;
        // In hundredths of a second (USER_HZ), whatever the kernel's own tick is.
        let wait = Duration::from_millis(delay.checked_mul(2 * 10)?);
        (!wait.is_zero()).then_some(wait)
    }

    /// The bridge that an interface is a port of.
    fn bridge_of(&self, interface: &str) -> Option<String> {
        let to = fs::read_link(self.0.join(interface).join("master")).ok()?;
        Some(to.file_name()?.to_string_lossy().into_owned())
    }

    /// What is wrong with the bridges of a machine that is to be taken over, for people.
    pub(crate) fn warnings(&self, machine: &Config) -> Vec<String> {
        let mut bridges: Vec<String> = (machine.nics.iter())
            .filter_map(|nic| nic.bridge.clone().or_else(|| self.bridge_of(&nic.tap)))
            .collect();
        bridges.sort();
        bridges.dedup();
        let wait = |bridge: String| Some((self.port_wait(&bridge)?, bridge));
        let waiting = bridges.into_iter().filter_map(wait);
        waiting
            .map(|(wait, bridge)| {
                format!(
                    "bridge {bridge} runs the spanning tree protocol: after a takeover the machine would be silent for another {} s; {}",
                    wait.as_secs_f64(),
                    advice(&bridge)
                )
            })
            .collect()
    }
}

/// What to do about a bridge whose ports wait.
pub(crate) fn advice(bridge: &str) -> String {
    format!(
        "where it is part of no loop: ip link set {bridge} type bridge stp_state 0 (NetworkManager: bridge.stp no)"
    )
}

#[cfg(test)]
mod tests {
    use super::{Duration, Interfaces, fs};
    use crate::config::MachineFile;
    use std::{os::unix::fs::symlink, path::Path};

    fn bridge(folder: &tempfile::TempDir, name: &str, stp_state: &str, forward_delay: &str) {
        let bridge = folder.path().join(name).join("bridge");
        fs::create_dir_all(&bridge).unwrap();
        fs::write(bridge.join("stp_state"), stp_state).unwrap();
        fs::write(bridge.join("forward_delay"), forward_delay).unwrap();
    }

    #[test]
    fn ports_wait_where_the_kernel_speaks_the_protocol() {
        let folder = tempfile::tempdir().unwrap();
        let interfaces = Interfaces(folder.path().into());
        for (name, stp_state, forward_delay, wait) in [
            ("off", "0\n", "1500\n", None),
            ("on", "1\n", "1500\n", Some(30)),
            ("short", "1\n", "200\n", Some(4)),
            ("at-once", "1\n", "0\n", None),
            ("daemon", "2\n", "1500\n", None),
            ("odd", "1\n", "much\n", None),
            ("huge", "1\n", "18446744073709551615\n", None),
        ] {
            bridge(&folder, name, stp_state, forward_delay);
            let wanted = wait.map(Duration::from_secs);
            assert_eq!(interfaces.port_wait(name), wanted, "{name}");
        }
        assert_eq!(interfaces.port_wait("missing"), None);
        fs::create_dir(folder.path().join("eth0")).unwrap();
        assert_eq!(interfaces.bridges().len(), 7);
    }

    #[test]
    fn a_machine_is_warned_of_each_bridge_once() {
        let folder = tempfile::tempdir().unwrap();
        let interfaces = Interfaces(folder.path().into());
        bridge(&folder, "br0", "1", "1500");
        bridge(&folder, "br1", "1", "200");
        let file = "name = \"m\"\nmemory = \"128 MiB\"\n[boot]\nkernel = \"/k\"\n\
                    [[nic]]\ntap = \"t0\"\nbridge = \"br0\"\nmac = \"52:54:00:00:00:01\"\n\
                    [[nic]]\ntap = \"t1\"\nbridge = \"br0\"\nmac = \"52:54:00:00:00:02\"\n\
                    [[nic]]\ntap = \"t2\"\nmac = \"52:54:00:00:00:03\"\n";
        let machine = MachineFile::parse(file, Path::new("m.toml"), folder.path())
            .unwrap()
            .machine;
        let warnings = interfaces.warnings(&machine);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("br0") && warnings[0].contains("30 s"));
        // The operator joined this tap to a bridge.
        fs::create_dir(folder.path().join("t2")).unwrap();
        symlink("../br1", folder.path().join("t2").join("master")).unwrap();
        assert_eq!(interfaces.warnings(&machine).len(), 2);
    }
}
