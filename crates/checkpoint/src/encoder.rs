//! The primary's side of a session.

use crate::Staging;
use crate::bytes::{NUMBER_MAX, put_number};
use crate::coder::{Coder, Form, RECORD_MAX, tag};
use crate::disk::Packing;
use crate::pages::{PAGE, Pages, ZERO};
use crate::section::{Kind, PART_MAX, Stream};
use crate::shadow::{Last, Shadow};
use std::ops::{AddAssign, Range};

/// How pages were sent. The forms add up to all pages that were looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pages like their last sent version: not sent.
    pub same: u64,
    /// Pages of zeroes: a few bytes for a whole range of them.
    pub zero: u64,
    /// Pages of which only what changed was sent, as it is.
    pub delta: u64,
    /// Pages of which only what is not zero was sent, as it is.
    pub sparse: u64,
    /// Pages taken XOR their last sent version, then packed with LZ4.
    pub packed_xor: u64,
    /// Pages packed with LZ4.
    pub packed: u64,
    /// Pages sent as they are.
    pub raw: u64,
    /// Of all these, pages whose last sent version was not known: never sent before, or fallen out of the shadow.
    pub unknown: u64,
    /// Pages that fell out of the shadow, to make room for others. Their next version will be sent whole.
    pub evicted: u64,
}

impl Counts {
    /// All pages that were looked at.
    pub fn pages(&self) -> u64 {
        self.same + self.sent()
    }

    /// All pages that were sent in any form.
    pub fn sent(&self) -> u64 {
        self.zero + self.delta + self.sparse + self.packed_xor + self.packed + self.raw
    }

    fn count(&mut self, form: Form) {
        *match form {
            Form::Zero => &mut self.zero,
            Form::Delta => &mut self.delta,
            Form::Sparse => &mut self.sparse,
            Form::PackedXor => &mut self.packed_xor,
            Form::Packed => &mut self.packed,
            Form::Raw => &mut self.raw,
        } += 1;
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.same += other.same;
        self.zero += other.zero;
        self.delta += other.delta;
        self.sparse += other.sparse;
        self.packed_xor += other.packed_xor;
        self.packed += other.packed;
        self.raw += other.raw;
        self.unknown += other.unknown;
        self.evicted += other.evicted;
    }
}

/// One epoch, all of whose parts were handed over. What the message that ends its checkpoint needs to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// How many parts it has, those of [`Encoder::bulk`] included. None if nothing changed.
    pub parts: u32,
    /// The CRC-32C of the headers of all sections in order: they have the checksums of what follows them.
    pub digest: u32,
    /// The length of all parts in bytes.
    pub bytes: u64,
    /// How its pages were sent, those of [`Encoder::bulk`] included.
    pub counts: Counts,
}

/// Makes parts of epochs: the primary's side of one session with one replica.
///
/// It keeps a *shadow*, the last sent version of pages, so that only changes need be sent. The shadow is bounded; a page
/// that is not in it is sent whole. When it is full, pages that were not sent for long give way first.
///
/// After an error of the sink the session is over, because the replica lacks a part: begin the next one with
/// [`restart`](Self::restart).
#[derive(Debug)]
pub struct Encoder {
    shadow: Shadow,
    /// The last sent state, filled up with zeroes to whole blocks.
    state: Vec<[u8; PAGE]>,
    state_length: usize,
    coder: Coder,
    stream: Stream,
    /// The page after the last record of the open section.
    next: u32,
    /// A range of zero pages that has not been written yet.
    zeroes: Range<u32>,
    disk: Packing,
    counts: Counts,
    /// The pages of the last epoch that were not like their last sent version.
    changed: Vec<u32>,
    page: Box<[u8; PAGE]>,
}

impl Encoder {
    /// For a machine of `pages` pages, of which the last sent versions of as many are kept as fit into `shadow_limit` bytes.
    /// The memory is taken as it is needed.
    ///
    /// # Panics
    /// With more pages than a machine can have (2^32 − 2, 16 TiB).
    pub fn new(pages: usize, shadow_limit: usize) -> Self {
        assert!(
            u32::try_from(pages).is_ok_and(|pages| pages < u32::MAX),
            "a machine has fewer pages"
        );
        Self {
            shadow: Shadow::new(pages, shadow_limit / PAGE),
            state: Vec::new(),
            state_length: 0,
            coder: Coder::new(),
            stream: Stream::new(),
            next: 0,
            zeroes: 0..0,
            disk: Packing::new(),
            counts: Counts::default(),
            changed: Vec::new(),
            page: Box::new(ZERO),
        }
    }

    /// Forgets all that was sent: for a new session. Memory is kept.
    pub fn restart(&mut self) {
        self.shadow.forget();
        self.state.clear();
        self.state_length = 0;
        self.stream.restart();
        self.zeroes = 0..0;
        self.counts = Counts::default();
    }

    /// Sends pages of the first full copy, read while the guest runs: one that is torn is dirty and will be sent
    /// again. They belong to the epoch that is sealed next. How they were sent is answered.
    ///
    /// A round of the first copy must fit into the replica's limit, where a page that is not zero takes up to
    /// [`Replica::PAGE_COST`](crate::Replica::PAGE_COST) bytes: seal an epoch before more pages than that were sent.
    ///
    /// # Errors
    /// Those of `sink`, which takes each part with its index.
    ///
    /// # Panics
    /// Pages that the machine does not have.
    pub fn bulk<E>(
        &mut self,
        memory: &impl Pages,
        pages: Range<usize>,
        sink: &mut impl FnMut(u32, &[u8]) -> Result<(), E>,
    ) -> Result<Counts, E> {
        let before = std::mem::take(&mut self.counts);
        let mut copy = std::mem::replace(&mut self.page, Box::new(ZERO));
        let mut result = Ok(());
        for page in pages {
            memory.read(page, &mut copy);
            let number = u32::try_from(page).expect("fewer pages than 2^32");
            result = self.page(number, &copy, false, sink);
            if result.is_err() {
                break;
            }
        }
        self.page = copy;
        if result.is_ok() {
            result = self.end_zeroes(sink);
        }
        let counts = self.counts;
        self.counts += before;
        result.map(|()| counts)
    }

