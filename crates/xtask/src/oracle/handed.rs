//! What Romulus hands to a host's kernel as the guest's, by the guest's tap.
//!
//! A host that hangs may keep a frame between its tap and its line, where no process has a hand in it any more: such a frame
//! leaves when the host goes on, as one in the queue of a card would. It was let go in its runner's turn. What is handed to
//! the kernel after the hang was not, and the tap tells the one from the other.

use super::wire::{Frame, read};
use crate::{
    capture::IN_LINES,
    pair::{Pair, UnixSeconds, unix_seconds},
};
use anyhow::{Result, bail};
use lab::Remote;
use std::time::{Duration, SystemTime};

/// How long tcpdump in a host may take to begin or end.
const LIMIT: Duration = Duration::from_secs(20);
/// How long, in seconds, a frame may take from the tap to the line in a host that does not hang: 1 to 3 ms were seen; less
/// than from one to the next of a client.
const ON_ITS_WAY: f64 = 0.05;
/// The clocks of a host and of the lab agree only to half a round trip, in seconds.
const CLOCKS: f64 = 0.01;

/// tcpdump at the guest's tap, in a host that is about to hang.
pub(crate) struct Handed {
    side: usize,
    tcpdump: Remote,
    /// By how many seconds the host's clock is ahead of ours.
    ahead: f64,
}

/// The same, once the host has begun to hang.
pub(crate) struct Hung {
    handed: Handed,
    since: UnixSeconds,
}

impl Handed {
    /// Begins to watch the tap of a host for frames from the card with the address `mac`.
    ///
    /// # Errors
    /// tcpdump can't be run there.
    pub(crate) fn start(pair: &Pair<'_>, side: usize, mac: &str) -> Result<Self> {
        let host = pair.host(side);
        let tap = pair.file.nics[0].tap.as_str();
        // A host has no user of its own for it.
        let mut command = vec!["tcpdump", "-Z", "root", "-e", "-Q", "in", "-i", tap];
        command.extend(IN_LINES);
        command.extend(["ether", "src", mac]);
        let tcpdump = host.spawn(&command)?;
        tcpdump.wait_for("listening on", LIMIT)?;
        Ok(Self {
            side,
            tcpdump,
            ahead: host.agent().clock_ahead()?,
        })
    }

    /// The host hangs from now on.
    ///
    /// # Errors
    /// It is off.
    pub(crate) fn hang(self, pair: &Pair<'_>) -> Result<Hung> {
        pair.host(self.side).hang()?;
        Ok(Hung {
            handed: self,
            since: unix_seconds(SystemTime::now()),
        })
    }
}

impl Hung {
    /// Ends the watch, once the host has gone on: what its line carried after the hang although it was handed to the kernel
    /// before, out of `frames`, which are all that were seen on the lines, in the order of their times.
    ///
    /// # Errors
    /// tcpdump does not end, or is not understood. What it lost excuses nothing, so that it need not be counted.
    pub(crate) fn finish(self, frames: &[Frame]) -> Result<Vec<Frame>> {
        let Handed {
            side,
            tcpdump,
            ahead,
        } = self.handed;
        // It may have ended with the tap, which goes when its runner lets go of the machine: then it can't be told, and need not.
        let told = tcpdump.signal(rustix::process::Signal::INT.as_raw());
        if tcpdump.wait_at_most(LIMIT)?.is_none() {
            told?;
            bail!("tcpdump in h{} does not end", side + 1);
        }
        let output = tcpdump.wait()?;
        let mut handed = Vec::new();
        // Its own last word is an empty line.
        for line in String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter(|line| !line.is_empty())
        {
            let frame = read(side, line)?;
            handed.push(Frame {
                at: frame.at - ahead,
                ..frame
            });
        }
        Ok(late(frames, &handed, self.since))
    }
}

/// Of the `frames` on the lines, those that left after their host hung and were `handed` to its kernel before.
fn late(frames: &[Frame], handed: &[Frame], hung: UnixSeconds) -> Vec<Frame> {
    // A frame that left in time belongs to the last that was handed over before it, and none belongs to two.
    let mut left = vec![false; frames.len()];
    let mut late = Vec::new();
    for given in handed
        .iter()
        .filter(|given| given.at > hung - 2.0 * ON_ITS_WAY && given.at < hung + CLOCKS)
    {
        let next = frames.iter().enumerate().position(|(n, frame)| {
            !left[n]
                && frame.side == given.side
                && frame.what == given.what
                && frame.at > given.at - CLOCKS
        });
        if let Some(n) = next {
            left[n] = true;
            if frames[n].at > hung + ON_ITS_WAY {
                late.push(frames[n].clone());
            }
        }
    }
    late
}

#[cfg(test)]
mod tests {
    use super::{Frame, late};

    fn frame(side: usize, at: f64, what: &str) -> Frame {
        Frame {
            at,
            side,
            what: what.into(),
        }
    }

    #[test]
    fn what_the_kernel_had_when_its_host_hung_is_told_from_what_it_was_given_later() {
        let hung = 10.0;
        let on_the_line = [
            frame(0, 9.85, "udp"),
            frame(0, 9.951, "udp"),
            frame(1, 10.5, "udp"),
            frame(0, 11.0, "udp"),
        ];
        let before = [frame(0, 9.85, "udp"), frame(0, 9.95, "udp")];
        assert_eq!(late(&on_the_line, &before, hung), []);

        // One was on its way.
        let mut handed = before.to_vec();
        handed.push(frame(0, 9.999, "udp"));
        assert_eq!(late(&on_the_line, &handed, hung), [on_the_line[3].clone()]);

        // It was given to the kernel once the host went on, or is another, or comes from the other host.
        for other in [
            frame(0, 10.999, "udp"),
            frame(0, 9.999, "tcp"),
            frame(1, 9.999, "tcp"),
        ] {
            let mut handed = before.to_vec();
            handed.push(other);
            assert_eq!(late(&on_the_line, &handed, hung), []);
        }
    }
}
