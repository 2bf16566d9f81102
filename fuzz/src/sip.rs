//! What a probe reads from the network: SIP in datagrams and in a stream, session descriptions, RTP; and what a user agent makes
//! of messages that nobody expects.
//!
//! The first byte of the input says which of these it is.

use crate::{input::Input, memory::bounded};
use romulus_telephony::{
    call::{Agent, Identity, Malformed, Message, Method, Out, Reader, Session, Transport},
    media::{Account, Codec, Header, Mark, PACKET, Playout, Sent, encode, parse},
};
use std::time::Duration;

/// Memory that a message's every byte may take: a field's name and value are strings of their own.
const EACH: usize = 64;
/// The longest message that is taken.
const LONGEST: usize = 64 << 10;
/// Memory that an agent's answers may take for each message that it was given: it keeps some, with what it took over from it.
const ANSWER: usize = 16 << 10;

/// What an agent may send at a time.
const MOST: usize = 8;

/// Reads it as one of these.
///
/// # Panics
/// A promise is broken.
pub fn body(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    match input.byte() % 5 {
        0 => datagram(input.rest()),
        1 => stream(input),
        2 => session(input.rest()),
        3 => agent(input),
        _ => rtp(input),
    }
}

fn datagram(bytes: &[u8]) {
    let Ok(message) = bounded(EACH * bytes.len(), || Message::parse(bytes)) else {
        return;
    };
    bounded(EACH * bytes.len(), || {
        message.via();
        message.cseq();
        for name in ["From", "To", "Contact"] {
            message.address(name).and_then(|address| address.user());
        }
        message.list("Record-Route").count();
    });
    again(&message);
}

/// What was read is written so that it is read again.
fn again(message: &Message) {
    assert_eq!(Message::parse(&message.encode()).as_ref(), Ok(message));
}

/// A stream gives the same however it is cut.
fn stream(mut input: Input<'_>) {
    let size = usize::from(input.byte()).max(1);
    let bytes = input.rest();
    let read = |size: usize| -> (Vec<Message>, Option<Malformed>) {
        let mut reader = Reader::default();
        let mut messages = Vec::new();
        for piece in bytes.chunks(size) {
            reader.push(piece);
            loop {
                match reader.take() {
                    Ok(Some(message)) => messages.push(message),
                    Ok(None) => break,
                    Err(error) => return (messages, Some(error)),
                }
            }
        }
        (messages, None)
    };
    let most = 2 * EACH * bytes.len() + LONGEST;
    let whole = bounded(most, || read(bytes.len().max(1)));
    let pieces = bounded(most, || read(size));
    // What is too long is seen sooner or later, by how much came at once.
    if bytes.len() <= LONGEST {
        assert_eq!(whole, pieces);
    }
    for message in &whole.0 {
        again(message);
    }
}

fn session(bytes: &[u8]) {
    let read = bounded(EACH * bytes.len(), || Session::parse(bytes));
    if let Some(session) = read {
        assert_ne!(session.rtp.port(), 0);
        assert!(!session.codecs.is_empty());
        // A description may name one of our codecs as often as it likes.
        assert_eq!(Session::parse(&session.encode()), Some(session));
    }
}

/// A callee, or a caller whose call is under way, is given messages while time passes.
fn agent(mut input: Input<'_>) {
    let choice = input.byte();
    let transport = match choice >> 1 & 3 {
        0 | 3 => Transport::Udp,
        1 => Transport::Tcp,
        _ => Transport::Tls,
    };
    let mut now = Duration::ZERO;
    let mut out = Out::default();
    let mut agent = if choice & 1 == 0 {
        caller(transport, &mut out)
    } else {
        // The call's INVITE is the input's first message, or a good one.
        let own = Message::parse(input.piece()).ok();
        let invite = own.unwrap_or_else(invite);
        let me = identity("b", transport);
        match Agent::called(me, &invite, "tb", offer(), now, &mut out) {
            Some(agent) => agent,
            None => return,
        }
    };
    while !input.is_empty() {
        now += Duration::from_millis(u64::from(input.byte()) * 40);
        let act = input.byte();
        let length = input.piece();
        bounded(ANSWER + 3 * EACH * length.len(), || match act % 8 {
            0 => agent.answer(now, &mut out),
            1 => agent.reinvite(now, &mut out),
            2 => agent.cancel(now, &mut out),
            3 => agent.hang_up(now, &mut out),
            _ => {
                agent.tick(now, &mut out);
                if let Ok(message) = Message::parse(length) {
                    agent.receive(now, &message, &mut out);
                }
            }
        });
        // One message never makes it send a storm: there is an ACK or an answer, a BYE, and what is due of a few requests.
        assert!(
            out.messages.len() <= MOST,
            "{} messages",
            out.messages.len()
        );
        if let Some(due) = agent.deadline() {
            agent.tick(due, &mut out);
        }
        for message in out.messages.drain(..) {
            again(&message);
        }
        out.events.clear();
    }
}

