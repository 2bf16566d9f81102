//! Everything that a lab job needs from outside the lab, made before the job enters it: inside there is no network.

use crate::compile::{self, Program};
use anyhow::{Context as _, Result};
use images::{GuestKind, Progress, Suite};
use lab::LabConfig;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Debian packages with the programs that the jobs themselves run, beyond what the lab and the images need.
const PACKAGES: [&str; 5] = ["sip-tester", "ethtool", "iperf3", "iproute2", "tshark"];

/// A guest's image: which recipe, on which release, from RAM alone or with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Image {
    recipe: &'static str,
    suite: Suite,
    /// Whether its root is a disk.
    pub(crate) on_disk: bool,
}

impl Image {
    /// A shell and the network, Debian 12.
    pub(crate) const BASE_12: Self = Self {
        recipe: "base",
        suite: Suite::Bookworm,
        on_disk: false,
    };
    /// Kamailio on Debian 12, from RAM.
    pub(crate) const REGISTRAR_12: Self = Self {
        recipe: "registrar",
        suite: Suite::Bookworm,
        on_disk: false,
    };
    /// Kamailio on Debian 13, from RAM.
    pub(crate) const REGISTRAR_13: Self = Self {
        suite: Suite::Trixie,
        ..Self::REGISTRAR_12
    };
    /// Kamailio on Debian 12, one of two with keepalived and DMQ.
    pub(crate) const REGISTRAR_KEEPALIVED_12: Self = Self {
        recipe: "registrar-keepalived",
        ..Self::REGISTRAR_12
    };
    /// Kamailio on Debian 12, which also redirects and passes calls on to anywhere.
    pub(crate) const SIPSTONE_12: Self = Self {
        recipe: "sipstone",
        ..Self::REGISTRAR_12
    };
    /// rtpengine on Debian 12, for a SIP server on another machine.
    pub(crate) const MEDIA_RTPENGINE_12: Self = Self {
        recipe: "media-rtpengine",
        ..Self::REGISTRAR_12
    };
    /// `RTPProxy` on Debian 12, for a SIP server on another machine.
    pub(crate) const MEDIA_RTPPROXY_12: Self = Self {
        recipe: "media-rtpproxy",
        ..Self::REGISTRAR_12
    };
    /// Kamailio and rtpengine on Debian 12, from RAM.
    pub(crate) const PBX_12: Self = Self {
        recipe: "pbx",
        ..Self::REGISTRAR_12
    };
    /// Kamailio and `RTPProxy` on Debian 12, from RAM.
    pub(crate) const PBX_RTPPROXY_12: Self = Self {
        recipe: "pbx-rtpproxy",
        ..Self::REGISTRAR_12
    };
    /// Debian 13's QEMU, to be unpacked in a host.
    pub(crate) const QEMU_13: Self = Self {
        recipe: "qemu",
        ..Self::REGISTRAR_13
    };
    /// Kamailio on Debian 12, on a disk.
    pub(crate) const REGISTRAR_12_DISK: Self = Self {
        on_disk: true,
        ..Self::REGISTRAR_12
    };
    /// Kamailio on Debian 13, on a disk.
    pub(crate) const REGISTRAR_13_DISK: Self = Self {
        on_disk: true,
        ..Self::REGISTRAR_13
    };

    /// A name for files and folders.
    pub(crate) fn name(self) -> String {
        format!(
            "{}-{}-{}",
            self.recipe,
            self.suite,
            if self.on_disk { "disk" } else { "ram" }
        )
    }
}

/// Files that go into hosts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Assets {
    /// What lab hosts boot.
    host_image: lab::HostImage,
    /// The `romulus` program.
    pub(crate) romulus: PathBuf,
    /// The whole-memory audit, where it was asked for.
    pub(crate) audit: Option<PathBuf>,
    /// The guest's witness, where it was asked for.
    pub(crate) witness: Option<PathBuf>,
    /// baresip with all that it needs, where it was asked for.
    pub(crate) softphone: Option<PathBuf>,
    /// etcd, where it was asked for.
    pub(crate) etcd: Option<Etcd>,
    /// Guests that were built.
    guests: Vec<Guest>,
}

/// The programs of etcd (Debian packages `etcd-server` and `etcd-client`). The first brings a service, so both are unpacked and not
/// installed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Etcd {
    /// A node.
    pub(crate) node: PathBuf,
    /// etcdctl, the operator's command.
    pub(crate) control: PathBuf,
}

impl Etcd {
    /// Fetches what is missing.
    ///
    /// # Errors
    /// The packages can't be had.
    pub(crate) fn prepare(progress: &Progress) -> Result<Self> {
        let control = images::unpacked("etcd-client", Suite::Bookworm, progress)?;
        Ok(Self {
            node: Self::folder(progress)?.join("etcd"),
            control: control.join("usr/bin/etcdctl"),
        })
    }

