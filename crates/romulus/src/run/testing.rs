//! A supervisor under test, of a plain or a protected machine: it runs in a thread of its own, and what it holds is fake.

use super::{
    shared::Shared,
    supervisor::{End, Event},
};
use crate::{
    api::model::{Command, Refusal, State},
    config::MachineFile,
    console::hub::Hub,
    exit::Failure,
};
use std::{
    path::Path,
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// No step of a test takes this long.
pub(super) const LONG: Duration = Duration::from_secs(20);

/// What a supervisor needs to be made: the machine on host `me` of its file, and where events come in.
pub(super) fn parts(text: &str, me: usize) -> (Arc<Shared>, Receiver<Event>) {
    let file = MachineFile::parse(text, Path::new("f"), Path::new("/"))
        .unwrap_or_else(|error| panic!("{error}"));
    let (events, inbox) = mpsc::channel();
    (
        Arc::new(Shared::new(file, me, Hub::new(false), events)),
        inbox,
    )
}

/// A supervisor that runs, and every fake that it has made: `T` is a guest's or an engine's.
pub(super) struct Running<T> {
    pub(super) shared: Arc<Shared>,
    pub(super) thread: JoinHandle<Result<End, Failure>>,
    made: Receiver<Arc<T>>,
}

impl<T: Send + Sync + 'static> Running<T> {
    /// Starts the supervisor that `run` makes and runs. It puts each fake into the channel.
    pub(super) fn start(
        text: &str,
        me: usize,
        run: impl FnOnce(Arc<Shared>, Receiver<Event>, Sender<Arc<T>>) -> Result<End, Failure>
        + Send
        + 'static,
    ) -> Self {
        let (shared, inbox) = parts(text, me);
        let (fakes, made) = mpsc::channel();
        let thread = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || run(shared, inbox, fakes))
        };
        Self {
            shared,
            thread,
            made,
        }
    }

    /// The next fake that the supervisor makes.
    pub(super) fn next_fake(&self) -> Arc<T> {
        self.made
            .recv_timeout(LONG)
            .expect("a guest or an engine is made")
    }

    pub(super) fn send(&self, event: Event) {
        self.shared.events.send(event).unwrap();
    }

    pub(super) fn wait_state(&self, state: State) {
        let deadline = Instant::now() + LONG;
        while self.shared.state() != state {
            assert!(
                Instant::now() < deadline,
                "never {state:?}, is {:?}",
                self.shared.state()
            );
            thread::yield_now();
        }
    }

    /// Sends a command as the control interface does, and waits for its answer.
    pub(super) fn ask<A>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<A, Refusal>>) -> Command,
    ) -> Result<A, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.send(Event::Command(command(reply)));
        answer.blocking_recv().expect("an answer")
    }

    /// Waits until it has ended.
    pub(super) fn end(self) -> End {
        self.thread
            .join()
            .unwrap()
            .unwrap_or_else(|failure| panic!("{:#}", failure.error))
    }
}
