//! When one is due; that the replica's commits do not show in it; that nothing waits for it.

use super::*;
use crate::backup::testing::{tiny, until};
use romulus_machine::{Paused, Ports};
use std::{io, sync::Arc, thread};

const LONG: Duration = Duration::from_secs(30);

#[test]
fn it_is_rehearsed_at_once_then_ever_later_then_at_the_interval() {
    let second = |n: u64| Time(n * 1_000_000_000);
    let mut plan = Plan::new(Some(Duration::from_secs(10)));
    assert!(!plan.due(second(5)), "there is no replica");
    plan.begin(second(5));
    let due: Vec<u64> = (5..60).filter(|now| plan.due(second(*now))).collect();
    assert_eq!(due, [5, 9, 17, 27, 37, 47, 57]);
    plan.stop();
    assert!(!plan.due(second(100)));
    plan.begin(second(200));
    assert!(plan.due(second(200)) && !plan.due(second(203)) && plan.due(second(204)));
    // Nothing was asked of it so far.
    plan.begin(second(300));
    plan.heard();
    assert!(plan.due(second(300)));
    plan.heard();
    assert!(!plan.due(second(300)) && plan.due(second(301)));
    plan.answered();
    plan.heard();
    let due: Vec<u64> = (301..340).filter(|now| plan.due(second(*now))).collect();
    assert_eq!(due, [309, 319, 329, 339]);
    // It is sent what it does not answer.
    plan.begin(second(400));
    let mut due = Vec::new();
    for now in 400..460 {
        if plan.due(second(now)) {
            due.push(now);
        }
        plan.heard();
    }
    assert_eq!(due, [400, 401, 402, 403, 404, 414, 424, 434, 444, 454]);
    let mut never = Plan::new(None);
    never.begin(second(1));
    assert!(!never.due(second(1000)));
}

#[test]
fn a_page_is_the_copys_before_it_changes() {
    let memory = Memory::shareable(2 << 20, false).unwrap();
    for page in 0..4 {
        memory.write_page(page, &[1; PAGE]);
    }
    let copy = memory.private_copy().unwrap().unwrap();
    let stage = Stage::new(copy.clone(), Vec::new());
    let pages = Preserving {
        memory: &memory,
        stage: Some(&stage),
    };
    pages.write(0, &[2; PAGE]);
    pages.zero(1);
    pages.write(2, &[2; PAGE]);
    pages.write(2, &[3; PAGE]);
    for page in 0..4 {
        assert!(copy.page_is(page, &[1; PAGE]), "page {page}");
    }
    assert!(memory.page_is(0, &[2; PAGE]) && memory.is_zero(1));
}

#[test]
fn private_memory_is_what_is_not_shared() {
    const PAGES: usize = 20_000;
    let before = private_memory();
    assert!(before > 0);
    let memory = Memory::shareable((PAGES * 2 * PAGE) as u64, false).unwrap();
    for page in 0..PAGES {
        memory.write_page(page, &[1; PAGE]);
    }
    let half = (PAGES / 2 * PAGE) as u64;
    assert!(private_memory() < before + half, "the replica counts");
    let copy = memory.private_copy().unwrap().unwrap();
    for page in 0..PAGES {
        copy.own(page).unwrap();
    }
    assert!(private_memory() > before + half, "a copy does not count");
}

/// Told to end, it does at once, and whoever tells it does not wait.
#[test]
fn it_ends_when_it_is_told() {
    let Some(guest) = tiny() else { return };
    let ports = Ports {
        shareable: true,
        ..Ports::default()
    };
    let mut saved = Vec::new();
    let mut original = guest.boot().unwrap();
    original.capture(&mut saved).unwrap();
    let replica = Paused::prepare(&guest.config(), Box::new(io::sink()), &ports).unwrap();
    let mut page = [0; PAGE];
    for number in 0..original.memory().pages() {
        original.memory().read_page(number, &mut page);
        replica.memory().write_page(number, &page);
    }
    for (told, length) in [(false, LOOK * 4), (true, LONG)] {
        let copy = replica.memory().private_copy().unwrap().unwrap();
        let stage = Arc::new(Stage::new(copy.clone(), vec![(0, vec![0; 80])]));
        let thread = thread::spawn({
            let (stage, saved, guest) = (Arc::clone(&stage), saved.clone(), guest.clone());
            move || run(&stage, &saved, &guest, length).unwrap()
        });
        until("the guest does not run", || {
            (guest.rounds(&copy, 0) > 3).then_some(())
        });
        if told {
            stage.end();
        }
        let outcome = thread.join().unwrap();
        assert_eq!((outcome.cut.is_some(), outcome.sent), (told, 0));
        assert_eq!(outcome.ran < length, told, "{outcome:?}");
    }
    assert_eq!(guest.rounds(replica.memory(), 0), 0, "the replica has run");
}
