//! Whatever a machine does, the replica is exactly it.

mod common;

use common::{Backup, Life, Primary, Touch, life};
use proptest::collection::vec;
use proptest::prelude::*;
use romulus_checkpoint::{Encoder, PAGE, PART_MAX, Pages, Staging};
use std::convert::Infallible;

const PAGES: usize = 40;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_history_comes_out_as_it_went_in(
        lives in vec(life(PAGES), 1..16),
        shadow in prop_oneof![Just(0usize), Just(1), Just(5), Just(PAGES)],
        first in 1u64..1 << 40,
    ) {
        let mut primary = Primary::new(PAGES, shadow);
        let mut backup = Backup::new(PAGES);
        for (epoch, life) in (first..).zip(&lives) {
            let (parts, sealed) = primary.live(life);
            prop_assert!(parts.iter().all(|part| part.len() <= PART_MAX));
            prop_assert_eq!(backup.receive(epoch, &parts, &sealed), Ok(()));
            let flushed = life.disk.iter().any(|(_, length, _)| *length == 0);
            prop_assert_eq!(backup.replica.has_flush(), flushed);
            prop_assert_eq!(backup.apply(), Some(epoch));
            prop_assert!(backup.is(&primary), "epoch {}", epoch);
            prop_assert_eq!(backup.replica.apply(&backup.memory), None);
        }
    }

    #[test]
    fn a_new_session_needs_nothing_of_the_old(
        before in vec(life(PAGES), 1..4),
        after in vec(life(PAGES), 1..4),
    ) {
        let mut primary = Primary::new(PAGES, PAGES);
        let mut backup = Backup::new(PAGES);
        for (epoch, life) in (1..).zip(&before) {
            let (parts, sealed) = primary.live(life);
            // The session breaks before the last epoch arrives.
            if epoch < before.len() as u64 {
                prop_assert_eq!(backup.receive(epoch, &parts, &sealed), Ok(()));
                prop_assert_eq!(backup.apply(), Some(epoch));
            }
        }
        primary.encoder.restart();
        backup.replica.restart();
        // What is resynchronised by digest.
        backup.disk.clone_from(&primary.disk);
        for (number, life) in (0..).zip(&after) {
            let mut life = life.clone();
            if number == 0 {
                life.bulk = 0..PAGES;
            }
            let (parts, sealed) = primary.live(&life);
            prop_assert_eq!(backup.receive(700 + number, &parts, &sealed), Ok(()));
            prop_assert_eq!(backup.apply(), Some(700 + number));
            prop_assert!(backup.is(&primary));
        }
    }
}

fn life_of(pages: Vec<(usize, Touch)>) -> Life {
    Life {
        pages,
        bulk: 0..0,
        state: (20_000, 5),
        disk: Vec::new(),
        output: 0,
    }
}

#[test]
fn an_epoch_in_which_nothing_changed_has_no_parts() {
    let mut primary = Primary::new(PAGES, PAGES);
    let mut backup = Backup::new(PAGES);
    let touched = |touch: &Touch| (0..PAGES).map(|page| (page, touch.clone())).collect();
    let mut life = life_of(touched(&Touch::Noise(9)));
    life.state = (20_000, 30_000);
    let (parts, sealed) = primary.live(&life);
    assert_eq!(sealed.counts.unknown, PAGES as u64);
    assert_eq!(primary.encoder.changed(), primary.staging.page_numbers());
    backup.receive(1, &parts, &sealed).unwrap();
    backup.apply().unwrap();

    let mut idle = life_of(touched(&Touch::Nothing));
    idle.state = life.state;
    let (parts, sealed) = primary.live(&idle);
    assert!(parts.is_empty());
    assert_eq!(sealed.counts.same, PAGES as u64);
    assert!(primary.encoder.changed().is_empty());
    assert_eq!((sealed.bytes, sealed.digest), (0, 0));
    backup.receive(2, &parts, &sealed).unwrap();
    assert_eq!(backup.apply(), Some(2));
    assert!(backup.is(&primary));
}

