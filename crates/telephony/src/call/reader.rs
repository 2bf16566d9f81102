//! Messages out of a stream of bytes (RFC 3261, section 18.3).

use super::message::{LONGEST, Malformed, Message, header_end};

/// Collects what comes over a connection, and gives whole messages.
#[derive(Debug, Default)]
pub struct Reader {
    bytes: Vec<u8>,
    /// How much of it has been searched for the header's end.
    searched: usize,
}

impl Reader {
    /// Takes more bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message.
    ///
    /// # Errors
    /// What came is no message; nothing that follows can be one.
    pub fn take(&mut self) -> Result<Option<Message>, Malformed> {
        // Empty lines between messages keep connections open (RFC 5626, section 3.5.1).
        let blank = self
            .bytes
            .iter()
            .take_while(|byte| matches!(byte, b'\r' | b'\n'))
            .count();
        if blank > 0 {
            self.bytes.drain(..blank);
            self.searched = 0;
        }
        let from = self.searched.saturating_sub(3).min(self.bytes.len());
        let Some(end) = header_end(&self.bytes[from..]).map(|end| from + end) else {
            self.searched = self.bytes.len();
            if self.bytes.len() > LONGEST {
                return Err(Malformed("too long"));
            }
            return Ok(None);
        };
        // While the body comes, the header's end is found again at once.
        self.searched = end - 4;
        let (mut message, length) = Message::parse_header(&self.bytes[..end])?;
        let length = length.ok_or(Malformed("no length in a stream"))?;
        let Some(body) = self.bytes.get(end..end + length) else {
            return Ok(None);
        };
        message.body = body.to_vec();
        self.bytes.drain(..end + length);
        self.searched = 0;
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::Reader;
    use crate::call::{Message, Method};
    use proptest::prelude::*;

    fn message(number: u32) -> Message {
        let mut message = Message::request(Method::Options, "sip:x");
        message.add("CSeq", format!("{number} OPTIONS"));
        message.body = vec![b'\n'; number as usize % 7];
        message
    }

    #[test]
    fn what_cannot_become_a_message_is_an_error() {
        for bytes in [
            &b"OPTIONS sip:x SIP/2.0\r\n\r\n"[..],
            b"noise\r\n\r\n",
            &vec![b'a'; 70_000],
        ] {
            let mut reader = Reader::default();
            reader.push(bytes);
            assert!(reader.take().is_err());
        }
    }

    proptest! {
        #[test]
        fn messages_come_whole_however_they_are_cut(cuts in proptest::collection::vec(1_usize..90, 1..40)) {
            let mut wire = Vec::new();
            for number in 0..9 {
                wire.extend(message(number).encode());
                wire.extend(b"\r\n".repeat(number as usize % 3));
            }
            let mut reader = Reader::default();
            let (mut at, mut seen) = (0, Vec::new());
            for size in cuts.iter().cycle() {
                let end = (at + size).min(wire.len());
                reader.push(&wire[at..end]);
                at = end;
                while let Some(message) = reader.take().unwrap() {
                    seen.push(message);
                }
                if at == wire.len() {
                    break;
                }
            }
            prop_assert_eq!(seen, (0..9).map(message).collect::<Vec<_>>());
        }
    }
}
