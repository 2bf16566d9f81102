//! QEMU COLO: a second QEMU runs the same guest, and an answer leaves when both give the same one; where they differ, all state is
//! copied first. It has no disk here, and no detector of a lost host: whoever watches it has to tell it.

use super::qmp::Qmp;
use crate::{
    assets::Guest,
    bench::contender::{QEMU_CONSOLE, QEMU_MESSAGES, make_tap, qemu},
    machine_file::FIRST_GUEST,
    machine_host, options, process, sipp,
};
use anyhow::{Context as _, Result, bail};
use lab::{Host, Lab, Network, Remote};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};

/// QEMU's control socket in a host.
const SOCKET: &str = "/run/qemu.qmp";
/// The ports on which the primary hands its guest's input to the secondary, and takes the secondary's output.
const INPUT_PORT: u16 = 9003;
const OUTPUT_PORT: u16 = 9004;
/// Between the filters of the primary alone.
const OWN_PORT: u16 = 9001;
const BACK_PORT: u16 = 9005;
/// The port of the state.
const STATE_PORT: u16 = 9998;
/// From one checkpoint to the next where no answers differ, in milliseconds.
const CHECKPOINT_MS: u32 = 1000;
/// How long the guest may take to come up, and the two to run as one.
const UP_WITHIN: Duration = Duration::from_mins(2);

/// The two. The first is the primary.
pub(super) struct Colo<'lab> {
    pub(super) lab: &'lab Lab,
    /// Dropping one ends it.
    machines: Vec<Remote>,
    secondary: Qmp,
}

impl<'lab> Colo<'lab> {
    /// Starts both and waits until they run as one.
    ///
    /// # Errors
    /// They don't get there.
    pub(super) fn start(lab: &'lab Lab, guest: &Guest) -> Result<Self> {
        let (first, second) = (lab.host(1), lab.host(2));
        let primary = first.address(Network::Replication);
        // The header with which virtio's frames go through all filters.
        let header = "vnet_hdr_support=on";
        let primary_machine = start(
            first,
            guest,
            &format!(
                "-chardev socket,id=to-secondary,host={primary},port={INPUT_PORT},server=on,wait=off \
                 -chardev socket,id=from-secondary,host={primary},port={OUTPUT_PORT},server=on,wait=off \
                 -chardev socket,id=own,host=127.0.0.1,port={OWN_PORT},server=on,wait=off \
                 -chardev socket,id=own-compared,host=127.0.0.1,port={OWN_PORT} \
                 -chardev socket,id=back,host=127.0.0.1,port={BACK_PORT},server=on,wait=off \
                 -chardev socket,id=back-compared,host=127.0.0.1,port={BACK_PORT} \
                 -object filter-mirror,id=f-input,netdev=n,queue=tx,outdev=to-secondary,{header} \
                 -object filter-redirector,id=f-back,netdev=n,queue=rx,indev=back,{header} \
                 -object filter-redirector,id=f-output,netdev=n,queue=rx,outdev=own,{header} \
                 -object iothread,id=comparing \
                 -object colo-compare,id=compare,primary_in=own-compared,secondary_in=from-secondary,\
                 outdev=back-compared,iothread=comparing,{header}"
            ),
        )?;
        // Until both run, the guest's output waits in the primary: only its console tells.
        process::poll(UP_WITHIN, Duration::from_millis(200), || {
            if let Some(status) = primary_machine.status() {
                bail!("QEMU ended with {status}");
            }
            let console = first.sh(&format!("cat {QEMU_CONSOLE} 2>/dev/null || true"))?;
            Ok(console.contains("GUEST UP").then_some(()))
        })?
        .context("COLO's guest does not come up")?;
        let secondary_machine = start(
            second,
            guest,
            &format!(
                "-chardev socket,id=input,host={primary},port={INPUT_PORT},reconnect=1 \
                 -chardev socket,id=output,host={primary},port={OUTPUT_PORT},reconnect=1 \
                 -object filter-redirector,id=f-input,netdev=n,queue=tx,indev=input,{header} \
                 -object filter-redirector,id=f-output,netdev=n,queue=rx,outdev=output,{header} \
                 -object filter-rewriter,id=f-numbers,netdev=n,queue=all,{header} \
                 -incoming tcp:{}:{STATE_PORT}",
                second.address(Network::Replication)
            ),
        )?;
        let mut colo = Self {
            lab,
            machines: vec![primary_machine, secondary_machine],
            secondary: Qmp::open(second, SOCKET)?,
        };
        colo.join(&mut Qmp::open(first, SOCKET)?)?;
        options::answers(lab.client(), sipp::sip(FIRST_GUEST), UP_WITHIN)?;
        Ok(colo)
    }

    fn join(&mut self, primary: &mut Qmp) -> Result<()> {
        let colo = json!({"capabilities": [{"capability": "x-colo", "state": true}]});
        for side in [&mut self.secondary, &mut *primary] {
            side.execute("migrate-set-capabilities", &colo)?;
        }
        let delay = json!({"x-checkpoint-delay": CHECKPOINT_MS});
        primary.execute("migrate-set-parameters", &delay)?;
        let to = self.lab.host(2).address(Network::Replication);
        let uri = json!({"uri": format!("tcp:{to}:{STATE_PORT}")});
        primary.execute("migrate", &uri)?;
        process::poll(UP_WITHIN, Duration::from_millis(200), || {
            let first = primary.execute("query-colo-status", &json!({}))?;
            let second = self.secondary.execute("query-colo-status", &json!({}))?;
            let both = is_mode(&first, "primary") && is_mode(&second, "secondary");
            Ok(both.then_some(()))
        })?
        .context("the two QEMUs never run as one")
    }

    /// Cuts the power of the primary's host and tells the secondary at once, as a detector without any delay would.
    ///
    /// # Errors
    /// The secondary refuses.
    pub(super) fn cut(&mut self) -> Result<SystemTime> {
        let at = SystemTime::now();
        self.lab.host(1).power_off()?;
        self.machines.remove(0);
        // Its output first: what it says from now on goes to the network.
        for filter in ["f-output", "f-input"] {
            self.secondary
                .execute("object-del", &json!({"id": filter}))?;
        }
        self.secondary
            .execute("x-colo-lost-heartbeat", &json!({}))?;
        Ok(at)
    }
}

fn start(host: &Host, guest: &Guest, more: &str) -> Result<Remote> {
    let folder = machine_host::place_guest(host, guest)?;
    host.sh("mkdir -p /var/log/romulus")?;
    make_tap(host)?;
    let command = qemu(guest, &folder, &format!("{folder}/vmlinuz"), "off");
    host.spawn(&[
        "sh",
        "-c",
        &format!("exec {command} -qmp unix:{SOCKET},server=on,wait=off {more} 2>>{QEMU_MESSAGES}"),
    ])
    .context("starting QEMU in the host")
}

fn is_mode(status: &Value, mode: &str) -> bool {
    status["mode"] == mode
}
