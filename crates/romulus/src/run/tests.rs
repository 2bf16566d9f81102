//! Tests of the supervisor and of the control interface, with a guest that only obeys the test.

use super::{
    guest::{Boot, Guest, Port},
    supervisor::{End, Event, Supervisor},
    testing::{LONG, Running, parts},
};
use crate::{
    api::{
        client::Client,
        model::{Command, Control as _, Ended, State},
        server::Server,
    },
    exit::{Code, Failure},
    runtime::RuntimeDir,
};
use romulus_machine::{Exit, Statistics};
use signal_hook::consts::{SIGHUP, SIGTERM};
use std::{
    io::{Read as _, Write as _},
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixListener, UnixStream},
    },
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[derive(Default)]
struct Fake {
    exit: Mutex<Option<Exit>>,
    exited: Condvar,
    presses: AtomicU32,
    paused: AtomicBool,
    /// What the guest does when its power button is pressed.
    at_press: Option<Exit>,
    typed: Mutex<Vec<u8>>,
}

impl Fake {
    fn end(&self, exit: Exit) {
        *self.exit.lock().unwrap() = Some(exit);
        self.exited.notify_all();
    }
}

impl Port for Fake {
    fn press_power_button(&self) {
        self.presses.fetch_add(1, Ordering::SeqCst);
        // A guest whose vCPUs are parked does nothing.
        if let Some(exit) = self.at_press.clone()
            && !self.paused.load(Ordering::SeqCst)
        {
            self.end(exit);
        }
    }
    fn console_input(&self, bytes: &[u8]) -> usize {
        // Like the real port, it takes little at a time.
        let taken = bytes.len().min(3);
        self.typed
            .lock()
            .unwrap()
            .extend_from_slice(&bytes[..taken]);
        taken
    }
    fn wait_exit(&self, timeout: Duration) -> Option<Exit> {
        let exit = self.exit.lock().unwrap();
        self.exited
            .wait_timeout_while(exit, timeout, |exit| exit.is_none())
            .unwrap()
            .0
            .clone()
    }
    fn statistics(&self) -> Statistics {
        Statistics::default()
    }
}

struct FakeGuest(Arc<Fake>);

impl Guest for FakeGuest {
    fn port(&self) -> Arc<dyn Port> {
        Arc::clone(&self.0) as Arc<dyn Port>
    }
    fn pause(&mut self) -> anyhow::Result<()> {
        self.0.paused.store(true, Ordering::SeqCst);
        Ok(())
    }
    fn resume(&mut self) -> anyhow::Result<()> {
        self.0.paused.store(false, Ordering::SeqCst);
        Ok(())
    }
}

impl Drop for FakeGuest {
    /// A guest that is ended lets its watcher go.
    fn drop(&mut self) {
        self.0.end(Exit::PoweredOff);
    }
}

/// Starts a supervisor of fake guests.
fn start(keys: &str, at_press: Option<Exit>) -> Running<Fake> {
    let text = format!(
        "name = 'fake'\nmemory = '128 MiB'\n{keys}\nboot.kernel = 'k'\n[[nic]]\ntap = 't0'\n"
    );
    Running::start(&text, 0, move |shared, inbox, made| {
        let boot = move || {
            let fake = Arc::new(Fake {
                at_press: at_press.clone(),
                ..Fake::default()
            });
            let _ = made.send(Arc::clone(&fake));
            Ok(Box::new(FakeGuest(fake)) as Box<dyn Guest>)
        };
        Supervisor::new(shared, inbox, Box::new(boot), false).run()
    })
}

#[test]
fn a_guest_that_switches_itself_off_ends_with_0() {
    let running = start("", None);
    running.next_fake().end(Exit::PoweredOff);
    assert_eq!(running.end().code, Code::Done);
}

#[test]
fn a_signal_presses_the_power_button_and_the_guest_may_follow() {
    let running = start("", Some(Exit::PoweredOff));
    let guest = running.next_fake();
    running.send(Event::Signal(SIGTERM));
    assert_eq!(
        running.end(),
        End {
            code: Code::Done,
            text: "stopped in order".into()
        }
    );
    assert_eq!(guest.presses.load(Ordering::SeqCst), 1);
}

#[test]
fn a_guest_that_does_not_follow_is_forced_after_the_time() {
    let begin = Instant::now();
    let running = start("stop_timeout = '200 ms'", None);
    running.send(Event::Signal(SIGTERM));
    assert_eq!(running.end().code, Code::Forced);
    assert!(begin.elapsed() >= Duration::from_millis(200));
}

#[test]
fn a_second_signal_forces_at_once() {
    let running = start("stop_timeout = '1 h'", None);
    running.send(Event::Signal(SIGTERM));
    running.wait_state(State::Stopping);
    running.send(Event::Signal(SIGTERM));
    assert_eq!(running.end().code, Code::Forced);
}

