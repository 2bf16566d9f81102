use std::path::Path;

use romulus_protocol::id::{Generation, Incarnation, MachineId};
use romulus_protocol::record::{Phase, Record};
use romulus_protocol::wire::{WireError, encode_record};

use super::super::disk::Disk;
use super::super::store::{Store, StoreError};
use super::faulty::Faulty;

fn record(machine: u128, generation: u64) -> Record {
    Record {
        machine: MachineId(machine),
        generation: Generation(generation),
        runner: Incarnation::new(u128::from(generation) + 100).expect("not zero"),
        heir: None,
        phase: Phase::Running,
    }
}

fn load(disk: Faulty) -> Result<(Store<Faulty>, Vec<Record>), StoreError> {
    Store::load(disk, Path::new("/store"))
}

/// What a new server finds, after all that may have happened to the disk.
fn found(disk: &Faulty) -> Vec<Vec<Record>> {
    let mut disks = disk.after_power_cut();
    disks.push(disk.after_crash());
    disks
        .into_iter()
        .map(|disk| load(disk).expect("never damaged").1)
        .collect()
}

/// A store with two machines, the first at generation 5.
fn begun() -> Store<Faulty> {
    let (mut store, records) = load(Faulty::default()).expect("an empty disk is a beginning");
    assert_eq!(records, []);
    store.store(&record(1, 5)).expect("stored");
    store.store(&record(2, 9)).expect("stored");
    store
}

/// How many steps loading this disk takes.
fn loading(disk: &Faulty) -> usize {
    let (store, _) = load(disk.clone()).expect("loaded");
    store.into_disk().steps.get()
}

/// The computer goes off before any step: what was acknowledged is there, whole, and of what was
/// not there is all or nothing.
#[test]
fn the_power_may_go_at_any_step() {
    for machine in [1, 3] {
        for off in 0.. {
            let mut disk = begun().into_disk().after_crash();
            disk.off_at = Some(off);
            let Ok((mut store, _)) = load(disk.clone()) else {
                for records in found(&disk) {
                    assert_eq!(records, [record(1, 5), record(2, 9)]);
                }
                continue;
            };
            let next = record(machine, 6);
            let stored = store.store(&next).is_ok();
            let disk = store.into_disk();
            for records in found(&disk) {
                assert!(records.contains(&record(2, 9)));
                let this: Vec<Record> = records
                    .into_iter()
                    .filter(|record| record.machine == MachineId(machine))
                    .collect();
                let old = if machine == 1 {
                    vec![record(1, 5)]
                } else {
                    vec![]
                };
                let whole = this == [next] || (!stored && this == old);
                assert!(whole, "off at {off}, stored: {stored}, found {this:?}");
            }
            if stored {
                break;
            }
        }
    }
}

/// A step fails, for a full disk. It is told; the record is the one before or, if the server then
/// ends, perhaps the one after; and the next change takes precedence over both.
#[test]
fn any_step_may_fail() {
    for failing in 0.. {
        let mut disk = begun().into_disk().after_crash();
        disk.fail = vec![loading(&disk) + failing];
        let (mut store, _) = load(disk).expect("loaded");
        let refused = Record {
            runner: Incarnation::new(77).expect("not zero"),
            ..record(1, 6)
        };
        let failed = store.store(&refused).is_err();
        if !failed {
            assert!(failing > 3, "write, sync, rename and the directory's sync");
            break;
        }
        let disk = store.into_disk();
        for records in found(&disk) {
            let kept = records[0] == record(1, 5) || records[0] == refused;
            assert!(kept && records[1] == record(2, 9), "{records:?}");
        }
        // The same process tries another change of the same generation.
        let mut disk = disk.clone();
        disk.fail.clear();
        let mut store = Store::over(disk);
        store.store(&record(1, 6)).expect("stored");
        let disk = store.into_disk();
        for records in found(&disk) {
            assert_eq!(records, [record(1, 6), record(2, 9)], "step {failing}");
        }
    }
}

/// A server was killed, or a step failed, and a new one found what was not durable yet: once it
/// has told of it, a power cut must not undo it.
#[test]
fn what_a_new_server_tells_is_durable() {
    let begun = begun().into_disk().after_crash();
    for step in 0..6 {
        for killed in [false, true] {
            let mut disk = begun.clone();
            let at = loading(&disk) + step;
            if killed {
                disk.off_at = Some(at);
            } else {
                disk.fail = vec![at];
            }
            let (mut store, _) = load(disk).expect("loaded");
            for changed in [record(1, 6), record(3, 1)] {
                let _ = store.store(&changed);
            }
            let disk = store.into_disk().after_crash();
            let (store, told) = load(disk).expect("loaded");
            for disk in store.into_disk().after_power_cut() {
                let (_, records) = load(disk).expect("loaded");
                assert_eq!(records, told, "step {step}, killed: {killed}");
            }
        }
    }
}

