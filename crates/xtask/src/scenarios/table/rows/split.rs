//! Mode `split`: media that nobody holds ends by itself.

use super::{super::stand::Stand, Row, hosts::paths};
use crate::pair::unix_seconds;
use anyhow::{Result, ensure};
use std::time::SystemTime;

/// This file's rows.
pub(super) const ALL: &[Row] = &[Row::new(
    "split-cut",
    "mode `split`, with media: all paths of the primary are cut without a sign",
    "its media stops before T_p, and the backup takes over",
    cut,
)
.mode("split")];

/// Where the media goes: the lab's client, of whom nobody listens there.
const SINK: u16 = 40_000;
/// From one packet to the next.
const PACKET_MS: u64 = 20;
/// `T_p` in relation to `T_b`, by default.
const T_P: f64 = 0.7;
/// `T_b` where the file does not say it.
const DEFAULT_T_B: &str = "100ms";

fn cut(stand: &mut Stand<'_>) -> Result<()> {
    let runner = stand.runner()?;
    let t_b = stand
        .pair
        .file
        .protection
        .as_ref()
        .and_then(|protection| protection.t_b.as_deref())
        .unwrap_or(DEFAULT_T_B);
    let t_p = humantime::parse_duration(t_b)?.mul_f64(T_P).as_secs_f64();
    let client = stand.lab.client().address();
    stand.order(&format!("media {client}:{SINK} {PACKET_MS}"))?;
    stand.goes_on()?;
    stand.moment();
    paths(stand, runner, true)?;
    let at = unix_seconds(SystemTime::now());
    let taken = stand.takes_over(1 - runner);
    paths(stand, runner, false)?;
    taken?;
    stand.backs_up(runner)?;
    stand.protected_there()?;
    stand.look()?;
    let of_old = || {
        let to = format!(".{SINK}:");
        stand
            .frames
            .iter()
            .filter(move |frame| frame.side == runner && frame.what.contains(&to))
    };
    ensure!(
        of_old().filter(|frame| frame.at < at).count() > 5,
        "no media was seen before the cut"
    );
    let last = of_old().map(|frame| frame.at).fold(at, f64::max);
    let after = last - at;
    stand.remark = format!(
        "sent media for {:.0} ms after the cut; T_p {:.0} ms",
        after * 1e3,
        t_p * 1e3
    );
    ensure!(
        after < t_p,
        "the old primary sent media for {:.0} ms after it was cut off, and T_p is {:.0} ms",
        after * 1e3,
        t_p * 1e3
    );
    let new = stand
        .frames
        .iter()
        .any(|frame| frame.side != runner && frame.what.contains(&format!(".{SINK}:")));
    ensure!(new, "no media came from the new runner");
    Ok(())
}
