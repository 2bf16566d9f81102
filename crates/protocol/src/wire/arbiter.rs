//! Requests to the arbiter and its answers.

use crate::arbiter::{Answer, Ask, Request};
use crate::record::{Change, Phase, Record, Refusal, Right};

use super::body::{Reader, Write};
use super::frame::{self, Authenticator};
use super::{Kind, WireError};

/// The most incarnations in a list: a sidecar's.
pub(super) const LIST_MAX: usize = 1024;

pub(super) fn put_phase(out: &mut Vec<u8>, phase: Phase) {
    out.u8(match phase {
        Phase::Claimed => 0,
        Phase::Running => 1,
    });
}

fn phase(body: &mut Reader) -> Result<Phase, WireError> {
    match body.u8()? {
        0 => Ok(Phase::Claimed),
        1 => Ok(Phase::Running),
        _ => Err(WireError::Body("an unknown phase")),
    }
}

pub(super) fn put_list(out: &mut Vec<u8>, list: &[crate::id::Incarnation]) {
    // The newest are at the end, and the record names none but recent ones.
    let list = &list[list.len().saturating_sub(LIST_MAX)..];
    out.u32(u32::try_from(list.len()).unwrap_or(0));
    for incarnation in list {
        out.incarnation(*incarnation);
    }
}

pub(super) fn list(body: &mut Reader) -> Result<Vec<crate::id::Incarnation>, WireError> {
    let count = body.u32()? as usize;
    if count > LIST_MAX {
        return Err(WireError::Body("too many incarnations"));
    }
    (0..count).map(|_| body.incarnation()).collect()
}

pub(super) fn put_record(out: &mut Vec<u8>, record: &Record) {
    out.u128(record.machine.0);
    out.u64(record.generation.0);
    out.incarnation(record.runner);
    out.optional_incarnation(record.heir);
    put_phase(out, record.phase);
}

pub(super) fn record(body: &mut Reader) -> Result<Record, WireError> {
    Ok(Record {
        machine: body.machine()?,
        generation: body.generation()?,
        runner: body.incarnation()?,
        heir: body.optional_incarnation()?,
        phase: phase(body)?,
    })
}

/// Appends a request to `out`.
pub fn encode_request<A: Authenticator>(request: &Request, key: &A, out: &mut Vec<u8>) {
    frame::encode(Kind::Request, key, out, |out| {
        out.u128(request.machine.0);
        out.incarnation(request.from);
        out.u64(request.number);
        match &request.ask {
            Ask::Read => out.u8(0),
            Ask::Create => out.u8(1),
            Ask::Change(right, change) => {
                out.u8(2);
                out.u64(change.expected.0);
                out.incarnation(change.runner);
                out.optional_incarnation(change.heir);
                put_phase(out, change.phase);
                match right {
                    Right::Named => out.u8(0),
                    Right::Operator => out.u8(1),
                    Right::Cold(valid) => {
                        out.u8(2);
                        put_list(out, valid);
                    }
                }
            }
        }
    });
}

/// The request that `bytes` are.
///
/// # Errors
/// When they are none, are damaged, or are not authentic.
pub fn decode_request<A: Authenticator>(bytes: &[u8], key: &A) -> Result<Request, WireError> {
    let mut body = frame::decode_kind(bytes, key, Kind::Request)?;
    let machine = body.machine()?;
    let from = body.incarnation()?;
    let number = body.u64()?;
    let ask = match body.u8()? {
        0 => Ask::Read,
        1 => Ask::Create,
        2 => {
            let change = Change {
                expected: body.generation()?,
                runner: body.incarnation()?,
                heir: body.optional_incarnation()?,
                phase: phase(&mut body)?,
            };
            let right = match body.u8()? {
                0 => Right::Named,
                1 => Right::Operator,
                2 => Right::Cold(list(&mut body)?),
                _ => return Err(WireError::Body("an unknown right")),
            };
            Ask::Change(right, change)
        }
        _ => return Err(WireError::Body("an unknown request")),
    };
    body.end(Request {
        machine,
        from,
        number,
        ask,
    })
}

const REFUSALS: [Refusal; 8] = [
    Refusal::Absent,
    Refusal::Exists,
    Refusal::Generation,
    Refusal::NotNamed,
    Refusal::Shape,
    Refusal::NotStored,
    Refusal::Busy,
    Refusal::Damaged,
];

/// Appends an answer to `out`.
pub fn encode_answer<A: Authenticator>(answer: &Answer, key: &A, out: &mut Vec<u8>) {
    frame::encode(Kind::Answer, key, out, |out| {
        out.u128(answer.machine.0);
        out.incarnation(answer.to);
        out.u64(answer.number);
        let refusal = answer
            .refusal
            .and_then(|r| REFUSALS.iter().position(|known| *known == r));
        // 0 stands for none.
        out.u8(refusal.map_or(0, |index| u8::try_from(index + 1).unwrap_or(0)));
        out.bool(answer.record.is_some());
        if let Some(record) = &answer.record {
            put_record(out, record);
        }
    });
}

/// The answer that `bytes` are.
///
/// # Errors
/// When they are none, are damaged, or are not authentic.
pub fn decode_answer<A: Authenticator>(bytes: &[u8], key: &A) -> Result<Answer, WireError> {
    let mut body = frame::decode_kind(bytes, key, Kind::Answer)?;
    let machine = body.machine()?;
    let to = body.incarnation()?;
    let number = body.u64()?;
    let refusal = match body.u8()? {
        0 => None,
        n => {
            let known = REFUSALS.get(usize::from(n) - 1);
            Some(*known.ok_or(WireError::Body("an unknown refusal"))?)
        }
    };
    let record = if body.bool()? {
        Some(record(&mut body)?)
    } else {
        None
    };
    body.end(Answer {
        machine,
        to,
        number,
        record,
        refusal,
    })
}
