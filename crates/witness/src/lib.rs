//! The witness: a service in a test's guest that numbers every request, and how its answers and its disk read. It needs
//! nothing but the standard library, because it runs in a guest that has nothing.
//!
//! Each answer carries a *chain* as well: a digest of all that was answered before it. So two histories that went apart
//! are told from each other even where no number comes twice.

use std::{fmt, str::FromStr};

/// Bytes of a record on the disk: one sector.
pub const RECORD: usize = 512;
/// Records that the disk has room for; the one after the last takes the place of the first.
pub const RECORDS: u64 = 8192;
/// Longest request: it has to fit into a record.
pub const LONGEST: usize = 400;
/// How a request begins that is not counted: it tells the service to do something.
pub const ORDER: char = '!';

/// What a record on the disk begins with.
const MAGIC: &[u8; 8] = b"witness1";
/// Where the request begins in a record: after magic, checksum, number, chain and length.
const HEADER: usize = 40;

/// One answer: the request with its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The request's number, from 1.
    pub number: u64,
    /// The digest of all requests up to this one, in their order.
    pub chain: u64,
    /// The request itself.
    pub request: String,
}

/// What was answered so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History {
    number: u64,
    chain: u64,
}

impl History {
    /// The history that ended with `last`.
    pub const fn after(last: &Answer) -> Self {
        Self {
            number: last.number,
            chain: last.chain,
        }
    }

    /// Numbers the next request.
    pub fn answer(&mut self, request: &str) -> Answer {
        self.number += 1;
        self.chain = chain(self.chain, self.number, request);
        Answer {
            number: self.number,
            chain: self.chain,
            request: request.to_owned(),
        }
    }
}

/// The chain of an answer whose predecessor has the chain `before`.
pub fn chain(before: u64, number: u64, request: &str) -> u64 {
    let start = digest(0xcbf2_9ce4_8422_2325, &before.to_le_bytes());
    digest(digest(start, &number.to_le_bytes()), request.as_bytes())
}

/// FNV-1a: nobody attacks a test, and 64 bits are enough to tell histories apart.
fn digest(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// As it goes over the network: number, chain, request.
impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:016x} {}", self.number, self.chain, self.request)
    }
}

/// What is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoAnswer;

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this is no answer of the witness")
    }
}

impl std::error::Error for NoAnswer {}

impl FromStr for Answer {
    type Err = NoAnswer;

    fn from_str(text: &str) -> Result<Self, NoAnswer> {
        let mut words = text.splitn(3, ' ');
        let mut word = || words.next().ok_or(NoAnswer);
        let (number, chain, request) = (word()?, word()?, word()?);
        Ok(Self {
            number: number.parse().map_err(|_| NoAnswer)?,
            chain: u64::from_str_radix(chain, 16).map_err(|_| NoAnswer)?,
            request: request.to_owned(),
        })
    }
}

impl Answer {
    /// Where its record begins on the disk.
    pub const fn offset(&self) -> u64 {
        self.number % RECORDS * RECORD as u64
    }

    /// Its record; a request that is too long is cut off.
    pub fn record(&self) -> [u8; RECORD] {
        let mut record = [0; RECORD];
        let request = &self.request.as_bytes()[..self.request.len().min(LONGEST)];
        record[..8].copy_from_slice(MAGIC);
        record[16..24].copy_from_slice(&self.number.to_le_bytes());
        record[24..32].copy_from_slice(&self.chain.to_le_bytes());
        record[32..40].copy_from_slice(&(request.len() as u64).to_le_bytes());
        record[HEADER..HEADER + request.len()].copy_from_slice(request);
        let sum = digest(0, &record[16..]);
        record[8..16].copy_from_slice(&sum.to_le_bytes());
        record
    }

    /// Reads a record; `None` where there is none.
    pub fn from_record(record: &[u8]) -> Option<Self> {
        let number_at = |at: usize| -> Option<u64> {
            Some(u64::from_le_bytes(record.get(at..at + 8)?.try_into().ok()?))
        };
        let whole = record.len() == RECORD
            && record.starts_with(MAGIC)
            && number_at(8)? == digest(0, &record[16..]);
        let length = usize::try_from(number_at(32)?).ok()?;
        let request = record.get(HEADER..HEADER.checked_add(length)?)?;
        whole.then_some(Self {
            number: number_at(16)?,
            chain: number_at(24)?,
            request: String::from_utf8(request.to_vec()).ok()?,
        })
    }
}

/// All records of a disk, in the order of their numbers.
pub fn records(disk: &[u8]) -> Vec<Answer> {
    let room = usize::try_from(RECORDS).unwrap_or(usize::MAX);
    let mut all: Vec<Answer> = disk
        .chunks_exact(RECORD)
        .take(room)
        .filter_map(Answer::from_record)
        .collect();
    all.sort_by_key(|answer| answer.number);
    all
}

#[cfg(test)]
mod tests {
    use super::{Answer, History, LONGEST, RECORD, chain, records};

    #[test]
    fn answers_are_numbered_and_chained_and_read_back() {
        let mut history = History::default();
        let (one, two) = (history.answer("a b"), history.answer("c"));
        assert_eq!((one.number, two.number), (1, 2));
        assert_eq!(two.chain, chain(one.chain, 2, "c"));
        for answer in [&one, &two] {
            assert_eq!(answer.to_string().parse().as_ref(), Ok(answer));
        }
        assert_eq!(History::after(&one).answer("c"), two);
        let other = History::after(&one).answer("d");
        assert_ne!(other.chain, two.chain, "another history");
        for text in ["", "1", "1 2", "x 0 y", "1 g y"] {
            assert!(text.parse::<Answer>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_on_the_disk_is_whole_or_nothing() {
        let mut history = History::default();
        let mut disk = vec![0; 16 * RECORD];
        let written: Vec<Answer> = (0..5).map(|n| history.answer(&format!("r{n}"))).collect();
        for answer in written.iter().rev() {
            let at = usize::try_from(answer.offset()).unwrap();
            disk[at..at + RECORD].copy_from_slice(&answer.record());
        }
        assert_eq!(records(&disk), written);
        let at = usize::try_from(written[2].offset()).unwrap();
        for byte in [0, 9, 17, 25, 33, 41, RECORD - 1] {
            let mut damaged = disk.clone();
            damaged[at + byte] ^= 1;
            assert_eq!(records(&damaged).len(), 4, "byte {byte}");
        }
        assert_eq!(records(&[1, 2, 3]), []);
    }

    #[test]
    fn a_request_without_end_is_cut_off() {
        let answer = History::default().answer(&"x".repeat(9999));
        let read = Answer::from_record(&answer.record()).unwrap();
        assert_eq!(read.request.len(), LONGEST);
    }
}
