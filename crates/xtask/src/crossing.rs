//! Registrations over UDP, one TCP connection and a connection each, all at once, while the power of the host that runs
//! the machine is cut; and what came of them.

use crate::{
    contacts, counter, live,
    machine_file::FIRST_GUEST,
    pair::{Cut, Pair, Steps, UnixSeconds, unix_seconds},
    probe::{self, Question, Seen},
    sipp::{self, Load, Outcome, Registering, Transport},
};
use anyhow::{Context as _, Result};
use images::Step;
use std::{
    fmt::Write as _,
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// The transports, and what the users of each are called.
pub(crate) const TRANSPORTS: [(Transport, &str); 3] = [
    (Transport::Udp, "udp"),
    (Transport::TcpOne, "tcp1"),
    (Transport::TcpEach, "tcpn"),
];

/// From one look at the clock to the next while the load goes on.
const TICK: Duration = Duration::from_millis(20);
/// How long a machine that lost its cover under load may take to have it again before its power is cut.
const COVERED_WITHIN: Duration = Duration::from_secs(5);
/// How often the probe and the counter ask when nothing happens: hardly a load of their own.
const CALM: Duration = Duration::from_millis(100);

/// What is to happen.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// What the names of this run's users begin with: no other run's contacts may pass for this one's.
    pub(crate) name: String,
    /// Registrations a second, as in [`TRANSPORTS`]; none where it is 0.
    pub(crate) rates: [u32; 3],
    /// How long new registrations are begun, in seconds.
    pub(crate) seconds: u32,
    /// When the power is cut, after the load's start; `None` to leave it on.
    pub(crate) cut_after: Option<Duration>,
}

/// What came of it.
pub(crate) struct Crossing {
    /// The loads.
    pub(crate) loads: Vec<(Transport, Outcome)>,
    /// Whether the machine was taken over before the cut, without a failure.
    pub(crate) moved: bool,
    /// The moment of the cut.
    pub(crate) cut: Option<UnixSeconds>,
    /// From the cut to the first answer to a question that was asked after it, over UDP.
    pub(crate) first_udp: Option<f64>,
    /// What the probe asked over UDP, and when it was answered.
    pub(crate) asked: Seen,
    /// From the cut to the next answer of the counter on its TCP connection.
    pub(crate) first_tcp: Option<f64>,
    /// What was wrong with the counter, if anything: the oracle of one history.
    pub(crate) counter_fault: Option<String>,
    /// The longest time without any answer to a registration, in seconds.
    pub(crate) longest_gap: Option<f64>,
    /// Contacts that were acknowledged before the cut (all, where there was none).
    pub(crate) acknowledged: usize,
    /// Those that the registrar does not have afterwards, of all that were acknowledged.
    pub(crate) lost: Vec<String>,
    /// `T_b` just before.
    pub(crate) t_b: Duration,
    /// The steps of the takeover.
    pub(crate) steps: Steps,
}

impl Crossing {
    /// Whether the one TCP connection of all calls and the counter's were the same from start to end.
    pub(crate) fn connections_kept(&self) -> bool {
        let one = self
            .loads
            .iter()
            .find(|(transport, _)| *transport == Transport::TcpOne);
        self.counter_fault.is_none() && one.is_none_or(|(_, outcome)| outcome.complaint.is_none())
    }

    /// Registrations that were to be made, and those that were answered.
    pub(crate) fn totals(&self) -> (u32, u32) {
        self.loads.iter().fold((0, 0), |(wanted, ok), (_, load)| {
            (wanted + load.wanted, ok + load.ok)
        })
    }

    /// What of the promise was not kept, if anything.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults: Vec<String> = self
            .loads
            .iter()
            .filter(|(_, outcome)| !outcome.all_ok() || outcome.complaint.is_some())
            .map(|(transport, outcome)| format!("{}: {}", transport.name(), outcome.summary()))
            .collect();
        faults.extend(self.counter_fault.iter().cloned());
        if !self.lost.is_empty() {
            faults.push(format!(
                "{} acknowledged contacts are not in the registrar, {} first",
                self.lost.len(),
                self.lost[0]
            ));
        }
        if self.moved {
            faults.push("the machine was taken over before the cut, without a failure".to_owned());
        }
        if self.cut.is_some() && self.first_udp.is_none() {
            faults.push("no answer over UDP after the cut".to_owned());
        }
        faults
    }

    /// Writes down every answer that clients got, by its moment after the cut: what was slow shows who waited.
    ///
    /// # Errors
    /// The file can't be written.
    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        let zero = self.cut.unwrap_or_else(|| self.began());
        let mut text = "who,asked [s],answered after [ms]\n".to_owned();
        let mut line = |who: &str, asked: f64, ms: Option<f64>| {
            let ms = ms.map_or_else(String::new, |ms| format!("{ms:.1}"));
            let _ = writeln!(text, "{who},{:.3},{ms}", asked - zero);
        };
        for (transport, load) in &self.loads {
            for answer in &load.answers {
                line(transport.name(), answer.began, Some(answer.ms));
            }
        }
        for (asked, answered) in &self.asked.questions {
            line("probe", *asked, answered.map(|at| (at - asked) * 1e3));
        }
        fs::write(file, text).with_context(|| format!("writing {}", file.display()))
    }

    /// The first start of any load, in seconds since 1970.
    pub(crate) fn began(&self) -> UnixSeconds {
        self.loads
            .iter()
            .filter_map(|(_, outcome)| outcome.answers.first())
            .map(|answer| answer.began)
            .fold(f64::INFINITY, f64::min)
    }
}

