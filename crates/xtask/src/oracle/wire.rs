//! Who sent as the guest, and when, by the wire of both hosts.

use super::Fault;
use crate::{
    capture::Capture,
    pair::{Pair, UnixSeconds},
};
use anyhow::{Context as _, Result};
use lab::Network;

/// A frame that a host sent as the guest.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Frame {
    /// When the lab's end of the host's line saw it.
    pub(crate) at: UnixSeconds,
    /// Which host.
    pub(crate) side: usize,
    /// What tcpdump says of it.
    pub(crate) what: String,
}

/// A watch over what both hosts send on the service network with the guest's address.
pub(crate) struct Wire {
    captures: [Capture; 2],
}

impl Wire {
    /// Begins to watch for frames from the card with the address `mac`.
    ///
    /// # Errors
    /// tcpdump can't be run.
    pub(crate) fn start(pair: &Pair<'_>, mac: &str) -> Result<Self> {
        let capture = |side| Capture::start(pair.host(side), Network::Service, mac);
        Ok(Self {
            captures: [capture(0)?, capture(1)?],
        })
    }

    /// Ends it; all frames, in the order of their times.
    ///
    /// # Errors
    /// tcpdump lost frames, or its words are not understood.
    pub(crate) fn finish(self) -> Result<Vec<Frame>> {
        let mut frames = Vec::new();
        for (side, capture) in self.captures.into_iter().enumerate() {
            for line in capture.finish()? {
                frames.push(read(side, &line)?);
            }
        }
        frames.sort_by(|one, other| one.at.total_cmp(&other.at));
        Ok(frames)
    }
}

/// Reads a line of `tcpdump -tt`.
///
/// # Errors
/// It does not begin with a time.
pub(super) fn read(side: usize, line: &str) -> Result<Frame> {
    let time = line
        .split_once(' ')
        .and_then(|(time, what)| Some((time.parse().ok()?, what)));
    let (at, what) = time.with_context(|| format!("tcpdump said {line:?}"))?;
    Ok(Frame {
        at,
        side,
        what: what.to_owned(),
    })
}

/// Checks that the hosts took turns as they should: `turns` are those that were to run the machine, one after another.
/// The first frame out of turn is the fault. Those of `late` were let go in their turn.
pub(crate) fn out_of_turn(frames: &[Frame], late: &[Frame], turns: &[usize]) -> Option<Fault> {
    let mut turn = 0;
    for frame in frames.iter().filter(|frame| !late.contains(frame)) {
        // A runner that was not to be heard of before the next one began may have sent nothing.
        match turns[turn.min(turns.len())..]
            .iter()
            .position(|side| *side == frame.side)
        {
            Some(further) => turn += further,
            None => {
                return Some(Fault::OutOfTurn(format!(
                    "h{} sent as the guest when the hosts that were to run it were {}: {}",
                    frame.side + 1,
                    turns
                        .iter()
                        .map(|side| format!("h{}", side + 1))
                        .collect::<Vec<_>>()
                        .join(", then "),
                    frame.what
                )));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{Frame, out_of_turn, read};

    fn frames(sides: &[usize]) -> Vec<Frame> {
        (0..)
            .zip(sides)
            .map(|(at, side)| Frame {
                at: f64::from(at),
                side: *side,
                what: "frame".into(),
            })
            .collect()
    }

    #[test]
    fn a_line_is_read() {
        let frame = read(1, "1700000000.123456 52:54:00:aa:00:01 > ff:ff, ARP").unwrap();
        assert!((frame.at - 1_700_000_000.123_456).abs() < 1e-6);
        for noise in ["noise", "no time, but words"] {
            let error = read(0, noise).unwrap_err();
            assert!(error.to_string().contains(noise), "{error}");
        }
    }

    #[test]
    fn who_sends_out_of_turn_is_found() {
        for (sides, turns) in [
            (&[0, 0, 1, 1, 0][..], &[0, 1, 0][..]),
            (&[0, 0], &[0]),
            (&[], &[0]),
            (&[1], &[0, 1]),
        ] {
            assert_eq!(out_of_turn(&frames(sides), &[], turns), None, "{sides:?}");
        }
        for (sides, turns) in [
            // The old one sends on after the new one began.
            (&[0, 1, 0, 1][..], &[0, 1][..]),
            (&[0, 1], &[0]),
            (&[1, 0, 1], &[1, 0]),
        ] {
            assert!(
                out_of_turn(&frames(sides), &[], turns).is_some(),
                "{sides:?}"
            );
        }
        // What was let go in its turn is none, and excuses no other.
        let (seen, late) = (frames(&[0, 1, 0, 0]), &frames(&[0, 1, 0])[2..]);
        assert!(out_of_turn(&seen, late, &[0, 1]).is_some());
        assert_eq!(out_of_turn(&seen[..3], late, &[0, 1]), None);
    }
}
