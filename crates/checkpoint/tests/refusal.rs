//! What is not exactly what the primary sent is refused, and the replica stays what it was.

mod common;

use common::{Backup, Life, Primary, Touch};
use proptest::collection::vec;
use proptest::prelude::*;
use romulus_checkpoint::{PART_MAX, Replica, ReplicaError, Sealed};

const PAGES: usize = 200;

/// What a primary sent in two epochs: several parts each.
struct Sent {
    primary: Primary,
    first: (Vec<Vec<u8>>, Sealed),
    second: (Vec<Vec<u8>>, Sealed),
    between: Backup,
}

/// A backup at epoch 1, and the parts of epoch 2.
struct Scene {
    primary: &'static Primary,
    backup: Backup,
    parts: Vec<Vec<u8>>,
    sealed: Sealed,
}

thread_local! {
    // Made once a test: it takes longer than the test's cases.
    static SENT: &'static Sent = Box::leak(Box::new(sent()));
}

fn sent() -> Sent {
    let mut primary = Primary::new(PAGES, PAGES);
    let life = |seed: u64| Life {
        pages: (0..PAGES)
            .map(|page| match page % 4 {
                0 => (page, Touch::Bytes(page, seed.to_le_bytes().to_vec())),
                _ => (page, Touch::Noise(seed + page as u64)),
            })
            .collect(),
        bulk: 0..PAGES / 2,
        state: (9000, usize::try_from(seed).unwrap()),
        disk: vec![(seed * 512, 40_000, seed), (0, 0, 0)],
        output: 3000,
    };
    let first = primary.live(&life(10));
    let mut between = Backup::new(PAGES);
    between.receive(1, &first.0, &first.1).unwrap();
    between.apply().unwrap();
    assert!(between.is(&primary));
    let second = primary.live(&life(77));
    assert!(second.0.len() >= 3, "there is something to mix up");
    Sent {
        primary,
        first,
        second,
        between,
    }
}

impl Scene {
    fn new() -> Self {
        let sent = SENT.with(|sent| *sent);
        let mut backup = Backup::new(PAGES);
        backup.receive(1, &sent.first.0, &sent.first.1).unwrap();
        backup.apply().unwrap();
        assert!(backup.memory == sent.between.memory);
        Self {
            primary: &sent.primary,
            backup,
            parts: sent.second.0.clone(),
            sealed: sent.second.1,
        }
    }

