//! Three nodes, some of which die.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use romulus_engine::arbiter::Client;
use romulus_protocol::arbiter::{Ask, Request};
use romulus_protocol::id::{Generation, Incarnation};
use romulus_protocol::record::{Change, Phase, Record, Refusal, Right};

use crate::node::{Nodes, is_here};
use crate::running::{Running, ask, heard, me, request, run};

/// Longer than an arbiter asks its etcd.
const LONG: Duration = Duration::from_secs(4);
/// How long a cluster may take to go on.
const PATIENCE: Duration = Duration::from_mins(1);

/// What was ever said of each generation, and how many were told that they made it.
#[derive(Default)]
struct Said(Mutex<BTreeMap<u64, (Record, u64)>>);

impl Said {
    fn newest(&self) -> u64 {
        let said = self.0.lock().expect("no panic");
        said.last_key_value()
            .map_or(0, |(generation, _)| *generation)
    }

    /// Notes an answer. `asked` is what was known when its request went out.
    fn note(&self, record: Record, made: bool, asked: u64) {
        let mut said = self.0.lock().expect("no panic");
        let (first, times) = said.entry(record.generation.0).or_insert((record, 0));
        assert_eq!(*first, record, "two records of one generation");
        *times += u64::from(made);
        assert!(*times <= 1, "two made generation {}", record.generation);
        assert!(record.generation.0 >= asked, "what was answered is lost");
    }
}

/// A host's part: it changes the record again and again, and asks again when nobody answers.
fn change(client: &mut Client, who: u64, said: &Said, done: &AtomicBool) {
    let mut number = 0;
    while !done.load(Ordering::SeqCst) {
        number += 1;
        // What anybody was told before this goes out, the answer must not undo.
        let asked = said.newest();
        let heir = u128::from(who * 1_000_000 + number);
        let change = Change {
            expected: Generation(asked),
            runner: me(),
            heir: Incarnation::new(heir),
            phase: Phase::Running,
        };
        client.send(&request(number, Ask::Change(Right::Named, change)));
        // Answers to older requests may still come, and count as well, but not as news.
        while let Some(answer) = heard(client, Duration::from_millis(500)) {
            let record = answer.record.expect("there is one");
            let current = answer.number == number;
            match answer.refusal {
                None | Some(Refusal::Generation) => {}
                other => panic!("{other:?}"),
            }
            let asked = if current { asked } else { 0 };
            said.note(record, answer.refusal.is_none(), asked);
            if current {
                break;
            }
        }
    }
}

/// Waits until that many more changes were made.
fn more(said: &Said, changes: u64) {
    let (from, end) = (said.newest(), Instant::now() + PATIENCE);
    while said.newest() < from + changes {
        assert!(Instant::now() < end, "no change is made any more");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn nothing_that_was_answered_is_lost_when_a_node_dies() {
    if !is_here() {
        return;
    }
    let mut nodes = Nodes::start(3);
    let servers = [0, 1].map(|first| Running::start(&nodes.config(first)).expect("opened"));
    let mut first = servers[0].client(0, 1);
    assert_eq!(ask(&mut first, 1, Ask::Create), (1, Some(1), None));
    assert_eq!(ask(&mut first, 2, run(1)), (2, Some(2), None));
    let (said, done) = (Said::default(), AtomicBool::new(false));
    let record = {
        first.send(&request(3, Ask::Read));
        heard(&mut first, PATIENCE).expect("an answer").record
    };
    said.note(record.expect("there is one"), false, 2);
    let counter = AtomicU64::new(0);
    thread::scope(|scope| {
        for index in [0, 1, 0, 1] {
            let mut client = servers[index].client(index, 1 + index);
            let (said, done) = (&said, &done);
            let who = counter.fetch_add(1, Ordering::SeqCst) + 1;
            scope.spawn(move || change(&mut client, who, said, done));
        }
        more(&said, 20);
        // The leader, then one that follows; each comes back with what its disk has.
        let leader = nodes.leader();
        nodes.nodes[leader].kill();
        more(&said, 20);
        nodes.nodes[leader].start();
        assert!(nodes.answer());
        let follower = (nodes.leader() + 1) % 3;
        nodes.nodes[follower].kill();
        more(&said, 20);
        nodes.nodes[follower].start();
        assert!(nodes.answer());
        let leader = nodes.leader();
        nodes.nodes[leader].kill();
        more(&said, 20);
        done.store(true, Ordering::SeqCst);
    });
    let newest = said.newest();
    // Through any of the arbiters, and through nodes that were away.
    for server in &servers {
        let mut client = server.client(0, 1);
        client.send(&request(1, Ask::Read));
        let answer = heard(&mut client, PATIENCE).expect("an answer");
        said.note(answer.record.expect("there is one"), false, newest);
    }
    servers.into_iter().for_each(Running::stop);
}

#[test]
fn without_a_majority_nothing_is_answered_and_nothing_forgotten() {
    if !is_here() {
        return;
    }
    let mut nodes = Nodes::start(3);
    // The node that will be left is asked first.
    let server = Running::start(&nodes.config(2)).expect("opened");
    let mut client = server.client(0, 1);
    assert_eq!(ask(&mut client, 1, Ask::Create), (1, Some(1), None));
    assert_eq!(ask(&mut client, 2, run(1)), (2, Some(2), None));
    for lost in 0..2 {
        nodes.nodes[lost].kill();
    }
    // It has the record, and does not tell: the two others may have gone on without it.
    client.send(&request(3, Ask::Read));
    client.send(&request(4, run(2)));
    client.send(&request(5, Ask::Create));
    assert_eq!(heard(&mut client, LONG), None);
    // One that starts now says nothing, either.
    let late = Running::start(&nodes.config(2)).expect("opened all the same");
    let mut other = late.client(0, 2);
    other.send(&request(1, Ask::Read));
    assert_eq!(heard(&mut other, LONG), None);

    nodes.nodes[0].start();
    let end = Instant::now() + PATIENCE;
    let mut number = 10;
    let (generation, made) = loop {
        assert!(Instant::now() < end, "it does not go on");
        number += 1;
        let read = Request {
            ..request(number, Ask::Read)
        };
        client.send(&read);
        if let Some(answer) = heard(&mut client, Duration::from_secs(1)) {
            let record = answer.record.expect("nothing is forgotten");
            break (record.generation.0, answer.number);
        }
    };
    assert!(made > 10);
    // The change that nobody answered was not made, or was made since; nothing else was.
    assert!(generation == 2 || generation == 3, "{generation}");
    let mut fresh = late.client(0, 1);
    assert_eq!(
        ask(&mut fresh, 1, run(generation)),
        (1, Some(generation + 1), None)
    );
    server.stop();
    late.stop();
}
