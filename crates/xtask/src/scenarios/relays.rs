//! Calls whose media go through a relay in the guest.

use super::{Scenario, case::Case};
use crate::{
    assets::{Assets, Image},
    capture::Capture,
    machine_file::{FIRST_GUEST, address},
    pair::unix_seconds,
    softphone::{Media, Softphone},
};
use anyhow::{Context as _, Result, ensure};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::Path,
    time::Duration,
};

/// This file's scenarios.
pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "relays/rtpengine",
        "a call whose media go through rtpengine on another machine than its signalling",
        &[Image::REGISTRAR_12, Image::MEDIA_RTPENGINE_12],
        |case| two_machines(case, "rtpengine", Image::MEDIA_RTPENGINE_12),
    )
    .with_softphone()
    .host_mib(3072),
    Scenario::new(
        "relays/rtpproxy",
        "a call whose media go through RTPProxy on another machine than its signalling",
        &[Image::REGISTRAR_12, Image::MEDIA_RTPPROXY_12],
        |case| two_machines(case, "rtpproxy", Image::MEDIA_RTPPROXY_12),
    )
    .with_softphone()
    .host_mib(3072),
    Scenario::pair(
        "relays/encrypted",
        "a call over DTLS-SRTP goes on across a loss of power, without another handshake",
        &[Image::PBX_12],
        |case| encrypted(case, "net"),
    )
    .with_softphone(),
    Scenario::pair(
        "relays/encrypted-split",
        "the same in mode split, where nothing tells SRTP from RTP",
        &[Image::PBX_12],
        |case| encrypted(case, "split"),
    )
    .with_softphone()
    .only_full(),
];

/// How long a state may take to be said once it is so.
const SOON: Duration = Duration::from_mins(1);
/// How long both are to hear each other before the cut, and after it.
const TALK_SECONDS: f64 = 3.0;
/// A handshake of DTLS: the first byte of a datagram's payload is its record's type (RFC 6347, 4.1), and handshakes are of these two.
/// An alert is not, with which each side closes at the call's end.
const DTLS: &str = "udp and (udp[8] = 20 or udp[8] = 22)";
/// RTP with G.711 (payload type 0), encrypted or not.
const MEDIA: &str = "udp and udp[8] & 0xc0 = 0x80 and udp[9] & 0x7f = 0";
/// Bytes of an RTP packet with 20 ms of G.711.
const PLAIN_LENGTH: usize = 12 + 160;
/// With the tag that SRTP's usual transform adds (RFC 3711, section 4.2), or AES-GCM's (RFC 7714): the relay agrees on one with
/// each phone.
const ENCRYPTED_LENGTHS: [usize; 2] = [PLAIN_LENGTH + 10, PLAIN_LENGTH + 16];
/// Packets of a stream, from which on it counts as flowing.
const FLOWS: usize = 50;

/// The paper's layout: SIP and media have a machine each.
fn two_machines(case: &Case, relay: &str, image: Image) -> Result<()> {
    let mut sip = case.machine("sip", Image::REGISTRAR_12, 0)?;
    let word = format!(" media.relay={relay}:{}", address(1));
    sip.boot.command_line.push_str(&word);
    let media = case.boot(case.machine("media", image, 1)?)?;
    let sip = case.boot(sip)?;
    plain_call(case, address(1))?;
    media.still_runs()?;
    sip.still_runs()
}

/// A call through machine 0, whose media must go by `relay`, both ways.
fn plain_call(case: &Case, relay: Ipv4Addr) -> Result<()> {
    let client = case.lab.client();
    let (mut alice, mut bob) = phones(client, tree(&case.assets)?, Media::Plain)?;
    let media = Capture::at_client(client, MEDIA)?;
    alice.dial(FIRST_GUEST, "bob")?;
    for phone in [&mut alice, &mut bob] {
        hears_more(phone, Media::Plain, 0.0)?;
    }
    alice.hang_up()?;
    bob.wait_audio("over", SOON, |audio| audio.is_none())?;
    let wire = Wire::read(&[], &media.finish()?)?;
    wire.all_by(relay, &[PLAIN_LENGTH], 0.0).map(drop)
}