    /// `parts` are refused, nothing has changed, and afterwards the right ones are taken.
    fn refuses(&mut self, parts: &[Vec<u8>], sealed: &Sealed) -> Result<(), TestCaseError> {
        let memory = self.backup.memory.clone();
        let state = self.backup.replica.state().to_vec();
        let result = self.backup.receive(2, parts, sealed);
        prop_assert!(result.is_err());
        prop_assert_eq!(self.backup.replica.verified(), None);
        prop_assert_eq!(self.backup.apply(), None);
        prop_assert_eq!(self.backup.replica.disk_writes().count(), 0);
        prop_assert!(!self.backup.replica.has_flush());
        prop_assert!(self.backup.memory == memory);
        prop_assert_eq!(self.backup.replica.state(), state);
        prop_assert_eq!(self.backup.replica.applied(), Some(1));
        // It is spoiled until it is discarded.
        let again = self.backup.receive(2, &self.parts, &self.sealed);
        prop_assert!(again.is_err());
        self.backup.replica.discard_pending();
        let right = self.backup.receive(2, &self.parts, &self.sealed);
        prop_assert_eq!(right, Ok(()));
        prop_assert_eq!(self.backup.apply(), Some(2));
        prop_assert!(self.backup.is(self.primary));
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_truncation_is_refused(part: prop::sample::Index, length: prop::sample::Index) {
        let mut scene = Scene::new();
        let mut parts = scene.parts.clone();
        let part = part.get_mut(&mut parts);
        part.truncate(length.index(part.len()));
        let sealed = scene.sealed;
        scene.refuses(&parts, &sealed)?;
    }

    #[test]
    fn any_flipped_bit_is_refused(
        part: prop::sample::Index,
        at: prop::sample::Index,
        early in any::<bool>(),
        bit in 0u8..8,
    ) {
        let mut scene = Scene::new();
        let mut parts = scene.parts.clone();
        let part = part.get_mut(&mut parts);
        // Headers are where most can go wrong.
        let length = if early { 16 } else { part.len() };
        part[at.index(length)] ^= 1 << bit;
        let sealed = scene.sealed;
        scene.refuses(&parts, &sealed)?;
    }

    #[test]
    fn a_part_missing_doubled_or_moved_is_refused(
        one: prop::sample::Index,
        other: prop::sample::Index,
        how in 0..3,
    ) {
        let mut scene = Scene::new();
        let mut parts = scene.parts.clone();
        let (one, other) = (one.index(parts.len()), other.index(parts.len()));
        match how {
            0 => drop(parts.remove(one)),
            1 => parts.insert(other, parts[one].clone()),
            _ => {
                prop_assume!(one != other);
                parts.swap(one, other);
            }
        }
        let sealed = scene.sealed;
        scene.refuses(&parts, &sealed)?;
    }

    #[test]
    fn a_wrong_end_is_refused(parts: u32, digest: u32) {
        let mut scene = Scene::new();
        let right = scene.sealed;
        prop_assume!(parts != right.parts && digest != right.digest);
        let all = scene.parts.clone();
        scene.refuses(&all, &Sealed { parts, ..right })?;
        let mut scene = Scene::new();
        scene.refuses(&all, &Sealed { digest, ..right })?;
    }

    #[test]
    fn noise_never_panics_nor_takes_more_than_the_limit(
        bodies in vec((0u8..5, 0u8..3, vec(any::<u8>(), 0..300)), 1..40),
        sealed in any::<bool>(),
    ) {
        const LIMIT: usize = 1 << 16;
        let mut replica = Replica::new(PAGES, LIMIT).with_disks(vec![1 << 40, 4096]);
        let memory = common::Ram::new(PAGES);
        for (kind, version, body) in bodies {
            let part = if sealed { section(kind, version, &body) } else { body };
            if replica.part(1, 0, &part).is_ok() {
                prop_assert_eq!(replica.verify(1, 1, digest(&part)), Ok(()));
                prop_assert_eq!(replica.apply(&memory), Some(1));
                replica.restart();
            }
            prop_assert!(replica.pending_bytes() <= 3 * LIMIT);
            replica.discard_pending();
        }
    }
}

/// A section with a right checksum, as the format says.
fn section(kind: u8, version: u8, body: &[u8]) -> Vec<u8> {
    let mut part = vec![kind, version, 0, 0];
    part.extend_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
    let sum = crc32c::crc32c_append(crc32c::crc32c(&part), body);
    part.extend_from_slice(&sum.to_le_bytes());
    part.extend_from_slice(body);
    part
}

/// The digest of an epoch of one part, as the format says: of its sections' headers.
fn digest(part: &[u8]) -> u32 {
    let (mut rest, mut digest) = (part, 0);
    while let Some((header, behind)) = rest.split_first_chunk::<12>() {
        digest = crc32c::crc32c_append(digest, header);
        let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        rest = &behind[usize::try_from(length).unwrap()..];
    }
    digest
}

fn refusal(kind: u8, version: u8, body: &[u8]) -> ReplicaError {
    let mut replica = Replica::new(10, 8 << 12).with_disks(vec![4096]);
    replica
        .part(1, 0, &section(kind, version, body))
        .unwrap_err()
}

#[test]
fn another_version_or_kind_is_named() {
    let version = ReplicaError::Version {
        kind: 1,
        version: 2,
    };
    assert_eq!(refusal(1, 2, &[]), version);
    assert_eq!(refusal(9, 1, &[]), ReplicaError::Kind(9));
}

#[test]
fn pages_and_disks_that_are_not_there_are_refused() {
    // A range of 11 zero pages; one zero page number 10; one at a page number of 64 bits.
    let page = |page| ReplicaError::Page { page, pages: 10 };
    assert_eq!(refusal(1, 1, &[0, 10]), page(10));
    assert_eq!(refusal(1, 1, &[10 << 3, 0]), page(10));
    let mut far = vec![31 << 3];
    far.extend_from_slice(&[0xff; 9]);
    far.extend_from_slice(&[1, 0]);
    assert_eq!(refusal(1, 1, &far), page(u64::MAX));
    // Zeroes at the disk's end and beyond; another disk.
    assert_eq!(
        refusal(3, 1, &[2, 0x80, 0x20, 1]),
        ReplicaError::Disk { disk: 0, end: 4097 }
    );
    assert_eq!(
        refusal(3, 1, &[2 | 1 << 2, 0, 1]),
        ReplicaError::Disk { disk: 1, end: 1 }
    );
}

#[test]
fn little_that_unpacks_to_much_is_bounded() {
    // A page of zeroes in LZ4, 9 times: 36 KiB where 32 are allowed.
    let packed = lz4_flex::block::compress(&[0; 4096]);
    let mut body = Vec::new();
    for _ in 0..9 {
        body.push(4);
        body.push(u8::try_from(packed.len()).unwrap());
        body.extend_from_slice(&packed);
    }
    assert_eq!(refusal(1, 1, &body), ReplicaError::Memory(8 << 12));
    // A state of 1 TiB.
    assert_eq!(
        refusal(2, 1, &[0x80, 0x80, 0x80, 0x80, 0x80, 0x20]),
        ReplicaError::Memory(8 << 12)
    );
    // Held output, with nothing to make it short.
    assert_eq!(
        refusal(4, 1, &vec![1; (8 << 12) + 1]),
        ReplicaError::Memory(8 << 12)
    );
    // A disk write that claims to unpack to more than it does.
    let mut replica = Replica::new(1, 1 << 20).with_disks(vec![1 << 40]);
    let body = [1, 0, 0x80, 0x80, 0x80, 0x80, 0x20, 1, 0];
    assert_eq!(
        replica.part(1, 0, &section(3, 1, &body)),
        Err(ReplicaError::Memory(1 << 20))
    );
}

#[test]
fn parts_out_of_turn_are_refused() {
    let mut replica = Replica::new(10, 1 << 20);
    let part = section(1, 1, &[0, 9]);
    let digest = digest(&part);
    let first = |replica: &mut Replica| {
        replica.discard_pending();
        replica.part(5, 0, &part)
    };
    assert_eq!(first(&mut replica), Ok(()));
    let other = ReplicaError::Epoch {
        got: 6,
        expected: 5,
    };
    assert_eq!(replica.part(6, 1, &part), Err(other));
    assert_eq!(first(&mut replica), Ok(()));
    let early = ReplicaError::Order {
        got: 2,
        expected: 1,
    };
    assert_eq!(replica.part(5, 2, &part), Err(early));
    assert_eq!(replica.part(5, 1, &part), Err(ReplicaError::Broken));
    assert_eq!(first(&mut replica), Ok(()));
    assert_eq!(replica.part(5, 1, &[]), Err(ReplicaError::Length(0)));
    assert_eq!(first(&mut replica), Ok(()));
    let long = vec![0; PART_MAX + 1];
    assert_eq!(
        replica.part(5, 1, &long),
        Err(ReplicaError::Length(long.len()))
    );
    assert_eq!(first(&mut replica), Ok(()));
    assert_eq!(replica.verify(5, 1, digest), Ok(()));
    assert_eq!(replica.part(6, 0, &part), Err(ReplicaError::NotApplied(5)));
    let memory = common::Ram::new(10);
    assert_eq!(replica.apply(&memory), Some(5));
    for skipped in [4, 5, 7] {
        let result = replica.part(skipped, 0, &part);
        let error = ReplicaError::Epoch {
            got: skipped,
            expected: 6,
        };
        assert_eq!(result, Err(error));
    }
    assert_eq!(replica.part(6, 0, &part), Ok(()));
}
