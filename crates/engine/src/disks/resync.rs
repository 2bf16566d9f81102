//! A disk's full copy: only what differs is sent.

use super::{DiskError, WritableDisk, WriteLog, open};
use romulus_checkpoint::disk::{
    Image as _,
    resync::{BLOCK, BlockDigest, blocks, differing, digests},
};
use romulus_protocol::{id::SessionId, message::Message};
use std::{collections::VecDeque, fs::File, ops::Range, path::PathBuf, sync::Arc};

/// Blocks in one message of digests: 64 MiB of disk.
const BATCH: u64 = 1024;
/// The longest range that is read at once. The log is locked meanwhile.
const PIECE: u64 = 4 * BLOCK as u64;

/// A seed that both sides know and that no other session has.
#[allow(
    clippy::cast_possible_truncation,
    reason = "the low half of a random number is as random"
)]
fn seed(session: SessionId) -> u64 {
    session.runner.get() as u64 ^ session.number.rotate_left(32)
}

/// The backup tells what its disks hold. `send` gets the messages, in order.
///
/// # Errors
/// An image that cannot be read. The session has then to end.
pub(crate) fn tell_digests(
    session: SessionId,
    disks: &[WritableDisk],
    mut send: impl FnMut(Message),
) -> Result<(), DiskError> {
    for disk in disks {
        let failed = |source| DiskError {
            path: disk.path.clone(),
            source,
        };
        let file = open(&disk.path)?;
        let all = blocks(file.length().map_err(failed)?);
        let mut first = 0;
        loop {
            let end = (first + BATCH).min(all);
            let mut bytes = Vec::new();
            for digest in digests(&file, seed(session), first..end) {
                bytes.extend_from_slice(&digest.map_err(failed)?.bytes());
            }
            let last = end == all;
            send(Message::Digests {
                session,
                disk: disk.disk,
                first,
                bytes,
                last,
            });
            if last {
                break;
            }
            first = end;
        }
    }
    Ok(())
}

struct Disk {
    number: u16,
    path: PathBuf,
    file: File,
    length: u64,
    /// The backup has told everything.
    told: bool,
    /// What differs and is not noted yet.
    differs: VecDeque<Range<u64>>,
}

/// The primary's side of one session.
pub(crate) struct Resync {
    session: SessionId,
    log: Arc<WriteLog>,
    disks: Vec<Disk>,
}

impl Resync {
    /// Nothing is known yet of what the backup holds.
    ///
    /// # Errors
    /// An image that cannot be opened.
    pub(crate) fn new(
        session: SessionId,
        disks: &[WritableDisk],
        log: &Arc<WriteLog>,
    ) -> Result<Resync, DiskError> {
        let disks = disks.iter().map(|disk| {
            let file = open(&disk.path)?;
            let length = file.length().map_err(|source| DiskError {
                path: disk.path.clone(),
                source,
            })?;
            Ok(Disk {
                number: disk.disk,
                path: disk.path.clone(),
                file,
                length,
                told: false,
                differs: VecDeque::new(),
            })
        });
        Ok(Resync {
            session,
            log: Arc::clone(log),
            disks: disks.collect::<Result<_, _>>()?,
        })
    }

    /// Whether everything that differs has been noted.
    pub(crate) fn is_done(&self) -> bool {
        self.disks
            .iter()
            .all(|disk| disk.told && disk.differs.is_empty())
    }

    /// Whether there is something to read.
    pub(crate) fn has_work(&self) -> bool {
        self.disks.iter().any(|disk| !disk.differs.is_empty())
    }

    /// The backup told of some blocks.
    ///
    /// # Errors
    /// The own image cannot be read.
    pub(crate) fn told(
        &mut self,
        number: u16,
        first: u64,
        bytes: &[u8],
        last: bool,
    ) -> Result<(), DiskError> {
        let seed = seed(self.session);
        let Some(disk) = self.disks.iter_mut().find(|disk| disk.number == number) else {
            return Ok(());
        };
        let (theirs, _) = bytes.as_chunks::<{ BlockDigest::LENGTH }>();
        let all = blocks(disk.length);
        let end = if last {
            all
        } else {
            first.saturating_add(theirs.len() as u64).min(all)
        };
        let ours = digests(&disk.file, seed, first..end);
        let theirs = theirs.iter().map(|bytes| BlockDigest::from_bytes(*bytes));
        for range in differing(first, disk.length, ours, theirs) {
            let range = range.map_err(|source| DiskError {
                path: disk.path.clone(),
                source,
            })?;
            disk.differs.push_back(range);
        }
        disk.told |= last;
        Ok(())
    }

