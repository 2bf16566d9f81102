//! What is stored, in the same frames: sidecars and records.

use crate::record::Record;
use crate::sidecar::{DiskState, Sidecar};

use super::arbiter::{list, put_list, put_record, record};
use super::body::Write;
use super::frame::{self, Insecure};
use super::{Kind, WireError};

/// Appends a sidecar, as it lies beside the disk, to `out`.
pub fn encode_sidecar(sidecar: &Sidecar, out: &mut Vec<u8>) {
    frame::encode(Kind::Sidecar, &Insecure, out, |out| {
        out.u128(sidecar.machine.0);
        out.u8(match sidecar.state {
            DiskState::InSync => 0,
            DiskState::Resyncing => 1,
        });
        put_list(out, &sidecar.valid);
    });
}

/// The sidecar that `bytes` are.
///
/// # Errors
/// When they are none or are damaged.
pub fn decode_sidecar(bytes: &[u8]) -> Result<Sidecar, WireError> {
    let mut body = frame::decode_kind(bytes, &Insecure, Kind::Sidecar)?;
    let machine = body.machine()?;
    let state = match body.u8()? {
        0 => DiskState::InSync,
        1 => DiskState::Resyncing,
        _ => return Err(WireError::Body("an unknown state of the disk")),
    };
    let valid = list(&mut body)?;
    body.end(Sidecar {
        machine,
        state,
        valid,
    })
}

/// Appends a record, as the arbiter stores it, to `out`.
pub fn encode_record(record: &Record, out: &mut Vec<u8>) {
    frame::encode(Kind::Record, &Insecure, out, |out| put_record(out, record));
}

/// The record that `bytes` are.
///
/// # Errors
/// When they are none or are damaged.
pub fn decode_record(bytes: &[u8]) -> Result<Record, WireError> {
    let mut body = frame::decode_kind(bytes, &Insecure, Kind::Record)?;
    let record = record(&mut body)?;
    body.end(record)
}
