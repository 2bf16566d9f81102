//! The lab's networks: bridges, ports, and the cuts that a bridge can make without either end seeing them.

use std::process::{Command, Output};

use anyhow::{Context, Result, bail};

use crate::enter::guard;
use crate::namespace::NetworkNamespace;
use crate::network::{Direction, LAB_SUFFIX, Network};

/// The lab's own interface on the control network. Its other end is a port of the bridge like those of the hosts: what a
/// bridge sends by itself does not obey the cuts.
const LAB_INTERFACE: &str = "lab";

/// The client's interface on the service network.
const CLIENT_INTERFACE: &str = "svc";

/// Runs `ip`, `bridge` or another tool that says what is wrong on its standard error.
pub(crate) fn tool(mut command: Command) -> Result<String> {
    let shown = format!("{command:?}").replace('"', "");
    let output = command
        .output()
        .with_context(|| format!("cannot run `{shown}` (on Debian: apt-get install iproute2)"))?;
    succeeded(&output).with_context(|| format!("`{shown}` failed"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn succeeded(output: &Output) -> Result<()> {
    if output.status.success() {
        return Ok(());
    }
    match String::from_utf8_lossy(&output.stderr).trim() {
        "" => bail!("{}", output.status),
        text => bail!("{text}"),
    }
}

pub(crate) fn ip(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(arguments);
    tool(command).map(drop)
}

fn bridge(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("bridge");
    command.args(arguments);
    tool(command).map(drop)
}

/// The three bridges, the lab's own end and the client's; removed when dropped.
#[derive(Debug)]
pub(crate) struct Networks {
    client: NetworkNamespace,
}

impl Networks {
    /// Makes them in the network namespace of this process, which has to be the lab's own.
    pub(crate) fn make() -> Result<Self> {
        guard()?;
        // What these interfaces would say by themselves only disturbs measurements; IPv6 of the guests passes all the same.
        for scope in ["default", "all"] {
            // A kernel without IPv6 has no such file, and nothing to switch off.
            let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1");
        }
        ip(&["link", "set", "lo", "up"])?;
        let networks = Self {
            client: NetworkNamespace::new()?,
        };
        for network in Network::ALL {
            let name = network.bridge();
            ip(&add_bridge(name))?;
            ip(&["link", "set", name, "up"])?;
        }
        Self::add_lab()?;
        networks.add_client()?;
        Ok(networks)
    }

    fn add_lab() -> Result<()> {
        add_veth("lab-port", LAB_INTERFACE)?;
        ip(&[
            "link",
            "set",
            "lab-port",
            "master",
            Network::Control.bridge(),
            "up",
        ])?;
        ip(&[
            "addr",
            "add",
            &cidr(Network::Control, LAB_SUFFIX),
            "dev",
            LAB_INTERFACE,
        ])?;
        ip(&["link", "set", LAB_INTERFACE, "up"])
    }

    fn add_client(&self) -> Result<()> {
        add_veth("client-port", "client-end")?;
        ip(&[
            "link",
            "set",
            "client-port",
            "master",
            Network::Service.bridge(),
            "up",
        ])?;
        self.client.adopt("client-end", CLIENT_INTERFACE)?;
        self.client.ip(&["link", "set", "lo", "up"])?;
        self.client.ip(&[
            "addr",
            "add",
            &cidr(Network::Service, LAB_SUFFIX),
            "dev",
            CLIENT_INTERFACE,
        ])?;
        self.client.ip(&["link", "set", CLIENT_INTERFACE, "up"])
    }

    pub(crate) fn client(&self) -> &NetworkNamespace {
        &self.client
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        // What fails here is gone already.
        for name in Network::ALL
            .map(Network::bridge)
            .into_iter()
            .chain(["lab-port", "client-port"])
        {
            let _ = ip(&["link", "delete", name]);
        }
    }
}

/// The address with the length of its network, as `ip` takes it.
pub(crate) fn cidr(network: Network, suffix: u8) -> String {
    format!("{}/24", network.address(suffix))
}

/// How `ip` is told to make a bridge that passes frames on from the first one, all of them.
pub(crate) fn add_bridge(name: &str) -> [&str; 11] {
    [
        "link",
        "add",
        name,
        "type",
        "bridge",
        "forward_delay",
        "0",
        "stp_state",
        "0",
        "mcast_snooping",
        "0",
    ]
}

pub(crate) fn add_veth(one: &str, other: &str) -> Result<()> {
    ip(&["link", "add", one, "type", "veth", "peer", "name", other])
        .context("cannot make a pair of interfaces (the kernel's module veth is needed)")
}

/// Host `n`'s port on a network.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    name: String,
}

impl Port {
    pub(crate) fn new(network: Network, n: usize) -> Self {
        Self {
            name: network.port(n),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Makes the port as a tap for QEMU.
    pub(crate) fn make_tap(&self, network: Network) -> Result<()> {
        guard_inside()?;
        ip(&["tuntap", "add", &self.name, "mode", "tap", "vnet_hdr"]).context(
            "this user may not make TAP interfaces: /dev/net/tun has to be there and usable (load the module tun; \
             chmod 666 /dev/net/tun, as most distributions have it)",
        )?;
        ip(&["link", "set", &self.name, "master", network.bridge(), "up"])
    }

    pub(crate) fn delete(&self) {
        // What fails here is gone already.
        let _ = ip(&["link", "delete", &self.name]);
    }

    /// Cuts the line at the bridge, in such a way that neither side can see it: the carrier stays.
    ///
    /// A locked port takes only frames from addresses that the bridge knows there, and it is made to know none; without
    /// flooding and learning, no frame goes out of it.
    pub(crate) fn cut(&self, direction: Direction) -> Result<()> {
        let hear = if direction.stops_hearing() {
            "off"
        } else {
            "on"
        };
        let locked = if direction.stops_sending() {
            "on"
        } else {
            "off"
        };
        let flood = ["flood", hear, "mcast_flood", hear, "bcast_flood", hear];
        let settings = ["learning", hear, "locked", locked];
        bridge(
            &[
                ["link", "set", "dev", &self.name].as_slice(),
                &flood,
                &settings,
            ]
            .concat(),
        )
        .context("this kernel's bridge cannot cut a port silently (Linux 5.18 can)")?;
        self.forget()
    }

    /// Undoes every cut.
    pub(crate) fn mend(&self) -> Result<()> {
        let all_on = [
            "flood",
            "on",
            "mcast_flood",
            "on",
            "bcast_flood",
            "on",
            "learning",
            "on",
            "locked",
            "off",
        ];
        bridge(&[["link", "set", "dev", &self.name].as_slice(), &all_on].concat())
    }

    /// Makes the bridge forget which addresses it saw at this port.
    fn forget(&self) -> Result<()> {
        ip(&[
            "link",
            "set",
            "dev",
            &self.name,
            "type",
            "bridge_slave",
            "fdb_flush",
        ])
    }
}

/// As [`guard`], once the lab's networks are made.
fn guard_inside() -> Result<()> {
    if crate::enter::is_inside() {
        return Ok(());
    }
    guard()
}
