//! The replica: filled, tried, loaded, taken over.

use super::*;
use crate::{
    backup::{
        InFlight,
        testing::{Filler, exchange, incarnation, linked},
    },
    outbox::{Outbox, Writer},
};
use romulus_network::{HEADER, in_flight::frames};

/// What an epoch has beside its state.
#[derive(Clone, Copy, Default)]
struct With<'a> {
    /// A write to the disk.
    disk: Option<&'a [u8]>,
    /// Held output.
    output: &'a [u8],
}

/// Fills the replica with one epoch, complete.
fn fill(bench: &Bench, state: &[u8], with: With<'_>) {
    let ready = || bench.order(Order::Ready);
    assert!(bench.backup.await_machine(bench.node(), ready));
    bench.world.begin(1);
    bench.obeyed();
    // The test's and the driver's: the thread that told what the disks hold has ended.
    until("the disks are not compared", || {
        (Arc::strong_count(&bench.backup) == 2).then_some(())
    });
    let memory = bench.builder.memory.lock().unwrap().clone().unwrap();
    let ours = Memory::new(memory.size()).unwrap();
    let mut filler = Filler::new(&ours);
    filler.output = with.output.to_vec();
    let epoch = filler.fill(&ours, state, with.disk, false);
    for (index, part) in (0..).zip(&epoch.parts) {
        bench
            .backup
            .part(bench.node(), session(1), epoch.end.epoch.0, index, part)
            .unwrap();
    }
    bench
        .backup
        .checkpoint(bench.node(), incarnation(2), epoch.end)
        .unwrap();
    // The sidecar says that it is whole: it is tried.
    bench.node().handle(Event::SidecarStored(true));
}

/// What the runner hears of the trial.
fn heard(bench: &Bench, state: &[u8], with: With<'_>) -> Message {
    let (ours, theirs) = linked();
    let outbox = Arc::new(Outbox::new(ours.closer()));
    let (sender, _receiver) = ours.split();
    let writer = Writer::new(Arc::clone(bench.node()), Arc::clone(&outbox), sender);
    let writer = thread::spawn(move || writer.run());
    bench.node().connected(incarnation(2), &outbox);
    fill(bench, state, with);
    let (_sender, mut runner) = theirs.split();
    let heard = loop {
        let message = runner.receive().unwrap();
        if matches!(message, Message::Tried(_) | Message::Bye(_)) {
            break message;
        }
    };
    outbox.close();
    writer.join().unwrap();
    heard
}

fn state_of(tiny: &Tiny) -> Vec<u8> {
    let mut state = Vec::new();
    tiny.boot().unwrap().capture(&mut state).unwrap();
    state
}

#[test]
fn a_replica_has_a_machine_though_one_was_being_made_to_run() {
    let Some(bench) = Bench::new(false) else {
        return;
    };
    bench.order(Order::Load(Source::Cold));
    bench.order(Order::Prepare(session(1)));
    bench.made(2);
    let ready = || bench.order(Order::Ready);
    assert!(bench.backup.await_machine(bench.node(), ready));
}

#[test]
fn only_a_replica_that_was_loaded_is_called_tried() {
    let Some(bench) = Bench::new(false) else {
        return;
    };
    let state = state_of(&bench.builder.tiny);
    assert_eq!(
        heard(&bench, &state, With::default()),
        Message::Tried(session(1))
    );
    drop(bench);
    let Some(bench) = Bench::new(false) else {
        return;
    };
    let state = b"this is no machine's state";
    assert_eq!(
        heard(&bench, state, With::default()),
        Message::Bye(session(1))
    );
}

#[test]
fn a_replica_that_is_discarded_is_gone() {
    let Some(bench) = Bench::new(false) else {
        return;
    };
    fill(&bench, b"this is no machine's state", With::default());
    assert!(bench.backup.hold().state().is_some());
    bench.order(Order::Discard);
    bench.obeyed();
    assert!(bench.backup.hold().state().is_none());
}

#[test]
fn a_replica_that_cannot_be_loaded_in_earnest_is_nothing_to_run_from() {
    let Some(bench) = Bench::new(false) else {
        return;
    };
    fill(&bench, b"this is no machine's state", With::default());
    assert!(bench.node().status().whole);
    bench.node().handle(Event::Arbiter(Answer {
        machine: MACHINE,
        to: incarnation(1),
        number: u64::MAX,
        record: Some(Record {
            machine: MACHINE,
            generation: Generation(3),
            runner: incarnation(2),
            heir: Some(incarnation(1)),
            phase: Phase::Running,
        }),
        refusal: None,
    }));
    bench.node().handle(Event::Promote);
    assert_eq!(bench.node().status().role, RoleName::Frozen);
    until("it is still thought usable", || {
        (!bench.node().status().whole).then_some(())
    });
}

#[test]
fn a_takeover_begins_with_the_output_that_was_on_its_way() {
    for may_send in [true, false] {
        let Some(bench) = Bench::new(false) else {
            return;
        };
        let state = state_of(&bench.builder.tiny);
        let mut output = Vec::new();
        frames::put(&mut output, 0, &[7; HEADER + 60]);
        let with = With {
            output: &output,
            ..With::default()
        };
        assert_eq!(heard(&bench, &state, with), Message::Tried(session(1)));
        let source = Source::Replica {
            term: term(),
            epoch: Epoch(1),
            released_through: Epoch(0),
        };
        bench.order(Order::Load(source));
        if may_send {
            bench.node().output.permit(ALL);
        }
        bench.order(Order::Run {
            source,
            term: term(),
        });
        bench.report(is_running);
        assert_eq!(bench.left(), usize::from(may_send));
        assert_eq!(bench.backup.take_in_flight(), InFlight::default());
    }
}

#[test]
fn a_takeover_ends_the_rehearsal() {
    let Some(bench) = Bench::new(false) else {
        return;
    };
    let state = state_of(&bench.builder.tiny);
    let heard = heard(&bench, &state, With::default());
    assert_eq!(heard, Message::Tried(session(1)));
    let begun = bench.backup.begin_rehearsal().unwrap().unwrap();
    bench.order(Order::Load(Source::Replica {
        term: term(),
        epoch: Epoch(1),
        released_through: Epoch(0),
    }));
    bench.obeyed();
    assert!(begun.stage.has_ended());
}

#[test]
fn after_a_takeover_no_flush_is_answered_before_the_journal_is_empty() {
    let Some(bench) = Bench::new(true) else {
        return;
    };
    let state = state_of(&bench.builder.tiny);
    assert_eq!(
        heard(
            &bench,
            &state,
            With {
                disk: Some(&[1; 512]),
                ..With::default()
            }
        ),
        Message::Tried(session(1))
    );
    // Its write is in the journal, which cannot be made durable at the moment.
    exchange(&bench.directory.path().join("state/journal"), "/dev/zero");
    let source = Source::Replica {
        term: term(),
        epoch: Epoch(1),
        released_through: Epoch(0),
    };
    bench.order(Order::Load(source));
    bench.order(Order::Run {
        source,
        term: term(),
    });
    bench.report(is_running);
    let log = Arc::clone(&bench.log);
    let flush = thread::spawn(move || log.flushed(0));
    thread::sleep(NEVER);
    assert!(
        !flush.is_finished(),
        "answered, and the journal would undo it"
    );
    bench.log.settled();
    flush.join().unwrap();
}
