//! Where the records are, as the server sees it: requests go in, what may be said comes out.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::path::Path;

use romulus_protocol::arbiter::{Action, Answer, Arbiter, Event, Request};
use romulus_protocol::record::Record;

use crate::datagram::Limit;

use super::disk::Directory;
use super::store::{Store, StoreError};

/// What has come of a request: an answer, or nothing that may be said. Whoever asked hears nothing
/// then and asks again, as if the network had lost one of the two.
#[derive(Debug)]
pub struct Outcome {
    /// The number under which the request was given.
    pub client: u64,
    /// The answer.
    pub answer: Option<Answer>,
}

/// The records and who decides over them.
pub trait Records {
    /// Takes a request. There will be one outcome of it, at once or later.
    fn ask(&mut self, client: u64, request: Request);
    /// The next outcome that is there.
    fn outcome(&mut self) -> Option<Outcome>;
    /// Becomes readable when outcomes come that no call of [`Records::ask`] has brought.
    fn news(&self) -> Option<BorrowedFd<'_>>;
}

/// Records in files of the arbiter's own. Each request is done with before the next.
#[derive(Debug)]
pub struct Files {
    arbiter: Arbiter,
    store: Store<Directory>,
    outcomes: VecDeque<Outcome>,
    unstored: Limit,
}

impl Files {
    /// Those in a directory, which is made if it is not there. One that is empty is a beginning:
    /// hosts notice records that are absent or lower than those they know.
    ///
    /// # Errors
    /// When something in it is damaged or foreign, or another server has it.
    pub fn open(path: &Path) -> Result<Files, StoreError> {
        let (store, records) = Store::open(path)?;
        tracing::info!(machines = records.len(), store = %path.display(), "the arbiter is open");
        Ok(Files {
            arbiter: Arbiter::new(records),
            store,
            outcomes: VecDeque::new(),
            unstored: Limit::default(),
        })
    }

    fn keep(&mut self, record: &Record) -> Event {
        match self.store.store(record) {
            Ok(()) => {
                changed(record);
                Event::Stored(record.machine)
            }
            Err(error) => {
                if let Some(silenced) = self.unstored.event() {
                    tracing::error!(
                        machine = %record.machine, silenced,
                        "a change is refused since it cannot be stored: {error}"
                    );
                }
                Event::NotStored(record.machine)
            }
        }
    }
}

impl Records for Files {
    fn ask(&mut self, client: u64, request: Request) {
        self.arbiter.handle(Event::Request { client, request });
        while let Some(action) = self.arbiter.poll() {
            match action {
                Action::Store(record) => {
                    let event = self.keep(&record);
                    self.arbiter.handle(event);
                }
                Action::Answer { client, answer } => self.outcomes.push_back(Outcome {
                    client,
                    answer: Some(answer),
                }),
            }
        }
    }

    fn outcome(&mut self) -> Option<Outcome> {
        self.outcomes.pop_front()
    }

    fn news(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Says in the log that a record is another now.
pub fn changed(record: &Record) {
    tracing::info!(
        machine = %record.machine, generation = %record.generation,
        runner = %record.runner, heir = ?record.heir, phase = ?record.phase,
        "the record has changed"
    );
}
