//! One machine, one process on a host. Nothing here needs KVM.

use rustix::fs::{FlockOperation, fcntl_lock};
use std::{
    fs::{self, File},
    process::{self, Command},
};

#[test]
fn a_machine_that_another_process_runs_is_not_run_again() {
    let place = tempfile::tempdir().expect("a directory for the test");
    let run = place.path().join("run");
    fs::create_dir(&run).expect("a runtime directory");
    let machine = "name = 'a'\nmemory = '128 MiB'\nboot.kernel = 'vmlinuz'\n";
    fs::write(place.path().join("a.toml"), machine).expect("a machine file");
    // This process holds the lock, as one that runs the machine does.
    let lock = File::create(run.join("a.lock")).expect("a lock");
    fcntl_lock(&lock, FlockOperation::NonBlockingLockExclusive).expect("locked");
    let output = Command::new(env!("CARGO_BIN_EXE_romulus"))
        .args(["run", "a.toml"])
        .env("ROMULUS_RUNTIME_DIR", &run)
        .env("XDG_CACHE_HOME", place.path().join("cache"))
        .env_remove("RUST_LOG")
        .current_dir(place.path())
        .output()
        .expect("romulus starts");
    let shown = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(14), "{shown}");
    let holder = format!("machine a runs already (pid {})", process::id());
    assert!(shown.contains(&holder), "{shown}");
}
