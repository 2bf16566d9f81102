//! `cargo xtask guest`: builds a guest's images out of Debian packages.

use anyhow::{Context, Result};
use clap::ValueEnum;
use images::{
    GuestKind, Progress, Recipe, Suite, build_guest, guest_names, guests_dir, verify_guest,
};

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The recipe: a directory in guests/
    #[arg(required_unless_present = "list")]
    name: Option<String>,
    /// The Debian release: bookworm (12) or trixie (13)
    #[arg(long, default_value = "bookworm")]
    suite: Suite,
    /// What to build: all in RAM, on a disk, or both
    #[arg(long, value_enum, default_value_t = Kind::Ram)]
    kind: Kind,
    /// Build twice and compare: the same inputs have to give the same bytes
    #[arg(long)]
    verify: bool,
    /// List the recipes and build nothing
    #[arg(long)]
    list: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Ram,
    Disk,
    Both,
}

impl Kind {
    fn kinds(self) -> &'static [GuestKind] {
        match self {
            Self::Ram => &[GuestKind::Ram],
            Self::Disk => &[GuestKind::Disk],
            Self::Both => &[GuestKind::Ram, GuestKind::Disk],
        }
    }
}

pub(crate) fn run(args: Args) -> Result<()> {
    if args.list {
        return list();
    }
    // clap asks for it.
    let name = args.name.context("which guest?")?;
    let progress = Progress::new();
    for &kind in args.kind.kinds() {
        let image = build_guest(&name, args.suite, kind, &progress)?;
        if args.verify {
            verify_guest(&name, args.suite, kind, &progress)?;
            println!("built twice, the same bytes:");
        }
        println!("{}", image.directory.display());
        let disk = image.disk.as_ref().map(|disk| {
            (
                disk,
                "the root file system: run a copy, the machine writes to it",
            )
        });
        let files = [
            (&image.kernel, "the kernel"),
            (&image.initrd, "the initial RAM file system"),
            (
                &image.directory.join("MACHINE.toml"),
                "for romulus run, from this directory or with copies of the files",
            ),
        ];
        for (path, what) in files.into_iter().chain(disk) {
            let bytes = path
                .metadata()
                .with_context(|| path.display().to_string())?
                .len();
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            println!("  {file:<13} {:>7.1} MiB  {what}", mebibytes(bytes));
        }
    }
    Ok(())
}

/// For people: the loss of precision is far below what is shown.
#[allow(clippy::cast_precision_loss)]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn list() -> Result<()> {
    let guests = guests_dir();
    for name in guest_names() {
        let recipe = Recipe::read(&guests, &name)?;
        println!(
            "{name:<20} {:>6} MiB  {}",
            recipe.memory_mib, recipe.summary
        );
    }
    Ok(())
}
