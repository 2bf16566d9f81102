//! All nodes of one etcd: which of them is asked, and what is believed.
//!
//! A read goes to the node that answered last, and to the next one when that fails; it changes
//! nothing, so it may be asked as often as one likes. A change goes out once, over the connection
//! that has just answered the read which it rests on. If anything at all goes wrong from then on,
//! it may have been made, or be made later: no error that etcd knows says otherwise. (Even "no
//! space" may come after the change was made.)

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::HeaderValue;
use rustls::ClientConfig;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout_at};

use crate::lock;

use super::api::{self, Failure, Held, Reply};
use super::config::{Endpoint, Login};
use super::fault::Fault;
use super::line::Line;

/// How long one node may take for a read before the next is asked.
const TRY: Duration = Duration::from_secs(1);
/// The pause after all nodes have failed.
const ROUND: Duration = Duration::from_millis(100);
/// Connections to one node that are kept for later.
const IDLE_MAX: usize = 8;

/// The nodes of one etcd.
#[derive(Debug)]
pub(super) struct Cluster {
    nodes: Vec<Node>,
    tls: Option<Arc<ClientConfig>>,
    login: Option<Login>,
    token: Mutex<Option<HeaderValue>>,
    /// The node that answered last.
    best: AtomicUsize,
    /// The cluster's own number, once one has answered.
    id: OnceLock<u64>,
    /// The highest revision that was seen.
    revision: AtomicU64,
}

#[derive(Debug)]
struct Node {
    endpoint: Endpoint,
    name: String,
    idle: Mutex<Vec<Line>>,
}

/// What has come of a change.
#[derive(Debug)]
pub(super) enum Swap {
    /// It was made, and a majority of the nodes has it.
    Made,
    /// It was not: something else is under the key.
    Not(Held),
}

impl Cluster {
    pub(super) fn new(
        endpoints: Vec<Endpoint>,
        tls: Option<Arc<ClientConfig>>,
        login: Option<Login>,
    ) -> Cluster {
        let node = |endpoint: Endpoint| Node {
            name: endpoint.to_string(),
            endpoint,
            idle: Mutex::default(),
        };
        Cluster {
            nodes: endpoints.into_iter().map(node).collect(),
            tls,
            login,
            token: Mutex::default(),
            best: AtomicUsize::new(0),
            id: OnceLock::new(),
            revision: AtomicU64::new(0),
        }
    }

    /// How many keys begin with `prefix`.
    pub(super) async fn count(&self, prefix: &str, until: Instant) -> Result<u64, Fault> {
        let (mut seat, range) = self.range(&api::count(prefix), until).await?;
        seat.keep();
        Ok(range.count)
    }

    /// What is under `key`, no older than anything that was answered before this call; and the
    /// seat from which a change of it can be made.
    pub(super) async fn read(&self, key: &str, until: Instant) -> Result<(Seat<'_>, Held), Fault> {
        let (seat, range) = self.range(&api::read(key), until).await?;
        let held = range.held(key).map_err(|why| seat.foreign(why))?;
        Ok((seat, held))
    }

    async fn range(&self, what: &Value, until: Instant) -> Result<(Seat<'_>, api::Range), Fault> {
        let first = self.best.load(Ordering::Relaxed);
        let mut tried = 0;
        loop {
            let index = (first + tried) % self.nodes.len();
            tried += 1;
            let by = until.min(Instant::now() + TRY);
            let fault = match self.range_at(index, what, by).await {
                Ok(found) => {
                    self.best.store(index, Ordering::Relaxed);
                    return Ok(found);
                }
                Err(fault) => fault,
            };
            // Others to this node have hardly fared better.
            lock(&self.nodes[index].idle).clear();
            if tried.is_multiple_of(self.nodes.len()) {
                sleep(ROUND).await;
            }
            if fault.is_final() || Instant::now() >= until {
                return Err(fault);
            }
        }
    }

    async fn range_at(
        &self,
        index: usize,
        what: &Value,
        by: Instant,
    ) -> Result<(Seat<'_>, api::Range), Fault> {
        let mut seat = Seat {
            cluster: self,
            node: &self.nodes[index],
            line: None,
        };
        match seat.call(api::RANGE, what, by).await {
            Ok(range) => Ok((seat, range)),
            Err(fault) if fault.is_about_the_token() && self.login.is_some() => {
                *lock(&self.token) = None;
                let range = seat.call(api::RANGE, what, by).await?;
                Ok((seat, range))
            }
            Err(fault) => Err(fault),
        }
    }

    /// Refuses what comes from another cluster, or from before `seen`, the highest revision that
    /// was known when the call began.
    fn believe(&self, node: &Node, header: api::Header, seen: u64) -> Result<(), Fault> {
        let endpoint = node.name.clone();
        let first = *self.id.get_or_init(|| header.cluster_id);
        if header.cluster_id != first {
            let other = header.cluster_id;
            return Err(Fault::OtherCluster {
                endpoint,
                first,
                other,
            });
        }
        if header.revision < seen {
            return Err(Fault::Back {
                endpoint,
                before: seen,
                now: header.revision,
            });
        }
        self.revision.fetch_max(header.revision, Ordering::Relaxed);
        Ok(())
    }
}

