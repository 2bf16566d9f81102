//! What happens to the arbiter.

use super::{
    super::stand::{SOON, Stand},
    Row,
};
use crate::process;
use anyhow::{Context as _, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

/// This file's rows.
pub(super) const ALL: &[Row] = &[
    Row::new(
        "arbiter-gone-before",
        "the arbiter is gone; then the primary's host loses its power; then the arbiter is back",
        "nobody runs the machine until the arbiter is back; then the backup does",
        before,
    )
    .short(),
    Row::new(
        "arbiter-gone-during",
        "the arbiter is killed during a takeover, and is back a little later",
        "the backup takes over once the arbiter is back, if it had not before",
        during,
    ),
    Row::new(
        "arbiter-gone-after",
        "the arbiter is gone while all is well, and after a takeover",
        "the machine serves on; it is protected again when the arbiter is back",
        after,
    ),
    Row::new(
        "arbiter-empty",
        "the arbiter is installed anew with an empty store, then the primary's host loses its power",
        "both hosts say that the record is missing; nobody runs alone until the store is back",
        empty,
    ),
    Row::new(
        "arbiter-disk-full",
        "the arbiter's disk is full, then the primary's host loses its power",
        "nobody runs the machine until there is room; then the backup does",
        disk_full,
    ),
];

fn before(stand: &mut Stand<'_>) -> Result<()> {
    let runner = stand.runner()?;
    stand.pair.arbiter.kill();
    stand.goes_on().context("without an arbiter")?;
    stand.pair.cut_power(runner)?;
    stand.nobody_runs(&[1 - runner])?;
    stand.pair.arbiter.start_again()?;
    stand.takes_over(1 - runner)?;
    stand.pair.return_host(runner)?;
    stand.protected_there()
}

fn during(stand: &mut Stand<'_>) -> Result<()> {
    let runner = stand.runner()?;
    stand.moment();
    stand.pair.cut_power(runner)?;
    let wait = stand.draw.milliseconds(400..900);
    thread::sleep(wait);
    stand.pair.arbiter.kill();
    thread::sleep(stand.draw.milliseconds(200..2500));
    stand.pair.arbiter.start_again()?;
    stand.remark = format!("{} ms after the cut", wait.as_millis());
    stand.takes_over(1 - runner)?;
    stand.pair.return_host(runner)?;
    stand.protected_there()
}

/// How long the arbiter stays away while all is well.
const AWAY: Duration = Duration::from_secs(4);

fn after(stand: &mut Stand<'_>) -> Result<()> {
    let runner = stand.runner()?;
    stand.pair.arbiter.kill();
    thread::sleep(AWAY);
    stand.goes_on().context("without an arbiter")?;
    ensure!(
        stand.runner()? == runner,
        "the machine moved because the arbiter was gone"
    );
    stand.pair.arbiter.start_again()?;
    stand.protected_there()?;
    stand.moment();
    stand.pair.kill(runner)?;
    stand.takes_over(1 - runner)?;
    stand.pair.arbiter.kill();
    stand.pair.run(runner)?;
    thread::sleep(AWAY);
    stand
        .goes_on()
        .context("without an arbiter, after a takeover")?;
    ensure!(
        !stand.pair.wait_runs(1 - runner)?.is_protected_here(),
        "a machine is called protected though no arbiter named an heir"
    );
    stand.pair.arbiter.start_again()?;
    stand.protected_there()
}

fn empty(stand: &mut Stand<'_>) -> Result<()> {
    let runner = stand.runner()?;
    let store = stand.pair.arbiter.store();
    let kept = store.with_extension("kept");
    stand.pair.arbiter.kill();
    fs::rename(&store, &kept)?;
    stand.pair.arbiter.start_again()?;
    for side in 0..2 {
        process::poll(SOON, Duration::from_millis(250), || {
            let said = stand.pair.running(side)?.messages()?;
            Ok(said.contains("no record of this machine").then_some(()))
        })?
        .with_context(|| format!("h{} does not say that the record is missing", side + 1))?;
    }
    stand.goes_on().context("with an empty arbiter")?;
    stand.pair.cut_power(runner)?;
    stand.nobody_runs(&[1 - runner])?;
    stand.pair.arbiter.kill();
    fs::remove_dir_all(&store)?;
    fs::rename(&kept, &store)?;
    stand.pair.arbiter.start_again()?;
    stand.takes_over(1 - runner)?;
    stand.pair.return_host(runner)?;
    stand.protected_there()
}

fn disk_full(stand: &mut Stand<'_>) -> Result<()> {
    let runner = stand.runner()?;
    stand.pair.arbiter.kill();
    let disk = SmallDisk::below(&stand.pair.arbiter.store())?;
    stand.pair.arbiter.start_again()?;
    stand.protected_there()?;
    let full = disk.fill()?;
    stand.pair.cut_power(runner)?;
    stand.nobody_runs(&[1 - runner])?;
    let said = stand.pair.arbiter.messages()?;
    ensure!(
        said.contains("cannot be stored"),
        "the arbiter does not say that its disk is full"
    );
    fs::remove_file(full)?;
    stand.takes_over(1 - runner)?;
    stand.pair.arbiter.kill();
    disk.end()?;
    stand.pair.arbiter.start_again()?;
    stand.pair.return_host(runner)?;
    stand.protected_there()
}

/// A file system of little room below a folder, in this process's own name space.
struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    fn below(folder: &Path) -> Result<Self> {
        let kept = Kept::take(folder)?;
        let mut command = Command::new("mount");
        command
            .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
            .arg(folder);
        ensure!(command.status()?.success(), "a small disk can't be mounted");
        kept.put(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// Leaves no room at all; the file that takes it.
    fn fill(&self) -> Result<PathBuf> {
        let path = self.folder.join("filler");
        // Fails when there is no room left, which is the point.
        let _ = fs::write(&path, vec![0; 1 << 20]);
        let room = fs::write(self.folder.join("more"), [0; 4096]).is_ok();
        ensure!(!room, "the small disk is not full");
        fs::remove_file(self.folder.join("more"))?;
        Ok(path)
    }

    /// Puts what is on it into the folder below.
    fn end(self) -> Result<()> {
        let kept = Kept::take(&self.folder)?;
        let unmounted = Command::new("umount").arg(&self.folder).status()?;
        ensure!(unmounted.success(), "the small disk can't be taken away");
        kept.put(&self.folder)
    }
}

/// A folder's files.
struct Kept(Vec<(PathBuf, Vec<u8>)>);

impl Kept {
    fn take(folder: &Path) -> Result<Self> {
        let mut files = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_file() {
                files.push((path.clone(), fs::read(&path)?));
            }
        }
        Ok(Self(files))
    }

    fn put(&self, folder: &Path) -> Result<()> {
        for (path, content) in &self.0 {
            let name = path.file_name().context("a file without a name")?;
            fs::write(folder.join(name), content)?;
        }
        Ok(())
    }
}
