//! How long an epoch takes: the product's own loop over the tiny guest, primary and backup in one
//! process over the loopback interface. Prints one row a line: what, unit, value, target, peer, with
//! tabs between. `cargo xtask bench engine` runs it and makes a table.

#[path = "epochs/alone.rs"]
mod alone;

#[path = "../tests/pair/bench.rs"]
#[allow(dead_code, reason = "the tests need more of it")]
mod bench;

use bench::{Bench, Life, Options};
use romulus_engine::{Phase, PhaseTimes, Report, Status};
use romulus_machine::{Outgoing, TapWriter, tiny::Tiny};
use romulus_protocol::timing::Timing;
use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const LONG: Duration = Duration::from_mins(1);
/// How many times a case is tried on a busy computer.
const ATTEMPTS: u32 = 5;

/// One thing to measure.
#[derive(Clone, Copy)]
struct Case {
    pages: usize,
    memory: u64,
    vcpus: u8,
    tls: bool,
}

/// A frame as a card would send it: a virtio-net header and the shortest Ethernet frame.
struct Frame([u8; 12 + 60]);

impl Outgoing for Frame {
    fn length(&self) -> usize {
        self.0.len()
    }

    fn copy_to(&self, into: &mut [u8]) {
        let length = into.len().min(self.0.len());
        into[..length].copy_from_slice(&self.0[..length]);
    }

    fn pass(&mut self) -> io::Result<()> {
        // While the machine is not protected, frames do not come here.
        Ok(())
    }
}

/// Sends a frame now and then, as a guest that answers does: at moments that have nothing to do
/// with the epochs.
fn send(life: &Life, stop: &Arc<AtomicBool>) -> thread::JoinHandle<()> {
    let (outlet, stop) = (life.outlet(), Arc::clone(stop));
    thread::spawn(move || {
        let mut jitter = 0u64;
        while !stop.load(Ordering::Relaxed) {
            // 5 to 13 ms, in an order without a pattern that the epochs could follow.
            jitter = (jitter * 5 + 3) % 8192;
            thread::sleep(Duration::from_millis(5) + Duration::from_micros(jitter));
            outlet.send(0, &mut Frame([0; 72]));
        }
    })
}

/// The guest's rounds in a second.
fn rate(life: &Life, time: Duration) -> f64 {
    let (before, begun) = (life.rounds(), Instant::now());
    thread::sleep(time);
    // A few million at most.
    #[allow(clippy::cast_precision_loss)]
    let rounds = (life.rounds() - before) as f64;
    rounds / begun.elapsed().as_secs_f64()
}

/// Nothing where the pair did not stay a pair.
fn measure(case: Case, time: Duration) -> Option<Seen> {
    let (mut wire, far) = io::pipe().expect("a pipe");
    let drain = thread::spawn(move || {
        let mut bytes = [0; 4096];
        while wire.read(&mut bytes).is_ok_and(|count| count > 0) {}
    });
    let tiny = Tiny {
        vcpus: case.vcpus,
        memory: case.memory,
        pages: case.pages.max(1).div_ceil(case.vcpus.into()),
        stride: 1,
        first_page: 1024,
        // A round takes about a millisecond, or as long as its pages do.
        wait: 1_000_000,
    };
    let pauses = alone::pauses(&tiny, time / 2).expect("there is a /dev/kvm");
    let bench = Bench::with(Options {
        tiny,
        insecure: !case.tls,
        // Nobody is to take over here, however busy the computer is: what is measured are the epochs.
        timing: Timing {
            heartbeat: Duration::from_millis(50),
            t_p: Duration::from_millis(700),
            t_a: Duration::from_millis(800),
            t_b: Duration::from_secs(1),
            t_b_max: Duration::from_secs(1),
            stall: Duration::from_millis(500),
            ..Timing::default()
        },
        wire: Some(TapWriter::new(File::from(OwnedFd::from(far)))),
        rehearse: None,
    })
    .expect("there is a /dev/kvm");
    let first = bench.start(0);
    first.running(LONG);
    let alone = rate(&first, time / 4);
    let second = bench.start(1);
    first.until(LONG, |report| matches!(report, Report::Protected(true)));
    let stop = Arc::new(AtomicBool::new(false));
    let sender = send(&first, &stop);
    thread::sleep(time / 4);
    first.engine().clear_timing();
    let before = first.status();
    let protected = rate(&first, time);
    let after = first.status();
    let times = first.engine().timing();
    stop.store(true, Ordering::Relaxed);
    sender.join().expect("no panic");

    let term = |status: &Status| (status.host.term, status.host.protected_since.is_some());
    // Where other programs keep this one from its processors, the backup takes over: then nothing
    // was measured.
    let whole = term(&before) == term(&after) && after.host.protected_since.is_some();
    let seen = whole.then_some(Seen {
        times,
        before,
        after,
        speed: protected / alone,
        pauses,
    });
    second.vanish();
    first.vanish();
    drop(bench);
    drain.join().expect("no panic");
    seen
}

