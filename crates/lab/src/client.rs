//! The client: a place on the service network that is no host.

use std::io;
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::links::Networks;
use crate::network::{LAB_SUFFIX, Network};

/// Where the users of a machine are: a network namespace with one interface, on the service network.
pub struct Client {
    networks: Arc<Networks>,
}

impl Client {
    pub(crate) fn new(networks: Arc<Networks>) -> Self {
        Self { networks }
    }

    /// Its address on the service network.
    #[allow(
        clippy::unused_self,
        reason = "the plan of addresses is not the caller's business"
    )]
    pub fn address(&self) -> Ipv4Addr {
        Network::Service.address(LAB_SUFFIX)
    }

    /// A program of this computer that will run there. It dies with the lab.
    ///
    /// # Errors
    /// Where there is no file descriptor left.
    pub fn command(&self, program: &str) -> Result<Command> {
        self.networks
            .client()
            .command(program)
            .context("cannot prepare a command for the client")
    }

    /// Does `work` on a thread that is there: sockets that it opens are the client's.
    ///
    /// # Errors
    /// Those of `work`, and where the namespace cannot be entered.
    pub fn visit<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        self.networks.client().visit(work)
    }

    /// A TCP connection from there.
    ///
    /// # Errors
    /// Where nobody answers.
    pub fn connect(&self, address: std::net::SocketAddr) -> io::Result<TcpStream> {
        self.visit(|| TcpStream::connect(address))
    }
}
