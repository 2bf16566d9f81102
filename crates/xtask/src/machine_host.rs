//! A machine that runs in a lab host: what it takes to start it, to talk to it and to stop it.

use crate::{
    assets::{Assets, Guest},
    machine_file::MachineFile,
    memory, process,
};
use anyhow::{Context as _, Result, bail, ensure};
use lab::{Host, Remote};
use serde_json::Value;
use std::{fs, path::Path, process::ExitStatus, time::Duration};

/// Where `romulus` is put in a host.
pub(crate) const ROMULUS: &str = "/usr/bin/romulus";

/// Puts the program into a host.
///
/// # Errors
/// The host can't be reached.
pub(crate) fn place_romulus(host: &Host, assets: &Assets) -> Result<()> {
    host.push(&assets.romulus, ROMULUS)
        .context("putting romulus into the host")?;
    host.sh("mkdir -p /etc/romulus /var/log/romulus /var/tmp")?;
    Ok(())
}

/// Puts a guest's files into a host and gives their folder there. A disk image goes in sparse.
///
/// # Errors
/// The host can't be reached, or is full.
pub(crate) fn place_guest(host: &Host, guest: &Guest) -> Result<String> {
    let folder = format!("/guests/{}", guest.name);
    host.push(&guest.kernel, &format!("{folder}/vmlinuz"))?;
    host.push(&guest.initrd, &format!("{folder}/initrd.img"))?;
    if let Some(disk) = &guest.disk {
        host.push(disk, &format!("{folder}/disk.img"))?;
    }
    Ok(folder)
}

/// A `romulus run` in a host. Dropping it kills the process.
pub(crate) struct Running<'lab> {
    host: &'lab Host,
    /// What it was started with.
    pub(crate) file: MachineFile,
    remote: Remote,
}

impl<'lab> Running<'lab> {
    /// Writes the machine file into the host and starts the machine.
    ///
    /// # Errors
    /// The host can't be reached. Whether the machine comes up shows later.
    pub(crate) fn start(host: &'lab Host, file: MachineFile) -> Result<Self> {
        write_machine_file(host, &file)?;
        let script = format!("exec {ROMULUS} run {} 2>>{}", file.path(), messages(&file));
        let remote = host
            .spawn(&["sh", "-c", &script])
            .context("starting romulus in the host")?;
        Ok(Self { host, file, remote })
    }

    /// The process's number in the host.
    pub(crate) fn pid(&self) -> i32 {
        self.remote.pid()
    }

    /// Waits until the guest's console shows `text`.
    ///
    /// # Errors
    /// It does not within `limit`, or the process has ended.
    pub(crate) fn wait_console(&self, text: &str, limit: Duration) -> Result<()> {
        let seen = process::poll(limit, Duration::from_millis(200), || {
            if self.console()?.contains(text) {
                return Ok(Some(()));
            }
            self.still_runs()?;
            Ok(None)
        })?;
        seen.with_context(|| {
            format!(
                "{}'s console did not show {text:?} within {} s",
                self.file.name,
                limit.as_secs()
            )
        })
    }

    /// What the guest has written to its console so far.
    ///
    /// # Errors
    /// The host can't be reached.
    pub(crate) fn console(&self) -> Result<String> {
        self.host.sh(&format!(
            "cat {} 2>/dev/null || true",
            self.file.console.log
        ))
    }

    /// What the process has said on standard error so far.
    ///
    /// # Errors
    /// The host can't be reached.
    pub(crate) fn messages(&self) -> Result<String> {
        self.host
            .sh(&format!("cat {} 2>/dev/null || true", messages(&self.file)))
    }

    /// Checks that the process has not ended.
    ///
    /// # Errors
    /// It has; with its exit code and what it said.
    pub(crate) fn still_runs(&self) -> Result<()> {
        match self.remote.status() {
            None => Ok(()),
            Some(status) => bail!("romulus ended with {status}: {}", self.messages()?.trim()),
        }
    }

    /// Waits for the process's end and gives its exit status.
    ///
    /// # Errors
    /// It runs on.
    pub(crate) fn wait(&self, limit: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.remote.wait_at_most(limit)? {
            return Ok(status);
        }
        bail!(
            "{} still runs after {} s: {}",
            self.file.name,
            limit.as_secs(),
            self.threads()?
        )
    }

