//! The whole-memory audit: after every epoch, a replica that only ever got the harvested pages equals all of memory.
//!
//! The guest is the tiny one, so that these run on any computer with a `/dev/kvm`; `examples/audit.rs` does the same
//! with a real kernel in the lab.

mod common;
#[path = "common/replica.rs"]
mod replica;

use common::kvm_is_there;
use replica::Replica;
use romulus_machine::{
    Exit, Memory, PageSet, Paused, WarmPages,
    memory::PAGE,
    tiny::{FIRST_FREE_PAGE, Tiny},
};
use std::{
    thread,
    time::{Duration, Instant},
};
use vm_memory::{Bytes, GuestAddress};

const MIB: u64 = 1 << 20;
const TIMEOUT: Duration = Duration::from_secs(20);

fn small(vcpus: u8) -> Tiny {
    Tiny {
        vcpus,
        memory: 128 * MIB,
        pages: 300,
        stride: 3,
        first_page: FIRST_FREE_PAGE,
        wait: 1000,
    }
}

/// 256 pages on either side of the gap below 4 GiB.
fn across_the_gap() -> Tiny {
    let first_high = (3 << 30) / PAGE;
    Tiny {
        vcpus: 1,
        memory: 3074 * MIB,
        pages: 512,
        stride: 1,
        first_page: first_high - 256,
        wait: 1000,
    }
}

/// Lets the guest run until every vCPU has begun `rounds` more rounds than `before`, checking after each short stretch
/// with `look`. Returns the machine, paused.
fn run(guest: &Tiny, mut paused: Paused, rounds: u64, mut look: impl FnMut(&mut Paused)) -> Paused {
    let count = |paused: &Paused| -> Vec<u64> {
        (0..guest.vcpus)
            .map(|n| guest.rounds(paused.memory(), n))
            .collect()
    };
    let before = count(&paused);
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let machine = paused.resume().unwrap();
        let exit = machine.handle().wait_exit(Duration::from_millis(2));
        assert_eq!(exit, None);
        paused = machine.pause().unwrap();
        look(&mut paused);
        if count(&paused)
            .iter()
            .zip(&before)
            .all(|(now, before)| now - before >= rounds)
        {
            return paused;
        }
        assert!(
            Instant::now() < deadline,
            "rounds: {:?} after {before:?}",
            count(&paused)
        );
    }
}

/// Runs epochs, each compared in full, and returns how many pages all harvests found. Every page is warm in some
/// epochs, and not in others.
fn audit(guest: &Tiny, epochs: u32) -> u64 {
    let mut paused = guest.boot().unwrap();
    let mut warm = PageSet::new(paused.memory());
    paused.start_tracking().unwrap();
    let mut replica = Replica::of(paused.memory());
    let mut dirty = PageSet::new(paused.memory());
    let mut found = 0;
    for epoch in 0..epochs {
        // The second round can only begin when the first has written every page.
        paused = run(guest, paused, 2, |paused| {
            guest.check_whole(paused.memory()).unwrap();
            // A device's write, on a page that the guest does not touch.
            let own = GuestAddress(0x10_0000 + u64::from(epoch % 16) * PAGE as u64);
            paused.memory().ram().write_obj(epoch + 1, own).unwrap();
            for page in 0..paused.memory().pages() {
                if (page + epoch as usize).is_multiple_of(3) {
                    warm.insert(page);
                } else {
                    warm.remove(page);
                }
            }
            paused.harvest_but(&mut dirty, &warm).unwrap();
            let missed = replica.epoch(paused.memory(), &dirty);
            assert_eq!(missed, [0usize; 0], "epoch {epoch}");
            found += dirty.count() as u64;
        });
    }
    found
}

#[test]
fn a_warm_page_costs_no_first_write_and_is_in_every_harvest() {
    if !kvm_is_there("a_warm_page_costs_no_first_write_and_is_in_every_harvest") {
        return;
    }
    let guest = small(2);
    let pages = 2 * 300;
    let mut paused = guest.boot().unwrap();
    paused.start_tracking().unwrap();
    let mut dirty = PageSet::new(paused.memory());
    let mut warm = WarmPages::new(paused.memory(), 8, pages * 2);
    let mut firsts = Vec::new();
    for _ in 0..6 {
        paused = run(&guest, paused, 2, |_| {});
        firsts.push(paused.harvest_but(&mut dirty, warm.pages()).unwrap());
        let numbers: Vec<_> = dirty
            .iter()
            .map(|page| u32::try_from(page).unwrap())
            .collect();
        warm.judge(&numbers, &numbers);
    }
    assert!(firsts[0] >= pages && firsts[1] >= pages, "{firsts:?}");
    assert!(firsts[3..].iter().all(|n| *n < 50), "{firsts:?}");
    // It is in the harvest whether the guest wrote or not, until it is warm no more.
    paused.harvest_but(&mut dirty, warm.pages()).unwrap();
    assert!(dirty.count() >= pages);
    paused.harvest(&mut dirty).unwrap();
    assert!(dirty.count() >= pages);
    paused.harvest(&mut dirty).unwrap();
    assert!(dirty.is_empty(), "{}", dirty.count());
    paused = run(&guest, paused, 2, |_| {});
    let nothing = PageSet::new(paused.memory());
    assert!(paused.harvest_but(&mut dirty, &nothing).unwrap() >= pages);
}

