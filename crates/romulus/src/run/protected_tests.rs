//! Tests of the supervisor of protected machines, with an engine and a guest that only obey the test.

use super::{
    cover::Protector,
    guest::Port,
    protected::{News, Protected},
    supervisor::{End, Event},
    testing::{LONG, Running},
};
use crate::{
    api::model::{Command, Control as _, Ended, Refusal, State},
    config::MachineFile,
    exit::Code,
};
use romulus_engine::{Ended as EngineEnded, OutputFigures, PhaseTimes, Status};
use romulus_machine::{Exit, Statistics};
use romulus_network::Mode;
use romulus_protocol::{
    heartbeat::Uplink,
    host::{RoleName, Status as HostStatus},
    id::{Epoch, Generation, Incarnation, MachineId, Term},
    record::{Phase, Record},
    time::Time,
};
use signal_hook::consts::SIGTERM;
use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

const FILE: &str = include_str!("../../../../docs/examples/protected.toml");

#[derive(Default)]
struct Guest {
    presses: AtomicU32,
}

impl Port for Guest {
    fn press_power_button(&self) {
        self.presses.fetch_add(1, Ordering::SeqCst);
    }
    fn console_input(&self, bytes: &[u8]) -> usize {
        bytes.len()
    }
    fn wait_exit(&self, _: Duration) -> Option<Exit> {
        None
    }
    fn statistics(&self) -> Statistics {
        Statistics::default()
    }
}

fn incarnation(number: u128) -> Incarnation {
    Incarnation::new(number).unwrap()
}

/// What an engine says that waits and has heard of nobody.
fn waiting() -> Status {
    Status {
        mode: Mode::Net,
        changes_mode: false,
        input: romulus_engine::InputFigures::default(),
        host: HostStatus {
            role: RoleName::Waiting,
            term: None,
            epoch: Epoch(0),
            lag: 0,
            whole: false,
            record: None,
            protected_since: None,
            t_b: Duration::from_millis(100),
            arbiter_answers: true,
            uplink: Uplink::default(),
            partner_uplink: None,
        },
        uplinks: Vec::new(),
        incarnation: incarnation(1),
        partner: None,
        copied: None,
        output: OutputFigures::default(),
        epochs: 0,
        dirty_pages: 0,
        first_writes: 0,
        sent_pages: 0,
        sent_bytes: 0,
        rehearsals: 0,
        protected_for: None,
    }
}

fn role(role: RoleName) -> Status {
    let mut status = waiting();
    status.host.role = role;
    status
}

struct Engine {
    status: Mutex<Status>,
    stops: AtomicU32,
    promotes: AtomicU32,
    switchovers: AtomicU32,
    modes: Mutex<Vec<&'static str>>,
    joins: AtomicU32,
    events: mpsc::Sender<Event>,
}

impl Engine {
    fn tell(&self, news: News) {
        self.events.send(Event::News(news)).unwrap();
    }

    fn runs(&self, term: u64, taken_over: bool) -> Arc<Guest> {
        let guest = Arc::new(Guest::default());
        *self.status.lock().unwrap() = role(RoleName::Primary);
        self.tell(News::Running {
            term,
            taken_over,
            port: Arc::clone(&guest) as Arc<dyn Port>,
        });
        guest
    }
}

/// Waits until something was counted.
fn wait(counter: &AtomicU32) {
    let deadline = Instant::now() + LONG;
    while counter.load(Ordering::SeqCst) == 0 {
        assert!(Instant::now() < deadline, "it never came");
        thread::yield_now();
    }
}

struct EngineHandle(Arc<Engine>);

impl Protector for EngineHandle {
    fn status(&self) -> Option<Status> {
        Some(self.0.status.lock().unwrap().clone())
    }
    fn timing(&self) -> Vec<PhaseTimes> {
        Vec::new()
    }
    fn stop(&self) {
        self.0.stops.fetch_add(1, Ordering::SeqCst);
    }
    fn promote(&self) {
        self.0.promotes.fetch_add(1, Ordering::SeqCst);
    }
    fn switch_over(&self) {
        self.0.switchovers.fetch_add(1, Ordering::SeqCst);
    }
    fn set_mode(&self, mode: Mode) {
        self.0.modes.lock().unwrap().push(mode.name());
    }
    fn join(&self) {
        self.0.joins.fetch_add(1, Ordering::SeqCst);
    }
}

