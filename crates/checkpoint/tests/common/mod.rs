//! What the tests share: memory that is a vector, and a primary with its backup.

#![allow(dead_code, reason = "each test uses its part")]

use proptest::collection::vec;
use proptest::prelude::*;
use romulus_checkpoint::disk::{Content, DiskWrite};
use romulus_checkpoint::{Encoder, PAGE, Pages, Replica, ReplicaError, Sealed, Staging};
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Mutex;

/// Guest memory.
pub(crate) struct Ram(pub(crate) Mutex<Vec<[u8; PAGE]>>);

impl Clone for Ram {
    fn clone(&self) -> Self {
        Self(Mutex::new(self.0.lock().unwrap().clone()))
    }
}

impl PartialEq for Ram {
    fn eq(&self, other: &Self) -> bool {
        // Not both locks at once: a test may compare one with itself.
        let other = other.0.lock().unwrap().clone();
        *self.0.lock().unwrap() == other
    }
}

impl Ram {
    pub(crate) fn new(pages: usize) -> Self {
        Self(Mutex::new(vec![[0; PAGE]; pages]))
    }
}

impl Pages for Ram {
    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn read(&self, page: usize, into: &mut [u8; PAGE]) {
        *into = self.0.lock().unwrap()[page];
    }

    fn write(&self, page: usize, from: &[u8; PAGE]) {
        self.0.lock().unwrap()[page] = *from;
    }
}

/// Bytes without a pattern.
pub(crate) fn noise(seed: u64, into: &mut [u8]) {
    let mut state = seed | 1;
    for byte in into {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state.to_le_bytes()[4];
    }
}

/// What a guest does to a page.
#[derive(Clone, Debug)]
pub(crate) enum Touch {
    /// It is dirty, but the same.
    Nothing,
    Zero,
    Noise(u64),
    Text(u8),
    Bytes(usize, Vec<u8>),
    /// Every n-th byte flips.
    Comb(usize),
}

impl Touch {
    fn apply(&self, page: &mut [u8; PAGE]) {
        match self {
            Self::Nothing => {}
            Self::Zero => page.fill(0),
            Self::Noise(seed) => noise(*seed, page),
            Self::Text(seed) => {
                for (at, byte) in page.iter_mut().enumerate() {
                    *byte = b"via: SIP/2.0/UDP\r\n"[at % 18] ^ (*seed & 1);
                }
                page[0] = *seed;
            }
            Self::Bytes(at, bytes) => {
                let end = (at + bytes.len()).min(PAGE);
                page[*at..end].copy_from_slice(&bytes[..end - at]);
            }
            Self::Comb(step) => {
                for byte in page.iter_mut().step_by(*step) {
                    *byte ^= 1;
                }
            }
        }
    }
}

/// Few values at few places, so that much of it changes back again: that is where a stale shadow shows.
pub(crate) fn touch() -> impl Strategy<Value = Touch> {
    prop_oneof![
        1 => Just(Touch::Nothing),
        1 => Just(Touch::Zero),
        2 => (1u64..4).prop_map(Touch::Noise),
        2 => (0u8..4).prop_map(Touch::Text),
        4 => (0usize..8, vec(0u8..2, 1..30)).prop_map(|(at, bytes)| Touch::Bytes(at * 583, bytes)),
        2 => (1usize..4).prop_map(|step| Touch::Comb(step * step * 7 - 6)),
    ]
}

/// One epoch of a machine.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    pub(crate) pages: Vec<(usize, Touch)>,
    /// Pages that are sent as bulk, before the guest touches the others.
    pub(crate) bulk: std::ops::Range<usize>,
    /// Length of the state, and where it changes.
    pub(crate) state: (usize, usize),
    /// Offset, length (0: a flush), seed (0: zeroes).
    pub(crate) disk: Vec<(u64, usize, u64)>,
    /// Length of the held output.
    pub(crate) output: usize,
}

/// Length of the only disk.
pub(crate) const DISK: usize = 200_000;

pub(crate) fn life(pages: usize) -> impl Strategy<Value = Life> {
    let bulk = prop_oneof![
        3 => Just(0..0),
        1 => (0..pages, 0..pages).prop_map(|(a, b)| a.min(b)..a.max(b)),
    ];
    let write = (0..DISK as u64 - 50_000, 0usize..50_000, 0u64..5);
    (
        vec((prop_oneof![0..4usize, 0..pages], touch()), 0..12),
        bulk,
        (0usize..10_000, 0usize..10_000),
        vec(write, 0..3),
        prop_oneof![2 => Just(0), 2 => 1usize..5000, 1 => 250_000usize..600_000],
    )
        .prop_map(|(pages, bulk, state, disk, output)| Life {
            pages,
            bulk,
            state,
            disk,
            output,
        })
}

