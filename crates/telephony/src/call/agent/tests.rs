//! Two agents, with a network between them that loses what it is told to.

use super::{Agent, Event, Failure, Out};
use crate::{
    call::{Identity, Message, Method, Session, Start, Transport},
    media::Codec,
};
use std::{collections::VecDeque, time::Duration};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn identity(user: &str, transport: Transport) -> Identity {
    Identity {
        transport,
        local: "192.0.2.254:4000".parse().unwrap(),
        domain: "192.0.2.100".into(),
        user: user.into(),
    }
}

fn session(port: u16) -> Session {
    Session {
        id: 1,
        version: 1,
        rtp: ([192, 0, 2, 254], port).into(),
        codecs: vec![Codec::Pcmu],
    }
}

/// What a message is, in a word.
fn word(message: &Message) -> String {
    match &message.start {
        Start::Request { method, .. } => method.name().to_owned(),
        Start::Response { code, .. } => {
            format!("{code} {}", message.cseq().unwrap().method.name())
        }
    }
}

struct World {
    now: Duration,
    transport: Transport,
    caller: Agent,
    callee: Option<Agent>,
    /// Messages on their way: to the callee or not.
    way: VecDeque<(bool, Message)>,
    /// Words of messages to lose, each as often as it stands here.
    lose: Vec<&'static str>,
    sent: Vec<String>,
    /// Of the caller, and of the callee.
    events: [Vec<Event>; 2],
}

impl World {
    fn new(transport: Transport, lose: &[&'static str]) -> Self {
        let mut out = Out::default();
        let caller = Agent::call(
            identity("a", transport),
            "b",
            "c1",
            "ta",
            session(4000),
            Duration::ZERO,
            &mut out,
        );
        let mut world = Self {
            now: Duration::ZERO,
            transport,
            caller,
            callee: None,
            way: VecDeque::new(),
            lose: lose.to_vec(),
            sent: Vec::new(),
            events: [Vec::new(), Vec::new()],
        };
        world.take(true, out);
        world.settle();
        world
    }

    fn take(&mut self, from_caller: bool, out: Out) {
        self.events[usize::from(!from_caller)].extend(out.events);
        for message in out.messages {
            let word = word(&message);
            self.sent.push(word.clone());
            if let Some(at) = self.lose.iter().position(|lost| **lost == *word) {
                self.lose.remove(at);
            } else {
                // As from the wire.
                let read = Message::parse(&message.encode()).unwrap();
                assert_eq!(read, message);
                self.way.push_back((from_caller, read));
            }
        }
    }

    /// Delivers all that is on its way.
    fn settle(&mut self) {
        while let Some((to_callee, message)) = self.way.pop_front() {
            let mut out = Out::default();
            if to_callee && self.callee.is_none() {
                let me = identity("b", self.transport);
                self.callee = Agent::called(me, &message, "tb", session(5000), self.now, &mut out);
            } else if let Some(callee) = self.callee.as_mut().filter(|_| to_callee) {
                callee.receive(self.now, &message, &mut out);
            } else {
                self.caller.receive(self.now, &message, &mut out);
            }
            self.take(!to_callee, out);
        }
    }

    /// Lets time pass, deadline by deadline.
    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            let callee = self.callee.as_ref().and_then(Agent::deadline);
            let next = [self.caller.deadline(), callee].into_iter().flatten().min();
            let Some(next) = next.filter(|next| *next <= until) else {
                break;
            };
            self.now = self.now.max(next);
            let mut out = Out::default();
            self.caller.tick(self.now, &mut out);
            self.take(true, out);
            let mut out = Out::default();
            if let Some(callee) = &mut self.callee {
                callee.tick(self.now, &mut out);
            }
            self.take(false, out);
            self.settle();
        }
        self.now = until;
    }

    fn caller(&mut self, act: impl FnOnce(&mut Agent, Duration, &mut Out)) {
        let mut out = Out::default();
        act(&mut self.caller, self.now, &mut out);
        self.take(true, out);
        self.settle();
    }

    fn callee(&mut self, act: impl FnOnce(&mut Agent, Duration, &mut Out)) {
        let mut out = Out::default();
        act(
            self.callee.as_mut().expect("it was called"),
            self.now,
            &mut out,
        );
        self.take(false, out);
        self.settle();
    }

    fn resent(&self) -> [u32; 2] {
        let callee = self
            .callee
            .as_ref()
            .map_or(0, |callee| callee.record().resent);
        [self.caller.record().resent, callee]
    }
}