/// Starts a supervisor of fake engines; gives the first of them, too.
fn start(keys: &str) -> (Running<Engine>, Arc<Engine>) {
    let text = format!("{keys}\n{FILE}");
    let running = Running::start(&text, 1, |shared, inbox, made| {
        let start = move |events: mpsc::Sender<Event>| {
            let engine = Arc::new(Engine {
                status: Mutex::new(waiting()),
                stops: AtomicU32::default(),
                promotes: AtomicU32::default(),
                switchovers: AtomicU32::default(),
                modes: Mutex::default(),
                joins: AtomicU32::default(),
                events,
            });
            let _ = made.send(Arc::clone(&engine));
            Ok(Arc::new(EngineHandle(engine)) as Arc<dyn Protector>)
        };
        let read = Box::new(|| {
            let text = FILE.replace("[protection]", "[protection]\nmode = \"split\"");
            MachineFile::parse(&text, Path::new("machine.toml"), Path::new("/etc/romulus"))
        });
        Protected::new(shared, inbox, Box::new(start), read, false).run()
    });
    let engine = running.next_fake();
    running.wait_state(State::Standby);
    (running, engine)
}

#[test]
fn who_stands_by_ends_with_0_and_presses_nothing() {
    let (running, engine) = start("");
    running.send(Event::Signal(SIGTERM));
    wait(&engine.stops);
    engine.tell(News::Ended(EngineEnded::Stopped));
    let end = running.end();
    assert_eq!(end.code, Code::Done);
    assert!(end.text.contains("stood by"), "{}", end.text);
    assert_eq!(engine.joins.load(Ordering::SeqCst), 1);
}

#[test]
fn a_stopped_primary_ends_when_the_engine_says_that_nobody_takes_over() {
    let (running, engine) = start("stop_timeout = '1 h'");
    let guest = engine.runs(3, false);
    running.wait_state(State::Running);
    running.send(Event::Signal(SIGTERM));
    wait(&guest.presses);
    assert_eq!(
        engine.stops.load(Ordering::SeqCst),
        0,
        "the guest comes first"
    );
    engine.tell(News::Idle);
    engine.tell(News::Ended(EngineEnded::Guest(Exit::PoweredOff)));
    assert_eq!(running.end(), End::new(Code::Done, "stopped in order"));
}

#[test]
fn a_guest_that_does_not_follow_is_forced_and_the_engine_still_settles() {
    let (running, engine) = start("stop_timeout = '100 ms'");
    let guest = engine.runs(3, false);
    running.wait_state(State::Running);
    running.send(Event::Signal(SIGTERM));
    wait(&engine.stops);
    assert_eq!(guest.presses.load(Ordering::SeqCst), 1);
    assert!(!running.thread.is_finished(), "it waits for the engine");
    engine.tell(News::Ended(EngineEnded::Stopped));
    assert_eq!(running.end().code, Code::Forced);
}

#[test]
fn a_third_signal_ends_it_although_the_arbiter_does_not_answer() {
    let (running, engine) = start("stop_timeout = '1 h'");
    engine.runs(3, false);
    running.wait_state(State::Running);
    for _ in 0..3 {
        running.send(Event::Signal(SIGTERM));
    }
    let end = running.end();
    assert_eq!(end.code, Code::Forced);
    assert!(
        end.text.contains("may take the machine over"),
        "{}",
        end.text
    );
    assert_eq!(engine.stops.load(Ordering::SeqCst), 1);
}

#[test]
fn a_reset_while_stopping_starts_nothing() {
    let (running, engine) = start("stop_timeout = '1 h'");
    engine.runs(3, false);
    running.wait_state(State::Running);
    running.send(Event::Stop);
    engine.tell(News::Idle);
    wait(&engine.stops);
    engine.tell(News::Ended(EngineEnded::Stopped));
    assert_eq!(running.end(), End::new(Code::Done, "stopped in order"));
}

#[test]
fn a_machine_that_is_taken_over_while_it_stops_is_told() {
    let (running, engine) = start("stop_timeout = '1 h'");
    engine.runs(3, false);
    running.wait_state(State::Running);
    running.send(Event::Stop);
    running.wait_state(State::Stopping);
    *engine.status.lock().unwrap() = role(RoleName::Waiting);
    engine.tell(News::Idle);
    wait(&engine.stops);
    engine.tell(News::Ended(EngineEnded::Stopped));
    let end = running.end();
    assert_eq!(end.code, Code::Failed);
    assert!(end.text.contains("stop it there"), "{}", end.text);
}

