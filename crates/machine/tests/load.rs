//! A machine that stands ready for another's state: the backup's side of protection.

mod common;

use common::kvm_is_there;
use romulus_machine::{
    Error, PageSet, Paused, Ports, likeness,
    memory::PAGE,
    tiny::{FIRST_FREE_PAGE, Tiny},
};
use std::{
    io, thread,
    time::{Duration, Instant},
};

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

fn prepared(guest: &Tiny) -> Paused {
    Paused::prepare(&guest.config(), Box::new(io::sink()), &Ports::default()).unwrap()
}

fn rounds(guest: &Tiny, paused: &Paused) -> [u64; 2] {
    [0, 1].map(|n| guest.rounds(paused.memory(), n))
}

/// Lets it run until each vCPU has begun `more` rounds.
fn run(guest: &Tiny, mut paused: Paused, more: u64) -> Paused {
    let before = rounds(guest, &paused);
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let machine = paused.resume().unwrap();
        assert_eq!(machine.handle().wait_exit(Duration::from_millis(2)), None);
        paused = machine.pause().unwrap();
        let now = rounds(guest, &paused);
        if (0..2).all(|n| now[n] >= before[n] + more) {
            return paused;
        }
        assert!(Instant::now() < deadline, "{now:?} after {before:?}");
    }
}

fn capture(paused: &mut Paused) -> Vec<u8> {
    let mut state = Vec::new();
    paused.capture(&mut state).unwrap();
    state
}

/// Makes the one's memory equal to the other's, as a commit does.
fn copy(from: &Paused, to: &Paused) {
    let mut bytes = [0; PAGE];
    for page in 0..from.memory().pages() {
        if from.memory().is_zero(page) {
            to.memory().zero_page(page);
        } else {
            from.memory().read_page(page, &mut bytes);
            to.memory().write_page(page, &bytes);
        }
    }
}

#[test]
fn after_a_trial_the_newest_state_goes_on_exactly() {
    if !kvm_is_there("after_a_trial_the_newest_state_goes_on_exactly") {
        return;
    }
    let guest = guest();
    let mut primary = run(&guest, guest.boot().unwrap(), 5);
    let mut backup = prepared(&guest);
    copy(&primary, &backup);
    backup.load(&capture(&mut primary)).unwrap();
    // The primary goes on, the backup stands still.
    primary = run(&guest, primary, 5);
    copy(&primary, &backup);
    let replica = backup.memory().clone();
    backup.load(&capture(&mut primary)).unwrap();
    // Loading changes no memory: the replica stays exactly what was committed.
    let mut bytes = [0; PAGE];
    for page in 0..replica.pages() {
        primary.memory().read_page(page, &mut bytes);
        assert!(replica.page_is(page, &bytes), "page {page} was changed");
    }
    let taken = rounds(&guest, &primary);
    drop(primary);
    assert_eq!(rounds(&guest, &backup), taken);
    let again = run(&guest, backup, 10);
    // Had it gone on from the trial's registers, its pages would not continue the rounds.
    guest.check_whole(again.memory()).unwrap();
}

#[test]
fn state_that_is_refused_leaves_a_machine_that_can_still_be_loaded() {
    if !kvm_is_there("state_that_is_refused_leaves_a_machine_that_can_still_be_loaded") {
        return;
    }
    let guest = guest();
    let mut primary = run(&guest, guest.boot().unwrap(), 2);
    let state = capture(&mut primary);
    let mut backup = prepared(&guest);
    copy(&primary, &backup);
    let nothing = backup.capture(&mut Vec::new()).unwrap_err();
    assert!(nothing.to_string().contains("none was loaded"), "{nothing}");
    for at in (0..state.len()).step_by(state.len() / 40) {
        let mut damaged = state.clone();
        damaged[at] ^= 0x10;
        let error = backup.load(&damaged).unwrap_err();
        assert!(matches!(error, Error::State(_)), "byte {at}: {error}");
        let error = backup.load(&state[..at]).unwrap_err();
        assert!(matches!(error, Error::State(_)), "cut at {at}: {error}");
    }
    // Also where some state had been loaded before, it must not run on half of one and half of the other.
    backup.load(&state).unwrap();
    backup.load(&state[..state.len() - 1]).unwrap_err();
    backup.capture(&mut Vec::new()).unwrap_err();
    backup.load(&state).unwrap();
    let mut paused = run(&guest, backup, 5);
    guest.check_whole(paused.memory()).unwrap();
    let error = paused.load(&state).unwrap_err().to_string();
    assert!(error.contains("has run"), "{error}");
    run(&guest, paused, 1);
}

