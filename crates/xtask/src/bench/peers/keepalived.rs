//! Two Kamailios that share an address and their contacts, each in a machine of its own on a host of its own, with no protection
//! by Romulus.

use crate::{
    assets::{Assets, Guest},
    contacts,
    machine_file::{FIRST_GUEST, MachineFile, address},
    machine_host::{self, Running},
    options, process,
    sipp::{self, Load, Transport},
};
use anyhow::{Context as _, Result, ensure};
use lab::Lab;
use std::{
    io::{Read as _, Write as _},
    net::Ipv4Addr,
    time::{Duration, SystemTime},
};

/// How long a guest may take to come up.
const BOOT_LIMIT: Duration = Duration::from_mins(2);
/// How long the two may take to find each other.
const JOINED_WITHIN: Duration = Duration::from_mins(1);
/// The guest's shell (`service.shell`).
const SHELL: u16 = 23;

/// The two. The first has the shared address.
pub(super) struct Keepalived<'lab> {
    pub(super) lab: &'lab Lab,
    machines: Vec<Running<'lab>>,
}

impl<'lab> Keepalived<'lab> {
    /// Starts both, with `advert` seconds from one VRRP advertisement to the next, and waits until the first has the address
    /// and the second its contacts.
    ///
    /// # Errors
    /// They don't get there.
    pub(super) fn start(
        lab: &'lab Lab,
        assets: &Assets,
        guest: &'lab Guest,
        advert: &str,
    ) -> Result<Self> {
        let mut machines = Vec::new();
        // One after the other: the first is to have the address.
        for (number, other) in [(1_u8, 2_u8), (2, 1)] {
            let host = lab.host(usize::from(number));
            machine_host::place_romulus(host, assets)?;
            let folder = machine_host::place_guest(host, guest)?;
            let mut file = MachineFile::new("registrar", guest, &folder, number);
            let cluster = format!(
                " service.shell cluster.address={FIRST_GUEST}/24 cluster.peer={} cluster.priority={} \
                 cluster.advert={advert}",
                address(other),
                200 - 50 * u32::from(number),
            );
            file.boot.command_line.push_str(&cluster);
            let machine = Running::start(host, file)?;
            machine.wait_console("GUEST UP", BOOT_LIMIT)?;
            machines.push(machine);
            if number == 1 {
                options::answers(lab.client(), sipp::sip(FIRST_GUEST), JOINED_WITHIN)?;
            }
        }
        ensure!(
            holds(lab, address(1))? && !holds(lab, address(2))?,
            "the shared address is not the first guest's alone"
        );
        let keepalived = Self { lab, machines };
        keepalived.wait_joined()?;
        Ok(keepalived)
    }

    /// Waits until a contact that the first was given is the second's, too.
    fn wait_joined(&self) -> Result<()> {
        let client = self.lab.client();
        let load = Load {
            server: sipp::sip(FIRST_GUEST),
            transport: Transport::Udp,
            users: "joined",
            rate: 1,
            count: 1,
        };
        process::poll(JOINED_WITHIN, Duration::from_millis(500), || {
            sipp::register(client, load)?;
            let second = sipp::sip(address(2));
            let missing = contacts::missing(client, second, &["joined1".to_owned()])?;
            Ok(missing.is_empty().then_some(()))
        })?
        .context("the second Kamailio never has the contacts of the first")
    }

    /// Cuts the power of the first host.
    ///
    /// # Errors
    /// The shared address is elsewhere.
    pub(super) fn cut(&mut self) -> Result<SystemTime> {
        ensure!(
            holds(self.lab, address(1))?,
            "the shared address has moved without a failure"
        );
        let at = SystemTime::now();
        self.lab.host(1).power_off()?;
        self.machines.remove(0);
        Ok(at)
    }
}

/// Whether a guest has the shared address, by its own word.
fn holds(lab: &Lab, guest: Ipv4Addr) -> Result<bool> {
    let mut shell = lab
        .client()
        .connect((guest, SHELL).into())
        .with_context(|| format!("connecting to the shell of the guest at {guest}"))?;
    shell.set_read_timeout(Some(Duration::from_secs(10)))?;
    shell.write_all(b"ip addr show; exit\n")?;
    let mut text = String::new();
    shell.read_to_string(&mut text)?;
    Ok(names_address(&text, FIRST_GUEST))
}

/// Whether the list of `ip addr show` has this address.
fn names_address(list: &str, address: Ipv4Addr) -> bool {
    let start = format!("inet {address}/");
    list.lines().any(|line| line.trim().starts_with(&start))
}

#[cfg(test)]
mod tests {
    use super::names_address;

    #[test]
    fn an_address_is_found_whole() {
        let list = "2: eth0: <UP>\n    inet 192.0.2.101/24 brd 192.0.2.255 scope global eth0\n    inet 192.0.2.100/24 scope global secondary eth0\n";
        let has = |text: &str| names_address(list, text.parse().unwrap());
        assert!(has("192.0.2.100") && has("192.0.2.101"));
        assert!(!has("192.0.2.10") && !has("192.0.2.255"));
    }
}
