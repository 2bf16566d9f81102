//! The media probe: many calls side by side through a SIP server, each with media both ways, and what became of each.
//!
//! ```no_run
//! use romulus_telephony::{call::Transport, probe::{Answer, End, Moment, Plan, Probe, Script, Side}};
//! use std::time::Duration;
//!
//! # fn main() -> std::io::Result<()> {
//! let seconds = Duration::from_secs;
//! // Twenty calls, ten a second. Each is answered after a second; 10 s after the event the caller hangs up.
//! let scripts = (0..20).map(|n| Script {
//!     invite: Moment::Start(Duration::from_millis(100) * n),
//!     answer: Answer::After(seconds(1)),
//!     reinvite: None,
//!     end: End::HangUp { at: Moment::Event(seconds(10)), by: Side::Caller },
//! });
//! let plan = Plan::new("192.0.2.100:5060".parse().unwrap(), "192.0.2.254".parse().unwrap(), Transport::Udp, scripts.collect());
//! let probe = Probe::start(plan)?;
//! // … wait until `probe.progress().up` is 20, then cut the power …
//! probe.event();
//! let outcome = probe.finish(seconds(60));
//! println!("{} of {} calls preserved", outcome.preserved(), outcome.calls.len());
//! # Ok(())
//! # }
//! ```
//!
//! Callees register first; then the scripts' time begins. Both ends of all calls are in this program, callers and callees on
//! connections (or sockets) of their own, and everything is sent to the one server. Threads and sockets have the network namespace of
//! the thread that starts the probe, and are bound to `Plan::local`: nothing can leave by another way.
//!
//! Before a call is hung up, both its ends stop sending and half a second passes: what a relay drops once it has seen the BYE
//! is no loss.

mod course;
mod line;
mod outcome;
mod phones;
mod summary;
mod tls;

pub use course::{Answer, End, Moment, Script, Side};
pub use outcome::{CallOutcome, Outcome, Stage, StreamOutcome};
pub use phones::Progress;
pub use summary::Summary;

use crate::{
    call::Transport,
    media::{Codec, Playout, socket::Clock, stream::Media},
};
use phones::Phones;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// How calls share connections. For UDP the same is said of sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connections {
    /// One for all callers and one for all callees, as between two exchanges.
    Shared,
    /// One for each end of each call, as telephones have.
    Each,
}

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where the SIP server listens.
    pub server: SocketAddr,
    /// The address of this end: signalling and media.
    pub local: IpAddr,
    /// What signalling goes over.
    pub transport: Transport,
    /// How calls share connections.
    pub connections: Connections,
    /// How speech is coded.
    pub codec: Codec,
    /// What listeners are assumed to have.
    pub playout: Playout,
    /// Whether media is sent at all.
    pub media: bool,
    /// A number that no other run has against the same server: users, calls and streams are named after it.
    pub run: u32,
    /// What each call does.
    pub scripts: Vec<Script>,
}

impl Plan {
    /// A plan with µ-law, media, a connection for each end where there are connections, and a run number from the clock.
    pub fn new(
        server: SocketAddr,
        local: IpAddr,
        transport: Transport,
        scripts: Vec<Script>,
    ) -> Self {
        let run = Clock::start().unix_seconds(Duration::ZERO) * 1e6;
        Self {
            server,
            local,
            transport,
            connections: if transport.is_reliable() {
                Connections::Each
            } else {
                Connections::Shared
            },
            codec: Codec::Pcmu,
            playout: Playout::default(),
            media: true,
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "the low bits of the time in µs"
            )]
            run: run as u64 as u32,
            scripts,
        }
    }
}

/// What the probe's thread and its user share.
struct Shared {
    clock: Clock,
    /// When the event was, in ns; `u64::MAX` before it.
    event: AtomicU64,
    stop: AtomicBool,
    progress: Mutex<Progress>,
}

impl Shared {
    fn event(&self) -> Option<Duration> {
        let event = self.event.load(Ordering::Acquire);
        (event != u64::MAX).then(|| Duration::from_nanos(event))
    }
}

/// A run that is under way. Dropping it ends it.
pub struct Probe {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Outcome>>,
}

impl Probe {
    /// Makes the connections and begins.
    ///
    /// # Errors
    /// The server can't be reached, or the operating system refuses.
    pub fn start(plan: Plan) -> io::Result<Self> {
        let clock = Clock::start();
        let shared = Arc::new(Shared {
            clock,
            event: AtomicU64::new(u64::MAX),
            stop: AtomicBool::new(false),
            progress: Mutex::default(),
        });
        let media = Media::start(clock, plan.run)?;
        let phones = Phones::new(plan, Arc::clone(&shared), media)?;
        let thread = thread::Builder::new()
            .name("sip".into())
            .spawn(move || phones.run())?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// How far the calls are.
    pub fn progress(&self) -> Progress {
        *self
            .shared
            .progress
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that the event happens now, whatever it is: moments after it count from here. Only the first call counts. Gives the
    /// moment, by the probe's clock.
    pub fn event(&self) -> Duration {
        let now = u64::try_from(self.shared.clock.now().as_nanos()).unwrap_or(u64::MAX - 1);
        // What was there before remains.
        let _ =
            self.shared
                .event
                .compare_exchange(u64::MAX, now, Ordering::AcqRel, Ordering::Acquire);
        self.shared.event().unwrap_or_default()
    }

    /// Waits until all calls are over, at most for `limit`, and gives what became of them. One that is not over by then
    /// has failed.
    pub fn finish(mut self, limit: Duration) -> Outcome {
        let ends = self.shared.clock.now() + limit;
        while self.shared.clock.now() < ends && !self.progress().done {
            thread::sleep(Duration::from_millis(10));
        }
        self.shared.stop.store(true, Ordering::Release);
        // A thread that panicked has said so: nothing is known of its calls, and none counts as preserved.
        let thread = self.thread.take();
        thread
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default()
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