#[test]
fn a_hangup_only_opens_the_log_anew() {
    let running = start("", None);
    let guest = running.next_fake();
    running.wait_state(State::Running);
    running.send(Event::Signal(SIGHUP));
    assert!(running.ask(Command::Pause).is_ok());
    assert_eq!(guest.presses.load(Ordering::SeqCst), 0);
    guest.end(Exit::PoweredOff);
    assert_eq!(running.end().code, Code::Done);
}

#[test]
fn a_reset_starts_a_new_life_or_ends_with_10() {
    let running = start("", None);
    running.next_fake().end(Exit::Reset);
    let second = running.next_fake();
    running.wait_state(State::Running);
    assert_eq!(running.shared.status().restarts, 1);
    second.end(Exit::PoweredOff);
    assert_eq!(running.end().code, Code::Done);

    let running = start("on_reboot = 'exit'", None);
    running.next_fake().end(Exit::Reset);
    assert_eq!(running.end().code, Code::Reset);
}

#[test]
fn a_reset_while_stopping_starts_nothing() {
    let running = start("", Some(Exit::Reset));
    running.send(Event::Stop);
    assert_eq!(running.end().code, Code::Done);
}

#[test]
fn a_panic_ends_with_11_or_starts_a_new_life() {
    let running = start("", None);
    running.next_fake().end(Exit::Panicked);
    assert_eq!(running.end().code, Code::Panicked);

    let running = start("on_panic = 'restart'", None);
    running.next_fake().end(Exit::Panicked);
    running.next_fake().end(Exit::Failed("broken".into()));
    let end = running.end();
    assert_eq!(end.code, Code::VcpuFailed);
    assert!(end.text.contains("broken"));
}

#[test]
fn a_paused_machine_is_resumed_to_be_stopped() {
    let running = start("stop_timeout = '2 s'", Some(Exit::PoweredOff));
    let _guest = running.next_fake();
    running.wait_state(State::Running);
    assert!(running.ask(Command::Pause).is_ok());
    assert_eq!(running.shared.state(), State::Paused);
    assert!(
        running
            .ask(Command::PowerButton)
            .unwrap_err()
            .error
            .contains("resume it first")
    );
    assert!(running.ask(Command::Resume).is_ok());
    assert_eq!(running.shared.state(), State::Running);
    assert!(running.ask(Command::Pause).is_ok());
    running.send(Event::Signal(SIGTERM));
    assert_eq!(running.end().code, Code::Done);
}

#[test]
fn a_boot_that_fails_ends_with_its_code() {
    let text = "name = 'fake'\nmemory = '128 MiB'\nboot.kernel = 'k'\n";
    let (shared, inbox) = parts(text, 0);
    let boot: Boot = Box::new(|| {
        Err(Failure {
            code: Code::NoInput,
            error: anyhow::anyhow!("no kernel"),
        })
    });
    let failure = Supervisor::new(shared, inbox, boot, false)
        .run()
        .unwrap_err();
    assert_eq!(failure.code, Code::NoInput);
}

/// A supervisor behind a real socket.
struct Served {
    running: Running<Fake>,
    server: Server,
    directory: RuntimeDir,
    _files: tempfile::TempDir,
}

fn serve(keys: &str, at_press: Option<Exit>) -> Served {
    let files = tempfile::tempdir().unwrap();
    let directory = RuntimeDir::at(files.path());
    let running = start(keys, at_press);
    running.wait_state(State::Running);
    let server = Server::start(&directory.socket("fake"), Arc::clone(&running.shared)).unwrap();
    Served {
        running,
        server,
        directory,
        _files: files,
    }
}

impl Served {
    fn client(&self) -> Client {
        Client::new(&self.directory, "fake").unwrap()
    }

