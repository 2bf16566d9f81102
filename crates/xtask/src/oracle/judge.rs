//! What may be wrong with what a client saw. Pure: only what was sent and received, and when.

use crate::pair::UnixSeconds;
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};
use witness::{Answer, chain};

/// One request, and the answer that a client got.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Exchange {
    /// When it was sent.
    pub(crate) asked: UnixSeconds,
    /// What was sent; no two are alike.
    pub(crate) request: String,
    /// When each answer to it came, and which: a datagram may come twice.
    pub(crate) answers: Vec<(UnixSeconds, Answer)>,
}

/// All that a client saw.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Seen {
    /// Over UDP.
    pub(crate) datagrams: Vec<Exchange>,
    /// Over the one TCP connection.
    pub(crate) lines: Vec<Exchange>,
    /// Why the connection was lost, if it was.
    pub(crate) lost_connection: Option<String>,
    /// Answers to what was never asked.
    pub(crate) foreign: Vec<String>,
}

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Fault {
    /// One number, two answers.
    Reused(Answer, Answer),
    /// What was answered is not counted any more: a later request got no higher number.
    Lost {
        /// Answered before the other was asked.
        answered: Answer,
        /// The answer to what was asked after it.
        then: Answer,
    },
    /// Two answers follow one another by number, and are not of one history.
    Forked(Answer, Answer),
    /// An answer to something else, or to nothing.
    Foreign(String),
    /// The TCP connection did not last.
    Connection(String),
    /// What was sent over the connection was never answered.
    Unanswered(String),
    /// What was answered is not on the disk, or something else is there.
    NotOnDisk(Answer),
    /// A host sent as the guest when it was not the one to do so.
    OutOfTurn(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reused(one, other) => write!(f, "a number came twice: \"{one}\" and \"{other}\""),
            Self::Lost { answered, then } => write!(
                f,
                "\"{answered}\" was answered and is lost: what was asked after it got \"{then}\""
            ),
            Self::Forked(one, other) => {
                write!(f, "\"{one}\" and \"{other}\" are not of one history")
            }
            Self::Foreign(text) => write!(f, "nobody asked for the answer {text:?}"),
            Self::Connection(why) => write!(f, "the TCP connection was lost: {why}"),
            Self::Unanswered(request) => {
                write!(f, "{request:?} was never answered on its TCP connection")
            }
            Self::NotOnDisk(answer) => {
                write!(f, "\"{answer}\" was answered and is not on the disk")
            }
            Self::OutOfTurn(what) => f.write_str(what),
        }
    }
}

impl Seen {
    /// How many requests were answered.
    pub(crate) fn answered(&self) -> usize {
        self.exchanges()
            .filter(|exchange| !exchange.answers.is_empty())
            .count()
    }

    /// Every answer there was, with the time when it came.
    pub(crate) fn answers(&self) -> impl Iterator<Item = &(UnixSeconds, Answer)> {
        self.exchanges().flat_map(|exchange| &exchange.answers)
    }

    fn exchanges(&self) -> impl Iterator<Item = &Exchange> {
        self.datagrams.iter().chain(&self.lines)
    }

    /// The longest time without any answer, in seconds.
    pub(crate) fn longest_gap(&self) -> f64 {
        let mut times: Vec<f64> = self.answers().map(|(at, _)| *at).collect();
        times.sort_by(f64::total_cmp);
        times
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .fold(0.0, f64::max)
    }
}

/// All that is wrong with what a client saw.
pub(crate) fn judge(seen: &Seen) -> Vec<Fault> {
    let mut faults: Vec<Fault> = seen.foreign.iter().cloned().map(Fault::Foreign).collect();
    for exchange in seen.exchanges() {
        for (_, answer) in &exchange.answers {
            if answer.request != exchange.request {
                faults.push(Fault::Foreign(answer.to_string()));
            }
        }
    }
    faults.extend(reused(seen));
    faults.extend(lost(seen));
    faults.extend(forked(seen));
    faults.extend(seen.lost_connection.clone().map(Fault::Connection));
    if seen.lost_connection.is_none() {
        let unanswered = seen.lines.iter().filter(|line| line.answers.is_empty());
        faults.extend(unanswered.map(|line| Fault::Unanswered(line.request.clone())));
    }
    faults
}

