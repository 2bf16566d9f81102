//! What is measured side by side: our machine, and stock QEMU with its network back end in user space or in the kernel.

use crate::{
    assets::Guest,
    machine_file::{FIRST_GUEST, MachineFile, command_line, mac},
    machine_host::{self, Running},
    options, process, sipp,
};
use anyhow::{Context as _, Result, bail, ensure};
use lab::{Host, Lab, Remote};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// Memory of every contender's guest in MiB.
pub(super) const GUEST_MIB: u64 = 512;
/// How long a guest may take to answer SIP.
const BOOT_LIMIT: Duration = Duration::from_mins(4);
/// How long the guest's other services may take after its first SIP answer.
const SETTLE_LIMIT: Duration = Duration::from_mins(1);
/// Where QEMU's own words go.
pub(super) const QEMU_MESSAGES: &str = "/var/log/romulus/qemu.stderr";
/// Where the guest's console goes under QEMU.
pub(super) const QEMU_CONSOLE: &str = "/var/log/romulus/qemu.log";
/// The tap that QEMU uses.
const TAP: &str = "tapqemu";

/// One of those compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Contender {
    /// Our machine.
    Romulus,
    /// Stock QEMU, virtio-net-pci, frames handled in QEMU.
    Qemu,
    /// The same, frames handled by the host's kernel.
    QemuVhost,
}

/// Which kernel file QEMU gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QemuKernel {
    /// The distribution's file.
    Vmlinuz,
    /// The same kernel unpacked, entered by the PVH protocol.
    Vmlinux,
}

/// A contender's guest that runs and answers SIP.
pub(super) struct Up<'lab> {
    /// From the start of the process to the first answer.
    pub(super) boot: Duration,
    process: Process<'lab>,
}

enum Process<'lab> {
    Romulus(Box<Running<'lab>>),
    Qemu(&'lab Host, Remote),
}

/// The guest in the host, and how to start it.
pub(super) struct Stable<'lab> {
    lab: &'lab Lab,
    guest: &'lab Guest,
    folder: String,
    /// The file that QEMU boots from.
    pub(super) qemu_kernel: QemuKernel,
}

impl<'lab> Stable<'lab> {
    /// Puts the guest into the host and makes QEMU's tap. Romulus must be there already; QEMU is part of the host.
    ///
    /// # Errors
    /// The host can't be reached.
    pub(super) fn new(lab: &'lab Lab, guest: &'lab Guest) -> Result<Self> {
        let host = lab.host(1);
        let folder = machine_host::place_guest(host, guest)?;
        make_tap(host)?;
        Ok(Self {
            lab,
            guest,
            folder,
            qemu_kernel: QemuKernel::Vmlinuz,
        })
    }

    /// Starts a contender and waits until its guest answers SIP.
    ///
    /// # Errors
    /// It does not come up.
    pub(super) fn start(&self, contender: Contender) -> Result<Up<'lab>> {
        let host = self.lab.host(1);
        let watch = options::watch(self.lab.client(), sipp::sip(FIRST_GUEST), BOOT_LIMIT)?;
        let start = Instant::now();
        let mut process = match contender {
            Contender::Romulus => {
                Process::Romulus(Box::new(Running::start(host, self.machine_file())?))
            }
            Contender::Qemu => self.start_qemu("off")?,
            Contender::QemuVhost => self.start_qemu("on")?,
        };
        match watch.wait() {
            Ok(answered) => Ok(Up {
                boot: answered.duration_since(start),
                process,
            }),
            Err(error) => {
                process.explain(contender)?;
                Err(error).context(contender.name())
            }
        }
    }

    /// Where our machine keeps the unpacked kernel, which QEMU may boot too.
    fn unpacked(&self) -> String {
        format!("{}/vmlinux", self.folder)
    }

    /// Unpacks the guest's kernel in the host for [`QemuKernel::Vmlinux`].
    ///
    /// # Errors
    /// The kernel can't be unpacked.
    pub(super) fn place_vmlinux(&self, vmlinux: &Path) -> Result<()> {
        self.lab.host(1).push(vmlinux, &self.unpacked())
    }

    fn machine_file(&self) -> MachineFile {
        MachineFile::new("bench", self.guest, &self.folder, 0)
    }

    fn start_qemu(&self, vhost: &str) -> Result<Process<'lab>> {
        let host = self.lab.host(1);
        let kernel = match self.qemu_kernel {
            QemuKernel::Vmlinuz => format!("{}/vmlinuz", self.folder),
            QemuKernel::Vmlinux => self.unpacked(),
        };
        let script = format!(
            "exec {} 2>>{QEMU_MESSAGES}",
            qemu(self.guest, &self.folder, &kernel, vhost)
        );
        Ok(Process::Qemu(
            host,
            host.spawn(&["sh", "-c", &script])
                .context("starting QEMU in the host")?,
        ))
    }
}