/// One node, and a connection to it while nothing has gone wrong.
#[derive(Debug)]
pub(super) struct Seat<'a> {
    cluster: &'a Cluster,
    node: &'a Node,
    line: Option<Line>,
}

impl Seat<'_> {
    /// Puts `value` under `key`, if what is there was last changed at `revision`. Without a fault
    /// the outcome is known; with one it is not, whatever the fault says.
    pub(super) async fn swap(
        &mut self,
        key: &str,
        revision: u64,
        value: &str,
        by: Instant,
    ) -> Result<Swap, Fault> {
        let txn: api::Txn = self
            .call(api::TXN, &api::swap(key, revision, value), by)
            .await?;
        if txn.succeeded {
            return Ok(Swap::Made);
        }
        let held = txn.held(key).map_err(|why| self.foreign(why))?;
        Ok(Swap::Not(held))
    }

    /// Keeps the connection for another request.
    pub(super) fn keep(&mut self) {
        if let Some(line) = self.line.take() {
            let mut idle = lock(&self.node.idle);
            if idle.len() < IDLE_MAX {
                idle.push(line);
            }
        }
    }

    async fn call<R: Reply>(
        &mut self,
        path: &'static str,
        what: &Value,
        by: Instant,
    ) -> Result<R, Fault> {
        let began = Instant::now();
        if let Ok(result) = timeout_at(by, self.call_on(path, what)).await {
            return result;
        }
        // Its answer may still come, and must not be taken for another's.
        self.line = None;
        Err(Fault::Silent {
            endpoint: self.node.name.clone(),
            within: by.saturating_duration_since(began),
        })
    }

    async fn call_on<R: Reply>(&mut self, path: &'static str, what: &Value) -> Result<R, Fault> {
        let seen = self.cluster.revision.load(Ordering::Relaxed);
        let token = self.token().await?;
        let reply: R = self.post(path, what, token.as_ref()).await?;
        let header = reply.header().unwrap_or_default();
        self.cluster.believe(self.node, header, seen)?;
        Ok(reply)
    }

    /// The token, asked for if there is none.
    async fn token(&mut self) -> Result<Option<HeaderValue>, Fault> {
        let Some(login) = &self.cluster.login else {
            return Ok(None);
        };
        let known = lock(&self.cluster.token).clone();
        if known.is_some() {
            return Ok(known);
        }
        let what = api::authenticate(&login.name, &login.password);
        let reply: api::Token = match self.post(api::AUTHENTICATE, &what, None).await {
            Err(fault) if fault.is_about_no_authentication() => return Ok(None),
            reply => reply?,
        };
        let mut token = HeaderValue::try_from(reply.token)
            .map_err(|_| self.foreign("its token cannot stand in a header".to_owned()))?;
        token.set_sensitive(true);
        *lock(&self.cluster.token) = Some(token.clone());
        Ok(Some(token))
    }

    async fn post<R: Reply>(
        &mut self,
        path: &'static str,
        what: &Value,
        token: Option<&HeaderValue>,
    ) -> Result<R, Fault> {
        let mut line = match self.line.take() {
            Some(line) => line,
            // Whatever was closed meanwhile is dropped.
            None => match self.idle() {
                Some(line) => line,
                None => Line::open(&self.node.endpoint, self.cluster.tls.as_ref())
                    .await
                    .map_err(|why| self.unreachable(why))?,
            },
        };
        let answer = line.post(path, what.to_string(), token).await;
        let (status, body) = answer.map_err(|why| self.unreachable(why))?;
        self.line = Some(line);
        self.reply(status, &body)
    }

    fn idle(&self) -> Option<Line> {
        let mut idle = lock(&self.node.idle);
        while let Some(line) = idle.pop() {
            if line.is_open() {
                return Some(line);
            }
        }
        None
    }

    fn reply<R: Reply>(&self, status: StatusCode, body: &Bytes) -> Result<R, Fault> {
        if status == StatusCode::OK {
            return serde_json::from_slice(body).map_err(|error| self.foreign(error.to_string()));
        }
        match serde_json::from_slice::<Failure>(body) {
            Ok(failure) => Err(Fault::Refused {
                endpoint: self.node.name.clone(),
                code: failure.code,
                message: failure.message,
                user: self.cluster.login.as_ref().map(|login| login.name.clone()),
            }),
            Err(_) => Err(self.foreign(format!("it says {status}"))),
        }
    }

    fn unreachable(&self, why: String) -> Fault {
        Fault::Unreachable {
            endpoint: self.node.name.clone(),
            why,
        }
    }

    fn foreign(&self, why: String) -> Fault {
        Fault::Foreign {
            endpoint: self.node.name.clone(),
            why,
        }
    }
}