#[test]
fn a_call_rings_is_answered_and_ends() {
    for transport in [Transport::Udp, Transport::Tcp, Transport::Tls] {
        let mut world = World::new(transport, &[]);
        world.pass(ms(60_000));
        assert_eq!(world.events, [vec![Event::Ringing], vec![Event::Ringing]]);
        world.callee(Agent::answer);
        assert!(world.caller.is_up());
        assert!(matches!(&world.events[0][1], Event::Up(to) if to.rtp.port() == 5000));
        assert!(matches!(&world.events[1][1], Event::Up(to) if to.rtp.port() == 4000));
        world.pass(ms(60_000));
        world.caller(Agent::hang_up);
        world.pass(ms(60_000));
        for (events, resent) in world.events.iter().zip(world.resent()) {
            assert_eq!(
                (events.last(), events.len(), resent),
                (Some(&Event::Ended), 3, 0)
            );
        }
        assert!(world.caller.is_over());
        let steps = [
            "INVITE",
            "180 INVITE",
            "200 INVITE",
            "ACK",
            "BYE",
            "200 BYE",
        ];
        assert_eq!(world.sent, steps);
    }
}

#[test]
fn each_message_may_be_lost_once() {
    for lost in [
        "INVITE",
        "180 INVITE",
        "200 INVITE",
        "ACK",
        "BYE",
        "200 BYE",
    ] {
        for hangs_up in [true, false] {
            let mut world = World::new(Transport::Udp, &[lost]);
            world.pass(ms(2000));
            world.callee(Agent::answer);
            world.pass(ms(2000));
            if hangs_up {
                world.caller(Agent::hang_up);
            } else {
                world.callee(Agent::hang_up);
            }
            world.pass(ms(60_000));
            assert!(world.lose.is_empty(), "{lost} was not sent");
            for events in &world.events {
                assert_eq!(
                    events.last(),
                    Some(&Event::Ended),
                    "{lost}: {:?}",
                    world.sent
                );
                let failed = events.iter().any(|event| matches!(event, Event::Failed(_)));
                assert!(!failed, "{lost}: {events:?}");
            }
            // A provisional answer is not sent again by itself; here the INVITE is.
            assert_eq!(
                world.resent().iter().sum::<u32>(),
                1,
                "{lost}: {:?}",
                world.sent
            );
        }
    }
}

#[test]
fn a_200_is_repeated_over_a_connection_too_until_its_ack() {
    let mut world = World::new(Transport::Tcp, &["ACK", "ACK"]);
    world.callee(Agent::answer);
    world.pass(ms(1500));
    assert_eq!(world.resent(), [0, 2]);
    assert!(matches!(world.events[1].last(), Some(Event::Up(_))));
    world.pass(ms(60_000));
    assert_eq!(world.resent(), [0, 2]);
}

#[test]
fn without_any_ack_the_callee_gives_up() {
    let mut world = World::new(Transport::Udp, &["ACK"; 99]);
    world.callee(Agent::answer);
    world.pass(ms(60_000));
    assert_eq!(world.events[1].last(), Some(&Event::Failed(Failure::NoAck)));
    assert_eq!(world.callee.unwrap().record().failure, Some(Failure::NoAck));
}

#[test]
fn a_call_that_nobody_answers_times_out() {
    let mut world = World::new(Transport::Udp, &["INVITE"; 99]);
    world.pass(ms(31_999));
    assert!(!world.caller.is_over());
    world.pass(ms(1));
    let failure = Failure::TimedOut(Method::Invite);
    assert_eq!(world.events[0], [Event::Failed(failure)]);
    assert_eq!(world.resent()[0], 6);
}

#[test]
fn a_ringing_call_is_cancelled() {
    for lost in ["", "CANCEL", "200 CANCEL", "487 INVITE", "ACK"] {
        let mut world = World::new(Transport::Udp, &[lost]);
        world.pass(ms(1000));
        world.caller(Agent::cancel);
        world.pass(ms(60_000));
        for events in &world.events {
            assert_eq!(events[..], [Event::Ringing, Event::Cancelled], "{lost}");
        }
        assert_eq!(
            world.resent().iter().sum::<u32>(),
            u32::from(!lost.is_empty())
        );
    }
}

