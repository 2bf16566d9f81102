//! The arbiter's records in etcd. This process keeps none: each request is decided upon what etcd says at that
//! moment, so that there may be several arbiters in front of one etcd.
//!
//! A request is a linearizable read of the machine's key, the protocol's decision upon what was
//! read, and for a change one transaction that puts the next record in place *if the key is still
//! as it was read*. If it is not, the transaction tells what is there now, and that is decided
//! upon anew. So of several changes that expect one generation one is made, whichever arbiters
//! they came through, and nothing is ever answered that a majority of the nodes does not have.
//!
//! **When an outcome is unknown nothing is answered**: neither *made*, which it may not be, nor
//! *refused*, which it may not be either, nor the record that was read before, which may be the
//! past. To a host this is no more than what a network does that loses an answer, or a request
//! that is still under way: it keeps holding until it sees the generation pass, and asks again
//! (DESIGN, "An unknown outcome"). A transaction that etcd works off much later is like such a
//! late request, too: it changes something only if nothing has changed since it was decided upon.
//! The protocol's simulator loses, delays, repeats and reorders requests and answers.
//!
//! etcd's leases give no permission here. They end by the clock of etcd's leader, which says
//! nothing about when a host stopped.

mod api;
mod cluster;
mod config;
mod fault;
mod line;
mod value;

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use romulus_protocol::arbiter::{Answer, Request};
use romulus_protocol::id::MachineId;
use romulus_protocol::record::Refusal;
use rustix::event::{EventfdFlags, eventfd};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use romulus_engine::arbiter::{Outcome, Records, changed};
use romulus_engine::datagram::Limit;

use cluster::{Cluster, Swap};
pub use config::{Endpoint, EndpointError, EtcdConfig, EtcdError, User};
pub use fault::Fault;

/// How long etcd is asked for one request. Hosts have long asked again by then.
const PATIENCE: Duration = Duration::from_secs(3);
/// Requests that etcd is asked for at one time; those beyond are as if the network had lost them.
const OPEN_MAX: usize = 256;
/// The same for one machine, so that none takes what the others need.
const OPEN_EACH: usize = 16;

/// The records, seen from the server's thread. All that waits for etcd is on another.
#[derive(Debug)]
pub struct Etcd {
    requests: Option<UnboundedSender<(u64, Request)>>,
    outcomes: Arc<Outcomes>,
    /// Whose requests etcd is asked for.
    open: HashMap<u64, MachineId>,
    dropped: VecDeque<u64>,
    thread: Option<JoinHandle<()>>,
}

/// What has come of requests, and a bell.
#[derive(Debug)]
struct Outcomes {
    queue: Mutex<VecDeque<Outcome>>,
    bell: OwnedFd,
}

/// What the tasks share.
#[derive(Debug)]
struct Front {
    cluster: Cluster,
    prefix: String,
    outcomes: Arc<Outcomes>,
    damaged: Mutex<HashMap<MachineId, Limit>>,
    failed: Mutex<Limit>,
}

impl Etcd {
    /// Reads all files, and asks etcd for its records once. That no node can be reached is only
    /// logged: they may come.
    ///
    /// # Errors
    /// When a file or an option is wrong, or etcd does not let the arbiter in.
    pub fn open(config: &EtcdConfig) -> Result<Etcd, EtcdError> {
        config.check()?;
        let cluster = Cluster::new(config.endpoints.clone(), config.tls()?, config.login()?);
        let outcomes = Arc::new(Outcomes {
            queue: Mutex::default(),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .map_err(std::io::Error::from)?,
        });
        let front = Arc::new(Front {
            cluster,
            prefix: format!("{}record/", config.prefix),
            outcomes: Arc::clone(&outcomes),
            damaged: Mutex::default(),
            failed: Mutex::default(),
        });
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (requests, inbox) = unbounded_channel();
        let (report, found) = mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name("etcd".to_owned())
            .spawn(move || serve(runtime, &front, inbox, &report))?;
        let etcd = Etcd {
            requests: Some(requests),
            outcomes,
            open: HashMap::new(),
            dropped: VecDeque::new(),
            thread: Some(thread),
        };
        let nodes = config.endpoints.len();
        match found.recv() {
            Ok(Ok(machines)) => {
                tracing::info!(
                    machines,
                    nodes,
                    prefix = config.prefix,
                    "the arbiter is open"
                );
            }
            Ok(Err(fault)) if fault.is_final() => return Err(EtcdError::Refused(fault)),
            Ok(Err(fault)) => tracing::error!(
                nodes,
                prefix = config.prefix,
                "the arbiter is open, but can answer nobody before etcd answers: {fault}"
            ),
            Err(_) => return Err(std::io::Error::other("its thread has ended").into()),
        }
        Ok(etcd)
    }
}

