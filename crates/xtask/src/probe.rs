//! A steady question over UDP, with the time of each answer: what a client sees of a server, to the millisecond.

use crate::{
    distribution::Distribution,
    options::ask_for_addresses_often,
    pair::{UnixSeconds, unix_seconds},
    udp::{bound_to, client_socket, unless_absent},
};
use anyhow::{Context as _, Result, anyhow};
use std::{
    net::{SocketAddrV4, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

/// From one question to the next in a hurry: how well the time of the first answer is known. Faster than this they would
/// be a load that an emulated host does not bear.
const HURRY: Duration = Duration::from_millis(20);
/// How soon a hurry is noticed.
const NOTICE: Duration = Duration::from_millis(5);
/// How long answers are waited for after the last question.
const GRACE: Duration = Duration::from_secs(3);

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    /// OPTIONS to the server itself: hardly any work.
    Options,
    /// REGISTER of one user, over and over.
    Register,
}

/// A probe that is under way, on a thread of its own. Dropping it ends it.
pub(crate) struct Probe {
    thread: Option<JoinHandle<Result<Seen>>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    hurry: AtomicBool,
}

/// What a probe saw.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Seen {
    /// When each question went out, in order, and when its answer came.
    pub(crate) questions: Vec<(UnixSeconds, Option<UnixSeconds>)>,
}

impl Seen {
    /// The answers' times in milliseconds.
    pub(crate) fn response_ms(&self) -> Distribution {
        let time =
            |(asked, answered): &(f64, Option<f64>)| Some((answered.as_ref()? - asked) * 1e3);
        Distribution::new(self.questions.iter().filter_map(time).collect())
    }

    /// The first answer to a question that was asked at `moment` or later.
    pub(crate) fn first_answer_since(&self, moment: UnixSeconds) -> Option<UnixSeconds> {
        self.questions
            .iter()
            .filter(|(asked, _)| *asked >= moment)
            .filter_map(|(_, answered)| *answered)
            .min_by(f64::total_cmp)
    }
}

/// Starts to ask `server` every `interval` from the lab's client.
///
/// # Errors
/// The client's network can't be used.
pub(crate) fn start(
    client: &lab::Client,
    server: SocketAddrV4,
    question: Question,
    interval: Duration,
) -> Result<Probe> {
    ask_for_addresses_often(client)?;
    start_on(client_socket(client)?, server, question, interval)
}

fn start_on(
    socket: UdpSocket,
    server: SocketAddrV4,
    question: Question,
    interval: Duration,
) -> Result<Probe> {
    let shared = Arc::new(Shared::default());
    let given = Arc::clone(&shared);
    let thread = thread::Builder::new()
        .name("probe".into())
        .spawn(move || run(&socket, server, question, interval, &given))?;
    Ok(Probe {
        thread: Some(thread),
        shared,
    })
}

impl Probe {
    /// From now on questions go out every few milliseconds, until one of them is answered.
    pub(crate) fn hurry(&self) {
        self.shared.hurry.store(true, Ordering::Release);
    }

    /// Ends it: waits a moment for late answers, and gives all that it saw.
    ///
    /// # Errors
    /// Its socket failed.
    pub(crate) fn finish(mut self) -> Result<Seen> {
        self.shared.stop.store(true, Ordering::Release);
        let thread = self.thread.take().context("the probe was ended before")?;
        thread.join().map_err(|_| anyhow!("the probe panicked"))?
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
    }
}

fn run(
    socket: &UdpSocket,
    server: SocketAddrV4,
    question: Question,
    interval: Duration,
    shared: &Shared,
) -> Result<Seen> {
    let from = bound_to(socket)?;
    socket.connect(server)?;
    let mut seen = Seen::default();
    let mut buffer = [0; 4096];
    let mut next = Instant::now();
    // The first question of the hurry: an answer to it or a later one ends it.
    let mut hurried: Option<usize> = None;
    let mut ends: Option<Instant> = None;
    loop {
        if ends.is_none() && shared.stop.load(Ordering::Acquire) {
            ends = Some(Instant::now() + GRACE);
        }
        let unanswered = seen.questions.iter().rev().take(200);
        if let Some(end) = ends
            && (Instant::now() >= end || unanswered.clone().all(|(_, answer)| answer.is_some()))
        {
            return Ok(seen);
        }
        if hurried.is_none() && shared.hurry.swap(false, Ordering::AcqRel) {
            hurried = Some(seen.questions.len());
            next = Instant::now();
        }
        if ends.is_none() && Instant::now() >= next {
            let number = seen.questions.len();
            seen.questions.push((unix_seconds(SystemTime::now()), None));
            unless_absent(socket.send(text(question, server, from, number).as_bytes()))?;
            next = Instant::now() + hurried.map_or(interval, |_| HURRY);
        }
        // Short, so that a hurry is noticed at once.
        let wait = next
            .saturating_duration_since(Instant::now())
            .clamp(Duration::from_millis(1), NOTICE);
        socket.set_read_timeout(Some(wait))?;
        let Some(length) = unless_absent(socket.recv(&mut buffer))? else {
            continue;
        };
        let came = unix_seconds(SystemTime::now());
        let Some(number) = answered(&String::from_utf8_lossy(&buffer[..length])) else {
            continue;
        };
        if let Some((_, answer @ None)) = seen.questions.get_mut(number) {
            *answer = Some(came);
            if hurried.is_some_and(|first| number >= first) {
                hurried = None;
                next = Instant::now() + interval;
            }
        }
    }
}

