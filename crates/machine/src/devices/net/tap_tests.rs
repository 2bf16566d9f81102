//! Real taps and bridges, each test in a network namespace of its own that goes with its thread.

use super::*;
use crate::config::Nic;
use std::process::Command;

/// Runs `test` where nothing outside can be reached or changed. Making a namespace needs a privilege; without it the
/// test says so and is not run.
fn alone(test: fn()) {
    let thread = std::thread::spawn(move || {
        // SAFETY: no pointers are involved; only this thread changes its namespace.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
            eprintln!(
                "not run: no network namespace of its own: {}",
                io::Error::last_os_error()
            );
            return;
        }
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn nic(bridge: Option<&str>) -> Nic {
    Nic {
        tap: "t0".into(),
        bridge: bridge.map(Into::into),
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 9000,
        offload: true,
    }
}

/// A tap as a machine that runs at once has it.
fn opened(nic: &Nic) -> Result<Tap, Error> {
    let tap = Tap::new(nic, false)?;
    open(&nic.tap)?;
    Ok(tap)
}

/// Asks `ip` in this thread's namespace.
fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .unwrap();
    assert!(output.status.success(), "ip {arguments}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_tap_is_made_joined_brought_up_and_gone_at_the_end() {
    alone(|| {
        ip("link add br0 type bridge");
        let mut tap = opened(&nic(Some("br0"))).unwrap();
        let link = ip("-o -d link show t0");
        for part in [
            "mtu 9000",
            "master br0",
            "tun type tap",
            "vnet_hdr on",
            "pi off",
        ] {
            assert!(link.contains(part), "{part}: {link}");
        }
        assert!(link.contains(",UP"), "{link}");
        for ecn in [true, false] {
            tap.set_offload(Offload {
                checksum: true,
                tso4: true,
                tso6: true,
                ecn,
            })
            .unwrap();
        }
        drop(tap);
        assert!(
            !ip("-o link").contains("t0"),
            "the tap goes with the process"
        );
    });
}

#[test]
fn frames_pass_in_both_directions_with_their_headers() {
    alone(|| {
        let mut one = opened(&nic(None)).unwrap();
        ip("link add br0 type bridge forward_delay 0");
        ip("link set br0 up");
        ip("link set t0 master br0");
        // A tap that is in its bridge already stays there; one that is in another does not change.
        let socket = control_socket().unwrap();
        join(&socket, "t0", "br0").unwrap();
        ip("link add br1 type bridge");
        let error = join(&socket, "t0", "br1").unwrap_err().to_string();
        assert!(error.contains("belongs to another bridge"), "{error}");
        assert!(ip("-o link show t0").contains("master br0"));
        let mut second = nic(Some("br0"));
        second.tap = "t1".into();
        let mut two = opened(&second).unwrap();
        let ram = super::super::super::testing::memory();
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, 9, 0x88, 0xb5]);
        frame.extend([7; 1000]);
        let mut buffer = [0; 2048];
        super::super::super::testing::until("the frame comes out of the other tap", || {
            let mut parts = Vec::new();
            let span = super::super::Span {
                address: vm_memory::GuestAddress(0x1000),
                length: frame.len() as u32,
            };
            vm_memory::Bytes::write_slice(&ram, &frame, span.address).unwrap();
            super::super::super::ring::slices(&ram, [span], 0, &mut parts).unwrap();
            one.send(&[0; HEADER], &parts).unwrap();
            // Other frames (the host's own multicast) may come first.
            while let Ok(length) = two.receive_copy(&mut buffer) {
                if buffer[HEADER..length] == frame[..] {
                    return true;
                }
            }
            false
        });
    });
}

