//! What stands in the lab at the moment: one machine alone, or a protected pair. It stays as long as the next piece of work
//! can use it.

use crate::{
    assets::{Assets, Image},
    hosts::{at_once, restart},
    machine_file::{FIRST_GUEST, MachineFile, address},
    machine_host::{self, Running},
    pair::{self, Pair, Records, UnixSeconds, unix_seconds},
    sipp,
};
use anyhow::{Context as _, Result, bail, ensure};
use images::Progress;
use lab::{Host, Lab};
use romulus_telephony::sipstone::jobs::{Guest, Job, Mode, Place};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// How long a guest may take to come up.
const BOOT_LIMIT: Duration = Duration::from_mins(4);
/// How long a change of the mode may take to be in force, and how long a pair may take to be protected again after it.
const SOON: Duration = Duration::from_mins(2);
/// How long a machine that lost its cover under load may take to have it again before its power is cut.
const COVERED_WITHIN: Duration = Duration::from_secs(10);
/// How long a fresh machine is asked for little before it is measured, in seconds.
const SETTLE_SECONDS: u32 = 1;

/// The lab, and what stands in it.
pub(super) struct Stage<'lab> {
    lab: &'lab Lab,
    assets: &'lab Assets,
    logs: PathBuf,
    progress: &'lab Progress,
    stands: Stands<'lab>,
}

enum Stands<'lab> {
    Nothing,
    Alone(Guest, Box<Running<'lab>>),
    /// The pair of the SIP server, and that of the relay where it has a machine of its own.
    Pairs(Place, Vec<Pair<'lab>>),
}

/// The guests that these pieces of work need.
pub(super) fn images(jobs: &[Job]) -> Vec<Image> {
    let mut images: Vec<Image> = Vec::new();
    for image in jobs.iter().flat_map(|job| of_guest(job.place.guest)) {
        if !images.contains(image) {
            images.push(*image);
        }
    }
    images
}

/// Memory of a host in MiB that these pieces of work need.
pub(super) fn host_mib(jobs: &[Job]) -> u32 {
    if jobs.iter().any(|job| job.place.guest == Guest::Two) {
        pair::HOST_MIB + 1536
    } else {
        pair::HOST_MIB
    }
}

/// Machine 0, with the SIP server, and machine 1, if there is one.
fn of_guest(guest: Guest) -> &'static [Image] {
    match guest {
        Guest::Sip => &[Image::SIPSTONE_12],
        Guest::Pbx => &[Image::PBX_12],
        Guest::Two => &[Image::REGISTRAR_12, Image::MEDIA_RTPPROXY_12],
    }
}

/// The modes of the machines.
fn modes(mode: Mode) -> [Mode; 2] {
    match mode {
        Mode::NetAndNoNet => [Mode::Net, Mode::NoNet],
        other => [other, other],
    }
}

impl<'lab> Stage<'lab> {
    /// With nothing in it.
    pub(super) fn new(
        lab: &'lab Lab,
        assets: &'lab Assets,
        logs: &Path,
        progress: &'lab Progress,
    ) -> Self {
        Self {
            lab,
            assets,
            logs: logs.to_owned(),
            progress,
            stands: Stands::Nothing,
        }
    }