/// Makes the tap of [`qemu`].
///
/// # Errors
/// The host can't be reached.
pub(super) fn make_tap(host: &Host) -> Result<()> {
    host.sh(&format!(
        "ip tuntap add {TAP} mode tap vnet_hdr; ip link set {TAP} master br0 up"
    ))
    .map(drop)
}

/// The command that runs a guest, which lies in `folder`, as our own machine 0 under QEMU. Its network back end is `n`.
pub(super) fn qemu(guest: &Guest, folder: &str, kernel: &str, vhost: &str) -> String {
    format!(
        "qemu-system-x86_64 -accel kvm -cpu host -smp 1 -m {GUEST_MIB} \
         -L /usr/share/qemu -L /usr/share/seabios -nodefaults -no-reboot -display none \
         -serial file:{QEMU_CONSOLE} \
         -netdev tap,id=n,ifname={TAP},script=no,downscript=no,vhost={vhost} \
         -device virtio-net-pci,romfile=,netdev=n,mac={} \
         -kernel {kernel} -initrd {folder}/initrd.img -append '{}'",
        mac(0),
        command_line(guest, 0),
    )
}

impl Contender {
    /// For people.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Romulus => "romulus",
            Self::Qemu => "QEMU, user-space network",
            Self::QemuVhost => "QEMU, vhost",
        }
    }
}

impl QemuKernel {
    /// For people.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Vmlinuz => "vmlinuz",
            Self::Vmlinux => "vmlinux by PVH",
        }
    }
}

impl Up<'_> {
    /// Waits until the guest has started everything: its first SIP answer comes before that.
    ///
    /// # Errors
    /// It does not.
    pub(super) fn settle(&self) -> Result<()> {
        let host = match &self.process {
            Process::Romulus(running) => return running.wait_console("GUEST UP", SETTLE_LIMIT),
            Process::Qemu(host, _) => host,
        };
        let up = || {
            Ok(host
                .sh(&format!("cat {QEMU_CONSOLE}"))?
                .contains("GUEST UP")
                .then_some(()))
        };
        process::poll(SETTLE_LIMIT, Duration::from_millis(200), up)?
            .context("QEMU's guest did not start all its services")
    }

    /// KiB that the process holds beyond its guest's memory.
    ///
    /// # Errors
    /// The process has ended.
    pub(super) fn resident_beyond_guest_kib(&self) -> Result<u64> {
        match &self.process {
            Process::Romulus(running) => running.resident_beyond_guest_kib(GUEST_MIB),
            Process::Qemu(host, remote) => {
                machine_host::resident_beyond_guest_kib(host, remote.pid(), GUEST_MIB)
            }
        }
    }

    /// Ends the process at once.
    ///
    /// # Errors
    /// The host can't be reached.
    pub(super) fn end(self) -> Result<()> {
        match self.process {
            Process::Romulus(running) => running.kill(),
            Process::Qemu(_, remote) => {
                remote.kill()?;
                ensure!(
                    remote.wait_at_most(Duration::from_secs(10))?.is_some(),
                    "QEMU survived a kill -9"
                );
                Ok(())
            }
        }
    }
}

impl Process<'_> {
    /// Turns an early end of the process into an error that says why.
    fn explain(&mut self, contender: Contender) -> Result<()> {
        match self {
            Self::Romulus(running) => running.still_runs(),
            Self::Qemu(host, remote) => match remote.status() {
                None => Ok(()),
                Some(status) => {
                    let said = host.sh(&format!("tail -n 5 {QEMU_MESSAGES}"))?;
                    bail!("{} ended with {status}: {}", contender.name(), said.trim())
                }
            },
        }
    }
}
