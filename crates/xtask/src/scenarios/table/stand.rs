//! A protected pair under the eyes of the oracle, on which rows of the table are played one after another.

use super::{
    draw::Draw,
    guest::{self, WitnessGuest},
    rows::{IMAGE, Row},
};
use crate::{
    assets::Assets,
    machine_file::{Disk, FIRST_GUEST, MachineFile, mac},
    machine_host,
    oracle::{self, Fault, Frame, Handed, Hung, Oracle, Seen, Wire},
    pair::{Nodes, Pair, Records, Status},
    process,
};
use anyhow::{Context as _, Result, bail, ensure};
use lab::{Lab, Network};
use std::{
    fs,
    net::{SocketAddrV4, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

/// From one request to the next, on each of two ways: each is a durable write in an emulated guest.
const INTERVAL: Duration = Duration::from_millis(100);
/// How long the machine may take to be protected, and the guest to boot.
const LONG: Duration = Duration::from_mins(4);
/// How long a state may take to come once its cause is there: many times what any time-out asks for.
pub(super) const SOON: Duration = Duration::from_mins(1);
/// How long the disk may take to have what was answered.
const SETTLED: Duration = Duration::from_secs(30);
/// How long nobody may answer before a machine counts as gone for good: many times what a takeover needs.
const GONE: Duration = Duration::from_secs(8);

/// The guest's shell (`service.shell`).
const SHELL: u16 = 23;
/// How it begins when a promise was broken, which is worse than a row that went another way.
pub(super) const WRONG: &str = "WRONG: ";

/// What is said of a broken promise.
pub(super) fn wrong(fault: &Fault) -> String {
    format!("{WRONG}{fault}")
}

/// A pair, and who watches it.
pub(crate) struct Stand<'a> {
    /// The lab.
    pub(crate) lab: &'a Lab,
    /// The pair.
    pub(crate) pair: Pair<'a>,
    /// Random moments of the row that is played.
    pub(crate) draw: Draw,
    /// The hosts that were to run the machine since the watch began, in their order.
    pub(crate) turns: Vec<usize>,
    /// What is to be said of the row.
    pub(crate) remark: String,
    oracle: Option<Oracle>,
    wire: Option<Wire>,
    /// The tap of a host that hangs, or hung.
    hung: Option<Hung>,
    /// What was seen by clients whose connection had to end.
    earlier: Seen,
    /// What both hosts sent as the guest, once the watch has ended.
    pub(crate) frames: Vec<Frame>,
    /// Those of them that a host's kernel kept while it hung.
    late: Vec<Frame>,
    takeovers: u32,
    clients: u32,
}

/// What came of a row.
#[derive(Debug, Default)]
pub(crate) struct Played {
    /// Promises that were broken.
    pub(crate) faults: Vec<Fault>,
    /// Takeovers.
    pub(crate) takeovers: u32,
    /// Requests that were answered.
    pub(crate) answered: usize,
    /// Longest time without an answer while a client asked, in seconds.
    pub(crate) gap: f64,
    /// What else is to be said.
    pub(crate) remark: String,
}

/// The guest that stands are made with.
pub(crate) struct Kit {
    guest: WitnessGuest,
}

impl Kit {
    /// Makes it.
    ///
    /// # Errors
    /// The guest was not prepared.
    pub(crate) fn new(assets: &Assets) -> Result<Self> {
        Ok(Self {
            guest: guest::make(assets)?,
        })
    }
}

impl<'a> Stand<'a> {
    /// A protected pair on the lab's first two hosts, with nothing left of an earlier one.
    ///
    /// # Errors
    /// It is not protected in time.
    pub(crate) fn new(lab: &'a Lab, assets: &'a Assets, kit: &'a Kit, row: &Row) -> Result<Self> {
        for host in lab.hosts() {
            for network in [Network::Replication, Network::Control, Network::Service] {
                host.mend(network)?;
            }
            if !host.is_on() {
                host.power_on()?;
            }
            host.sh(&format!(
                "rm -rf /var/log/romulus/* /var/lib/romulus/* && mkdir -p $(dirname {IMAGE}) && \
                 rm -f {IMAGE} && truncate -s {} {IMAGE}",
                witness::RECORDS * witness::RECORD as u64
            ))?;
        }
        let adapt = |file: &mut MachineFile| {
            "384 MiB".clone_into(&mut file.memory);
            file.boot.command_line.push_str(" service.shell");
            file.disks.push(Disk {
                path: IMAGE.to_owned(),
                read_only: false,
            });
            if let Some(protection) = &mut file.protection {
                protection.mode = row.setting.mode.map(str::to_owned);
                // As the documents advise for hosts that are virtual machines.
                protection.t_b_max = Some("2s".to_owned());
                protection.t_cold = Some("3s".to_owned());
                protection.uplink = Some(vec![Network::Service.interface().to_owned()]);
            }
        };
        let records = if row.setting.etcd {
            let etcd = assets.etcd.as_ref().context("etcd was not prepared")?;
            Records::Etcd(Nodes::start(etcd, lab.logs())?)
        } else {
            Records::Files
        };
        let mut pair = Pair::numbered(lab, assets, &kit.guest.guest, 0, records, adapt)?;
        pair.protect()?;
        let stand = Self {
            lab,
            pair,
            draw: Draw::new(0, "", 0),
            turns: Vec::new(),
            remark: String::new(),
            oracle: None,
            wire: None,
            hung: None,
            earlier: Seen::default(),
            frames: Vec::new(),
            late: Vec::new(),
            takeovers: 0,
            clients: 0,
        };
        let runner = stand.runner()?;
        stand.wait_up(runner)?;
        Ok(stand)
    }

    /// Plays a row, and judges it.
    ///
    /// # Errors
    /// Something else happened than the row says. Then the pair is not to be used again.
    pub(crate) fn play(&mut self, row: &Row, draw: Draw) -> Result<Played> {
        self.draw = draw;
        self.remark.clear();
        self.takeovers = 0;
        self.frames.clear();
        self.late.clear();
        self.hung = None;
        self.earlier = Seen::default();
        let runner = self.runner()?;
        self.turns = vec![runner];
        self.wire = Some(Wire::start(&self.pair, &mac(0))?);
        self.ask()?;
        self.goes_on().context("before anything happened")?;
        let played = (row.play)(self);
        // What the oracle saw is worth more than what a row missed: a broken promise is told first.
        let seen = self.end(played.is_err())?;
        let mut faults = oracle::judge(&seen);
        if let Err(error) = played {
            return Err(match faults.first() {
                Some(fault) => error.context(wrong(fault)),
                None => error,
            });
        }
        // A row that ended early does not know whose turn it was.
        faults.extend(oracle::out_of_turn(&self.frames, &self.late, &self.turns));
        if faults.is_empty() {
            let runner = self.runner()?;
            faults.extend(self.off_disk(runner, &seen)?);
        }
        Ok(Played {
            faults,
            takeovers: self.takeovers,
            answered: seen.answered(),
            gap: seen.longest_gap(),
            remark: self.remark.clone(),
        })
    }

    /// Ends the watch.
    fn end(&mut self, gone: bool) -> Result<Seen> {
        if let Some(oracle) = self.oracle.take() {
            let seen = if gone {
                oracle.give_up()?
            } else {
                oracle.finish()?
            };
            self.add(seen);
        }
        self.look()?;
        Ok(std::mem::take(&mut self.earlier))
    }

    /// Ends the watch over the wire: what it saw is in `frames`.
    ///
    /// # Errors
    /// It lost frames.
    pub(crate) fn look(&mut self) -> Result<()> {
        if let Some(wire) = self.wire.take() {
            self.frames = wire.finish()?;
        }
        if let Some(hung) = self.hung.take() {
            self.late = hung.finish(&self.frames)?;
            if !self.late.is_empty() {
                let remark = format!("frames that left late: {}", self.late.len());
                self.remark = [std::mem::take(&mut self.remark), remark]
                    .into_iter()
                    .filter(|part| !part.is_empty())
                    .collect::<Vec<_>>()
                    .join("; ");
            }
        }
        Ok(())
    }

    fn add(&mut self, seen: Seen) {
        self.earlier.datagrams.extend(seen.datagrams);
        self.earlier.lines.extend(seen.lines);
        self.earlier.foreign.extend(seen.foreign);
        let lost = &mut self.earlier.lost_connection;
        *lost = lost.take().or(seen.lost_connection);
    }

    /// A client begins to ask.
    ///
    /// # Errors
    /// The guest can't be reached.
    pub(crate) fn ask(&mut self) -> Result<()> {
        self.clients += 1;
        let name = format!("c{}", self.clients);
        self.oracle = Some(oracle::start(
            self.lab.client(),
            FIRST_GUEST,
            &name,
            INTERVAL,
        )?);
        Ok(())
    }

    /// The client ends, for its connection is about to end: what it saw stays part of what is judged.
    ///
    /// # Errors
    /// A thread of it failed.
    pub(crate) fn leave(&mut self) -> Result<()> {
        if let Some(oracle) = self.oracle.take() {
            let seen = oracle.finish()?;
            self.add(seen);
        }
        Ok(())
    }

    /// Waits until the guest has answered some requests more.
    ///
    /// # Errors
    /// It does not.
    pub(crate) fn goes_on(&self) -> Result<()> {
        self.oracle.as_ref().context("nobody asks")?.goes_on(SOON)
    }

    /// The host that runs the machine.
    ///
    /// # Errors
    /// None does.
    pub(crate) fn runner(&self) -> Result<usize> {
        self.pair.runner()?.context("no host runs the machine")
    }

    /// Any moment: what happens next is not to be in step with anything.
    pub(crate) fn moment(&mut self) {
        std::thread::sleep(self.draw.milliseconds(0..700));
    }

    /// A host hangs, at any moment.
    ///
    /// # Errors
    /// Its tap can't be watched, or it is off.
    pub(crate) fn hang(&mut self, side: usize) -> Result<()> {
        let handed = Handed::start(&self.pair, side, &mac(0))?;
        self.moment();
        self.hung = Some(handed.hang(&self.pair)?);
        Ok(())
    }

    /// Waits until a host has taken the machine over, and until it serves.
    ///
    /// # Errors
    /// It does not.
    pub(crate) fn takes_over(&mut self, side: usize) -> Result<()> {
        self.pair.wait_runs(side)?;
        self.took_over(side);
        self.goes_on().context("after the takeover")
    }

    /// Notes that a host took the machine over.
    pub(crate) fn took_over(&mut self, side: usize) {
        self.turns.push(side);
        self.takeovers += 1;
    }

    /// Waits until the machine is protected and gives its runner.
    ///
    /// # Errors
    /// It is not in time.
    pub(crate) fn protected(&mut self) -> Result<usize> {
        let runner = self.pair.wait_protected(None)?;
        self.goes_on().context("once it was protected again")?;
        Ok(runner)
    }

    /// Waits until the machine is protected, on the host that it was last taken over by.
    ///
    /// # Errors
    /// It is not, or it moved.
    pub(crate) fn protected_there(&mut self) -> Result<()> {
        let runner = self.protected()?;
        let wanted = self.turns.last().copied().context("nobody ran it")?;
        ensure!(
            runner == wanted,
            "the machine moved from h{} to h{} by itself",
            wanted + 1,
            runner + 1
        );
        Ok(())
    }

    /// Waits until a host says that the machine runs there unprotected.
    ///
    /// # Errors
    /// It does not.
    pub(crate) fn unprotected(&self, side: usize) -> Result<()> {
        self.pair
            .wait_status(side, "unprotected", SOON, |status| {
                status.runs() && !status.is_protected_here()
            })
            .map(drop)
    }

    /// Waits until a host is the backup.
    ///
    /// # Errors
    /// It is not.
    pub(crate) fn backs_up(&self, side: usize) -> Result<()> {
        self.pair
            .wait_status(side, "the backup", LONG, Status::is_backup)
            .map(drop)
    }

    /// Waits until the guest that was started last on a host is up.
    ///
    /// # Errors
    /// It is not.
    pub(crate) fn wait_up(&self, side: usize) -> Result<()> {
        let running = self.pair.running(side)?;
        // What a host that is only about to run it has on its console is of an earlier life.
        process::poll(LONG, Duration::from_millis(200), || {
            running.still_runs()?;
            let console = running.console()?;
            let last = console
                .rmatch_indices("GUEST ")
                .map(|(at, _)| &console[at..])
                .next();
            Ok(last
                .is_some_and(|text| text.starts_with("GUEST UP"))
                .then_some(()))
        })?
        .context("the guest does not come up")
    }

    /// Runs a script in the guest that ends it: nothing is waited for.
    ///
    /// # Errors
    /// The guest can't be reached.
    pub(crate) fn end_guest(&self, script: &str) -> Result<()> {
        use std::io::Write as _;
        let mut stream = oracle::connect(self.lab.client(), SocketAddrV4::new(FIRST_GUEST, SHELL))?;
        stream.write_all(format!("{script}\n").as_bytes())?;
        // The guest takes it while it ends: the connection is left as it is.
        std::thread::sleep(Duration::from_millis(500));
        Ok(())
    }

    /// Gives the witness an order.
    ///
    /// # Errors
    /// It does not obey.
    pub(crate) fn order(&self, order: &str) -> Result<()> {
        oracle::order(self.lab.client(), FIRST_GUEST, order, SOON)
    }

    /// Checks that for a good while no host says that it runs the machine, and nobody answers as its guest.
    ///
    /// # Errors
    /// Somebody does.
    pub(crate) fn nobody_runs(&self, sides: &[usize]) -> Result<()> {
        let begin = Instant::now();
        while begin.elapsed() < GONE {
            for side in sides {
                let status = self.pair.status(*side)?;
                ensure!(
                    !status.is_some_and(|status| status.runs()),
                    "h{} runs the machine, which nobody is to run",
                    side + 1
                );
            }
            ensure!(
                !self.somebody_answers(),
                "somebody answers for a machine that nobody is to run"
            );
        }
        Ok(())
    }

    /// Whether the witness's port can be reached.
    fn somebody_answers(&self) -> bool {
        let to = (FIRST_GUEST, oracle::PORT).into();
        let wait = Duration::from_millis(500);
        let tried = Instant::now();
        let answers = self
            .lab
            .client()
            .visit(|| TcpStream::connect_timeout(&to, wait))
            .is_ok();
        std::thread::sleep(wait.saturating_sub(tried.elapsed()));
        answers
    }

    /// Waits until the image on a host has all that was answered; what it has not after a while.
    fn off_disk(&self, side: usize, seen: &Seen) -> Result<Vec<Fault>> {
        let mut missing = Vec::new();
        process::poll(SETTLED, Duration::from_millis(500), || {
            missing = oracle::missing_on_disk(seen, &witness::records(&self.image(side)?));
            Ok(missing.is_empty().then_some(()))
        })?;
        Ok(missing)
    }

    /// Waits until the image on a host has all that was answered so far. The client has to have left.
    ///
    /// # Errors
    /// It has not.
    pub(crate) fn settled(&self, side: usize) -> Result<()> {
        match self.off_disk(side, &self.earlier)?.first() {
            None => Ok(()),
            Some(fault) => bail!("the image on h{}: {fault}", side + 1),
        }
    }

    fn image(&self, side: usize) -> Result<Vec<u8>> {
        let local = tempfile::NamedTempFile::new()?;
        self.pair.host(side).pull(IMAGE, local.path())?;
        Ok(fs::read(local.path())?)
    }

    /// Keeps what tells why a row failed.
    ///
    /// # Errors
    /// The folder can't be written.
    pub(crate) fn keep_logs(&self, folder: &Path) -> Result<()> {
        self.pair.keep_logs(folder)?;
        for host in self.lab.hosts().iter().filter(|host| host.is_on()) {
            machine_host::keep_logs(host, folder)?;
        }
        Ok(())
    }
}
