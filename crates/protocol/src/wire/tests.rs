//! Round trips, truncation, flipped bits, noise.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::arbiter::{Answer, Ask, Request};
use crate::heartbeat::{Activity, Echo, Heartbeat, Uplink};
use crate::id::{Epoch, Generation, Incarnation, MachineId, SessionId, Term};
use crate::message::{Checkpoint, Hello, Message};
use crate::record::{Change, Phase, Record, Refusal, Right};
use crate::sidecar::{DiskState, Sidecar};
use crate::time::Time;

/// Stands for a keyed hash: a sum that only the holder of the key can make.
struct Key(u32);

impl Authenticator for Key {
    const LENGTH: usize = 4;

    fn tag(&self, bytes: &[u8], tag: &mut Vec<u8>) {
        tag.extend_from_slice(&crc32c::crc32c_append(self.0, bytes).to_le_bytes());
    }

    fn is_authentic(&self, bytes: &[u8], tag: &[u8]) -> bool {
        let mut own = Vec::new();
        self.tag(bytes, &mut own);
        own == tag
    }
}

fn incarnation() -> impl Strategy<Value = Incarnation> {
    (1..=u128::MAX).prop_map(|n| Incarnation::new(n).expect("not zero"))
}

fn phase() -> impl Strategy<Value = Phase> {
    prop_oneof![Just(Phase::Claimed), Just(Phase::Running)]
}

fn session() -> impl Strategy<Value = SessionId> {
    (incarnation(), any::<u64>()).prop_map(|(runner, number)| SessionId { runner, number })
}

fn record() -> impl Strategy<Value = Record> {
    (
        any::<u128>(),
        any::<u64>(),
        incarnation(),
        option::of(incarnation()),
        phase(),
    )
        .prop_map(|(machine, generation, runner, heir, phase)| Record {
            machine: MachineId(machine),
            generation: Generation(generation),
            runner,
            heir,
            phase,
        })
}

fn request() -> impl Strategy<Value = Request> {
    let change = (
        any::<u64>(),
        incarnation(),
        option::of(incarnation()),
        phase(),
    )
        .prop_map(|(expected, runner, heir, phase)| Change {
            expected: Generation(expected),
            runner,
            heir,
            phase,
        });
    let right = prop_oneof![
        Just(Right::Named),
        Just(Right::Operator),
        vec(incarnation(), 0..5).prop_map(Right::Cold),
    ];
    let ask = prop_oneof![
        Just(Ask::Read),
        Just(Ask::Create),
        (right, change).prop_map(|(right, change)| Ask::Change(right, change)),
    ];
    (any::<u128>(), incarnation(), any::<u64>(), ask).prop_map(|(machine, from, number, ask)| {
        Request {
            machine: MachineId(machine),
            from,
            number,
            ask,
        }
    })
}

fn answer() -> impl Strategy<Value = Answer> {
    let refusal = prop_oneof![
        Just(Refusal::Absent),
        Just(Refusal::Exists),
        Just(Refusal::Generation),
        Just(Refusal::NotNamed),
        Just(Refusal::Shape),
        Just(Refusal::NotStored),
        Just(Refusal::Busy),
        Just(Refusal::Damaged),
    ];
    (
        any::<u128>(),
        incarnation(),
        any::<u64>(),
        option::of(record()),
        option::of(refusal),
    )
        .prop_map(|(machine, to, number, record, refusal)| Answer {
            machine: MachineId(machine),
            to,
            number,
            record,
            refusal,
        })
}

fn heartbeat() -> impl Strategy<Value = Heartbeat> {
    let activity = prop_oneof![
        Just(Activity::Waiting),
        Just(Activity::Primary),
        Just(Activity::Backup),
        Just(Activity::Frozen),
    ];
    let echo = (incarnation(), any::<u64>()).prop_map(|(of, sent)| Echo {
        of,
        sent: Time(sent),
    });
    let numbers = (
        any::<u128>(),
        any::<u64>(),
        any::<u64>(),
        any::<bool>(),
        any::<bool>(),
    );
    let uplink = (any::<u8>(), any::<u8>()).prop_map(|(a, b)| Uplink {
        up: a.min(b),
        of: a.max(b),
    });
    (numbers, incarnation(), activity, uplink, vec(echo, 0..=4)).prop_map(
        |((machine, sent, generation, moves, whole), from, activity, uplink, echoes)| Heartbeat {
            machine: MachineId(machine),
            from,
            sent: Time(sent),
            moves,
            activity,
            whole,
            uplink,
            generation: Generation(generation),
            echoes,
        },
    )
}

fn checkpoint() -> impl Strategy<Value = Checkpoint> {
    let numbers = (
        any::<u64>(),
        any::<u64>(),
        any::<u64>(),
        any::<u64>(),
        any::<u32>(),
        any::<u32>(),
    );
    (session(), numbers, any::<bool>()).prop_map(
        |(session, (term, epoch, released, rx_next, parts, digest), complete)| Checkpoint {
            session,
            term: Term(Generation(term)),
            epoch: Epoch(epoch),
            complete,
            released_through: Epoch(released),
            rx_next,
            parts,
            digest,
        },
    )
}

