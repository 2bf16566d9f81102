//! A replica changes by whole, verified, accepted epochs of its own session, and by nothing else.

use super::{testing::*, *};
use crate::{disks::WritableDisk, sidecar::synced::syncs};
use romulus_checkpoint::PAGE;
use romulus_protocol::{
    arbiter::Answer,
    host::RoleName,
    id::{Epoch, Generation},
    record::{Phase, Record},
};
use std::{fs, path::Path, sync::Arc, thread};
use tempfile::TempDir;

#[test]
fn state_and_addresses_come_apart_again() {
    let mut bytes = Vec::new();
    join(&mut bytes, |out| out.extend_from_slice(b"addresses"));
    bytes.extend_from_slice(b"machine");
    assert_eq!(split(&bytes), Some((&b"addresses"[..], &b"machine"[..])));
    assert_eq!(split(&bytes[..8]), None);
    assert_eq!(split(&[1, 0, 0]), None);
}

/// A backup that is being filled from a memory of the test.
struct Bench {
    world: World,
    backup: Backup,
    /// The primary's.
    ours: Memory,
    /// The backup's.
    theirs: Memory,
    filler: Filler,
    directory: TempDir,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(&|_| Vec::new())
    }

    /// With one disk of 4 KiB.
    fn with_disk() -> Bench {
        Bench::with(&|directory| {
            let path = directory.join("image");
            fs::write(&path, [0; 4096]).unwrap();
            vec![WritableDisk { disk: 0, path }]
        })
    }

    fn with(disks: &dyn Fn(&Path) -> Vec<WritableDisk>) -> Bench {
        let directory = tempfile::tempdir().unwrap();
        let world = world();
        world.begin(1);
        let disks = disks(directory.path());
        let (backup, theirs) = backup(&disks, &directory.path().join("state"));
        let ours = Memory::new(MEMORY).unwrap();
        Bench {
            world,
            backup,
            filler: Filler::new(&ours),
            ours,
            theirs,
            directory,
        }
    }

    fn image(&self) -> u8 {
        fs::read(self.directory.path().join("image")).unwrap()[0]
    }

    fn journal(&self) -> std::path::PathBuf {
        self.directory.path().join("state/journal")
    }

    /// The primary's next epoch: its first page and its state hold `mark`.
    fn epoch(&mut self, mark: u8) -> Filled {
        self.ours.write_page(0, &[mark; PAGE]);
        self.filler.fill(&self.ours, &[mark], None, false)
    }

    fn epoch_with_write(&mut self, mark: u8, flush: bool) -> Filled {
        self.ours.write_page(0, &[mark; PAGE]);
        let write = [mark; 512];
        self.filler.fill(&self.ours, &[mark], Some(&write), flush)
    }

    fn parts(&self, epoch: &Filled) -> Result<(), StreamError> {
        for (index, part) in (0..).zip(&epoch.parts) {
            let end = &epoch.end;
            let node = &self.world.node;
            self.backup
                .part(node, end.session, end.epoch.0, index, part)?;
        }
        Ok(())
    }

    fn end(&self, epoch: &Filled) -> Result<(), StreamError> {
        let from = epoch.end.session.runner;
        self.backup.checkpoint(&self.world.node, from, epoch.end)
    }

    fn all(&self, epoch: &Filled) -> Result<(), StreamError> {
        self.parts(epoch)?;
        self.end(epoch)
    }

    /// What the replica is: its memory's first byte, its state, and the host's word for it.
    fn is(&self) -> (u8, Vec<u8>, u64) {
        let mut page = [0; PAGE];
        self.theirs.read_page(0, &mut page);
        let held = self.backup.hold();
        let state = held.state().map(|(_, state)| state.to_vec());
        drop(held);
        (
            page[0],
            state.unwrap_or_default(),
            self.world.node.status().epoch.0,
        )
    }
}

