//! The writes of an epoch, and the journal that brings them into the images.

mod common;

use common::noise;
use proptest::collection::vec;
use proptest::prelude::*;
use romulus_checkpoint::disk::{
    Content, DiskEpoch, DiskFull, DiskWrite, Image, Journal, JournalError,
};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// What an epoch's writes make of a disk.
fn apply(epoch: &DiskEpoch, disk: u16, bytes: &mut [u8]) {
    let mut end = 0;
    for write in epoch.writes().filter(|write| write.disk == disk) {
        assert!(write.offset >= end, "they do not overlap");
        end = write.offset + write.content.length();
        let range = usize::try_from(write.offset).unwrap()..usize::try_from(end).unwrap();
        match write.content {
            Content::Data(data) => bytes[range].copy_from_slice(data),
            Content::Zero(_) => bytes[range].fill(0),
        }
    }
}

proptest! {
    #[test]
    fn an_epoch_ends_with_what_was_written_last(
        writes in vec((0u16..2, 0usize..64, 1usize..20, 0u8..3, any::<u8>()), 0..60),
    ) {
        let mut epoch = DiskEpoch::default();
        let mut disks = [[1u8; 100], [1u8; 100]];
        // Where nothing was written yet.
        let mut fresh = [[true; 100], [true; 100]];
        for (disk, at, length, kind, value) in writes {
            let (bytes, fresh) = (&mut disks[usize::from(disk)], &mut fresh[usize::from(disk)]);
            match kind {
                0 => {
                    epoch.zero(disk, at as u64, length as u64).unwrap();
                    bytes[at..at + length].fill(0);
                }
                1 => {
                    epoch.write(disk, at as u64, &vec![value; length]).unwrap();
                    bytes[at..at + length].fill(value);
                }
                _ => {
                    epoch.fill(disk, at as u64, &vec![value; length]).unwrap();
                    for at in (at..at + length).filter(|at| fresh[*at]) {
                        bytes[at] = value;
                    }
                }
            }
            fresh[at..at + length].fill(false);
        }
        for (disk, expected) in (0..).zip(disks) {
            let mut bytes = [1; 100];
            apply(&epoch, disk, &mut bytes);
            prop_assert_eq!(bytes, expected);
        }
    }
}

#[test]
fn writes_one_behind_the_other_become_one_and_repeated_ones_take_no_room() {
    let mut epoch = DiskEpoch::default();
    assert!(epoch.is_empty());
    for sector in 0..8 {
        epoch.write(0, sector * 512, &[1; 512]).unwrap();
    }
    assert_eq!(epoch.writes().count(), 1);
    let bytes = epoch.bytes();
    for round in 0..100 {
        epoch.write(0, 1024, &[round; 512]).unwrap();
    }
    assert_eq!((epoch.bytes(), epoch.writes().count()), (bytes, 1));
    assert!(!epoch.has_flush());
    epoch.flush();
    assert!(epoch.has_flush());
    epoch.clear();
    assert!(epoch.is_empty());
}

#[test]
fn an_epoch_is_bounded_and_keeps_what_it_has() {
    let mut epoch = DiskEpoch::new(10_000);
    epoch.write(0, 0, &[1; 8000]).unwrap();
    let full = Err(DiskFull(10_000));
    assert_eq!(epoch.write(0, 4000, &[2; 8000]), full);
    assert_eq!(epoch.fill(0, 4000, &[2; 8000]), full);
    epoch.write(0, 100, &[3; 7000]).unwrap();
    let mut offset = 1 << 20;
    while epoch.zero(0, offset, 1).is_ok() {
        offset += 2;
        assert!(epoch.bytes() <= 10_000);
    }
    let mut bytes = vec![9; 2 << 20];
    apply(&epoch, 0, &mut bytes);
    assert!(bytes[..100].iter().all(|byte| *byte == 1));
    assert!(bytes[100..7100].iter().all(|byte| *byte == 3));
    assert!(bytes[7100..8000].iter().all(|byte| *byte == 1));
    assert_eq!(bytes[8000], 9);
}

/// A file in memory: the thousands of syncs of these tests would keep a disk busy.
fn empty() -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    rustix::fs::memfd_create("test", flags).unwrap().into()
}

