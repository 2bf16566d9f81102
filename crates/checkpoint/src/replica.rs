//! The backup's side of a session.

use crate::bytes::Reader;
use crate::decode::{self, Change, Kept, Step};
use crate::disk::{DiskSteps, DiskWrite};
use crate::pages::{PAGE, Pages, ZERO};
use crate::section::{self, Kind, PART_MAX};
use crate::{ReplicaError, section::HEADER};

/// Memory that a replica keeps from epoch to epoch. What a burst took beyond it is given back.
const KEEP: usize = 16 << 20;

/// How far the epoch that comes in has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing of it is here; what the last one left is applied or discarded.
    Empty,
    /// Parts come in.
    Receiving { epoch: u64, parts: u32, digest: u32 },
    /// A part was refused.
    Broken { epoch: u64 },
    /// Whole and right, and not applied.
    Verified { epoch: u64 },
    /// Applied; its disk writes can still be read.
    Applied,
}

/// Gathers and checks the parts of an epoch, and applies it when it is whole: the backup's side of a session.
///
/// Nothing is changed before [`verify`](Self::verify) has found an epoch whole and right, and then
/// [`apply`](Self::apply) cannot fail. So memory and state are always exactly those of the last applied epoch.
///
/// A part that was refused spoils its epoch: the epoch has to be [discarded](Self::discard_pending).
#[derive(Debug)]
pub struct Replica {
    pages: u32,
    disks: Vec<u64>,
    stage: Stage,
    /// The last epoch that was applied in this session.
    applied: Option<u64>,
    /// The machine's state, filled up with zeroes to whole blocks.
    state: Vec<[u8; PAGE]>,
    state_length: usize,
    kept: Kept,
    memory_steps: Vec<Step>,
    state_steps: Vec<Step>,
    /// The length of the state in the epoch that comes in, where it tells.
    next_length: Option<usize>,
    disk: DiskSteps,
    output: Vec<u8>,
}

impl Replica {
    /// The most bytes of the limit that one page takes.
    pub const PAGE_COST: usize = PAGE + size_of::<Step>();

    /// For a machine of `pages` pages without disks. An epoch may take up to `limit` bytes of memory here before it is
    /// applied; one that needs more is refused, and with it the session. A guest can dirty all of its memory in one epoch, so
    /// that only `pages` × [`PAGE_COST`](Self::PAGE_COST), and room for state and disk writes, is always enough; memory is taken only as
    /// it is needed.
    ///
    /// # Panics
    /// With more pages than a machine can have (2^32 − 2, 16 TiB).
    pub fn new(pages: usize, limit: usize) -> Self {
        Self {
            pages: u32::try_from(pages)
                .ok()
                .filter(|pages| *pages < u32::MAX)
                .expect("a machine has fewer pages"),
            disks: Vec::new(),
            stage: Stage::Empty,
            applied: None,
            state: Vec::new(),
            state_length: 0,
            kept: Kept {
                bytes: Vec::new(),
                limit,
            },
            memory_steps: Vec::new(),
            state_steps: Vec::new(),
            next_length: None,
            disk: DiskSteps::default(),
            output: Vec::new(),
        }
    }

    /// The machine has disks of these lengths in bytes. A write beyond them is refused.
    #[must_use]
    pub fn with_disks(mut self, lengths: Vec<u64>) -> Self {
        self.disks = lengths;
        self
    }

    /// Forgets the state and all epochs: for a new session, which begins with a full copy at an epoch of its own.
    pub fn restart(&mut self) {
        self.discard_pending();
        self.applied = None;
        self.state.clear();
        self.state_length = 0;
    }