#[test]
fn a_warm_page_can_be_left_for_a_later_harvest() {
    if !kvm_is_there("a_warm_page_can_be_left_for_a_later_harvest") {
        return;
    }
    let guest = small(1);
    let mut paused = guest.boot().unwrap();
    paused.start_tracking().unwrap();
    let (mut dirty, mut warm) = (PageSet::new(paused.memory()), PageSet::new(paused.memory()));
    let mut replica = Replica::of(paused.memory());
    for page in guest.pages_of(0) {
        warm.insert(page);
    }
    let own = guest.pages_of(0).next().unwrap();
    for _ in 0..3 {
        paused = run(&guest, paused, 2, |_| {});
        paused.harvest_without(&mut dirty, &warm).unwrap();
        assert!(guest.pages_of(0).all(|page| !dirty.contains(page)));
    }
    // What the machine itself writes into such a page is nowhere but in its own log.
    let at = GuestAddress(paused.memory().address(own).unwrap() + 64);
    paused.memory().ram().write_obj(7_u32, at).unwrap();
    paused.harvest_without(&mut dirty, &warm).unwrap();
    assert!(dirty.contains(own));
    replica.epoch(paused.memory(), &dirty);
    paused.harvest_but(&mut dirty, &warm).unwrap();
    let missed = replica.epoch(paused.memory(), &dirty);
    assert!(guest.pages_of(0).all(|page| dirty.contains(page)));
    assert!(guest.pages_of(0).all(|page| !missed.contains(&page)));
}

#[test]
fn no_page_is_missed_with_one_vcpu() {
    if kvm_is_there("no_page_is_missed_with_one_vcpu") {
        assert!(audit(&small(1), 20) >= 20 * 300);
    }
}

#[test]
fn no_page_is_missed_with_two_vcpus() {
    if kvm_is_there("no_page_is_missed_with_two_vcpus") {
        assert!(audit(&small(2), 20) >= 20 * 2 * 300);
    }
}

#[test]
fn no_page_is_missed_with_four_vcpus() {
    if kvm_is_there("no_page_is_missed_with_four_vcpus") {
        assert!(audit(&small(4), 20) >= 20 * 4 * 300);
    }
}

#[test]
fn no_page_is_missed_on_either_side_of_the_gap() {
    if kvm_is_there("no_page_is_missed_on_either_side_of_the_gap") {
        assert!(audit(&across_the_gap(), 3) >= 3 * 512);
    }
}

#[test]
fn a_harvest_starts_anew() {
    if !kvm_is_there("a_harvest_starts_anew") {
        return;
    }
    let guest = small(1);
    let mut paused = guest.boot().unwrap();
    let mut dirty = PageSet::new(paused.memory());
    assert!(paused.harvest(&mut dirty).is_err(), "tracking is off");
    let foreign = PageSet::new(&Memory::new(256 * MIB).unwrap());
    paused.start_tracking().unwrap();
    assert!(paused.harvest_but(&mut dirty, &foreign).is_err());
    paused.harvest(&mut dirty).unwrap();
    assert!(
        dirty.is_empty(),
        "nothing ran, and what boot wrote is not in it: {}",
        dirty.count()
    );
    paused = run(&guest, paused, 2, |_| {});
    paused.harvest(&mut dirty).unwrap();
    for page in guest.pages_of(0) {
        assert!(dirty.contains(page), "page {page}");
    }
    paused.harvest(&mut dirty).unwrap();
    assert!(dirty.is_empty(), "harvested twice: {}", dirty.count());
    paused.memory().write_page(20_000, &[7; PAGE]);
    paused.harvest(&mut dirty).unwrap();
    assert_eq!(
        dirty.iter().collect::<Vec<_>>(),
        [20_000],
        "the machine's own write alone"
    );
    paused.stop_tracking().unwrap();
    paused = run(&guest, paused, 1, |_| {});
    assert!(paused.harvest(&mut dirty).is_err());
}

#[test]
fn a_paused_machine_stands_still() {
    if !kvm_is_there("a_paused_machine_stands_still") {
        return;
    }
    let guest = small(2);
    let paused = run(&guest, guest.boot().unwrap(), 2, |_| {});
    let replica_before: Vec<u64> = (0..2).map(|n| guest.rounds(paused.memory(), n)).collect();
    thread::sleep(Duration::from_millis(50));
    let after: Vec<u64> = (0..2).map(|n| guest.rounds(paused.memory(), n)).collect();
    assert_eq!(replica_before, after);
}

#[test]
fn pauses_are_quick_and_many() {
    if !kvm_is_there("pauses_are_quick_and_many") {
        return;
    }
    let guest = small(4);
    let mut paused = guest.boot().unwrap();
    let start = Instant::now();
    for _ in 0..300 {
        // At once, so that some vCPUs have not even entered the guest when they are called back.
        paused = paused.resume().unwrap().pause().unwrap();
    }
    let each = start.elapsed() / 300;
    assert!(
        each < Duration::from_millis(50),
        "{each:?} for a pause and a resume"
    );
    drop(run(&guest, paused, 1, |_| {}));
}

#[test]
fn everything_ends_promptly() {
    if !kvm_is_there("everything_ends_promptly") {
        return;
    }
    let machine = small(4).boot().unwrap().resume().unwrap();
    let handle = machine.handle();
    let start = Instant::now();
    drop(machine);
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    // What is left of it does nothing, and holds nothing.
    handle.press_power_button();
    assert_eq!(handle.console_input(b"x"), 0);
    assert_eq!(handle.wait_exit(Duration::ZERO), None::<Exit>);
}