fn message() -> impl Strategy<Value = Message> {
    let hello = (
        any::<u128>(),
        incarnation(),
        any::<u64>(),
        any::<u32>(),
        any::<[u128; 2]>(),
        any::<bool>(),
    )
        .prop_map(
            |(machine, from, memory, vcpus, [processor, devices], unheld)| {
                Message::Hello(Hello {
                    machine: MachineId(machine),
                    from,
                    memory,
                    vcpus,
                    processor,
                    devices,
                    unheld,
                })
            },
        );
    let begin = (session(), any::<u64>(), any::<u64>(), any::<bool>()).prop_map(
        |(session, term, generation, unheld)| Message::Begin {
            session,
            term: Term(Generation(term)),
            generation: Generation(generation),
            unheld,
        },
    );
    let part = (
        session(),
        any::<u64>(),
        any::<u32>(),
        vec(any::<u8>(), 0..64),
    )
        .prop_map(|(session, epoch, index, bytes)| Message::Part {
            session,
            epoch: Epoch(epoch),
            index,
            bytes,
        });
    let frame = (
        session(),
        any::<u64>(),
        any::<u16>(),
        vec(any::<u8>(), 0..64),
    )
        .prop_map(|(session, number, card, bytes)| Message::Frame {
            session,
            number,
            card,
            bytes,
        });
    let digests = (
        session(),
        any::<u16>(),
        any::<u64>(),
        vec(any::<u8>(), 0..64),
        any::<bool>(),
    )
        .prop_map(|(session, disk, first, bytes, last)| Message::Digests {
            session,
            disk,
            first,
            bytes,
            last,
        });
    prop_oneof![
        hello,
        begin,
        digests,
        part,
        frame,
        checkpoint().prop_map(Message::Checkpoint),
        session().prop_map(Message::Ready),
        (session(), any::<u64>()).prop_map(|(s, e)| Message::Received(s, Epoch(e))),
        (session(), any::<u64>()).prop_map(|(s, e)| Message::Commit(s, Epoch(e))),
        session().prop_map(Message::Tried),
        session().prop_map(Message::Bye),
        session().prop_map(Message::Yield),
        Just(Message::Stopped),
    ]
}

fn sidecar() -> impl Strategy<Value = Sidecar> {
    let state = prop_oneof![Just(DiskState::InSync), Just(DiskState::Resyncing)];
    (any::<u128>(), state, vec(incarnation(), 0..5)).prop_map(|(machine, state, valid)| Sidecar {
        machine: MachineId(machine),
        state,
        valid,
    })
}

/// A frame of any kind, as bytes.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    fn bytes(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        encode(&mut out);
        out
    }
    prop_oneof![
        message().prop_map(|m| bytes(|out| encode_message(&m, out))),
        heartbeat().prop_map(|h| bytes(|out| encode_heartbeat(&h, &Insecure, out))),
        request().prop_map(|r| bytes(|out| encode_request(&r, &Insecure, out))),
        answer().prop_map(|a| bytes(|out| encode_answer(&a, &Insecure, out))),
        sidecar().prop_map(|s| bytes(|out| encode_sidecar(&s, out))),
        record().prop_map(|r| bytes(|out| encode_record(&r, out))),
    ]
}

/// Where the part begins in its frame: behind the header, the session, the epoch and the index.
const PART: usize = HEADER + 16 + 8 + 8 + 4;

/// A message, and of a part only whose and which it is.
fn without_part(mut message: Message) -> Message {
    if let Message::Part { bytes, .. } = &mut message {
        bytes.clear();
    }
    message
}

