//! What scenarios are made of.

use crate::{
    assets::{Assets, Image},
    guest_shell,
    machine_file::{MachineFile, address},
    machine_host::{self, Running},
    options,
    pair::Pair,
    sipp::{self, Load, Outcome, Transport},
};
use anyhow::{Context as _, Result, ensure};
use images::{Initramfs, Progress};
use lab::{Host, Lab};
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How long a guest may take to answer SIP: two hosts share this computer, and tests run beside others.
pub(super) const BOOT_LIMIT: Duration = Duration::from_mins(4);
/// How long a command in a guest may take, if nothing else is said.
pub(super) const COMMAND_LIMIT: Duration = Duration::from_mins(3);
/// How long a guest may take to shut down.
pub(super) const STOP_LIMIT: Duration = Duration::from_mins(3);

/// A lab whose first host has `romulus` in it.
pub(super) struct Case {
    /// The lab.
    pub(super) lab: Lab,
    /// What was prepared.
    pub(super) assets: Assets,
    logs: PathBuf,
}

impl Case {
    /// Starts the lab.
    pub(super) fn start(
        assets: Assets,
        hosts: usize,
        host_mib: u32,
        logs: PathBuf,
    ) -> Result<Self> {
        let config = assets.lab_config(hosts, host_mib, &logs);
        let lab = Lab::start(&config, &Progress::new())?;
        machine_host::place_romulus(lab.host(1), &assets)?;
        Ok(Self { lab, assets, logs })
    }

    /// Where logs go.
    pub(super) fn logs(&self) -> &Path {
        &self.logs
    }

    /// Keeps the consoles and messages of the hosts' machines.
    pub(super) fn keep_logs(&self) -> Result<()> {
        for host in self.lab.hosts().iter().filter(|host| host.is_on()) {
            machine_host::keep_logs(host, &self.logs)?;
        }
        Ok(())
    }

    /// The first host.
    pub(super) fn host(&self) -> &Host {
        self.lab.host(1)
    }

    /// Puts a guest into the host and gives the file of a machine called `name` with it. The guest has a shell for
    /// [`Self::in_guest`] and an iperf3 server.
    pub(super) fn machine(&self, name: &str, image: Image, number: u8) -> Result<MachineFile> {
        let guest = self.assets.guest(image)?;
        let folder = machine_host::place_guest(self.host(), guest)?;
        let mut file = MachineFile::new(name, guest, &folder, number);
        file.boot
            .command_line
            .push_str(" service.shell service.iperf3");
        Ok(file)
    }

    /// Gives a machine's guest more kernel modules, as `/extra/NAME.ko`. Those that are built into its kernel are left out.
    pub(super) fn add_modules(
        &self,
        file: &mut MachineFile,
        image: Image,
        names: &[&str],
    ) -> Result<()> {
        let guest = self.assets.guest(image)?;
        let mut extra = Initramfs::new();
        for name in names {
            if let Some(module) = find(&guest.modules, &format!("{name}.ko"))? {
                extra.copy(&module, &format!("/extra/{name}.ko"), Some(0o644))?;
            }
        }
        let segment = tempfile::NamedTempFile::new()?;
        extra.write(segment.path())?;
        let mut initrd = fs::read(&guest.initrd)?;
        initrd.extend(fs::read(segment.path())?);
        file.boot.initrd.push_str(".extra");
        self.host().agent().write(&initrd, 0o644, &file.boot.initrd)
    }

    /// A pair on the lab's first two hosts whose machine runs on the first and is protected. Its guest has a shell.
    pub(super) fn protected(&self, image: Image) -> Result<Pair<'_>> {
        self.protected_with(image, |_| ())
    }

    /// [`Self::protected`] with more in its machine file. A machine may be protected before its guest has started
    /// everything, so that is waited for, too.
    pub(super) fn protected_with(
        &self,
        image: Image,
        more: impl FnOnce(&mut MachineFile),
    ) -> Result<Pair<'_>> {
        let guest = self.assets.guest(image)?;
        let pair = Pair::protected(&self.lab, &self.assets, guest, |file| {
            with_shell(file);
            more(file);
        })?;
        pair.running(0)?.wait_console("GUEST UP", BOOT_LIMIT)?;
        Ok(pair)
    }

    /// Starts a machine and waits until its guest says that all its services are up.
    pub(super) fn boot(&self, file: MachineFile) -> Result<Running<'_>> {
        let running = Running::start(self.host(), file)?;
        running.wait_console("GUEST UP", BOOT_LIMIT)?;
        Ok(running)
    }

    /// Starts a machine and waits until machine `number`'s guest answers SIP; gives the time that took.
    pub(super) fn boot_sip(
        &self,
        file: MachineFile,
        number: u8,
    ) -> Result<(Running<'_>, Duration)> {
        let watch = options::watch(self.lab.client(), sipp::sip(address(number)), BOOT_LIMIT)?;
        let start = Instant::now();
        let running = Running::start(self.host(), file)?;
        let answered = watch
            .wait()
            .or_else(|error| running.still_runs().and(Err(error)))?;
        Ok((running, answered.duration_since(start)))
    }

    /// Checks that machine `number`'s guest answers SIP now.
    pub(super) fn answers(&self, number: u8) -> Result<()> {
        options::answers(
            self.lab.client(),
            sipp::sip(address(number)),
            Duration::from_secs(10),
        )
    }

    /// Registers users from the client; all must succeed.
    pub(super) fn register(
        &self,
        number: u8,
        transport: Transport,
        rate: u32,
        count: u32,
    ) -> Result<Outcome> {
        let load = Load {
            server: sipp::sip(address(number)),
            transport,
            users: "user",
            rate,
            count,
        };
        let outcome = sipp::register(self.lab.client(), load)?;
        ensure!(
            outcome.all_ok(),
            "registrations failed over {}: {}",
            transport.name(),
            outcome.summary()
        );
        eprintln!("{}: {}", transport.name(), outcome.summary());
        Ok(outcome)
    }

    /// Runs a script in machine `number`'s guest, by its shell on the network, and gives what it printed.
    ///
    /// # Errors
    /// The guest can't be reached, or the script ended with another status than 0.
    pub(super) fn in_guest(&self, number: u8, script: &str) -> Result<String> {
        self.in_guest_within(number, script, COMMAND_LIMIT)
    }

    /// [`Self::in_guest`] with a limit of its own.
    pub(super) fn in_guest_within(
        &self,
        number: u8,
        script: &str,
        limit: Duration,
    ) -> Result<String> {
        let (text, status) = self.try_in_guest(number, script, limit)?;
        ensure!(
            status == 0,
            "in the guest `{script}` ended with status {status}: {}",
            text.trim()
        );
        Ok(text)
    }

    /// Runs a script in a guest; gives what it printed and its status.
    pub(super) fn try_in_guest(
        &self,
        number: u8,
        script: &str,
        limit: Duration,
    ) -> Result<(String, i32)> {
        guest_shell::run(self.lab.client(), address(number), script, limit)
    }
}

/// Gives a machine's guest a shell on the network.
pub(super) fn with_shell(file: &mut MachineFile) {
    file.boot.command_line.push_str(" service.shell");
}

/// A file called `name` somewhere below `folder`.
fn find(folder: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if let Some(found) = find(&entry.path(), name)? {
                return Ok(Some(found));
            }
        } else if entry.file_name() == name {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}