    /// Notes a piece of what differs in the epoch that runs. False: the log is full, and the epoch
    /// has to end first.
    ///
    /// # Errors
    /// The own image cannot be read.
    pub(crate) fn work(&mut self) -> Result<bool, DiskError> {
        let Some(disk) = self.disks.iter_mut().find(|d| !d.differs.is_empty()) else {
            return Ok(true);
        };
        let Some(range) = disk.differs.front_mut() else {
            return Ok(true);
        };
        let piece = range.start..range.end.min(range.start + PIECE);
        let file = &disk.file;
        let noted = self.log.fill(disk.number, &piece, || {
            // At most PIECE.
            let mut bytes = vec![0; usize::try_from(piece.end - piece.start).unwrap_or(0)];
            romulus_checkpoint::disk::Image::read_at(file, piece.start, &mut bytes)?;
            Ok::<_, std::io::Error>(bytes)
        });
        match noted {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Ok(false),
            Err(source) => {
                return Err(DiskError {
                    path: disk.path.clone(),
                    source,
                });
            }
        }
        range.start = piece.end;
        if range.is_empty() {
            disk.differs.pop_front();
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use romulus_checkpoint::disk::{Content, DiskEpoch};
    use romulus_protocol::id::Incarnation;
    use std::{io::Write as _, os::unix::fs::FileExt as _};
    use tempfile::NamedTempFile;

    fn image(bytes: &[u8]) -> NamedTempFile {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// Brings `theirs` up to `ours` as a session does, and says how many bytes that took.
    fn copy(ours: &NamedTempFile, theirs: &NamedTempFile) -> u64 {
        let session = SessionId {
            runner: Incarnation::new(5).unwrap(),
            number: 1,
        };
        let disk = |file: &NamedTempFile| WritableDisk {
            disk: 1,
            path: file.path().into(),
        };
        let log = Arc::new(WriteLog::default());
        log.set_active(true);
        let mut resync = Resync::new(session, &[disk(ours)], &log).unwrap();
        assert!(!resync.is_done());
        tell_digests(session, &[disk(theirs)], |message| match message {
            Message::Digests {
                disk,
                first,
                bytes,
                last,
                ..
            } => resync.told(disk, first, &bytes, last).unwrap(),
            other => panic!("{other:?}"),
        })
        .unwrap();
        let (mut sent, mut sealed) = (0, DiskEpoch::default());
        while !resync.is_done() {
            let room = resync.work().unwrap();
            if room && !resync.is_done() {
                continue;
            }
            log.seal(&mut sealed);
            for write in sealed.writes() {
                let Content::Data(bytes) = write.content else {
                    panic!("only data is read");
                };
                sent += bytes.len() as u64;
                theirs.as_file().write_all_at(bytes, write.offset).unwrap();
            }
        }
        sent
    }

    #[test]
    fn only_what_differs_is_sent() {
        let mut bytes: Vec<u8> = (0..=250).cycle().take(40 * BLOCK + 512).collect();
        let theirs = image(&bytes);
        assert_eq!(copy(&image(&bytes), &theirs), 0);
        bytes[3 * BLOCK + 7] ^= 1;
        bytes[40 * BLOCK + 1] ^= 1;
        let ours = image(&bytes);
        assert_eq!(copy(&ours, &theirs), BLOCK as u64 + 512);
        assert!(std::fs::read(theirs.path()).unwrap() == bytes);
    }

    #[test]
    fn a_disk_larger_than_the_log_takes_several_epochs() {
        let bytes: Vec<u8> = (1..=251).cycle().take(100 << 20).collect();
        let (ours, theirs) = (image(&bytes), image(&vec![0; bytes.len()]));
        copy(&ours, &theirs);
        assert!(std::fs::read(theirs.path()).unwrap() == bytes);
    }
}
