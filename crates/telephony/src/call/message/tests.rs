//! Messages to bytes and back.

use super::{Malformed, Message, Method, Start};
use proptest::prelude::*;

const INVITE: &str = "INVITE sip:bob@192.0.2.100 SIP/2.0\r\n\
    v: SIP/2.0/UDP 192.0.2.254:4000;branch=z9hG4bK-1;rport\r\n\
    Max-Forwards: 70\r\n\
    t: <sip:bob@192.0.2.100>\r\n\
    FROM: \"A, <Lice>\" <sip:alice@192.0.2.100>;tag=a1\r\n\
    i: c1@192.0.2.254\r\n\
    cseq: 7 INVITE\r\n\
    Record-Route: <sip:192.0.2.100;lr>,\r\n  <sip:192.0.2.101;lr=on>\r\n\
    Record-Route: <sip:192.0.2.102;lr>\r\n\
    X-Own: kept as it is\r\n\
    l: 4\r\n\r\nbody and more";

fn refused(text: &str) -> Malformed {
    Message::parse(text.as_bytes()).unwrap_err()
}

#[test]
fn short_names_case_folding_and_lists_are_understood() {
    let message = Message::parse(INVITE.as_bytes()).unwrap();
    assert_eq!(message.method(), Some(&Method::Invite));
    assert_eq!(message.body, b"body");
    assert_eq!(message.call_id(), Some("c1@192.0.2.254"));
    let cseq = message.cseq().unwrap();
    assert_eq!((cseq.number, cseq.method), (7, Method::Invite));
    assert_eq!(message.via().unwrap().branch(), Some("z9hG4bK-1"));
    let from = message.address("From").unwrap();
    assert_eq!(
        (from.uri, from.tag()),
        ("sip:alice@192.0.2.100", Some("a1"))
    );
    let routes: Vec<_> = message.list("Record-Route").collect();
    assert_eq!(
        routes,
        [
            "<sip:192.0.2.100;lr>",
            "<sip:192.0.2.101;lr=on>",
            "<sip:192.0.2.102;lr>"
        ]
    );
    assert_eq!(message.field("X-Own"), Some("kept as it is"));
}

#[test]
fn what_was_encoded_is_read() {
    let message = Message::parse(INVITE.as_bytes()).unwrap();
    assert_eq!(Message::parse(&message.encode()), Ok(message));
}

#[test]
fn an_answer_takes_over_what_it_has_to() {
    let request = Message::parse(INVITE.as_bytes()).unwrap();
    let answer = Message::answer(&request, 180, "Ringing");
    let text = String::from_utf8(answer.encode()).unwrap();
    assert!(text.starts_with("SIP/2.0 180 Ringing\r\nVia: "), "{text}");
    assert_eq!(answer.fields("Record-Route").count(), 2);
    assert_eq!(answer.field("X-Own"), None);
    assert_eq!(answer.field("Max-Forwards"), None);
}

#[test]
fn what_is_set_takes_the_olds_place_and_cannot_begin_a_line() {
    let mut message = Message::request(Method::Options, "sip:x");
    message.add("To", "<sip:x>");
    message.add("From", "<sip:y>");
    message.set("To", "<sip:x>;tag=1\r\nEvil: 1");
    message.set("CSeq", "1 OPTIONS");
    assert_eq!(message.field("To"), Some("<sip:x>;tag=1  Evil: 1"));
    let read = Message::parse(&message.encode()).unwrap();
    assert_eq!(read.field("Evil"), None);
    assert_eq!(read.fields("To").count(), 1);
}

#[test]
fn a_value_may_begin_on_the_next_line() {
    let text = "SIP/2.0 200 OK\r\nTo:\r\n <sip:b@c>\r\n ;tag=1\r\n\t\r\n\r\n";
    let message = Message::parse(text.as_bytes()).unwrap();
    assert_eq!(message.field("To"), Some("<sip:b@c> ;tag=1"));
    assert_eq!(Message::parse(&message.encode()), Ok(message));
}

#[test]
fn what_is_no_message_is_refused() {
    for text in [
        "",
        "\r\n\r\n",
        "OPTIONS sip:x SIP/2.0\r\nTo: x",
        "OPTIONS sip:x SIP/1.0\r\n\r\n",
        "OPTIONS sip:x\r\n\r\n",
        "OPTIONS  SIP/2.0\r\n\r\n",
        "OPT(IONS sip:x SIP/2.0\r\n\r\n",
        "OPTIONS sip:x SIP/2.0\r\nno colon\r\n\r\n",
        "OPTIONS sip:x SIP/2.0\r\n folded: first\r\n\r\n",
        "OPTIONS sip:x SIP/2.0\r\na b: space\r\n\r\n",
        "OPTIONS sip:x SIP/2.0\r\na: 1\nb: 2\r\n\r\n",
        "OPTIONS sip:x SIP/2.0\r\nl: 5\r\n\r\nfour",
        "OPTIONS sip:x SIP/2.0\r\nl: +1\r\n\r\nfour",
        "OPTIONS sip:x SIP/2.0\r\nl: 1\r\nl: 2\r\n\r\nfour",
        "OPTIONS sip:x SIP/2.0\r\nl: 99999999999999999999\r\n\r\n",
        "SIP/2.0 99 Low\r\n\r\n",
        "SIP/2.0 700 High\r\n\r\n",
        "SIP/2.0 +20 Sign\r\n\r\n",
        "SIP/2.0 0200 Long\r\n\r\n",
    ] {
        refused(text);
    }
    assert!(Message::parse(b"OPTIONS sip:\xff SIP/2.0\r\n\r\n").is_err());
    let many = format!("OPTIONS sip:x SIP/2.0\r\n{}\r\n", "a: 1\r\n".repeat(257));
    assert_eq!(refused(&many), Malformed("too many fields"));
}

#[test]
fn an_answer_needs_no_reason() {
    let message = Message::parse(b"SIP/2.0 200 \r\n\r\n").unwrap();
    assert_eq!(message.code(), Some(200));
    let message = Message::parse(b"SIP/2.0 200\r\n\r\n").unwrap();
    assert!(matches!(message.start, Start::Response { reason, .. } if reason.is_empty()));
}

proptest! {
    #[test]
    fn any_bytes_are_borne(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Message::parse(&bytes);
    }

    /// Good messages with one thing wrong get further than noise does.
    #[test]
    fn what_is_read_is_written_the_same(at in 0_usize..500, byte in any::<u8>()) {
        let mut bytes = INVITE.as_bytes().to_vec();
        if let Some(place) = bytes.get_mut(at) {
            *place = byte;
        }
        if let Ok(message) = Message::parse(&bytes) {
            message.via();
            message.cseq();
            message.address("From");
            message.list("Record-Route").count();
            prop_assert_eq!(Message::parse(&message.encode()), Ok(message));
        }
    }
}
