//! A client transaction (RFC 3261, section 17.1): one request until its final answer.

use super::{Message, Method, PATIENCE, T1, T2, Transport};
use std::time::Duration;

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fired {
    /// Nothing.
    Nothing,
    /// The request has to be sent again (timer A or E).
    Again,
    /// No answer came in time (timer B or F). The transaction is over.
    TimedOut,
}

/// One request that waits for its answer.
#[derive(Debug, Clone)]
pub struct Client {
    /// The request, as it is sent each time.
    pub request: Message,
    method: Method,
    branch: String,
    /// When it is sent again and after what time the next time; `None` where it is not.
    again: Option<(Duration, Duration)>,
    /// When it is given up; `None` once an INVITE has a provisional answer.
    ends: Option<Duration>,
}

impl Client {
    /// Begins with a request that is sent now; `None` for what is no request of ours.
    pub fn new(request: Message, now: Duration, transport: Transport) -> Option<Self> {
        let method = request.method()?.clone();
        let branch = request.via()?.branch()?.to_owned();
        let again = (!transport.is_reliable()).then_some((now + T1, T1));
        Some(Self {
            request,
            method,
            branch,
            again,
            ends: Some(now + PATIENCE),
        })
    }

    /// What was asked for.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// The transaction's name.
    pub fn branch(&self) -> &str {
        &self.branch
    }

    /// Whether an answer is to this request (RFC 3261, section 17.1.3).
    pub fn matches(&self, answer: &Message) -> bool {
        answer
            .via()
            .is_some_and(|via| via.branch() == Some(&self.branch))
            && answer.cseq().is_some_and(|cseq| cseq.method == self.method)
    }

    /// Takes note of a provisional answer: an INVITE is not sent again and waits as long as it takes, another request is
    /// sent again less often.
    pub fn provisional(&mut self, now: Duration) {
        if self.method == Method::Invite {
            self.again = None;
            self.ends = None;
        } else if let Some((at, interval)) = &mut self.again {
            *at = (*at).max(now);
            *interval = T2;
        }
    }

    /// Gives up at `moment`, whatever came before: for an INVITE that was cancelled (section 9.1).
    pub fn end_by(&mut self, moment: Duration) {
        self.ends = Some(moment);
    }

    /// When something is due.
    pub fn deadline(&self) -> Option<Duration> {
        let again = self.again.map(|(at, _)| at);
        [again, self.ends].into_iter().flatten().min()
    }

    /// What is due now.
    pub fn fire(&mut self, now: Duration) -> Fired {
        if self.ends.is_some_and(|ends| now >= ends) {
            return Fired::TimedOut;
        }
        match &mut self.again {
            Some((at, interval)) if now >= *at => {
                *interval *= 2;
                if self.method != Method::Invite {
                    *interval = (*interval).min(T2);
                }
                *at = now + *interval;
                Fired::Again
            }
            _ => Fired::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Client, Fired};
    use crate::call::{Message, Method, Transport};
    use std::time::Duration;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn client(method: &Method, transport: Transport) -> Client {
        let mut request = Message::request(method.clone(), "sip:x");
        request.add("Via", "SIP/2.0/UDP a;branch=z9hG4bK1");
        request.add("CSeq", format!("1 {}", method.name()));
        Client::new(request, Duration::ZERO, transport).unwrap()
    }

    /// When a request that is never answered is sent again, and when it is given up, in ms.
    fn course(client: &mut Client) -> (Vec<u128>, u128) {
        let mut again = Vec::new();
        loop {
            let now = client.deadline().unwrap();
            match client.fire(now) {
                Fired::Again => again.push(now.as_millis()),
                Fired::TimedOut => return (again, now.as_millis()),
                Fired::Nothing => panic!("nothing is due at its deadline"),
            }
        }
    }

    #[test]
    fn an_invite_is_sent_again_at_doubling_intervals() {
        let (again, end) = course(&mut client(&Method::Invite, Transport::Udp));
        assert_eq!(again, [500, 1500, 3500, 7500, 15_500, 31_500]);
        assert_eq!(end, 32_000);
    }

    #[test]
    fn another_request_is_sent_again_every_four_seconds_at_most() {
        let (again, end) = course(&mut client(&Method::Bye, Transport::Udp));
        assert_eq!(again[..5], [500, 1500, 3500, 7500, 11_500]);
        assert_eq!((again.len(), end), (10, 32_000));
    }

    #[test]
    fn a_connection_loses_nothing() {
        for transport in [Transport::Tcp, Transport::Tls] {
            let (again, end) = course(&mut client(&Method::Invite, transport));
            assert_eq!((again.len(), end), (0, 32_000));
        }
    }

    #[test]
    fn a_provisional_answer_ends_an_invites_timers_and_slows_anothers() {
        let mut invite = client(&Method::Invite, Transport::Udp);
        invite.provisional(ms(100));
        assert_eq!(invite.deadline(), None);
        invite.end_by(ms(700));
        assert_eq!(invite.fire(ms(699)), Fired::Nothing);
        assert_eq!(invite.fire(ms(700)), Fired::TimedOut);
        let mut bye = client(&Method::Bye, Transport::Udp);
        bye.provisional(ms(100));
        assert_eq!(bye.fire(ms(500)), Fired::Again);
        assert_eq!(bye.deadline(), Some(ms(4500)));
    }

    #[test]
    fn an_answer_belongs_to_its_request() {
        let invite = client(&Method::Invite, Transport::Udp);
        let answer = Message::answer(&invite.request, 200, "OK");
        assert!(invite.matches(&answer));
        let mut other = answer.clone();
        other.set("CSeq", "1 CANCEL");
        assert!(!invite.matches(&other));
        let mut other = answer;
        other.set("Via", "SIP/2.0/UDP a;branch=z9hG4bK2");
        assert!(!invite.matches(&other));
    }
}