fn encrypted(case: &Case, mode: &str) -> Result<()> {
    let mut pair = case.protected_with(Image::PBX_12, |file| {
        if let Some(protection) = &mut file.protection {
            protection.mode = Some(mode.to_owned());
        }
    })?;
    let call = EncryptedCall::begin(case.lab.client(), tree(&case.assets)?)?;
    let cut = pair.cut_power(0)?;
    pair.wait_runs(1)?;
    let wire = call.finish()?;
    eprintln!("{}", wire.goes_on_encrypted(unix_seconds(cut.at))?);
    Ok(())
}

/// A call over DTLS-SRTP between two softphones, and all that the wire shows of it.
pub(crate) struct EncryptedCall {
    alice: Softphone,
    bob: Softphone,
    handshakes: Capture,
    media: Capture,
}

impl EncryptedCall {
    /// Makes the call through machine 0; both hear each other.
    ///
    /// # Errors
    /// They don't.
    pub(crate) fn begin(client: &lab::Client, tree: &Path) -> Result<Self> {
        let (mut alice, mut bob) = phones(client, tree, Media::Encrypted)?;
        // Other calls may be under way.
        let theirs = format!("({} or {})", alice.media_filter(), bob.media_filter());
        let handshakes = Capture::at_client(client, &format!("{DTLS} and {theirs}"))?;
        let media = Capture::at_client(client, &format!("{MEDIA} and {theirs}"))?;
        alice.dial(FIRST_GUEST, "bob")?;
        for phone in [&mut alice, &mut bob] {
            hears_more(phone, Media::Encrypted, 0.0)?;
        }
        Ok(Self {
            alice,
            bob,
            handshakes,
            media,
        })
    }

    /// Both hear each other, encrypted, for some seconds more; then the call is ended in order. Gives what the wire showed.
    ///
    /// # Errors
    /// They don't, or it does not end: then what the wire showed is said.
    pub(crate) fn finish(mut self) -> Result<Wire> {
        let ended = self.hear_more().and_then(|()| self.hang_up());
        let wire = Wire::read(&self.handshakes.finish()?, &self.media.finish()?)?;
        ended.with_context(|| wire.summary())?;
        Ok(wire)
    }

    fn hear_more(&mut self) -> Result<()> {
        for phone in [&mut self.alice, &mut self.bob] {
            let before = phone.audio()?.context("the call has ended")?.received;
            hears_more(phone, Media::Encrypted, before)?;
        }
        Ok(())
    }

    fn hang_up(&mut self) -> Result<()> {
        self.alice.hang_up()?;
        self.bob.wait_audio("over", SOON, |audio| audio.is_none())
    }
}

fn tree(assets: &Assets) -> Result<&Path> {
    assets
        .softphone
        .as_deref()
        .context("the softphone was not prepared")
}

/// The softphones of alice and bob, registered at machine 0.
fn phones(client: &lab::Client, tree: &Path, media: Media) -> Result<(Softphone, Softphone)> {
    let phone = |user| Softphone::start(client, tree, FIRST_GUEST, user, media);
    let (mut alice, mut bob) = (phone("alice")?, phone("bob")?);
    alice.wait_registered(SOON)?;
    bob.wait_registered(SOON)?;
    Ok((alice, bob))
}

/// Waits until a phone has decoded a few seconds more of sound.
fn hears_more(phone: &mut Softphone, media: Media, before: f64) -> Result<()> {
    let secure = media == Media::Encrypted;
    phone.wait_audio("as agreed, with sound", SOON, |audio| {
        audio.is_some_and(|audio| audio.secure == secure && audio.received >= before + TALK_SECONDS)
    })
}

