//! What is said to be durable was synced, in the order that matters. A test cannot take the power
//! away, but it can look at the system calls.

use super::*;
use romulus_protocol::id::Incarnation;
use rustix::event::{PollFd, PollFlags, poll};
use std::{
    mem,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    sync::mpsc,
    thread,
};

/// Stops this thread's `fsync` and `fdatasync` until somebody who reads from the descriptor lets
/// them go on. Nothing where the kernel does not let us.
fn watched() -> Option<OwnedFd> {
    let number = |call: libc::c_long| u32::try_from(call).unwrap();
    let load = u16::try_from(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS).unwrap();
    let equal = u16::try_from(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K).unwrap();
    let end = u16::try_from(libc::BPF_RET | libc::BPF_K).unwrap();
    let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let mut filter = [
        // The call's number is the first field of what the filter sees.
        step(load, 0, 0, 0),
        step(equal, number(libc::SYS_fsync), 1, 0),
        step(equal, number(libc::SYS_fdatasync), 0, 1),
        step(end, libc::SECCOMP_RET_USER_NOTIF, 0, 0),
        step(end, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).unwrap(),
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: both calls concern this thread only; the program is valid while they last.
    let fd = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the kernel has just made it for us.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What `work` syncs: each file by the name that it has at that moment. Nothing where the kernel
/// does not let us look.
pub(crate) fn syncs(work: impl FnOnce() + Send) -> Option<Vec<PathBuf>> {
    thread::scope(|scope| {
        let (sender, listener) = mpsc::channel();
        let worker = scope.spawn(move || {
            let watched = watched();
            let there = watched.is_some();
            sender.send(watched).unwrap();
            if there {
                work();
            }
        });
        let Some(listener) = listener.recv().unwrap() else {
            eprintln!("skipped: system calls cannot be watched here");
            return None;
        };
        let mut seen = Vec::new();
        loop {
            let mut polled = [PollFd::new(&listener, PollFlags::IN)];
            poll(&mut polled, None).unwrap();
            // The thread has ended.
            if !polled[0].revents().contains(PollFlags::IN) {
                break;
            }
            // SAFETY: zeroes are a value of these plain structures, and what the kernel wants.
            let (mut call, mut answer) = unsafe {
                (
                    mem::zeroed::<libc::seccomp_notif>(),
                    mem::zeroed::<libc::seccomp_notif_resp>(),
                )
            };
            let fd = listener.as_raw_fd();
            // SAFETY: the structure is valid for the call.
            let got = unsafe { libc::ioctl(fd, libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) };
            assert_eq!(got, 0);
            let name = format!("/proc/self/fd/{}", call.data.args[0]);
            seen.push(fs::read_link(name).unwrap());
            answer.id = call.id;
            answer.flags = u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).unwrap();
            // SAFETY: as above.
            let sent = unsafe { libc::ioctl(fd, libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer) };
            assert_eq!(sent, 0);
        }
        worker.join().unwrap();
        Some(seen)
    })
}

#[test]
fn a_sidecar_is_synced_before_it_has_its_name_and_its_name_after() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().canonicalize().unwrap();
    let sidecar = Sidecar::of(MachineId(7), Incarnation::new(9).unwrap());
    let Some(seen) = syncs(|| store(&state, &sidecar).unwrap()) else {
        return;
    };
    assert_eq!(seen, [state.join("sidecar.new"), state]);
}
