//! A machine that is let run for trial in a private copy of another's memory: nothing of it reaches that.

use romulus_machine::{
    CableEnd, Error, Memory, Paused, Ports,
    memory::PAGE,
    tiny::{FIRST_FREE_PAGE, Tiny},
};
use std::{
    io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// For what must happen.
const LONG: Duration = Duration::from_secs(30);

fn guest() -> Tiny {
    Tiny {
        vcpus: 2,
        memory: 128 << 20,
        pages: 40,
        stride: 3,
        first_page: FIRST_FREE_PAGE,
        wait: 100,
    }
}

fn kvm_is_there() -> bool {
    let there = Path::new("/dev/kvm").exists();
    if !there {
        eprintln!("skipped: there is no /dev/kvm here");
    }
    there
}

/// A replica of a guest that has run: its machine, its memory and its state.
fn replica(guest: &Tiny) -> (Paused, Vec<u8>) {
    let ports = Ports {
        shareable: true,
        ..Ports::default()
    };
    let machine = guest.boot().unwrap().resume().unwrap();
    until(|| guest.rounds(machine.memory(), 1) > 3);
    let mut original = machine.pause().unwrap();
    let mut state = Vec::new();
    original.capture(&mut state).unwrap();
    let replica = Paused::prepare(&guest.config(), Box::new(io::sink()), &ports).unwrap();
    for page in 0..original.memory().pages() {
        let mut bytes = [0; PAGE];
        original.memory().read_page(page, &mut bytes);
        if bytes != [0; PAGE] {
            replica.memory().write_page(page, &bytes);
        }
    }
    (replica, state)
}

fn rehearsed(guest: &Tiny, memory: &Memory) -> Result<(Paused, Vec<CableEnd>), Error> {
    let copy = memory.private_copy().unwrap().expect("it is shareable");
    Paused::rehearse(&guest.config(), copy)
}

fn until(mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < end, "it did not happen");
        thread::sleep(Duration::from_millis(1));
    }
}

fn content(memory: &Memory) -> Vec<[u8; PAGE]> {
    let page = |page| {
        let mut bytes = [0; PAGE];
        memory.read_page(page, &mut bytes);
        bytes
    };
    (0..memory.pages()).map(page).collect()
}

#[test]
fn what_a_rehearsal_writes_never_reaches_the_replica() {
    if !kvm_is_there() {
        return;
    }
    let guest = guest();
    let (mut replica, state) = replica(&guest);
    let before = content(replica.memory());
    let stood = [0, 1].map(|vcpu| guest.rounds(replica.memory(), vcpu));
    let (mut paused, _) = rehearsed(&guest, replica.memory()).unwrap();
    paused.load(&state).unwrap();
    let running = paused.resume().unwrap();
    for vcpu in [0, 1] {
        until(|| guest.rounds(running.memory(), vcpu) > stood[usize::from(vcpu)] + 10);
    }
    let rehearsed = running.pause().unwrap();
    guest.check_whole(rehearsed.memory()).unwrap();
    drop(rehearsed);
    assert!(
        before == content(replica.memory()),
        "the replica has changed"
    );
    // It is what it was: it runs.
    replica.load(&state).unwrap();
    let machine = replica.resume().unwrap();
    for vcpu in [0, 1] {
        until(|| guest.rounds(machine.memory(), vcpu) > stood[usize::from(vcpu)] + 10);
    }
    guest
        .check_whole(machine.pause().unwrap().memory())
        .unwrap();
}

#[test]
fn a_rehearsal_goes_on_from_the_state_that_it_began_with() {
    if !kvm_is_there() {
        return;
    }
    let guest = guest();
    let (replica, state) = replica(&guest);
    let copy = replica.memory().private_copy().unwrap().unwrap();
    let stood = guest.rounds(&copy, 0);
    // A commit comes, in which the guest is elsewhere.
    for page in guest.pages_of(0).chain(guest.pages_of(1)).chain([8, 9]) {
        copy.own(page).unwrap();
        replica.memory().write_page(page, &[0xee; PAGE]);
    }
    let (mut paused, _) = Paused::rehearse(&guest.config(), copy).unwrap();
    paused.load(&state).unwrap();
    let running = paused.resume().unwrap();
    until(|| guest.rounds(running.memory(), 0) > stood + 10);
    let rehearsed = running.pause().unwrap();
    guest.check_whole(rehearsed.memory()).unwrap();
    let went = guest.rounds(rehearsed.memory(), 0);
    assert!(went < stood + (1 << 40), "it began elsewhere: {went:#x}");
}

#[test]
fn a_machine_of_another_size_is_refused() {
    let guest = guest();
    let memory = Memory::new(256 << 20).unwrap();
    assert!(Paused::rehearse(&guest.config(), memory).is_err());
}
