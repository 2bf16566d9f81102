//! Response times at given rates over UDP.

use crate::{
    machine_file::FIRST_GUEST,
    options,
    sipp::{self, Load, Outcome, Transport},
};
use anyhow::{Context as _, Result};
use std::time::Duration;

/// A rate, and what came of it.
pub(super) struct Measured {
    pub(super) rate: u32,
    pub(super) outcome: Outcome,
}

/// Registers at a rate for some seconds.
///
/// # Errors
/// SIPp can't be run.
pub(super) fn at(client: &lab::Client, rate: u32, seconds: u32) -> Result<Measured> {
    let outcome = sipp::register(client, load("rate", rate, rate * seconds))?;
    Ok(Measured { rate, outcome })
}

/// Lets the server work off what was queued: until a small load passes with no request sent twice, or it had its time.
///
/// # Errors
/// The server does not answer.
pub(super) fn rest(client: &lab::Client) -> Result<()> {
    const TRIES: u32 = 3;
    for _ in 0..TRIES {
        options::answers(client, sipp::sip(FIRST_GUEST), Duration::from_mins(1))
            .context("waiting for the server to work off what was queued")?;
        let outcome = sipp::register(client, load("rest", 5, 3))?;
        if outcome.all_ok() && outcome.retransmissions == 0 {
            break;
        }
    }
    Ok(())
}

fn load(users: &'static str, rate: u32, count: u32) -> Load<'static> {
    Load {
        server: sipp::sip(FIRST_GUEST),
        transport: Transport::Udp,
        users,
        rate,
        count,
    }
}
