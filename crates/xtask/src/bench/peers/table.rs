//! What was measured, as rows of a report, as one table with a column for each contender, and held against the targets.

use super::{Contender, Peer, cut};
use crate::{
    report::{Row, Target, number},
    sipp::{Outcome, Transport},
};

/// COLO's median at this rate is to be this many times ours.
const COLO_RATE: u32 = 5;
const COLO_TIMES: f64 = 20.0;
/// At this rate nothing is to fail in mode `net`.
const SOUND_RATE: u32 = 20;

/// A value of a contender, where it was measured.
type Value = dyn Fn(&Peer) -> Option<f64>;

/// What is asked of each contender: how to call it, its unit, and its value.
struct Measure {
    what: String,
    unit: &'static str,
    of: Box<Value>,
}

impl Measure {
    fn new(
        what: impl Into<String>,
        unit: &'static str,
        of: impl Fn(&Peer) -> Option<f64> + 'static,
    ) -> Self {
        Self {
            what: what.into(),
            unit,
            of: Box::new(of),
        }
    }
}

/// All of them, in the order of the table.
fn measures(peers: &[Peer]) -> Vec<Measure> {
    let mut rates: Vec<u32> = peers
        .iter()
        .flat_map(|peer| &peer.rates)
        .map(|measured| measured.rate)
        .collect();
    rates.sort_unstable();
    rates.dedup();
    let mut all = Vec::new();
    for rate in rates {
        let percentile =
            |percent: f64| move |peer: &Peer| outcome(peer, rate)?.response_ms.percentile(percent);
        all.extend([
            Measure::new(
                format!("{rate} REGISTER/s: response p50"),
                "ms",
                percentile(50.0),
            ),
            Measure::new(
                format!("{rate} REGISTER/s: response p99"),
                "ms",
                percentile(99.0),
            ),
            Measure::new(
                format!("{rate} REGISTER/s: answered"),
                "%",
                move |peer: &Peer| share(outcome(peer, rate)?),
            ),
        ]);
    }
    for (transport, rate) in crate::crossing::TRANSPORTS
        .into_iter()
        .map(|(transport, _)| transport)
        .zip(cut::RATES)
    {
        all.push(Measure::new(
            format!("cut, {rate}/s over {}: answered", transport.name()),
            "%",
            move |peer: &Peer| share(peer.crossed.as_ref()?.load(transport)?),
        ));
        if transport == Transport::Udp {
            all.push(Measure::new(
                "cut: requests sent again over UDP",
                "",
                move |peer: &Peer| {
                    let load = peer.crossed.as_ref()?.load(transport)?;
                    Some(f64::from(load.retransmissions))
                },
            ));
        }
    }
    all.extend([
        Measure::new("cut: the one TCP connection kept", "0/1", |peer| {
            Some(f64::from(u8::from(
                peer.crossed.as_ref()?.connection_kept(),
            )))
        }),
        Measure::new("cut: contacts acknowledged", "", |peer| {
            count(peer.crossed.as_ref()?.acknowledged)
        }),
        Measure::new("cut: contacts lost", "", |peer| {
            count(peer.crossed.as_ref()?.lost)
        }),
        Measure::new("cut: time to the first answer", "ms", |peer| {
            peer.crossed.as_ref()?.first_ms
        }),
    ]);
    for (index, name) in ["UDP", "TCP"].into_iter().enumerate() {
        all.extend([
            Measure::new(
                format!("cut: calls that rang over {name}"),
                "",
                move |peer: &Peer| Some(f64::from(peer.crossed.as_ref()?.calls[index].rang)),
            ),
            Measure::new(
                format!("cut: calls kept over {name}"),
                "",
                move |peer: &Peer| Some(f64::from(peer.crossed.as_ref()?.calls[index].kept)),
            ),
        ]);
    }
    all
}

fn outcome(peer: &Peer, rate: u32) -> Option<&Outcome> {
    peer.rates
        .iter()
        .find(|measured| measured.rate == rate)
        .map(|measured| &measured.outcome)
}