#[test]
fn an_answer_that_crosses_the_cancel_ends_with_a_bye() {
    let mut world = World::new(Transport::Udp, &["CANCEL"]);
    world.caller(Agent::cancel);
    world.callee(Agent::answer);
    world.pass(ms(60_000));
    assert_eq!(world.events[0], [Event::Ringing, Event::Ended]);
    assert_eq!(world.events[1].last(), Some(&Event::Ended));
}

#[test]
fn nothing_is_cancelled_that_does_not_ring() {
    let mut world = World::new(Transport::Udp, &["180 INVITE"]);
    world.caller(Agent::cancel);
    assert_eq!(world.sent, ["INVITE", "180 INVITE"]);
}

#[test]
fn a_call_is_offered_again_by_either_end() {
    for lost in ["", "INVITE", "200 INVITE", "ACK"] {
        for caller in [true, false] {
            let mut world = World::new(Transport::Udp, &[]);
            world.callee(Agent::answer);
            world
                .lose
                .extend(Some(lost).filter(|lost| !lost.is_empty()));
            if caller {
                world.caller(Agent::reinvite);
            } else {
                world.callee(Agent::reinvite);
            }
            world.pass(ms(60_000));
            let events = &world.events[usize::from(!caller)];
            assert!(
                matches!(events.last(), Some(Event::Changed(_))),
                "{lost}: {events:?}"
            );
            world.caller(Agent::hang_up);
            world.pass(ms(60_000));
            assert_eq!(world.events[1].last(), Some(&Event::Ended));
            // Where the 200 is lost, each end waits for the other: both send again.
            let again = match lost {
                "" => 0,
                "200 INVITE" => 2,
                _ => 1,
            };
            assert_eq!(world.resent().iter().sum::<u32>(), again, "{lost}");
        }
    }
}

#[test]
fn an_offer_without_our_codec_is_refused() {
    let mut out = Out::default();
    let mut offer = session(4000);
    offer.codecs = vec![Codec::Pcma];
    let me = identity("a", Transport::Udp);
    let mut caller = Agent::call(me, "b", "c1", "ta", offer, ms(0), &mut out);
    let me = identity("b", Transport::Udp);
    let mut answers = Out::default();
    Agent::called(me, &out.messages[0], "tb", session(1), ms(0), &mut answers).unwrap();
    let mut out = Out::default();
    caller.receive(ms(1), &answers.messages[0], &mut out);
    let refused = Failure::Refused(Method::Invite, 488);
    assert_eq!(out.events, [Event::Failed(refused)]);
    assert_eq!(word(&out.messages[0]), "ACK");
}

#[test]
fn a_lost_connection_ends_the_call() {
    let mut world = World::new(Transport::Tcp, &[]);
    world.callee(Agent::answer);
    world.caller(|agent, _, out| agent.connection_lost(out));
    let lost = Event::Failed(Failure::ConnectionLost);
    assert_eq!(world.events[0].last(), Some(&lost));
    assert!(world.caller.is_over() && world.caller.deadline().is_none());
}

#[test]
fn strange_requests_are_answered_and_change_nothing() {
    let mut world = World::new(Transport::Udp, &[]);
    world.callee(Agent::answer);
    let ask = |method: Method, cseq: u32| {
        let mut request = Message::request(method.clone(), "sip:b");
        request.add(
            "Via",
            format!("SIP/2.0/UDP x;branch=z9hG4bK-{cseq}-{}", method.name()),
        );
        request.add("CSeq", format!("{cseq} {}", method.name()));
        request
    };
    let mut answer = |request: &Message| {
        let mut out = Out::default();
        let callee = world.callee.as_mut().unwrap();
        callee.receive(ms(1), request, &mut out);
        out.messages.first().and_then(Message::code)
    };
    assert_eq!(answer(&ask(Method::Options, 10)), Some(200));
    assert_eq!(answer(&ask(Method::Other("INFO".into()), 11)), Some(405));
    assert_eq!(answer(&ask(Method::Bye, 9)), Some(500));
    assert_eq!(answer(&ask(Method::Cancel, 12)), Some(481));
    assert_eq!(answer(&ask(Method::Ack, 12)), None);
    assert!(world.callee.unwrap().is_up());
}
