//! Guest images: a recipe and a suite's packages made into files that boot.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::archive::{Archive, Package, unpack};
use crate::cache::{self, Digest};
use crate::certificate;
use crate::elf;
use crate::ext4;
use crate::initramfs::Initramfs;
use crate::kernel::Kernel;
use crate::packages::ensure_packages;
use crate::progress::Progress;
use crate::recipe::{Recipe, names_in};
use crate::suite::Suite;
use crate::wheel;

/// The tools of this computer that a build runs.
const TOOLS: [&str; 6] = [
    "debian-archive-keyring",
    "e2fsprogs",
    "kmod",
    "openssl",
    "tar",
    "xz-utils",
];

/// This builder's own source: an image that another builder would make differently is another image.
const BUILDER: [&str; 8] = [
    include_str!("archive.rs"),
    include_str!("cpio.rs"),
    include_str!("elf.rs"),
    include_str!("ext4.rs"),
    include_str!("guest.rs"),
    include_str!("initramfs.rs"),
    include_str!("tree.rs"),
    include_str!("wheel.rs"),
];

/// Where a guest's root is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GuestKind {
    /// Everything in the initial RAM file system; no disk.
    Ram,
    /// An ext4 image, mounted by a small initial RAM file system.
    Disk,
}

impl GuestKind {
    /// "ram" or "disk".
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ram => "ram",
            Self::Disk => "disk",
        }
    }
}

/// A guest that is ready to boot. The files belong to the cache: copy the disk before a machine writes to it.
#[derive(Clone, Debug)]
pub struct GuestImage {
    /// Holds the files below.
    pub directory: PathBuf,
    /// The kernel (a bzImage).
    pub kernel: PathBuf,
    /// The initial RAM file system, uncompressed: an emulated processor loads that fastest.
    pub initrd: PathBuf,
    /// The raw image of the root file system, for [`GuestKind::Disk`].
    pub disk: Option<PathBuf>,
    /// The kernel's command line, to which `ip=…` is to be added.
    pub command_line: String,
    /// Memory that it wants, in MiB.
    pub memory_mib: u32,
}

/// The directory of recipes: `$ROMULUS_GUESTS`, else `guests` in the current directory or one above it, else in the
/// source tree that this program was built from.
pub fn guests_dir() -> PathBuf {
    if let Some(directory) = env::var_os("ROMULUS_GUESTS").filter(|v| !v.is_empty()) {
        return directory.into();
    }
    let here = env::current_dir().unwrap_or_default();
    let above = here
        .ancestors()
        .map(|d| d.join("guests"))
        .find(|d| d.join("base/recipe.toml").is_file());
    above.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guests"))
}

/// The names of all recipes, sorted.
pub fn guest_names() -> Vec<String> {
    names_in(&guests_dir())
}

/// Builds the guest `name` of `suite`, or takes it from the cache if nothing that goes into it has changed.
///
/// # Errors
/// Fails if the recipe is wrong (with file, line and key), a package or file that it names does not exist, or the
/// archive cannot be reached and what is needed is not cached.
pub fn build_guest(
    name: &str,
    suite: Suite,
    kind: GuestKind,
    progress: &Progress,
) -> Result<GuestImage> {
    let inputs = Inputs::gather(name, suite, kind, progress)?;
    let entry = format!("{name}-{suite}-{}-{}", kind.name(), inputs.digest().short());
    let directory = cache::entry(&cache::cache_dir(), "guest", &entry, |directory| {
        inputs.build(directory, progress)
    })?;
    Ok(inputs.image(directory))
}

/// Builds the guest once more, beside the cache, and compares it with [`build_guest`]'s byte for byte.
///
/// # Errors
/// As [`build_guest`], and if a file differs.
pub fn verify_guest(name: &str, suite: Suite, kind: GuestKind, progress: &Progress) -> Result<()> {
    let image = build_guest(name, suite, kind, progress)?;
    let again = cache::Scratch::new(&cache::cache_dir(), "verify")?;
    Inputs::gather(name, suite, kind, progress)?.build(again.path(), progress)?;
    for entry in
        fs::read_dir(&image.directory).with_context(|| image.directory.display().to_string())?
    {
        let first = entry?.path();
        let second = again.path().join(first.file_name().unwrap_or_default());
        let read =
            |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        if read(&first)? != read(&second)? {
            bail!("a second build gave other bytes than {}", first.display());
        }
    }
    Ok(())
}