/// What was seen of one case.
struct Seen {
    times: Vec<PhaseTimes>,
    before: Status,
    after: Status,
    speed: f64,
    /// Of the machine alone, rising.
    pauses: Vec<Duration>,
}

impl Seen {
    /// A quantile of the pauses of the machine alone.
    fn alone(&self, permille: usize) -> Option<f64> {
        let last = self.pauses.len().checked_sub(1)?;
        Some(micros(self.pauses[last * permille / 1000]))
    }

    fn print(&self, case: Case, time: Duration) {
        let name = format!(
            "{} pages, {} MiB, {} vCPU{}",
            case.pages,
            case.memory >> 20,
            case.vcpus,
            if case.tls { "" } else { ", plain text" }
        );
        for phase in &self.times {
            let quantiles = [
                ("p50", phase.p50, 500),
                ("p99", phase.p99, 990),
                ("p99.9", phase.p999, 999),
                ("max", phase.max, 1000),
            ];
            for (quantile, time, permille) in quantiles {
                let what = format!("{} {quantile}", phase.phase.name());
                let peer = (phase.phase == Phase::Pause).then(|| self.alone(permille));
                let goal = target(case, phase.phase, quantile);
                row(&name, &what, "µs", micros(time), goal, peer.flatten());
            }
        }
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
        let ratio = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
        let pages = self.after.sent_pages - self.before.sent_pages;
        let bytes = self.after.sent_bytes - self.before.sent_bytes;
        let epochs = self.after.epochs - self.before.epochs;
        row(
            &name,
            "epochs",
            "1/s",
            ratio(epochs, 1) / time.as_secs_f64(),
            None,
            None,
        );
        row(
            &name,
            "dirty pages an epoch",
            "",
            ratio(pages, epochs),
            None,
            None,
        );
        let goal = (case.pages >= 50).then_some(60.0);
        row(
            &name,
            "on the wire, a page",
            "bytes",
            ratio(bytes, pages),
            goal,
            None,
        );
        row(
            &name,
            "guest's speed against unprotected",
            "",
            self.speed,
            None,
            None,
        );
    }
}

/// What is to be reached (plain KVM).
fn target(case: Case, phase: Phase, quantile: &str) -> Option<f64> {
    match (phase, case.pages, quantile) {
        (Phase::Pause, 500, "p50") => Some(300.0),
        (Phase::Pause, 500, "p99") => Some(1000.0),
        (Phase::Pause, 50, "p50") => Some(150.0),
        (Phase::Release, 50, "p50") if case.tls => Some(1000.0),
        _ => None,
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn row(case: &str, what: &str, unit: &str, value: f64, target: Option<f64>, peer: Option<f64>) {
    let text = |number: Option<f64>| number.map_or_else(String::new, |number| number.to_string());
    let (target, peer) = (text(target), text(peer));
    println!("{case}: {what}\t{unit}\t{value}\t{target}\t{peer}");
}

fn main() {
    if !std::path::Path::new("/dev/kvm").exists() {
        eprintln!("there is no /dev/kvm here: nothing is measured");
        return;
    }
    let quick = std::env::args().any(|argument| argument == "--quick");
    let time = Duration::from_secs(if quick { 2 } else { 8 });
    let base = Case {
        pages: 500,
        memory: 256 << 20,
        vcpus: 1,
        tls: true,
    };
    let mut cases = vec![base, Case { pages: 50, ..base }];
    if !quick {
        cases.extend([0, 5000, 50_000].map(|pages| Case { pages, ..base }));
        cases.extend([1 << 30, 4 << 30].map(|memory| Case { memory, ..base }));
        cases.push(Case { vcpus: 2, ..base });
        cases.push(Case { tls: false, ..base });
    }
    cases.push(Case {
        pages: 50,
        tls: false,
        ..base
    });
    for case in cases {
        let Some(seen) = (0..ATTEMPTS).find_map(|_| measure(case, time)) else {
            eprintln!(
                "the pair did not stay a pair in {ATTEMPTS} attempts: this computer is too busy to measure"
            );
            std::process::exit(1);
        };
        seen.print(case, time);
    }
}
