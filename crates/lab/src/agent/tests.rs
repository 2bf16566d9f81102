//! The agent and the lab's side of it, over a connection of this computer with itself.

use std::fs;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::protocol::{Frame, Program, Request, Size, Terminal};
use crate::remote::{Agent, Dial, Sink};

struct Here(std::net::SocketAddr);

impl Dial for Here {
    fn dial(&self) -> Result<Arc<TcpStream>> {
        Ok(Arc::new(TcpStream::connect(self.0)?))
    }

    fn name(&self) -> &'static str {
        "here"
    }
}

/// An agent on a port of its own; its thread ends with the tests.
fn agent() -> (Agent, std::net::SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || super::answer(&listener));
    (Agent::new(Arc::new(Here(address))), address)
}

const LIMIT: Duration = Duration::from_secs(20);

fn is_alive(pid: i32) -> bool {
    // A zombie is as good as gone.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn arguments_arrive_as_they_are() {
    let (agent, _) = agent();
    let strange = ["", "a b", "'\"$HOME`x`\\", "new\nline", "*"];
    let output = agent
        .run(&[&["printf", "%s\\0"], strange.as_slice()].concat())
        .unwrap();
    assert_eq!(
        output.stdout,
        format!("{}\0", strange.join("\0")).into_bytes()
    );
}

#[test]
fn output_errors_and_status_come_back_apart() {
    let (agent, _) = agent();
    let output = agent
        .run(&["sh", "-c", "echo out; echo err >&2; exit 7"])
        .unwrap();
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice()),
        (b"out\n".as_slice(), b"err\n".as_slice())
    );
    assert_eq!(output.status.code(), Some(7));
    let output = agent.run(&["sh", "-c", "kill -TERM $$"]).unwrap();
    assert_eq!(output.status.signal(), Some(15));
    let error = agent.sh("echo why >&2; false").unwrap_err().to_string();
    assert!(error.contains("why"), "{error}");
    let error = format!("{:#}", agent.run(&["/no/such/program"]).unwrap_err());
    assert!(
        error.contains("/no/such/program") && error.contains("No such file"),
        "{error}"
    );
}

#[test]
fn all_output_arrives_however_much_it_is() {
    let (agent, _) = agent();
    let output = agent
        .run(&[
            "sh",
            "-c",
            "head -c 5000000 /dev/zero; head -c 300000 /dev/zero >&2",
        ])
        .unwrap();
    assert_eq!(
        (output.stdout.len(), output.stderr.len()),
        (5_000_000, 300_000)
    );
}

#[test]
fn input_is_passed_on_and_ends() {
    let (agent, _) = agent();
    let remote = agent.spawn(&["wc", "-c"]).unwrap();
    remote.input(&vec![0; 1_000_000]).unwrap();
    remote.close_input().unwrap();
    assert_eq!(
        String::from_utf8(remote.wait().unwrap().stdout)
            .unwrap()
            .trim(),
        "1000000"
    );
}

#[test]
fn a_background_child_does_not_hold_the_answer_back() {
    let (agent, _) = agent();
    let started = Instant::now();
    let output = agent.run(&["sh", "-c", "sleep 60 & echo $!"]).unwrap();
    assert!(started.elapsed() < LIMIT);
    let pid: i32 = String::from_utf8(output.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    // It lives on, as it does when a shell that started it ends.
    assert!(is_alive(pid));
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
}

#[test]
fn a_program_started_later_does_not_hold_the_answer_back() {
    let (agent, _) = agent();
    let first = agent.spawn(&["cat"]).unwrap();
    let later = agent.spawn(&["sleep", "60"]).unwrap();
    first.close_input().unwrap();
    assert!(first.wait_at_most(LIMIT).unwrap().is_some());
    drop(later);
}

#[test]
fn what_nobody_listens_to_is_killed_with_its_children() {
    let (agent, _) = agent();
    let remote = agent
        .spawn(&["sh", "-c", "sleep 60 & echo $!; wait"])
        .unwrap();
    remote.wait_for("\n", LIMIT).unwrap();
    let child: i32 = String::from_utf8(remote.output())
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let pid = remote.pid();
    assert!(is_alive(pid) && is_alive(child));
    drop(remote);
    wait_until("the group is still alive", || {
        !is_alive(pid) && !is_alive(child)
    });
}

#[test]
fn signals_reach_the_group_and_only_what_the_agent_started() {
    let (agent, _) = agent();
    let remote = agent
        .spawn(&[
            "sh",
            "-c",
            "trap 'echo got it; exit 3' USR1; echo ready; while :; do sleep 0.02; done",
        ])
        .unwrap();
    remote.wait_for("ready", LIMIT).unwrap();
    remote.signal(libc::SIGUSR1).unwrap();
    remote.wait_for("got it", LIMIT).unwrap();
    assert_eq!(remote.wait_at_most(LIMIT).unwrap().unwrap().code(), Some(3));
    // The number may be another process's by now.
    let error = format!("{:#}", remote.signal(libc::SIGKILL).unwrap_err());
    assert!(error.contains("no program runs"), "{error}");
}

#[test]
fn waiting_for_a_text_says_why_it_did_not_come() {
    let (agent, _) = agent();
    let remote = agent.spawn(&["sh", "-c", "echo other; exit 4"]).unwrap();
    let error = remote.wait_for("text", LIMIT).unwrap_err().to_string();
    assert!(
        error.contains("exit status: 4") && error.contains("other"),
        "{error}"
    );
    let remote = agent.spawn(&["sleep", "60"]).unwrap();
    let error = remote
        .wait_for("text", Duration::from_millis(50))
        .unwrap_err()
        .to_string();
    assert!(error.contains("within"), "{error}");
}

#[test]
fn a_terminal_is_one() {
    let (agent, _) = agent();
    let terminal = Some(Terminal {
        kind: "vt100".into(),
        size: Size {
            rows: 11,
            columns: 22,
        },
    });
    let script = "tty; stty size; echo $TERM; read line; echo got-$line; trap 'stty size; exit 5' WINCH; echo set; while :; do sleep 0.02; done";
    let arguments = ["sh", "-c", script].map(String::from).to_vec();
    let remote = agent
        .start(
            Program {
                arguments,
                terminal,
            },
            Sink::Keep,
        )
        .unwrap();
    remote.input(b"word\n").unwrap();
    remote.wait_for("got-word", LIMIT).unwrap();
    remote.wait_for("set", LIMIT).unwrap();
    remote
        .resize(Size {
            rows: 33,
            columns: 44,
        })
        .unwrap();
    remote.wait_for("33 44", LIMIT).unwrap();
    let output = remote.wait().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("/dev/pts/") && text.contains("11 22") && text.contains("vt100"),
        "{text}"
    );
    assert_eq!(output.status.code(), Some(5));
}

