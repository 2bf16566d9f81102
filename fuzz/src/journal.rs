//! A journal of disk writes, as it may lie on the disk after anything.
//!
//! The input is a byte that says whether checksums are made right, and the file. What a journal does to the images is found
//! a second time by a reader of its own, which knows the format from its description alone.

use crate::memory::bounded;
use romulus_checkpoint::disk::{Content, DiskWrite, Image, Journal, JournalError, Replayed};
use rustix::fs::{MemfdFlags, memfd_create};
use std::{
    cell::RefCell,
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
};

/// Lengths of the machine's disks.
const DISKS: [usize; 2] = [4096, 1500];
/// A journal reads in pieces of this length.
const PIECE: usize = 1 << 20;

const FILE_HEADER: usize = 8;
const RECORD_HEADER: usize = 32;
const ITEM_HEADER: usize = 24;

/// A disk in memory. What lies outside of it must never be asked for.
#[derive(Clone, PartialEq)]
struct Disk(RefCell<Vec<u8>>);

impl Image for Disk {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.borrow().len() as u64)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(offset).expect("inside");
        into.copy_from_slice(&self.0.borrow()[at..at + into.len()]);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let at = usize::try_from(offset).expect("inside");
        self.0.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn zero(&self, offset: u64, length: u64) -> io::Result<()> {
        let at = usize::try_from(offset).expect("inside");
        let length = usize::try_from(length).expect("inside");
        self.0.borrow_mut()[at..at + length].fill(0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

fn disks() -> Vec<Disk> {
    let disk = |length| Disk(RefCell::new(vec![0xaa; length]));
    DISKS.map(disk).into()
}

fn file(bytes: &[u8]) -> File {
    let file = File::from(memfd_create("journal", MemfdFlags::CLOEXEC).expect("memory"));
    file.write_all_at(bytes, 0).expect("memory");
    file
}

fn content(file: &File) -> Vec<u8> {
    let length = file.metadata().expect("a file").size();
    let mut bytes = vec![0; usize::try_from(length).expect("short")];
    file.read_exact_at(&mut bytes, 0).expect("memory");
    bytes
}

/// Opens a journal.
///
/// # Panics
/// A promise is broken.
pub fn body(bytes: &[u8]) {
    let Some((how, bytes)) = bytes.split_first() else {
        return;
    };
    let bytes = if *how == 0 {
        bytes.to_vec()
    } else {
        seal(bytes)
    };
    let (file, images) = (file(&bytes), disks());
    let handle = file.try_clone().expect("a descriptor");
    let opened = bounded(3 * PIECE, || Journal::open(file, &images));
    let (expected, end) = replay(&bytes);
    assert!(images == expected, "the images are not what was written");
    match (opened, end) {
        (Ok((journal, replayed)), End::Applied(said)) => {
            assert_eq!(replayed, said);
            assert_eq!(content(&handle).len(), FILE_HEADER, "it is empty now");
            goes_on(journal, handle, &images);
        }
        (Err(error), End::Refused(kind)) => {
            assert_eq!(Refusal::of(&error), kind, "{error}");
            assert!(content(&handle) == bytes, "it is as it was");
        }
        (opened, end) => panic!("{opened:?} where {end:?} was expected"),
    }
}

/// A journal that was opened takes another epoch, and has it when it is opened again.
fn goes_on(mut journal: Journal, handle: File, images: &[Disk]) {
    let writes = [
        DiskWrite {
            disk: 1,
            offset: 3,
            content: Content::Data(b"more"),
        },
        DiskWrite {
            disk: 0,
            offset: 4000,
            content: Content::Zero(96),
        },
    ];
    journal.append(77, writes.into_iter()).expect("memory");
    drop(journal);
    let bytes = content(&handle);
    let (_, end) = replay(&bytes);
    let (_, replayed) = Journal::open(handle, images).expect("what was appended");
    assert_eq!(replayed.last, Some(77));
    assert_eq!(end, End::Applied(replayed));
    assert_eq!(images[1].0.borrow()[3..7], *b"more");
    assert_eq!(images[0].0.borrow()[4000..], [0; 96]);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Foreign,
    Version,
    Disk,
    Damaged,
    Other,
}

impl Refusal {
    fn of(error: &JournalError) -> Self {
        match error {
            JournalError::Foreign => Self::Foreign,
            JournalError::Version(_) => Self::Version,
            JournalError::Disk { .. } => Self::Disk,
            JournalError::Damaged(_) => Self::Damaged,
            _ => Self::Other,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Applied(Replayed),
    Refused(Refusal),
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("eight bytes"))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("four bytes"))
}

/// A record's epoch and body, if it counts.
fn record(rest: &[u8]) -> Option<(u64, &[u8])> {
    let (header, rest) = rest.split_at_checked(RECORD_HEADER)?;
    let body = rest.get(..usize::try_from(long(header, 16)).ok()?)?;
    let counts = header[..8] == *b"RMJR\x01\0\0\0"
        && word(header, 24) == crc32c::crc32c(body)
        && word(header, 28) == crc32c::crc32c(&header[..28]);
    counts.then(|| (long(header, 8), body))
}

/// One write: disk, offset, length, and its bytes unless they are zeroes.
type Write<'a> = (usize, u64, u64, Option<&'a [u8]>);

fn items(mut body: &[u8]) -> Result<Vec<Write<'_>>, Refusal> {
    let mut items = Vec::new();
    while !body.is_empty() {
        let (header, rest) = body.split_at_checked(ITEM_HEADER).ok_or(Refusal::Damaged)?;
        let disk = usize::from(u16::from_le_bytes([header[2], header[3]]));
        let (offset, length) = (long(header, 8), long(header, 16));
        let taken = match header[0] {
            1 => usize::try_from(length).unwrap_or(usize::MAX),
            2 => 0,
            _ => return Err(Refusal::Damaged),
        };
        let (data, rest) = rest.split_at_checked(taken).ok_or(Refusal::Damaged)?;
        // What the journal finds first, it says.
        let inside = DISKS
            .get(disk)
            .is_some_and(|size| offset.saturating_add(length) <= *size as u64);
        if !inside {
            return Err(Refusal::Disk);
        }
        items.push((disk, offset, length, (header[0] == 1).then_some(data)));
        body = rest;
    }
    Ok(items)
}

