//! The file that holds a secret: one line of text.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::IdentityError;

const PREFIX: &str = "romulus-secret-1:";
/// Far more than the line has.
const LENGTH_MAX: u64 = 256;

/// Writes a seed to a new file, durably, so that at no time a part of it stands under its name.
pub(super) fn write(path: &Path, seed: &[u8; 32]) -> Result<(), IdentityError> {
    let failed = |verb, error| IdentityError::File {
        verb,
        path: path.to_owned(),
        error,
    };
    let directory = directory(path);
    let draft = draft(path);
    let line = format!("{PREFIX}{}\n", STANDARD.encode(seed));
    let written = fill(&draft, &line);
    // Unlike a rename, a link never replaces what is there.
    let linked = written.and_then(|()| fs::hard_link(&draft, path));
    let removed = fs::remove_file(&draft);
    match linked {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            return Err(IdentityError::Exists(path.to_owned()));
        }
        result => result.map_err(|e| failed("write", e))?,
    }
    removed.map_err(|e| failed("tidy up beside", e))?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|e| failed("sync the directory of", e))
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn draft(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    PathBuf::from(name)
}

fn fill(draft: &Path, line: &str) -> io::Result<()> {
    // What a process of the same number left behind when it was killed is nobody's secret yet.
    match fs::remove_file(draft) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(draft)?;
    file.write_all(line.as_bytes())?;
    file.sync_all()
}

/// Reads a seed.
pub(super) fn read(path: &Path) -> Result<[u8; 32], IdentityError> {
    let failed = |error| IdentityError::File {
        verb: "read",
        path: path.to_owned(),
        error,
    };
    let malformed = |why| IdentityError::Malformed {
        path: path.to_owned(),
        why,
    };
    // Opening a pipe by mistake must not wait for its writer.
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(malformed("it is not a file"));
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::Mode {
            path: path.to_owned(),
            mode,
        });
    }
    let mut text = String::new();
    match file.take(LENGTH_MAX).read_to_string(&mut text) {
        Err(e) if e.kind() == io::ErrorKind::InvalidData => {
            return Err(malformed("it is not text"));
        }
        result => result.map_err(failed)?,
    };
    let code = text
        .trim()
        .strip_prefix(PREFIX)
        .ok_or_else(|| malformed("its line begins in another way"))?;
    let seed = STANDARD
        .decode(code)
        .map_err(|_| malformed("its base64 is damaged"))?;
    seed.try_into()
        .map_err(|_| malformed("it has another length"))
}
