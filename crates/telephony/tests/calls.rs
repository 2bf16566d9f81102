//! Calls through a small server on loopback, with real sockets and media.

mod server;

use romulus_telephony::{
    call::{Failure, Transport},
    probe::{Answer, Connections, End, Moment, Plan, Probe, Script, Side, Stage},
};
use server::Server;
use std::{
    net::{IpAddr, Ipv4Addr},
    thread,
    time::{Duration, Instant},
};

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Longer than any of these takes on a busy computer.
const LIMIT: Duration = Duration::from_secs(45);

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A call that is answered at once and hung up after the event.
const PLAIN: Script = Script {
    invite: Moment::Start(Duration::ZERO),
    answer: Answer::After(Duration::ZERO),
    reinvite: None,
    end: End::HangUp {
        at: Moment::Event(ms(1200)),
        by: Side::Caller,
    },
};

fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "{what}");
        thread::sleep(ms(2));
    }
}

fn start(
    server: &Server,
    transport: Transport,
    connections: Connections,
    scripts: Vec<Script>,
) -> Probe {
    let plan = Plan {
        connections,
        ..Plan::new(server.address, LOCAL, transport, scripts)
    };
    Probe::start(plan).unwrap()
}

#[test]
fn calls_of_all_kinds_complete_and_are_heard() {
    for (transport, connections) in [
        (Transport::Udp, Connections::Shared),
        (Transport::Udp, Connections::Each),
        (Transport::Tcp, Connections::Shared),
        (Transport::Tcp, Connections::Each),
    ] {
        let server = Server::start(transport);
        let ringing = Answer::At(Moment::Event(ms(100)));
        let cancel = End::Cancel {
            at: Moment::Event(ms(100)),
        };
        let by_callee = End::HangUp {
            at: Moment::Event(ms(1200)),
            by: Side::Callee,
        };
        let scripts = vec![
            PLAIN,
            Script {
                answer: Answer::After(ms(50)),
                end: by_callee,
                ..PLAIN
            },
            Script {
                answer: ringing,
                ..PLAIN
            },
            Script {
                answer: Answer::Never,
                end: cancel,
                ..PLAIN
            },
            Script {
                reinvite: Some(Moment::Event(ms(100))),
                ..PLAIN
            },
        ];
        let probe = start(&server, transport, connections, scripts);
        until("calls are up and ring", || {
            let progress = probe.progress();
            (progress.up, progress.ringing) == (3, 2)
        });
        probe.event();
        let outcome = probe.finish(LIMIT);
        for (number, call) in outcome.calls.iter().enumerate() {
            assert!(call.completed(), "{transport:?} {number}: {call:?}");
        }
        assert_eq!(outcome.preserved(), 5);
        assert_eq!(outcome.at_event(Stage::Up).count(), 3);
        assert_eq!(outcome.at_event(Stage::Ringing).count(), 2);
        // The cancelled one has no media.
        assert_eq!(outcome.streams().count(), 8);
        for stream in outcome.streams() {
            assert!(stream.report.sent > 0, "{:?}", stream.report);
            assert_eq!(stream.report.lost, 0, "{:?}", stream.report);
        }
        assert_eq!((outcome.strays, outcome.refused), (0, 0));
        assert_eq!(outcome.unregistered, 0);
    }
}

#[test]
fn calls_outlive_a_server_that_is_away_for_a_while() {
    for transport in [Transport::Udp, Transport::Tcp] {
        let server = Server::start(transport);
        let at_once = |end| Script { end, ..PLAIN };
        let now = Moment::Event(Duration::ZERO);
        let scripts = vec![
            at_once(End::HangUp {
                at: now,
                by: Side::Caller,
            }),
            at_once(End::HangUp {
                at: now,
                by: Side::Callee,
            }),
            Script {
                answer: Answer::At(now),
                ..PLAIN
            },
            Script {
                invite: Moment::Event(ms(50)),
                ..PLAIN
            },
        ];
        let probe = start(&server, transport, Connections::Each, scripts);
        until("calls are up and ring", || {
            let progress = probe.progress();
            (progress.up, progress.ringing) == (2, 1)
        });
        server.set_deaf(true);
        probe.event();
        // Two BYE, the answer and the INVITE are sent into the void; and over UDP again.
        let wanted = if transport == Transport::Udp { 5 } else { 4 };
        until("messages come to nothing", || server.unheard() >= wanted);
        server.set_deaf(false);
        let outcome = probe.finish(LIMIT);
        for (number, call) in outcome.calls.iter().enumerate() {
            assert!(call.completed(), "{transport:?} {number}: {call:?}");
        }
        assert_eq!(outcome.at_event(Stage::Before).count(), 1);
        if transport == Transport::Udp {
            assert!(outcome.resent() > 0);
        }
    }
}

#[test]
fn what_goes_wrong_is_told() {
    // A connection that is closed in the middle of a call.
    let server = Server::start(Transport::Tcp);
    let probe = start(&server, Transport::Tcp, Connections::Each, vec![PLAIN; 2]);
    until("calls are up", || probe.progress().up == 2);
    probe.event();
    server.hang_up();
    let outcome = probe.finish(LIMIT);
    assert_eq!(outcome.preserved(), 0);
    for call in &outcome.calls {
        assert_eq!(call.failure, Some(Failure::ConnectionLost));
    }

    // A call that is not over when the run is.
    let server = Server::start(Transport::Udp);
    let probe = start(&server, Transport::Udp, Connections::Shared, vec![PLAIN]);
    until("the call is up", || probe.progress().up == 1);
    let outcome = probe.finish(ms(1));
    assert_eq!((outcome.completed(), outcome.calls.len()), (0, 1));
    assert!(outcome.calls[0].failure.is_none());

    // A call that ended well, and no media after the event.
    let early = End::HangUp {
        at: Moment::Start(ms(300)),
        by: Side::Caller,
    };
    let scripts = vec![Script {
        end: early,
        ..PLAIN
    }];
    let probe = start(&server, Transport::Udp, Connections::Shared, scripts);
    until("the call is over", || probe.progress().done);
    probe.event();
    let outcome = probe.finish(LIMIT);
    assert_eq!((outcome.completed(), outcome.preserved()), (1, 0));

    // Nobody there.
    let address = (LOCAL, 1).into();
    let plan = Plan::new(address, LOCAL, Transport::Tcp, vec![PLAIN]);
    assert!(Probe::start(plan).is_err());
}