/// An operator put a copy back and did not sync it.
#[test]
fn a_restored_record_is_made_durable() {
    let mut bytes = Vec::new();
    encode_record(&record(1, 5), &mut bytes);
    let mut disk = Faulty::default();
    disk.write(&format!("{}.record", MachineId(1)), &bytes)
        .expect("written");
    let (store, told) = load(disk).expect("loaded");
    assert_eq!(told, [record(1, 5)]);
    assert!(found(&store.into_disk()).iter().all(|found| *found == told));
}

#[test]
fn a_full_disk_leaves_nothing_behind() {
    let mut disk = begun().into_disk().after_crash();
    let names = disk.list();
    disk.fail = vec![loading(&disk)];
    let (mut store, _) = load(disk).expect("loaded");
    let error = store.store(&record(3, 1)).expect_err("full");
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    assert_eq!(store.into_disk().list(), names);
}

#[test]
fn a_damaged_record_is_named_and_refused() {
    let mut bytes = Vec::new();
    encode_record(&record(1, 5), &mut bytes);
    let name = format!("{}.record", MachineId(1));
    for bit in 0..bytes.len() * 8 {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let mut disk = Faulty::default();
        disk.put(&name, &bytes);
        let error = load(disk).expect_err("refused");
        assert!(matches!(error, StoreError::Damaged { .. }), "bit {bit}");
        assert!(error.to_string().contains(&name), "{error}");
    }
    for length in 0..bytes.len() {
        let mut disk = Faulty::default();
        disk.put(&name, &bytes[..length]);
        let error = load(disk).expect_err("refused");
        assert!(matches!(
            error,
            StoreError::Damaged {
                why: WireError::Short { .. },
                ..
            }
        ));
    }
    let mut disk = Faulty::default();
    disk.put(&name, &vec![0; 1 << 20]);
    assert!(matches!(load(disk), Err(StoreError::Damaged { .. })));
}

#[test]
fn what_does_not_belong_there_is_named_and_refused() {
    let mut bytes = Vec::new();
    encode_record(&record(1, 5), &mut bytes);
    let foreign = [
        "notes.txt".to_owned(),
        format!("{}.recor", MachineId(1)),
        format!("{}.record~", MachineId(1)),
        format!("{}.RECORD", MachineId(1)),
        "1.record".to_owned(),
        format!("{:x}.record", 1),
        format!("{}.record", MachineId(0xab)).to_uppercase(),
    ];
    for name in foreign {
        let mut disk = Faulty::default();
        disk.put(&name, &bytes);
        let error = load(disk).expect_err("refused");
        assert!(matches!(error, StoreError::Foreign(_)), "{name}: {error}");
        assert!(error.to_string().contains(&name), "{error}");
    }
    let mut disk = Faulty::default();
    disk.put(&format!("{}.record", MachineId(2)), &bytes);
    assert!(matches!(load(disk), Err(StoreError::Misplaced { .. })));
}

#[test]
fn a_draft_that_was_left_is_cleared_away() {
    let mut disk = begun().into_disk().after_crash();
    disk.put(&format!("{}.draft", MachineId(1)), b"half a rec");
    disk.put("lock", b"");
    let (store, records) = load(disk).expect("loaded");
    assert_eq!(records, [record(1, 5), record(2, 9)]);
    assert!(
        !store
            .into_disk()
            .list()
            .iter()
            .any(|n| n.ends_with("draft"))
    );
}

/// The real thing: what was stored is read again; a second store in one directory is refused.
#[test]
fn a_directory_is_one_servers() {
    let parent = tempfile::tempdir().expect("a directory");
    let path = parent.path().join("store");
    let (mut store, records) = Store::open(&path).expect("made");
    assert_eq!(records, []);
    store.store(&record(1, 5)).expect("stored");
    store.store(&record(1, 6)).expect("stored");
    store.store(&record(2, 1)).expect("stored");
    let error = Store::open(&path).expect_err("locked");
    assert!(matches!(error, StoreError::Locked(_)), "{error}");
    drop(store);
    let (_, mut records) = Store::open(&path).expect("opened");
    records.sort();
    assert_eq!(records, [record(1, 6), record(2, 1)]);
}
