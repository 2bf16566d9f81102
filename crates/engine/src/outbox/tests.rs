//! The thread that sends, on a link of its own and without a machine.

use super::{Item, Outbox, Stream, Writer};
use crate::{
    backup::testing::{linked, session, until, world},
    disks::{Resync, WritableDisk, WriteLog, tell_digests},
    full_copy::FullCopy,
};
use romulus_checkpoint::Encoder;
use romulus_machine::{Memory, WarmPages};
use romulus_protocol::{id::Epoch, message::Message};
use std::{
    fs,
    sync::{Arc, Mutex},
    thread,
};

#[test]
fn what_the_backup_tells_of_its_disks_before_the_copy_begins_is_not_lost() {
    let world = world();
    let (ours, theirs) = linked();
    let outbox = Arc::new(Outbox::new(ours.closer()));
    let (sender, _receiver) = ours.split();
    let writer = Writer::new(Arc::clone(&world.node), Arc::clone(&outbox), sender);
    let writer = thread::spawn(move || writer.run());

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    fs::write(&path, vec![5; 300 << 10]).unwrap();
    let disks = [WritableDisk { disk: 0, path }];
    // A backup that stands ready is quicker than a driver that has a guest to pause.
    tell_digests(session(1), &disks, |message| {
        let Message::Digests {
            session,
            disk,
            first,
            bytes,
            last,
        } = message
        else {
            panic!("{message:?}");
        };
        outbox.push(Item::Digests {
            session,
            disk,
            first,
            bytes,
            last,
        });
    })
    .unwrap();
    let memory = Memory::new(1 << 20).unwrap();
    let full_copy = Arc::<FullCopy>::default();
    let log = Arc::new(WriteLog::default());
    outbox.push(Item::Open(Box::new(Stream {
        id: session(1),
        encoder: Encoder::new(memory.pages(), 1 << 20),
        epoch: Epoch(1),
        next: 0,
        resync: Resync::new(session(1), &disks, &log).unwrap(),
        full: false,
        full_copy: Arc::clone(&full_copy),
        warm: Arc::new(Mutex::new(WarmPages::new(&memory, 1, 1))),
        output: true,
        memory,
    })));
    until("the copy is never whole", || {
        full_copy.copied().all.then_some(())
    });
    outbox.close();
    writer.join().unwrap();
    drop(theirs);
}
