//! The guest of the table: the base guest with the witness as one more service of its own.

use crate::assets::{Assets, Guest, Image};
use anyhow::{Context as _, Result};
use images::Initramfs;
use std::fs;
use tempfile::TempDir;

/// What it is made from.
const BASE: Image = Image::BASE_12;
/// Its service, as the guest's init finds it.
const SERVICE: &str = "/etc/services.d/90-witness";

/// The guest's files, some of them of this process alone.
pub(super) struct WitnessGuest {
    _folder: TempDir,
    pub(super) guest: Guest,
}

/// Makes the guest.
pub(super) fn make(assets: &Assets) -> Result<WitnessGuest> {
    let base = assets.guest(BASE)?;
    let program = assets.witness.as_ref().context("no witness was prepared")?;
    let mut extra = Initramfs::new();
    extra.copy(program, "/usr/sbin/witness", Some(0o755))?;
    extra.file(
        &format!("{SERVICE}/start"),
        0o644,
        "setsid /usr/sbin/witness 7 /dev/vda >/dev/console 2>&1 &\n",
    );
    extra.file(
        &format!("{SERVICE}/ready"),
        0o644,
        "netstat -lnt | grep -q ':7 '\n",
    );
    extra.file(&format!("{SERVICE}/stop"), 0o644, "killall witness\n");
    let folder = tempfile::Builder::new()
        .prefix("romulus-witness-")
        .tempdir()?;
    let segment = folder.path().join("extra.cpio");
    extra.write(&segment)?;
    // The kernel unpacks one archive after the other.
    let mut initrd = fs::read(&base.initrd)?;
    initrd.extend(fs::read(&segment)?);
    let path = folder.path().join("initrd.img");
    fs::write(&path, initrd)?;
    let guest = Guest {
        name: "witness-ram".to_owned(),
        initrd: path,
        ..base.clone()
    };
    Ok(WitnessGuest {
        _folder: folder,
        guest,
    })
}