/// The primary: memory, state and disk of the machine, and what sends them.
pub(crate) struct Primary {
    pub(crate) memory: Ram,
    pub(crate) state: Vec<u8>,
    pub(crate) disk: Vec<u8>,
    pub(crate) output: Vec<u8>,
    pub(crate) staging: Staging,
    pub(crate) encoder: Encoder,
}

impl Primary {
    pub(crate) fn new(pages: usize, shadow: usize) -> Self {
        Self {
            memory: Ram::new(pages),
            state: Vec::new(),
            disk: vec![0; DISK],
            output: Vec::new(),
            staging: Staging::new(8),
            encoder: Encoder::new(pages, shadow * PAGE),
        }
    }

    /// Lives through an epoch and gives its parts.
    pub(crate) fn live(&mut self, life: &Life) -> (Vec<Vec<u8>>, Sealed) {
        let mut parts = Vec::new();
        let mut sink = |index: u32, part: &[u8]| {
            assert_eq!(index as usize, parts.len(), "parts are counted from 0");
            parts.push(part.to_vec());
            Ok::<_, Infallible>(())
        };
        self.staging.clear();
        let Ok(_) = self
            .encoder
            .bulk(&self.memory, life.bulk.clone(), &mut sink);
        let mut dirty = BTreeSet::new();
        for (page, touch) in &life.pages {
            touch.apply(&mut self.memory.0.lock().unwrap()[*page]);
            dirty.insert(*page);
        }
        self.staging.copy(&self.memory, dirty.into_iter());
        let (length, at) = life.state;
        self.state.resize(length, 7);
        if let Some(byte) = self.state.get_mut(at) {
            *byte = byte.wrapping_add(1);
        }
        self.staging.state().extend_from_slice(&self.state);
        for (offset, length, seed) in &life.disk {
            let at = usize::try_from(*offset).unwrap();
            let disk = self.staging.disk();
            if *length == 0 {
                disk.flush();
            } else if *seed == 0 {
                disk.zero(0, *offset, *length as u64).unwrap();
                self.disk[at..at + length].fill(0);
            } else {
                noise(*seed, &mut self.disk[at..at + length]);
                if *seed == 1 {
                    self.disk[at..at + length].fill(b'x');
                }
                disk.write(0, *offset, &self.disk[at..at + length]).unwrap();
            }
        }
        self.staging.output().resize(life.output, 0);
        noise(3, self.staging.output());
        self.output.clone_from(self.staging.output());
        let Ok(sealed) = self.encoder.encode(&self.staging, &mut sink);
        assert_eq!(sealed.parts as usize, parts.len());
        assert_eq!(
            sealed.bytes,
            parts.iter().map(|part| part.len() as u64).sum::<u64>()
        );
        (parts, sealed)
    }
}

/// The backup: a replica, and the memory and disk that it fills.
pub(crate) struct Backup {
    pub(crate) memory: Ram,
    pub(crate) disk: Vec<u8>,
    pub(crate) replica: Replica,
}

impl Backup {
    pub(crate) fn new(pages: usize) -> Self {
        Self {
            memory: Ram::new(pages),
            disk: vec![0; DISK],
            replica: Replica::new(pages, 16 << 20).with_disks(vec![DISK as u64]),
        }
    }

    /// Takes the parts of an epoch, up to its verification.
    pub(crate) fn receive(
        &mut self,
        epoch: u64,
        parts: &[Vec<u8>],
        sealed: &Sealed,
    ) -> Result<(), ReplicaError> {
        for (index, part) in (0..).zip(parts) {
            self.replica.part(epoch, index, part)?;
        }
        self.replica.verify(epoch, sealed.parts, sealed.digest)
    }

    /// Applies what was verified.
    pub(crate) fn apply(&mut self) -> Option<u64> {
        let epoch = self.replica.apply(&self.memory)?;
        for DiskWrite {
            disk,
            offset,
            content,
        } in self.replica.disk_writes()
        {
            assert_eq!(disk, 0);
            let at = usize::try_from(offset).unwrap();
            match content {
                Content::Data(bytes) => self.disk[at..at + bytes.len()].copy_from_slice(bytes),
                Content::Zero(length) => {
                    self.disk[at..at + usize::try_from(length).unwrap()].fill(0);
                }
            }
        }
        Some(epoch)
    }

    /// Whether it is exactly the primary's last epoch.
    pub(crate) fn is(&self, primary: &Primary) -> bool {
        self.memory == primary.memory
            && self.replica.state() == primary.state
            && self.replica.held_output() == primary.output
            && self.disk == primary.disk
    }
}