#[test]
fn a_takeover_is_marked_in_the_console_and_a_first_start_is_not() {
    let (running, engine) = start("");
    engine.runs(6, false);
    running.wait_state(State::Running);
    assert_eq!(running.shared.hub.latest().0, b"");
    *engine.status.lock().unwrap() = role(RoleName::Waiting);
    engine.tell(News::Idle);
    running.wait_state(State::Standby);
    engine.runs(7, true);
    running.wait_state(State::Running);
    let (console, _) = running.shared.hub.latest();
    assert_eq!(
        String::from_utf8(console).unwrap(),
        "\r\n--- romulus: took over in term 7 on berta ---\r\n"
    );
    assert_eq!(running.shared.status().restarts, 0);
}

#[test]
fn a_guests_reset_counts_as_a_restart() {
    let (running, engine) = start("");
    engine.runs(3, false);
    running.wait_state(State::Running);
    engine.tell(News::Idle);
    running.wait_state(State::Starting);
    engine.runs(3, false);
    running.wait_state(State::Running);
    assert_eq!(running.shared.status().restarts, 1);
}

#[test]
fn a_panic_ends_with_11_or_starts_a_new_engine() {
    let (running, engine) = start("");
    engine.runs(3, false);
    engine.tell(News::Idle);
    engine.tell(News::Ended(EngineEnded::Guest(Exit::Panicked)));
    assert_eq!(running.end().code, Code::Panicked);

    let (running, engine) = start("on_panic = 'restart'");
    engine.runs(3, false);
    engine.tell(News::Idle);
    engine.tell(News::Ended(EngineEnded::Guest(Exit::Panicked)));
    let second = running.next_fake();
    assert_eq!(engine.joins.load(Ordering::SeqCst), 1, "the first is gone");
    second.tell(News::Ended(EngineEnded::Failed("no tap".into())));
    assert_eq!(running.end(), End::new(Code::Failed, "no tap"));
}

#[test]
fn what_needs_the_machine_is_refused_where_it_is_not() {
    let (running, engine) = start("");
    let refused = |result: Result<(), Refusal>, expected: &str| {
        let error = result.unwrap_err().error;
        assert!(error.contains(expected), "{error}");
    };
    refused(
        running.ask(Command::PowerButton),
        "does not run on this host",
    );
    refused(running.ask(Command::Pause), "cannot be paused");
    assert!(running.ask(Command::Promote).is_ok());
    assert_eq!(engine.promotes.load(Ordering::SeqCst), 1);
    let guest = engine.runs(3, false);
    running.wait_state(State::Running);
    refused(running.ask(Command::Promote), "runs here already");
    assert!(running.ask(Command::PowerButton).is_ok());
    assert_eq!(guest.presses.load(Ordering::SeqCst), 1);
    engine.tell(News::Ended(EngineEnded::Guest(Exit::PoweredOff)));
    assert_eq!(running.end().code, Code::Done);
}

#[test]
fn stop_is_answered_with_how_it_ended() {
    let (running, engine) = start("");
    let (reply, answer) = oneshot::channel();
    running.send(Event::Command(Command::Stop(None, reply)));
    wait(&engine.stops);
    engine.tell(News::Ended(EngineEnded::Stopped));
    let end = running.end();
    assert_eq!(
        answer.blocking_recv().unwrap(),
        Ok(Ended::new(end.code, end.text))
    );
}

