//! One node.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use romulus_protocol::arbiter::{Answer, Ask, Request};
use romulus_protocol::id::{Generation, Incarnation, MachineId};
use romulus_protocol::record::{Change, Phase, Record, Refusal, Right};

use crate::node::{Nodes, is_here};
use crate::running::{MACHINE, Running, answer, ask, heard, me, request, run};
use romulus_engine::arbiter::Client;

/// Longer than an arbiter asks its etcd.
const LONG: Duration = Duration::from_secs(4);

fn key(machine: MachineId) -> String {
    format!("/romulus/record/{machine}")
}

#[test]
fn an_arbiter_in_front_of_etcd_keeps_nothing_itself() {
    if !is_here() {
        return;
    }
    let etcd = Nodes::start(1);
    let server = Running::start(&etcd.config(0)).expect("opened");
    let (mut one, mut two) = (server.client(0, 1), server.client(1, 2));
    assert_eq!(ask(&mut one, 1, Ask::Read), (1, None, None));
    let absent = Some(Refusal::Absent);
    assert_eq!(ask(&mut one, 2, run(1)), (2, None, absent));
    assert_eq!(ask(&mut one, 3, Ask::Create), (3, Some(1), None));
    let exists = Some(Refusal::Exists);
    assert_eq!(ask(&mut two, 4, Ask::Create), (4, Some(1), exists));
    assert_eq!(ask(&mut two, 5, run(1)), (5, Some(2), None));
    let stale = Some(Refusal::Generation);
    assert_eq!(ask(&mut one, 6, run(1)), (6, Some(2), stale));

    // The other is there at the same time, and goes on when the first is gone.
    let other = Running::start(&etcd.config(0)).expect("opened");
    let mut three = other.client(0, 1);
    assert_eq!(ask(&mut three, 7, Ask::Read), (7, Some(2), None));
    server.stop();
    assert_eq!(ask(&mut three, 8, run(2)), (8, Some(3), None));
    other.stop();
    let value = etcd.nodes[0].get(&key(MACHINE));
    let text = String::from_utf8(value.expect("a record")).expect("text");
    assert!(text.contains("generation 3\n"), "{text}");
}

/// A change that makes `heir` the heir.
fn name(number: u64, expected: u64, heir: u128) -> Request {
    let change = Change {
        expected: Generation(expected),
        runner: me(),
        heir: Incarnation::new(heir),
        phase: Phase::Running,
    };
    request(number, Ask::Change(Right::Named, change))
}

/// Many ask two arbiters for different changes of the same generation, over and over. One of them
/// wins each, and all ever hear the same of it.
#[test]
fn of_many_changes_of_one_generation_one_is_made() {
    const ROUNDS: u64 = 60;
    if !is_here() {
        return;
    }
    let etcd = Nodes::start(1);
    let servers = [0, 1].map(|_| Running::start(&etcd.config(0)).expect("opened"));
    let mut first = servers[0].client(0, 1);
    assert_eq!(ask(&mut first, 1, Ask::Create), (1, Some(1), None));
    assert_eq!(ask(&mut first, 2, run(1)), (2, Some(2), None));
    // What was said of each generation, and how many were told that they have made it.
    let said: Mutex<BTreeMap<u64, (Record, u64)>> = Mutex::default();
    // A computer that stands still for seconds makes an arbiter silent.
    let silences = AtomicU64::new(0);
    let race = |who: u128, client: &mut Client| {
        let (mut known, mut number) = (2, 0);
        while known < 2 + ROUNDS {
            number += 1;
            client.send(&name(number, known, 1000 + who));
            let Some(Answer {
                record, refusal, ..
            }) = heard(client, LONG)
            else {
                silences.fetch_add(1, Ordering::SeqCst);
                continue;
            };
            let record = record.expect("there is one");
            let mut said = said.lock().expect("no panic");
            let (first, wins) = said.entry(record.generation.0).or_insert((record, 0));
            assert_eq!(*first, record, "two records of one generation");
            match refusal {
                None => {
                    *wins += 1;
                    assert_eq!(record.generation.0, known + 1);
                    assert_eq!(record.heir, Incarnation::new(1000 + who));
                }
                Some(refusal) => assert_eq!(refusal, Refusal::Generation),
            }
            assert!(record.generation.0 > known, "it went back, or stood still");
            known = record.generation.0;
        }
    };
    thread::scope(|scope| {
        for who in 0..6 {
            let mut client = servers[who % 2].client(who % 2, 1 + who % 2);
            let race = &race;
            scope.spawn(move || race(who as u128, &mut client));
        }
    });
    let said = said.into_inner().expect("no panic");
    let mut untold = 0;
    for generation in 3..=2 + ROUNDS {
        match said.get(&generation).map_or(0, |(_, wins)| *wins) {
            0 => untold += 1,
            wins => assert_eq!(wins, 1, "generation {generation}"),
        }
    }
    assert!(untold <= silences.into_inner(), "{untold}");
    servers.into_iter().for_each(Running::stop);
}

