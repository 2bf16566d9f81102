//! Frames: messages of the link, heartbeats, the arbiter's requests and answers, sidecars and records.
//!
//! The input is one frame. It is read as it is, and once more with its length and checksum made right, because a fuzzer does
//! not guess checksums.

use crate::memory::bounded;
use romulus_protocol::{
    arbiter::{Answer, Ask, Request},
    heartbeat::{Activity, ECHOES_MAX, Echo, Heartbeat, Uplink},
    id::{Epoch, Generation, Incarnation, MachineId, SessionId, Term},
    message::{Checkpoint, Hello, Message},
    record::{Change, Phase, Record, Refusal, Right},
    sidecar::{DiskState, Sidecar},
    time::Time,
    wire::{
        Authenticator, HEADER, Header, Insecure, Kind, LENGTH_MAX, decode_answer, decode_heartbeat,
        decode_message, decode_record, decode_request, decode_sidecar, encode_answer,
        encode_heartbeat, encode_message, encode_record, encode_request, encode_sidecar,
    },
};
use std::fmt::Debug;

/// Memory that a frame may take for each of its bytes: a copy, and what growing lists leave behind.
const EACH: usize = 8;

/// Stands for a keyed hash.
struct Key(u32);

impl Authenticator for Key {
    const LENGTH: usize = 4;

    fn tag(&self, bytes: &[u8], tag: &mut Vec<u8>) {
        tag.extend_from_slice(&crc32c::crc32c_append(self.0, bytes).to_le_bytes());
    }

    fn is_authentic(&self, bytes: &[u8], tag: &[u8]) -> bool {
        crc32c::crc32c_append(self.0, bytes).to_le_bytes() == tag
    }
}

/// Reads a frame in all ways.
///
/// # Panics
/// A promise is broken.
pub fn body(bytes: &[u8]) {
    plain(bytes);
    let sealed = seal(bytes);
    if sealed != bytes {
        plain(&sealed);
    }
    keyed(&sealed);
}

/// The frame with the length and the checksum that belong to its bytes.
pub fn seal(bytes: &[u8]) -> Vec<u8> {
    let mut frame = bytes.to_vec();
    let Some(length) = frame.len().checked_sub(HEADER) else {
        return frame;
    };
    if let Ok(length) = u32::try_from(length) {
        frame[8..12].copy_from_slice(&length.to_le_bytes());
    }
    let mut covered = &frame[HEADER..];
    if frame[6..8] == (Kind::Part as u16).to_le_bytes() {
        // Session, epoch and index; the part has checksums of its own.
        covered = covered.get(..24 + 8 + 4).unwrap_or(covered);
    }
    let sum = crc32c::crc32c_append(crc32c::crc32c(&frame[..12]), covered);
    frame[12..16].copy_from_slice(&sum.to_le_bytes());
    frame
}

fn plain(bytes: &[u8]) {
    if let Ok(header) = Header::decode(bytes) {
        assert!(header.length <= LENGTH_MAX);
        assert_eq!(header.frame(), HEADER + header.length);
    }
    let taken = [
        again(bytes, decode_message, encode_message),
        again(
            bytes,
            |b| decode_heartbeat(b, &Insecure),
            |beat, out| {
                assert!(beat.echoes.len() <= ECHOES_MAX);
                encode_heartbeat(beat, &Insecure, out);
            },
        ),
        again(
            bytes,
            |b| decode_request(b, &Insecure),
            |request, out| encode_request(request, &Insecure, out),
        ),
        again(
            bytes,
            |b| decode_answer(b, &Insecure),
            |answer, out| encode_answer(answer, &Insecure, out),
        ),
        again(bytes, decode_sidecar, encode_sidecar),
        again(bytes, decode_record, encode_record),
    ];
    let taken = taken.into_iter().filter(|taken| *taken).count();
    assert!(taken <= 1, "a frame is of one kind");
    if taken == 1 {
        let longer = [bytes, &[0]].concat();
        assert!(decode_message(&longer).is_err() && decode_record(&longer).is_err());
    }
}

/// A frame that was read is the one that its content would be sent as. Says whether it was read.
fn again<T: Debug, E>(
    bytes: &[u8],
    decode: impl FnOnce(&[u8]) -> Result<T, E>,
    encode: impl FnOnce(&T, &mut Vec<u8>),
) -> bool {
    let Ok(value) = bounded(EACH * bytes.len(), || decode(bytes)) else {
        return false;
    };
    let mut out = Vec::new();
    encode(&value, &mut out);
    assert!(out == bytes, "encoded again it is another: {value:?}");
    true
}

/// What is authenticated: read with its key it is the same as without, and with another key nothing.
fn keyed(frame: &[u8]) {
    fn check<T: PartialEq + Debug, E: PartialEq + Debug>([plain, right, wrong]: [Result<T, E>; 3]) {
        assert!(wrong.is_err(), "a wrong key opened {wrong:?}");
        if plain.is_ok() {
            assert_eq!(right, plain);
        }
    }
    let (right, wrong) = (Key(0x5eed), Key(0xbad));
    let mut tagged = frame.to_vec();
    right.tag(frame, &mut tagged);
    check([
        decode_heartbeat(frame, &Insecure),
        decode_heartbeat(&tagged, &right),
        decode_heartbeat(&tagged, &wrong),
    ]);
    check([
        decode_request(frame, &Insecure),
        decode_request(&tagged, &right),
        decode_request(&tagged, &wrong),
    ]);
    check([
        decode_answer(frame, &Insecure),
        decode_answer(&tagged, &right),
        decode_answer(&tagged, &wrong),
    ]);
}

