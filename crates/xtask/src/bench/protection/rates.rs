//! The highest rates: of the machine alone, over UDP and over all transports at once, of the pair over UDP, and of the machine
//! alone once more: a shared computer is not as fast at one time as at another.

use super::{Alone, Effort, cost};
use crate::{
    assets::{Assets, Guest},
    bench::machine::sustained,
    crossing::TRANSPORTS,
    machine_file::{FIRST_GUEST, MachineFile},
    machine_host::{self, Running},
    rate_search::RateSearch,
    sipp::{self, Load, Outcome, Transport},
};
use anyhow::Result;
use images::Progress;
use lab::Lab;
use std::time::Duration;

/// How long a guest may take to come up.
const BOOT_LIMIT: Duration = Duration::from_mins(4);
/// Where the searches begin: rates that an emulated host bears.
const START_UDP: u32 = 60;
const START_MIX: u32 = 40;
/// From one rate to the next, until one is too high.
const FACTOR: f64 = 1.5;
/// No search goes beyond.
const LIMIT: u32 = 5000;
/// How long half of a rate is asked for right before a trial of it, in seconds. Each trial begins after the quiet that lets an
/// overload's queue run dry, and a sudden load finds everything cold: on an emulated host, a request then costs half as much
/// again, and what comes too late is asked for twice. The rate that is looked for is one that is held, not one that is begun.
const WARM_SECONDS: u32 = 4;
/// More than a search needs: so many that it ends with a rate that is too high, or at the limit.
const TRIALS: u32 = 24;

/// The searches, and what they need.
pub(super) struct Rates<'a> {
    lab: &'a Lab,
    guest: &'a Guest,
    folder: String,
    effort: &'a Effort,
    progress: &'a Progress,
}

impl<'a> Rates<'a> {
    /// Puts `romulus` and the guest into the first host.
    ///
    /// # Errors
    /// The host can't be reached.
    pub(super) fn new(
        lab: &'a Lab,
        assets: &'a Assets,
        guest: &'a Guest,
        effort: &'a Effort,
        progress: &'a Progress,
    ) -> Result<Self> {
        machine_host::place_romulus(lab.host(1), assets)?;
        let folder = machine_host::place_guest(lab.host(1), guest)?;
        Ok(Self {
            lab,
            guest,
            folder,
            effort,
            progress,
        })
    }

    /// Measures the machine alone, as the pair's is measured: one guest for all trials.
    ///
    /// # Errors
    /// The guest does not come up, or does not answer any more.
    pub(super) fn alone(&self) -> Result<Alone> {
        let step = self.progress.step("5 REGISTER/s on the machine alone");
        let machine = self.boot()?;
        let calm = cost::calm(self.lab.client(), None, self.effort.watch)?;
        step.done(format!(
            "5 REGISTER/s on the machine alone: {}",
            calm.summary()
        ));
        let step = self.progress.step("watching the idle machine alone");
        let idle = cost::idle_alone(self.lab.host(1), &machine, self.effort.watch)?;
        step.done("watched the idle machine alone");
        let udp = self.search("UDP, machine alone", START_UDP, |rate| self.udp(rate))?;
        let mix = self.search("all transports, machine alone", START_MIX, |rate| {
            self.mix(rate)
        })?;
        machine.kill()?;
        Ok(Alone {
            udp,
            udp_again: None,
            mix,
            calm,
            idle,
        })
    }

    /// Measures the machine alone once more over UDP, after the pair's, which is no more.
    ///
    /// # Errors
    /// The guest does not come up, or does not answer any more.
    pub(super) fn alone_again(&self) -> Result<Option<u32>> {
        let machine = self.boot()?;
        let udp = self.search("UDP, machine alone again", START_UDP, |rate| self.udp(rate))?;
        machine.kill()?;
        Ok(udp)
    }

    /// Measures the pair's machine, which runs already, over UDP.
    ///
    /// # Errors
    /// The machine does not answer any more.
    pub(super) fn of_pair(&self) -> Result<Option<u32>> {
        self.search("UDP, pair", START_UDP, |rate| self.udp(rate))
    }

    /// Before each trial the machine gets time to work off what an overload has left queued.
    fn search(
        &self,
        name: &str,
        start: u32,
        mut trial: impl FnMut(u32) -> Result<Vec<Outcome>>,
    ) -> Result<Option<u32>> {
        let mut search =
            RateSearch::new(start, FACTOR, LIMIT, TRIALS).refined_to(self.effort.ratio);
        while let Some(rate) = search.next_rate() {
            let step = self.progress.step(format!("{name}: {rate} REGISTER/s"));
            sipp::settle(
                self.lab.client(),
                sipp::sip(FIRST_GUEST),
                super::SETTLE_SECONDS,
            )?;
            let outcomes = trial(rate)?;
            let passed = outcomes.iter().all(sustained);
            let verdict = if passed { "sustained" } else { "too much" };
            let seen: Vec<String> = outcomes.iter().map(Outcome::summary).collect();
            step.done(format!(
                "{name}: {rate} REGISTER/s {verdict}: {}",
                seen.join("; ")
            ));
            search.record(passed);
        }
        if let (Some(best), true) = (search.best(), search.is_lower_bound()) {
            eprintln!("{name}: {best} REGISTER/s was not too much, and none above it was tried");
        }
        Ok(search.best())
    }

    /// Starts the machine alone on the first host.
    ///
    /// # Errors
    /// Its guest does not come up.
    pub(super) fn boot(&self) -> Result<Running<'a>> {
        let file = MachineFile::new("alone", self.guest, &self.folder, 0);
        // Each start adds to the console's log: only this one's words count.
        self.lab
            .host(1)
            .sh(&format!("rm -f {}", file.console.log))?;
        let running = Running::start(self.lab.host(1), file)?;
        running.wait_console("GUEST UP", BOOT_LIMIT)?;
        Ok(running)
    }

    fn udp(&self, rate: u32) -> Result<Vec<Outcome>> {
        self.trial(&[(Transport::Udp, "rate")], rate)
    }

    fn mix(&self, rate: u32) -> Result<Vec<Outcome>> {
        self.trial(&TRANSPORTS, rate.div_ceil(3))
    }

    /// What comes of `rate` a second over each of the transports once half of it has been asked for.
    fn trial(&self, transports: &[(Transport, &'static str)], rate: u32) -> Result<Vec<Outcome>> {
        self.registered(transports, rate.div_ceil(2), WARM_SECONDS)?;
        self.registered(transports, rate, self.effort.trial_seconds)
    }

    /// What comes of `rate` a second over each of the transports, all at once.
    fn registered(
        &self,
        transports: &[(Transport, &'static str)],
        rate: u32,
        seconds: u32,
    ) -> Result<Vec<Outcome>> {
        let started = transports
            .iter()
            .map(|(transport, word)| {
                sipp::start(self.lab.client(), load(*transport, word, rate, seconds))
            })
            .collect::<Result<Vec<_>>>()?;
        started.into_iter().map(sipp::Registering::finish).collect()
    }
}

pub(super) fn load(
    transport: Transport,
    users: &'static str,
    rate: u32,
    seconds: u32,
) -> Load<'static> {
    Load {
        server: sipp::sip(FIRST_GUEST),
        transport,
        users,
        rate,
        count: rate * seconds,
    }
}