    /// Where users are.
    pub(super) fn client(&self) -> &'lab lab::Client {
        self.lab.client()
    }

    /// The tree of the softphone, where one was prepared.
    pub(super) fn softphone(&self) -> Option<&'lab Path> {
        self.assets.softphone.as_deref()
    }

    /// For people.
    pub(super) fn progress(&self) -> &'lab Progress {
        self.progress
    }

    /// Sees to it that `place` stands, whole and protected.
    ///
    /// # Errors
    /// It does not come up.
    pub(super) fn stand(&mut self, place: Place) -> Result<()> {
        let stands = std::mem::replace(&mut self.stands, Stands::Nothing);
        self.stands = match stands {
            Stands::Alone(guest, running)
                if place.mode == Mode::Unprotected && guest == place.guest =>
            {
                running.still_runs()?;
                Stands::Alone(guest, running)
            }
            Stands::Pairs(was, mut pairs)
                if place.mode != Mode::Unprotected
                    && was.guest == place.guest
                    && was.epoch_ms == place.epoch_ms =>
            {
                restore(&mut pairs)?;
                if was.mode != place.mode {
                    for (pair, mode) in pairs.iter_mut().zip(modes(place.mode)) {
                        change_mode(pair, mode)?;
                    }
                }
                sipp::settle(self.client(), sipp::sip(FIRST_GUEST), SETTLE_SECONDS)?;
                Stands::Pairs(place, pairs)
            }
            other => {
                drop(other);
                self.fresh(place)?
            }
        };
        Ok(())
    }

    fn fresh(&self, place: Place) -> Result<Stands<'lab>> {
        at_once(self.lab.hosts(), |host| {
            if !host.is_on() {
                host.power_on()?;
            }
            host.sh("rm -rf /var/log/romulus/* /var/lib/romulus/*")?;
            Ok(())
        })?;
        let images = of_guest(place.guest);
        if place.mode == Mode::Unprotected {
            let host = self.lab.host(1);
            machine_host::place_romulus(host, self.assets)?;
            let guest = self.assets.guest(*images.first().context("no guest")?)?;
            let folder = machine_host::place_guest(host, guest)?;
            let mut file = MachineFile::new("alone", guest, &folder, 0);
            with_shell(&mut file);
            let running = Running::start(host, file)?;
            running.wait_console("GUEST UP", BOOT_LIMIT)?;
            sipp::settle(self.client(), sipp::sip(FIRST_GUEST), SETTLE_SECONDS)?;
            return Ok(Stands::Alone(place.guest, Box::new(running)));
        }
        let mut pairs = Vec::new();
        for (number, (image, mode)) in (0..).zip(images.iter().zip(modes(place.mode))) {
            let guest = self.assets.guest(*image)?;
            let two = images.len() > 1;
            let mut pair = Pair::numbered(
                self.lab,
                self.assets,
                guest,
                number,
                Records::Files,
                |file| {
                    with_shell(file);
                    if two && number == 0 {
                        let relay = format!(" media.relay=rtpproxy:{}", address(1));
                        file.boot.command_line.push_str(&relay);
                    }
                    if let Some(protection) = &mut file.protection {
                        protection.mode = Some(mode.to_string());
                        protection.epoch_fixed = place.epoch_ms.map(|epoch| format!("{epoch}ms"));
                    }
                },
            )?;
            pair.run(0)?;
            pair.run(1)?;
            pairs.push(pair);
        }
        let ready = pairs
            .iter_mut()
            .try_for_each(|pair| {
                // It is protected before its guest has started everything.
                let runner = pair.wait_protected(None)?;
                pair.running(runner)?.wait_console("GUEST UP", BOOT_LIMIT)
            })
            .and_then(|()| sipp::settle(self.client(), sipp::sip(FIRST_GUEST), SETTLE_SECONDS));
        if let Err(error) = ready {
            self.keep_logs(&pairs, "boot")?;
            return Err(error);
        }
        Ok(Stands::Pairs(place, pairs))
    }

    fn keep_logs(&self, pairs: &[Pair<'_>], name: &str) -> Result<()> {
        for pair in pairs {
            pair.keep_logs(&self.logs.join(name).join(&pair.file.name))?;
        }
        Ok(())
    }

    /// The pair that stands: that of the SIP server, if there are two.
    ///
    /// # Errors
    /// None does.
    pub(super) fn pair(&mut self) -> Result<&mut Pair<'lab>> {
        match &mut self.stands {
            Stands::Pairs(_, pairs) => pairs.first_mut().context("no pair stands"),
            Stands::Nothing | Stands::Alone(..) => bail!("no pair stands"),
        }
    }

    /// Cuts the power of the host that runs the machine, and gives when, and the backup's `T_b` just before.
    ///
    /// # Errors
    /// The machine is not protected, or both do not run on the same host.
    pub(super) fn cut(&mut self) -> Result<Lost> {
        let Stands::Pairs(_, pairs) = &mut self.stands else {
            bail!("no pair stands");
        };
        let mut runners = Vec::new();
        for pair in pairs.iter() {
            runners.push(pair.protected_runner(COVERED_WITHIN)?);
        }
        let runner = *runners.first().context("no pair stands")?;
        ensure!(
            runners.iter().all(|other| *other == runner),
            "the two machines do not run on the same host"
        );
        let mut t_b = Duration::ZERO;
        for pair in pairs.iter() {
            let status = pair.status(1 - runner)?;
            let its = status.and_then(|status| Some(status.cover()?.t_b()));
            t_b = t_b.max(its.context("the backup does not say what T_b is")?);
        }
        let mut at = 0.0;
        for (number, pair) in pairs.iter_mut().enumerate() {
            if number == 0 {
                at = unix_seconds(pair.cut_power(runner)?.at);
            } else {
                pair.lost(runner);
            }
        }
        Ok(Lost { at, t_b })
    }

    /// The host that runs the machine, and the number of romulus's process there; and the same of the backup, if there is one.
    ///
    /// # Errors
    /// Nobody runs it.
    pub(super) fn processes(&self) -> Result<Processes<'lab>> {
        match &self.stands {
            Stands::Nothing => bail!("no machine stands"),
            Stands::Alone(_, running) => Ok(Processes {
                primary: (self.lab.host(1), running.pid()),
                backup: None,
            }),
            Stands::Pairs(_, pairs) => {
                let pair = pairs.first().context("no pair stands")?;
                let runner = pair.runner()?.context("no host runs the machine")?;
                let of =
                    |side: usize| -> Result<_> { Ok((pair.host(side), pair.running(side)?.pid())) };
                Ok(Processes {
                    primary: of(runner)?,
                    backup: Some(of(1 - runner)?),
                })
            }
        }
    }

    /// Keeps what tells why a piece of work failed, and makes the hosts new.
    ///
    /// # Errors
    /// They can't be.
    pub(super) fn give_up(&mut self, name: &str) -> Result<()> {
        let folder = self.logs.join(name);
        if let Stands::Pairs(_, pairs) = &self.stands {
            self.keep_logs(pairs, name)?;
        } else {
            for host in self.lab.hosts().iter().filter(|host| host.is_on()) {
                machine_host::keep_logs(host, &folder)?;
            }
        }
        self.stands = Stands::Nothing;
        restart(self.lab)
    }
}

