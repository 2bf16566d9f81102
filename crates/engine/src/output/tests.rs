//! What may not leave does not: each test fails when one of the gate's guards is out.

use super::*;
use romulus_network::{announce::arp_request, mode::default_rules};
use std::{
    fs::File,
    net::Ipv4Addr,
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    thread,
    time::Duration,
};

const CARD: Mac = [2, 0, 0, 0, 0, 1];

/// A frame of the guest. One that goes straight to the tap is the test's to see, too.
struct Frame<'a> {
    bytes: Vec<u8>,
    tap: &'a TapWriter,
}

impl Outgoing for Frame<'_> {
    fn length(&self) -> usize {
        self.bytes.len()
    }

    fn copy_to(&self, into: &mut [u8]) {
        let length = into.len().min(self.bytes.len());
        into[..length].copy_from_slice(&self.bytes[..length]);
    }

    fn pass(&mut self) -> io::Result<()> {
        self.tap.write(&self.bytes)
    }
}

/// The gate of a machine with one card, and the cable behind it.
struct Gate {
    output: Output,
    tap: TapWriter,
    cable: UnixDatagram,
}

impl Gate {
    fn new(limit: usize) -> Gate {
        Gate::of(limit, Mode::Net)
    }

    fn of(limit: usize, mode: Mode) -> Gate {
        let (tap, cable) = UnixDatagram::pair().unwrap();
        cable.set_nonblocking(true).unwrap();
        let tap = TapWriter::new(File::from(OwnedFd::from(tap)));
        let output = Output::new(limit, vec![CARD], mode, Arc::default());
        output.attach(vec![tap.clone()]);
        Gate { output, tap, cable }
    }

    /// The guest sends a frame that says `mark`.
    fn send(&self, mark: u8) {
        let mut bytes = vec![0; HEADER + 60];
        bytes[HEADER + 50] = mark;
        self.send_frame(bytes);
    }

    fn send_frame(&self, bytes: Vec<u8>) {
        let tap = &self.tap;
        self.output.send(0, &mut Frame { bytes, tap });
    }

    /// The guest sends UDP with this payload, of which byte number 8 is the mark.
    fn send_udp(&self, payload: &[u8]) {
        let mut bytes = vec![0; HEADER];
        bytes.extend_from_slice(&[2, 0, 0, 0, 0, 9]);
        bytes.extend_from_slice(&CARD);
        let length = u16::try_from(payload.len()).unwrap();
        let [ip, udp] = [length + 28, length + 8].map(u16::to_be_bytes);
        bytes.extend_from_slice(&[8, 0, 0x45, 0, ip[0], ip[1], 0, 1, 0, 0, 64, 17, 0, 0]);
        bytes.extend_from_slice(&[192, 0, 2, 100, 192, 0, 2, 7]);
        bytes.extend_from_slice(&[0x4e, 0x20, 0x75, 0x30, udp[0], udp[1], 0, 0]);
        bytes.extend_from_slice(payload);
        self.send_frame(bytes);
    }

    /// The guest sends a packet of RTP.
    fn send_rtp(&self, mark: u8) {
        self.send_udp(&[&[0x80, 0, 0, 1, 0, 0, 0, 1, mark][..], &[7; 163]].concat());
    }

    /// What has left since the last look.
    fn left(&self) -> Vec<u8> {
        let mut bytes = [0; 1024];
        let mut next = || self.cable.recv(&mut bytes).map(|_| bytes[HEADER + 50]);
        std::iter::from_fn(|| next().ok()).collect()
    }
}

fn permit(pass: Pass, through: u64) -> Permit {
    Permit {
        pass,
        through: Epoch(through),
        until: None,
    }
}

fn ended(permit: Permit) -> Permit {
    Permit {
        until: Some(clock::now()),
        ..permit
    }
}

const LIMIT: usize = 1 << 20;

#[test]
fn a_frame_leaves_when_its_own_epoch_is_committed_and_not_before() {
    let gate = Gate::new(LIMIT);
    gate.send(1);
    assert_eq!(gate.left(), [], "a gate begins shut");
    gate.output.permit(permit(Pass::Committed, 0));
    gate.send(2);
    let seal = gate.output.seal();
    assert!(seal.held);
    assert_eq!(seal.released_through, Epoch(0));
    gate.send(3);
    assert_eq!(gate.left(), []);
    gate.output.permit(permit(Pass::CommittedAndUnheld, 1));
    assert_eq!(gate.left(), [1, 2], "what the next epoch sent waits");
    let seal = gate.output.seal();
    assert!(seal.held);
    assert_eq!(seal.released_through, Epoch(1));
    gate.output.permit(permit(Pass::Committed, 2));
    assert_eq!(gate.left(), [3]);
    let seal = gate.output.seal();
    assert!(!seal.held);
    assert_eq!(seal.released_through, Epoch(3));
}

