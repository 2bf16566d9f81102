//! Two lab hosts that protect one machine, and their arbiter.

mod arbiter;
mod etcd;
mod side;
mod status;
mod takeover;
mod wait;

pub(crate) use arbiter::{Arbiter, Records};
pub(crate) use etcd::Nodes;
pub(crate) use status::{Cover, Phase, Status};
pub(crate) use takeover::{Steps, UnixSeconds, time as log_time, unix_seconds};

use crate::{
    assets::{Assets, Guest},
    machine_file::{MachineFile, Protection, ProtectionHost},
    machine_host::{self, ROMULUS, Running},
};
use anyhow::{Context as _, Result, bail, ensure};
use lab::{Host, Lab, Network};
use side::Side;
use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

/// Memory of a host of a pair in MiB: the guest, the replica's buffer beside it, and the files.
pub(crate) const HOST_MIB: u32 = 3072;
/// The port of the link between the hosts.
const PORT: u16 = 7401;
/// `T_b` where hosts are virtual machines themselves, as the product's documents advise: emulated processors stand still
/// for longer than the default bears. Each takeover without a failure loses nothing, but it is not what is to be seen.
const EMULATED_T_B: &str = "500ms";

/// Two hosts, the machine's file, and the arbiter.
pub(crate) struct Pair<'lab> {
    /// The arbiter; `None` while there is none.
    pub(crate) arbiter: Arbiter,
    /// The machine's file, the same on both hosts.
    pub(crate) file: MachineFile,
    sides: [Side<'lab>; 2],
}

/// A host that lost its power.
pub(crate) struct Cut {
    /// Which.
    pub(crate) side: usize,
    /// Just before.
    pub(crate) at: SystemTime,
}

impl<'lab> Pair<'lab> {
    /// Makes identities, the arbiter, the machine's record, and puts all files into the lab's first two hosts. `adapt`
    /// may change the machine's file. Nothing runs yet but the arbiter.
    ///
    /// # Errors
    /// A host can't be reached, or `romulus` refuses.
    pub(crate) fn new(
        lab: &'lab Lab,
        assets: &'lab Assets,
        guest: &'lab Guest,
        adapt: impl FnOnce(&mut MachineFile),
    ) -> Result<Self> {
        Self::numbered(lab, assets, guest, 0, Records::Files, adapt)
    }