impl Records for Etcd {
    fn ask(&mut self, client: u64, request: Request) {
        let machine = request.machine;
        let of_it = self.open.values().filter(|open| **open == machine);
        let full = self.open.len() >= OPEN_MAX || of_it.count() >= OPEN_EACH;
        let Some(requests) = self.requests.as_ref().filter(|_| !full) else {
            self.dropped.push_back(client);
            return;
        };
        match requests.send((client, request)) {
            Ok(()) => {
                self.open.insert(client, machine);
            }
            Err(_) => self.dropped.push_back(client),
        }
    }

    fn outcome(&mut self) -> Option<Outcome> {
        if let Some(client) = self.dropped.pop_front() {
            return Some(Outcome {
                client,
                answer: None,
            });
        }
        let outcome = self.outcomes.pop()?;
        self.open.remove(&outcome.client);
        Some(outcome)
    }

    fn news(&self) -> Option<BorrowedFd<'_>> {
        Some(self.outcomes.bell.as_fd())
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // The thread ends when nobody can ask any more. What etcd was asked for is left to itself.
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Outcomes {
    fn push(&self, outcome: Outcome) {
        lock(&self.queue).push_back(outcome);
        // It can only be full, and then it rings already.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    fn pop(&self) -> Option<Outcome> {
        let mut queue = lock(&self.queue);
        let outcome = queue.pop_front();
        if outcome.is_none() {
            // Within the lock: what comes after this rings again.
            let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        }
        outcome
    }
}

/// The thread that waits for etcd.
fn serve(
    runtime: Runtime,
    front: &Arc<Front>,
    mut inbox: UnboundedReceiver<(u64, Request)>,
    report: &mpsc::SyncSender<Result<u64, Fault>>,
) {
    runtime.block_on(async {
        let until = Instant::now() + PATIENCE;
        let _ = report.send(front.cluster.count(&front.prefix, until).await);
        while let Some((client, request)) = inbox.recv().await {
            let front = Arc::clone(front);
            tokio::spawn(async move {
                let answer = front.settle(&request).await;
                front.outcomes.push(Outcome { client, answer });
            });
        }
    });
    // A name that is being looked up cannot be called off.
    runtime.shutdown_background();
}

impl Front {
    /// The answer to a request; nothing if it cannot be known.
    async fn settle(&self, request: &Request) -> Option<Answer> {
        let until = Instant::now() + PATIENCE;
        let key = format!("{}{}", self.prefix, request.machine);
        let (mut seat, mut held) = match self.cluster.read(&key, until).await {
            Ok(found) => found,
            Err(fault) => return self.unanswered(request, &fault),
        };
        let answer = loop {
            let found = held.value.as_ref();
            let found = found.map(|value| value::decode(value, request.machine, &key));
            let record = match found.transpose() {
                Ok(record) => record,
                Err(damage) => {
                    self.damaged(request.machine, &damage);
                    break request.answer(None, Some(Refusal::Damaged));
                }
            };
            let next = match request.decide(record.as_ref()) {
                Err(refusal) => break request.answer(record, Some(refusal)),
                Ok(None) => break request.answer(record, None),
                Ok(Some(next)) => next,
            };
            let text = value::encode(&next);
            match seat.swap(&key, held.revision, &text, until).await {
                Ok(Swap::Made) => {
                    changed(&next);
                    break request.answer(Some(next), None);
                }
                Ok(Swap::Not(now)) => held = now,
                Err(fault) => return self.unanswered(request, &fault),
            }
        };
        seat.keep();
        Some(answer)
    }

    fn unanswered(&self, request: &Request, fault: &Fault) -> Option<Answer> {
        if let Some(silenced) = lock(&self.failed).event() {
            tracing::error!(
                machine = %request.machine, silenced,
                "a request cannot be answered: {fault}"
            );
        }
        None
    }

    fn damaged(&self, machine: MachineId, damage: &value::Damage) {
        if let Some(silenced) = lock(&self.damaged).entry(machine).or_default().event() {
            tracing::error!(%machine, silenced, "{damage}");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
