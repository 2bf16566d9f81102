//! The image that every QEMU host boots.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use images::{Initramfs, Kernel, Progress, Suite};
use serde::{Deserialize, Serialize};

use crate::vmlinux;

/// The Debian packages that the lab needs on this computer.
const PACKAGES: [&str; 12] = [
    "bash",
    "busybox-static",
    "ethtool",
    "iperf3",
    "iproute2",
    "iputils-ping",
    "kmod",
    "lz4",
    "qemu-system-x86",
    "seabios",
    "socat",
    "tcpdump",
];

/// The programs of this computer that a host has, beside busybox's.
const PROGRAMS: [&str; 11] = [
    "/usr/bin/bash",
    "/usr/bin/ip",
    "/usr/bin/iperf3",
    "/usr/bin/ping",
    "/usr/bin/qemu-system-x86_64",
    "/usr/bin/socat",
    "/usr/bin/ss",
    "/usr/bin/tcpdump",
    "/usr/sbin/bridge",
    "/usr/sbin/ethtool",
    "/usr/sbin/tc",
];

/// What QEMU in a host boots a kernel with.
const FIRMWARE: [&str; 6] = [
    "/usr/share/seabios/bios-256k.bin",
    "/usr/share/seabios/bios-microvm.bin",
    "/usr/share/qemu/kvmvapic.bin",
    "/usr/share/qemu/linuxboot_dma.bin",
    "/usr/share/qemu/pvh.bin",
    "/usr/share/qemu/qboot.rom",
];

/// The kernel modules of a host.
const MODULES: [&str; 21] = [
    "kvm_amd",
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "virtiofs",
    "bridge",
    "8021q",
    "tun",
    "vhost_net",
    "sch_netem",
    "sch_tbf",
    "sch_ingress",
    "act_mirred",
    "cls_u32",
    "ifb",
    "squashfs",
    "ext4",
    "loop",
    "softdog",
];

/// How many built images are kept in the cache.
const KEPT: usize = 3;

/// What hosts are started from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostImage {
    /// The kernel.
    pub kernel: PathBuf,
    /// The part of the initrd that is the same for all.
    pub base: PathBuf,
    /// The agent's program.
    pub agent: PathBuf,
}

/// Gets ready all that a lab needs: packages, kernel, host image, agent. Needs the computer's network, and root for the
/// packages, only where something is not there yet.
///
/// # Errors
/// Where something cannot be had; the text says what to do.
pub fn prepare(progress: &Progress) -> Result<HostImage> {
    images::ensure_packages(&PACKAGES, progress)?;
    let kernel = Kernel::fetch(Suite::Bookworm, progress)?;
    let base = base(&kernel, progress)?;
    Ok(HostImage {
        kernel: vmlinux::unpacked(&kernel)?,
        base,
        agent: agent(progress)?,
    })
}

