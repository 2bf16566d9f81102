//! Who has asked for the machine's end and waits to hear how it ended.

use super::supervisor::End;
use crate::{
    api::model::{Ended, Reply},
    exit::Failure,
};

/// All who wait, over the whole life of the process.
#[derive(Default)]
pub(super) struct Waiters(Vec<Reply<Ended>>);

impl Waiters {
    /// One more waits.
    pub(super) fn add(&mut self, reply: Reply<Ended>) {
        self.0.push(reply);
    }

    /// Tells each of them how the machine ended.
    pub(super) fn tell(self, result: &Result<End, Failure>) {
        let ended = match result {
            Ok(end) => Ended::new(end.code, &*end.text),
            Err(failure) => Ended::new(failure.code, format!("{:#}", failure.error)),
        };
        for reply in self.0 {
            // Who asked may have left.
            let _ = reply.send(Ok(ended.clone()));
        }
    }
}
