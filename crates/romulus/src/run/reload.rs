//! The machine file read again while the machine runs: its mode takes effect, everything else at the next start.

use crate::{
    api::model::{Refusal, Reloaded},
    config::{ConfigError, MachineFile},
};
use romulus_network::Mode;

/// Reads the machine file.
pub(super) type Read = Box<dyn FnMut() -> Result<MachineFile, ConfigError>>;

/// What a file that was read again changes. `now` is what is in force: the file with which the process started, but for
/// the mode.
///
/// # Errors
/// It is another machine's, or has lost what protects it.
pub(super) fn changes(now: &MachineFile, file: &MachineFile) -> Result<(Mode, Reloaded), Refusal> {
    if now.machine.name != file.machine.name || now.uuid != file.uuid {
        return Err(Refusal::new(
            "the file describes another machine now (its name or uuid changed)",
        ));
    }
    let (Some(protection), Some(new)) = (&now.protection, &file.protection) else {
        return Err(Refusal::new(
            "the file has no [protection] any more: stop the machine and start it without",
        ));
    };
    let mut rest = file.clone();
    // Where it leaves that open, the process has chosen.
    rest.machine
        .kernel_cache
        .clone_from(&now.machine.kernel_cache);
    if let Some(rest) = &mut rest.protection {
        rest.mode = protection.mode.clone();
    }
    let reloaded = Reloaded {
        mode: new.mode.name().to_owned(),
        mode_changes: new.mode != protection.mode,
        // Only that tells the other host something.
        cover_lost: new.mode.leaves_unheld() != protection.mode.leaves_unheld(),
        restart_needed: rest != *now,
    };
    Ok((new.mode.clone(), reloaded))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const FILE: &str = include_str!("../../../../docs/examples/protected.toml");

    fn file(mode: &str, keys: &str) -> MachineFile {
        let text = FILE.replace("[protection]", &format!("[protection]\n{mode}"));
        let text = format!("{keys}\n{text}");
        MachineFile::parse(&text, Path::new("machine.toml"), Path::new("/etc/romulus")).unwrap()
    }

    #[test]
    fn the_mode_changes_and_what_else_does_waits() {
        let mut now = file("", "");
        now.machine.kernel_cache = Some("/var/cache/romulus".into());
        let plan = |mode, keys| changes(&now, &file(mode, keys)).unwrap().1;
        let same = plan("", "");
        assert_eq!(same.mode, "net");
        assert!(!same.mode_changes && !same.cover_lost && !same.restart_needed);
        let split = plan("mode = \"split\"", "");
        assert_eq!(split.mode, "split");
        assert!(split.mode_changes && split.cover_lost && !split.restart_needed);
        let more = plan("queue = \"1 GiB\"", "");
        assert!(!more.mode_changes && more.restart_needed);
        let more = plan("", "stop_timeout = \"7s\"");
        assert!(!more.mode_changes && more.restart_needed);
        let split = file("mode = \"split\"", "");
        let (to, plan) = changes(&split, &file("mode = \"no-net\"", "")).unwrap();
        assert_eq!(to.name(), "no-net");
        assert!(plan.mode_changes && !plan.cover_lost);
    }

    #[test]
    fn another_machines_file_is_refused() {
        let now = file("", "");
        let mut other = now.clone();
        other.machine.name = "other".into();
        assert!(changes(&now, &other).is_err());
        let mut other = now.clone();
        other.uuid = None;
        assert!(changes(&now, &other).is_err());
        let mut bare = now.clone();
        bare.protection = None;
        assert!(changes(&now, &bare).is_err());
    }
}