#[test]
fn files_arrive_whole_with_their_mode() {
    let (agent, _) = agent();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let content: Vec<u8> = (0..1_000_003_u32).map(|n| n.to_le_bytes()[1]).collect();
    fs::write(path("a"), &content).unwrap();
    fs::set_permissions(path("a"), fs::Permissions::from_mode(0o751)).unwrap();
    let there = path("new/directory/b");
    let there = there.to_str().unwrap();
    agent.push(&path("a"), there).unwrap();
    agent.push(&path("a"), there).unwrap();
    assert_eq!(
        fs::read_dir(path("new/directory")).unwrap().count(),
        1,
        "nothing unfinished is left"
    );
    agent.pull(there, &path("c")).unwrap();
    assert!(fs::read(path("c")).unwrap() == content);
    assert_eq!(
        fs::metadata(path("c")).unwrap().permissions().mode() & 0o7777,
        0o751
    );
    agent.write(b"", 0o600, there).unwrap();
    assert_eq!(fs::metadata(there).unwrap().len(), 0);
}

#[test]
fn what_cannot_be_pushed_or_pulled_says_why() {
    let (agent, _) = agent();
    let directory = tempfile::tempdir().unwrap();
    let local = directory.path().join("a");
    fs::write(&local, vec![1; 3_000_000]).unwrap();
    let error = format!("{:#}", agent.push(&local, "/proc/nowhere/x").unwrap_err());
    assert!(error.contains("/proc/nowhere"), "{error}");
    let error = format!("{:#}", agent.push(&local, "relative").unwrap_err());
    assert!(error.contains("absolute"), "{error}");
    let error = format!(
        "{:#}",
        agent.push(Path::new("/no/such"), "/tmp/x").unwrap_err()
    );
    assert!(error.contains("/no/such"), "{error}");
    let error = format!(
        "{:#}",
        agent
            .pull("/no/such", &directory.path().join("b"))
            .unwrap_err()
    );
    assert!(error.contains("No such file"), "{error}");
}

#[test]
fn a_running_program_is_replaced_without_harm() {
    let (agent, _) = agent();
    let directory = tempfile::tempdir().unwrap();
    let there = directory.path().join("sleep");
    let there = there.to_str().unwrap();
    agent.push(Path::new("/bin/sleep"), there).unwrap();
    let remote = agent.spawn(&[there, "60"]).unwrap();
    agent.push(Path::new("/bin/true"), there).unwrap();
    assert!(is_alive(remote.pid()));
    assert!(agent.run(&[there]).unwrap().status.success());
}

#[test]
fn nonsense_is_answered_and_harms_no_one() {
    let (agent, address) = agent();
    for nonsense in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[1, 255, 255, 255, 255],
        &[9, 4, 0, 0, 0, 1, 2, 3, 4],
        &[],
    ] {
        let stream = TcpStream::connect(address).unwrap();
        std::io::Write::write_all(&mut &stream, nonsense).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        // A reason, or the end; a reset is one too, as not all was read.
        if let Ok(Some(frame)) = Frame::read(&stream) {
            assert!(matches!(frame, Frame::Failed(_)), "{frame:?}");
        }
    }
    let stream = TcpStream::connect(address).unwrap();
    Frame::Request(Request::Run(Program::default()))
        .write(&stream)
        .unwrap();
    assert!(matches!(
        Frame::read(&stream).unwrap(),
        Some(Frame::Failed(_))
    ));
    assert!(agent.hello(LIMIT).unwrap().uptime_ms > 0);
    // It is our own clock.
    assert!(agent.clock_ahead().unwrap().abs() < 1.0);
}
