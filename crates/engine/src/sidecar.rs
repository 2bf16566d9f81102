//! The sidecar as a file: durable before it is said to be.

#[cfg(test)]
pub(crate) mod synced;

use romulus_protocol::{
    id::MachineId,
    sidecar::Sidecar,
    wire::{self, WireError},
};
use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// The file's name in the state directory.
const NAME: &str = "sidecar";

/// Why a sidecar cannot be had or kept.
#[derive(Debug, thiserror::Error)]
pub enum SidecarError {
    /// The file or its directory.
    #[error("sidecar {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not a sidecar.
    #[error("sidecar {path}: {source}; move it away if this disk is to be filled anew")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Why.
        source: WireError,
    },
    /// It is another machine's.
    #[error(
        "sidecar {path} belongs to machine {found}, not to {wanted}: correct `uuid` or `state`"
    )]
    Foreign {
        /// Which.
        path: PathBuf,
        /// Whose it is.
        found: MachineId,
        /// Whose it should be.
        wanted: MachineId,
    },
}

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> SidecarError + '_ {
    move |source| SidecarError::File {
        path: path.into(),
        source,
    }
}

/// Reads the sidecar in `directory`; where there is none, this host never held the machine.
///
/// # Errors
/// It cannot be read, is damaged, or is another machine's.
pub fn load(directory: &Path, machine: MachineId) -> Result<Sidecar, SidecarError> {
    let path = directory.join(NAME);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Sidecar::empty(machine));
        }
        Err(error) => return Err(file_error(&path)(error)),
    };
    let sidecar = wire::decode_sidecar(&bytes).map_err(|source| SidecarError::Damaged {
        path: path.clone(),
        source,
    })?;
    if sidecar.machine == machine {
        Ok(sidecar)
    } else {
        Err(SidecarError::Foreign {
            path,
            found: sidecar.machine,
            wanted: machine,
        })
    }
}

/// Makes `sidecar` durable in `directory`, which is made if it is missing. A crash at any moment
/// leaves the old one or the new one.
///
/// # Errors
/// It is not durable; the old one may still be there, or the new one already.
pub fn store(directory: &Path, sidecar: &Sidecar) -> Result<(), SidecarError> {
    fs::create_dir_all(directory).map_err(file_error(directory))?;
    let (path, fresh) = (directory.join(NAME), directory.join("sidecar.new"));
    let mut bytes = Vec::new();
    wire::encode_sidecar(sidecar, &mut bytes);
    let write = || -> io::Result<()> {
        let mut file = File::create(&fresh)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, &path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(file_error(&path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use romulus_protocol::id::Incarnation;

    fn some() -> Sidecar {
        Sidecar::of(MachineId(7), Incarnation::new(9).expect("not 0"))
    }

    #[test]
    fn what_is_stored_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("not/there/yet");
        assert_eq!(
            load(&state, MachineId(7)).unwrap(),
            Sidecar::empty(MachineId(7))
        );
        store(&state, &some()).unwrap();
        store(&state, &some().resyncing()).unwrap();
        assert_eq!(load(&state, MachineId(7)).unwrap(), some().resyncing());
    }

    #[test]
    fn a_damaged_or_foreign_one_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        store(directory.path(), &some()).unwrap();
        assert!(matches!(
            load(directory.path(), MachineId(8)),
            Err(SidecarError::Foreign { .. })
        ));
        let path = directory.path().join(NAME);
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(matches!(
                load(directory.path(), MachineId(7)),
                Err(SidecarError::Damaged { .. })
            ));
        }
    }
}
