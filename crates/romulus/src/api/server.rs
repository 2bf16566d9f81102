//! Serves the control interface from a thread of its own, which never holds the machine.

use super::model::{Command, Control, Ended, Refusal, Reloaded, Reply, Status, StopRequest};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{Request, State},
    http::{
        HeaderValue, StatusCode,
        header::{ALLOW, CONNECTION, CONTENT_TYPE, UPGRADE},
    },
    response::{IntoResponse, Response},
    routing::{get, put},
};
use hyper_util::rt::TokioIo;
use std::{
    fs, io,
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{oneshot, watch},
    time::{Instant, sleep, timeout_at},
};

/// Name of the protocol that `GET /v1/console` upgrades to: bytes both ways, nothing else.
pub(crate) const CONSOLE_PROTOCOL: &str = "romulus-console";
/// Memory of the interface's thread; it holds small buffers only.
const STACK: usize = 256 << 10;
/// Output that is gathered before an attached console is sent more.
const GATHER_TIME: Duration = Duration::from_millis(5);
/// The serial port has a small buffer, which the guest empties; nobody tells when.
const INPUT_RETRY: Duration = Duration::from_millis(2);
/// How long a guest may take no input before what was typed is dropped.
const INPUT_PATIENCE: Duration = Duration::from_secs(2);
/// How long open connections have at the end, to read what they were promised.
const FAREWELL: Duration = Duration::from_secs(1);