/// The part of the initrd that is the same for all hosts, out of the cache where its inputs did not change.
fn base(kernel: &Kernel, progress: &Progress) -> Result<PathBuf> {
    let directory = images::cache_dir().join("lab").join("image");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let path = directory.join(format!("{}.cpio", digest(kernel)?));
    if path.try_exists()? {
        return Ok(path);
    }
    let step = progress.step("building the host image");
    let mut image = Initramfs::new();
    for (path, mode) in [
        ("/dev", 0o755),
        ("/proc", 0o555),
        ("/sys", 0o555),
        ("/root", 0o700),
        ("/mnt", 0o755),
        ("/run", 0o755),
    ] {
        image.directory(path, mode);
    }
    image
        .directory("/tmp", 0o1777)
        .directory("/var/log", 0o755)
        .symlink("/var/run", "/run");
    image.file(
        "/etc/passwd",
        0o644,
        "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    );
    image.file(
        "/etc/group",
        0o644,
        "root:x:0:\ntty:x:5:\nkvm:x:104:\nnogroup:x:65534:\n",
    );
    for name in ["/etc/protocols", "/etc/services"] {
        if Path::new(name).exists() {
            image.copy(Path::new(name), name, None)?;
        }
    }
    add_busybox(&mut image)?;
    for program in PROGRAMS {
        image.program(Path::new("/"), &resolved(program)?)?;
    }
    // Busybox's own shell would prefer its commands to the real ones.
    image.symlink("/bin/sh", "bash");
    for file in FIRMWARE {
        image.copy(Path::new(file), file, Some(0o644))?;
    }
    image.modules(kernel, &MODULES)?;
    // Written beside and renamed: an image that is in the cache is whole.
    let unfinished = directory.join(format!(".{}", std::process::id()));
    image
        .write(&unfinished)
        .and_then(|()| Ok(fs::rename(&unfinished, &path)?))
        .inspect_err(|_| drop(fs::remove_file(&unfinished)))
        .with_context(|| {
            format!(
                "cannot write the host image {} (is there space?)",
                path.display()
            )
        })?;
    prune(&directory);
    step.done(format!(
        "host image, {} MB",
        fs::metadata(&path)?.len() / 1_000_000
    ));
    Ok(path)
}

/// What the base is made of: this code's lists, the kernel, and the packages of this computer.
fn digest(kernel: &Kernel) -> Result<String> {
    let mut digest = blake3::Hasher::new();
    for text in [PROGRAMS.as_slice(), &FIRMWARE, &MODULES].concat() {
        digest.update(text.as_bytes()).update(b"\0");
    }
    digest.update(include_bytes!("image.rs"));
    // The directory of an unpacked kernel bears the digest of its package.
    digest.update(kernel.root.as_os_str().as_encoded_bytes());
    // Whatever version of a program or library is installed, it is in here.
    let status = "/var/lib/dpkg/status";
    digest.update(&fs::read(status).with_context(|| {
        format!("cannot read {status}: the lab builds hosts from Debian packages")
    })?);
    Ok(digest.finalize().to_hex()[..16].to_string())
}

/// The one place of a program that some versions of Debian have in `/usr/bin` and some in `/usr/sbin` or `/bin`.
fn resolved(program: &str) -> Result<String> {
    let name = program.rsplit('/').next().unwrap_or(program);
    let places = [
        program.to_string(),
        format!("/usr/bin/{name}"),
        format!("/usr/sbin/{name}"),
        format!("/bin/{name}"),
        format!("/sbin/{name}"),
    ];
    for place in places {
        if Path::new(&place).exists() {
            return Ok(place);
        }
    }
    bail!(
        "{name} is not installed on this computer; `dpkg -S {program}` tells its package where it is"
    )
}

/// Busybox under all its names; the real programs, added after it, take precedence.
fn add_busybox(image: &mut Initramfs) -> Result<()> {
    let path = resolved("/usr/bin/busybox")?;
    let output = Command::new(&path)
        .arg("--list")
        .output()
        .with_context(|| format!("cannot run {path}"))?;
    image.copy(Path::new(&path), "/bin/busybox", Some(0o755))?;
    for name in String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|name| !["busybox", "sh"].contains(name))
    {
        let is_real = PROGRAMS
            .iter()
            .any(|program| program.rsplit('/').next() == Some(name));
        if !is_real {
            image.symlink(&format!("/bin/{name}"), "busybox");
        }
    }
    Ok(())
}

/// Removes all but the newest images; one in use stays on the disk until its lab ends.
fn prune(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    let mut images: Vec<(SystemTime, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .filter(|(_, path)| {
            path.extension()
                .is_some_and(|extension| extension == "cpio")
        })
        .collect();
    images.sort();
    for (_, path) in images.iter().rev().skip(KEPT) {
        let _ = fs::remove_file(path);
    }
}

/// Builds the agent, and tells where cargo put it.
fn agent(progress: &Progress) -> Result<PathBuf> {
    build("lab", "lab-agent", false, progress)
}

/// Builds a program of this workspace with cargo, and tells where it is.
///
/// # Errors
/// Where cargo cannot be run or the program does not compile; cargo then has said why.
pub fn build(package: &str, program: &str, release: bool, progress: &Progress) -> Result<PathBuf> {
    let step = progress.step(format!("building {program}"));
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args([
        "build",
        "--quiet",
        "--package",
        package,
        "--bin",
        program,
    ]);
    cargo.args(["--message-format", "json-render-diagnostics"]);
    if release {
        cargo.arg("--release");
    }
    let output = cargo
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("{program} was not built");
    }
    for line in output.stdout.split(|byte| *byte == b'\n') {
        let Ok(message) = serde_json::from_slice::<serde_json::Value>(line) else {
            continue;
        };
        if message["target"]["name"] == program
            && let Some(path) = message["executable"].as_str()
        {
            step.done(format!("built {program}"));
            return Ok(path.into());
        }
    }
    bail!("cargo built {program} and did not say where it is")
}

/// Makes the initrd of a lab: the base, and after it what belongs to this lab alone. The file has no name, so that it goes
/// when the lab goes.
pub(crate) fn initrd(
    image: &HostImage,
    payload: &[(PathBuf, String)],
    directory: &Path,
) -> Result<File> {
    let mut own = Initramfs::new();
    own.file("/init", 0o755, include_str!("host-init.sh"));
    own.copy(&image.agent, "/usr/bin/lab-agent", Some(0o755))?;
    for (from, to) in payload {
        own.copy(from, to, None)?;
    }
    let make = || -> Result<File> {
        let path = directory.join("initrd");
        own.write(&path)?;
        let mut segment = File::open(&path)?;
        fs::remove_file(&path)?;
        let mut initrd = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)?;
        fs::remove_file(&path)?;
        io::copy(&mut File::open(&image.base)?, &mut initrd)?;
        io::copy(&mut segment, &mut initrd)?;
        Ok(initrd)
    };
    make().with_context(|| {
        format!(
            "cannot write the hosts' initrd in {} (is there space?)",
            directory.display()
        )
    })
}
