//! The third party of a pair: `romulus arbiter` beside the hosts, where no host's fate touches it.

use super::etcd::Nodes;
use crate::process;
use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tempfile::TempDir;

/// The port that the documents use.
const PORT: u16 = 7400;
/// From one machine's ports to the next one's.
pub(super) const PORTS: u16 = 10;
/// How long a command of an arbiter may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Where an arbiter keeps its records.
pub(crate) enum Records {
    /// In files of its own.
    Files,
    /// In etcd.
    Etcd(Nodes),
}

/// An arbiter that runs on this computer, inside the lab's namespaces. Dropping it ends it.
pub(crate) struct Arbiter {
    /// `None` while it has no power.
    child: Option<Child>,
    romulus: PathBuf,
    records: Records,
    /// Its store and keys, which go with it.
    folder: TempDir,
    log: PathBuf,
    /// Where its own words begin in the log: one of an earlier pair may have written there.
    log_begins: usize,
    number: u8,
    /// Where it answers.
    pub(crate) address: SocketAddr,
    /// Its public identity.
    pub(crate) identity: String,
}

impl Arbiter {
    /// Starts an arbiter at `address`, with no record in `records`, that answers these identities only, and logs to `logs`. `number`
    /// tells it from others at the same address: 0 for the usual port.
    ///
    /// # Errors
    /// It can't be started.
    pub(crate) fn start(
        romulus: &Path,
        address: Ipv4Addr,
        number: u8,
        records: Records,
        allowed: &[String],
        logs: &Path,
    ) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("romulus-arbiter-")
            .tempdir()?;
        let path = |name: &str| folder.path().join(name);
        let mut pair = Command::new(romulus);
        pair.args(["pair", "--json", "--identity"])
            .arg(path("identity"));
        let output = process::output_within(&mut pair, LIMIT)?;
        ensure!(
            output.status.success(),
            "`romulus pair` for the arbiter ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let identity = identity(&output.stdout)?;
        fs::write(path("allowed"), allowed.join("\n") + "\n")?;
        let address = SocketAddr::from((address, PORT + PORTS * u16::from(number)));
        let log = logs.join(log_name(number));
        File::options().create(true).append(true).open(&log)?;
        let log_begins = fs::read(&log)?.len();
        let mut arbiter = Self {
            child: None,
            romulus: romulus.to_owned(),
            records,
            folder,
            log,
            log_begins,
            number,
            address,
            identity,
        };
        arbiter.start_again()?;
        Ok(arbiter)
    }

    /// Starts it with the store that it has.
    ///
    /// # Errors
    /// It can't be started. Whether it answers shows later.
    pub(crate) fn start_again(&mut self) -> Result<()> {
        let output = File::options().append(true).create(true).open(&self.log)?;
        let path = |name: &str| self.folder.path().join(name);
        let mut command = Command::new(&self.romulus);
        command
            .args(["arbiter", "--listen", &self.address.to_string()])
            .arg("--identity")
            .arg(path("identity"))
            .arg("--allow")
            .arg(path("allowed"))
            .arg("--store");
        match &self.records {
            Records::Files => {
                command.arg(path("store"));
            }
            Records::Etcd(nodes) => {
                command.arg("etcd");
                for endpoint in nodes.endpoints() {
                    command.args(["--etcd-endpoint", &endpoint]);
                }
            }
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("starting the arbiter")?;
        self.child = Some(child);
        Ok(())
    }

    /// Ends it as a loss of power would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            process::kill(&mut child);
        }
    }

    /// Where its records are, if they are files.
    pub(crate) fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// The nodes of etcd that have its records.
    ///
    /// # Errors
    /// They are in files.
    pub(crate) fn nodes(&mut self) -> Result<&mut Nodes> {
        match &mut self.records {
            Records::Files => bail!("the arbiter has its records in files"),
            Records::Etcd(nodes) => Ok(nodes),
        }
    }

    /// What it has said so far.
    ///
    /// # Errors
    /// Its log can't be read.
    pub(crate) fn messages(&self) -> Result<String> {
        let text = fs::read(&self.log).context("reading the arbiter's log")?;
        let own = text.get(self.log_begins..).unwrap_or_default();
        Ok(String::from_utf8_lossy(own).into_owned())
    }

    /// Keeps its log in `folder`, unless it is there anyway.
    ///
    /// # Errors
    /// The folder can't be written.
    pub(super) fn keep_log(&self, folder: &Path) -> Result<()> {
        let kept = folder.join(log_name(self.number));
        if kept != self.log {
            fs::write(kept, self.messages()?)?;
        }
        Ok(())
    }

    /// Checks that it has not ended by itself.
    ///
    /// # Errors
    /// It has, with what it said.
    pub(crate) fn still_runs(&mut self) -> Result<()> {
        let Some(child) = &mut self.child else {
            return Ok(());
        };
        if let Some(status) = child.try_wait()? {
            bail!(
                "the arbiter ended with {status}: {}",
                self.messages()?.trim()
            );
        }
        Ok(())
    }
}

impl Drop for Arbiter {
    fn drop(&mut self) {
        self.kill();
    }
}

fn log_name(number: u8) -> String {
    match number {
        0 => "arbiter.log".to_owned(),
        _ => format!("arbiter-{number}.log"),
    }
}

/// The identity in what `romulus pair --json` prints.
pub(super) fn identity(json: &[u8]) -> Result<String> {
    #[derive(Deserialize)]
    struct Paired {
        identity: String,
    }
    let paired: Paired = serde_json::from_slice(json).with_context(|| {
        format!(
            "`romulus pair --json` printed {}",
            String::from_utf8_lossy(json).trim()
        )
    })?;
    Ok(paired.identity)
}

#[cfg(test)]
mod tests {
    use super::identity;

    #[test]
    fn the_identity_is_found_among_other_keys() {
        let json = br#"{"identity": "romulus-1:abc", "file": "/f", "new": true}"#;
        assert_eq!(identity(json).unwrap(), "romulus-1:abc");
        let error = identity(b"nothing").unwrap_err().to_string();
        assert!(error.contains("nothing"), "{error}");
    }
}