    /// Sends a sealed epoch: its pages, state, disk writes and held output follow what [`bulk`](Self::bulk) sent. The epoch ends with it.
    ///
    /// # Errors
    /// Those of `sink`, which takes each part with its index.
    ///
    /// # Panics
    /// Pages that the machine does not have.
    pub fn encode<E>(
        &mut self,
        epoch: &Staging,
        sink: &mut impl FnMut(u32, &[u8]) -> Result<(), E>,
    ) -> Result<Sealed, E> {
        self.changed.clear();
        for (number, page) in epoch.copied() {
            let same = self.counts.same;
            self.page(number, page, true, sink)?;
            if self.counts.same == same {
                self.changed.push(number);
            }
        }
        self.end_zeroes(sink)?;
        self.machine_state(epoch.machine_state(), sink)?;
        self.disk
            .send(epoch.disk_writes(), &mut self.stream, sink)?;
        for piece in epoch.held_output().chunks(PART_MAX / 2) {
            self.stream.room(Kind::Output, piece.len(), sink)?;
            self.stream.body().extend_from_slice(piece);
        }
        let total = self.stream.end(sink)?;
        Ok(Sealed {
            parts: total.parts,
            digest: total.digest,
            bytes: total.bytes,
            counts: std::mem::take(&mut self.counts),
        })
    }

    /// The numbers of the pages of the last [encoded](Self::encode) epoch whose content was not known to be what it had
    /// been before, in the order of copying.
    pub fn changed(&self) -> &[u32] {
        &self.changed
    }

    fn page<E>(
        &mut self,
        number: u32,
        page: &[u8; PAGE],
        evict: bool,
        sink: &mut impl FnMut(u32, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let form = match self.shadow.last(number) {
            Last::Page(last) => {
                let form = self.coder.again(last, page);
                self.coder.follow(form, last, page);
                form
            }
            Last::Zero => match self.coder.fresh(page) {
                Form::Zero => None,
                form => Some(form),
            },
            Last::Unknown => {
                self.counts.unknown += 1;
                Some(self.coder.fresh(page))
            }
        };
        let Some(form) = form else {
            self.counts.same += 1;
            return Ok(());
        };
        self.counts.count(form);
        if form == Form::Zero {
            self.shadow.cleared(number);
            if self.zeroes.is_empty() || self.zeroes.end != number {
                self.end_zeroes(sink)?;
                self.zeroes = number..number;
            }
            self.zeroes.end += 1;
            return Ok(());
        }
        if !matches!(self.shadow.last(number), Last::Page(_)) {
            self.counts.evicted += u64::from(self.shadow.keep(number, page, evict));
        }
        self.end_zeroes(sink)?;
        self.record(number, form, sink)?;
        let body = self.coder.body(form, page);
        self.stream.body().extend_from_slice(body);
        self.next = number + 1;
        Ok(())
    }

    /// Writes the range of zero pages that is open, if one is.
    fn end_zeroes<E>(
        &mut self,
        sink: &mut impl FnMut(u32, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let zeroes = std::mem::take(&mut self.zeroes);
        if zeroes.is_empty() {
            return Ok(());
        }
        self.record(zeroes.start, Form::Zero, sink)?;
        put_number(self.stream.body(), u64::from(zeroes.end - zeroes.start - 1));
        self.next = zeroes.end;
        Ok(())
    }

    /// Begins the record of a page.
    fn record<E>(
        &mut self,
        number: u32,
        form: Form,
        sink: &mut impl FnMut(u32, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if number < self.next {
            // Within a section numbers rise.
            self.stream.close();
        }
        if self.stream.room(Kind::Pages, RECORD_MAX, sink)? {
            self.next = 0;
        }
        tag(self.stream.body(), form, number - self.next);
        Ok(())
    }

    /// Sends what changed of the machine's state, in blocks of a page's size.
    fn machine_state<E>(
        &mut self,
        state: &[u8],
        sink: &mut impl FnMut(u32, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut told = state.len() == self.state_length;
        self.state_length = state.len();
        self.state.resize(state.len().div_ceil(PAGE), ZERO);
        let mut next = 0;
        for (number, (bytes, last)) in (0u32..).zip(state.chunks(PAGE).zip(&mut self.state)) {
            self.page[..bytes.len()].copy_from_slice(bytes);
            self.page[bytes.len()..].fill(0);
            let Some(form) = self.coder.again(last, &self.page) else {
                continue;
            };
            self.coder.follow(Some(form), last, &self.page);
            if self
                .stream
                .room(Kind::State, NUMBER_MAX + RECORD_MAX, sink)?
            {
                put_number(self.stream.body(), state.len() as u64);
                told = true;
                next = 0;
            }
            let body = self.stream.body();
            tag(body, form, number - next);
            body.extend_from_slice(self.coder.body(form, &self.page));
            if form == Form::Zero {
                put_number(body, 0);
            }
            next = number + 1;
        }
        if !told {
            self.stream.room(Kind::State, NUMBER_MAX, sink)?;
            put_number(self.stream.body(), state.len() as u64);
        }
        Ok(())
    }
}
