//! What came of a load, out of what SIPp writes.

use crate::distribution::Distribution;
use std::collections::{HashMap, HashSet};

/// What SIPp's file of failures begins with.
const HEADING: &str = "The following events occurred:";

/// An answered registration.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    /// Whose it was.
    pub(crate) user: String,
    /// When it began, in seconds since 1970.
    pub(crate) began: f64,
    /// How long the answer took, in milliseconds.
    pub(crate) ms: f64,
}

impl Answer {
    /// When the answer came, in seconds since 1970.
    pub(crate) fn came(&self) -> f64 {
        self.began + self.ms / 1e3
    }
}

/// What came of a [`Load`](super::Load).
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Outcome {
    /// Registrations that were to be made.
    pub(crate) wanted: u32,
    /// Registrations begun.
    pub(crate) tried: u32,
    /// Registrations answered 200.
    pub(crate) ok: u32,
    /// Requests sent again because no answer came in time. Over UDP they hide outages.
    pub(crate) retransmissions: u32,
    /// Time from request to answer in milliseconds.
    pub(crate) response_ms: Distribution,
    /// The answered calls in order of start.
    pub(crate) answers: Vec<Answer>,
    /// Why a call failed, in SIPp's words: of the first that did, where it says so; otherwise what it counts.
    pub(crate) failure: Option<String>,
    /// What SIPp itself said was wrong, if it did. That it lost its one TCP connection is such a thing.
    pub(crate) complaint: Option<String>,
}

impl Outcome {
    /// Whether every registration was made and answered.
    pub(crate) fn all_ok(&self) -> bool {
        self.wanted > 0 && self.ok == self.wanted
    }

    /// Answers for which a client would have repeated its request if it came over UDP: T1 is 500 ms (RFC 3261, 17.1.1.1).
    pub(crate) fn late(&self) -> u32 {
        const T1_MS: f64 = 500.0;
        let late = self.answers.iter().filter(|answer| answer.ms > T1_MS);
        u32::try_from(late.count()).unwrap_or(u32::MAX)
    }

    /// Adds what came of a load that went on at the same time.
    pub(super) fn add(&mut self, other: Self) {
        self.wanted += other.wanted;
        self.tried += other.tried;
        self.ok += other.ok;
        self.retransmissions += other.retransmissions;
        self.answers.extend(other.answers);
        self.answers.sort_by(|a, b| a.began.total_cmp(&b.began));
        self.response_ms = Distribution::new(self.answers.iter().map(|answer| answer.ms).collect());
        self.failure = self.failure.take().or(other.failure);
        self.complaint = self.complaint.take().or(other.complaint);
    }

    /// Seconds since `zero` (seconds since 1970), and the response time in milliseconds, of each answered call in order
    /// of start.
    pub(crate) fn timeline_since(&self, zero: f64) -> Vec<(f64, f64)> {
        let point = |answer: &Answer| (answer.began - zero, answer.ms);
        self.answers.iter().map(point).collect()
    }

    /// [`Self::timeline_since`] the first start.
    pub(crate) fn timeline(&self) -> Vec<(f64, f64)> {
        self.timeline_since(self.answers.first().map_or(0.0, |answer| answer.began))
    }

    /// A line for people.
    pub(crate) fn summary(&self) -> String {
        let ms = |value: Option<f64>| value.map_or_else(|| "–".into(), |ms| format!("{ms:.1}"));
        let complaint = [&self.failure, &self.complaint]
            .into_iter()
            .flatten()
            .fold(String::new(), |all, text| format!("{all}; SIPp: {text}"));
        let begun = if self.tried == self.wanted {
            String::new()
        } else {
            format!(", {} begun", self.tried)
        };
        format!(
            "{}/{} ok{begun}, {} sent again, p50 {} ms, p99 {} ms, max {} ms{complaint}",
            self.ok,
            self.wanted,
            self.retransmissions,
            ms(self.response_ms.median()),
            ms(self.response_ms.percentile(99.0)),
            ms(self.response_ms.max()),
        )
    }
}

/// Reads a line of a log of calls, `number,seconds,microseconds,event`: the call, when (in seconds since 1970), what. SIPp
/// writes numbers as decimals, and nothing where one is 0: to it, such a variable is not set (its `CCallVariable::isSet`).
pub(crate) fn event(line: &str) -> Option<(u32, f64, &str)> {
    let mut fields = line.trim().split(',');
    let call = fields.next()?.parse().ok()?;
    let seconds: f64 = fields.next()?.parse().ok()?;
    let micros: f64 = match fields.next()? {
        "" => 0.0,
        micros => micros.parse().ok()?,
    };
    let event = fields.next()?;
    fields
        .next()
        .is_none()
        .then_some((call, seconds + micros / 1e6, event))
}