/// What the client's wire showed of a call.
pub(crate) struct Wire {
    /// When each datagram of DTLS passed, in seconds since 1970.
    handshakes: Vec<f64>,
    /// Each stream by its ends: when its packets passed.
    streams: BTreeMap<(String, String), Vec<f64>>,
    /// The lengths of media packets that were seen.
    lengths: BTreeSet<usize>,
}

impl Wire {
    /// Reads the lines that tcpdump printed.
    fn read(handshakes: &[String], media: &[String]) -> Result<Self> {
        let mut streams: BTreeMap<_, Vec<f64>> = BTreeMap::new();
        let mut lengths = BTreeSet::new();
        for line in media {
            let (at, ends, length) =
                datagram(line).with_context(|| format!("tcpdump printed {line:?}"))?;
            streams.entry(ends).or_default().push(at);
            lengths.insert(length);
        }
        let time = |line: &String| {
            let at = line.split(' ').next().and_then(|at| at.parse().ok());
            at.with_context(|| format!("tcpdump printed {line:?}"))
        };
        Ok(Self {
            handshakes: handshakes.iter().map(time).collect::<Result<_>>()?,
            streams,
            lengths,
        })
    }

    /// The streams, for people: from when to when they were seen.
    fn summary(&self) -> String {
        let times = || self.streams.values().flatten().copied();
        let zero = times().fold(f64::INFINITY, f64::min);
        let stream = |((from, to), times): (&(String, String), &Vec<f64>)| {
            let at = |time: Option<&f64>| time.map_or(0.0, |time| time - zero);
            let (first, last) = (at(times.first()), at(times.last()));
            let count = times.len();
            format!("{from} to {to}: {count} packets from {first:.1} to {last:.1} s")
        };
        let streams: Vec<String> = self.streams.iter().map(stream).collect();
        format!("media on the wire: {}", streams.join("; "))
    }

    /// Checks that one call between two phones went through the relay, in packets of these lengths, before `moment` and after
    /// it; gives the longest gap of a stream in seconds.
    fn all_by(&self, relay: Ipv4Addr, lengths: &[usize], moment: f64) -> Result<f64> {
        ensure!(
            self.lengths.iter().all(|length| lengths.contains(length)),
            "media packets of {:?} bytes, which should have one of {lengths:?}",
            self.lengths
        );
        let at_relay = format!("{relay}.");
        ensure!(
            self.streams.len() == 4
                && (self.streams.keys())
                    .all(|(from, to)| from.starts_with(&at_relay) != to.starts_with(&at_relay)),
            "not two streams to {relay} and two from it, but {:?}",
            self.streams.keys()
        );
        let mut longest = 0.0_f64;
        for ((from, to), times) in &self.streams {
            let after = times.iter().filter(|at| **at >= moment).count();
            ensure!(
                after >= FLOWS && (moment <= 0.0 || times[0] < moment),
                "{after} packets from {from} to {to} where they should flow"
            );
            let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
            longest = gaps.fold(longest, f64::max);
        }
        Ok(longest)
    }

    /// Checks that an encrypted call went on across the cut as it was; gives a line for people.
    fn goes_on_encrypted(&self, cut: f64) -> Result<String> {
        let longest = self.encrypted_gap(cut)?;
        Ok(format!(
            "{} datagrams of DTLS, none after the cut; the longest gap in a stream: {:.0} ms",
            self.handshakes.len(),
            longest * 1e3
        ))
    }

    /// Checks that an encrypted call went on across the cut as it was; gives the longest gap of a stream in seconds.
    ///
    /// # Errors
    /// It was negotiated again, or its media did not go on.
    pub(crate) fn encrypted_gap(&self, cut: f64) -> Result<f64> {
        ensure!(
            self.handshakes.iter().any(|at| *at < cut),
            "no handshake was seen before the cut: the capture is blind"
        );
        let later = self.handshakes.iter().filter(|at| **at >= cut).count();
        ensure!(
            later == 0,
            "{later} datagrams of DTLS after the cut: the call was negotiated again"
        );
        self.all_by(FIRST_GUEST, &ENCRYPTED_LENGTHS, cut)
    }
}

