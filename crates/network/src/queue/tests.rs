use super::{Amount, CHUNK, FRAME_MAX, Full, OVERHEAD, OutputQueue};
use proptest::prelude::*;
use std::{cell::Cell, collections::VecDeque, io, time::Duration};

/// Pushes a frame whose bytes tell which one it is.
fn push(queue: &mut OutputQueue, epoch: u64, now: u64, length: usize, mark: u8) {
    queue
        .push(0, epoch, now, length, |bytes| bytes.fill(mark))
        .unwrap();
}

/// Releases all that epochs up to `epoch` produced and returns the first byte of each frame.
fn release(queue: &mut OutputQueue, epoch: u64) -> Vec<u8> {
    let mut out = Vec::new();
    queue.release(
        || 0,
        |of, _| of <= epoch,
        |_, bytes| {
            out.push(bytes[0]);
            Ok(())
        },
    );
    out
}

#[test]
fn only_what_may_leave_leaves_and_in_order() {
    let mut queue = OutputQueue::default();
    for (mark, epoch) in [(1, 1), (2, 1), (3, 2), (4, 3)] {
        push(&mut queue, epoch, 0, 100, mark);
    }
    assert_eq!(release(&mut queue, 0), []);
    assert_eq!(release(&mut queue, 2), [1, 2, 3]);
    assert_eq!(queue.oldest(), Some((3, 0)));
    assert_eq!(release(&mut queue, 3), [4]);
    assert!(queue.is_empty());
}

#[test]
fn the_first_no_ends_it_even_if_later_frames_might_leave() {
    let mut queue = OutputQueue::default();
    push(&mut queue, 1, 0, 60, 1);
    push(&mut queue, 2, 0, 60, 2);
    let mut asked = Vec::new();
    let released = queue.release(
        || 5,
        |epoch, now| {
            asked.push((epoch, now));
            epoch == 2
        },
        |_, _| panic!("nothing may leave"),
    );
    assert_eq!(released.frames, 0);
    assert_eq!(asked, [(1, 5)]);
    assert_eq!(queue.len(), 2);
}

#[test]
fn it_asks_again_before_each_frame_with_the_time_of_that_moment() {
    let mut queue = OutputQueue::default();
    for mark in 0..10 {
        push(&mut queue, 1, 0, 60, mark);
    }
    // Writing takes time, and the permission ends meanwhile.
    let time = Cell::new(0);
    let released = queue.release(
        || time.get(),
        |_, now| now < 30,
        |_, _| {
            time.set(time.get() + 10);
            Ok(())
        },
    );
    assert_eq!(released.frames, 3);
    assert_eq!(released.longest, Duration::from_nanos(20));
    assert_eq!(queue.len(), 7);
}

#[test]
fn cards_and_bytes_come_out_as_they_went_in() {
    let mut queue = OutputQueue::default();
    let frames: Vec<(usize, Vec<u8>)> = (0..200_u8)
        .map(|i| (usize::from(i % 3), vec![i; 12 + usize::from(i) * 400]))
        .collect();
    for (card, frame) in &frames {
        (queue.push(*card, 1, 0, frame.len(), |to| to.copy_from_slice(frame))).unwrap();
    }
    let held: Vec<_> = (queue.frames())
        .map(|held| (held.card, held.bytes.to_vec()))
        .collect();
    assert_eq!(held, frames);
    let mut out = Vec::new();
    let released = queue.release(
        || 0,
        |_, _| true,
        |card, bytes| {
            out.push((card, bytes.to_vec()));
            Ok(())
        },
    );
    assert_eq!(out, frames);
    let bytes: usize = frames.iter().map(|(_, frame)| frame.len()).sum();
    assert_eq!(
        (released.frames, released.bytes),
        (200, u64::try_from(bytes).unwrap())
    );
}