#[test]
fn a_whole_epoch_is_applied() {
    let mut bench = Bench::new();
    for mark in 1..4 {
        let epoch = bench.epoch(mark);
        assert!(!epoch.parts.is_empty());
        bench.all(&epoch).unwrap();
        assert_eq!(bench.is(), (mark, vec![mark], mark.into()));
    }
}

#[test]
fn a_half_or_damaged_epoch_changes_nothing() {
    type Spoil = fn(&mut Filled);
    let spoils: [Spoil; 4] = [
        |epoch| drop(epoch.parts.pop()),
        |epoch| epoch.end.digest ^= 1,
        |epoch| epoch.end.parts += 1,
        |epoch| {
            let part = epoch.parts.last_mut().unwrap();
            *part.last_mut().unwrap() ^= 1;
        },
    ];
    for spoil in spoils {
        let mut bench = Bench::new();
        let epoch = bench.epoch(1);
        bench.all(&epoch).unwrap();
        let mut epoch = bench.epoch(2);
        spoil(&mut epoch);
        let error = bench.all(&epoch).unwrap_err();
        assert!(matches!(error, StreamError::Replica(_)), "{error}");
        assert_eq!(bench.is(), (1, vec![1], 1));
    }
}

#[test]
fn an_epoch_that_the_host_refuses_is_not_applied_and_leaves_the_journal() {
    let mut bench = Bench::with_disk();
    let epoch = bench.epoch_with_write(1, true);
    bench.all(&epoch).unwrap();
    assert_eq!(bench.image(), 1);
    let mut epoch = bench.epoch_with_write(2, true);
    // Whole and right, but of a term that this session is not of.
    epoch.end.term.0.0 += 1;
    bench.all(&epoch).unwrap();
    assert_eq!(bench.is(), (1, vec![1], 1));
    bench.backup.settle().unwrap();
    assert_eq!(bench.image(), 1, "a write that was never committed");
}

#[test]
fn what_the_journal_cannot_keep_is_not_committed() {
    let mut bench = Bench::with_disk();
    let epoch = bench.epoch_with_write(1, false);
    bench.all(&epoch).unwrap();
    // No room for another byte.
    exchange(&bench.journal(), "/dev/full");
    let epoch = bench.epoch_with_write(2, false);
    let error = bench.all(&epoch).unwrap_err();
    assert!(matches!(error, StreamError::Journal(_)), "{error}");
    assert_eq!(bench.is(), (1, vec![1], 1));
    assert_eq!(bench.image(), 1);
}

#[test]
fn what_the_guest_flushed_is_durable_before_it_is_committed() {
    let mut bench = Bench::with_disk();
    let epoch = bench.epoch_with_write(1, true);
    bench.all(&epoch).unwrap();
    // It takes every write, and can make none durable.
    exchange(&bench.journal(), "/dev/zero");
    let epoch = bench.epoch_with_write(2, true);
    let error = bench.all(&epoch).unwrap_err();
    assert!(matches!(error, StreamError::Journal(_)), "{error}");
    assert_eq!(bench.is(), (1, vec![1], 1));
    assert_eq!(bench.image(), 1);
}

#[test]
fn a_replica_whose_disks_cannot_follow_is_lost() {
    let mut bench = Bench::with_disk();
    let epoch = bench.epoch_with_write(1, false);
    bench.all(&epoch).unwrap();
    bench.world.node.handle(Event::SidecarStored(true));
    assert!(bench.world.node.status().whole);
    // What is written there is not there when it is to be applied.
    exchange(&bench.journal(), "/dev/zero");
    let epoch = bench.epoch_with_write(2, false);
    bench.all(&epoch).unwrap();
    assert!(!bench.world.node.status().whole);
}

