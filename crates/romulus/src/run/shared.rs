//! What the thread that holds the machine shares with the control interface and the terminal.

use super::{
    cover::{self, Cover, Protector},
    guest::Port,
    overhead,
    supervisor::{Event, UNPROTECTED},
};
use crate::{
    api::model::{Command, Control, DiskStatus, NicStatus, PhaseTiming, Refusal, State, Status},
    config::{MachineFile, format_mac},
    console::hub::Hub,
};
use romulus_machine::Statistics;
use std::{
    process,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::SystemTime,
};

/// The machine as other threads see it.
pub(crate) struct Shared {
    pub(super) file: MachineFile,
    pub(super) hub: Arc<Hub>,
    pub(super) events: mpsc::Sender<Event>,
    /// Which of a protected machine's hosts this is.
    pub(super) me: usize,
    life: Mutex<Life>,
    started: SystemTime,
}

struct Life {
    state: State,
    since: SystemTime,
    restarts: u32,
    port: Option<Arc<dyn Port>>,
    protector: Option<Arc<dyn Protector>>,
    cover: Cover,
}

impl Shared {
    /// A machine that is being made.
    pub(super) fn new(
        file: MachineFile,
        me: usize,
        hub: Arc<Hub>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let now = SystemTime::now();
        let life = Life {
            state: State::Starting,
            since: now,
            restarts: 0,
            port: None,
            protector: None,
            cover: Cover::default(),
        };
        Self {
            file,
            hub,
            events,
            me,
            life: Mutex::new(life),
            started: now,
        }
    }

    /// Notes what the machine does now.
    pub(super) fn set_state(&self, state: State) {
        let mut life = self.life();
        if life.state != state {
            (life.state, life.since) = (state, SystemTime::now());
        }
    }

    /// What the machine does now.
    pub(super) fn state(&self) -> State {
        self.life().state
    }

    /// Notes a new life of the guest, or that it has ended.
    pub(super) fn set_port(&self, port: Option<Arc<dyn Port>>) {
        self.life().port = port;
    }

    /// This host's name in a protected machine's file.
    pub(super) fn host(&self) -> &str {
        let protection = self.file.protection.as_ref();
        protection
            .and_then(|protection| protection.hosts.get(self.me))
            .map_or("this host", |host| &host.name)
    }

    /// Notes the engine of a protected machine, or that it has ended.
    pub(super) fn set_protector(&self, protector: Option<Arc<dyn Protector>>) {
        let mut life = self.life();
        life.protector = protector;
        life.cover = Cover::default();
    }

    /// Notes that the machine is protected from now on, or not.
    pub(super) fn set_cover(&self, cover: Cover) {
        self.life().cover = cover;
    }

    /// Notes that the guest is started anew.
    pub(super) fn count_restart(&self) {
        self.life().restarts += 1;
    }

    /// The guest, if it lives.
    pub(super) fn port(&self) -> Option<Arc<dyn Port>> {
        self.life().port.clone()
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Control for Shared {
    fn status(&self) -> Status {
        let (state, since, restarts, port, protector, cover) = {
            let life = self.life();
            (
                life.state,
                life.since,
                life.restarts,
                life.port.clone(),
                life.protector.clone(),
                life.cover,
            )
        };
        let machine = &self.file.machine;
        let statistics = port.map_or_else(Statistics::default, |port| port.statistics());
        let nics = machine.nics.iter().enumerate().map(|(index, nic)| {
            let [tx_frames, tx_bytes, rx_frames, rx_bytes] =
                statistics.nics.get(index).copied().unwrap_or_default();
            NicStatus {
                tap: nic.tap.clone(),
                bridge: nic.bridge.clone(),
                mac: format_mac(nic.mac),
                mtu: nic.mtu,
                tx_frames,
                tx_bytes,
                rx_frames,
                rx_bytes,
            }
        });
        let disks = machine.disks.iter().enumerate().map(|(index, disk)| {
            let [reads, read_bytes, writes, written_bytes, flushes, errors] =
                statistics.disks.get(index).copied().unwrap_or_default();
            DiskStatus {
                path: disk.path.display().to_string(),
                read_only: disk.read_only,
                reads,
                read_bytes,
                writes,
                written_bytes,
                flushes,
                errors,
            }
        });
        Status {
            name: machine.name.clone(),
            pid: process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state,
            since: humantime::format_rfc3339_seconds(since).to_string(),
            started: humantime::format_rfc3339_seconds(self.started).to_string(),
            restarts,
            vcpus: machine.vcpus,
            memory: machine.memory,
            overhead: overhead::measure(machine.memory).ok(),
            exits: statistics.exits,
            nics: nics.collect(),
            disks: disks.collect(),
            protection: self.file.protection.as_ref().map(|protection| {
                let status = protector.as_deref().and_then(Protector::status);
                cover.describe(protection, self.me, status)
            }),
        }
    }

    fn timing(&self) -> Result<Vec<PhaseTiming>, Refusal> {
        // The engine is asked without the lock.
        let protector = self.life().protector.clone();
        match protector {
            Some(protector) => Ok(cover::timing(&protector.timing())),
            None if self.file.protection.is_some() => {
                Err(Refusal::new("the machine is just starting or ending"))
            }
            None => Err(Refusal::new(UNPROTECTED)),
        }
    }

    fn send(&self, command: Command) -> Result<(), Refusal> {
        self.events
            .send(Event::Command(command))
            .map_err(|_| Refusal::new("the machine has ended"))
    }

    fn console(&self) -> &Arc<Hub> {
        &self.hub
    }

    fn console_input(&self, bytes: &[u8]) -> usize {
        match self.port() {
            Some(port) => port.console_input(bytes),
            // Nobody listens: what is typed goes nowhere, as with a computer that is off.
            None => bytes.len(),
        }
    }
}