#[test]
fn output_of_a_committed_epoch_that_still_runs_is_held() {
    // The gate has sealed, the permit is older: nothing goes by the running epoch's number alone.
    let gate = Gate::new(LIMIT);
    gate.output.permit(permit(Pass::Committed, 1));
    gate.send(1);
    assert_eq!(gate.left(), []);
    assert!(gate.output.holding());
}

#[test]
fn nothing_leaves_after_the_permits_time() {
    let gate = Gate::new(LIMIT);
    gate.send(1);
    gate.output.permit(ended(permit(Pass::Committed, 1)));
    assert_eq!(gate.left(), []);
    gate.output.permit(permit(Pass::All, 1));
    assert_eq!(gate.left(), [1]);
    gate.output.permit(ended(permit(Pass::All, 1)));
    gate.send(2);
    assert_eq!(gate.left(), []);
}

#[test]
fn the_time_is_looked_at_again_for_each_frame() {
    let gate = Gate::new(LIMIT);
    gate.send(1);
    gate.send(2);
    // The cable takes no frame until it is read from.
    let tap = UnixDatagram::pair().unwrap();
    let full = File::from(OwnedFd::from(tap.0.try_clone().unwrap()));
    tap.0.set_nonblocking(true).unwrap();
    while tap.0.send(&[9; 100]).is_ok() {}
    tap.0.set_nonblocking(false).unwrap();
    gate.output.attach(vec![TapWriter::new(full)]);
    let until = clock::now() + Duration::from_secs(1);
    let mut bytes = [0; 1024];
    let mut seen = Vec::new();
    thread::scope(|scope| {
        let release = scope.spawn(|| {
            gate.output.permit(Permit {
                until: Some(until),
                ..permit(Pass::Committed, 1)
            });
        });
        while clock::now() < until {
            thread::sleep(Duration::from_millis(10));
        }
        tap.1.set_nonblocking(true).unwrap();
        // The first frame was under way when the time was over.
        while !release.is_finished() || seen.len() < 200 {
            match tap.1.recv(&mut bytes) {
                Ok(72) => seen.push(bytes[HEADER + 50]),
                Ok(_) => {}
                Err(_) if release.is_finished() => break,
                Err(_) => thread::yield_now(),
            }
        }
    });
    assert!(!seen.contains(&2), "{seen:?}");
    assert!(!gate.output.lock().queue.is_empty());
}

#[test]
fn nothing_overtakes_what_waits() {
    let gate = Gate::new(LIMIT);
    gate.send(1);
    // Everything may leave, but what waits could not for the moment.
    gate.output.lock().permit = permit(Pass::All, 1);
    gate.send(2);
    assert_eq!(gate.left(), []);
    gate.output.permit(permit(Pass::All, 1));
    assert_eq!(gate.left(), [1, 2]);
    gate.send(3);
    assert_eq!(gate.left(), [3], "and now nothing waits");
}

#[test]
fn what_does_not_fit_is_lost_and_does_not_leave() {
    let gate = Gate::new(100);
    gate.send(1);
    assert_eq!(gate.output.figures().full, 1);
    gate.output.permit(permit(Pass::All, 1));
    assert_eq!(gate.left(), []);
}

#[test]
fn what_is_cleared_never_leaves_and_neither_does_the_next() {
    let gate = Gate::new(LIMIT);
    gate.send(1);
    gate.output.clear();
    assert!(!gate.output.holding());
    gate.output.attach(vec![gate.tap.clone()]);
    gate.output.permit(permit(Pass::All, 1));
    assert_eq!(gate.left(), []);
    // The way out is gone, too: held output of a machine that is no more finds no tap.
    gate.output.permit(Permit::nothing());
    gate.output.clear();
    gate.send(2);
    gate.output.permit(permit(Pass::All, 1));
    assert_eq!(gate.left(), []);
    assert_eq!(gate.output.figures().dropped, 1);
}

#[test]
fn a_term_begins_with_what_belongs_to_it_alone() {
    let gate = Gate::new(LIMIT);
    gate.send(1);
    gate.output.seal();
    gate.send(2);
    gate.output.begin(true);
    gate.output.permit(permit(Pass::Committed, 0));
    assert_eq!(gate.left(), [], "it counts as the first epoch's");
    gate.output.permit(permit(Pass::Committed, 1));
    assert_eq!(gate.left(), [1, 2]);
    gate.send(3);
    gate.output.seal();
    gate.output.begin(false);
    gate.output.permit(permit(Pass::All, 9));
    assert_eq!(gate.left(), [], "a replica's machine never sent that");
    gate.output.permit(permit(Pass::Committed, 0));
    gate.send(4);
    gate.output.permit(permit(Pass::Committed, 1));
    assert_eq!(gate.left(), [4], "epochs are counted from 1 again");
}

