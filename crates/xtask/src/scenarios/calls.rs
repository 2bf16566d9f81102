//! Calls through a machine, with media: the probe's own, both ends in the lab's client.

use super::{Scenario, case::Case};
use crate::{
    assets::Image,
    calls::{self, Load},
    machine_file::address,
    sipp,
};
use anyhow::{Result, ensure};
use romulus_telephony::{call::Transport, probe::Connections};
use std::{net::SocketAddrV4, time::Duration};

/// This file's scenarios.
pub(super) const ALL: &[Scenario] = &[Scenario::new(
    "calls/registrar",
    "calls over UDP, TCP and TLS: answered, offered again, cancelled, hung up by either end",
    &[Image::REGISTRAR_12],
    registrar,
)];

/// The SIP server's address for a transport.
fn server(number: u8, transport: Transport) -> SocketAddrV4 {
    let plain = sipp::sip(address(number));
    match transport {
        Transport::Udp | Transport::Tcp => plain,
        Transport::Tls => SocketAddrV4::new(*plain.ip(), 5061),
    }
}

/// Some calls of each kind, over each transport.
fn of_each_kind(case: &Case) -> Result<()> {
    for (transport, connections) in [
        (Transport::Udp, Connections::Shared),
        (Transport::Tcp, Connections::Each),
        (Transport::Tls, Connections::Shared),
    ] {
        let load = Load {
            connections,
            established: 4,
            reinvited: 1,
            ringing: 1,
            cancelled: 1,
            begun: 1,
            per_second: 8,
            before: Duration::from_millis(500),
            after: Duration::from_secs(2),
            ..Load::new(server(0, transport), transport)
        };
        let outcome = calls::steady(case.lab.client(), &load)?;
        let media = calls::all_preserved(&load, &outcome)?;
        eprintln!(
            "{}: {}; pacing p99 {:.3} ms, {} sent again",
            transport.name(),
            media.line(),
            outcome.pacing.p99_ms,
            outcome.resent()
        );
        // All but the cancelled one, both ways.
        ensure!(
            media.streams == 12 && media.sent > 1000,
            "media of {} streams, {} packets",
            media.streams,
            media.sent
        );
        ensure!(
            media.lost == 0 && media.duplicates == 0 && outcome.strays == 0,
            "media was lost or came to others: {}, {} strays",
            media.line(),
            outcome.strays
        );
    }
    Ok(())
}

fn registrar(case: &Case) -> Result<()> {
    let file = case.machine("registrar", Image::REGISTRAR_12, 0)?;
    let (running, _) = case.boot_sip(file, 0)?;
    of_each_kind(case)?;
    running.still_runs()
}