#[test]
fn a_machine_without_state_does_not_run() {
    if !kvm_is_there("a_machine_without_state_does_not_run") {
        return;
    }
    let error = prepared(&guest()).resume().unwrap_err().to_string();
    assert!(error.contains("none was loaded"), "{error}");
}

#[test]
fn a_pause_tells_how_long_its_steps_took() {
    if !kvm_is_there("a_pause_tells_how_long_its_steps_took") {
        return;
    }
    let paused = guest().boot().unwrap();
    assert_eq!(paused.stop_times().park, Duration::ZERO);
    let machine = paused.resume().unwrap();
    let start = Instant::now();
    let paused = machine.pause().unwrap();
    let (all, steps) = (start.elapsed(), paused.stop_times());
    assert!(steps.park > Duration::ZERO && steps.quiesce > Duration::ZERO);
    assert!(steps.park + steps.quiesce <= all, "{steps:?} of {all:?}");
}

#[test]
fn memory_can_be_read_while_the_guest_runs() {
    if !kvm_is_there("memory_can_be_read_while_the_guest_runs") {
        return;
    }
    let guest = guest();
    let machine = guest.boot().unwrap().resume().unwrap();
    let memory = machine.memory().clone();
    let reader = thread::spawn(move || {
        let deadline = Instant::now() + TIMEOUT;
        let mut bytes = [0; PAGE];
        let page = guest.pages_of(1).next().unwrap();
        loop {
            memory.read_page(page, &mut bytes);
            if bytes[0] != 0 {
                return (memory, page);
            }
            assert!(Instant::now() < deadline, "the guest's writes do not show");
        }
    });
    let (memory, page) = reader.join().unwrap();
    drop(machine);
    // The memory outlives the machine for whoever still holds it.
    assert!(!memory.is_zero(page));
}

/// Locked memory is populated with huge pages where the host has them. Dirty tracking must go by small ones all the same:
/// exactly the pages that were written, also when the guest ran on huge mappings before.
#[test]
fn locked_memory_is_tracked_page_by_page() {
    if !kvm_is_there("locked_memory_is_tracked_page_by_page") {
        return;
    }
    let guest = guest();
    let ports = Ports {
        lock_memory: true,
        ..Ports::default()
    };
    let mut paused = match guest.boot_with(&ports) {
        Ok(paused) => paused,
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("RLIMIT_MEMLOCK"), "{text}");
            eprintln!("not run: {text}");
            return;
        }
    };
    let mut dirty = PageSet::new(paused.memory());
    for _ in 0..3 {
        paused.stop_tracking().unwrap();
        paused = run(&guest, paused, 2);
        paused.start_tracking().unwrap();
        for _ in 0..3 {
            paused = run(&guest, paused, 2);
            paused.harvest(&mut dirty).unwrap();
            let mut expected: Vec<_> = (0..2).flat_map(|n| guest.pages_of(n)).collect();
            // The counts of rounds.
            expected.extend([8, 9]);
            expected.sort_unstable();
            let mut found: Vec<_> = dirty.iter().collect();
            // Page tables, in which the processor notes accesses.
            found.retain(|page| !(16..24).contains(page));
            assert_eq!(found, expected);
        }
    }
}

#[test]
fn one_host_is_like_itself_on_every_processor() {
    if !kvm_is_there("one_host_is_like_itself_on_every_processor") {
        return;
    }
    let config = guest().config();
    let first = likeness(&config).unwrap();
    let processors = thread::available_parallelism().unwrap().get();
    for cpu in 0..processors.min(8) {
        let config = config.clone();
        let here = thread::spawn(move || {
            // SAFETY: the set is plain bits, all zero at first; only this thread's affinity changes.
            unsafe {
                let mut set: libc::cpu_set_t = std::mem::zeroed();
                libc::CPU_SET(cpu, &mut set);
                libc::sched_setaffinity(0, size_of_val(&set), &raw const set);
            }
            likeness(&config).unwrap()
        });
        assert_eq!(here.join().unwrap(), first, "processor {cpu}");
    }
    let mut other = config.clone();
    other.vcpus = 1;
    let fewer = likeness(&other).unwrap();
    assert_ne!(fewer.processor, first.processor, "guests see their number");
    assert_eq!(fewer.devices, first.devices);
    other.entropy = true;
    assert_ne!(likeness(&other).unwrap().devices, first.devices);
}