#[test]
fn what_the_network_does_not_take_is_lost_and_counted() {
    let mut queue = OutputQueue::default();
    for mark in 0..4 {
        push(&mut queue, 1, 0, 60, mark);
    }
    let mut tried = Vec::new();
    let mut interrupted = false;
    let released = queue.release(
        || 0,
        |_, _| true,
        |_, bytes| {
            tried.push(bytes[0]);
            match bytes[0] {
                1 => Err(io::ErrorKind::WouldBlock.into()),
                2 => Err(io::Error::from_raw_os_error(5)),
                3 if !interrupted => {
                    interrupted = true;
                    Err(io::ErrorKind::Interrupted.into())
                }
                _ => Ok(()),
            }
        },
    );
    assert_eq!(tried, [0, 1, 2, 3, 3]);
    assert_eq!((released.frames, released.dropped), (2, 2));
    assert_eq!(
        queue.counters().dropped,
        Amount {
            frames: 2,
            bytes: 120
        }
    );
    assert_eq!(queue.counters().released.frames, 2);
    assert_eq!(queue.delays().count(), 2);
    assert!(queue.is_empty());
}

#[test]
fn an_interrupted_frame_needs_permission_again() {
    let mut queue = OutputQueue::default();
    push(&mut queue, 1, 0, 60, 1);
    let mut asked = 0;
    let released = queue.release(
        || 0,
        |_, _| {
            asked += 1;
            asked == 1
        },
        |_, _| Err(io::ErrorKind::Interrupted.into()),
    );
    assert_eq!((asked, released.frames, released.dropped), (2, 0, 0));
    assert_eq!(queue.len(), 1);
}

#[test]
fn full_changes_nothing() {
    let mut queue = OutputQueue::new(2 * (100 + OVERHEAD));
    push(&mut queue, 1, 0, 100, 1);
    push(&mut queue, 1, 0, 100, 2);
    let held = 2 * (100 + OVERHEAD);
    let full = queue.push(0, 1, 0, 0, |_| panic!("there is no room"));
    assert_eq!(
        full,
        Err(Full {
            length: 0,
            held,
            limit: held
        })
    );
    assert_eq!(queue.counters().full, 1);
    assert_eq!(release(&mut queue, 1), [1, 2]);
    push(&mut queue, 1, 0, 100, 3);
    assert_eq!(release(&mut queue, 1), [3]);
}

#[test]
fn any_length_is_answered() {
    let mut queue = OutputQueue::new(usize::MAX);
    for length in [FRAME_MAX + 1, usize::MAX - 1, usize::MAX] {
        assert!(queue.push(0, 1, 0, length, |_| panic!("too long")).is_err());
    }
    push(&mut queue, 1, 0, 0, 0);
    push(&mut queue, 1, 0, FRAME_MAX, 7);
    assert_eq!(queue.bytes(), FRAME_MAX);
    let mut lengths = Vec::new();
    let _ = queue.release(
        || 0,
        |_, _| true,
        |_, bytes| {
            lengths.push(bytes.len());
            Ok(())
        },
    );
    assert_eq!(lengths, [0, FRAME_MAX]);
}

#[test]
fn released_through_is_what_really_left() {
    let mut queue = OutputQueue::default();
    assert_eq!(queue.released_through(0), 0);
    assert_eq!(queue.released_through(1), 0);
    assert_eq!(queue.released_through(8), 7);
    push(&mut queue, 5, 0, 60, 1);
    push(&mut queue, 7, 0, 60, 2);
    assert_eq!(queue.released_through(8), 4);
    assert_eq!(release(&mut queue, 5), [1]);
    assert_eq!(queue.released_through(8), 6);
    assert_eq!(release(&mut queue, 7), [2]);
    assert_eq!(queue.released_through(8), 7);
    // What the running epoch itself holds does not matter to those before it.
    push(&mut queue, 8, 0, 60, 3);
    assert_eq!(queue.released_through(8), 7);
}

#[test]
fn epochs_do_not_fall() {
    let mut queue = OutputQueue::default();
    push(&mut queue, 5, 0, 60, 1);
    push(&mut queue, 3, 0, 60, 2);
    assert!(queue.holds(5) && !queue.holds(3));
    assert_eq!(release(&mut queue, 3), []);
    assert_eq!(release(&mut queue, 5), [1, 2]);
    push(&mut queue, 3, 0, 60, 3);
    assert!(queue.holds(3));
}