/// Puts the load on a pair's machine and cuts the power of the host that runs it. The guest needs `service.shell`. With a
/// step, a line a second tells how it goes.
///
/// # Errors
/// The lab does not do as it should. A promise that is not kept is part of the outcome.
pub(crate) fn run(
    client: &lab::Client,
    pair: &mut Pair<'_>,
    plan: &Plan,
    step: Option<&Step>,
) -> Result<Crossing> {
    let runner = pair.runner()?.context("no host runs the machine")?;
    let t_b = t_b(pair, runner)?;
    let server = sipp::sip(FIRST_GUEST);
    let counter = counter::start(client, FIRST_GUEST, CALM)?;
    let probe = probe::start(client, server, Question::Options, CALM)?;
    let mut sipps = Vec::new();
    for ((transport, word), rate) in TRANSPORTS.into_iter().zip(plan.rates) {
        if rate > 0 {
            let load = Load {
                server,
                transport,
                users: &format!("{}-{word}-", plan.name),
                rate,
                count: rate * plan.seconds,
            };
            sipps.push((transport, sipp::start(client, load)?));
        }
    }

    let start = Instant::now();
    let mut cut: Option<Cut> = None;
    let mut moved = false;
    let mut teller = Teller::new(start);
    while !all_ended(&mut sipps)? {
        if cut.is_none() && plan.cut_after.is_some_and(|after| start.elapsed() >= after) {
            // Without cover there is nothing to be seen; a takeover that nobody asked for is said.
            let now = pair.protected_runner(COVERED_WITHIN).context(
                "the power can't be cut: the machine lost its cover under load, without a failure",
            )?;
            moved = now != runner;
            cut = Some(pair.cut_power(now)?);
            probe.hurry();
        }
        if let Some(step) = step {
            teller.tell(step, pair, &mut sipps, cut.as_ref())?;
        }
        thread::sleep(TICK);
    }
    let seen = probe.finish()?;
    let history = counter.finish()?;
    let mut loads = Vec::new();
    for (transport, sipp) in sipps {
        loads.push((transport, sipp.finish()?));
    }

    let moment = cut.as_ref().map(|cut| unix_seconds(cut.at));
    let (acknowledged, users) = acknowledged(loads.iter().map(|(_, load)| load), moment);
    let lost = contacts::missing(client, server, &users)?;
    let after = |at: Option<UnixSeconds>| Some(at? - moment?);
    let steps = match &cut {
        Some(cut) => pair.takeover(1 - cut.side, cut)?,
        None => Steps::default(),
    };
    Ok(Crossing {
        longest_gap: longest_gap(&loads),
        first_udp: after(moment.and_then(|moment| seen.first_answer_since(moment))),
        asked: seen,
        first_tcp: after(moment.and_then(|moment| history.first_since(moment))),
        counter_fault: history.fault,
        moved,
        cut: moment,
        loads,
        acknowledged,
        lost,
        t_b,
        steps,
    })
}

/// How many contacts were acknowledged before `moment` (all, where there was none), and the users of all that ever were.
pub(crate) fn acknowledged<'a>(
    loads: impl Iterator<Item = &'a Outcome>,
    moment: Option<UnixSeconds>,
) -> (usize, Vec<String>) {
    let mut before = 0;
    let mut users = Vec::new();
    for answer in loads.flat_map(|outcome| &outcome.answers) {
        users.push(answer.user.clone());
        if moment.is_none_or(|moment| answer.came() < moment) {
            before += 1;
        }
    }
    (before, users)
}

fn t_b(pair: &Pair<'_>, runner: usize) -> Result<Duration> {
    let backup = 1 - runner;
    // The backup's own is what counts; a machine alone has none.
    let side = if pair.is_up(backup) { backup } else { runner };
    let status = pair.status(side)?;
    let t_b = status.and_then(|status| Some(status.cover()?.t_b()));
    t_b.context("no host says what T_b is")
}

fn all_ended(sipps: &mut [(Transport, Registering)]) -> Result<bool> {
    let mut ended = true;
    for (_, sipp) in sipps {
        ended &= sipp.has_ended()?;
    }
    Ok(ended)
}

/// The longest time between two answers, whatever their transport, in seconds.
fn longest_gap(loads: &[(Transport, Outcome)]) -> Option<f64> {
    let answers = loads.iter().flat_map(|(_, outcome)| &outcome.answers);
    let mut times: Vec<f64> = answers.map(sipp::Answer::came).collect();
    times.sort_by(f64::total_cmp);
    times
        .windows(2)
        .map(|pair| pair[1] - pair[0])
        .max_by(f64::total_cmp)
}