/// The images after a journal, and what came of it.
fn replay(bytes: &[u8]) -> (Vec<Disk>, End) {
    let images = disks();
    let new = bytes.len() < FILE_HEADER || bytes == [0; FILE_HEADER];
    if new {
        return (images, End::Applied(Replayed::default()));
    }
    if bytes[..FILE_HEADER] != *b"RMJF\x01\0\0\0" {
        let known = bytes[..4] == *b"RMJF" && bytes[6..8] == [0, 0];
        let kind = if known {
            Refusal::Version
        } else {
            Refusal::Foreign
        };
        return (images, End::Refused(kind));
    }
    let mut rest = &bytes[FILE_HEADER..];
    let mut replayed = Replayed::default();
    while let Some((epoch, body)) = record(rest) {
        rest = &rest[RECORD_HEADER + body.len()..];
        let items = match items(body) {
            Ok(items) => items,
            Err(kind) => return (images, End::Refused(kind)),
        };
        for (disk, offset, length, data) in items {
            match data {
                Some(data) => images[disk].write_at(offset, data),
                None => images[disk].zero(offset, length),
            }
            .expect("inside");
        }
        replayed.epochs += 1;
        replayed.last = Some(epoch);
    }
    replayed.discarded = rest.len() as u64;
    (images, End::Applied(replayed))
}

/// A journal whose records have the checksums that belong to their bytes. The last one ends where the file does.
pub(crate) fn seal(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let Some((_, mut rest)) = bytes.split_at_mut_checked(FILE_HEADER) else {
        return bytes;
    };
    while let Some((header, body)) = rest.split_first_chunk_mut::<RECORD_HEADER>() {
        let length = usize::try_from(long(header, 16)).unwrap_or(usize::MAX);
        let length = length.min(body.len());
        header[16..24].copy_from_slice(&(length as u64).to_le_bytes());
        let (body, after) = body.split_at_mut(length);
        header[24..28].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
        let own = crc32c::crc32c(&header[..28]);
        header[28..].copy_from_slice(&own.to_le_bytes());
        rest = after;
    }
    bytes
}

/// Journals as they are written, cut off and about other disks.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let write = |disk, offset, content| DiskWrite {
        disk,
        offset,
        content,
    };
    let written = |epochs: &[&[DiskWrite<'static>]]| {
        let file = file(&[]);
        let handle = file.try_clone().expect("a descriptor");
        let (mut journal, _) = Journal::open(file, &disks()).expect("a new one");
        for (epoch, writes) in (5..).zip(epochs) {
            journal
                .append(epoch, writes.iter().copied())
                .expect("memory");
        }
        content(&handle)
    };
    let one: &[_] = &[
        write(0, 512, Content::Data(b"one")),
        write(1, 0, Content::Zero(1500)),
    ];
    let two: &[_] = &[
        write(0, 512, Content::Data(b"two")),
        write(0, 0, Content::Data(&[7; 40])),
    ];
    let both = written(&[one, two]);
    let mut later = both.clone();
    later[4] = 2;
    let mut damaged = both.clone();
    damaged[60] ^= 1;
    let journals: [(&str, Vec<u8>); 11] = [
        ("none", vec![]),
        ("begun", vec![0; FILE_HEADER]),
        ("empty", written(&[])),
        ("one", written(&[one])),
        ("nothing", written(&[&[], one])),
        ("cut", both[..both.len() - 9].to_vec()),
        ("both", both),
        ("later", later),
        ("damaged", damaged),
        ("disk", written(&[one, &[write(2, 0, Content::Data(b"x"))]])),
        ("beyond", written(&[&[write(1, 1499, Content::Zero(2))]])),
    ];
    let mut seeds = Vec::new();
    for (name, bytes) in journals {
        for (how, kind) in [(0, "as-is"), (1, "sealed")] {
            let seed = [vec![how], bytes.clone()].concat();
            seeds.push((format!("{name}-{kind}"), seed));
        }
    }
    seeds
}