#[test]
fn what_is_no_record_is_refused_and_others_are_served() {
    if !is_here() {
        return;
    }
    let etcd = Nodes::start(1);
    let server = Running::start(&etcd.config(0)).expect("opened");
    let mut client = server.client(0, 1);
    let mut ask_of = |machine: u128, number, ask| {
        let machine = MachineId(machine);
        let request = Request {
            machine,
            ..request(number, ask)
        };
        client.send(&request);
        let answer = answer(&mut client);
        assert_eq!((answer.machine, answer.number), (machine, number));
        (answer.record.map(|r| r.generation.0), answer.refusal)
    };
    assert_eq!(ask_of(1, 1, Ask::Create), (Some(1), None));
    assert_eq!(ask_of(2, 2, Ask::Create), (Some(1), None));
    let node = &etcd.nodes[0];
    let good = node.get(&key(MachineId(1)));
    let good = good.expect("a record");
    let cut = &good[..good.len() - 1];
    let mut flipped = good.clone();
    flipped[40] ^= 1;
    let bad: [&[u8]; 5] = [b"", b"hello", cut, &flipped, &vec![b'x'; 1 << 20]];
    let damaged = (None, Some(Refusal::Damaged));
    let mut number = 10;
    for bad in bad {
        node.put(&key(MachineId(1)), bad);
        for ask in [Ask::Read, Ask::Create, run(1)] {
            number += 1;
            assert_eq!(ask_of(1, number, ask), damaged);
        }
        assert_eq!(node.get(&key(MachineId(1))), Some(bad.to_vec()));
        assert_eq!(ask_of(2, number + 100, Ask::Read), (Some(1), None));
    }
    // Another machine's record, whole.
    node.put(&key(MachineId(2)), &good);
    assert_eq!(ask_of(2, 201, Ask::Read), damaged);
    node.put(&key(MachineId(1)), &good);
    assert_eq!(ask_of(1, 202, run(1)), (Some(2), None));
    server.stop();
}

/// etcd is away when the arbiter starts, and comes, and goes.
#[test]
fn an_arbiter_waits_for_its_etcd() {
    if !is_here() {
        return;
    }
    let mut etcd = Nodes::start(1);
    etcd.nodes[0].kill();
    let server = Running::start(&etcd.config(0)).expect("opened all the same");
    let mut client = server.client(0, 1);
    for number in 0..100 {
        client.send(&request(number, Ask::Read));
    }
    assert_eq!(heard(&mut client, LONG), None, "nobody knows");
    etcd.nodes[0].start();
    let mut number = 100;
    let found = loop {
        number += 1;
        client.send(&request(number, Ask::Create));
        if let Some(answer) = heard(&mut client, LONG) {
            break answer;
        }
    };
    assert_eq!(found.record.map(|r| r.generation), Some(Generation(1)));
    server.stop();
}