/// One number with two contents. The same answer twice is none: output is sent again after a takeover.
fn reused(seen: &Seen) -> Vec<Fault> {
    let mut first: HashMap<u64, &Answer> = HashMap::new();
    let mut faults = Vec::new();
    for (_, answer) in seen.answers() {
        let earlier = *first.entry(answer.number).or_insert(answer);
        if earlier != answer {
            faults.push(Fault::Reused(earlier.clone(), answer.clone()));
        }
    }
    faults
}

/// What is asked after an answer came has a higher number than it.
fn lost(seen: &Seen) -> Vec<Fault> {
    let mut received: Vec<&(UnixSeconds, Answer)> = seen.answers().collect();
    received.sort_by(|one, other| one.0.total_cmp(&other.0));
    let mut asked: Vec<&Exchange> = seen.exchanges().collect();
    asked.sort_by(|one, other| one.asked.total_cmp(&other.asked));
    let mut received = received.into_iter().peekable();
    let mut highest: Option<&Answer> = None;
    let mut faults = Vec::new();
    for exchange in asked {
        while let Some((_, answer)) = received.next_if(|(at, _)| *at < exchange.asked) {
            if highest.is_none_or(|highest| highest.number < answer.number) {
                highest = Some(answer);
            }
        }
        let Some(highest) = highest else { continue };
        for (_, answer) in &exchange.answers {
            if answer.number <= highest.number {
                faults.push(Fault::Lost {
                    answered: highest.clone(),
                    then: answer.clone(),
                });
            }
        }
    }
    faults
}

/// Of two answers whose numbers follow one another, the later continues the earlier's chain.
fn forked(seen: &Seen) -> Vec<Fault> {
    let by_number: BTreeMap<u64, &Answer> = seen
        .answers()
        .map(|(_, answer)| (answer.number, answer))
        .collect();
    let mut faults = Vec::new();
    for answer in by_number.values() {
        let before = answer.number.checked_sub(1);
        if let Some(before) = before.and_then(|number| by_number.get(&number))
            && answer.chain != chain(before.chain, answer.number, &answer.request)
        {
            faults.push(Fault::Forked((*before).clone(), (*answer).clone()));
        }
    }
    faults
}