/// Whether any decoder takes these bytes.
fn accepted(bytes: &[u8]) -> bool {
    let results = [
        decode_message(bytes).is_ok(),
        decode_heartbeat(bytes, &Insecure).is_ok(),
        decode_request(bytes, &Insecure).is_ok(),
        decode_answer(bytes, &Insecure).is_ok(),
        decode_sidecar(bytes).is_ok(),
        decode_record(bytes).is_ok(),
        decode_heartbeat(bytes, &Key(1)).is_ok(),
    ];
    results.contains(&true)
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(
        m in message(), h in heartbeat(), r in request(), a in answer(), s in sidecar(), d in record(), key: u32,
    ) {
        let mut out = Vec::new();
        encode_message(&m, &mut out);
        prop_assert_eq!(decode_message(&out), Ok(m));
        out.clear();
        encode_heartbeat(&h, &Key(key), &mut out);
        prop_assert_eq!(decode_heartbeat(&out, &Key(key)), Ok(h));
        out.clear();
        encode_request(&r, &Key(key), &mut out);
        prop_assert_eq!(decode_request(&out, &Key(key)), Ok(r));
        out.clear();
        encode_answer(&a, &Key(key), &mut out);
        prop_assert_eq!(decode_answer(&out, &Key(key)), Ok(a));
        out.clear();
        encode_sidecar(&s, &mut out);
        prop_assert_eq!(decode_sidecar(&out), Ok(s));
        out.clear();
        encode_record(&d, &mut out);
        prop_assert_eq!(decode_record(&out), Ok(d));
    }

    #[test]
    fn a_frame_cut_short_anywhere_is_refused(bytes in frame()) {
        prop_assert!(accepted(&bytes));
        for length in 0..bytes.len() {
            prop_assert!(!accepted(&bytes[..length]), "the first {} bytes", length);
        }
        let mut longer = bytes.clone();
        longer.push(0);
        prop_assert!(!accepted(&longer));
    }

    #[test]
    fn any_flipped_bit_is_refused(bytes in frame()) {
        let mut bytes = bytes;
        let whole = decode_message(&bytes).map(without_part);
        let is_part = matches!(whole, Ok(Message::Part { .. }));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            if is_part && bit / 8 >= PART {
                // Of the part itself its sections tell, where they are read (checkpoint's refusal.rs).
                prop_assert_eq!(decode_message(&bytes).map(without_part), whole.clone());
            } else {
                prop_assert!(!accepted(&bytes), "bit {}", bit);
            }
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn noise_never_panics(bytes in vec(any::<u8>(), 0..256)) {
        let _ = accepted(&bytes);
    }

    /// A right header and checksum around a body of noise: the bodies' own checks.
    #[test]
    fn a_body_of_noise_never_panics(kind in 0_usize..16, body in vec(any::<u8>(), 0..256)) {
        let mut out = Vec::new();
        frame::encode(Kind::ALL[kind], &Insecure, &mut out, |out| out.extend_from_slice(&body));
        let _ = accepted(&out);
    }

    #[test]
    fn a_wrong_key_is_refused(h in heartbeat(), key: u32, other: u32) {
        prop_assume!(key != other);
        let mut out = Vec::new();
        encode_heartbeat(&h, &Key(key), &mut out);
        prop_assert_eq!(decode_heartbeat(&out, &Key(other)), Err(WireError::Forged));
    }
}

/// The header's bytes are a promise to other releases.
#[test]
fn the_header_is_what_the_text_says() {
    let mut out = Vec::new();
    encode_message(&Message::Stopped, &mut out);
    let mut golden = b"RMLS\x03\x00\x1a\x00\x00\x00\x00\x00".to_vec();
    golden.extend_from_slice(&crc32c::crc32c(&golden).to_le_bytes());
    assert_eq!(out, golden);
    out[4] = 9;
    assert_eq!(decode_message(&out), Err(WireError::Version(9, VERSION)));
}

/// A length field is never believed before the bytes are there.
#[test]
fn a_huge_length_allocates_nothing() {
    let mut out = Vec::new();
    encode_message(&Message::Stopped, &mut out);
    out[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(
        decode_message(&out),
        Err(WireError::Long(u32::MAX as usize))
    );
}

#[test]
fn more_uplinks_than_there_are_is_no_heartbeat() {
    let beat = |uplink| Heartbeat {
        machine: MachineId(1),
        from: Incarnation::new(2).expect("not zero"),
        sent: Time(3),
        moves: true,
        activity: Activity::Backup,
        whole: true,
        uplink,
        generation: Generation(4),
        echoes: Vec::new(),
    };
    let read = |uplink| {
        let mut out = Vec::new();
        encode_heartbeat(&beat(uplink), &Insecure, &mut out);
        decode_heartbeat(&out, &Insecure).map(|beat| beat.uplink)
    };
    for (up, of) in [(0, 0), (0, 1), (255, 255)] {
        assert_eq!(read(Uplink { up, of }), Ok(Uplink { up, of }));
    }
    for (up, of) in [(1, 0), (3, 2), (255, 254)] {
        assert!(matches!(read(Uplink { up, of }), Err(WireError::Body(_))));
    }
}

#[test]
fn what_is_stored_keeps_its_version_when_the_hosts_messages_change() {
    let version = |bytes: &[u8]| u16::from_le_bytes([bytes[4], bytes[5]]);
    let mut stored = Vec::new();
    encode_sidecar(&crate::sidecar::Sidecar::empty(MachineId(1)), &mut stored);
    assert_eq!(version(&stored), 1);
    let mut sent = Vec::new();
    encode_message(&Message::Stopped, &mut sent);
    assert_eq!(version(&sent), VERSION);
    // A host of the first release is told apart by its first word.
    sent[4..6].copy_from_slice(&1_u16.to_le_bytes());
    assert_eq!(decode_message(&sent), Err(WireError::Version(1, VERSION)));
}
