//! The latest bytes of a stream, each at its place in the whole stream.

/// Keeps the last bytes of a stream. Readers hold their own position, so that any number may follow it and each knows
/// how much it missed.
#[derive(Debug)]
pub(crate) struct Ring {
    bytes: Box<[u8]>,
    /// Bytes ever written.
    end: u64,
}

impl Ring {
    /// A ring of `capacity` bytes, at least one.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            bytes: vec![0; capacity.max(1)].into(),
            end: 0,
        }
    }

    /// Bytes ever written: the position after the newest byte.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// The position of the oldest byte that is still here.
    pub(crate) fn start(&self) -> u64 {
        self.end.saturating_sub(self.bytes.len() as u64)
    }

    /// Appends bytes, over the oldest.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        // Of a piece longer than the ring only the end stays.
        let skip = bytes.len().saturating_sub(self.bytes.len());
        self.end += skip as u64;
        let at = self.index(self.end);
        let kept = &bytes[skip..];
        let (first, second) = kept.split_at(kept.len().min(self.bytes.len() - at));
        self.bytes[at..at + first.len()].copy_from_slice(first);
        self.bytes[..second.len()].copy_from_slice(second);
        self.end += kept.len() as u64;
    }

    /// Copies what follows `position` into `into` (emptied first). Returns the position after it and how many bytes
    /// between `position` and the first one copied are gone.
    pub(crate) fn read(&self, position: u64, into: &mut Vec<u8>) -> (u64, u64) {
        into.clear();
        let from = position.clamp(self.start(), self.end);
        let length = usize::try_from(self.end - from).unwrap_or(self.bytes.len());
        let at = self.index(from);
        let first = length.min(self.bytes.len() - at);
        into.extend_from_slice(&self.bytes[at..at + first]);
        into.extend_from_slice(&self.bytes[..length - first]);
        (self.end, from.saturating_sub(position))
    }

    fn index(&self, position: u64) -> usize {
        // The remainder is smaller than a usize.
        usize::try_from(position % self.bytes.len() as u64).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_late_reader_knows_what_it_missed() {
        let mut ring = Ring::new(4);
        ring.push(b"abcdef");
        let mut got = Vec::new();
        assert_eq!(ring.read(0, &mut got), (6, 2));
        assert_eq!(got, b"cdef");
        assert_eq!(ring.read(6, &mut got), (6, 0));
        assert!(got.is_empty());
    }

    proptest! {
        #[test]
        fn holds_the_end_of_the_stream(capacity in 1usize..40, pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..20)) {
            let mut ring = Ring::new(capacity);
            let mut all = Vec::new();
            let mut got = Vec::new();
            for piece in &pieces {
                ring.push(piece);
                all.extend_from_slice(piece);
                let position = all.len().saturating_sub(piece.len()) as u64;
                let (end, missed) = ring.read(position, &mut got);
                prop_assert_eq!(end, all.len() as u64);
                prop_assert_eq!(missed, piece.len().saturating_sub(capacity) as u64);
                prop_assert!(all.ends_with(&got));
                prop_assert_eq!(got.len(), piece.len().min(capacity));
            }
        }
    }
}