    /// Takes part number `index` of `epoch` and checks all that can be checked of it alone.
    ///
    /// # Errors
    /// A part that is damaged, or is not the next. Its whole epoch is spoiled.
    pub fn part(&mut self, epoch: u64, index: u32, bytes: &[u8]) -> Result<(), ReplicaError> {
        let (parts, mut digest) = self.receive(epoch)?;
        self.stage = Stage::Broken { epoch };
        if index != parts {
            return Err(ReplicaError::Order {
                got: index,
                expected: parts,
            });
        }
        if bytes.is_empty() || bytes.len() > PART_MAX {
            return Err(ReplicaError::Length(bytes.len()));
        }
        let mut reader = Reader::new(bytes);
        while !reader.rest().is_empty() {
            let (kind, body) = section::next(&mut reader, &mut digest)?;
            self.section(kind, body)?;
        }
        self.stage = Stage::Receiving {
            epoch,
            // A part has at least a header of 12 bytes; 2^32 of them exceed any limit.
            parts: parts.saturating_add(1),
            digest,
        };
        Ok(())
    }

    /// The checkpoint of `epoch` has ended, with so many parts and this digest: is all of it here and right? Nothing
    /// is changed yet.
    ///
    /// # Errors
    /// What is missing or wrong.
    pub fn verify(&mut self, epoch: u64, parts: u32, digest: u32) -> Result<(), ReplicaError> {
        let (have, sum) = self.receive(epoch)?;
        self.stage = Stage::Broken { epoch };
        if have != parts {
            return Err(ReplicaError::Missing { have, need: parts });
        }
        if sum != digest {
            return Err(ReplicaError::Digest {
                have: sum,
                need: digest,
            });
        }
        self.stage = Stage::Verified { epoch };
        Ok(())
    }

    /// Applies the verified epoch to `memory` and says its number; then [`state`](Self::state) is that epoch's. Without a
    /// verified epoch nothing happens.
    ///
    /// # Panics
    /// `memory` has fewer pages than the replica was made for.
    #[must_use = "none says that nothing was verified"]
    pub fn apply(&mut self, memory: &impl Pages) -> Option<u64> {
        let Stage::Verified { epoch } = self.stage else {
            return None;
        };
        let mut copy = ZERO;
        for Step { page, change } in self.memory_steps.drain(..) {
            let number = page as usize;
            match change {
                Change::Zero { pages } => {
                    for page in number..number + pages as usize {
                        memory.zero(page);
                    }
                }
                Change::Whole { at } => memory.write(number, self.kept.page(at)),
                Change::Runs { over_zeroes, .. } => {
                    if !over_zeroes {
                        memory.read(number, &mut copy);
                    }
                    decode::apply(change, &self.kept, &mut copy);
                    memory.write(number, &copy);
                }
                Change::Xor { .. } => {
                    memory.read(number, &mut copy);
                    decode::apply(change, &self.kept, &mut copy);
                    memory.write(number, &copy);
                }
            }
        }
        if let Some(length) = self.next_length.take() {
            self.state_length = length;
            self.state.resize(length.div_ceil(PAGE), ZERO);
        }
        for Step { page, change } in self.state_steps.drain(..) {
            let pages = match change {
                Change::Zero { pages } => pages as usize,
                _ => 1,
            };
            for block in self.state.iter_mut().skip(page as usize).take(pages) {
                decode::apply(change, &self.kept, block);
            }
        }
        self.applied = Some(epoch);
        self.stage = Stage::Applied;
        Some(epoch)
    }

    /// Drops what has come in and is not applied.
    pub fn discard_pending(&mut self) {
        self.memory_steps.clear();
        self.memory_steps.shrink_to(KEEP / size_of::<Step>());
        self.state_steps.clear();
        self.next_length = None;
        self.disk.clear();
        self.output.clear();
        self.output.shrink_to(KEEP);
        self.kept.bytes.clear();
        self.kept.bytes.shrink_to(KEEP);
        self.stage = Stage::Empty;
    }

    /// The machine's state in the last applied epoch; empty before the first.
    pub fn state(&self) -> &[u8] {
        &self.state.as_flattened()[..self.state_length]
    }

    /// The last epoch that was applied in this session.
    pub fn applied(&self) -> Option<u64> {
        self.applied
    }

    /// The verified epoch that waits to be applied.
    pub fn verified(&self) -> Option<u64> {
        match self.stage {
            Stage::Verified { epoch } => Some(epoch),
            _ => None,
        }
    }

