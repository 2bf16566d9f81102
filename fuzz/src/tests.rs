//! Every body is given all of its corpus.

use crate::{ALL, SEED, addresses, input::Input, journal, memory, replica, state, wire};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

#[global_allocator]
static MEMORY: memory::Counter = memory::COUNTER;

/// Memory is counted for the whole process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn corpus(target: &str) -> BTreeMap<String, Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    let read = |path: PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, fs::read(&path).unwrap())
    };
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    entries.map(|entry| read(entry.unwrap().path())).collect()
}

fn replay(target: &str) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let body = ALL.iter().find(|t| t.name == target).unwrap().body;
    let inputs = corpus(target);
    assert!(!inputs.is_empty());
    for (name, bytes) in &inputs {
        // Shown if it panics.
        println!("corpus/{target}/{name}");
        body(bytes);
    }
    body(&[]);
}

macro_rules! replays {
    ($($target:ident),*) => {
        $(#[test]
        fn $target() {
            replay(stringify!($target));
        })*

        #[test]
        fn every_target_is_replayed() {
            let replayed = [$(stringify!($target)),*];
            assert!(ALL.iter().map(|target| target.name).eq(replayed));
        }
    };
}

replays!(
    wire, replica, journal, resync, classifier, addresses, config, store, state, sip
);

/// They are what today's encoders make: `cargo run -p romulus-fuzz --example seeds` makes them anew.
#[test]
fn seeds_are_up_to_date() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for target in ALL {
        let mut there = corpus(target.name);
        there.retain(|name, _| name.starts_with(SEED));
        let mut made = BTreeMap::new();
        for (name, bytes) in (target.seeds)() {
            let before = made.insert(format!("{SEED}{name}"), bytes);
            assert!(before.is_none(), "{}: {name} twice", target.name);
        }
        let names = |of: &BTreeMap<String, Vec<u8>>| of.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&there), names(&made), "{}", target.name);
        for (name, bytes) in &made {
            assert!(there[name] == *bytes, "{}: {name} is old", target.name);
        }
    }
}

/// Whoever changes where lengths and checksums stand has to change it here as well: else the fuzzer would be shown to the
/// door by the first of them.
#[test]
fn to_seal_what_is_right_changes_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let whole = |seeds: Vec<(String, Vec<u8>)>, names: &[&str]| -> Vec<Vec<u8>> {
        let chosen: Vec<_> = seeds
            .into_iter()
            .filter(|(name, _)| names.iter().any(|chosen| name.starts_with(chosen)))
            .map(|(_, bytes)| bytes)
            .collect();
        assert!(chosen.len() >= names.len());
        chosen
    };
    for (_, frame) in wire::seeds() {
        assert_eq!(wire::seal(&frame), frame);
    }
    for epoch in whole(replica::seeds(), &["epoch"]) {
        let mut input = Input::new(&epoch);
        while !input.is_empty() {
            let _how = input.byte();
            let part = input.piece();
            assert_eq!(replica::seal(part), part);
        }
    }
    for file in whole(journal::seeds(), &["one", "both", "empty"]) {
        assert_eq!(journal::seal(&file[1..]), file[1..]);
    }
    for known in whole(addresses::seeds(), &["state"]) {
        assert_eq!(addresses::seal(&known[1..]), known[1..]);
    }
    for state in whole(state::seeds(), &["fresh", "driven", "between"]) {
        assert_eq!(state::seal(&state[1..]), state[1..]);
    }
}

#[test]
fn memory_is_counted() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let room = memory::bounded(100_000, || Vec::<u8>::with_capacity(100_000));
    drop(room);
    let more = std::panic::catch_unwind(|| {
        memory::bounded(100_000, || Vec::<u8>::with_capacity(200_000));
    });
    assert!(more.is_err());
}