/// All that goes into a guest's images.
struct Inputs {
    recipe: Recipe,
    suite: Suite,
    kind: GuestKind,
    kernel: Kernel,
    archive: Archive,
    packages: Vec<Package>,
    /// Certificate and key, in the recipe's order.
    certificates: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Inputs {
    fn gather(name: &str, suite: Suite, kind: GuestKind, progress: &Progress) -> Result<Self> {
        let recipe = Recipe::read(&guests_dir(), name)?;
        ensure_packages(&TOOLS, progress)?;
        let kernel = Kernel::fetch(suite, progress)?;
        let archive = Archive::open(suite, progress)?;
        let mut wanted: Vec<&str> = recipe.packages.iter().map(String::as_str).collect();
        if !recipe.wheels.is_empty() {
            wanted.push(wheel::PYTHON);
        }
        let packages = archive
            .resolve(&wanted)
            .with_context(|| format!("the packages of the guest {name}"))?;
        let certificates = recipe
            .certificates
            .iter()
            .map(certificate::generate)
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            recipe,
            suite,
            kind,
            kernel,
            archive,
            packages,
            certificates,
        })
    }

    fn digest(&self) -> Digest {
        let mut digest = Digest::new("guest");
        for source in BUILDER {
            digest.add(source);
        }
        digest
            .add(format!("{:?}", self.recipe))
            .add(self.kernel.identity())
            .add(self.kind.name());
        for package in &self.packages {
            digest.add(&package.hash);
        }
        for (certificate, key) in &self.certificates {
            digest.add(certificate).add(key);
        }
        digest
    }

    fn build(&self, directory: &Path, progress: &Progress) -> Result<()> {
        let Self {
            recipe,
            suite,
            kind,
            kernel,
            ..
        } = self;
        let (name, kind_name) = (&recipe.name, kind.name());
        let sysroot = sysroot(
            &self.archive,
            &self.packages,
            &format!("{name}-{suite}"),
            progress,
        )?;
        let step = progress.step(format!("building the guest {name} ({suite}, {kind_name})"));
        let mut root = root(recipe, kernel, &sysroot, &self.certificates)?;
        if !recipe.wheels.is_empty() {
            python(&mut root, recipe, *suite, &sysroot, progress)
                .with_context(|| format!("recipe {name}: wheel"))?;
        }
        fs::copy(&kernel.vmlinuz, directory.join("vmlinuz")).context("cannot copy the kernel")?;
        match kind {
            GuestKind::Ram => root.write(&directory.join("initrd.img"))?,
            GuestKind::Disk => disk(recipe, kernel, &sysroot, root, directory)?,
        }
        fs::write(directory.join("MACHINE.toml"), machine_file(recipe, *kind))
            .context("cannot write MACHINE.toml")?;
        step.done(format!("guest {name} ({suite}, {kind_name})"));
        Ok(())
    }

    fn image(self, directory: PathBuf) -> GuestImage {
        GuestImage {
            kernel: directory.join("vmlinuz"),
            initrd: directory.join("initrd.img"),
            disk: (self.kind == GuestKind::Disk).then(|| directory.join("disk.img")),
            command_line: self.recipe.command_line,
            memory_mib: self.recipe.memory_mib,
            directory,
        }
    }
}

/// All packages unpacked into one tree.
pub(crate) fn sysroot(
    archive: &Archive,
    packages: &[Package],
    name: &str,
    progress: &Progress,
) -> Result<PathBuf> {
    let mut digest = Digest::new("sysroot 1");
    for package in packages {
        digest.add(&package.hash);
    }
    let entry = format!("{name}-{}", digest.short());
    cache::entry(&cache::cache_dir(), "sysroot", &entry, |root| {
        let step = progress.step(format!(
            "downloading {} packages for {name}",
            packages.len()
        ));
        let files = archive.download(packages)?;
        for (number, (package, file)) in packages.iter().zip(&files).enumerate() {
            step.set(format!(
                "unpacking {} ({} of {})",
                package.name,
                number + 1,
                packages.len()
            ));
            let documents = [
                "./usr/share/doc",
                "./usr/share/man",
                "./usr/share/info",
                "./usr/share/locale",
            ];
            unpack(file, root, &documents)?;
        }
        step.done(format!("{} packages for {name}", packages.len()));
        Ok(())
    })
}