/// In percent.
fn share(outcome: &Outcome) -> Option<f64> {
    (outcome.wanted > 0).then(|| f64::from(outcome.ok) / f64::from(outcome.wanted) * 100.0)
}

fn count(number: usize) -> Option<f64> {
    u32::try_from(number).ok().map(f64::from)
}

/// Every value in a row of its own, for programs.
pub(super) fn rows(peers: &[Peer]) -> Vec<Row> {
    let measures = measures(peers);
    let mut rows = Vec::new();
    for peer in peers {
        for Measure { what, unit, of } in &measures {
            let what = format!("{}: {what}", peer.contender.name());
            rows.push(Row::new(what, unit, of(peer)));
        }
    }
    rows
}

/// A Markdown table: a row for each measure, a column for each contender.
pub(super) fn markdown(peers: &[Peer]) -> String {
    let mut lines: Vec<Vec<String>> = Vec::new();
    let names = peers.iter().map(|peer| peer.contender.name().to_owned());
    lines.push([String::new()].into_iter().chain(names).collect());
    for measure in measures(peers) {
        let unit = match measure.unit {
            "" => String::new(),
            unit => format!(", {unit}"),
        };
        let values = peers
            .iter()
            .map(|peer| (measure.of)(peer).map_or_else(|| "–".to_owned(), number));
        lines.push(
            [format!("{}{unit}", measure.what)]
                .into_iter()
                .chain(values)
                .collect(),
        );
    }
    let widths: Vec<usize> = (0..=peers.len())
        .map(|column| {
            let widest = lines.iter().map(|line| line[column].chars().count()).max();
            widest.unwrap_or(0).max(3)
        })
        .collect();
    let rule: Vec<String> = widths
        .iter()
        .enumerate()
        .map(|(column, width)| {
            let end = if column == 0 { "-" } else { ":" };
            "-".repeat(width - 1) + end
        })
        .collect();
    lines.insert(1, rule);
    let text = lines.iter().map(|line| {
        let cells = line.iter().zip(&widths).map(|(cell, width)| {
            let pad = " ".repeat(width - cell.chars().count());
            format!("| {cell}{pad} ")
        });
        cells.collect::<String>() + "|\n"
    });
    text.collect()
}