#[test]
fn a_shut_tap_is_down_and_empty_until_it_is_opened() {
    alone(|| {
        // As an operator may have left it: up, and in a bridge that carries traffic.
        ip("link add br0 type bridge forward_delay 0");
        ip("link set br0 up");
        ip("tuntap add t0 mode tap vnet_hdr");
        ip("link set t0 master br0 up");
        let mut other = nic(Some("br0"));
        other.tap = "t1".into();
        let sender_tap = opened(&other).unwrap();
        let sender = sender_tap.writer().unwrap();
        let mut frame = vec![0; HEADER];
        frame.extend([0xff; 6]);
        frame.extend([2, 0, 0, 0, 0, 9, 0x88, 0xb5]);
        frame.extend([7; 100]);
        // Reads until nothing waits: whether that frame was among what came.
        let arrived = |tap: &mut Tap| {
            let mut buffer = [0; 2048];
            let mut seen = false;
            while let Ok(length) = tap.receive_copy(&mut buffer) {
                seen |= buffer[HEADER..length] == frame[HEADER..];
            }
            seen
        };
        let mut up = Tap::new(&nic(Some("br0")), false).unwrap();
        super::super::super::testing::until("a tap that is up collects frames", || {
            sender.write(&frame).unwrap();
            arrived(&mut up)
        });
        sender.write(&frame).unwrap();
        super::super::super::testing::until("a frame waits", || {
            let mut poll = libc::pollfd {
                fd: up.fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: poll reads and writes one pollfd.
            unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
        });
        up.shut(&control_socket().unwrap()).unwrap();
        let none = up.receive_copy(&mut [0; 2048]).unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock, "it was dropped");
        drop(up);
        ip("link set t0 up");
        let mut shut = Tap::new(&nic(Some("br0")), true).unwrap();
        assert!(!ip("-o link show t0").contains(",UP"));
        let writer = shut.writer().unwrap();
        let refused = writer.write(&frame).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EIO));
        sender.write(&frame).unwrap();
        assert!(!arrived(&mut shut), "no stale frame waits in it");
        open("t0").unwrap();
        open("t0").unwrap();
        assert!(ip("-o link show t0").contains(",UP"));
        writer.write(&frame).unwrap();
        super::super::super::testing::until("frames pass again", || {
            sender.write(&frame).unwrap();
            arrived(&mut shut)
        });
    });
}

#[test]
fn a_tap_that_was_deleted_is_missed_also_when_another_has_its_name() {
    alone(|| {
        let shut = Tap::new(&nic(None), true).unwrap();
        let writer = shut.writer().unwrap();
        check_attached("t0", &writer).unwrap();
        ip("link delete t0");
        let error = check_attached("t0", &writer).unwrap_err().to_string();
        assert!(error.contains("tap t0 has been deleted"), "{error}");
        ip("tuntap add t0 mode tap vnet_hdr");
        assert!(check_attached("t0", &writer).is_err());
    });
}

#[test]
fn what_is_missing_or_wrong_is_told_by_name() {
    alone(|| {
        let refused = |nic: &Nic| opened(nic).map(|_| ()).unwrap_err().to_string();
        let error = refused(&nic(Some("nobridge")));
        assert!(
            error.contains("no bridge nobridge") && error.contains("ip link add"),
            "{error}"
        );
        let error = refused(&nic(Some("lo")));
        assert!(error.contains("lo is no bridge"), "{error}");
        let mut long = nic(None);
        long.tap = "a-name-of-sixteen".into();
        assert!(refused(&long).contains("1 to 15 bytes"));
        let mut other = nic(None);
        other.tap = "lo".into();
        let error = refused(&other);
        assert!(error.contains("lo cannot be opened as a tap"), "{error}");
    });
}

#[test]
fn a_busy_tap_is_waited_for_as_long_as_a_dying_process_needs() {
    alone(|| {
        let first = opened(&nic(None)).unwrap();
        let started = Instant::now();
        let error = opened(&nic(None)).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("in use by another process"), "{error}");
        assert!(started.elapsed() >= BUSY_MAX);
        let closer = std::thread::spawn(move || {
            // Held for a while, as by a process that is being killed; the other side must bridge this time.
            std::thread::sleep(Duration::from_millis(100));
            drop(first);
        });
        opened(&nic(None)).unwrap();
        closer.join().unwrap();
    });
}