/// Of what was answered, all that is not on the disk as it was answered. `disk` is all that is there.
pub(crate) fn missing_on_disk(seen: &Seen, disk: &[Answer]) -> Vec<Fault> {
    let there: HashMap<u64, &Answer> = disk.iter().map(|answer| (answer.number, answer)).collect();
    let newest = disk.last().map_or(0, |answer| answer.number);
    let overwritten = newest.saturating_sub(witness::RECORDS - 1);
    seen.answers()
        .map(|(_, answer)| answer)
        .filter(|answer| answer.number >= overwritten)
        .filter(|answer| there.get(&answer.number) != Some(answer))
        .map(|answer| Fault::NotOnDisk(answer.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Exchange, Fault, Seen, judge, missing_on_disk};
    use witness::{Answer, History};

    /// Request `n` is asked at second n and answered half a second later.
    fn exchange(history: &mut History, n: u32) -> Exchange {
        let request = format!("q{n}");
        let answer = history.answer(&request);
        Exchange {
            asked: f64::from(n),
            request,
            answers: vec![(f64::from(n) + 0.5, answer)],
        }
    }

    fn good() -> Seen {
        let mut history = History::default();
        let mut seen = Seen::default();
        for n in 0..10 {
            let one = exchange(&mut history, n);
            if n % 3 == 0 {
                seen.lines.push(one);
            } else {
                seen.datagrams.push(one);
            }
        }
        seen
    }

    /// What is found if a good history is spoilt.
    fn found(spoil: impl FnOnce(&mut Seen)) -> Vec<Fault> {
        let mut seen = good();
        spoil(&mut seen);
        judge(&seen)
    }

    fn answer(seen: &mut Seen, n: usize) -> &mut Answer {
        &mut seen.datagrams[n].answers[0].1
    }

    #[test]
    fn a_good_history_is_without_fault() {
        assert_eq!(judge(&good()), []);
        assert_eq!(good().answered(), 10);
        assert!((good().longest_gap() - 1.0).abs() < 1e-9);
        // A datagram may get lost, and an answer may come twice.
        assert_eq!(found(|seen| seen.datagrams[2].answers.clear()), []);
        let twice = found(|seen| {
            let again = seen.datagrams[2].answers[0].clone();
            seen.datagrams[2].answers.push((99.0, again.1));
        });
        assert_eq!(twice, []);
    }

    #[test]
    fn a_number_with_two_contents_is_found() {
        let faults = found(|seen| {
            let number = answer(seen, 2).number;
            answer(seen, 3).number = number;
        });
        assert!(
            faults.iter().any(|f| matches!(f, Fault::Reused(..))),
            "{faults:?}"
        );
        // The same text by two runners is another history all the same.
        let faults = found(|seen| {
            let mut other = answer(seen, 2).clone();
            other.chain ^= 1;
            seen.datagrams[2].answers.push((20.0, other));
        });
        assert!(
            faults.iter().any(|f| matches!(f, Fault::Reused(..))),
            "{faults:?}"
        );
    }

    #[test]
    fn what_was_answered_and_is_not_counted_any_more_is_found() {
        // The guest was set back by three answers, then went on.
        let faults = found(|seen| {
            let mut history = History::after(&seen.datagrams[2].answers[0].1.clone());
            for n in 10..12 {
                seen.datagrams.push(exchange(&mut history, n));
            }
        });
        assert!(
            faults.iter().any(|f| matches!(f, Fault::Lost { .. })),
            "{faults:?}"
        );
    }

    #[test]
    fn two_histories_are_found_though_no_number_comes_twice() {
        let faults = found(|seen| {
            // Another runner answered 9 and 10, unseen, and goes on with 11.
            let mut other = History::after(&seen.datagrams[4].answers[0].1.clone());
            let mut last = None;
            for n in 100..102 {
                last = Some(other.answer(&format!("elsewhere{n}")));
            }
            let mut history = History::after(&last.unwrap());
            seen.datagrams.push(exchange(&mut history, 20));
        });
        assert!(
            faults.iter().any(|f| matches!(f, Fault::Forked(..))),
            "{faults:?}"
        );
    }

    #[test]
    fn foreign_answers_and_a_lost_connection_are_found() {
        let faults = found(|seen| answer(seen, 1).request.push('x'));
        assert!(
            faults.iter().any(|f| matches!(f, Fault::Foreign(_))),
            "{faults:?}"
        );
        let faults = found(|seen| seen.foreign.push("7 0 what".into()));
        assert_eq!(faults, [Fault::Foreign("7 0 what".into())]);
        let faults = found(|seen| seen.lost_connection = Some("reset".into()));
        assert_eq!(faults, [Fault::Connection("reset".into())]);
        let faults = found(|seen| {
            let last = seen.lines.len() - 1;
            seen.lines[last].answers.clear();
        });
        assert_eq!(faults, [Fault::Unanswered("q9".into())]);
    }

    #[test]
    fn what_was_answered_has_to_be_on_the_disk() {
        let seen = good();
        let mut disk: Vec<Answer> = seen.answers().map(|(_, answer)| answer.clone()).collect();
        disk.sort_by_key(|answer| answer.number);
        assert_eq!(missing_on_disk(&seen, &disk), []);
        let lost = disk.remove(4);
        assert_eq!(missing_on_disk(&seen, &disk), [Fault::NotOnDisk(lost)]);
        disk[0].chain ^= 1;
        assert_eq!(missing_on_disk(&seen, &disk).len(), 2);
        assert_eq!(missing_on_disk(&seen, &[]).len(), 10);
    }
}
