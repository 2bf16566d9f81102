//! The probe's book against another's: `tshark -z rtp,streams` reads a capture of the same packets, with the same times.
//!
//! Needs tshark (Debian package `tshark`), which `cargo xtask test` installs.

use romulus_telephony::media::{
    Account, Codec, Header, INTERVAL, Mark, PACKET, Playout, Report, SAMPLES, Sent, encode, tshark,
};
use std::{fs, path::Path, time::Duration};

/// Media goes to this port, from one port for each stream: tshark tells streams apart by these and the SSRC.
const PORT: u16 = 40_000;

/// One packet on its way.
struct Flying {
    at: Duration,
    stream: u16,
    header: Header,
    mark: Mark,
}

/// What happens to the packets of a stream: when packet `index` arrives after it was sent; not at all; twice.
type Fate = fn(u32) -> Vec<Duration>;

fn ms(ms: f64) -> Duration {
    Duration::from_secs_f64(ms / 1e3)
}

/// A number that looks random, 0 to 1, always the same for one index.
fn dice(index: u32) -> f64 {
    let mixed = index
        .wrapping_mul(0x9e37_79b9)
        .rotate_left(13)
        .wrapping_mul(0x85eb_ca6b);
    f64::from(mixed) / f64::from(u32::MAX)
}

/// Streams, and how many packets each has. The first and the last packet of each arrive: tshark knows of no others.
const STREAMS: [(u32, Fate); 6] = [
    (500, |_| vec![ms(4.0)]),
    (500, |index| vec![ms(4.0 + 3.0 * dice(index))]),
    (1000, |index| {
        let lost = index != 0 && index != 999 && dice(index) < 0.08;
        if lost {
            vec![]
        } else {
            vec![ms(9.0 * dice(index))]
        }
    }),
    // Many late enough to be overtaken, but for the last: tshark takes what comes last for the stream's end.
    (1000, |index| {
        let late = index != 0 && index < 990 && dice(index) < 0.1;
        vec![ms(if late { 55.0 } else { 2.0 + dice(index) })]
    }),
    // A takeover: a quarter of a second lost, before that half a second held.
    (1500, |index| match index {
        500..=524 => vec![ms(f64::from(525 - index) * 20.0)],
        525..=537 => vec![],
        _ => vec![ms(1.0 + dice(index))],
    }),
    // Some twice.
    (400, |index| {
        let once = ms(5.0);
        if dice(index) < 0.05 {
            vec![once, once + ms(3.0)]
        } else {
            vec![once]
        }
    }),
];

/// All packets in order of arrival, and what was sent of each stream.
fn fly() -> (Vec<Flying>, Vec<Sent>) {
    let (mut packets, mut sent) = (Vec::new(), Vec::new());
    for (stream, (count, fate)) in (0..).zip(STREAMS) {
        let begin = ms(f64::from(stream) * 3.3);
        for index in 0..count {
            let header = Header {
                marker: index == 0,
                payload_type: Codec::Pcmu.payload_type(),
                // Both wrap within the stream.
                sequence: 0xff80_u16.wrapping_add((index & 0xffff) as u16),
                timestamp: 0xffff_f000_u32.wrapping_add(index.wrapping_mul(SAMPLES)),
                ssrc: 0x1000 + u32::from(stream),
            };
            let mark = Mark {
                run: 1,
                stream: u32::from(stream),
                index,
                sent: begin + INTERVAL * index,
            };
            for delay in fate(index) {
                let at = mark.sent + delay;
                packets.push(Flying {
                    at,
                    stream,
                    header,
                    mark,
                });
            }
        }
        sent.push(Sent {
            packets: count,
            first: begin,
            last: begin + INTERVAL * (count - 1),
            longest_gap: INTERVAL,
        });
    }
    packets.sort_by_key(|packet| packet.at);
    (packets, sent)
}

/// A capture file (pcap with times in ns, link type "raw IP") of the packets.
fn capture(packets: &[Flying], path: &Path) {
    let mut file = Vec::new();
    for word in [0xa1b2_3c4d_u32, 0x0004_0002, 0, 0, 65_535, 101] {
        file.extend(word.to_le_bytes());
    }
    for packet in packets {
        let payload = encode(packet.header, packet.mark, Codec::Pcmu);
        let udp = 8 + PACKET;
        let length = 20 + udp;
        let words = [
            u32::try_from(packet.at.as_secs()).unwrap(),
            packet.at.subsec_nanos(),
            u32::try_from(length).unwrap(),
            u32::try_from(length).unwrap(),
        ];
        file.extend(words.into_iter().flat_map(u32::to_le_bytes));
        let [high, low] = u16::try_from(length).unwrap().to_be_bytes();
        file.extend([0x45, 0, high, low, 0, 0, 0, 0, 64, 17, 0, 0]);
        file.extend([192, 0, 2, 1, 192, 0, 2, 2]);
        file.extend((20_000 + packet.stream).to_be_bytes());
        file.extend(PORT.to_be_bytes());
        file.extend(u16::try_from(udp).unwrap().to_be_bytes());
        file.extend([0, 0]);
        file.extend(payload);
    }
    fs::write(path, file).unwrap();
}

#[test]
fn tshark_reads_the_same_out_of_the_same_packets() {
    let (packets, sent) = fly();
    let mut accounts = vec![Account::default(); STREAMS.len()];
    for packet in &packets {
        let account = &mut accounts[usize::from(packet.stream)];
        assert!(account.arrived(packet.at, &packet.header, &packet.mark));
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("calls.pcap");
    capture(&packets, &file);
    let output = tshark::command(&file, &PORT.to_string())
        .output()
        .expect("running tshark (Debian package tshark)");
    let seen = tshark::read(&output).unwrap();
    assert_eq!(seen.len(), STREAMS.len());
    for (stream, (account, sent)) in (0..).zip(accounts.iter().zip(&sent)) {
        let ours: Report = account.report(*sent, Playout::default());
        let theirs = seen
            .iter()
            .find(|line| Some(line.ssrc) == ours.ssrc)
            .unwrap();
        let name = format!("stream {stream}: {ours:?}\n{theirs:?}");
        assert_eq!(ours.received, theirs.packets, "{name}");
        // tshark counts one that came twice as if it made up for one that was lost.
        let lost = i64::from(ours.lost) - i64::from(ours.duplicates);
        assert_eq!(lost, theirs.lost, "{name}");
        assert!((ours.jitter_ms - theirs.jitter_ms).abs() < 0.01, "{name}");
        assert!(
            (ours.jitter_max_ms - theirs.jitter_max_ms).abs() < 0.01,
            "{name}"
        );
        // A new packet's gap is what ours is; theirs is between any two.
        if ours.duplicates == 0 {
            assert!(
                (ours.longest_gap_ms - theirs.longest_gap_ms).abs() < 0.01,
                "{name}"
            );
        }
    }
    // The test's streams have what they are to have.
    let total = |of: fn(&Report) -> u32| -> u32 {
        accounts
            .iter()
            .zip(&sent)
            .map(|(a, s)| of(&a.report(*s, Playout::default())))
            .sum()
    };
    assert!(total(|r| r.lost) > 50 && total(|r| r.reordered) > 50 && total(|r| r.duplicates) > 5);
}