    /// What the process's threads wait for, to tell why it does not end.
    fn threads(&self) -> Result<String> {
        let script = format!(
            "for task in /proc/{}/task/*; do \
                 echo \"$(cat $task/comm) in $(cat $task/wchan 2>/dev/null), call $(cut -d' ' -f1 $task/syscall 2>/dev/null);\"; \
             done 2>/dev/null || true",
            self.pid()
        );
        let threads = self.host.sh(&script)?;
        Ok(if threads.is_empty() {
            "its process is gone".to_owned()
        } else {
            threads.replace('\n', " ")
        })
    }

    /// `romulus status NAME --json`.
    ///
    /// # Errors
    /// It fails or prints no JSON.
    pub(crate) fn status(&self) -> Result<Value> {
        let text = self
            .host
            .sh(&format!("{ROMULUS} status {} --json", self.file.name))?;
        serde_json::from_str(&text)
            .with_context(|| format!("`romulus status --json` printed no JSON: {text}"))
    }

    /// `romulus stop NAME`: the command's own exit code, and that of the machine's process.
    ///
    /// # Errors
    /// The machine runs on.
    pub(crate) fn stop(&self, limit: Duration) -> Result<Stopped> {
        let output = self.host.run(&[ROMULUS, "stop", &self.file.name])?;
        let machine = self.wait(limit).with_context(|| {
            format!(
                "`romulus stop` ended with {}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            )
        })?;
        Ok(Stopped {
            command: output.status.code(),
            machine: machine.code(),
        })
    }

    /// Kills the process as a crash would.
    ///
    /// # Errors
    /// The host can't be reached.
    pub(crate) fn kill(&self) -> Result<()> {
        self.remote.kill()?;
        self.wait(Duration::from_secs(5)).map(drop)
    }

    /// KiB that the process holds beyond its guest's memory of `guest_mib`.
    ///
    /// # Errors
    /// The process has ended.
    pub(crate) fn resident_beyond_guest_kib(&self, guest_mib: u64) -> Result<u64> {
        resident_beyond_guest_kib(self.host, self.pid(), guest_mib)
    }
}

/// How an orderly stop ended; `None` stands for a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stopped {
    /// Exit code of `romulus stop`.
    pub(crate) command: Option<i32>,
    /// Exit code of `romulus run`.
    pub(crate) machine: Option<i32>,
}

impl Stopped {
    /// The guest shut down by itself, and both commands say so.
    pub(crate) const IN_ORDER: Self = Self {
        command: Some(0),
        machine: Some(0),
    };
}

/// KiB that process `pid` of a host holds beyond the memory of its guest of `guest_mib`.
///
/// # Errors
/// The process has ended.
pub(crate) fn resident_beyond_guest_kib(host: &Host, pid: i32, guest_mib: u64) -> Result<u64> {
    let smaps = host.sh(&format!("cat /proc/{pid}/smaps"))?;
    ensure!(!smaps.is_empty(), "process {pid} has no mappings");
    Ok(memory::resident_beyond_guest_kib(
        &smaps,
        (guest_mib << 20).min(1 << 30),
    ))
}

/// Where the process's messages go in the host.
fn messages(file: &MachineFile) -> String {
    format!("/var/log/romulus/{}.stderr", file.name)
}

/// Writes a machine file where [`MachineFile::path`] says.
///
/// # Errors
/// The host can't be reached.
pub(crate) fn write_machine_file(host: &Host, file: &MachineFile) -> Result<()> {
    host.agent()
        .write(toml::to_string(file)?.as_bytes(), 0o644, &file.path())
}

/// Keeps what tells why a job failed: the consoles of a host's guests and the messages of its processes.
///
/// # Errors
/// The folder can't be written. A host that can't be reached any more is no error.
pub(crate) fn keep_logs(host: &Host, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let list = host
        .sh("ls /var/log/romulus/* 2>/dev/null || true")
        .unwrap_or_default();
    for remote in list.lines() {
        let name = remote.rsplit('/').next().unwrap_or(remote);
        if let Err(error) = host.pull(remote, &folder.join(format!("{}-{name}", host.name()))) {
            eprintln!("{remote} of {} is lost: {error:#}", host.name());
        }
    }
    Ok(())
}
