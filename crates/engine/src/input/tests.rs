//! What the backup is told of input.

use super::*;
use crate::{backup::testing::linked, link::Closer};
use std::time::Duration;

/// A frame as a tap gives it.
struct Frame(Vec<u8>);

impl Incoming for Frame {
    fn length(&self) -> usize {
        self.0.len()
    }

    fn copy_to(&self, into: &mut [u8]) {
        let length = into.len().min(self.0.len());
        into[..length].copy_from_slice(&self.0[..length]);
    }
}

/// UDP with this payload, behind a virtio-net header whose end nobody has set.
fn udp(payload: &[u8]) -> Frame {
    let mut bytes = vec![0; HEADER];
    bytes[UNSET].fill(0xee);
    bytes.extend_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9]);
    let length = u16::try_from(payload.len()).unwrap();
    let [ip, udp] = [length + 28, length + 8].map(u16::to_be_bytes);
    bytes.extend_from_slice(&[8, 0, 0x45, 0, ip[0], ip[1], 0, 1, 0, 0, 64, 17, 0, 0]);
    bytes.extend_from_slice(&[192, 0, 2, 7, 192, 0, 2, 100]);
    bytes.extend_from_slice(&[0x4e, 0x20, 0x75, 0x30, udp[0], udp[1], 0, 0]);
    bytes.extend_from_slice(payload);
    Frame(bytes)
}

fn closer() -> Closer {
    linked().0.closer()
}

fn session() -> SessionId {
    crate::backup::testing::session(1)
}

/// The frames that wait to be sent: number, card, payload.
fn sent(outbox: &Outbox) -> Vec<(u64, u16, Vec<u8>)> {
    let next = || outbox.take_frame();
    std::iter::from_fn(next)
        .map(|message| match message {
            Message::Frame {
                session: of,
                number,
                card,
                bytes,
            } => {
                assert_eq!((of, &bytes[..HEADER]), (session(), &[0; HEADER][..]));
                (number, card, bytes[HEADER + 42..].to_vec())
            }
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn frames_are_passed_on_with_their_numbers_while_somebody_is_there() {
    let input = Input::default();
    let outbox = Arc::new(Outbox::new(closer()));
    input.received(0, &udp(b"nobody"));
    assert_eq!(input.next(), 1, "counted nevertheless");
    input.pass_on(session(), Arc::clone(&outbox));
    input.received(0, &udp(b"first"));
    input.received(1, &udp(b"second"));
    assert_eq!(input.next(), 3);
    input.keep();
    input.received(0, &udp(b"nobody"));
    let first = (1, 0, b"first".to_vec());
    let second = (2, 1, b"second".to_vec());
    assert_eq!(sent(&outbox), [first, second]);
    assert_eq!((input.next(), input.figures().passed_on), (4, 2));
}

#[test]
fn media_is_counted_and_not_passed_on() {
    let input = Input::default();
    let outbox = Arc::new(Outbox::new(closer()));
    input.pass_on(session(), Arc::clone(&outbox));
    let mut rtp = vec![0x80, 0, 0, 1, 0, 0, 0, 1, 1, 2, 3, 4];
    rtp.resize(172, 7);
    input.received(0, &udp(&rtp));
    input.received(0, &udp(b"OPTIONS"));
    assert_eq!(sent(&outbox), [(1, 0, b"OPTIONS".to_vec())]);
    input.pass_on_media(true);
    input.received(0, &udp(&rtp));
    assert_eq!(sent(&outbox), [(2, 0, rtp.clone())], "in a switchover");
    input.pass_on_media(false);
    // What is too short to be a frame is passed on as it is: the other side drops it.
    input.received(0, &Frame(vec![1; 5]));
    assert_eq!(input.next(), 4);
}

#[test]
fn only_in_a_switchover_no_frame_waits_for_a_sender_that_rests() {
    let input = Input::default();
    let outbox = Arc::new(Outbox::new(closer()));
    input.pass_on(session(), Arc::clone(&outbox));
    outbox.rest(Duration::from_hours(1));
    input.received(0, &udp(b"waits"));
    assert!(matches!(outbox.take(true), Ok(None)));
    input.pass_on_media(true);
    input.received(0, &udp(b"does not"));
    assert!(matches!(outbox.take(true), Ok(Some(_))));
    let rest = (1, 0, b"does not".to_vec());
    assert_eq!(sent(&outbox), [rest], "the one that waited went first");
}

#[test]
fn a_link_that_does_not_keep_up_gets_no_more() {
    let input = Input::default();
    let outbox = Arc::new(Outbox::new(closer()));
    input.pass_on(session(), Arc::clone(&outbox));
    let frame = udp(&[b'x'; 1400]);
    let fit = (1 << 20) / frame.0.len();
    for _ in 0..fit + 3 {
        input.received(0, &frame);
    }
    let figures = input.figures();
    assert_eq!((figures.passed_on, figures.skipped), (fit as u64, 3));
    assert_eq!(sent(&outbox).len(), fit);
    input.received(0, &frame);
    assert_eq!(sent(&outbox).len(), 1, "when it has caught up");
    outbox.close();
    input.received(0, &frame);
    assert_eq!(sent(&outbox), []);
}
