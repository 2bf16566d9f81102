//! One host of a pair, and what it keeps over a loss of power.

use crate::{
    assets::{Assets, Guest},
    machine_file::MachineFile,
    machine_host::{self, Running},
};
use anyhow::Result;
use lab::Host;
use std::fs;

/// Where a host's secret is.
const IDENTITY: &str = "/etc/romulus/identity";

/// One host of the pair.
pub(super) struct Side<'lab> {
    pub(super) host: &'lab Host,
    assets: &'lab Assets,
    guest: &'lab Guest,
    /// What a real host would have on its disk, and a lab host has in its memory.
    durable: Durable,
    pub(super) running: Option<Running<'lab>>,
    /// What was in its log when it lost its power, each time.
    pub(super) last_words: Vec<String>,
}

/// What survives a loss of power.
#[derive(Default)]
struct Durable {
    identity: Vec<u8>,
    sidecar: Option<Vec<u8>>,
    /// Images that the guest may write: where, and what was in them.
    images: Vec<(String, Vec<u8>)>,
}

impl<'lab> Side<'lab> {
    /// A host on which nothing runs yet.
    pub(super) fn new(host: &'lab Host, assets: &'lab Assets, guest: &'lab Guest) -> Self {
        Self {
            host,
            assets,
            guest,
            durable: Durable::default(),
            running: None,
            last_words: Vec::new(),
        }
    }

    /// Notes the host's secret, which it has for good.
    pub(super) fn remember_identity(&mut self) -> Result<()> {
        self.durable.identity = self.pull(IDENTITY)?;
        Ok(())
    }

    /// Notes what a loss of power would leave of a machine.
    pub(super) fn remember_machine(&mut self, file: &MachineFile) -> Result<()> {
        let writable = file.disks.iter().filter(|disk| !disk.read_only);
        self.durable.images = writable
            .map(|disk| Ok((disk.path.clone(), self.pull(&disk.path)?)))
            .collect::<Result<_>>()?;
        let path = sidecar(&file.name);
        let there = self
            .host
            .sh(&format!("test -e {path} && echo there || true"))?;
        self.durable.sidecar = match there.trim() {
            "" => None,
            _ => Some(self.pull(&path)?),
        };
        Ok(())
    }

    /// Gives it power, and what it had on its disk.
    pub(super) fn power_on(&self, file: &MachineFile) -> Result<()> {
        if !self.host.is_on() {
            self.host.power_on()?;
        }
        machine_host::place_romulus(self.host, self.assets)?;
        machine_host::place_guest(self.host, self.guest)?;
        let agent = self.host.agent();
        agent.write(&self.durable.identity, 0o600, IDENTITY)?;
        if let Some(content) = &self.durable.sidecar {
            agent.write(content, 0o644, &sidecar(&file.name))?;
        }
        for (path, content) in &self.durable.images {
            agent.write(content, 0o644, path)?;
        }
        Ok(())
    }

    fn pull(&self, path: &str) -> Result<Vec<u8>> {
        let local = tempfile::NamedTempFile::new()?;
        self.host.pull(path, local.path())?;
        Ok(fs::read(local.path())?)
    }
}

/// Where a host keeps what it must not forget about a machine.
fn sidecar(name: &str) -> String {
    format!("/var/lib/romulus/{name}/sidecar")
}