#[test]
fn parts_wait_for_the_replica_of_their_own_session() {
    let mut bench = Bench::new();
    let first = bench.epoch(1);
    bench.all(&first).unwrap();
    bench.world.node.handle(Event::SidecarStored(true));
    // The next session begins; the thread that drops the old replica is late.
    bench.world.begin(2);
    let mut second = Filler::new(&bench.ours);
    bench.ours.write_page(0, &[7; PAGE]);
    let mut epoch = second.fill(&bench.ours, &[7], None, false);
    epoch.end.session = session(2);
    thread::scope(|scope| {
        let reader = scope.spawn(|| bench.all(&epoch));
        // Long enough for it to come to where it waits; if it does not, nothing fails.
        thread::sleep(Duration::from_millis(200));
        assert!(!reader.is_finished());
        bench
            .backup
            .prepare(session(2), replica(&bench.theirs))
            .unwrap();
        reader.join().unwrap().unwrap();
    });
    assert_eq!(bench.is(), (7, vec![7], 1));
}

#[test]
fn what_is_not_expected_any_more_is_not_taken() {
    let mut bench = Bench::new();
    let epoch = bench.epoch(1);
    bench.all(&epoch).unwrap();
    // The runner says that the guest was stopped: the thread that drops the replica is late.
    bench.world.hear(Message::Stopped);
    assert_eq!(bench.world.node.status().role, RoleName::Waiting);
    let next = bench.epoch(2);
    bench.parts(&next).unwrap();
    let mut inner = bench.backup.lock();
    let replica = inner.replica.as_mut().unwrap();
    let found = replica.verify(2, next.end.parts, next.end.digest);
    assert!(matches!(found, Err(ReplicaError::Missing { have: 0, .. })));
    drop(inner);
    bench.end(&next).unwrap();
    assert_eq!(bench.is().0, 1);
}

#[test]
fn who_runs_takes_nothing_from_the_runner_before() {
    let mut bench = Bench::new();
    let epoch = bench.epoch(1);
    bench.all(&epoch).unwrap();
    let node = Arc::clone(&bench.world.node);
    node.handle(Event::SidecarStored(true));
    let answer = |generation, runner, heir: Option<u128>, phase| {
        node.handle(Event::Arbiter(Answer {
            machine: MACHINE,
            to: incarnation(1),
            number: u64::MAX,
            record: Some(Record {
                machine: MACHINE,
                generation: Generation(generation),
                runner: incarnation(runner),
                heir: heir.map(incarnation),
                phase,
            }),
            refusal: None,
        }));
    };
    answer(3, RUNNER, Some(1), Phase::Running);
    node.handle(Event::Promote);
    node.handle(Event::Loaded(true));
    answer(4, 1, None, Phase::Claimed);
    answer(5, 1, None, Phase::Running);
    assert_eq!(node.status().role, RoleName::Primary);
    // The thread that starts the machine is late.
    assert_eq!(node.expected(), None);
    let next = bench.epoch(2);
    bench.all(&next).unwrap();
    assert_eq!(bench.is().0, 1);
}

#[test]
fn what_was_dropped_is_gone_for_good() {
    let mut bench = Bench::new();
    let epoch = bench.epoch(1);
    bench.all(&epoch).unwrap();
    bench.backup.discard();
    assert!(bench.backup.hold().state().is_none());
}

#[test]
fn a_checkpoint_waits_for_the_machine_that_takes_it() {
    let mut bench = Bench::new();
    let epoch = bench.epoch(1);
    bench.backup.no_machine();
    bench
        .backup
        .prepare(session(1), replica(&bench.theirs))
        .unwrap();
    let node = Arc::clone(&bench.world.node);
    thread::scope(|scope| {
        let reader = scope.spawn(|| bench.all(&epoch));
        thread::sleep(Duration::from_millis(200));
        assert!(!reader.is_finished());
        assert_eq!(node.status().epoch, Epoch(0), "not committed");
        bench.backup.machine(Some(bench.theirs.clone()));
        reader.join().unwrap().unwrap();
    });
    assert_eq!(bench.is(), (1, vec![1], 1));
    // And where there will be none, the link ends.
    bench.backup.machine(None);
    let epoch = bench.epoch(2);
    assert!(matches!(bench.all(&epoch), Err(StreamError::NoMachine)));
}

