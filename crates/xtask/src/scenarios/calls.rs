//! Calls through a machine, with media: the probe's own, both ends in the lab's client.

use super::{Scenario, case::Case};
use crate::{
    assets::Image,
    calls::{self, Load},
    capture::Capture,
    machine_file::{FIRST_GUEST, address},
    pair::Pair,
    process, sipp,
};
use anyhow::{Context as _, Result, ensure};
use romulus_telephony::{
    call::Transport,
    media::tshark::{self, Line},
    probe::{Connections, Outcome, Stage, Summary},
};
use std::{
    net::{IpAddr, SocketAddrV4},
    time::Duration,
};

/// This file's scenarios.
pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "calls/registrar",
        "calls over UDP, TCP and TLS: answered, offered again, cancelled, hung up by either end",
        &[Image::REGISTRAR_12],
        |case| through(case, Image::REGISTRAR_12, None),
    ),
    Scenario::new(
        "calls/rtpengine",
        "the same with all media through rtpengine",
        &[Image::PBX_12],
        |case| through(case, Image::PBX_12, Some(FIRST_GUEST.into())),
    ),
    Scenario::new(
        "calls/rtpproxy",
        "the same with all media through RTPProxy",
        &[Image::PBX_RTPPROXY_12],
        |case| through(case, Image::PBX_RTPPROXY_12, Some(FIRST_GUEST.into())),
    ),
    Scenario::pair(
        "calls/power-cut",
        "calls over UDP, TCP and TLS, and ringing ones, are preserved across a loss of power in mode split",
        &[Image::PBX_RTPPROXY_12],
        power_cut,
    ),
    Scenario::pair(
        "calls/power-cuts",
        "more calls, some with media through rtpengine, one loss of power for each transport",
        &[Image::PBX_12],
        power_cuts,
    )
    .only_full()
    .minutes(20),
];

/// The ports at which relays in our guests take and send media.
const RELAY_PORTS: &str = "30000-50000";
/// How long tshark may take.
const SOON: Duration = Duration::from_mins(1);

/// The SIP server's address for a transport.
fn server(number: u8, transport: Transport) -> SocketAddrV4 {
    let plain = sipp::sip(address(number));
    match transport {
        Transport::Udp | Transport::Tcp => plain,
        Transport::Tls => SocketAddrV4::new(*plain.ip(), 5061),
    }
}

/// Some calls of each kind through one machine, over each transport. Media go by `relay`, where there is one.
fn through(case: &Case, image: Image, relay: Option<IpAddr>) -> Result<()> {
    let client = case.lab.client();
    let running = case.boot(case.machine("calls", image, 0)?)?;
    for (transport, connections) in [
        (Transport::Udp, Connections::Shared),
        (Transport::Tcp, Connections::Each),
        (Transport::Tls, Connections::Shared),
    ] {
        let none = Load {
            connections,
            per_second: 8,
            before: Duration::from_millis(500),
            after: Duration::from_secs(3),
            ..Load::new(server(0, transport), transport)
        };
        // Two after the other: an emulated host on a busy computer doesn't relay the media of all these calls at once.
        let changed = Load {
            established: 1,
            reinvited: 1,
            ringing: 1,
            ..none.clone()
        };
        let begun = Load {
            established: 1,
            cancelled: 1,
            begun: 1,
            ..none
        };
        for load in [changed, begun] {
            preserved(client, &load, relay).with_context(|| transport.name())?;
        }
    }
    running.still_runs()
}

/// Makes calls that nothing happens to, and checks that the two of them that are answered were heard both ways.
fn preserved(client: &lab::Client, load: &Load, relay: Option<IpAddr>) -> Result<()> {
    let wire = relay.map(|relay| Capture::file_at_client(client, &media_from(relay)));
    let wire = wire.transpose()?;
    let outcome = calls::steady(client, load)?;
    let media = calls::all_preserved(load, &outcome)?;
    tell(load.transport, &outcome, &media);
    ensure!(
        media.streams == 4 && media.sent > 500,
        "media of {} streams, {} packets",
        media.streams,
        media.sent
    );
    ensure!(
        media.duplicates == 0 && outcome.strays == 0,
        "media came twice or to others: {}, {} strays",
        media.line(),
        outcome.strays
    );
    match relay.zip(wire) {
        Some((relay, wire)) => {
            by_relay(&outcome, relay)?;
            as_on_the_wire(&outcome, wire)?;
        }
        // Nothing lies between the two ends.
        None => ensure!(media.lost == 0, "media was lost: {}", media.line()),
    }
    Ok(())
}

/// Checks that all media went by the relay.
fn by_relay(outcome: &Outcome, relay: IpAddr) -> Result<()> {
    for call in outcome.calls.iter().filter(|call| call.streams.is_some()) {
        let by = |to: &Option<std::net::SocketAddr>| to.is_some_and(|to| to.ip() == relay);
        ensure!(
            call.media.iter().all(by),
            "media went to {:?}, past the relay at {relay}",
            call.media
        );
    }
    Ok(())
}

