//! A checkpoint that is offered to a replica.
//!
//! The replica is at epoch 1. The input is a row of parts, each a byte that says how it is offered, and its bytes with their
//! length in front. Whatever is refused must leave the replica at epoch 1, and ready for the right epoch 2.

use crate::{
    input::{Input, piece},
    memory::bounded,
};
use romulus_checkpoint::{
    Encoder, PAGE, Pages, Replica, Sealed, Staging,
    disk::{Content, DiskWrite},
};
use std::{cell::RefCell, convert::Infallible};

/// Pages of the machine.
const PAGES: usize = 6;
/// Length of its disk.
const DISK: u64 = 64 << 10;
/// Memory that an epoch may take.
const LIMIT: usize = 128 << 10;
/// Length of a section's header.
const HEADER: usize = 12;

/// The checksums of the part's sections are made right.
const SEALED: u8 = 1;
/// It is not offered as the part that it is, or not of epoch 2.
const WRONG_INDEX: u8 = 2;
const WRONG_EPOCH: u8 = 4;
/// The checkpoint ends after it with another digest, or another number of parts.
const WRONG_END: u8 = 8;

/// Guest memory.
#[derive(Clone, PartialEq)]
struct Ram(RefCell<Vec<[u8; PAGE]>>);

impl Ram {
    fn new() -> Self {
        Self(RefCell::new(vec![[0; PAGE]; PAGES]))
    }
}

impl Pages for Ram {
    fn count(&self) -> usize {
        PAGES
    }

    fn read(&self, page: usize, into: &mut [u8; PAGE]) {
        *into = self.0.borrow()[page];
    }

    fn write(&self, page: usize, from: &[u8; PAGE]) {
        self.0.borrow_mut()[page] = *from;
    }
}

/// Memory that is read only: a staging takes it by several threads.
struct Frozen<'a>(&'a [[u8; PAGE]]);

impl Pages for Frozen<'_> {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn read(&self, page: usize, into: &mut [u8; PAGE]) {
        *into = self.0[page];
    }

    fn write(&self, _: usize, _: &[u8; PAGE]) {
        unreachable!("it is only sent")
    }
}

/// An epoch as it is sent.
struct Sent {
    parts: Vec<Vec<u8>>,
    sealed: Sealed,
}