fn identity(user: &str, transport: Transport) -> Identity {
    Identity {
        transport,
        local: ([192, 0, 2, 254], 4000).into(),
        domain: "192.0.2.100".into(),
        user: user.into(),
    }
}

fn offer() -> Session {
    Session {
        id: 1,
        version: 1,
        rtp: ([192, 0, 2, 254], 5000).into(),
        codecs: vec![Codec::Pcmu],
    }
}

fn caller(transport: Transport, out: &mut Out) -> Agent {
    let me = identity("a", transport);
    Agent::call(me, "b", "c1", "ta", offer(), Duration::ZERO, out)
}

/// The INVITE of [`caller`].
fn invite() -> Message {
    let mut out = Out::default();
    caller(Transport::Udp, &mut out);
    out.messages.swap_remove(0)
}

fn rtp(mut input: Input<'_>) {
    let mut account = Account::default();
    let mut packets = 0;
    while !input.is_empty() {
        let at = Duration::from_millis(u64::from(input.short()));
        let packet = input.piece();
        if let Some((header, Some(mark))) = bounded(0, || parse(packet)) {
            assert!(packet.len() >= PACKET);
            // A stream of two hours is what may be booked.
            let most = 40 * (1 << 20);
            bounded(most, || account.arrived(at, &header, &mark));
        }
        packets += 1;
    }
    let report = account.report(Sent::default(), Playout::default());
    assert!(report.received <= packets);
    assert!((1.0..=4.5).contains(&report.mos));
}

/// What real ends send, and it with faults.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let invite = invite();
    let mut ringing = Message::answer(&invite, 180, "Ringing");
    ringing.set("To", "<sip:b@192.0.2.100>;tag=tb");
    ringing.add("Contact", "<sip:b@192.0.2.254:4001>");
    ringing.add("Record-Route", "<sip:192.0.2.100;lr>");
    let mut ok = Message::answer(&invite, 200, "OK");
    ok.set("To", "<sip:b@192.0.2.100>;tag=tb");
    ok.add("Contact", "<sip:b@192.0.2.254:4001>");
    ok.add("Content-Type", Session::TYPE);
    ok.body = offer().encode();
    let mut bye = Message::request(Method::Bye, "sip:a@192.0.2.254:4000");
    for (name, value) in [
        ("Via", "SIP/2.0/UDP 192.0.2.254:4001;branch=z9hG4bK9"),
        ("From", "<sip:b@192.0.2.100>;tag=tb"),
        ("To", "<sip:a@192.0.2.100>;tag=ta"),
        ("Call-ID", "c1"),
        ("CSeq", "7 BYE"),
    ] {
        bye.add(name, value);
    }
    let all: Vec<Vec<u8>> = [&invite, &ringing, &ok, &bye].map(Message::encode).into();
    let mut seeds = Vec::new();
    for (name, bytes) in ["invite", "ringing", "ok", "bye"].iter().zip(&all) {
        seeds.push(((*name).to_owned(), [&[0][..], bytes].concat()));
    }
    let short = b"\0SIP/2.0 200 OK\r\nv: SIP/2.0/TCP a;branch=z9hG4bK1,SIP/2.0/UDP b\r\nt: \"x,<\" <sip:b@c>;tag=1\r\nm: <sip:b@c>,\r\n\t<sip:d>\r\nl: 2\r\n\r\nxyz";
    seeds.push(("short-names".into(), short.to_vec()));
    seeds.push(("stream".into(), [&[1, 7][..], &all.concat()].concat()));
    seeds.push((
        "stream-blank".into(),
        [&[1, 200][..], &all.join(&b"\r\n\r\n"[..])].concat(),
    ));
    seeds.push(("session".into(), [&[2][..], &offer().encode()].concat()));
    let piece = |bytes: &[u8]| {
        let length = u16::try_from(bytes.len()).expect("a short message");
        [&length.to_le_bytes()[..], bytes].concat()
    };
    let mut calls = vec![3, 0];
    for message in &all[1..] {
        calls.extend([20, 7]);
        calls.extend(piece(message));
    }
    seeds.push(("caller".into(), calls));
    let mut callee = [&[3, 1][..], &piece(&all[0])].concat();
    for act in [0, 1, 3, 7] {
        callee.extend([200, act]);
        callee.extend(piece(&all[3]));
    }
    seeds.push(("callee".into(), callee));
    let header = Header {
        marker: true,
        payload_type: 0,
        sequence: 1,
        timestamp: 160,
        ssrc: 7,
    };
    let mut packets = vec![4];
    for index in [0_u8, 1, 3, 3, 2] {
        let mark = Mark {
            run: 1,
            stream: 0,
            index: index.into(),
            sent: Duration::from_millis(20) * index.into(),
        };
        packets.extend((20 * u16::from(index)).to_le_bytes());
        packets.extend(piece(&encode(header, mark, Codec::Pcma)));
    }
    seeds.push(("rtp".into(), packets));
    seeds
}