fn image(bytes: &[u8]) -> File {
    let file = empty();
    file.write_all_at(bytes, 0).unwrap();
    file
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.length().unwrap()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Epochs of writes to two disks, and what the disks are after each, from before the first on.
fn history() -> (Vec<DiskEpoch>, Vec<[Vec<u8>; 2]>) {
    let mut disks = [vec![7; 4000], vec![8; 4000]];
    let mut states = vec![disks.clone()];
    let mut epochs = Vec::new();
    for number in 1..=3u64 {
        let mut epoch = DiskEpoch::default();
        let mut data = [0; 90];
        noise(number, &mut data);
        epoch.write(0, number * 30, &data).unwrap();
        epoch.write(1, 1000 - number, &data[..50]).unwrap();
        epoch.zero(1, number * 1000, 500).unwrap();
        for (disk, bytes) in (0..).zip(&mut disks) {
            apply(&epoch, disk, bytes);
        }
        epochs.push(epoch);
        states.push(disks.clone());
    }
    (epochs, states)
}

fn filled(epochs: &[DiskEpoch]) -> Vec<u8> {
    let file = empty();
    let (mut journal, replayed) = Journal::open::<File>(file.try_clone().unwrap(), &[]).unwrap();
    assert_eq!(replayed.epochs, 0);
    for (number, epoch) in (11..).zip(epochs) {
        journal.append(number, epoch.writes()).unwrap();
    }
    journal.sync().unwrap();
    assert_eq!(journal.length(), file.length().unwrap());
    content(&file)
}

/// Opens a journal with these bytes over images as they were first. Says how many epochs they are at.
fn reopened(bytes: &[u8], states: &[[Vec<u8>; 2]]) -> u64 {
    let file = image(bytes);
    let images = [image(&states[0][0]), image(&states[0][1])];
    let (journal, replayed) = Journal::open(file.try_clone().unwrap(), &images).unwrap();
    let at = usize::try_from(replayed.epochs).unwrap();
    assert_eq!(
        [content(&images[0]), content(&images[1])],
        states[at],
        "a whole epoch or nothing of it"
    );
    let last = (replayed.epochs > 0).then_some(10 + replayed.epochs);
    assert_eq!(replayed.last, last);
    // It is empty now, and stays so.
    assert_eq!(journal.length(), 8);
    drop(journal);
    let (_, again) = Journal::open(file, &images).unwrap();
    assert_eq!((again.epochs, again.discarded), (0, 0));
    replayed.epochs
}

#[test]
fn a_journal_torn_at_any_byte_gives_whole_epochs() {
    let (epochs, states) = history();
    let bytes = filled(&epochs);
    let mut seen = Vec::new();
    for length in 0..=bytes.len() {
        seen.push(reopened(&bytes[..length], &states));
    }
    assert!(seen.is_sorted());
    seen.dedup();
    assert_eq!(seen, [0, 1, 2, 3]);
}

#[test]
fn a_damaged_byte_ends_the_journal_before_its_record() {
    let (epochs, states) = history();
    let bytes = filled(&epochs);
    for at in (8..bytes.len()).step_by(3) {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1 << (at % 8);
        assert!(reopened(&bytes, &states) < 3, "byte {at}");
    }
    // Records that never reached the disk, with later ones that did.
    let mut bytes = bytes;
    bytes[8..40].fill(0);
    assert_eq!(reopened(&bytes, &states), 0);
    assert_eq!(reopened(&[0; 8], &states), 0);
}

#[test]
fn epochs_reach_the_images_in_order_and_the_journal_is_used_again() {
    let (epochs, states) = history();
    let images = [image(&states[0][0]), image(&states[0][1])];
    let file = empty();
    let (mut journal, _) = Journal::open(file.try_clone().unwrap(), &images).unwrap();
    let now = || [content(&images[0]), content(&images[1])];
    journal.append(1, epochs[0].writes()).unwrap();
    assert_eq!(now(), states[0], "appended, not applied");
    journal.apply(&images).unwrap();
    assert_eq!(now(), states[1]);
    journal.append(2, epochs[1].writes()).unwrap();
    journal.settle(&images).unwrap();
    assert_eq!(now(), states[2]);
    assert_eq!(file.length().unwrap(), 8);
    journal.append(3, epochs[2].writes()).unwrap();
    journal.reset().unwrap();
    journal.apply(&images).unwrap();
    assert_eq!(now(), states[2], "dropped");
    journal.append(3, epochs[2].writes()).unwrap();
    drop(journal);
    let (_, replayed) = Journal::open(file, &images).unwrap();
    assert_eq!((replayed.epochs, replayed.last), (1, Some(3)));
    assert_eq!(now(), states[3]);
}

#[test]
fn long_writes_go_through_in_pieces() {
    let mut data = vec![0; 3_000_000];
    noise(4, &mut data);
    let images = [image(&vec![1; 4_000_000])];
    let (mut journal, _) = Journal::open(empty(), &images).unwrap();
    let write = |offset| DiskWrite {
        disk: 0,
        offset,
        content: Content::Data(&data),
    };
    journal
        .append(1, [write(5), write(700_000)].into_iter())
        .unwrap();
    journal.settle(&images).unwrap();
    let bytes = content(&images[0]);
    assert!(bytes[5..700_000] == data[..699_995]);
    assert!(bytes[700_000..3_700_000] == data);
    assert!(bytes[3_700_000..].iter().all(|byte| *byte == 1));
}

#[test]
fn a_journal_of_another_machine_changes_nothing() {
    let (epochs, states) = history();
    let bytes = filled(&epochs);
    let one = [image(&states[0][0])];
    let result = Journal::open(image(&bytes), &one);
    assert!(matches!(result, Err(JournalError::Disk { disk: 1, .. })));
    assert_eq!(content(&one[0]), states[0][0]);
    let short = [image(&states[0][0]), image(&[8; 1200])];
    let result = Journal::open(image(&bytes), &short);
    assert!(matches!(
        result,
        Err(JournalError::Disk { disk: 1, end: 1500 })
    ));
    assert_eq!(content(&short[0]), states[0][0]);

    let foreign = Journal::open::<File>(image(b"#!/bin/sh\n"), &[]);
    assert!(matches!(foreign, Err(JournalError::Foreign)));
    let newer = Journal::open::<File>(image(b"RMJF\x02\x00\x00\x00"), &[]);
    assert!(matches!(newer, Err(JournalError::Version(2))));
}

/// An image that fails after some writes.
struct Failing<'a>(&'a File, std::cell::Cell<u32>);