/// What a relay sends: all that a probe's streams are made of, where there is one.
fn media_from(relay: IpAddr) -> String {
    format!("udp and src host {relay} and src portrange {RELAY_PORTS}")
}

/// Checks each stream's book against what tshark makes of the frames that came to the client.
fn as_on_the_wire(outcome: &Outcome, wire: Capture) -> Result<()> {
    let lines = wire.finish_file(|file| {
        let output = process::output_within(&mut tshark::command(file, RELAY_PORTS), SOON)?;
        tshark::read(&output).map_err(anyhow::Error::msg)
    })?;
    for stream in outcome.streams() {
        let ours = &stream.report;
        let theirs = lines.iter().filter(|line| Some(line.ssrc) == ours.ssrc);
        let theirs: Vec<&Line> = theirs.collect();
        let packets: u32 = theirs.iter().map(|line| line.packets).sum();
        // tshark begins another line where a relay sends from another port, and with it another jitter; so do packets that came in
        // another order. It does not know of those that were lost at a stream's beginning or end.
        let alike = match theirs.as_slice() {
            [line] if ours.reordered == 0 => {
                line.lost <= i64::from(ours.lost)
                    && (ours.jitter_ms - line.jitter_ms).abs() < 0.01
                    && (ours.jitter_max_ms - line.jitter_max_ms).abs() < 0.01
            }
            lines => !lines.is_empty(),
        };
        ensure!(
            ours.received == packets && alike,
            "the probe says {ours:?} and tshark, of the same packets, {theirs:?}"
        );
    }
    Ok(())
}

fn tell(transport: Transport, outcome: &Outcome, media: &Summary) {
    let heard = if media.streams == 0 {
        "no media".to_owned()
    } else {
        format!(
            "{}; pacing p99 {:.3} ms",
            media.line(),
            outcome.pacing.p99_ms
        )
    };
    eprintln!(
        "{}: {} of {} calls; {heard}; {} sent again",
        transport.name(),
        outcome.preserved(),
        outcome.calls.len(),
        outcome.resent()
    );
}

/// A pair that protects a machine with SIP and its media, which pass at once.
fn split(case: &Case, image: Image) -> Result<Pair<'_>> {
    case.protected_with(image, |file| {
        if let Some(protection) = &mut file.protection {
            protection.mode = Some("split".to_owned());
        }
    })
}

/// Cuts the runner's power while calls of all loads are up and ring: every one must be preserved.
fn cross(case: &Case, pair: &mut Pair<'_>, loads: &[Load]) -> Result<()> {
    let runner = pair.runner()?.context("no host runs the machine")?;
    let (outcomes, _) = calls::run_all(case.lab.client(), loads, |_| pair.cut_power(runner))?;
    for (load, outcome) in loads.iter().zip(&outcomes) {
        tell(load.transport, outcome, &Summary::of(outcome));
    }
    for (load, outcome) in loads.iter().zip(&outcomes) {
        calls::all_preserved(load, outcome)?;
        by_relay(outcome, FIRST_GUEST.into())?;
        let at = |stage| u32::try_from(outcome.at_event(stage).count());
        ensure!(
            at(Stage::Up)? == load.established
                && at(Stage::Ringing)? == load.ringing + load.cancelled,
            "the cut did not come in the middle of all calls"
        );
    }
    pair.wait_runs(1 - runner).map(drop)
}

fn power_cut(case: &Case) -> Result<()> {
    let mut pair = split(case, Image::PBX_RTPPROXY_12)?;
    let of = |transport| Load {
        established: 1,
        ringing: 1,
        per_second: 4,
        ..Load::new(server(0, transport), transport)
    };
    let loads = [
        Load {
            reinvited: 1,
            cancelled: 1,
            ..of(Transport::Udp)
        },
        Load {
            ringing: 0,
            ..of(Transport::Tcp)
        },
        Load {
            ringing: 0,
            ..of(Transport::Tls)
        },
        // An emulated host on a busy computer relays the media of four calls, not of all.
        Load {
            media: false,
            ..of(Transport::Tcp)
        },
    ];
    cross(case, &mut pair, &loads)
}

fn power_cuts(case: &Case) -> Result<()> {
    let mut pair = split(case, Image::PBX_12)?;
    for transport in [Transport::Udp, Transport::Tcp, Transport::Tls] {
        let heard = Load {
            established: 2,
            ringing: 1,
            per_second: 4,
            before: Duration::from_secs(10),
            after: Duration::from_secs(40),
            ..Load::new(server(0, transport), transport)
        };
        // An emulated host relays the media of four calls, not of eight.
        let signalled = Load {
            established: 8,
            reinvited: 2,
            ringing: 4,
            cancelled: 2,
            begun: 2,
            media: false,
            ..heard.clone()
        };
        cross(case, &mut pair, &[heard, signalled]).with_context(|| transport.name())?;
        let lost = pair.runner()?.map_or(0, |runner| 1 - runner);
        pair.return_host(lost)?;
        pair.wait_protected(None)?;
    }
    Ok(())
}