    /// The disk writes of the epoch that is verified or was applied last, until the next one begins. They do not overlap.
    pub fn disk_writes(&self) -> impl Iterator<Item = DiskWrite<'_>> {
        let there = matches!(self.stage, Stage::Verified { .. } | Stage::Applied);
        self.disk
            .writes(&self.kept.bytes)
            .take_while(move |_| there)
    }

    /// Whether the guest flushed a disk in the epoch of [`disk_writes`](Self::disk_writes): then they must be durable before it is
    /// committed.
    pub fn has_flush(&self) -> bool {
        matches!(self.stage, Stage::Verified { .. } | Stage::Applied) && self.disk.flush
    }

    /// The held output of the epoch that is verified or was applied last, until the next one begins: in the form in which
    /// the primary put it into its [`Staging`](crate::Staging::output).
    pub fn held_output(&self) -> &[u8] {
        if matches!(self.stage, Stage::Verified { .. } | Stage::Applied) {
            &self.output
        } else {
            &[]
        }
    }

    /// Bytes of memory that the epoch that comes in takes.
    pub fn pending_bytes(&self) -> usize {
        self.kept.bytes.len()
            + self.output.len()
            + (self.memory_steps.len() + self.state_steps.len()) * size_of::<Step>()
    }

    /// How many parts of `epoch` are here, and their digest. Begins it if it is the next.
    fn receive(&mut self, epoch: u64) -> Result<(u32, u32), ReplicaError> {
        match self.stage {
            Stage::Receiving {
                epoch: begun,
                parts,
                digest,
            } if begun == epoch => return Ok((parts, digest)),
            Stage::Receiving { epoch: begun, .. } => {
                self.stage = Stage::Broken { epoch: begun };
                return Err(ReplicaError::Epoch {
                    got: epoch,
                    expected: begun,
                });
            }
            Stage::Broken { epoch: begun } if begun == epoch => return Err(ReplicaError::Broken),
            Stage::Broken { epoch: begun } => {
                return Err(ReplicaError::Epoch {
                    got: epoch,
                    expected: begun,
                });
            }
            Stage::Verified { epoch } => return Err(ReplicaError::NotApplied(epoch)),
            Stage::Empty | Stage::Applied => {}
        }
        if let Some(applied) = self.applied
            && applied.checked_add(1) != Some(epoch)
        {
            return Err(ReplicaError::Epoch {
                got: epoch,
                expected: applied.saturating_add(1),
            });
        }
        self.discard_pending();
        self.stage = Stage::Receiving {
            epoch,
            parts: 0,
            digest: 0,
        };
        Ok((0, 0))
    }

    fn section(&mut self, kind: Kind, body: &[u8]) -> Result<(), ReplicaError> {
        debug_assert!(body.len() + HEADER <= PART_MAX);
        let mut reader = Reader::new(body);
        match kind {
            Kind::Pages => decode::records(
                &mut reader,
                self.pages,
                &mut self.kept,
                &mut self.memory_steps,
            ),
            Kind::State => {
                let length = usize::try_from(reader.number()?).unwrap_or(usize::MAX);
                if length > self.kept.limit {
                    return Err(ReplicaError::Memory(self.kept.limit));
                }
                if self.next_length.is_some_and(|known| known != length) {
                    return Err(ReplicaError::Malformed("the state has two lengths"));
                }
                self.next_length = Some(length);
                let blocks = u32::try_from(length.div_ceil(PAGE))
                    .map_err(|_| ReplicaError::Memory(self.kept.limit))?;
                decode::records(&mut reader, blocks, &mut self.kept, &mut self.state_steps)
            }
            Kind::Disk => self.disk.read(&mut reader, &self.disks, &mut self.kept),
            Kind::Output => {
                let taken = self.kept.bytes.len() + self.output.len();
                if body.len() > self.kept.limit.saturating_sub(taken) {
                    return Err(ReplicaError::Memory(self.kept.limit));
                }
                self.output.extend_from_slice(body);
                Ok(())
            }
        }
    }
}