    /// The folder of a node's program alone.
    ///
    /// # Errors
    /// The package can't be had.
    pub(crate) fn folder(progress: &Progress) -> Result<PathBuf> {
        let package = images::unpacked("etcd-server", Suite::Bookworm, progress)?;
        Ok(package.join("usr/bin"))
    }
}

/// A guest's image, built.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Guest {
    /// [`Image::name`].
    pub(crate) name: String,
    /// The distribution's kernel.
    pub(crate) kernel: PathBuf,
    /// The kernel's release, as `uname -r` says it.
    pub(crate) release: String,
    /// The folder of the kernel's modules.
    pub(crate) modules: PathBuf,
    /// The initial RAM file system.
    pub(crate) initrd: PathBuf,
    /// The disk image.
    pub(crate) disk: Option<PathBuf>,
    /// The kernel command line.
    pub(crate) command_line: String,
    /// Memory that it wants, in MiB.
    pub(crate) memory_mib: u32,
}

/// Something that only some jobs need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extra {
    /// The whole-memory audit.
    Audit,
    /// A witness in a guest.
    Witness,
    /// Softphones.
    Softphone,
    /// An arbiter's etcd.
    Etcd,
}

/// What a job asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// What it needs beyond what every lab does.
    pub(crate) extras: &'a [Extra],
    /// The guests.
    pub(crate) images: &'a [Image],
}

impl Assets {
    /// Makes these guests ready, and what every lab needs.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub(crate) fn with_guests(images: &[Image]) -> Result<Self> {
        lab::inside(|| {
            let wanted = Wanted {
                extras: &[],
                images,
            };
            Self::prepare(wanted, &Progress::new())
        })
    }

    /// Installs, compiles and builds what is missing.
    ///
    /// # Errors
    /// What could not be made, and why.
    pub(crate) fn prepare(wanted: Wanted<'_>, progress: &Progress) -> Result<Self> {
        let asked = |extra| wanted.extras.contains(&extra);
        images::ensure_packages(&PACKAGES, progress)?;
        let host_image = lab::prepare(progress)?;
        let romulus = compile::static_program(Program::Main("romulus"), progress)?;
        let audit = asked(Extra::Audit)
            .then(|| {
                compile::static_program(Program::Example("romulus-machine", "audit"), progress)
            })
            .transpose()?;
        let witness = asked(Extra::Witness)
            .then(|| compile::static_program(Program::Main("witness"), progress))
            .transpose()?;
        let softphone = asked(Extra::Softphone)
            .then(|| images::unpacked_with_dependencies("baresip-core", Suite::Bookworm, progress))
            .transpose()?;
        let etcd = asked(Extra::Etcd)
            .then(|| Etcd::prepare(progress))
            .transpose()?;
        let guests = wanted
            .images
            .iter()
            .map(|image| Guest::build(*image, progress))
            .collect::<Result<_>>()?;
        Ok(Self {
            host_image,
            romulus,
            audit,
            witness,
            softphone,
            etcd,
            guests,
        })
    }

    /// Reads assets that [`Self::write`] wrote.
    ///
    /// # Errors
    /// The file is missing or foreign.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} is no list of assets", path.display()))
    }

    /// Writes the list for the process that does the job inside the lab.
    ///
    /// # Errors
    /// The file can't be written.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        fs::write(path, serde_json::to_vec(self)?)
            .with_context(|| format!("writing {}", path.display()))
    }

    /// A lab of `hosts` hosts with `memory_mib` each, which keeps the hosts' own logs in `logs`.
    pub(crate) fn lab_config(&self, hosts: usize, memory_mib: u32, logs: &Path) -> LabConfig {
        LabConfig {
            hosts,
            host_memory_mib: memory_mib,
            image: Some(self.host_image.clone()),
            logs: Some(logs.to_owned()),
            ..LabConfig::default()
        }
    }

    /// One of the guests that were asked for.
    ///
    /// # Errors
    /// It was not asked for.
    pub(crate) fn guest(&self, image: Image) -> Result<&Guest> {
        let name = image.name();
        self.guests
            .iter()
            .find(|guest| guest.name == name)
            .with_context(|| format!("the guest {name} was not prepared"))
    }
}

impl Guest {
    fn build(image: Image, progress: &Progress) -> Result<Self> {
        let kind = if image.on_disk {
            GuestKind::Disk
        } else {
            GuestKind::Ram
        };
        let built = images::build_guest(image.recipe, image.suite, kind, progress)?;
        let kernel = images::Kernel::fetch(image.suite, progress)?;
        Ok(Self {
            name: image.name(),
            kernel: built.kernel,
            modules: kernel.root.join("lib/modules").join(&kernel.release),
            release: kernel.release,
            initrd: built.initrd,
            disk: built.disk,
            command_line: built.command_line,
            memory_mib: built.memory_mib,
        })
    }
}
