//! A disk image with an ext4 file system, made from a tree in memory by e2fsprogs, without root and always the same.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache;
use crate::run;
use crate::tree::{Node, Tree};

/// The time in all inodes and in the superblock: 2024-01-01. Not 0, which e2fsprogs takes for "now".
const TIME: &str = "1704067200";

/// What Debian 12's and 13's kernels both mount.
const CONFIG: &str = "\
[defaults]
    base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
    enable_periodic_fsck = 0
[fs_types]
    ext4 = {
        features = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
    }
    small = {
    }
";

/// Writes an image of `size_mib` with `tree` as its file system. `scratch` is an empty place for its pieces.
pub(crate) fn write(tree: &Tree, size_mib: u32, image: &Path, scratch: &Path) -> Result<()> {
    let stage = scratch.join("stage");
    cache::create_dir(&stage)?;
    lay_out(tree, &stage)?;
    let file = File::create(image).with_context(|| format!("cannot create {}", image.display()))?;
    file.set_len(u64::from(size_mib) << 20)
        .with_context(|| format!("cannot size {}", image.display()))?;
    // The image's name for itself comes from its content, so that two images differ in it.
    let uuid = uuid_of(tree);
    let mut make = Command::new("mke2fs");
    make.args([
        "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-i", "8192", "-m", "0", "-L",
        "guest", "-U", &uuid,
    ]);
    make.arg("-E").arg(format!(
        "hash_seed={uuid},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,nodiscard"
    ));
    // This computer's own mke2fs.conf is to change nothing.
    let config = scratch.join("mke2fs.conf");
    fs::write(&config, CONFIG).with_context(|| format!("cannot write {}", config.display()))?;
    make.arg("-d")
        .arg(&stage)
        .arg(image)
        .env("E2FSPROGS_FAKE_TIME", TIME)
        .env("MKE2FS_CONFIG", &config);
    run::quiet(
        &mut make,
        "mke2fs (package e2fsprogs); is the size of the disk enough?",
    )?;

    // mke2fs takes owners and change times from the stage, which belongs to whoever builds, now.
    let commands = scratch.join("inodes");
    fs::write(&commands, inode_commands(tree))
        .with_context(|| format!("cannot write {}", commands.display()))?;
    let mut fix = Command::new("debugfs");
    fix.arg("-w")
        .arg("-f")
        .arg(&commands)
        .arg(image)
        .env("E2FSPROGS_FAKE_TIME", TIME);
    run::quiet(&mut fix, "debugfs (package e2fsprogs)")
}

fn lay_out(tree: &Tree, stage: &Path) -> Result<()> {
    for (path, node) in tree.nodes() {
        let at = stage.join(path);
        match node {
            // Modes are set in the image: a directory without write permission could not be filled here.
            Node::Directory { .. } => fs::create_dir(&at),
            Node::File { content, .. } => fs::write(&at, content)
                .and_then(|()| fs::set_permissions(&at, fs::Permissions::from_mode(0o600))),
            Node::Symlink { target } => symlink(target, &at),
        }
        .with_context(|| format!("cannot make {}", at.display()))?;
    }
    Ok(())
}

/// Commands for debugfs(8) that give every inode its mode, its owner and its times.
fn inode_commands(tree: &Tree) -> String {
    let mut inodes: BTreeMap<&str, u32> =
        BTreeMap::from([("", 0o040_755), ("lost+found", 0o040_700)]);
    for (path, node) in tree.nodes() {
        let mode = match node {
            Node::Directory { mode } => 0o040_000 | mode,
            Node::File { mode, .. } => 0o100_000 | mode,
            Node::Symlink { .. } => 0o120_777,
        };
        inodes.insert(path, mode);
    }
    let mut text = String::new();
    for (path, mode) in inodes {
        // Writing to a string cannot fail.
        let mut set = |field: &str, value: &str| {
            let _ = writeln!(text, "sif \"/{path}\" {field} {value}");
        };
        set("mode", &format!("0{mode:o}"));
        for field in [
            "uid",
            "gid",
            "atime_extra",
            "ctime_extra",
            "mtime_extra",
            "crtime_extra",
        ] {
            set(field, "0");
        }
        for field in ["atime", "ctime", "mtime", "crtime"] {
            set(field, &format!("@{TIME}"));
        }
    }
    text
}

/// A uuid (version 8, RFC 9562) out of the tree's own digest.
fn uuid_of(tree: &Tree) -> String {
    let mut digest = cache::Digest::new("ext4");
    for (path, node) in tree.nodes() {
        digest.add(path);
        match node {
            Node::Directory { mode } => digest.add(mode.to_le_bytes()),
            Node::File { mode, content } => digest.add(mode.to_le_bytes()).add(content),
            Node::Symlink { target } => digest.add(target),
        };
    }
    let mut bytes = digest.bytes16();
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = format!("{:032x}", u128::from_be_bytes(bytes));
    [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{SystemTime, UNIX_EPOCH};

    fn image() -> Vec<u8> {
        let mut tree = Tree::merged_usr();
        tree.file("etc/kamailio/key.pem", 0o600, b"secret".to_vec());
        tree.file("sbin/run it", 0o755, vec![7; 10_000]);
        tree.directory("closed", 0o500);
        tree.file("closed/x", 0o444, Vec::new());
        let scratch = tempfile::tempdir().unwrap();
        let image = scratch.path().join("image");
        write(&tree, 16, &image, scratch.path()).unwrap();
        let check = Command::new("/sbin/e2fsck")
            .args(["-fn"])
            .arg(&image)
            .output()
            .unwrap();
        assert!(
            check.status.success(),
            "{}",
            String::from_utf8_lossy(&check.stdout)
        );
        let mut ask = Command::new("debugfs");
        let text = run::text(
            ask.args(["-R", "ls -l /etc/kamailio"]).arg(&image),
            "debugfs",
        )
        .unwrap();
        let line = text.lines().find(|l| l.contains("key.pem")).unwrap();
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        assert_eq!(fields[1..6], ["100600", "(1)", "0", "0", "6"], "{line}");
        fs::read(&image).unwrap()
    }

    #[test]
    fn two_images_of_one_tree_are_the_same_and_sound() {
        let first = image();
        // A time that is not set would show as another second: wait until one begins.
        let second = || {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_secs()
        };
        let before = second();
        while second() == before {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert!(first == image(), "the images differ");
    }
}