/// Sends what `pages` are about, and all of `state` and `writes`.
fn send(
    encoder: &mut Encoder,
    memory: &[[u8; PAGE]],
    pages: &[usize],
    state: &[u8],
    writes: &[DiskWrite<'_>],
) -> Sent {
    let mut staging = Staging::new(PAGES);
    staging.copy(&Frozen(memory), pages.iter().copied());
    staging.state().extend_from_slice(state);
    let disk = staging.disk();
    for write in writes {
        match write.content {
            Content::Data(bytes) => disk.write(write.disk, write.offset, bytes),
            Content::Zero(length) => disk.zero(write.disk, write.offset, length),
        }
        .expect("the disks' log is large");
    }
    if !writes.is_empty() {
        disk.flush();
    }
    staging.output().extend_from_slice(b"a frame that waits");
    let mut parts = Vec::new();
    let Ok(sealed) = encoder.encode(&staging, &mut |_, part: &[u8]| {
        parts.push(part.to_vec());
        Ok::<_, Infallible>(())
    });
    Sent { parts, sealed }
}

/// A machine's first two epochs.
struct Scene {
    memory: [Ram; 2],
    state: [Vec<u8>; 2],
    sent: [Sent; 2],
}

impl Scene {
    fn new() -> Self {
        let mut encoder = Encoder::new(PAGES, PAGES * PAGE);
        let all: Vec<usize> = (0..PAGES).collect();
        let first = Ram::new();
        {
            let mut pages = first.0.borrow_mut();
            noise(7, &mut pages[1]);
            pages[2][100..108].copy_from_slice(b"registra");
            pages[3].fill(b'x');
            noise(9, &mut pages[4]);
        }
        let state: Vec<u8> = (0..125).flat_map(|at| [at; 40]).collect();
        let write = |offset, content| DiskWrite {
            disk: 0,
            offset,
            content,
        };
        let text = [b'd'; 700];
        let one = send(
            &mut encoder,
            &first.0.borrow(),
            &all,
            &state,
            &[write(4096, Content::Data(&text))],
        );
        let second = first.clone();
        let mut later = state.clone();
        later[10] = 1;
        later.truncate(4500);
        {
            let mut pages = second.0.borrow_mut();
            pages[1][40] ^= 9;
            pages[2][3000] = 1;
            pages[3].fill(0);
            // Every few bytes: worth packing, too much for stretches.
            pages[4].iter_mut().step_by(17).for_each(|byte| *byte ^= 1);
            pages[5].fill(b'y');
        }
        let two = send(
            &mut encoder,
            &second.0.borrow(),
            &[1, 2, 3, 4, 5],
            &later,
            &[
                write(512, Content::Data(b"short")),
                write(8192, Content::Zero(4096)),
            ],
        );
        Self {
            memory: [first, second],
            state: [state, later],
            sent: [one, two],
        }
    }

    /// The replica at epoch 1.
    fn replica(&self) -> (Replica, Ram) {
        let mut replica = Replica::new(PAGES, LIMIT).with_disks(vec![DISK]);
        let memory = Ram::new();
        offer(&mut replica, 1, &self.sent[0]);
        assert_eq!(replica.apply(&memory), Some(1));
        (replica, memory)
    }

    /// Whether this is epoch `epoch` of the machine.
    fn check(&self, replica: &Replica, memory: &Ram, epoch: usize) {
        assert_eq!(replica.applied(), Some(epoch as u64));
        assert!(*memory == self.memory[epoch - 1], "memory of {epoch}");
        assert!(replica.state() == self.state[epoch - 1], "state of {epoch}");
    }
}

fn noise(seed: u64, into: &mut [u8]) {
    let mut state = seed;
    for byte in into {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state.to_le_bytes()[4];
    }
}

fn offer(replica: &mut Replica, epoch: u64, sent: &Sent) {
    for (index, part) in (0..).zip(&sent.parts) {
        replica.part(epoch, index, part).expect("what was encoded");
    }
    let (parts, digest) = (sent.sealed.parts, sent.sealed.digest);
    replica
        .verify(epoch, parts, digest)
        .expect("what was encoded");
}

thread_local! {
    static SCENE: Scene = Scene::new();
}

/// Offers a checkpoint.
///
/// # Panics
/// A promise is broken.
pub fn body(bytes: &[u8]) {
    SCENE.with(|scene| {
        let (mut replica, memory) = scene.replica();
        // The replica's own memory is bounded by its limit, up to what growing vectors leave behind.
        let verified = bounded(4 * LIMIT + 4 * bytes.len(), || {
            receive(&mut replica, &mut Input::new(bytes))
        });
        assert!(replica.pending_bytes() <= 2 * LIMIT);
        // Nothing is changed yet, whatever came.
        scene.check(&replica, &memory, 1);
        if verified {
            assert_eq!(replica.verified(), Some(2));
            check_writes(&replica);
            assert_eq!(replica.apply(&memory), Some(2));
            assert_eq!(replica.applied(), Some(2));
            check_writes(&replica);
            sent_on(&replica, &memory);
            return;
        }
        assert_eq!(replica.verified(), None);
        assert_eq!(replica.disk_writes().count(), 0);
        assert!(!replica.has_flush());
        assert_eq!(replica.apply(&memory), None);
        scene.check(&replica, &memory, 1);
        replica.discard_pending();
        offer(&mut replica, 2, &scene.sent[1]);
        scene.check(&replica, &memory, 1);
        assert_eq!(replica.apply(&memory), Some(2));
        scene.check(&replica, &memory, 2);
    });
}

/// Whether all parts and the end were taken.
fn receive(replica: &mut Replica, input: &mut Input<'_>) -> bool {
    let (mut parts, mut digest, mut wrong_end, mut broken) = (0, 0, false, false);
    while !input.is_empty() {
        let how = input.byte();
        let part = input.piece();
        let part = if how & SEALED != 0 {
            seal(part)
        } else {
            part.to_vec()
        };
        let index = parts + u32::from(how & WRONG_INDEX != 0);
        let epoch = 2 + u64::from(how & WRONG_EPOCH != 0);
        let result = replica.part(epoch, index, &part);
        if broken || how & (WRONG_INDEX | WRONG_EPOCH) != 0 {
            assert!(result.is_err(), "a part was taken that has no place here");
        }
        broken |= result.is_err();
        wrong_end |= how & WRONG_END != 0;
        parts += 1;
        digest = digest_with(digest, &part);
    }
    let result = if wrong_end {
        let wrong = replica.verify(2, parts, digest ^ 1);
        assert!(wrong.is_err());
        replica.verify(2, parts + 1, digest)
    } else {
        replica.verify(2, parts, digest)
    };
    assert_eq!(result.is_err(), broken || wrong_end, "{result:?}");
    result.is_ok()
}

/// The writes are the disk's.
fn check_writes(replica: &Replica) {
    for write in replica.disk_writes() {
        assert_eq!(write.disk, 0);
        let end = write.offset.checked_add(write.content.length());
        assert!(
            end.is_some_and(|end| end <= DISK),
            "a write beyond the disk"
        );
    }
}

/// What the replica holds is what another replica holds to which it is sent.
fn sent_on(replica: &Replica, memory: &Ram) {
    let mut encoder = Encoder::new(PAGES, PAGES * PAGE);
    let all: Vec<usize> = (0..PAGES).collect();
    let pages = memory.0.borrow();
    let sent = send(&mut encoder, &pages, &all, replica.state(), &[]);
    let (mut other, copy) = (Replica::new(PAGES, LIMIT), Ram::new());
    offer(&mut other, 1, &sent);
    assert_eq!(other.apply(&copy), Some(1));
    assert!(*copy.0.borrow() == *pages && other.state() == replica.state());
}

/// A part whose sections have the checksums that belong to their bytes.
pub(crate) fn seal(part: &[u8]) -> Vec<u8> {
    let mut part = part.to_vec();
    let mut rest = &mut part[..];
    while let Some((header, body)) = rest.split_first_chunk_mut::<HEADER>() {
        let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        // The last one has what is there.
        // A part is far shorter than 4 GiB.
        let length = length.min(u32::try_from(body.len()).unwrap_or(u32::MAX));
        header[4..8].copy_from_slice(&length.to_le_bytes());
        let (body, after) = body.split_at_mut(length as usize);
        let sum = crc32c::crc32c_append(crc32c::crc32c(&header[..8]), body);
        header[8..].copy_from_slice(&sum.to_le_bytes());
        rest = after;
    }
    part
}

/// An epoch's digest once this part is in it: of the headers of all sections.
fn digest_with(mut digest: u32, part: &[u8]) -> u32 {
    let mut rest = part;
    while let Some((header, behind)) = rest.split_first_chunk::<HEADER>() {
        digest = crc32c::crc32c_append(digest, header);
        let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        rest = behind.get(length..).unwrap_or_default();
    }
    digest
}

fn section(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("short").to_le_bytes();
    seal(&[&[kind, 1, 0, 0], &length[..], &[0; 4], body].concat())
}

/// The right epoch, and what is nearly right: one section each.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let part = |how: u8, bytes: &[u8]| [vec![how], piece(bytes)].concat();
    let mut seeds = Vec::new();
    SCENE.with(|scene| {
        let right = &scene.sent[1].parts;
        let all: Vec<u8> = right.iter().flat_map(|p| part(SEALED, p)).collect();
        seeds.push(("epoch".to_owned(), all));
    });
    // A page each: the form in its tag's low bits, how many pages are skipped above.
    let stretch = [5, 3, b'a', b'b', b'c', 2, 1, b'd', 0];
    let mut encoder = Encoder::new(1, PAGE);
    let packed = send(&mut encoder, &[[b'p'; PAGE]], &[0], &[], &[]);
    let pages: [(&str, Vec<u8>); 4] = [
        ("zeroes", vec![1 << 3, 2]),
        ("delta", [&[1][..], &stretch].concat()),
        ("sparse", [&[4 << 3 | 2][..], &stretch].concat()),
        ("far", vec![31 << 3, 200, 1, 0]),
    ];
    for (name, body) in pages {
        seeds.push((format!("page-{name}"), part(SEALED, &section(1, &body))));
    }
    seeds.push(("page-packed".into(), part(SEALED, &packed.parts[0])));
    let state = [vec![10], vec![1], stretch.to_vec()].concat();
    seeds.push(("state".into(), part(SEALED, &section(2, &state))));
    let disks: [(&str, Vec<u8>); 4] = [
        ("data", vec![0, 16, 3, 7, 7, 7]),
        ("zero", vec![2, 0, 0x80, 0x80, 4]),
        ("flush", vec![3]),
        ("beyond", vec![2, 0xff, 0xff, 3, 2]),
    ];
    for (name, body) in disks {
        seeds.push((format!("disk-{name}"), part(SEALED, &section(3, &body))));
    }
    let two = [section(3, &[3]), section(1, &[0, 0])].concat();
    for (name, how) in [
        ("two", 0),
        ("index", WRONG_INDEX),
        ("epoch-of-another", WRONG_EPOCH),
        ("end", WRONG_END),
    ] {
        let bytes = [part(0, &two), part(how, &section(3, &[3]))].concat();
        seeds.push((format!("offered-{name}"), bytes));
    }
    seeds.push(("kind".into(), part(SEALED, &section(9, &[1, 2]))));
    seeds.push(("empty".into(), part(0, &[])));
    seeds
}