/// Tells once a second how a load goes.
struct Teller {
    start: Instant,
    next: Instant,
    answered: u32,
}

impl Teller {
    fn new(start: Instant) -> Self {
        Self {
            start,
            next: start + Duration::from_secs(1),
            answered: 0,
        }
    }

    fn tell(
        &mut self,
        step: &Step,
        pair: &Pair<'_>,
        sipps: &mut [(Transport, Registering)],
        cut: Option<&Cut>,
    ) -> Result<()> {
        if Instant::now() < self.next {
            return Ok(());
        }
        self.next += Duration::from_secs(1);
        let answered: u32 = sipps.iter_mut().map(|(_, sipp)| sipp.answered()).sum();
        let rate = answered - self.answered;
        self.answered = answered;
        let mut states = Vec::new();
        for side in (0..2).filter(|side| pair.is_up(*side)) {
            if let Some(status) = pair.status(side)?
                && status.runs()
                && let Some(cover) = status.cover()
            {
                states.push(format!(
                    "{} {}, term {}, epoch {}, {}",
                    pair.host(side).name(),
                    status.state,
                    cover.term.unwrap_or(0),
                    cover.epoch,
                    if cover.protected {
                        "protected"
                    } else {
                        "NOT protected"
                    }
                ));
            }
        }
        let state = match (states.is_empty(), cut) {
            (false, _) => states.join("; "),
            (true, Some(cut)) => format!("{} has no power", pair.host(cut.side).name()),
            (true, None) => "nobody runs the machine".to_owned(),
        };
        let seconds = self.start.elapsed().as_secs();
        let text = format!("{seconds:>3} s  {rate:>4} registered/s  {state}");
        live::tell(step, &text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Crossing, Duration, Seen, Steps, Transport, acknowledged, longest_gap};
    use crate::sipp::{Answer, Outcome};

    fn outcome(times: &[(f64, f64)]) -> Outcome {
        let answers: Vec<Answer> = times
            .iter()
            .zip(1..)
            .map(|((began, ms), call)| Answer {
                user: format!("a-udp-{call}"),
                began: *began,
                ms: *ms,
            })
            .collect();
        let count = u32::try_from(answers.len()).unwrap();
        Outcome {
            wanted: count,
            tried: count,
            ok: count,
            answers,
            ..Outcome::default()
        }
    }

    fn good() -> Crossing {
        Crossing {
            loads: vec![(Transport::TcpOne, outcome(&[(1.0, 5.0), (2.0, 5.0)]))],
            moved: false,
            cut: Some(1.5),
            first_udp: Some(0.2),
            asked: Seen {
                questions: vec![(1.4, None), (1.6, Some(1.7))],
            },
            first_tcp: Some(0.4),
            counter_fault: None,
            longest_gap: Some(1.0),
            acknowledged: 1,
            lost: Vec::new(),
            t_b: Duration::from_millis(100),
            steps: Steps::default(),
        }
    }

    #[test]
    fn the_longest_gap_is_one_without_any_answer() {
        let loads = [
            (Transport::Udp, outcome(&[(1.0, 0.0), (4.0, 0.0)])),
            (Transport::TcpEach, outcome(&[(1.5, 1000.0)])),
        ];
        assert_eq!(longest_gap(&loads), Some(1.5));
        assert_eq!(longest_gap(&[]), None);
    }

    #[test]
    fn contacts_are_acknowledged_before_the_cut_by_their_answers() {
        let udp = outcome(&[(1.0, 5.0), (1.9, 300.0), (3.0, 5.0)]);
        let (before, users) = acknowledged([&udp].into_iter(), Some(2.0));
        assert_eq!(before, 1);
        assert_eq!(users, ["a-udp-1", "a-udp-2", "a-udp-3"]);
        assert_eq!(acknowledged([&udp].into_iter(), None).0, 3);
    }

    #[test]
    fn what_clients_got_is_written_by_its_moment_after_the_cut() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("answers.csv");
        good().write(&file).unwrap();
        let text = std::fs::read_to_string(file).unwrap();
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(
            lines,
            [
                "one TCP connection,-0.500,5.0",
                "one TCP connection,0.500,5.0",
                "probe,-0.100,",
                "probe,0.100,100.0",
            ]
        );
    }

    #[test]
    fn each_broken_promise_is_a_fault() {
        assert!(good().faults().is_empty() && good().connections_kept());
        let mut lost = good();
        lost.lost.push("a-udp-7".into());
        assert!(lost.faults()[0].contains("a-udp-7"));
        let mut silent = good();
        silent.first_udp = None;
        assert_eq!(silent.faults().len(), 1);
        let mut rewound = good();
        rewound.counter_fault = Some("twice".into());
        assert!(!rewound.connections_kept() && rewound.faults() == ["twice"]);
        let mut failed = good();
        failed.loads[0].1.ok = 1;
        assert_eq!(failed.faults().len(), 1);
        let mut reconnected = good();
        reconnected.loads[0].1.complaint = Some("closed (exit code 255)".into());
        assert!(!reconnected.connections_kept() && reconnected.faults().len() == 1);
    }
}