/// What issue and design promise about the wire: 60 bytes for a page of which little changed.
#[test]
fn sparsely_changed_pages_cost_few_bytes() {
    const PAGES: usize = 5000;
    let mut primary = Primary::new(PAGES, PAGES);
    let fill = (0..PAGES).map(|page| (page, Touch::Noise(page as u64 + 1)));
    primary.live(&life_of(fill.collect()));
    // 50 pages far apart, a counter and a pointer's worth in each.
    let sparse = |page: usize| {
        [
            (page, Touch::Bytes(page % 4000, vec![0xa5; 8])),
            (page, Touch::Bytes(page * 7 % 4000, vec![0x5a; 16])),
        ]
    };
    let (_, sealed) = primary.live(&life_of((0..PAGES).step_by(100).flat_map(sparse).collect()));
    assert_eq!(sealed.counts.delta, 50);
    assert!(sealed.bytes <= 50 * 60, "{} bytes", sealed.bytes);

    let mut idle = life_of(Vec::new());
    idle.state = (20_000, 4000);
    let (_, sealed) = primary.live(&idle);
    assert!(
        sealed.bytes <= 40,
        "one byte of the state took {} bytes",
        sealed.bytes
    );
}

#[test]
fn a_machine_that_was_never_used_is_a_few_bytes() {
    let mut primary = Primary::new(PAGES, PAGES);
    let mut life = life_of(Vec::new());
    life.bulk = 0..PAGES;
    life.state = (0, 0);
    let (_, sealed) = primary.live(&life);
    assert_eq!(sealed.counts.zero, PAGES as u64);
    assert!(sealed.bytes < 20, "{} bytes", sealed.bytes);
}

#[test]
fn a_shadow_without_room_still_sends_everything() {
    let mut primary = Primary::new(PAGES, 3);
    let noise = |seed| (0..PAGES).map(|page| (page, Touch::Noise(seed))).collect();
    primary.live(&life_of(noise(3)));
    let (_, sealed) = primary.live(&life_of(noise(3)));
    assert_eq!(sealed.counts.pages(), PAGES as u64);
    assert!(sealed.counts.raw >= PAGES as u64 - 3);
    assert!(sealed.counts.evicted > 0);
}

#[test]
fn staging_keeps_its_room_and_outgrows_it_if_it_must() {
    let mut primary = Primary::new(1000, 0);
    let mut staging = Staging::new(300);
    let room = staging.room();
    assert!(room >= 300);
    for _ in 0..3 {
        staging.clear();
        staging.copy(&primary.memory, 0..300);
        assert_eq!((staging.pages(), staging.room()), (300, room));
    }
    staging.clear();
    staging.copy(&primary.memory, 0..1000);
    assert_eq!(staging.pages(), 1000);
    staging.clear();
    staging.shrink(10);
    assert!(staging.room() < 300);
    staging.copy(&primary.memory, 0..1000);
    let Ok(sealed) = primary
        .encoder
        .encode(&staging, &mut |_, _| Ok::<_, Infallible>(()));
    assert_eq!(sealed.counts.zero, 1000);
}

#[test]
fn an_error_of_the_sink_is_passed_on() {
    let memory = common::Ram::new(200);
    for page in 0..200 {
        let mut bytes = [0; PAGE];
        common::noise(page as u64 + 1, &mut bytes);
        memory.write(page, &bytes);
    }
    let mut encoder = Encoder::new(200, 0);
    assert_eq!(
        encoder.bulk(&memory, 0..200, &mut |_, _| Err("cut")),
        Err("cut")
    );
    let mut staging = Staging::new(0);
    staging.copy(&memory, 0..200);
    encoder.restart();
    assert_eq!(encoder.encode(&staging, &mut |_, _| Err("cut")), Err("cut"));
}

#[test]
fn the_memory_of_a_machine_is_memory() {
    let memory = romulus_machine::Memory::new(2 << 20).unwrap();
    assert_eq!(memory.count(), 512);
    memory.write(3, &[5; PAGE]);
    let mut copy = [0; PAGE];
    memory.read(3, &mut copy);
    assert_eq!(copy, [5; PAGE]);
    Pages::zero(&memory, 3);
    memory.read(3, &mut copy);
    assert_eq!(copy, [0; PAGE]);
}