#[test]
fn a_new_term_counts_older_output_as_its_first_epochs() {
    let mut queue = OutputQueue::default();
    push(&mut queue, 40, 0, 60, 1);
    push(&mut queue, 41, 0, 60, 2);
    queue.begin_term();
    push(&mut queue, 1, 0, 60, 3);
    push(&mut queue, 2, 0, 60, 4);
    assert_eq!(queue.released_through(2), 0);
    assert_eq!(queue.frames_of(1).count(), 3);
    assert_eq!(release(&mut queue, 1), [1, 2, 3]);
    assert_eq!(queue.released_through(3), 1);
}

#[test]
fn a_checkpoint_finds_the_frames_of_its_epoch() {
    let mut queue = OutputQueue::default();
    for (mark, epoch) in [(1, 2), (2, 2), (3, 4), (4, 5)] {
        // So long that each begins a chunk.
        push(&mut queue, epoch, u64::from(mark), CHUNK - 5, mark);
    }
    let marks = |queue: &OutputQueue, epoch| -> Vec<(u8, u64)> {
        (queue.frames_of(epoch))
            .map(|held| {
                assert_eq!(held.epoch, epoch);
                (held.bytes[0], held.produced)
            })
            .collect()
    };
    assert_eq!(marks(&queue, 1), []);
    assert_eq!(marks(&queue, 2), [(1, 1), (2, 2)]);
    assert_eq!(marks(&queue, 3), []);
    assert_eq!(marks(&queue, 5), [(4, 4)]);
    assert_eq!(release(&mut queue, 2), [1, 2]);
    assert_eq!(marks(&queue, 4), [(3, 3)]);
    assert!(queue.holds(4) && !queue.holds(3) && !queue.holds(2));
}

#[test]
fn discarded_is_gone_and_counted() {
    let mut queue = OutputQueue::default();
    for (mark, epoch) in [(1, 1), (2, 2), (3, 3)] {
        push(&mut queue, epoch, 0, 60, mark);
    }
    let gone = queue.discard_through(2);
    assert_eq!((gone.frames, gone.bytes), (2, 120));
    assert_eq!(queue.oldest(), Some((3, 0)));
    let gone = queue.discard();
    assert_eq!((gone.frames, gone.bytes), (1, 60));
    assert!(queue.is_empty());
    assert_eq!((queue.bytes(), queue.oldest()), (0, None));
    assert_eq!(queue.counters().discarded.frames, 3);
    assert_eq!(release(&mut queue, 9), []);
}

#[test]
fn how_long_frames_were_held_is_recorded() {
    let mut queue = OutputQueue::default();
    push(&mut queue, 1, 1_000, 60, 1);
    push(&mut queue, 1, 3_000, 60, 2);
    // A clock that stands behind is no reason for a huge delay.
    push(&mut queue, 1, 9_000, 60, 3);
    let released = queue.release(|| 4_000, |_, _| true, |_, _| Ok(()));
    assert_eq!(released.longest, Duration::from_micros(3));
    assert_eq!(queue.delays().max(), Duration::from_micros(3));
    assert_eq!(queue.delays().quantile(0.0), Duration::ZERO);
    queue.clear_delays();
    assert_eq!(queue.delays().count(), 0);
}

#[test]
fn the_steady_state_takes_no_new_memory() {
    let mut queue = OutputQueue::default();
    let mut pushed = 0_u64;
    let mut epoch = |queue: &mut OutputQueue, epoch| {
        // Never empty: one epoch is always held behind the running one.
        for _ in 0..300 {
            pushed += 1;
            let length = 60 + usize::try_from(pushed * 7919 % 1500).unwrap();
            push(queue, epoch, 0, length, 0);
        }
        release(queue, epoch - 1);
    };
    for number in 1..20 {
        epoch(&mut queue, number);
    }
    let (memory, frames) = (queue.memory(), queue.frames.capacity());
    for number in 20..120 {
        epoch(&mut queue, number);
    }
    assert_eq!((queue.memory(), queue.frames.capacity()), (memory, frames));
    assert!(
        memory <= 5 * CHUNK,
        "{memory} bytes for 600 frames of 810 on average"
    );
}