#[test]
fn a_flush_syncs_the_journal_and_an_emptied_journal_the_image_before() {
    let mut bench = Bench::with_disk();
    let epoch = bench.epoch_with_write(1, true);
    let journal = bench.journal().canonicalize().unwrap();
    let image = bench.directory.path().join("image").canonicalize().unwrap();
    let Some(seen) = syncs(|| bench.all(&epoch).unwrap()) else {
        return;
    };
    assert_eq!(seen, std::slice::from_ref(&journal));
    let seen = syncs(|| bench.backup.settle().unwrap());
    assert_eq!(seen, Some(vec![image.clone(), journal.clone()]));
    // Without a flush nothing waits for the disk; before the journal's writes are all there is of
    // them, it is durable itself.
    let epoch = bench.epoch_with_write(2, false);
    let bench = &bench;
    let seen = syncs(|| bench.all(&epoch).unwrap());
    assert_eq!(seen, Some(vec![]));
    let seen = syncs(|| bench.backup.settle().unwrap());
    assert_eq!(seen, Some(vec![journal.clone(), image, journal]));
}

/// A frame that says `mark`, as checkpoints carry it.
fn frame_of(card: usize, mark: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    frames::put(&mut bytes, card, &[mark; 60]);
    bytes
}

fn marks(frames: &[(usize, Vec<u8>)]) -> Vec<u8> {
    frames.iter().map(|(_, frame)| frame[0]).collect()
}

#[test]
fn what_was_on_its_way_is_that_of_the_newest_commit() {
    let mut bench = Bench::new();
    let arrive = |bench: &Bench, number: u8| {
        let number = (u64::from(number), vec![number; 60]);
        bench.backup.frame(session(1), number.0, 0, number.1);
    };
    bench.filler.output = frame_of(0, 1);
    let first = bench.epoch(1);
    bench.all(&first).unwrap();
    for number in 0..4 {
        arrive(&bench, number);
    }
    bench.filler.output = frame_of(0, 2);
    let mut second = bench.epoch(2);
    second.end.rx_next = 2;
    bench.all(&second).unwrap();
    // The third is half here when the primary dies.
    bench.filler.output = frame_of(0, 3);
    let third = bench.epoch(3);
    bench.parts(&third).unwrap();
    arrive(&bench, 4);
    let in_flight = bench.backup.take_in_flight();
    assert_eq!(marks(&in_flight.output), [1, 2]);
    assert_eq!(marks(&in_flight.input), [2, 3, 4]);
    assert_eq!(bench.backup.take_in_flight(), InFlight::default(), "once");
}

#[test]
fn what_was_on_its_way_goes_with_its_replica() {
    let drops: [&dyn Fn(&Bench); 3] = [
        &|bench| bench.backup.discard(),
        &|bench| bench.backup.no_machine(),
        &|bench| {
            let replica = replica(&bench.theirs);
            bench.backup.prepare(session(2), replica).unwrap();
        },
    ];
    for drop_it in drops {
        let mut bench = Bench::new();
        bench.filler.output = frame_of(0, 1);
        let epoch = bench.epoch(1);
        bench.all(&epoch).unwrap();
        bench.backup.frame(session(1), 5, 0, vec![5; 60]);
        // None of these belongs to it.
        bench.backup.frame(session(2), 6, 0, vec![6; 60]);
        bench.backup.frame(session(1), 7, 1, vec![7; 60]);
        drop_it(&bench);
        assert_eq!(bench.backup.take_in_flight(), InFlight::default());
    }
    let bench = Bench::new();
    bench.backup.frame(session(2), 6, 0, vec![6; 60]);
    bench.backup.frame(session(1), 7, 1, vec![7; 60]);
    bench.backup.frame(session(1), 8, 0, vec![8; 60]);
    let in_flight = bench.backup.take_in_flight();
    assert_eq!(marks(&in_flight.input), [8], "of this session and machine");
}

