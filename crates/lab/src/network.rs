//! The lab's plan of addresses: which networks there are and who has which address on them.
//!
//! The addresses come from the ranges that RFC 5737 reserves for documentation, so that even a packet that escaped could
//! reach nobody.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use anyhow::bail;
use serde::{Deserialize, Serialize};

/// One of the three networks to which every host of the lab is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// Where the machines and their clients are: 192.0.2.0/24.
    Service,
    /// Between hosts, for what one host sends to the other: 198.51.100.0/24.
    Replication,
    /// Commands to the hosts, and the second path between them: 203.0.113.0/24.
    Control,
}

/// The most hosts that a lab can have; addresses of machines begin at 100.
pub const MAX_HOSTS: usize = 9;

/// The last part of the address of the lab's own end: the client on the service network, the lab on the control network.
pub(crate) const LAB_SUFFIX: u8 = 254;

impl Network {
    /// Every network, in the order in which hosts have their interfaces.
    pub const ALL: [Self; 3] = [Self::Service, Self::Replication, Self::Control];

    /// The address on this network that ends in `suffix`.
    pub const fn address(self, suffix: u8) -> Ipv4Addr {
        match self {
            Self::Service => Ipv4Addr::new(192, 0, 2, suffix),
            Self::Replication => Ipv4Addr::new(198, 51, 100, suffix),
            Self::Control => Ipv4Addr::new(203, 0, 113, suffix),
        }
    }

    /// The name of the interface to this network inside a host.
    pub const fn interface(self) -> &'static str {
        match self {
            Self::Service => "svc",
            Self::Replication => "rep",
            Self::Control => "ctl",
        }
    }

    /// The name of the bridge that is this network, in the lab's namespace.
    pub(crate) const fn bridge(self) -> &'static str {
        match self {
            Self::Service => "lab-svc",
            Self::Replication => "lab-rep",
            Self::Control => "lab-ctl",
        }
    }

    /// The name of the bridge's port that leads to host `n`.
    pub(crate) fn port(self, n: usize) -> String {
        format!("h{n}-{}", self.interface())
    }

    /// The hardware address of host `n`'s interface on this network.
    ///
    /// Its last byte tells the networks apart; the host's init names its interfaces by it.
    pub(crate) fn mac(self, n: usize) -> String {
        let network = match self {
            Self::Service => 1,
            Self::Replication => 2,
            Self::Control => 3,
        };
        format!("52:54:00:00:{n:02x}:{network:02x}")
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Service => "service",
            Self::Replication => "replication",
            Self::Control => "control",
        })
    }
}

impl FromStr for Network {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match Self::ALL
            .into_iter()
            .find(|n| n.to_string() == text || n.interface() == text)
        {
            Some(network) => Ok(network),
            None => {
                bail!("no network is called {text:?}; there are service, replication and control")
            }
        }
    }
}

/// Which frames of a host a silent cut takes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// Those in both directions.
    Both,
    /// Only those that the host sends: it still hears the others.
    FromHost,
    /// Only those to the host: the others still hear it.
    ToHost,
}

impl Direction {
    pub(crate) const fn stops_sending(self) -> bool {
        matches!(self, Self::Both | Self::FromHost)
    }

    pub(crate) const fn stops_hearing(self) -> bool {
        matches!(self, Self::Both | Self::ToHost)
    }
}

impl FromStr for Direction {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "both" => Self::Both,
            "from-host" => Self::FromHost,
            "to-host" => Self::ToHost,
            _ => bail!("no direction is called {text:?}; there are both, from-host and to-host"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_is_reserved_for_documentation() {
        for network in Network::ALL {
            assert!(network.address(1).is_documentation(), "{network}");
        }
    }

    #[test]
    fn names_fit_the_kernels_limit_of_interface_names() {
        for network in Network::ALL {
            assert!(network.bridge().len() < libc::IFNAMSIZ);
            assert!(network.port(MAX_HOSTS).len() < libc::IFNAMSIZ);
        }
    }

    #[test]
    fn hardware_addresses_differ_and_are_locally_administered() {
        let mut all: Vec<String> = (1..=MAX_HOSTS)
            .flat_map(|n| Network::ALL.map(|network| network.mac(n)))
            .collect();
        assert!(all.iter().all(|mac| mac.starts_with("52:")));
        all.sort();
        all.dedup();
        assert_eq!(all.len(), MAX_HOSTS * Network::ALL.len());
    }

    #[test]
    fn names_are_read_back() {
        for network in Network::ALL {
            assert_eq!(network.to_string().parse::<Network>().unwrap(), network);
            assert_eq!(network.interface().parse::<Network>().unwrap(), network);
        }
        assert!("serivce".parse::<Network>().is_err());
        assert_eq!("to-host".parse::<Direction>().unwrap(), Direction::ToHost);
    }
}