    /// [`Self::new`] for machine `number` of several on the same hosts, each with an arbiter, addresses and ports of its own. The
    /// arbiter keeps its records in `records`.
    ///
    /// # Errors
    /// Those of [`Self::new`].
    pub(crate) fn numbered(
        lab: &'lab Lab,
        assets: &'lab Assets,
        guest: &'lab Guest,
        number: u8,
        records: Records,
        adapt: impl FnOnce(&mut MachineFile),
    ) -> Result<Self> {
        let port = PORT + arbiter::PORTS * u16::from(number);
        let name = match number {
            0 => "registrar".to_owned(),
            _ => format!("machine{number}"),
        };
        let mut identities = Vec::new();
        let mut folder = String::new();
        for n in 1..=2 {
            let host = lab.host(n);
            machine_host::place_romulus(host, assets)?;
            folder = machine_host::place_guest(host, guest)?;
            let output = host.run(&[ROMULUS, "pair", "--json"])?;
            ensure!(
                output.status.success(),
                "`romulus pair` on {} ended with {}: {}",
                host.name(),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
            identities.push(arbiter::identity(&output.stdout)?);
        }
        let arbiter = Arbiter::start(
            &assets.romulus,
            lab.address(),
            number,
            records,
            &identities,
            lab.logs(),
        )?;
        let mut file = MachineFile::new(&name, guest, &folder, number);
        file.uuid = Some(uuid()?);
        file.protection = Some(Protection {
            arbiter: arbiter.address,
            arbiter_identity: arbiter.identity.clone(),
            identity: None,
            mode: None,
            resend_output: None,
            forward_input: None,
            rehearse: None,
            t_b: (lab.kind() == lab::Kind::Qemu).then(|| EMULATED_T_B.to_owned()),
            t_b_max: None,
            epoch_fixed: None,
            uplink: None,
            t_cold: None,
            hosts: [1, 2].map(|n: usize| {
                let host = lab.host(n);
                ProtectionHost {
                    name: host.name().to_owned(),
                    identity: identities[n - 1].clone(),
                    replication: (host.address(Network::Replication), port).into(),
                    control: (host.address(Network::Control), port).into(),
                }
            }),
        });
        adapt(&mut file);
        let sides = [1, 2].map(|number| Side::new(lab.host(number), assets, guest));
        let mut pair = Self {
            arbiter,
            file,
            sides,
        };
        for side in &mut pair.sides {
            side.remember_identity()?;
        }
        pair.create()?;
        Ok(pair)
    }

    /// Makes the machine's record.
    fn create(&mut self) -> Result<()> {
        let first = &self.sides[0];
        machine_host::write_machine_file(first.host, &self.file)?;
        let output = first.host.run(&[ROMULUS, "create", &self.file.path()])?;
        if !output.status.success() {
            self.arbiter.still_runs()?;
            bail!(
                "`romulus create` ended with {}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }

    /// A pair that runs and is protected.
    ///
    /// # Errors
    /// Those of [`Self::new`], and it is not protected in time.
    pub(crate) fn protected(
        lab: &'lab Lab,
        assets: &'lab Assets,
        guest: &'lab Guest,
        adapt: impl FnOnce(&mut MachineFile),
    ) -> Result<Self> {
        let mut pair = Self::new(lab, assets, guest, adapt)?;
        pair.protect()?;
        Ok(pair)
    }

    /// Starts `romulus run` on both hosts, and waits until the machine is protected.
    ///
    /// # Errors
    /// It is not in time.
    pub(crate) fn protect(&mut self) -> Result<()> {
        self.run(0)?;
        self.run(1)?;
        self.wait_protected(None)?;
        Ok(())
    }

    /// Starts `romulus run` on one host, with the pair's file.
    ///
    /// # Errors
    /// The host can't be reached. Whether it plays its part shows later.
    pub(crate) fn run(&mut self, side: usize) -> Result<()> {
        let file = self.file.clone();
        self.run_with(side, file)
    }

    /// Starts `romulus run` on one host with a file of its own.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub(crate) fn run_with(&mut self, side: usize, file: MachineFile) -> Result<()> {
        let side = &mut self.sides[side];
        // The old process first: the new one must not find its lock.
        side.running = None;
        side.running = Some(Running::start(side.host, file)?);
        Ok(())
    }

    /// Kills a host's process as a crash would.
    ///
    /// # Errors
    /// The host can't be reached, or none runs there.
    pub(crate) fn kill(&mut self, side: usize) -> Result<()> {
        self.running(side)?.kill()?;
        self.sides[side].running = None;
        Ok(())
    }

    /// Waits for the end of a host's process by itself and gives its exit code.
    ///
    /// # Errors
    /// It runs on.
    pub(crate) fn ended(&mut self, side: usize, limit: Duration) -> Result<Option<i32>> {
        let status = self.running(side)?.wait(limit)?;
        self.sides[side].running = None;
        Ok(status.code())
    }

    /// Notes what a loss of power would leave of the machine on a host: for a moment when all of it is there.
    ///
    /// # Errors
    /// The host can't be reached.
    pub(crate) fn remember(&mut self, side: usize) -> Result<()> {
        self.sides[side].remember_machine(&self.file)
    }

    /// A host.
    pub(crate) fn host(&self, side: usize) -> &'lab Host {
        self.sides[side].host
    }

    /// The `romulus run` of a host.
    ///
    /// # Errors
    /// None was started there.
    pub(crate) fn running(&self, side: usize) -> Result<&Running<'lab>> {
        self.sides[side].running.as_ref().with_context(|| {
            format!(
                "romulus was not started on {}",
                self.sides[side].host.name()
            )
        })
    }

    /// What a host's process says of the machine; `None` while it does not answer.
    ///
    /// # Errors
    /// The process has ended, or what it says is not understood.
    pub(crate) fn status(&self, side: usize) -> Result<Option<Status>> {
        let running = self.running(side)?;
        running.still_runs()?;
        let output = self.sides[side]
            .host
            .run(&[ROMULUS, "status", &self.file.name, "--json"])?;
        if !output.status.success() {
            return Ok(None);
        }
        serde_json::from_slice(&output.stdout)
            .map(Some)
            .with_context(|| {
                format!(
                    "`romulus status --json` printed {}",
                    String::from_utf8_lossy(&output.stdout)
                )
            })
    }

    /// How long each phase of an epoch takes on a host.
    ///
    /// # Errors
    /// It does not say.
    pub(crate) fn timing(&self, side: usize) -> Result<Vec<Phase>> {
        let text = self.sides[side].host.sh(&format!(
            "{ROMULUS} status {} --timing --json",
            self.file.name
        ))?;
        serde_json::from_str(&text)
            .with_context(|| format!("`romulus status --timing --json` printed {text}"))
    }

    /// How long the guest stood still for its epochs, since the runner's process started.
    ///
    /// # Errors
    /// No host runs the machine, or the one that does does not say.
    pub(crate) fn pauses(&self) -> Result<Phase> {
        let runner = self.runner()?.context("no host runs the machine")?;
        let mut phases = self.timing(runner)?.into_iter();
        phases
            .find(|phase| phase.name == "pause")
            .context("`romulus status --timing` has no phase `pause`")
    }

    /// Writes the pair's file into a host and lets its process read it again; gives what that says.
    ///
    /// # Errors
    /// The host can't be reached, or the process refuses.
    pub(crate) fn reload(&self, side: usize) -> Result<serde_json::Value> {
        let host = self.host(side);
        machine_host::write_machine_file(host, &self.file)?;
        let text = host.sh(&format!("{ROMULUS} reload {} --json", self.file.name))?;
        serde_json::from_str(&text)
            .with_context(|| format!("`romulus reload --json` printed {text}"))
    }

    /// Writes the mode into the pair's file, for what reads that from now on.
    ///
    /// # Errors
    /// The file has nothing about protection.
    pub(crate) fn set_mode(&mut self, mode: &str) -> Result<()> {
        let protection = self.file.protection.as_mut();
        protection.context("the machine is not protected")?.mode = Some(mode.to_owned());
        Ok(())
    }

    /// Hands the machine over from the host that runs it, as an operator does.
    ///
    /// # Errors
    /// It stays.
    pub(crate) fn switch_over(&self, side: usize) -> Result<()> {
        let host = self.sides[side].host;
        let output = host.run(&[ROMULUS, "switchover", &self.file.name])?;
        ensure!(
            output.status.success(),
            "`romulus switchover` on {} ended with {}: {}",
            host.name(),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }

    /// How many uplinks are up on a host, and on the other one as far as that host knows.
    ///
    /// # Errors
    /// It does not say.
    pub(crate) fn uplinks(&self, side: usize) -> Result<(usize, Option<u8>)> {
        let status = self.status(side)?.context("the host says nothing")?;
        let cover = status.cover().context("the machine is not protected")?;
        let here = cover.uplinks.iter().filter(|uplink| uplink.up).count();
        Ok((here, cover.partner_uplinks.map(|there| there.up)))
    }

    /// The host that runs the machine, of those that have power; `None` if none does at the moment.
    ///
    /// # Errors
    /// A process has ended; or both say that they run it.
    pub(crate) fn runner(&self) -> Result<Option<usize>> {
        let mut runners = Vec::new();
        for side in 0..2 {
            if self.is_up(side)
                && let Some(status) = self.status(side)?
                && status.runs()
            {
                runners.push(side);
            }
        }
        ensure!(
            runners.len() < 2,
            "both hosts say that they run the machine"
        );
        Ok(runners.first().copied())
    }

    /// Whether a host has power and romulus was started there.
    pub(crate) fn is_up(&self, side: usize) -> bool {
        self.sides[side].host.is_on() && self.sides[side].running.is_some()
    }

    /// Cuts the power of a host.
    ///
    /// # Errors
    /// It can't be cut.
    pub(crate) fn cut_power(&mut self, side: usize) -> Result<Cut> {
        let words = self.running(side)?.messages()?;
        let lost = &mut self.sides[side];
        lost.last_words.push(words);
        let at = SystemTime::now();
        lost.host.power_off()?;
        lost.running = None;
        Ok(Cut { side, at })
    }

    /// Notes that a host has lost its power with another machine of its.
    pub(crate) fn lost(&mut self, side: usize) {
        self.sides[side].running = None;
    }

    /// Gives a host its power back, if nobody else has, and what it had on its disk, and runs the same command again.
    ///
    /// # Errors
    /// It does not come up.
    pub(crate) fn return_host(&mut self, side: usize) -> Result<()> {
        self.sides[side].power_on(&self.file)?;
        self.run(side)
    }

    /// The steps of the takeover by `side` after a cut.
    ///
    /// # Errors
    /// Logs or clock of the host can't be read.
    pub(crate) fn takeover(&self, side: usize, cut: &Cut) -> Result<Steps> {
        let log = self.running(side)?.messages()?;
        let ahead = self.sides[side].host.agent().clock_ahead()?;
        Ok(Steps::read(
            &log,
            ahead,
            &self.arbiter.messages()?,
            unix_seconds(cut.at),
        ))
    }

    /// Keeps what tells why a job failed.
    ///
    /// # Errors
    /// The folder can't be written.
    pub(crate) fn keep_logs(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        self.arbiter.keep_log(folder)?;
        for side in &self.sides {
            for (number, words) in (1..).zip(&side.last_words) {
                let name = format!("{}-before-loss-{number}.stderr", side.host.name());
                fs::write(folder.join(name), words)?;
            }
            if side.host.is_on() {
                machine_host::keep_logs(side.host, folder)?;
            }
        }
        Ok(())
    }
}

/// A fresh one for each pair.
fn uuid() -> Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/uuid").context("making a uuid")?;
    Ok(text.trim().to_owned())
}