/// The thread that serves the interface.
pub(crate) struct Server {
    end: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Binds the socket, in place of what a dead process left there, and serves it. The caller holds the machine's lock.
    pub(crate) fn start<C: Control>(socket: &Path, control: Arc<C>) -> io::Result<Self> {
        match fs::remove_file(socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(socket)?;
        // Its directory is closed to others as well; a directory that the operator chose may not be.
        fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()?;
        let (end, ended) = watch::channel(false);
        let thread = thread::Builder::new()
            .name("api".into())
            .stack_size(STACK)
            .spawn(move || {
                runtime.block_on(serve(listener, control, ended));
                runtime.shutdown_background();
            })?;
        Ok(Self {
            end,
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    /// Ends the interface, after answers that were promised are out.
    fn drop(&mut self) {
        self.end.send_replace(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the control interface's thread panicked");
        }
    }
}

async fn serve<C: Control>(listener: UnixListener, control: Arc<C>, ended: watch::Receiver<bool>) {
    let listener = match tokio::net::UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!("the control interface cannot be served: {error}");
            return;
        }
    };
    let signal = |mut ended: watch::Receiver<bool>| async move {
        // An error means that the server is gone, which is an end as well.
        let _ = ended.wait_for(|ended| *ended).await;
    };
    let serving =
        axum::serve(listener, router(control)).with_graceful_shutdown(signal(ended.clone()));
    let farewell = async {
        signal(ended).await;
        sleep(FAREWELL).await;
    };
    tokio::select! {
        result = serving => if let Err(error) = result {
            tracing::error!("the control interface ended: {error}");
        },
        () = farewell => {}
    }
}

/// The routes.
pub(crate) fn router<C: Control>(control: Arc<C>) -> Router {
    Router::new()
        .route("/v1/machine", get(status::<C>))
        .route("/v1/power-button", put(power_button::<C>))
        .route("/v1/stop", put(stop::<C>))
        .route("/v1/pause", put(pause::<C>))
        .route("/v1/resume", put(resume::<C>))
        .route("/v1/promote", put(promote::<C>))
        .route("/v1/switchover", put(switchover::<C>))
        .route("/v1/reload", put(reload::<C>))
        .route("/v1/timing", get(timing::<C>))
        .route("/v1/console", get(console::<C>))
        .route("/v1/console/log", get(console_log::<C>))
        .fallback(|| async {
            refuse(
                StatusCode::NOT_FOUND,
                "there is no such path; see GET /v1/machine and docs/api.yaml",
            )
        })
        .method_not_allowed_fallback(|| async {
            refuse(
                StatusCode::METHOD_NOT_ALLOWED,
                "this path does not take that method",
            )
        })
        .with_state(control)
}

fn refuse(status: StatusCode, error: impl Into<String>) -> Response {
    let mut response = (status, Json(Refusal::new(error))).into_response();
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response
            .headers_mut()
            .entry(ALLOW)
            .or_insert(HeaderValue::from_static("GET, PUT"));
    }
    response
}

async fn status<C: Control>(State(control): State<Arc<C>>) -> Json<Status> {
    Json(control.status())
}

async fn power_button<C: Control>(State(control): State<Arc<C>>) -> Response {
    nothing(ask(&*control, Command::PowerButton).await)
}

async fn pause<C: Control>(State(control): State<Arc<C>>) -> Response {
    nothing(ask(&*control, Command::Pause).await)
}

async fn promote<C: Control>(State(control): State<Arc<C>>) -> Response {
    nothing(ask(&*control, Command::Promote).await)
}

async fn switchover<C: Control>(State(control): State<Arc<C>>) -> Response {
    nothing(ask(&*control, Command::Switchover).await)
}

async fn reload<C: Control>(State(control): State<Arc<C>>) -> Response {
    match ask::<Reloaded>(&*control, Command::Reload).await {
        Ok(reloaded) => Json(reloaded).into_response(),
        Err(refusal) => (StatusCode::CONFLICT, Json(refusal)).into_response(),
    }
}

async fn timing<C: Control>(State(control): State<Arc<C>>) -> Response {
    match control.timing() {
        Ok(phases) => Json(phases).into_response(),
        Err(refusal) => (StatusCode::CONFLICT, Json(refusal)).into_response(),
    }
}

async fn resume<C: Control>(State(control): State<Arc<C>>) -> Response {
    nothing(ask(&*control, Command::Resume).await)
}

async fn stop<C: Control>(State(control): State<Arc<C>>, body: Bytes) -> Response {
    // The body is optional, and its type is clear without a header.
    let request = if body.is_empty() {
        Ok(StopRequest::default())
    } else {
        serde_json::from_slice(&body)
    };
    let request: StopRequest = match request {
        Ok(request) => request,
        Err(error) => {
            return refuse(
                StatusCode::BAD_REQUEST,
                format!("the body is not what stop takes: {error}"),
            );
        }
    };
    let timeout = match request
        .timeout
        .as_deref()
        .map(humantime::parse_duration)
        .transpose()
    {
        Ok(timeout) => timeout,
        Err(error) => {
            return refuse(
                StatusCode::BAD_REQUEST,
                format!("timeout: {error}; write for example \"30 s\""),
            );
        }
    };
    match ask::<Ended>(&*control, |reply| Command::Stop(timeout, reply)).await {
        Ok(ended) => Json(ended).into_response(),
        Err(refusal) => (StatusCode::CONFLICT, Json(refusal)).into_response(),
    }
}

async fn ask<T>(
    control: &impl Control,
    command: impl FnOnce(Reply<T>) -> Command,
) -> Result<T, Refusal> {
    let (reply, answer) = oneshot::channel();
    control.send(command(reply))?;
    answer
        .await
        .unwrap_or_else(|_| Err(Refusal::new("the machine ended meanwhile")))
}

fn nothing(result: Result<(), Refusal>) -> Response {
    match result {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(refusal) => (StatusCode::CONFLICT, Json(refusal)).into_response(),
    }
}

async fn console_log<C: Control>(State(control): State<Arc<C>>) -> Response {
    let (bytes, _) = control.console().latest();
    ([(CONTENT_TYPE, "application/octet-stream")], bytes).into_response()
}

async fn console<C: Control>(State(control): State<Arc<C>>, request: Request) -> Response {
    let wanted = request.headers().get(UPGRADE).is_some_and(|value| {
        value
            .as_bytes()
            .eq_ignore_ascii_case(CONSOLE_PROTOCOL.as_bytes())
    });
    if !wanted {
        let mut response = refuse(
            StatusCode::UPGRADE_REQUIRED,
            format!(
                "the console needs `Upgrade: {CONSOLE_PROTOCOL}`; its latest output is at /v1/console/log"
            ),
        );
        response
            .headers_mut()
            .insert(UPGRADE, HeaderValue::from_static(CONSOLE_PROTOCOL));
        return response;
    }
    tokio::spawn(async move {
        match hyper::upgrade::on(request).await {
            Ok(connection) => attach(&*control, TokioIo::new(connection)).await,
            Err(error) => tracing::debug!("a console did not attach: {error}"),
        }
    });
    let headers = [(CONNECTION, "upgrade"), (UPGRADE, CONSOLE_PROTOCOL)];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

/// Carries bytes between a console and the machine until either ends.
async fn attach<C: Control>(control: &C, connection: TokioIo<hyper::upgrade::Upgraded>) {
    let (mut reader, mut writer) = tokio::io::split(connection);
    let output = async {
        let hub = control.console();
        let (latest, mut position) = hub.latest();
        writer.write_all(&latest).await?;
        while let Some((bytes, end, missed)) = hub.follow(position).await {
            if missed > 0 {
                writer
                    .write_all(format!("\r\n[{missed} bytes missed]\r\n").as_bytes())
                    .await?;
            }
            writer.write_all(&bytes).await?;
            position = end;
            sleep(GATHER_TIME).await;
        }
        writer.shutdown().await
    };
    let input = async {
        let mut buffer = [0; 1024];
        loop {
            match reader.read(&mut buffer).await? {
                // Who has no more to say may still want to read.
                0 => return std::future::pending::<io::Result<()>>().await,
                length => feed(control, &buffer[..length]).await,
            }
        }
    };
    let result = tokio::select! {
        result = output => result,
        result = input => result,
    };
    if let Err(error) = result {
        tracing::debug!("an attached console ended: {error}");
    }
}

/// Offers input to the serial port until it has taken all.
async fn feed<C: Control>(control: &C, mut bytes: &[u8]) {
    let mut deadline = Instant::now() + INPUT_PATIENCE;
    loop {
        let taken = control.console_input(bytes).min(bytes.len());
        bytes = &bytes[taken..];
        if bytes.is_empty() {
            return;
        }
        if taken > 0 {
            deadline = Instant::now() + INPUT_PATIENCE;
        }
        if timeout_at(deadline, sleep(INPUT_RETRY)).await.is_err() {
            tracing::debug!("the guest takes no input; {} bytes dropped", bytes.len());
            return;
        }
    }
}