impl Failing<'_> {
    fn step(&self) -> std::io::Result<()> {
        let left = self.1.get().checked_sub(1);
        self.1
            .set(left.ok_or_else(|| std::io::Error::other("broken"))?);
        Ok(())
    }
}

impl Image for Failing<'_> {
    fn length(&self) -> std::io::Result<u64> {
        self.0.length()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
        Image::read_at(self.0, offset, into)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.step()?;
        Image::write_at(self.0, offset, bytes)
    }

    fn zero(&self, offset: u64, length: u64) -> std::io::Result<()> {
        self.step()?;
        self.0.zero(offset, length)
    }

    fn sync(&self) -> std::io::Result<()> {
        self.step()
    }
}

#[test]
fn an_image_that_fails_anywhere_is_brought_up_to_date_later() {
    let (epochs, states) = history();
    let bytes = filled(&epochs);
    // Nine writes and one sync of each image succeed at the most.
    for good in 0..12 {
        let images = [image(&states[0][0]), image(&states[0][1])];
        let failing = [0, 1].map(|disk| Failing(&images[disk], std::cell::Cell::new(good)));
        let file = image(&bytes);
        let first = Journal::open(file.try_clone().unwrap(), &failing);
        let whole = good >= 7;
        assert_eq!(first.is_ok(), whole, "{good}");
        if let Err(error) = first {
            assert!(matches!(error, JournalError::Image { .. }));
            let (_, replayed) = Journal::open(file, &images).unwrap();
            assert_eq!(replayed.epochs, 3);
        }
        assert_eq!([content(&images[0]), content(&images[1])], states[3]);
    }
}

#[test]
fn zeroes_are_zeroes() {
    let file = image(&[5; 4000]);
    file.zero(100, 0).unwrap();
    file.zero(1000, 2000).unwrap();
    let bytes = content(&file);
    assert_eq!(bytes.len(), 4000);
    for (at, byte) in bytes.iter().enumerate() {
        assert_eq!(*byte == 0, (1000..3000).contains(&at), "byte {at}");
    }
}

#[test]
fn what_is_withdrawn_reaches_no_image_and_what_is_committed_stays() {
    let (file, images) = (empty(), [image(&[0; 4096])]);
    let (mut journal, _) = Journal::open(file.try_clone().unwrap(), &images).unwrap();
    let epoch = |value: u8| {
        let mut epoch = DiskEpoch::default();
        epoch
            .write(0, u64::from(value) * 512, &[value; 512])
            .unwrap();
        epoch
    };
    journal.append(1, epoch(1).writes()).unwrap();
    journal.apply(&images).unwrap();
    // In the images already, or of another epoch: nothing happens.
    journal.withdraw(1).unwrap();
    journal.append(2, epoch(2).writes()).unwrap();
    journal.withdraw(1).unwrap();
    journal.sync().unwrap();
    journal.append(3, epoch(3).writes()).unwrap();
    journal.sync().unwrap();
    journal.withdraw(3).unwrap();
    journal.apply(&images).unwrap();
    let bytes = content(&images[0]);
    assert_eq!([512, 1024, 1536].map(|at| bytes[at]), [1, 2, 0]);
    // Nor does a crash bring it back.
    drop(journal);
    let (_, replayed) = Journal::open(file, &images).unwrap();
    assert_eq!(replayed.last, Some(2));
}