fn incarnation(number: u128) -> Incarnation {
    Incarnation::new(number).expect("not 0")
}

/// A record, for seeds.
pub fn record(machine: u128, heir: Option<u128>) -> Record {
    Record {
        machine: MachineId(machine),
        generation: Generation(12),
        runner: incarnation(0xa1),
        heir: heir.map(incarnation),
        phase: Phase::Running,
    }
}

/// Every kind of frame.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut seeds = messages();
    let mut seed = |name: &str, encode: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        encode(&mut out);
        seeds.push((name.into(), out));
    };
    let machine = MachineId(0x6ba7_b810_9dad_11d1_80b4_00c0_4fd4_30c8);
    for (name, echoes) in [("first", 0), ("heard", 2)] {
        let beat = Heartbeat {
            machine,
            from: incarnation(0xa1),
            sent: Time(1_000_000),
            moves: true,
            activity: Activity::Primary,
            whole: echoes > 0,
            uplink: Uplink { up: 1, of: 2 },
            generation: Generation(12),
            echoes: vec![
                Echo {
                    of: incarnation(0xb2),
                    sent: Time(999_000),
                };
                echoes
            ],
        };
        seed(&format!("heartbeat-{name}"), &|out| {
            encode_heartbeat(&beat, &Insecure, out);
        });
    }
    let change = Change {
        expected: Generation(12),
        runner: incarnation(0xb2),
        heir: Some(incarnation(0xa1)),
        phase: Phase::Claimed,
    };
    for (name, ask) in [
        ("read", Ask::Read),
        ("create", Ask::Create),
        ("claim", Ask::Change(Right::Named, change)),
        ("promote", Ask::Change(Right::Operator, change)),
        (
            "cold",
            Ask::Change(
                Right::Cold(vec![incarnation(0xa1), incarnation(0xa0)]),
                change,
            ),
        ),
    ] {
        let request = Request {
            machine,
            from: incarnation(0xb2),
            number: 3,
            ask,
        };
        seed(&format!("request-{name}"), &|out| {
            encode_request(&request, &Insecure, out);
        });
    }
    for (name, record, refusal) in [
        ("record", Some(record(machine.0, Some(0xb2))), None),
        ("absent", None, Some(Refusal::Absent)),
        (
            "late",
            Some(record(machine.0, None)),
            Some(Refusal::Generation),
        ),
    ] {
        let answer = Answer {
            machine,
            to: incarnation(0xb2),
            number: 3,
            record,
            refusal,
        };
        seed(&format!("answer-{name}"), &|out| {
            encode_answer(&answer, &Insecure, out);
        });
    }
    let sidecar = Sidecar {
        machine,
        state: DiskState::Resyncing,
        valid: vec![incarnation(0xa0), incarnation(0xa1)],
    };
    seed("sidecar", &|out| encode_sidecar(&sidecar, out));
    let record = record(machine.0, Some(0xb2));
    seed("record", &|out| encode_record(&record, out));
    seeds
}

/// Every message of the link.
fn messages() -> Vec<(String, Vec<u8>)> {
    let session = SessionId {
        runner: incarnation(0xa1),
        number: 4,
    };
    let messages = [
        (
            "hello",
            Message::Hello(Hello {
                machine: MachineId(7),
                from: incarnation(0xa1),
                memory: 512 << 20,
                vcpus: 2,
                processor: 1 << 100,
                devices: 3,
                unheld: false,
            }),
        ),
        (
            "begin",
            Message::Begin {
                session,
                term: Term(Generation(11)),
                generation: Generation(12),
                unheld: true,
            },
        ),
        ("ready", Message::Ready(session)),
        (
            "digests",
            Message::Digests {
                session,
                disk: 1,
                first: 0,
                bytes: vec![0x5a; 24],
                last: true,
            },
        ),
        (
            "part",
            Message::Part {
                session,
                epoch: Epoch(9),
                index: 0,
                bytes: vec![1, 2, 3, 4],
            },
        ),
        (
            "frame",
            Message::Frame {
                session,
                number: 70,
                card: 1,
                bytes: vec![0; 26],
            },
        ),
        (
            "checkpoint",
            Message::Checkpoint(Checkpoint {
                session,
                term: Term(Generation(11)),
                epoch: Epoch(9),
                complete: true,
                released_through: Epoch(8),
                rx_next: 71,
                parts: 1,
                digest: 0xfeed,
            }),
        ),
        ("received", Message::Received(session, Epoch(9))),
        ("commit", Message::Commit(session, Epoch(9))),
        ("tried", Message::Tried(session)),
        ("bye", Message::Bye(session)),
        ("yield", Message::Yield(session)),
        ("stopped", Message::Stopped),
    ];
    let encoded = messages.map(|(name, message)| {
        let mut out = Vec::new();
        encode_message(&message, &mut out);
        (format!("message-{name}"), out)
    });
    encoded.into()
}