/// What mode `net` is to reach beside the others; only of what was measured.
pub(super) fn targets(peers: &[Peer]) -> Vec<Row> {
    let find = |contender| peers.iter().find(|peer| peer.contender == contender);
    let Some(net) = find(Contender::Net) else {
        return Vec::new();
    };
    let mut rows = Vec::new();
    let median = |peer| outcome(peer, COLO_RATE)?.response_ms.median();
    let answered = |peer| share(outcome(peer, SOUND_RATE)?);
    rows.push(
        Row::new(
            format!("net, {SOUND_RATE} REGISTER/s: answered"),
            "%",
            answered(net),
        )
        .target(Target::AtLeast(100.0)),
    );
    for peer in peers.iter().filter(|peer| peer.contender.is_colo()) {
        let colo = median(peer);
        let what = format!(
            "net, {COLO_RATE} REGISTER/s: response p50, peer: {}",
            peer.contender.name()
        );
        rows.push(
            Row::new(what, "ms", median(net))
                .peer(colo)
                .target(colo.map(|colo| Target::AtMost(colo / COLO_TIMES))),
        );
    }
    let losses: [(&str, &Value); 4] = [
        ("registrations not answered across the cut", &|peer| {
            Some(f64::from(peer.crossed.as_ref()?.failed()))
        }),
        ("TCP connections lost", &|peer| {
            Some(f64::from(u8::from(
                !peer.crossed.as_ref()?.connection_kept(),
            )))
        }),
        ("contacts lost", &|peer| count(peer.crossed.as_ref()?.lost)),
        ("ringing calls lost", &|peer| {
            Some(f64::from(peer.crossed.as_ref()?.calls_lost()))
        }),
    ];
    for contender in [Contender::Keepalived, Contender::KeepalivedFast] {
        let Some(peer) = find(contender) else {
            continue;
        };
        for (what, loss) in losses {
            rows.push(
                Row::new(
                    format!("net, {what}, peer: {}", contender.name()),
                    "",
                    loss(net),
                )
                .peer(loss(peer))
                .target(Target::AtMost(0.0)),
            );
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::{Contender, Peer, markdown, rows, targets};
    use crate::{
        bench::peers::{cut::Crossed, rates::Measured},
        call::Ringing,
        distribution::Distribution,
        sipp::{Outcome, Transport},
    };

    fn peer(contender: Contender, ms: f64, ok: u32, lost: usize) -> Peer {
        let outcome = |rate: u32| Measured {
            rate,
            outcome: Outcome {
                wanted: 10,
                ok,
                response_ms: Distribution::new(vec![ms; 10]),
                ..Outcome::default()
            },
        };
        let load = Outcome {
            wanted: 10,
            ok: 10,
            ..Outcome::default()
        };
        let calls = Ringing {
            placed: 3,
            rang: 3,
            kept: 3,
        };
        Peer {
            contender,
            rates: vec![outcome(5), outcome(20)],
            crossed: Some(Crossed {
                loads: vec![
                    (Transport::Udp, load.clone()),
                    (Transport::TcpOne, load.clone()),
                    (Transport::TcpEach, load),
                ],
                calls: [calls; 2],
                first_ms: Some(700.0),
                acknowledged: 30,
                lost,
            }),
        }
    }

    #[test]
    fn targets_hold_net_against_the_others() {
        let missed = |peers: &[Peer]| {
            let rows = targets(peers).into_iter();
            rows.filter(|row| row.met == Some(false))
                .map(|row| row.what)
                .collect::<Vec<_>>()
        };
        let colo = || peer(Contender::Colo, 400.0, 5, 0);
        let fast = || peer(Contender::KeepalivedFast, 4.0, 10, 1);
        assert!(missed(&[peer(Contender::Net, 20.0, 10, 0), colo(), fast()]).is_empty());
        let slow = missed(&[peer(Contender::Net, 20.1, 10, 0), colo()]);
        assert!(slow.len() == 1 && slow[0].contains("COLO"), "{slow:?}");
        let seldom = peer(Contender::ColoSeldom, 20.0, 10, 0);
        assert_eq!(
            missed(&[peer(Contender::Net, 20.0, 10, 0), seldom]).len(),
            1
        );
        let failing = missed(&[peer(Contender::Net, 20.0, 9, 0)]);
        assert!(failing.len() == 1 && failing[0].contains("20 REGISTER/s"));
        let losing = missed(&[peer(Contender::Net, 20.0, 10, 1), fast()]);
        assert!(losing.len() == 1 && losing[0].contains("contacts lost"));
        let mut unseen = peer(Contender::Net, 20.0, 10, 0);
        unseen.crossed = None;
        assert_eq!(missed(&[unseen, fast()]).len(), 4, "not seen is not met");
        assert!(targets(&[colo(), fast()]).is_empty());
    }

    #[test]
    fn the_table_has_a_column_for_each_contender_and_gaps_for_what_was_not_measured() {
        let mut colo = peer(Contender::Colo, 400.0, 5, 0);
        colo.rates.pop();
        colo.crossed = None;
        let peers = [peer(Contender::Net, 20.0, 10, 0), colo];
        let table = markdown(&peers);
        let line = |start: &str| {
            let line = table.lines().find(|line| line.starts_with(start));
            let cells = line.unwrap_or_default().split('|').map(str::trim);
            cells.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(line("|  ")[2..4], ["romulus net", "QEMU COLO, 1 s"]);
        assert_eq!(line("| 5 REGISTER/s: response p50")[2..4], ["20", "400"]);
        assert_eq!(line("| 20 REGISTER/s: response p50")[2..4], ["20", "–"]);
        assert_eq!(line("| cut: contacts lost")[2..4], ["0", "–"]);
        let count = table.lines().count() - 2;
        assert_eq!(rows(&peers).len(), 2 * count);
        assert!(rows(&peers).iter().any(|row| row.value.is_none()));
    }
}
