//! What loading state does, seen from inside of the state.

use super::*;
use crate::{
    ioctl::MsrBuffer,
    tiny::{FIRST_FREE_PAGE, Tiny},
    vcpu,
};
use kvm_bindings::kvm_msr_entry;
use std::{io, thread};

/// Whether this computer has a KVM; where it has none, the test says that it was not run.
fn kvm_is_there(test: &str) -> bool {
    match kvm_ioctls::Kvm::new() {
        Ok(_) => true,
        Err(error) => {
            // Straight to the terminal: the test harness would swallow it.
            let _ = writeln!(io::stderr(), "SKIPPED {test}: /dev/kvm: {error}");
            false
        }
    }
}

fn guest(vcpus: u8) -> Tiny {
    Tiny {
        vcpus,
        memory: 128 << 20,
        pages: 10,
        stride: 1,
        first_page: FIRST_FREE_PAGE,
        wait: 100,
    }
}

fn captured(paused: &mut Paused) -> Vec<u8> {
    let mut state = Vec::new();
    paused.capture(&mut state).unwrap();
    state
}

fn prepared(guest: &Tiny) -> Paused {
    Paused::prepare(&guest.config(), Box::new(io::sink()), &Ports::default()).unwrap()
}

/// Whether this host's KVM sets a time stamp counter at all: some para-virtual ones take a value and go on as before.
fn counters_can_be_set() -> bool {
    const VALUE: u64 = 1 << 60;
    let kvm = build::open().unwrap();
    let vm = kvm.create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    let mut counter = MsrBuffer::new(&[kvm_msr_entry {
        index: vcpu::msrs::TSC,
        data: VALUE,
        ..Default::default()
    }]);
    ioctl::set_msrs(&vcpu, &counter).unwrap();
    ioctl::get_msrs(&vcpu, &mut counter).unwrap();
    let (_, bytes) = counter.as_bytes().split_at(8);
    let now = u64::from_le_bytes(bytes.try_into().unwrap());
    // Some seconds at any rate.
    (VALUE..VALUE + (1 << 36)).contains(&now)
}

/// The time stamp counters of all vCPUs, and the guest's clock in nanoseconds.
fn times(guest: &Tiny, state: &[u8]) -> (Vec<u64>, u64) {
    let mut reader = Reader::new(state);
    read_shape(&mut reader, guest.vcpus, guest.memory).unwrap();
    let counters = (0..guest.vcpus)
        .map(|index| vcpu::state::counter(&vcpu::state::section(&mut reader, index).unwrap()))
        .collect();
    reader.section(kind::CHIPSET, 0, VERSION).unwrap();
    let clock = reader
        .section(kind::CLOCK, 0, VERSION)
        .unwrap()
        .get()
        .unwrap();
    (counters, clock)
}

#[test]
fn the_shape_must_agree() {
    let mut out = Vec::new();
    let entry = kvm_cpuid_entry2 {
        function: 1,
        eax: 2,
        ..Default::default()
    };
    write_shape(&mut Writer::new(&mut out), 2, 512 << 20, &[entry]);
    let read = |vcpus, memory| read_shape(&mut Reader::new(&out), vcpus, memory);
    assert_eq!(read(2, 512 << 20).unwrap(), [entry]);
    assert!(
        read(1, 512 << 20)
            .unwrap_err()
            .to_string()
            .contains("512 MiB and 2 vCPUs")
    );
    assert!(read(2, 256 << 20).is_err());
}

/// The counter goes on from the captured value, whatever was loaded before and however long ago. KVM takes a value near
/// the one that it expects for the expected one; then the counter would have gone on during the wait.
#[test]
fn the_time_stamp_counter_goes_on_from_the_newest_state() {
    const WAIT: Duration = Duration::from_millis(400);
    let name = "the_time_stamp_counter_goes_on_from_the_newest_state";
    if !kvm_is_there(name) {
        return;
    }
    if !counters_can_be_set() {
        let why = "this KVM leaves time stamp counters as they are";
        let _ = writeln!(io::stderr(), "SKIPPED {name}: {why}");
        return;
    }
    let guest = guest(2);
    let state = captured(&mut guest.boot().unwrap());
    let (taken, _) = times(&guest, &state);
    let mut backup = prepared(&guest);
    backup.load(&state).unwrap();
    let trial = Instant::now();
    thread::sleep(WAIT);
    let (later, _) = times(&guest, &captured(&mut backup));
    let waited = trial.elapsed();
    backup.load(&state).unwrap();
    let real = Instant::now();
    let (now, _) = times(&guest, &captured(&mut backup));
    let since = real.elapsed();
    for n in 0..2 {
        // How far the counter goes in the wait tells its rate, so that nothing need be known of this host.
        let (wait, rest) = (later[n] - taken[n], now[n].wrapping_sub(taken[n]));
        let limit = u128::from(wait) * (since + WAIT / 4).as_nanos() / waited.as_nanos();
        assert!(
            u128::from(rest) < limit,
            "vCPU {n}: {rest} after {since:?}, {wait} in {waited:?}"
        );
    }
}