/// Question `number`, a transaction of its own.
fn text(question: Question, server: SocketAddrV4, from: SocketAddrV4, number: usize) -> String {
    let (host, address, port) = (server.ip(), from.ip(), from.port());
    let (method, to) = match question {
        Question::Options => ("OPTIONS", format!("<sip:{host}>")),
        Question::Register => ("REGISTER", format!("<sip:probe-{port}@{host}>")),
    };
    let expires = match question {
        Question::Options => "",
        Question::Register => "Expires: 600\r\n",
    };
    format!(
        "{method} sip:{host} SIP/2.0\r\n\
         Via: SIP/2.0/UDP {from};branch=z9hG4bK-probe-{port}-{number};rport\r\n\
         Max-Forwards: 70\r\n\
         To: {to}\r\n\
         From: <sip:probe-{port}@{host}>;tag=probe-{port}\r\n\
         Call-ID: probe-{port}@{address}\r\n\
         CSeq: {} {method}\r\n\
         Contact: <sip:probe-{port}@{from}>\r\n\
         {expires}\
         Content-Length: 0\r\n\r\n",
        number + 1
    )
}

/// The number of the question that a successful answer belongs to.
fn answered(answer: &str) -> Option<usize> {
    if !answer.starts_with("SIP/2.0 200 ") {
        return None;
    }
    let line = answer.lines().find_map(|line| line.strip_prefix("CSeq:"))?;
    let number: usize = line.split_whitespace().next()?.parse().ok()?;
    number.checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::{Question, Seen, answered, start_on};
    use crate::udp::local;
    use std::time::Duration;

    #[test]
    fn the_first_answer_counts_only_for_questions_after_the_moment() {
        let seen = Seen {
            questions: vec![
                (1.0, Some(1.1)),
                (1.9, Some(2.05)),
                (2.1, None),
                (2.2, Some(2.7)),
                (2.3, Some(2.6)),
            ],
        };
        assert_eq!(seen.first_answer_since(2.0), Some(2.6));
        assert_eq!(seen.first_answer_since(3.0), None);
        assert_eq!(seen.response_ms().count(), 4);
    }

    #[test]
    fn only_a_success_is_an_answer() {
        assert_eq!(
            answered("SIP/2.0 200 OK\r\nCSeq: 8 OPTIONS\r\n\r\n"),
            Some(7)
        );
        assert_eq!(
            answered("SIP/2.0 503 Busy\r\nCSeq: 8 OPTIONS\r\n\r\n"),
            None
        );
        assert_eq!(answered("SIP/2.0 200 OK\r\nCSeq: 0 OPTIONS\r\n\r\n"), None);
    }

    #[test]
    fn a_hurry_asks_until_it_is_answered() {
        let (server, address) = local();
        let probe = start_on(
            local().0,
            address,
            Question::Register,
            Duration::from_hours(1),
        )
        .unwrap();
        let mut buffer = [0; 4096];
        let mut receive = || {
            let (length, from) = server.recv_from(&mut buffer).unwrap();
            (
                String::from_utf8_lossy(&buffer[..length]).into_owned(),
                from,
            )
        };
        let answer = |text: &str, from| {
            let line = text.lines().find(|line| line.starts_with("CSeq")).unwrap();
            let reply = format!("SIP/2.0 200 OK\r\n{line}\r\n\r\n");
            server.send_to(reply.as_bytes(), from).unwrap();
        };
        let (first, from) = receive();
        assert!(first.starts_with("REGISTER ") && first.contains("Expires: 600\r\nContent-Length"));
        answer(&first, from);
        probe.hurry();
        let (second, _) = receive();
        let (third, from) = receive();
        assert_ne!(second, third);
        answer(&third, from);
        // The second question stays open: the probe waits its moment for it.
        let seen = probe.finish().unwrap();
        assert!(seen.questions.len() >= 3);
        assert!(seen.questions[0].1.is_some() && seen.questions[1].1.is_none());
        assert!(seen.first_answer_since(seen.questions[1].0).is_some());
    }
}
