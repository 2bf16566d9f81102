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
