//! What can happen to a host, as data: for the control socket and for tables of tests.

use std::fmt;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::host::Host;
use crate::network::{Direction, Network};

/// One thing that can happen to a host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// [`Host::power_off`]
    PowerOff,
    /// [`Host::power_on`]
    PowerOn,
    /// [`Host::hang`]
    Hang,
    /// [`Host::resume`]
    Resume,
    /// [`Host::cut_one_way`]
    Cut(Network, Direction),
    /// [`Host::mend`]
    Mend(Network),
    /// [`Host::unplug`]
    Unplug(Network),
    /// [`Host::plug`]
    Plug(Network),
    /// [`Host::impair`]
    Impair {
        /// On which network.
        network: Network,
        /// The share of frames that are lost, in percent.
        loss_percent: f64,
        /// By how much the others are late.
        delay: Duration,
    },
    /// [`Host::clear`]
    Clear(Network),
}

impl Host {
    /// Makes it happen.
    ///
    /// # Errors
    /// Those of the method that is named at each [`Fault`].
    pub fn apply(&self, fault: &Fault) -> Result<()> {
        match *fault {
            Fault::PowerOff => self.power_off(),
            Fault::PowerOn => self.power_on(),
            Fault::Hang => self.hang(),
            Fault::Resume => self.resume(),
            Fault::Cut(network, direction) => self.cut_one_way(network, direction),
            Fault::Mend(network) => self.mend(network),
            Fault::Unplug(network) => self.unplug(network),
            Fault::Plug(network) => self.plug(network),
            Fault::Impair {
                network,
                loss_percent,
                delay,
            } => self.impair(network, loss_percent, delay),
            Fault::Clear(network) => self.clear(network),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("power loss"),
            Self::PowerOn => f.write_str("power on"),
            Self::Hang => f.write_str("hang"),
            Self::Resume => f.write_str("return from the hang"),
            Self::Cut(network, Direction::Both) => write!(f, "silent cut of the {network} network"),
            Self::Cut(network, Direction::FromHost) => {
                write!(f, "silent cut of what it sends on the {network} network")
            }
            Self::Cut(network, Direction::ToHost) => {
                write!(f, "silent cut of what it hears on the {network} network")
            }
            Self::Mend(network) => write!(f, "{network} network mended"),
            Self::Unplug(network) => write!(f, "{network} network unplugged"),
            Self::Plug(network) => write!(f, "{network} network plugged in"),
            Self::Impair {
                network,
                loss_percent,
                delay,
            } => {
                write!(
                    f,
                    "{loss_percent} % loss and {delay:?} delay on the {network} network"
                )
            }
            Self::Clear(network) => write!(f, "{network} network as it was"),
        }
    }
}
