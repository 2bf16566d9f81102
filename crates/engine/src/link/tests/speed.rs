//! What encryption costs. Not a test of anything: it prints.
//!
//! `cargo test --release -p romulus-engine link_speed -- --ignored --nocapture`

use std::hint::black_box;

use super::*;

const CHECKPOINT: u32 = 2 << 20;
const CHECKPOINTS: u32 = 512;
const ROUNDS: u32 = 20_000;

#[test]
#[ignore = "it measures"]
fn link_speed() {
    for encrypted in [false, true] {
        let what = if encrypted { "TLS" } else { "plain" };
        let (server, client) = pair(encrypted);
        let (mut sender, mut commits) = client.split();
        let (mut committer, mut receiver) = server.split();
        let backup = thread::spawn(move || {
            while let Ok(message) = receiver.receive() {
                if let Message::Received(session, epoch) = black_box(message) {
                    let commit = Message::Commit(session, epoch);
                    committer.send_message(&commit).expect("sent");
                }
            }
        });
        let mut bytes = Vec::new();
        encode_message(&part(0, CHECKPOINT as usize), &mut bytes);
        // Stands for the end of a checkpoint: as short.
        let end = Message::Received(session(), Epoch(1));

        let start = Instant::now();
        for _ in 0..CHECKPOINTS {
            sender.send(&bytes).expect("sent");
        }
        sender.send_message(&end).expect("sent");
        commits.receive().expect("committed");
        let taken = start.elapsed().as_secs_f64();
        let sent = f64::from(CHECKPOINTS) * f64::from(CHECKPOINT) / 1e6;
        println!("{what}: {:.0} MB/s", sent / taken);

        // 50 sparsely changed pages at 60 bytes.
        let mut bytes = Vec::new();
        encode_message(&part(0, 3000), &mut bytes);
        encode_message(&end, &mut bytes);
        let mut rounds: Vec<Duration> = (0..ROUNDS)
            .map(|_| {
                let start = Instant::now();
                sender.send(&bytes).expect("sent");
                commits.receive().expect("committed");
                start.elapsed()
            })
            .collect();
        rounds.sort();
        let (half, most) = (rounds[rounds.len() / 2], rounds[rounds.len() * 99 / 100]);
        println!("{what}: from 3 kB to the commit: p50 {half:?}, p99 {most:?}");

        sender.closer().close();
        backup.join().expect("no panic");
    }
}
