//! Talks to a running machine's control interface.

use super::{
    model::{Ended, PhaseTiming, Refusal, Reloaded, Status, StopRequest},
    server::CONSOLE_PROTOCOL,
};
use crate::{
    exit::{Code, Failure, OrExit as _},
    runtime::{Holder, RuntimeDir},
};
use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1::{self, SendRequest},
    header::{CONNECTION, HOST, UPGRADE},
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use std::{
    future::Future,
    io,
    path::PathBuf,
    time::{Duration, Instant},
};
use tokio::{net::UnixStream, runtime::Runtime, time::timeout};

/// How long a machine may take to answer what it answers at once.
const ANSWER: Duration = Duration::from_secs(10);
/// How often the end of a process is looked for; there is nothing to wait on for a lock without taking it.
const LOOK: Duration = Duration::from_millis(10);

/// A running machine of this user.
pub(crate) struct Client {
    name: String,
    socket: PathBuf,
    directory: RuntimeDir,
    runtime: Runtime,
}

impl Client {
    /// A client for the machine of that name; nothing is opened yet.
    pub(crate) fn new(directory: &RuntimeDir, name: &str) -> anyhow::Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            socket: directory.socket(name),
            directory: directory.clone(),
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .enable_time()
                .build()
                .context("cannot make a runtime for input and output")?,
        })
    }

    /// Everything about the machine.
    pub(crate) fn status(&self) -> Result<Status, Failure> {
        let body = self.call(Method::GET, "/v1/machine", Bytes::new(), Some(ANSWER))?;
        Ok(serde_json::from_slice(&body)
            .context("the machine's answer is none that this version knows")?)
    }

    /// How long each phase of a protected machine's epochs takes.
    pub(crate) fn timing(&self) -> Result<Vec<PhaseTiming>, Failure> {
        let body = self.call(Method::GET, "/v1/timing", Bytes::new(), Some(ANSWER))?;
        Ok(serde_json::from_slice(&body)
            .context("the machine's answer is none that this version knows")?)
    }

    /// Asks for the machine to run here although newer state may be lost. That it was asked for is all that is known
    /// afterwards: whether the arbiter grants it shows in the status.
    pub(crate) fn promote(&self) -> Result<(), Failure> {
        self.call(Method::PUT, "/v1/promote", Bytes::new(), Some(ANSWER))?;
        Ok(())
    }

    /// Hands the machine over to the other host; returns when that runs it.
    pub(crate) fn switchover(&self) -> Result<(), Failure> {
        // The machine's process says in time what has come of it.
        self.call(Method::PUT, "/v1/switchover", Bytes::new(), None)?;
        Ok(())
    }

    /// Lets the machine's process read its file again.
    pub(crate) fn reload(&self) -> Result<Reloaded, Failure> {
        let body = self.call(Method::PUT, "/v1/reload", Bytes::new(), Some(ANSWER))?;
        Ok(serde_json::from_slice(&body)
            .context("the machine's answer is none that this version knows")?)
    }

    /// The latest console output.
    pub(crate) fn console_log(&self) -> Result<Bytes, Failure> {
        self.call(Method::GET, "/v1/console/log", Bytes::new(), Some(ANSWER))
    }

    /// Stops the machine; returns how it ended.
    pub(crate) fn stop(&self, timeout: Option<Duration>) -> Result<Ended, Failure> {
        let request = StopRequest {
            timeout: timeout.map(|timeout| humantime::format_duration(timeout).to_string()),
        };
        let body = serde_json::to_vec(&request).context("cannot write the request")?;
        let answer = self.call(Method::PUT, "/v1/stop", body.into(), None)?;
        Ok(serde_json::from_slice(&answer)
            .context("the machine's answer is none that this version knows")?)
    }

    /// Waits until the machine's process is gone; returns whether it is.
    pub(crate) fn wait_gone(&self, limit: Duration) -> anyhow::Result<bool> {
        let deadline = Instant::now() + limit;
        while self.holder()?.is_some() {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(LOOK);
        }
        Ok(true)
    }

    /// Opens the console and hands its bytes to `session`.
    pub(crate) fn attach<T, F>(
        &self,
        session: impl FnOnce(TokioIo<Upgraded>) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = anyhow::Result<T>>,
    {
        self.runtime.block_on(async {
            let mut sender = self.connect().await?;
            let request = Request::builder()
                .uri("/v1/console")
                .header(HOST, "romulus")
                .header(CONNECTION, "upgrade")
                .header(UPGRADE, CONSOLE_PROTOCOL)
                .body(Full::new(Bytes::new()))
                .context("cannot write the request")?;
            let response = timeout(ANSWER, sender.send_request(request))
                .await
                .context("the machine does not answer")?
                .context("the machine closed the connection")?;
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                return Err(self.refused(response).await.into());
            }
            let connection = hyper::upgrade::on(response)
                .await
                .context("the console did not open")?;
            Ok(session(TokioIo::new(connection)).await?)
        })
    }

    fn call(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        limit: Option<Duration>,
    ) -> Result<Bytes, Failure> {
        self.runtime.block_on(async {
            let mut sender = self.connect().await?;
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header(HOST, "romulus")
                .body(Full::new(body))
                .context("cannot write the request")?;
            let answer = async {
                let response = sender
                    .send_request(request)
                    .await
                    .context("the machine's process ended without an answer")?;
                if !response.status().is_success() {
                    return Err(self.refused(response).await);
                }
                let body = response
                    .into_body()
                    .collect()
                    .await
                    .context("the machine's answer broke off")?;
                Ok(body.to_bytes())
            };
            Ok(match limit {
                Some(limit) => timeout(limit, answer)
                    .await
                    .with_context(|| format!("the machine does not answer within {limit:?}"))??,
                None => answer.await?,
            })
        })
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Failure> {
        let stream = match UnixStream::connect(&self.socket).await {
            Ok(stream) => stream,
            Err(error) => return Err(self.unreachable(&error)),
        };
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .context("the control socket is no HTTP server")?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!("connection to the machine: {error}");
            }
        });
        Ok(sender)
    }

    fn unreachable(&self, error: &io::Error) -> Failure {
        let Self { name, socket, .. } = self;
        let socket = socket.display();
        let (code, text) = match (error.kind(), self.holder()) {
            (io::ErrorKind::PermissionDenied, _) => (
                Code::NoPermission,
                format!("no permission for {socket}; run as the user who runs the machine"),
            ),
            (_, Ok(Some(holder))) => (
                Code::Failed,
                format!(
                    "machine {name} ({holder}) does not take connections at {socket}: {error}; it may be starting or ending: try again"
                ),
            ),
            (io::ErrorKind::ConnectionRefused, _) => (
                Code::NotRunning,
                format!(
                    "machine {name} does not run; its process was killed and left {socket} behind (`romulus run` replaces it)"
                ),
            ),
            _ => (
                Code::NotRunning,
                format!(
                    "no machine {name} runs ({socket}: {error}); `romulus status` lists those that do"
                ),
            ),
        };
        Failure {
            code,
            error: anyhow::Error::msg(text),
        }
    }

    fn holder(&self) -> anyhow::Result<Option<Holder>> {
        self.directory
            .holder(&self.name)
            .with_context(|| format!("cannot ask who runs {}", self.name))
    }

    async fn refused(&self, response: Response<Incoming>) -> anyhow::Error {
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes)
            .unwrap_or_default();
        match serde_json::from_slice::<Refusal>(&body) {
            Ok(refusal) => anyhow::anyhow!("machine {} refuses: {}", self.name, refusal.error),
            Err(_) => anyhow::anyhow!("machine {} answers {status}", self.name),
        }
    }
}

/// Makes sure that a machine's process is really gone before the command ends.
pub(crate) fn gone(client: &Client, limit: Duration) -> Result<(), Failure> {
    let check = || {
        if client.wait_gone(limit)? {
            Ok(())
        } else {
            bail!("the machine has ended but its process is still there after {limit:?}")
        }
    };
    check().or_exit(Code::Failed)
}
