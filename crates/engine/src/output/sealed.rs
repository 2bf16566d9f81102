//! An epoch's end is told to everybody before the guest goes on. With the tiny guest on this
//! computer's KVM; where there is none, the test says so and passes.

use super::*;
use crate::{
    backup::testing::{Blank, session, term, tiny, until, world},
    disks::WriteLog,
    epoch,
    full_copy::FullCopy,
};
use romulus_checkpoint::Staging;
use romulus_machine::{DiskLog as _, PageSet, Ports, WarmPages};
use std::{
    fs::File,
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    sync::mpsc,
    thread,
    time::Duration,
};

#[test]
fn the_guest_goes_on_only_when_its_epochs_end_is_known() {
    let Some(tiny) = tiny() else { return };
    let world = world();
    let node = &world.node;
    let (tap, cable) = UnixDatagram::pair().unwrap();
    cable.set_nonblocking(true).unwrap();
    let output = Output::new(1 << 20, vec![[2, 0, 0, 0, 0, 1]], Mode::Net, Arc::default());
    output.attach(vec![TapWriter::new(File::from(OwnedFd::from(tap)))]);
    output.permit(Permit {
        pass: Pass::Committed,
        through: Epoch(0),
        until: None,
    });
    let disks = WriteLog::default();
    disks.set_active(true);

    let mut paused = tiny.boot_with(&Ports::default()).unwrap();
    paused.start_tracking().unwrap();
    let memory = paused.memory().clone();
    let mut dirty = PageSet::new(&memory);
    let machine = paused.resume().unwrap();
    let rounds = || tiny.rounds(&memory, 0);
    until("the guest does not run", || (rounds() > 2).then_some(()));
    let full_copy = FullCopy::default();
    full_copy.reach(usize::MAX);
    disks.wrote(0, 0, b"in the epoch that ends");
    output.send(0, &mut Blank);

    thread::scope(|scope| {
        // Somebody else is with the host, and for longer than usual.
        let (here, is_here) = mpsc::channel();
        let (leave, may_leave) = mpsc::channel::<()>();
        scope.spawn(move || {
            node.handle_all(std::iter::from_fn(|| {
                here.send(()).unwrap();
                // Until the test says so, or has failed.
                let _ = may_leave.recv();
                None
            }));
        });
        is_here.recv().unwrap();
        let seal = scope.spawn(|| {
            epoch::seal(
                machine,
                (term(), session(1)),
                node,
                &output,
                &disks,
                &mut dirty,
                &WarmPages::new(&memory, 4, 64),
                Staging::new(64),
                &full_copy,
                false,
            )
            .unwrap()
        });
        // All that is sealed is ready to be sent, and the host is to be told.
        let mut staging = until("nothing is sealed", || {
            node.unstage();
            node.spare()
        });
        let before = rounds();
        output.send(0, &mut Blank);
        disks.wrote(0, 512, b"in the next");
        thread::sleep(Duration::from_millis(200));
        let after = rounds();
        // What the host decides from here on, it decides for the epoch that has ended.
        output.permit(Permit {
            pass: Pass::Committed,
            through: Epoch(1),
            until: None,
        });
        let mut left = 0;
        while cable.recv(&mut [0; 1024]).is_ok() {
            left += 1;
        }
        let writes: Vec<u64> = staging.disk().writes().map(|write| write.offset).collect();
        drop(leave);
        drop(seal.join().unwrap());
        assert_eq!(before, after, "the guest ran before the host knew");
        assert_eq!(left, 1, "a frame of the next epoch left with this one's");
        assert_eq!(writes, [0]);
    });
}

#[test]
fn an_epoch_leaves_out_what_the_full_copy_will_read_and_what_changes_all_the_time() {
    let Some(tiny) = tiny() else { return };
    let world = world();
    let output = Output::new(1 << 20, vec![[2, 0, 0, 0, 0, 1]], Mode::Net, Arc::default());
    let disks = WriteLog::default();
    let mut paused = tiny.boot_with(&Ports::default()).unwrap();
    paused.start_tracking().unwrap();
    let memory = paused.memory().clone();
    let mut dirty = PageSet::new(&memory);
    let mut warm = WarmPages::new(&memory, 4, 64);
    let mut machine = Some(paused.resume().unwrap());
    let written: Vec<usize> = tiny.pages_of(0).collect();
    let mut seal = |warm: &WarmPages, all, reached| -> Vec<u32> {
        let full_copy = FullCopy::default();
        full_copy.reach(reached);
        if all {
            full_copy.finish();
        }
        let rounds = tiny.rounds(&memory, 0);
        until("the guest does not run", || {
            (tiny.rounds(&memory, 0) > rounds + 1).then_some(())
        });
        let (after, _) = epoch::seal(
            machine.take().unwrap(),
            (term(), session(1)),
            &world.node,
            &output,
            &disks,
            &mut dirty,
            warm,
            Staging::new(64),
            &full_copy,
            false,
        )
        .unwrap();
        let epoch::After::Runs(resumed) = after else {
            panic!("it was not to rest");
        };
        machine = Some(resumed);
        let staging = world.node.spare().unwrap();
        staging.page_numbers().to_vec()
    };
    let has = |staged: &[u32], page: usize| staged.contains(&u32::try_from(page).unwrap());

    let middle = written[written.len() / 2];
    let staged = seal(&warm, false, middle);
    assert!(
        written
            .iter()
            .all(|page| has(&staged, *page) == (*page < middle))
    );
    for _ in 0..3 {
        let staged = seal(&warm, false, memory.pages());
        assert!(written.iter().all(|page| has(&staged, *page)));
        warm.judge(&staged, &staged);
        if warm.pages().contains(middle) {
            break;
        }
    }
    let staged = seal(&warm, false, memory.pages());
    assert!(written.iter().all(|page| !has(&staged, *page)), "warm");
    let staged = seal(&warm, true, memory.pages());
    assert!(written.iter().all(|page| has(&staged, *page)), "whole");
}