    /// Sends a request as any HTTP client would; returns the whole answer.
    fn raw(&self, head: &str, body: &str) -> String {
        let mut stream = UnixStream::connect(self.directory.socket("fake")).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        let request = format!("{head}\r\nHost: x\r\nConnection: close\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

fn done<T>(result: Result<T, Failure>) -> T {
    result.unwrap_or_else(|failure| panic!("{:#}", failure.error))
}

#[test]
fn the_socket_is_for_its_owner_alone() {
    let served = serve("", None);
    let mode = std::fs::metadata(served.directory.socket("fake"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn status_tells_the_machine() {
    let served = serve("vcpus = 2", None);
    let status = done(served.client().status());
    assert_eq!(
        (status.name.as_str(), status.vcpus, status.memory),
        ("fake", 2, 128 << 20)
    );
    assert_eq!(
        (status.state, status.pid),
        (State::Running, std::process::id())
    );
    assert_eq!(status.nics.len(), 1);
    assert_eq!(status.nics[0].tap, "t0");
}

#[test]
fn any_http_client_may_pause_and_resume() {
    let served = serve("", None);
    assert!(
        served
            .raw("PUT /v1/pause HTTP/1.1", "")
            .starts_with("HTTP/1.1 204")
    );
    assert!(
        served
            .raw("GET /v1/machine HTTP/1.1", "")
            .contains("\"state\":\"paused\"")
    );
    assert!(
        served
            .raw("PUT /v1/power-button HTTP/1.1", "")
            .starts_with("HTTP/1.1 409")
    );
    assert!(
        served
            .raw("PUT /v1/resume HTTP/1.1", "")
            .starts_with("HTTP/1.1 204")
    );
    assert!(
        served
            .raw("PUT /v1/power-button HTTP/1.1", "")
            .starts_with("HTTP/1.1 204")
    );
    assert_eq!(served.running.next_fake().presses.load(Ordering::SeqCst), 1);
}

#[test]
fn what_is_asked_wrongly_is_refused_with_a_reason() {
    let served = serve("", None);
    assert!(
        served
            .raw("GET /v2 HTTP/1.1", "")
            .starts_with("HTTP/1.1 404")
    );
    assert!(
        served
            .raw("DELETE /v1/machine HTTP/1.1", "")
            .starts_with("HTTP/1.1 405")
    );
    assert!(
        served
            .raw("GET /v1/console HTTP/1.1", "")
            .starts_with("HTTP/1.1 426")
    );
    let body = r#"{"timeout":"soon"}"#;
    let answer = served.raw(
        &format!("PUT /v1/stop HTTP/1.1\r\nContent-Length: {}", body.len()),
        body,
    );
    assert!(
        answer.starts_with("HTTP/1.1 400") && answer.contains("30 s"),
        "{answer}"
    );
    assert_eq!(served.running.shared.state(), State::Running);
}

#[test]
fn stop_is_answered_with_how_it_ended() {
    let served = serve("stop_timeout = '1 h'", None);
    let client = served.client();
    // The server goes when the supervisor has ended, and must still give the answer.
    let waiter = {
        let Served {
            running, server, ..
        } = served;
        thread::spawn(move || {
            let end = running.end();
            drop(server);
            end
        })
    };
    let ended = done(client.stop(Some(Duration::from_millis(50))));
    assert_eq!(
        ended,
        Ended::new(
            Code::Forced,
            "did not stop in time and was stopped by force"
        )
    );
    assert_eq!(waiter.join().unwrap().code, Code::Forced);
}

#[test]
fn nobody_there_is_told_with_code_15() {
    let files = tempfile::tempdir().unwrap();
    let client = Client::new(&RuntimeDir::at(files.path()), "none").unwrap();
    let failure = client.status().unwrap_err();
    assert_eq!(failure.code, Code::NotRunning);
    assert!(
        failure.error.to_string().contains("no machine none runs"),
        "{:#}",
        failure.error
    );
}

#[test]
fn a_socket_left_behind_is_told_and_replaced() {
    let files = tempfile::tempdir().unwrap();
    let directory = RuntimeDir::at(files.path());
    drop(UnixListener::bind(directory.socket("fake")).unwrap());
    let client = Client::new(&directory, "fake").unwrap();
    let failure = client.status().unwrap_err();
    assert_eq!(failure.code, Code::NotRunning);
    assert!(
        failure.error.to_string().contains("was killed"),
        "{:#}",
        failure.error
    );
    assert_eq!(directory.names().unwrap(), ["fake"]);

    let running = start("", None);
    running.wait_state(State::Running);
    let _server = Server::start(&directory.socket("fake"), Arc::clone(&running.shared)).unwrap();
    assert_eq!(done(client.status()).name, "fake");
}

#[test]
fn several_consoles_see_the_same_and_may_type() {
    let served = serve("", None);
    let guest = served.running.next_fake();
    let hub = Arc::clone(&served.running.shared.hub);
    hub.push(b"before ");
    let client = served.client();
    let read = |mut connection: hyper_util::rt::TokioIo<hyper::upgrade::Upgraded>,
                typed: &'static [u8]| {
        let hub = Arc::clone(&hub);
        let guest = Arc::clone(&guest);
        async move {
            let mut seen = vec![0; 7];
            connection.read_exact(&mut seen).await?;
            assert_eq!(seen, b"before ");
            hub.push(b"after");
            let mut seen = vec![0; 5];
            connection.read_exact(&mut seen).await?;
            assert_eq!(seen, b"after");
            connection.write_all(typed).await?;
            let deadline = Instant::now() + LONG;
            while !guest.typed.lock().unwrap().ends_with(typed) {
                assert!(Instant::now() < deadline, "what was typed never came");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Ok(())
        }
    };
    done(client.attach(|connection| read(connection, b"a long line\r")));
    // Who comes later sees what was, and a reader that has left stops nobody.
    let later = done(client.console_log());
    assert_eq!(&later[..], b"before after");
    let second = served.client();
    done(second.attach(|mut connection| async move {
        let mut seen = vec![0; 12];
        connection.read_exact(&mut seen).await?;
        assert_eq!(seen, b"before after");
        Ok(())
    }));
}
