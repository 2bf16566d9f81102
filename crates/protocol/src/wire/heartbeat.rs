//! Heartbeats.

use crate::heartbeat::{Activity, ECHOES_MAX, Echo, Heartbeat, Uplink};

use super::body::Write;
use super::frame::{self, Authenticator};
use super::{Kind, WireError};

/// Appends a heartbeat to `out`.
pub fn encode_heartbeat<A: Authenticator>(beat: &Heartbeat, key: &A, out: &mut Vec<u8>) {
    frame::encode(Kind::Heartbeat, key, out, |out| {
        out.u128(beat.machine.0);
        out.incarnation(beat.from);
        out.u64(beat.sent.0);
        out.u64(beat.generation.0);
        out.u8(match beat.activity {
            Activity::Waiting => 0,
            Activity::Primary => 1,
            Activity::Backup => 2,
            Activity::Frozen => 3,
        });
        out.bool(beat.moves);
        out.bool(beat.whole);
        out.u8(beat.uplink.up);
        out.u8(beat.uplink.of);
        let echoes = &beat.echoes[..beat.echoes.len().min(ECHOES_MAX)];
        // At most ECHOES_MAX of them.
        out.u8(u8::try_from(echoes.len()).unwrap_or(0));
        for echo in echoes {
            out.incarnation(echo.of);
            out.u64(echo.sent.0);
        }
    });
}

/// The heartbeat that `bytes` are.
///
/// # Errors
/// When they are none, are damaged, or are not authentic.
pub fn decode_heartbeat<A: Authenticator>(bytes: &[u8], key: &A) -> Result<Heartbeat, WireError> {
    let mut body = frame::decode_kind(bytes, key, Kind::Heartbeat)?;
    let machine = body.machine()?;
    let from = body.incarnation()?;
    let sent = body.time()?;
    let generation = body.generation()?;
    let activity = match body.u8()? {
        0 => Activity::Waiting,
        1 => Activity::Primary,
        2 => Activity::Backup,
        3 => Activity::Frozen,
        _ => return Err(WireError::Body("an unknown activity")),
    };
    let (moves, whole) = (body.bool()?, body.bool()?);
    let (up, of) = (body.u8()?, body.u8()?);
    if up > of {
        return Err(WireError::Body("more uplinks are up than there are"));
    }
    let count = usize::from(body.u8()?);
    if count > ECHOES_MAX {
        return Err(WireError::Body("too many echoes"));
    }
    let mut echoes = Vec::with_capacity(count);
    for _ in 0..count {
        echoes.push(Echo {
            of: body.incarnation()?,
            sent: body.time()?,
        });
    }
    body.end(Heartbeat {
        machine,
        from,
        sent,
        moves,
        activity,
        whole,
        uplink: Uplink { up, of },
        generation,
        echoes,
    })
}