/// `TIME IP FROM > TO: UDP, length LENGTH`
fn datagram(line: &str) -> Option<(f64, (String, String), usize)> {
    let mut words = line.split_whitespace();
    let at = words.next()?.parse().ok()?;
    let from = words.nth(1)?.to_owned();
    let to = words.nth(1)?.trim_end_matches(':').to_owned();
    let length = words.next_back()?.parse().ok()?;
    Some((at, (from, to), length))
}

#[cfg(test)]
mod tests {
    use super::Wire;
    use crate::machine_file::{FIRST_GUEST, address};

    /// `streams` streams of a packet every 20 ms from 100.0 until `until`, with a gap after 105.0, and a handshake at each of
    /// `handshakes`.
    fn wire(handshakes: &[f64], streams: usize, length: usize, until: f64) -> Wire {
        const ENDS: [&str; 5] = [
            "192.0.2.254.10000 > 192.0.2.100.30000",
            "192.0.2.100.30000 > 192.0.2.254.10000",
            "192.0.2.254.10100 > 192.0.2.100.30002",
            "192.0.2.100.30002 > 192.0.2.254.10100",
            "192.0.2.254.10000 > 192.0.2.254.10100",
        ];
        let line = |at: f64, ends: &str, length| format!("{at} IP {ends}: UDP, length {length}");
        let media: Vec<String> = (0..500)
            .map(|n| 100.0 + f64::from(n) * 0.02)
            .filter(|at| !(105.0..105.3).contains(at) && *at < until)
            .flat_map(|at| {
                ENDS[..streams]
                    .iter()
                    .map(move |ends| line(at, ends, length))
            })
            .collect();
        let handshakes: Vec<String> = handshakes
            .iter()
            .map(|at| line(*at, ENDS[0], 200))
            .collect();
        Wire::read(&handshakes, &media).unwrap()
    }

    #[test]
    fn a_call_that_goes_on_as_it_was_passes() {
        let said = wire(&[99.0, 99.5], 4, 182, 110.0).goes_on_encrypted(105.0);
        let said = said.unwrap();
        let all = wire(&[], 1, 182, 110.0).summary();
        let expected = "192.0.2.254.10000 to 192.0.2.100.30000: 485 packets from 0.0 to 10.0 s";
        assert_eq!(all, format!("media on the wire: {expected}"));
        assert!(
            said.starts_with("2 datagrams of DTLS") && said.ends_with("320 ms"),
            "{said}"
        );
    }

    #[test]
    fn a_second_handshake_plain_media_and_a_stream_that_ends_are_seen() {
        let error = |wire: Wire| wire.goes_on_encrypted(105.0).unwrap_err().to_string();
        assert!(error(wire(&[99.0, 106.0], 4, 182, 110.0)).contains("negotiated again"));
        assert!(error(wire(&[], 4, 182, 110.0)).contains("blind"));
        assert!(error(wire(&[99.0], 4, 172, 110.0)).contains("{172} bytes"));
        assert!(error(wire(&[99.0], 3, 182, 110.0)).contains("not two streams"));
        assert!(error(wire(&[99.0], 4, 182, 105.5)).starts_with("10 packets from"));
    }

    #[test]
    fn media_that_goes_past_the_relay_is_seen() {
        let call = wire(&[], 4, 172, 110.0);
        call.all_by(FIRST_GUEST, &[172], 0.0).unwrap();
        assert!(call.all_by(address(1), &[172], 0.0).is_err());
        let past = wire(&[], 5, 172, 110.0);
        assert!(past.all_by(FIRST_GUEST, &[172], 0.0).is_err());
    }
}
