//! A process that still breathes is not a machine that runs.

use super::*;
use crate::backup::testing::world;
use romulus_protocol::wire::decode_heartbeat;
use std::thread;

#[test]
fn heartbeats_say_whether_the_loop_turns_that_holds_the_machine() {
    let world = world();
    let node = &world.node;
    world
        .partner
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let mut bytes = [0; 2048];
    let mut moves = || {
        let length = world.partner.recv(&mut bytes).unwrap();
        decode_heartbeat(&bytes[..length], &world.partner_key)
            .unwrap()
            .moves
    };
    thread::scope(|scope| {
        scope.spawn(|| run(node, &world.polled));
        let end = End(node);
        // Nobody turns that loop here, while this thread goes on as ever.
        let said = (0..2000).position(|_| !moves());
        assert!(said.is_some(), "it never says that the loop stands");
        node.handle(Event::LoopTurned);
        let said = (0..2000).position(|_| moves());
        assert!(said.is_some(), "it never says that the loop turns");
        drop(end);
    });
}

/// Ends the thread, also when the test fails.
struct End<'a>(&'a Node);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

#[test]
fn what_is_read_late_is_told_with_its_arrival() {
    let world = world();
    world.node.handle(Event::Tick { drained: true });
    let mut bytes = [0; 2048];
    let length = world.partner.recv(&mut bytes).unwrap();
    let beat = decode_heartbeat(&bytes[..length], &world.partner_key).unwrap();
    let (before, after) = (Clocks::now(), Clocks::now());
    let told = |wall| {
        let received = Received {
            path: 1,
            beat: beat.clone(),
            wall,
        };
        match heard(received, &before, &after) {
            Event::Heartbeat { arrived, lane, .. } => (arrived, lane),
            other => unreachable!("{other:?}"),
        }
    };
    assert_eq!(told(None), (after.boot(), Lane::Other));
    let earlier = crate::clock::wall().checked_sub(Duration::from_secs(9));
    let (arrived, _) = told(earlier);
    let ago = after.boot().since(arrived);
    assert!(ago > Duration::from_secs(5), "it arrived {ago:?} ago");
}