/// Reads the log of calls, whose events are `start` and `ok`. The users' names begin with `users`.
pub(super) fn parse_calls(log: &str, users: &str) -> Outcome {
    let mut starts: HashMap<u32, f64> = HashMap::new();
    let mut answers: Vec<Answer> = Vec::new();
    let mut tried = 0;
    for (call, time, event) in log.lines().filter_map(event) {
        match event {
            "start" => {
                tried += 1;
                starts.insert(call, time);
            }
            "ok" => {
                if let Some(began) = starts.remove(&call) {
                    let ms = (time - began) * 1e3;
                    let user = format!("{users}{call}");
                    answers.push(Answer { user, began, ms });
                }
            }
            _ => {}
        }
    }
    answers.sort_by(|a, b| a.began.total_cmp(&b.began));
    Outcome {
        tried,
        ok: u32::try_from(answers.len()).unwrap_or(u32::MAX),
        response_ms: Distribution::new(answers.iter().map(|answer| answer.ms).collect()),
        answers,
        ..Outcome::default()
    }
}

/// The number of retransmissions so far, from the last line of SIPp's statistics (`;` between fields, names on top).
pub(super) fn parse_retransmissions(statistics: &str) -> Option<u32> {
    let (_, count) = counters(statistics).find(|(name, _)| *name == "Retransmissions")?;
    Some(count)
}

/// Which failures SIPp has counted, for where its log of failures is silent: it does not write down all of them.
pub(super) fn parse_failed_calls(statistics: &str) -> Option<String> {
    let mut failed: Vec<_> = counters(statistics)
        .filter(|(name, _)| name.starts_with("Failed"))
        .collect();
    if failed.is_empty() {
        return None;
    }
    failed.retain(|(_, count)| *count > 0);
    if failed.is_empty() {
        let (_, successful) = counters(statistics).find(|(name, _)| *name == "SuccessfulCall")?;
        return Some(format!(
            "it counts {successful} as successful, and no call as failed"
        ));
    }
    let counted: Vec<String> = (failed.iter())
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    Some(format!("it counts {}", counted.join(", ")))
}

/// What is wrong with the log of calls of a load of `wanted` calls: a line that is not understood, or calls of which none
/// tells. SIPp numbers calls from 1.
pub(super) fn parse_gaps(log: &str, wanted: u32) -> Option<String> {
    if let Some(line) = log.lines().find(|line| event(line).is_none()) {
        return Some(format!("its log of calls has the line {line:?}"));
    }
    let begun: HashSet<u32> = log
        .lines()
        .filter_map(event)
        .filter(|(_, _, event)| *event == "start")
        .map(|(call, _, _)| call)
        .collect();
    let missing: Vec<u32> = (1..=wanted).filter(|call| !begun.contains(call)).collect();
    let (first, last) = (missing.first()?, missing.last()?);
    Some(format!(
        "its log of calls does not tell of {} that should have begun, the first {first}, the last {last}",
        missing.len()
    ))
}

/// What SIPp has counted since its start, by the last line of its statistics.
fn counters(statistics: &str) -> impl Iterator<Item = (&str, u32)> {
    let mut lines = statistics.lines();
    let names = lines.next().unwrap_or_default().split(';');
    let counts = lines.last().unwrap_or_default().split(';');
    names.zip(counts).filter_map(|(name, count)| {
        let name = name.trim().strip_suffix("(C)")?;
        Some((name, count.trim().parse().ok()?))
    })
}

/// The first line about a call that was given up, or else about anything, without its time (tabs and the numbers of a clock before it).
pub(super) fn parse_failure(failures: &str) -> Option<String> {
    if let Some(at) = failures.find("Aborting") {
        return Some(failures[at..].lines().next()?.trim().to_owned());
    }
    let event = failures
        .lines()
        .filter_map(|line| line.splitn(3, '\t').nth(2)?.split_once(": "))
        .map(|(_, event)| event.trim())
        .find(|event| !event.is_empty() && *event != HEADING)?;
    Some(event.trim_end_matches(':').to_owned())
}

#[cfg(test)]
mod tests {
    use super::{
        Outcome, parse_calls, parse_failed_calls, parse_failure, parse_gaps, parse_retransmissions,
    };

    #[test]
    fn calls_are_joined_by_number() {
        let log = "1,100.000000,500000.000000,start\n2,100.0,600000.0,start\n\
                   2,100.0,604000.0,ok\n1,101.0,0.0,ok\n3,101.0,0.0,start\n";
        let outcome = parse_calls(log, "a-");
        assert_eq!((outcome.tried, outcome.ok), (3, 2));
        assert!((outcome.response_ms.max().unwrap() - 500.0).abs() < 0.01);
        assert!((outcome.response_ms.median().unwrap() - 4.0).abs() < 0.01);
        assert!((outcome.timeline()[1].0 - 0.1).abs() < 1e-6);
        assert!((outcome.timeline_since(99.0)[0].0 - 1.5).abs() < 1e-6);
        assert!((outcome.answers[1].came() - 100.604).abs() < 1e-6);
    }