/// A host that lost its power.
pub(super) struct Lost {
    /// Just before.
    pub(super) at: UnixSeconds,
    /// `T_b` of the backup, the longest of several machines'.
    pub(super) t_b: Duration,
}

/// Who runs the machine, and who holds its replica: hosts, and processes in them.
pub(super) struct Processes<'lab> {
    pub(super) primary: (&'lab Host, i32),
    pub(super) backup: Option<(&'lab Host, i32)>,
}

fn with_shell(file: &mut MachineFile) {
    file.boot.command_line.push_str(" service.shell");
}

/// Gives a lost host its power back, and waits until all machines are protected.
fn restore(pairs: &mut [Pair<'_>]) -> Result<()> {
    for pair in pairs.iter_mut() {
        for side in 0..2 {
            if !pair.is_up(side) {
                pair.return_host(side)?;
            }
        }
    }
    pairs
        .iter_mut()
        .try_for_each(|pair| pair.wait_protected(None).map(drop))
}

fn change_mode(pair: &mut Pair<'_>, mode: Mode) -> Result<()> {
    let mode = mode.to_string();
    pair.set_mode(&mode)?;
    for side in 0..2 {
        let said = pair.reload(side)?;
        ensure!(said["mode"] == *mode, "a host says {said}");
    }
    for side in 0..2 {
        pair.wait_status(side, "in the new mode", SOON, |status| {
            status
                .cover()
                .is_some_and(|cover| cover.mode == mode && !cover.mode_changes)
        })?;
    }
    pair.wait_protected(None).map(drop)
}
