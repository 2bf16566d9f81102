//! Promises that only whole engines can break. Each test was seen to fail without its guard; see
//! `docs/guards.md`. Where there is no `/dev/kvm`, they say so and pass.

#[path = "pair/bench.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod bench;

use bench::{Bench, Options};
use romulus_engine::{Report, WritableDisk};
use romulus_machine::tiny::Tiny;
use romulus_network::{Mode, mode::default_rules};
use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    sync::mpsc,
    thread,
    time::Duration,
};

const LONG: Duration = Duration::from_secs(30);
/// Twice as long as a cold claim waits.
const NEVER: Duration = Duration::from_secs(4);

#[test]
fn a_machine_starts_from_its_disk_only_when_the_sidecar_says_so_durably() {
    let Some(bench) = Bench::new() else { return };
    // In the way of every new sidecar.
    let obstacle = bench.state(0).join("sidecar.new");
    fs::create_dir(&obstacle).unwrap();
    let first = bench.start(0);
    assert!(first.stays_idle(NEVER));
    fs::remove_dir(&obstacle).unwrap();
    first.running(LONG);
}

#[test]
fn a_host_whose_sidecar_cannot_be_kept_is_not_filled() {
    let Some(bench) = Bench::new() else { return };
    let first = bench.start(0);
    first.running(LONG);
    fs::create_dir(bench.state(1)).unwrap();
    let obstacle = bench.state(1).join("sidecar.new");
    fs::create_dir(&obstacle).unwrap();
    let second = bench.start(1);
    second.wait(LONG, |status| status.partner.is_some());
    thread::sleep(NEVER / 4);
    let copied = first.status().copied;
    assert!(copied.is_none_or(|(done, _)| done == 0), "{copied:?}");
    fs::remove_dir(&obstacle).unwrap();
    first.until(LONG, |report| matches!(report, Report::Protected(true)));
}

#[test]
fn a_host_that_is_not_alike_is_refused_with_what_differs() {
    let Some(bench) = Bench::new() else { return };
    let tiny = Options::default().tiny;
    let first = bench.start(0);
    first.running(LONG);
    let others = [
        (
            "bytes of memory",
            Tiny {
                memory: tiny.memory * 2,
                ..tiny.clone()
            },
        ),
        ("vCPUs", Tiny { vcpus: 2, ..tiny }),
    ];
    for (what, tiny) in others {
        let second = bench.start_with(1, tiny, Vec::new());
        let told = |report: &Report| matches!(report, Report::Notice(text) if text.contains(what));
        second.until(LONG, told);
        assert_eq!(second.status().partner, None);
        assert_eq!(first.status().partner, None);
        second.vanish();
    }
}

/// A backup that takes a closed connection for an end, beside a primary that goes on sending media, would be a second runner.
#[test]
fn a_host_that_holds_other_output_is_refused() {
    let Some(bench) = Bench::new() else { return };
    let first = bench.start(0);
    first.running(LONG);
    let split = Mode::Split(default_rules());
    let second = bench.start_as(1, Options::default().tiny, Vec::new(), split);
    let told = |report: &Report| matches!(report, Report::Notice(text) if text.contains("`mode`"));
    second.until(LONG, told);
    assert_eq!(second.status().partner, None);
}

#[test]
fn a_host_is_not_its_own_partner() {
    let options = Options {
        insecure: true,
        ..Options::default()
    };
    let Some(bench) = Bench::with(options) else {
        return;
    };
    // Whoever sits at the partner's address says what he is told.
    let listener = TcpListener::bind(bench.link(0)).unwrap();
    let (said, heard) = mpsc::channel();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut bytes) {
            stream.write_all(&bytes[..length]).unwrap();
        }
        said.send(()).unwrap();
    });
    let second = bench.start(1);
    // It hangs up.
    heard.recv_timeout(LONG).unwrap();
    assert_eq!(second.status().partner, None);
}

#[test]
fn a_machine_is_not_protected_before_its_disks_are_copied() {
    let Some(bench) = Bench::new() else { return };
    let path = bench.state(0).join("image");
    fs::write(&path, [1; 4096]).unwrap();
    let disk = WritableDisk { disk: 0, path };
    let first = bench.start_with(0, Options::default().tiny, vec![disk]);
    first.running(LONG);
    // It has no such disk, and never says what it holds.
    let second = bench.start(1);
    first.wait(LONG, |status| {
        status.copied.is_some_and(|(done, all)| done == all) && second.status().host.epoch.0 > 0
    });
    let before = first.status().epochs;
    first.wait(LONG, |status| status.epochs > before + 20);
    assert!(!second.status().host.whole);
    assert_eq!(first.status().protected_for, None);
}

#[test]
fn what_takes_over_has_all_of_memory() {
    // Written once, then not for a long time: nothing but the full copy has it.
    let options = Options {
        tiny: Tiny {
            pages: 3000,
            stride: 9,
            wait: u32::MAX,
            ..Options::default().tiny
        },
        ..Options::default()
    };
    let Some(bench) = Bench::with(options) else {
        return;
    };
    let first = bench.start(0);
    first.running(LONG);
    let second = bench.start(1);
    first.until(LONG, |report| matches!(report, Report::Protected(true)));
    first.vanish();
    let (_, taken) = second.running(LONG);
    assert!(taken);
    assert_eq!(second.began_whole(), Ok(()));
}
