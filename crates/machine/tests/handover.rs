//! A machine captured in one process goes on in another.
//!
//! The test runs this very binary again as the other process, told by the environment what to do.

mod common;

use common::kvm_is_there;
use romulus_machine::{
    Error, Paused,
    memory::PAGE,
    tiny::{FIRST_FREE_PAGE, Tiny},
};
use std::{
    env, fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

/// Where the other process finds what was captured.
const FROM: &str = "ROMULUS_TEST_HANDOVER";
const TIMEOUT: Duration = Duration::from_secs(20);

fn guest() -> Tiny {
    Tiny {
        vcpus: 2,
        memory: 128 << 20,
        pages: 200,
        stride: 2,
        first_page: FIRST_FREE_PAGE,
        wait: 100,
    }
}

fn rounds(guest: &Tiny, paused: &Paused) -> [u64; 2] {
    [0, 1].map(|n| guest.rounds(paused.memory(), n))
}

fn run_until(guest: &Tiny, mut paused: Paused, enough: impl Fn([u64; 2]) -> bool) -> Paused {
    let deadline = Instant::now() + TIMEOUT;
    while !enough(rounds(guest, &paused)) {
        assert!(Instant::now() < deadline, "{:?}", rounds(guest, &paused));
        let machine = paused.resume().unwrap();
        assert_eq!(machine.handle().wait_exit(Duration::from_millis(5)), None);
        paused = machine.pause().unwrap();
    }
    paused
}

fn capture(paused: &mut Paused) -> (Vec<u8>, Vec<u8>) {
    let mut state = Vec::new();
    paused.capture(&mut state).unwrap();
    let mut memory = vec![0; paused.memory().pages() * PAGE];
    for (page, into) in memory.chunks_exact_mut(PAGE).enumerate() {
        paused.memory().read_page(page, into.try_into().unwrap());
    }
    (state, memory)
}

fn restore(guest: &Tiny, state: &[u8], memory: &[u8]) -> Result<Paused, Error> {
    Paused::restore(
        &guest.config(),
        Box::new(std::io::sink()),
        state,
        |target| {
            for (page, from) in memory.chunks_exact(PAGE).enumerate() {
                if from.iter().any(|b| *b != 0) {
                    target.write_page(page, from.try_into().unwrap());
                }
            }
            Ok(())
        },
    )
}

fn go_on(directory: &Path) {
    let guest = guest();
    let state = fs::read(directory.join("state")).unwrap();
    let memory = fs::read(directory.join("memory")).unwrap();
    let paused = restore(&guest, &state, &memory).unwrap();
    guest.check_whole(paused.memory()).unwrap();
    let before = rounds(&guest, &paused);
    assert!(before.iter().all(|r| *r >= 10), "{before:?}");
    let paused = run_until(&guest, paused, |now| {
        now[0] > before[0] + 10 && now[1] > before[1] + 10
    });
    // Had the registers not come along, the pages would not continue the rounds.
    guest.check_whole(paused.memory()).unwrap();
}

#[test]
fn another_process_goes_on() {
    if let Some(directory) = env::var_os(FROM) {
        return go_on(Path::new(&directory));
    }
    if !kvm_is_there("another_process_goes_on") {
        return;
    }
    let guest = guest();
    let mut paused = run_until(&guest, guest.boot().unwrap(), |now| {
        now.iter().all(|r| *r >= 10)
    });
    guest.check_whole(paused.memory()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (state, memory) = capture(&mut paused);
    fs::write(directory.path().join("state"), state).unwrap();
    fs::write(directory.path().join("memory"), memory).unwrap();
    drop(paused);
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "another_process_goes_on", "--nocapture"])
        .env(FROM, directory.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn what_was_restored_captures_the_same() {
    if !kvm_is_there("what_was_restored_captures_the_same") {
        return;
    }
    let guest = guest();
    let mut paused = run_until(&guest, guest.boot().unwrap(), |now| {
        now.iter().all(|r| *r >= 2)
    });
    let (state, memory) = capture(&mut paused);
    let mut again = restore(&guest, &state, &memory).unwrap();
    let (state_again, memory_again) = capture(&mut again);
    assert!(memory == memory_again);
    // Counters of time go on by themselves; their length and every section's place are the same.
    assert_eq!(state.len(), state_again.len());
    let (mut a, mut b) = (capture(&mut paused).0, capture(&mut paused).0);
    a.truncate(64);
    b.truncate(64);
    assert_eq!(a, b, "the machine's shape does not change");
}

#[test]
fn damaged_state_is_refused_wherever_the_damage_is() {
    if !kvm_is_there("damaged_state_is_refused_wherever_the_damage_is") {
        return;
    }
    let guest = Tiny {
        vcpus: 1,
        ..guest()
    };
    let mut paused = guest.boot().unwrap();
    let (state, _) = capture(&mut paused);
    drop(paused);
    for at in (0..state.len()).step_by(state.len() / 25) {
        let mut damaged = state.clone();
        damaged[at] ^= 0x10;
        let error = restore(&guest, &damaged, &[]).unwrap_err();
        assert!(matches!(error, Error::State(_)), "byte {at}: {error}");
        let error = restore(&guest, &state[..at], &[]).unwrap_err();
        assert!(matches!(error, Error::State(_)), "cut at {at}: {error}");
    }
    let mut longer = state.clone();
    longer.push(0);
    assert!(restore(&guest, &longer, &[]).is_err(), "something follows");
    let other = Tiny {
        vcpus: 2,
        ..guest.clone()
    };
    assert!(
        restore(&other, &state, &[])
            .unwrap_err()
            .to_string()
            .contains("1 vCPUs")
    );
    restore(&guest, &state, &[]).unwrap();
}