/// The guest's root file system.
fn root(
    recipe: &Recipe,
    kernel: &Kernel,
    sysroot: &Path,
    certificates: &[(Vec<u8>, Vec<u8>)],
) -> Result<Initramfs> {
    let mut root = Initramfs::new();
    for directory in ["dev", "etc", "proc", "run", "sys", "var/log"] {
        root.directory(directory, 0o755);
    }
    root.directory("tmp", 0o1777).directory("root", 0o700);
    let modules: Vec<&str> = recipe.modules.iter().map(String::as_str).collect();
    root.modules(kernel, &modules)?;
    for program in &recipe.programs {
        root.program(sysroot, program)
            .with_context(|| format!("recipe {}: program", recipe.name))?;
    }
    for path in &recipe.keep {
        let Some(found) = elf::resolve(sysroot, path) else {
            bail!(
                "recipe {}: keep: none of its packages has {path}",
                recipe.name
            );
        };
        root.copy(&elf::on_disk(sysroot, &found.path), path, None)?;
    }
    for file in &recipe.files {
        root.file(&file.path, file.mode, file.content.clone());
    }
    for (path, target) in &recipe.links {
        root.symlink(path, target);
    }
    for (wanted, (certificate, key)) in recipe.certificates.iter().zip(certificates) {
        root.file(&wanted.path, 0o644, certificate.clone()).file(
            &wanted.key_path,
            0o600,
            key.clone(),
        );
    }
    for (number, service) in recipe.services.iter().enumerate() {
        let directory = format!("/etc/services.d/{number:02}-{}", service.name);
        let scripts = [
            ("start", Some(&service.start)),
            ("ready", service.ready.as_ref()),
            ("stop", service.stop.as_ref()),
        ];
        for (name, script) in scripts {
            if let Some(script) = script {
                root.file(&format!("{directory}/{name}"), 0o755, script.as_str());
            }
        }
        if service.on_request {
            root.file(&format!("{directory}/on-request"), 0o644, "");
        }
    }
    Ok(root)
}

/// Adds the recipe's wheels, and the Python that runs them.
fn python(
    root: &mut Initramfs,
    recipe: &Recipe,
    suite: Suite,
    sysroot: &Path,
    progress: &Progress,
) -> Result<()> {
    root.program(sysroot, "/usr/bin/python3")?;
    root.all_of(sysroot, &format!("/usr/lib/python{}", suite.python()))?;
    let wheels = wheel::unpacked(&recipe.wheels, suite, progress)?;
    root.all_of(&wheels, wheel::PACKAGES)
}

/// The disk image with `root`, and the RAM file system that finds it.
fn disk(
    recipe: &Recipe,
    kernel: &Kernel,
    sysroot: &Path,
    mut root: Initramfs,
    directory: &Path,
) -> Result<()> {
    if recipe.disk_init.is_empty() {
        bail!(
            "recipe {}: a disk image needs disk.init, of this recipe or its base",
            recipe.name
        );
    }
    if recipe.whole_packages {
        root.all_of(sysroot, "")?;
    }
    let scratch = directory.join("scratch");
    cache::create_dir(&scratch)?;
    ext4::write(
        root.tree(),
        recipe.disk_mib,
        &directory.join("disk.img"),
        &scratch,
    )
    .with_context(|| format!("recipe {}: a disk of {} MiB", recipe.name, recipe.disk_mib))?;
    cache::remove_tree(&scratch)?;

    let mut finder = Initramfs::new();
    for directory in ["dev", "proc", "root", "sys"] {
        finder.directory(directory, 0o755);
    }
    let modules: Vec<&str> = recipe.disk_modules.iter().map(String::as_str).collect();
    finder
        .modules(kernel, &modules)?
        .program(sysroot, "/bin/busybox")?;
    finder.file("/init", 0o755, recipe.disk_init.clone());
    finder.write(&directory.join("initrd.img"))
}

/// A MACHINE.toml that runs the image from its own directory.
fn machine_file(recipe: &Recipe, kind: GuestKind) -> String {
    let Recipe {
        name,
        summary,
        memory_mib,
        command_line,
        ..
    } = recipe;
    let disk = match kind {
        GuestKind::Ram => "",
        GuestKind::Disk => {
            "\n[[disk]]\n# The machine writes to it: use a copy.\npath = \"disk.img\"\nread_only = false\n"
        }
    };
    format!(
        r#"# {summary}
name = "{name}"
vcpus = 1
memory = "{memory_mib} MiB"

[boot]
kernel = "vmlinuz"
initrd = "initrd.img"
# ip=ADDRESS:SERVER:GATEWAY:NETMASK:HOSTNAME:DEVICE:AUTOCONF, once for each network device
command_line = "{command_line} ip=192.0.2.100:::255.255.255.0:{name}:eth0:off"

[[nic]]
tap = "tap0"
bridge = "br0"
mac = "52:54:00:00:02:64"
{disk}"#
    )
}