/// Cover is what the status says it is, on either host, and nothing in between.
#[test]
fn status_tells_cover_as_it_is() {
    let (running, engine) = start("");
    let protection = || {
        running
            .shared
            .status()
            .protection
            .expect("it has a [protection]")
    };
    let seen = protection();
    assert_eq!((&*seen.host, &*seen.partner_host), ("berta", "alba"));
    assert_eq!(
        (&*seen.role, seen.protected, seen.since),
        ("waiting", false, None)
    );

    engine.runs(3, false);
    running.wait_state(State::Running);
    engine.status.lock().unwrap().copied = Some((10, 100));
    let seen = protection();
    assert_eq!((&*seen.role, seen.protected), ("primary", false));
    let copied = seen.copied.map(|copied| (copied.done, copied.all));
    assert_eq!(copied, Some((10, 100)));
    assert!(seen.since.is_some(), "unprotected since it runs");
    {
        let mut status = engine.status.lock().unwrap();
        status.host.protected_since = Some(Time(5));
        status.protected_for = Some(Duration::from_hours(1));
        status.host.term = Some(Term(Generation(3)));
        (status.epochs, status.dirty_pages, status.first_writes) = (10, 250, 70);
    }
    let seen = protection();
    assert!(seen.protected);
    let since = humantime::parse_rfc3339(seen.since.as_deref().unwrap()).unwrap();
    assert!(
        since.elapsed().unwrap() >= Duration::from_secs(3599),
        "{since:?}"
    );
    assert_eq!(
        (seen.term, seen.dirty_pages_mean, seen.first_writes_mean),
        (Some(3), 25, 7)
    );
    assert_eq!(seen.copied, None, "the copy is over");

    // A backup is cover only while it is whole, linked, and the record's heir.
    let record = |heir| Record {
        machine: MachineId(7),
        generation: Generation(9),
        runner: incarnation(2),
        heir,
        phase: Phase::Running,
    };
    let mut backup = role(RoleName::Backup);
    backup.host.whole = true;
    backup.partner = Some(incarnation(2));
    backup.host.record = Some(record(Some(backup.incarnation)));
    let mut cases = vec![(backup.clone(), true)];
    let mut torn = backup.clone();
    torn.host.whole = false;
    let mut alone = backup.clone();
    alone.partner = None;
    let mut other = backup.clone();
    other.host.record = Some(record(Some(incarnation(5))));
    let mut unnamed = backup.clone();
    unnamed.host.record = Some(record(None));
    let mut frozen = backup;
    frozen.host.role = RoleName::Frozen;
    cases.extend([torn, alone, other, unnamed, frozen].map(|status| (status, false)));
    for (status, expected) in cases {
        *engine.status.lock().unwrap() = status.clone();
        assert_eq!(protection().protected, expected, "{status:?}");
    }
    running.send(Event::Force);
    engine.tell(News::Ended(EngineEnded::Stopped));
    running.end();
}

#[test]
fn a_file_that_is_read_again_gives_the_engine_its_mode() {
    let (running, engine) = start("");
    let reloaded = running.ask(Command::Reload).unwrap();
    assert!(reloaded.mode_changes && reloaded.cover_lost && !reloaded.restart_needed);
    assert_eq!(reloaded.mode, "split");
    assert_eq!(*engine.modes.lock().unwrap(), ["net", "split"]);
    let reloaded = running.ask(Command::Reload).unwrap();
    assert!(!reloaded.mode_changes, "once");
    assert_eq!(engine.modes.lock().unwrap().len(), 2);
    running.send(Event::Signal(SIGTERM));
    engine.tell(News::Ended(EngineEnded::Stopped));
    running.end();
}

#[test]
fn a_new_engine_has_the_mode_in_force() {
    let (running, engine) = start("on_panic = \"restart\"");
    running.ask(Command::Reload).unwrap();
    engine.tell(News::Ended(EngineEnded::Guest(Exit::Panicked)));
    let second = running.next_fake();
    running.wait_state(State::Standby);
    assert_eq!(*second.modes.lock().unwrap(), ["split"]);
    running.send(Event::Signal(SIGTERM));
    second.tell(News::Ended(EngineEnded::Stopped));
    running.end();
}

/// Asks for a switchover as the control interface does, and gives where the answer comes.
fn switch_over(
    running: &Running<Engine>,
    engine: &Engine,
) -> oneshot::Receiver<Result<(), Refusal>> {
    let (reply, answer) = oneshot::channel();
    running.send(Event::Command(Command::Switchover(reply)));
    wait(&engine.switchovers);
    answer
}

#[test]
fn a_switchover_is_answered_when_the_other_host_runs_the_machine() {
    let (running, engine) = start("");
    engine.runs(3, false);
    running.wait_state(State::Running);
    let mut answer = switch_over(&running, &engine);
    assert!(answer.try_recv().is_err(), "nothing has come of it yet");
    *engine.status.lock().unwrap() = role(RoleName::Waiting);
    engine.tell(News::Idle);
    assert_eq!(answer.blocking_recv().unwrap(), Ok(()));
    running.wait_state(State::Standby);
    engine.tell(News::Ended(EngineEnded::Stopped));
    running.end();
}

#[test]
fn who_asked_for_a_switchover_hears_why_the_machine_stays() {
    let (running, engine) = start("");
    engine.runs(3, false);
    running.wait_state(State::Running);
    let answer = switch_over(&running, &engine);
    engine.tell(News::Stays("the machine is not protected now".into()));
    let refusal = answer.blocking_recv().unwrap().unwrap_err();
    assert!(refusal.error.contains("not protected"), "{refusal:?}");
    // The guest's end is no switchover.
    let answer = switch_over(&running, &engine);
    engine.tell(News::Idle);
    assert!(answer.blocking_recv().unwrap().is_err());
    engine.tell(News::Ended(EngineEnded::Guest(Exit::PoweredOff)));
    running.end();
}