    /// One moment in a million is on a full second; SIPp leaves out a variable that is 0.
    #[test]
    fn a_moment_without_microseconds_is_a_full_second() {
        let log = "1,99.000000,996000.000000,start\n1,100.000000,,ok\n2,101.000000,,start\n";
        let outcome = parse_calls(log, "a-");
        assert_eq!((outcome.tried, outcome.ok), (2, 1));
        assert!((outcome.response_ms.max().unwrap() - 4.0).abs() < 0.01);
        assert_eq!(parse_gaps(log, 2), None);
    }

    #[test]
    fn lines_cut_short_and_second_answers_do_not_count() {
        let log = "1,100,0,start\n1,100,9000,ok\n1,100,9500,ok\n2,100,0,st\n4,100,0,start,5\n3,10";
        let outcome = parse_calls(log, "a-");
        assert_eq!((outcome.tried, outcome.ok), (1, 1));
    }

    #[test]
    fn calls_never_begun_count_as_failed() {
        let outcome = Outcome {
            wanted: 10,
            ..parse_calls("1,1,0,start\n1,1,10,ok\n", "a-")
        };
        assert_eq!((outcome.ok, outcome.wanted), (1, 10));
        assert!(!outcome.all_ok());
        assert!(!Outcome::default().all_ok(), "nothing wanted is no success");
    }

    #[test]
    fn a_failure_is_told_without_its_time() {
        let log = "2026-11-29\t12:00:00.000000\t1.0: Aborting call on unexpected message for Call-Id '1': received 'SIP/2.0 500\nVia: x\n";
        let told = parse_failure(log).unwrap();
        assert!(
            told.starts_with("Aborting call") && told.ends_with("500"),
            "{told}"
        );
        let heading = "2026-11-29\t12:00:00.000000\t1.0: The following events occurred:\n";
        assert_eq!(parse_failure(heading), None);
        let other = "2026-11-29\t12:00:01.000000\t2.0: Discarding message of no call: \nSIP/2.0 200\tOK: x\n";
        assert_eq!(
            parse_failure(&format!("{heading}{other}")).as_deref(),
            Some("Discarding message of no call")
        );
    }

    #[test]
    fn loads_at_the_same_time_are_one() {
        let mut all = Outcome {
            wanted: 2,
            ..parse_calls("1,2,0,start\n1,2,4000,ok\n2,3,0,start\n", "a-")
        };
        all.add(Outcome {
            wanted: 1,
            retransmissions: 3,
            complaint: Some("lost".to_owned()),
            ..parse_calls("1,1,0,start\n1,1,8000,ok\n", "a-")
        });
        assert_eq!((all.wanted, all.tried, all.ok), (3, 3, 2));
        assert_eq!((all.retransmissions, all.all_ok()), (3, false));
        assert_eq!(all.complaint.as_deref(), Some("lost"));
        assert!((all.answers[0].ms - 8.0).abs() < 0.01, "in order of start");
        assert!((all.response_ms.max().unwrap() - 8.0).abs() < 0.01);
    }

    #[test]
    fn retransmissions_are_those_of_the_last_line() {
        let csv = "StartTime;Retransmissions(P);Retransmissions(C);\na;1;1;\nb;2;3;\n";
        assert_eq!(parse_retransmissions(csv), Some(3));
        assert_eq!(parse_retransmissions("a;b\n1;2\n"), None);
        assert_eq!(parse_retransmissions(""), None);
    }

    #[test]
    fn failures_are_told_that_sipp_only_counts() {
        let names = "SuccessfulCall(C);FailedCall(P);FailedCall(C);FailedTcpClosed(C);FailedCannotSendMessage(C)";
        let told = |counts| parse_failed_calls(&format!("{names};\n5;1;1;0;1;\n{counts};\n"));
        assert_eq!(
            told("7;0;2;0;2").as_deref(),
            Some("it counts FailedCall 2, FailedCannotSendMessage 2")
        );
        assert_eq!(
            told("9;0;0;0;0").as_deref(),
            Some("it counts 9 as successful, and no call as failed")
        );
        assert_eq!(parse_failed_calls("a;b\n1;2\n"), None);
    }

    #[test]
    fn calls_of_which_the_log_does_not_tell_are_named() {
        let log = "1,100.0,0.0,start\n1,100.0,4.0,ok\n4,100.0,0.0,start\n";
        assert_eq!(
            parse_gaps(log, 4).as_deref(),
            Some(
                "its log of calls does not tell of 2 that should have begun, the first 2, the last 3"
            )
        );
        assert_eq!(parse_gaps("1,100.0,0.0,start\n", 1), None);
        let odd = parse_gaps("1,100.0,0.0,start\n2,,,start\n", 2);
        assert_eq!(
            odd.as_deref(),
            Some("its log of calls has the line \"2,,,start\"")
        );
    }
}
