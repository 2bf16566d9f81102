//! MACHINE.toml files for the machines of jobs, and where their files are in a host.

use crate::assets::Guest;
use serde::Serialize;
use std::net::{Ipv4Addr, SocketAddr};

/// A machine of a job. Paths are those in the host.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct MachineFile {
    /// The machine's name.
    pub(crate) name: String,
    /// What the arbiter knows it by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) uuid: Option<String>,
    /// Number of vCPUs.
    pub(crate) vcpus: u8,
    /// Memory, with unit.
    pub(crate) memory: String,
    /// `restart` or `exit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) on_reboot: Option<&'static str>,
    /// How long an orderly stop may take, with unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stop_timeout: Option<&'static str>,
    /// What it boots.
    pub(crate) boot: Boot,
    /// Where its console's output goes.
    pub(crate) console: Console,
    /// Its network cards.
    #[serde(rename = "nic")]
    pub(crate) nics: Vec<Nic>,
    /// Its disks.
    #[serde(rename = "disk", skip_serializing_if = "Vec::is_empty")]
    pub(crate) disks: Vec<Disk>,
    /// How a second host protects it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) protection: Option<Protection>,
}

/// The `[protection]` section. What it leaves out has the product's own default.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Protection {
    /// Where the arbiter answers.
    pub(crate) arbiter: SocketAddr,
    /// Its public identity.
    pub(crate) arbiter_identity: String,
    /// The file of this host's secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) identity: Option<String>,
    /// Which output is held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mode: Option<String>,
    /// Output on its way is sent again at a takeover.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) resend_output: Option<bool>,
    /// Input on its way is given to the guest that takes over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) forward_input: Option<bool>,
    /// How often the replica is rehearsed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rehearse: Option<String>,
    /// The one time-out from which the others follow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) t_b: Option<String>,
    /// How far that may grow by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) t_b_max: Option<String>,
    /// The length of every epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) epoch_fixed: Option<String>,
    /// Interfaces whose carrier the service needs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) uplink: Option<Vec<String>>,
    /// The silence that a cold start needs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) t_cold: Option<String>,
    /// The two hosts; a new machine starts on the first.
    #[serde(rename = "host")]
    pub(crate) hosts: [ProtectionHost; 2],
}

/// A `[[protection.host]]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ProtectionHost {
    /// Its name.
    pub(crate) name: String,
    /// Its public identity.
    pub(crate) identity: String,
    /// Where checkpoints and heartbeats arrive.
    pub(crate) replication: SocketAddr,
    /// The second path.
    pub(crate) control: SocketAddr,
}

/// The `[boot]` section.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Boot {
    /// The kernel file.
    pub(crate) kernel: String,
    /// The initial RAM file system.
    pub(crate) initrd: String,
    /// The kernel's command line.
    pub(crate) command_line: String,
}

/// The `[console]` section.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Console {
    /// The log file.
    pub(crate) log: String,
}

/// A `[[nic]]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Nic {
    /// The tap's name.
    pub(crate) tap: String,
    /// The bridge that it joins.
    pub(crate) bridge: String,
    /// The card's address.
    pub(crate) mac: String,
    /// Largest payload.
    pub(crate) mtu: u16,
}

/// A `[[disk]]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Disk {
    /// The image.
    pub(crate) path: String,
    /// Refuse writes.
    pub(crate) read_only: bool,
}

/// The memory of most machines, in MiB.
const USUAL_MIB: u32 = 512;

/// The address of machine 0's guest.
pub(crate) const FIRST_GUEST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);

impl MachineFile {
    /// A machine with one vCPU and 512 MiB or what the guest wants, one card on the host's service bridge, and the guest at `folder` in the host
    /// (see [`super::machine_host::place_guest`]). `number` makes its address, card and tap its own: 0 for 192.0.2.100.
    pub(crate) fn new(name: &str, guest: &Guest, folder: &str, number: u8) -> Self {
        let disks = guest.disk.iter().map(|_| Disk {
            path: format!("{folder}/disk.img"),
            read_only: false,
        });
        Self {
            name: name.to_owned(),
            uuid: None,
            vcpus: 1,
            memory: format!("{} MiB", guest.memory_mib.max(USUAL_MIB)),
            on_reboot: None,
            stop_timeout: None,
            boot: Boot {
                kernel: format!("{folder}/vmlinuz"),
                initrd: format!("{folder}/initrd.img"),
                command_line: command_line(guest, number),
            },
            console: Console {
                log: format!("/var/log/romulus/{name}.log"),
            },
            nics: vec![Nic {
                tap: format!("tap{number}"),
                bridge: "br0".to_owned(),
                mac: mac(number),
                mtu: 1500,
            }],
            disks: disks.collect(),
            protection: None,
        }
    }

    /// Where the machine file goes in the host.
    pub(crate) fn path(&self) -> String {
        format!("/etc/romulus/{}.toml", self.name)
    }
}

/// The card's address of machine `number`.
pub(crate) fn mac(number: u8) -> String {
    format!("52:54:00:aa:00:{:02x}", number + 1)
}

/// The guest's address of machine `number`.
pub(crate) fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::from_bits(FIRST_GUEST.to_bits() + u32::from(number))
}

/// The command line of machine `number`: the recipe's own, and the machine's address.
pub(crate) fn command_line(guest: &Guest, number: u8) -> String {
    format!(
        "{} ip={}:::255.255.255.0::eth0:off",
        guest.command_line,
        address(number)
    )
}

#[cfg(test)]
mod tests {
    use super::{MachineFile, address};
    use crate::assets::Guest;

    #[test]
    fn a_machine_file_is_valid_toml_with_the_agreed_keys() {
        let guest = Guest {
            name: "registrar-bookworm-disk".into(),
            kernel: "/k".into(),
            release: "6.1.0".into(),
            modules: "/m".into(),
            initrd: "/i".into(),
            disk: Some("/d".into()),
            command_line: "console=ttyS0 \"x\"".into(),
            memory_mib: 768,
        };
        let text = toml::to_string(&MachineFile::new("one", &guest, "/guests/a", 1)).unwrap();
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table["boot"]["kernel"].as_str(), Some("/guests/a/vmlinuz"));
        assert_eq!(table["nic"][0]["mac"].as_str(), Some("52:54:00:aa:00:02"));
        assert_eq!(
            table["disk"][0]["path"].as_str(),
            Some("/guests/a/disk.img")
        );
        assert_eq!(table["memory"].as_str(), Some("768 MiB"));
        assert!(!text.contains("on_reboot"));
        assert!(
            table["boot"]["command_line"]
                .as_str()
                .unwrap()
                .contains("ip=192.0.2.101::")
        );
        assert_eq!(address(1).to_string(), "192.0.2.101");
    }
}
