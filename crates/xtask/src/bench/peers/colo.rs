//! QEMU COLO: a second QEMU runs the same guest, and an answer leaves when both give the same one; where they differ, all state is
//! copied first. It has no disk here, and no detector of a lost host: whoever watches it has to tell it.

use super::qmp::Qmp;
use crate::{
    assets::{Assets, Guest, Image},
    bench::contender::{QEMU_CONSOLE, QEMU_MESSAGES, make_tap, qemu},
    machine_file::FIRST_GUEST,
    machine_host, options, process, sipp,
};
use anyhow::{Context as _, Result, bail};
use lab::{Host, Lab, Network, Remote};
use serde_json::{Value, json};
use std::{
    thread,
    time::{Duration, SystemTime},
};

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
/// How long the guest may take to come up, and the two to run as one.
const UP_WITHIN: Duration = Duration::from_mins(2);

/// Where another QEMU than the host's own lies in a host, with its own libraries.
const ROOT: &str = "/opt/qemu";

/// Whose QEMU is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Release {
    /// Debian 12's, which lab hosts have anyway.
    Debian12,
    /// Debian 13's.
    Debian13,
}

/// The two. The first is the primary.
pub(super) struct Colo<'lab> {
    pub(super) lab: &'lab Lab,
    /// Dropping one ends it.
    machines: Vec<Remote>,
    secondary: Qmp,
    /// Of its QEMU.
    pub(super) version: String,
    /// Why the secondary did not take over, if it said so.
    pub(super) refusal: Option<String>,
}

impl<'lab> Colo<'lab> {
    /// Starts both and waits until they run as one. Where no answers differ, a checkpoint comes after `checkpoint_ms`.
    ///
    /// # Errors
    /// They don't get there.
    pub(super) fn start(
        lab: &'lab Lab,
        assets: &Assets,
        guest: &Guest,
        release: Release,
        checkpoint_ms: u32,
    ) -> Result<Self> {
        let (first, second) = (lab.host(1), lab.host(2));
        let prefix = match release {
            Release::Debian12 => String::new(),
            Release::Debian13 => format!("chroot {ROOT} "),
        };
        // Both at once: it takes seconds on an emulated host.
        thread::scope(|scope| {
            let places = [first, second].map(|host| {
                scope.spawn(move || match release {
                    Release::Debian12 => Ok(()),
                    Release::Debian13 => place_qemu(host, assets.guest(Image::QEMU_13)?),
                })
            });
            places.into_iter().try_for_each(|place| match place.join() {
                Ok(result) => result,
                Err(_) => bail!("the thread that unpacks QEMU panicked"),
            })
        })?;
        let primary = first.address(Network::Replication);
        // The header with which virtio's frames go through all filters.
        let header = "vnet_hdr_support=on";
        let primary_machine = start(
            first,
            guest,
            &prefix,
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
            &prefix,
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
            version: String::new(),
            refusal: None,
        };
        let version = colo.secondary.execute("query-version", &json!({}))?;
        colo.version = version_text(&version);
        colo.join(&mut Qmp::open(first, SOCKET)?, checkpoint_ms)?;
        options::answers(lab.client(), sipp::sip(FIRST_GUEST), UP_WITHIN)?;
        Ok(colo)
    }

    fn join(&mut self, primary: &mut Qmp, checkpoint_ms: u32) -> Result<()> {
        let colo = json!({"capabilities": [{"capability": "x-colo", "state": true}]});
        for side in [&mut self.secondary, &mut *primary] {
            side.execute("migrate-set-capabilities", &colo)?;
        }
        let delay = json!({"x-checkpoint-delay": checkpoint_ms});
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

    /// Cuts the power of the primary's host and tells the secondary at once, as a detector without any delay would. Whether it
    /// takes over is for the measurement to see; why it does not, if it says, is in [`Self::refusal`].
    ///
    /// # Errors
    /// The power can't be cut.
    pub(super) fn cut(&mut self) -> Result<SystemTime> {
        let at = SystemTime::now();
        self.lab.host(1).power_off()?;
        self.machines.remove(0);
        self.refusal = self.take_over().err().map(|error| format!("{error:#}"));
        Ok(at)
    }

    fn take_over(&mut self) -> Result<()> {
        // What it waits for will never come, and nothing else would tell it so: a host without power closes no connection.
        for instance in [
            json!({"type": "migration"}),
            json!({"type": "chardev", "id": "input"}),
            json!({"type": "chardev", "id": "output"}),
        ] {
            let instances = json!({"instances": [instance]});
            if let Err(error) = self.secondary.execute_at_once("yank", &instances) {
                eprintln!("    {error:#}");
            }
        }
        // Its output first: what it says from now on goes to the network.
        for filter in ["f-output", "f-input"] {
            self.secondary
                .execute("object-del", &json!({"id": filter}))?;
        }
        self.secondary
            .execute("x-colo-lost-heartbeat", &json!({}))
            .map(drop)
    }
}

/// Unpacks a QEMU of another release in a host; what it works with is the host's own.
fn place_qemu(host: &Host, files: &Guest) -> Result<()> {
    const PACKED: &str = "/var/tmp/qemu.cpio";
    host.push(&files.initrd, PACKED)?;
    host.sh(&format!(
        "mkdir -p {ROOT} /guests /var/log; cd {ROOT}; cpio -idu < {PACKED} 2>/dev/null; rm {PACKED}; \
         for place in dev proc sys run guests var/log; do mkdir -p $place; mount --bind /$place $place; done"
    ))
    .context("unpacking QEMU in the host")?;
    Ok(())
}

/// What `query-version` answers, for people.
fn version_text(answer: &Value) -> String {
    let number = |name: &str| answer["qemu"][name].as_u64().unwrap_or(0);
    format!(
        "{}.{}.{} ({})",
        number("major"),
        number("minor"),
        number("micro"),
        answer["package"].as_str().unwrap_or("unknown")
    )
}

fn start(host: &Host, guest: &Guest, prefix: &str, more: &str) -> Result<Remote> {
    let folder = machine_host::place_guest(host, guest)?;
    host.sh("mkdir -p /var/log/romulus")?;
    make_tap(host)?;
    let command = qemu(guest, &folder, &format!("{folder}/vmlinuz"), "off");
    host.spawn(&[
        "sh",
        "-c",
        &format!(
            "exec {prefix}{command} -qmp unix:{SOCKET},server=on,wait=off {more} 2>>{QEMU_MESSAGES}"
        ),
    ])
    .context("starting QEMU in the host")
}

fn is_mode(status: &Value, mode: &str) -> bool {
    status["mode"] == mode
}

#[cfg(test)]
mod tests {
    use super::{is_mode, version_text};
    use serde_json::json;

    #[test]
    fn the_version_names_the_package() {
        let answer = json!({"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian 1:10.0.2+ds-2"});
        assert_eq!(version_text(&answer), "10.0.2 (Debian 1:10.0.2+ds-2)");
        assert!(is_mode(&json!({"mode": "primary"}), "primary"));
        assert!(!is_mode(&json!({"mode": "none"}), "primary"));
    }
}