#[test]
fn an_announcement_needs_a_permit() {
    let gate = Gate::new(LIMIT);
    let mut bytes = vec![0; HEADER];
    bytes.extend(arp_request(CARD, Ipv4Addr::new(192, 0, 2, 10), None));
    let tap = &gate.tap;
    gate.output.send(0, &mut Frame { bytes, tap });
    gate.output.begin(false);
    assert_eq!(gate.output.announce(), 0);
    gate.output.permit(ended(permit(Pass::Committed, 0)));
    assert_eq!(gate.output.announce(), 0);
    assert_eq!(gate.left(), []);
    gate.output.permit(permit(Pass::Committed, 0));
    assert!(gate.output.announce() > 0);
    assert!(!gate.left().is_empty());
}

/// Media does not wait for a commit, whatever waits before it; all else does.
#[test]
fn split_lets_media_pass_at_once_and_nothing_else() {
    let gate = Gate::of(LIMIT, Mode::Split(default_rules()));
    gate.output.permit(permit(Pass::CommittedAndUnheld, 0));
    gate.send_udp(b"SIP/2.0 200 OK\r\n");
    gate.send(2);
    gate.send_rtp(3);
    gate.send_rtp(4);
    assert_eq!(gate.left(), [3, 4]);
    assert!(gate.output.holding(), "what waits ends the epoch");
    let figures = gate.output.figures();
    assert_eq!((figures.at_once, figures.held_frames), (2, 2));
    gate.output.seal();
    gate.output.permit(permit(Pass::CommittedAndUnheld, 1));
    assert_eq!(gate.left(), [b"SIP/2.0 200 OK\r\n"[8], 2]);
}

/// While an heir is named, after the permit's time and where nothing may leave, media waits like everything.
#[test]
fn unheld_output_asks_the_permit() {
    for permit in [
        Permit::nothing(),
        permit(Pass::Committed, 9),
        ended(permit(Pass::CommittedAndUnheld, 9)),
    ] {
        let gate = Gate::of(LIMIT, Mode::Split(default_rules()));
        gate.output.permit(permit);
        for _ in 0..9 {
            gate.output.seal();
        }
        gate.send_rtp(1);
        assert_eq!(gate.left(), [], "{permit:?}");
        assert_eq!(gate.output.figures().at_once, 0);
    }
}

#[test]
fn no_net_holds_nothing_but_tcp() {
    for tcp in [false, true] {
        let gate = Gate::of(LIMIT, Mode::NoNet { tcp });
        gate.output.permit(permit(Pass::CommittedAndUnheld, 0));
        gate.send_udp(b"SIP/2.0 200 OK\r\n");
        gate.send(2);
        assert_eq!(gate.left(), [b"SIP/2.0 200 OK\r\n"[8], 2]);
        let mut frame = vec![0; HEADER + 60];
        frame[HEADER + 12..][..24].copy_from_slice(&[
            8, 0, 0x45, 0, 0, 46, 0, 1, 0, 0, 64, 6, 0, 0, 192, 0, 2, 100, 192, 0, 2, 7, 0, 80,
        ]);
        frame[HEADER + 50] = 3;
        gate.send_frame(frame);
        let left: &[u8] = if tcp { &[3] } else { &[] };
        assert_eq!(gate.left(), left);
        assert_eq!(gate.output.holding(), !tcp);
    }
}

/// What a checkpoint of `epoch` would carry.
fn carried(gate: &Gate, epoch: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    gate.output.copy_held(Epoch(epoch), &mut bytes);
    frames::read(&bytes)
        .map(|(_, frame)| frame[HEADER + 50])
        .collect()
}

#[test]
fn a_checkpoint_carries_what_its_own_epoch_holds() {
    let gate = Gate::new(LIMIT);
    gate.output.permit(permit(Pass::Committed, 0));
    gate.send(1);
    gate.send(2);
    gate.output.seal();
    gate.send(3);
    assert_eq!(carried(&gate, 1), [1, 2]);
    assert_eq!(carried(&gate, 2), [3]);
    gate.output.permit(permit(Pass::Committed, 1));
    assert_eq!(gate.left(), [1, 2]);
    assert_eq!(carried(&gate, 1), [], "it is the backup's now");
}

#[test]
fn what_was_on_its_way_is_sent_again_only_by_who_may_send_anything() {
    let gate = Gate::new(LIMIT);
    let kept = |mark| {
        let mut bytes = vec![0; HEADER + 60];
        bytes[HEADER + 50] = mark;
        bytes
    };
    let kept = [(0, kept(1)), (1, kept(2)), (0, kept(3))];
    assert_eq!(gate.output.send_again(&kept), 0);
    for shut in [
        permit(Pass::Committed, 9),
        permit(Pass::CommittedAndUnheld, 9),
        ended(permit(Pass::All, 0)),
    ] {
        gate.output.permit(shut);
        assert_eq!(gate.output.send_again(&kept), 0);
    }
    assert_eq!(gate.left(), []);
    gate.output.permit(permit(Pass::All, 0));
    assert_eq!(gate.output.send_again(&kept), 2, "there is one card");
    assert_eq!(gate.left(), [1, 3]);
    assert_eq!(gate.output.figures().sent_again, 2);
}