#[test]
fn the_clock_of_loaded_state_can_be_advanced() {
    const GAP: Duration = Duration::from_hours(1);
    if !kvm_is_there("the_clock_of_loaded_state_can_be_advanced") {
        return;
    }
    let guest = guest(1);
    let state = captured(&mut guest.boot().unwrap());
    let (_, taken) = times(&guest, &state);
    let mut backup = prepared(&guest);
    for _ in 0..2 {
        let start = Instant::now();
        backup.load(&state).unwrap();
        backup.advance_clock(GAP).unwrap();
        let (_, now) = times(&guest, &captured(&mut backup));
        let (passed, slack) = (start.elapsed(), Duration::from_millis(1));
        let advanced = Duration::from_nanos(now - taken);
        assert!(
            advanced >= GAP && advanced <= GAP + passed + slack,
            "{advanced:?}, and {passed:?} passed"
        );
    }
}

/// State of another processor, as a common set of two hosts would give it. Here its name differs: of features, some
/// para-virtual KVMs keep what they think right.
#[test]
fn loading_sets_another_cpuid_and_sets_it_back() {
    if !kvm_is_there("loading_sets_another_cpuid_and_sets_it_back") {
        return;
    }
    let guest = guest(2);
    let mut primary = guest.boot().unwrap();
    let state = captured(&mut primary);
    let ours = primary.core.cpuid.clone();
    let mut theirs = ours.clone();
    for entry in theirs.iter_mut().filter(|e| e.function == NAME) {
        entry.eax ^= 0x2020_2020;
    }
    assert_ne!(ours, theirs);
    let mut shape = Vec::new();
    write_shape(&mut Writer::new(&mut shape), 2, guest.memory, &ours);
    let mut other = Vec::new();
    write_shape(&mut Writer::new(&mut other), 2, guest.memory, &theirs);
    other.extend_from_slice(&state[shape.len()..]);

    // Refused after the CPUID was set: that must not leave the belief that the old one is still there.
    let mut refused = other[..shape.len()].to_vec();
    for index in 0..2 {
        let empty =
            Writer::new(&mut refused).section(kind::VCPU, index, vcpu::state::VERSION, |_| {
                Ok::<_, Infallible>(())
            });
        assert_eq!(empty, Ok(()));
    }
    let mut backup = prepared(&guest);
    backup.load(&state).unwrap();
    backup.load(&refused).unwrap_err();
    assert_eq!(seen(&backup), name(&theirs));
    backup.load(&state).unwrap();
    assert_eq!(seen(&backup), name(&ours));

    let mut backup = prepared(&guest);
    backup.load(&state).unwrap();
    backup.load(&other).unwrap();
    let told = read_shape(&mut Reader::new(&captured(&mut backup)), 2, guest.memory);
    assert_eq!(told.unwrap(), theirs);
    assert_eq!(seen(&backup), name(&theirs));
}

/// The leaf of the processor's name (its first part).
const NAME: u32 = 0x8000_0002;

fn name(cpuid: &[kvm_cpuid_entry2]) -> [u32; 4] {
    let leaf = cpuid.iter().find(|e| e.function == NAME).unwrap();
    [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
}

/// The name as KVM has it for both vCPUs.
fn seen(loaded: &Paused) -> [u32; 4] {
    let [first, second] = [0, 1].map(|n| name(loaded.core.team.cpuid_of(n).as_slice()));
    assert_eq!(first, second);
    first
}

/// Each failing vCPU's thread kicks the others, and the machine's end joins them one after the other meanwhile: none may be kicked
/// that is gone.
#[test]
fn a_machine_may_go_while_its_vcpus_fail() {
    if !kvm_is_there("a_machine_may_go_while_its_vcpus_fail") {
        return;
    }
    for round in 0..40u32 {
        let guest = Tiny {
            wait: 0,
            ..guest(4)
        };
        let machine = guest.boot().unwrap().resume().unwrap();
        while guest.rounds(machine.memory(), 3) < 2 {
            thread::yield_now();
        }
        // The program's page: what follows is no instruction that a guest may execute, and there is nobody to tell.
        machine.memory().write_page(4, &[0xf4; crate::memory::PAGE]);
        if !round.is_multiple_of(4) {
            thread::sleep(Duration::from_micros(50) * round);
        }
        drop(machine);
    }
}