#[derive(Clone, Debug)]
enum Step {
    Push {
        card: usize,
        length: usize,
    },
    NextEpoch,
    NewTerm,
    /// Let this many frames of epochs up to the running one less `behind` leave.
    Release {
        behind: u64,
        at_most: usize,
    },
    DiscardThrough {
        behind: u64,
    },
    Discard,
}

fn step() -> impl Strategy<Value = Step> {
    let length = prop_oneof![0..2000_usize, 60_000..70_000_usize, CHUNK - 2..=CHUNK];
    prop_oneof![
        12 => (0..3_usize, length).prop_map(|(card, length)| Step::Push { card, length }),
        4 => Just(Step::NextEpoch),
        1 => Just(Step::NewTerm),
        4 => (0..3_u64, 0..30_usize)
            .prop_map(|(behind, at_most)| Step::Release { behind, at_most }),
        1 => (0..3_u64).prop_map(|behind| Step::DiscardThrough { behind }),
        1 => Just(Step::Discard),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    // Whatever happens, the queue is as a plain list of frames would be.
    #[test]
    fn as_a_plain_list(steps in proptest::collection::vec(step(), 1..120)) {
        const LIMIT: usize = 1 << 20;
        let mut queue = OutputQueue::new(LIMIT);
        let mut list: VecDeque<(usize, u64, Vec<u8>)> = VecDeque::new();
        let (mut epoch, mut mark) = (1_u64, 0_u8);
        for step in steps {
            match step {
                Step::Push { card, length } => {
                    mark = mark.wrapping_add(1);
                    let counted: usize = list.iter().map(|f| f.2.len() + OVERHEAD).sum();
                    let fits = counted + length + OVERHEAD <= LIMIT;
                    let pushed = queue.push(card, epoch, 0, length, |to| to.fill(mark));
                    prop_assert_eq!(pushed.is_ok(), fits);
                    if fits {
                        list.push_back((card, epoch, vec![mark; length]));
                    }
                }
                Step::NextEpoch => epoch += 1,
                Step::NewTerm => {
                    epoch = 1;
                    queue.begin_term();
                    for frame in &mut list {
                        frame.1 = 1;
                    }
                }
                Step::Release { behind, at_most } => {
                    let through = epoch.saturating_sub(behind);
                    let mut left = at_most;
                    let mut out = Vec::new();
                    queue.release(
                        || 0,
                        |of, _| {
                            let may = of <= through && left > 0;
                            left = left.saturating_sub(1);
                            may
                        },
                        |card, bytes| {
                            out.push((card, bytes.to_vec()));
                            Ok(())
                        },
                    );
                    let due = (list.iter().take(at_most))
                        .take_while(|frame| frame.1 <= through)
                        .count();
                    let due: Vec<_> = (list.drain(..due)).map(|f| (f.0, f.2)).collect();
                    prop_assert_eq!(out, due);
                }
                Step::DiscardThrough { behind } => {
                    let through = epoch.saturating_sub(behind);
                    queue.discard_through(through);
                    list.retain(|frame| frame.1 > through);
                }
                Step::Discard => {
                    queue.discard();
                    list.clear();
                }
            }
            prop_assert_eq!(queue.len(), list.len());
            prop_assert_eq!(queue.bytes(), list.iter().map(|f| f.2.len()).sum::<usize>());
            prop_assert!(queue.released_through(epoch) < epoch);
            prop_assert!(list.iter().all(|f| f.1 > queue.released_through(epoch)));
            let same = (queue.frames().zip(&list))
                .all(|(held, f)| (held.card, held.epoch, held.bytes) == (f.0, f.1, &f.2[..]));
            prop_assert!(same);
            for of in 0..=epoch {
                prop_assert_eq!(queue.holds(of), list.iter().any(|f| f.1 == of));
            }
            // Memory is that of what is held, or was: at most twice the limit, as no two chunks in
            // a row are together less than full.
            prop_assert!(queue.memory() <= 2 * LIMIT + 2 * CHUNK);
        }
        let counters = queue.counters();
        prop_assert_eq!(
            counters.pushed.frames,
            counters.released.frames + counters.discarded.frames + queue.len() as u64
        );
    }
}
