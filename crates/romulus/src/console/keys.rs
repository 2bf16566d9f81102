//! Finds the escape key in what a person types at a raw terminal.

/// Ctrl-].
pub(crate) const ESCAPE: u8 = 0x1d;

/// What a person wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    /// Bytes for the guest.
    Bytes(Vec<u8>),
    /// The escape key and another.
    Command(u8),
}

/// Splits typed bytes into those for the guest and those for us.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    escaped: bool,
}

impl Keys {
    /// Takes what was typed; the escape key and the one after it may come in different pieces.
    pub(crate) fn feed(&mut self, typed: &[u8]) -> Vec<Input> {
        let mut inputs = Vec::new();
        let mut bytes = Vec::new();
        for &byte in typed {
            match (self.escaped, byte) {
                (false, ESCAPE) => self.escaped = true,
                (false, byte) => bytes.push(byte),
                // Twice means the key itself.
                (true, ESCAPE) => {
                    bytes.push(ESCAPE);
                    self.escaped = false;
                }
                (true, byte) => {
                    self.escaped = false;
                    if !bytes.is_empty() {
                        inputs.push(Input::Bytes(std::mem::take(&mut bytes)));
                    }
                    inputs.push(Input::Command(byte));
                }
            }
        }
        if !bytes.is_empty() {
            inputs.push(Input::Bytes(bytes));
        }
        inputs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_across_pieces() {
        let mut keys = Keys::default();
        assert_eq!(keys.feed(b"ls\r"), [Input::Bytes(b"ls\r".to_vec())]);
        assert_eq!(keys.feed(b"a\x1d"), [Input::Bytes(b"a".to_vec())]);
        assert_eq!(
            keys.feed(b"qb"),
            [Input::Command(b'q'), Input::Bytes(b"b".to_vec())]
        );
    }

    #[test]
    fn the_escape_key_twice_is_typed_itself() {
        assert_eq!(
            Keys::default().feed(b"x\x1d\x1dy"),
            [Input::Bytes(b"x\x1dy".to_vec())]
        );
    }
}