#[test]
fn what_the_runner_before_passes_on_is_for_the_guest_that_runs_here() {
    let late = |bench: &Bench, of: u64, card| bench.backup.frame(session(of), 9, card, vec![9; 60]);
    let mut bench = Bench::new();
    let epoch = bench.epoch(1);
    bench.all(&epoch).unwrap();
    assert_eq!(late(&bench, 1, 0), None, "it is kept until then");
    bench.backup.take_in_flight();
    bench.backup.no_machine();
    assert_eq!(late(&bench, 1, 0), Some(vec![9; 60]));
    assert_eq!(late(&bench, 2, 0), None, "another session");
    assert_eq!(late(&bench, 1, 1), None, "no such card");
    // For a while: who sent it will have asked again.
    let taken_over = bench.backup.lock().late;
    let (of, until) = taken_over.expect("of the session that was taken over");
    assert!(until <= clock::now() + LATE);
    bench.backup.lock().late = Some((of, clock::now()));
    assert_eq!(late(&bench, 1, 0), None, "too late");
    bench.backup.lock().late = Some((of, until));
    bench.backup.discard();
    assert_eq!(late(&bench, 1, 0), None, "nothing runs here any more");

    // A replica that nobody ran from.
    let bench = Bench::new();
    bench.backup.no_machine();
    assert_eq!(late(&bench, 1, 0), None);
}

#[test]
fn held_output_that_is_none_is_refused_and_changes_nothing() {
    for bad in [frame_of(1, 9), frame_of(0, 9)[..40].to_vec(), vec![9; 5]] {
        let mut bench = Bench::new();
        let epoch = bench.epoch(1);
        bench.all(&epoch).unwrap();
        bench.filler.output = bad;
        let epoch = bench.epoch(2);
        let refused = bench.all(&epoch);
        assert!(
            matches!(refused, Err(StreamError::Output(_))),
            "{refused:?}"
        );
        assert_eq!(bench.is(), (1, vec![1], 1));
    }
}

#[test]
fn a_commit_does_not_show_in_the_rehearsal_that_goes_on() {
    let mut bench = Bench::new();
    assert!(
        bench.backup.begin_rehearsal().unwrap().is_none(),
        "no commit"
    );
    let epoch = bench.epoch(1);
    bench.all(&epoch).unwrap();
    let begun = bench.backup.begin_rehearsal().unwrap().unwrap();
    assert_eq!(begun.saved, [1]);
    let epoch = bench.epoch(2);
    bench.all(&epoch).unwrap();
    assert_eq!(bench.is(), (2, vec![2], 2));
    assert!(begun.stage.memory().page_is(0, &[1; PAGE]));
    // One that is over costs commits nothing.
    bench.backup.end_rehearsal(&begun.stage);
    let later = bench.backup.begin_rehearsal().unwrap().unwrap();
    bench.backup.end_rehearsal(&later.stage);
    let epoch = bench.epoch(3);
    bench.all(&epoch).unwrap();
    assert!(later.stage.memory().page_is(0, &[3; PAGE]), "it was copied");
}

#[test]
fn a_rehearsal_ends_with_its_replica() {
    let ends: [fn(&Bench); 4] = [
        |bench| bench.backup.discard(),
        |bench| bench.backup.no_machine(),
        |bench| bench.backup.stop_rehearsal(),
        |bench| {
            let next = replica(&bench.theirs);
            bench.backup.prepare(session(2), next).unwrap();
        },
    ];
    for (number, end) in ends.into_iter().enumerate() {
        let mut bench = Bench::new();
        let epoch = bench.epoch(1);
        bench.all(&epoch).unwrap();
        let begun = bench.backup.begin_rehearsal().unwrap().unwrap();
        assert!(!begun.stage.has_ended());
        end(&bench);
        assert!(begun.stage.has_ended(), "number {number}");
    }
}
