//! Going inside: the whole lab runs in a process that has first made namespaces of its own.
//!
//! Then no mistake can send a packet to a real network, root is needed for nothing, and everything goes when the process goes:
//! the first process of the PID namespace is the lab's, and the kernel kills all others with it.

use std::any::type_name;
use std::env;
use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::process;
use std::ptr;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, WaitOptions};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::namespace::{First, Identity, Mount};

/// Set inside, to the network namespace that was left.
const MARK: &str = "ROMULUS_LAB_OUTSIDE";

/// Set inside, to what was prepared outside.
const PREPARED: &str = "ROMULUS_LAB_PREPARED";

/// What was prepared outside, and what it is.
#[derive(Serialize, Deserialize)]
struct Prepared<T> {
    what: String,
    value: T,
}

/// Goes on inside the lab's namespaces.
///
/// Outside, `prepare` gets ready what needs the computer's network or takes long (packages, downloads, builds). Then this
/// same program, with the same arguments, is started again as part of new user (unless root), network, mount, PID, UTS and IPC
/// namespaces, and this function never returns: it waits, passes on the signals that it gets, and ends with the inner
/// program's exit code. When either process ends, however it ends, the other does, and everything inside with it.
///
/// Inside, it returns what `prepare` gave outside. Call it early: whatever the program did before, it does twice.
///
/// # Errors
/// Those of `prepare`; where the kernel does not let this user make namespaces.
pub fn inside<T: Serialize + DeserializeOwned>(prepare: impl FnOnce() -> Result<T>) -> Result<T> {
    if is_inside() {
        // A program that was started inside by another one may have been prepared for something else.
        let prepared = env::var(PREPARED)
            .ok()
            .and_then(|text| serde_json::from_str::<Prepared<T>>(&text).ok());
        return match prepared {
            Some(prepared) if prepared.what == type_name::<T>() => Ok(prepared.value),
            _ => prepare(),
        };
    }
    let prepared = Prepared {
        what: type_name::<T>().into(),
        value: prepare()?,
    };
    let code = run_inside(&serde_json::to_string(&prepared)?)?;
    process::exit(code)
}

/// Whether this process runs inside the lab's namespaces already.
pub fn is_inside() -> bool {
    check().is_ok()
}

/// Refuses to go on where this process could reach a network that is not the lab's.
///
/// # Errors
/// Outside the lab's namespaces, or where an interface other than the loopback one is up before the lab made any.
pub(crate) fn guard() -> Result<()> {
    check()?;
    let up = interfaces_up()?;
    ensure!(
        up.is_empty(),
        "refusing to make a lab here: this network namespace is in use already ({} is up)",
        up.join(", ")
    );
    Ok(())
}

fn check() -> Result<()> {
    compare(
        env::var_os(MARK),
        fs::read_link("/proc/self/ns/net")
            .context("cannot see the own network namespace")?
            .as_os_str(),
    )
}

fn compare(outside: Option<OsString>, own: &std::ffi::OsStr) -> Result<()> {
    const REFUSED: &str =
        "refusing to make a lab in the computer's own network namespace: call lab::inside() first";
    let Some(outside) = outside else {
        bail!(REFUSED)
    };
    ensure!(outside != own, REFUSED);
    Ok(())
}

/// The interfaces that are up, the loopback interface left aside.
fn interfaces_up() -> Result<Vec<String>> {
    let mut up = Vec::new();
    for entry in fs::read_dir("/sys/class/net").context("cannot list the network's interfaces")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // bonding_masters is a file among the interfaces.
        let Ok(flags) = fs::read_to_string(entry.path().join("flags")) else {
            continue;
        };
        let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16)
            .with_context(|| format!("the flags of interface {name} are not understood"))?;
        if name != "lo" && flags & libc::IFF_UP.cast_unsigned() != 0 {
            up.push(name);
        }
    }
    up.sort();
    Ok(up)
}

/// Runs this program again, inside; returns its exit code.
fn run_inside(prepared: &str) -> Result<i32> {
    let outside =
        fs::read_link("/proc/self/ns/net").context("cannot see the own network namespace")?;
    let arguments = env::args_os()
        .map(|text| CString::new(text.as_bytes()))
        .collect::<Result<Vec<_>, _>>()?;
    let mut environment = Vec::new();
    for (name, value) in env::vars_os().filter(|(name, _)| name != MARK && name != PREPARED) {
        environment.push(CString::new(
            [name.as_bytes(), b"=", value.as_bytes()].concat(),
        )?);
    }
    environment.push(CString::new(
        [MARK.as_bytes(), b"=", outside.as_os_str().as_bytes()].concat(),
    )?);
    environment.push(CString::new(
        [PREPARED.as_bytes(), b"=", prepared.as_bytes()].concat(),
    )?);
    let arguments = pointers(&arguments);
    let environment = pointers(&environment);

    let signals = Passed::block()?;
    let mut work = || {
        // The first process of a PID namespace takes no signal that it has no handler for, and has to reap orphans: so
        // it does only that, and the program is its child.
        // SAFETY: without CLONE_VM and with no stack given this is fork(2); the child calls execve at once.
        let child = unsafe {
            libc::syscall(
                libc::SYS_clone,
                libc::SIGCHLD,
                0,
                ptr::null::<u8>(),
                ptr::null::<u8>(),
                0,
            )
        };
        if child == 0 {
            signals.restore();
            // SAFETY: both are arrays of strings that end with a null pointer and live until here.
            unsafe {
                libc::execve(
                    c"/proc/self/exe".as_ptr(),
                    arguments.as_ptr(),
                    environment.as_ptr(),
                )
            };
            return 127;
        }
        match i32::try_from(child).ok().and_then(Pid::from_raw) {
            Some(child) => signals.attend(child, true),
            None => 126,
        }
    };
    let first = First {
        identity: Identity::unless_root(),
        network: None,
        tied: true,
        mounts: vec![
            Mount::new("proc", "/proc", "")?,
            Mount::new("sysfs", "/sys", "")?,
            Mount::new("tmpfs", "/run", "mode=755")?,
        ],
        root: None,
        work: &mut work,
    };
    let child = first.start()?;
    Ok(signals.attend(child, false))
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|text| text.as_ptr())
        .chain([ptr::null()])
        .collect()
}

/// The signals that are passed on to a child, blocked meanwhile.
struct Passed {
    waited_for: libc::sigset_t,
    before: libc::sigset_t,
}

impl Passed {
    fn block() -> Result<Self> {
        let mut waited_for = MaybeUninit::uninit();
        let mut before = MaybeUninit::uninit();
        // SAFETY: sigemptyset makes the set whole before it is read; the mask of this thread alone changes, and
        // pthread_sigmask fills `before`.
        unsafe {
            libc::sigemptyset(waited_for.as_mut_ptr());
            for signal in [
                libc::SIGCHLD,
                libc::SIGINT,
                libc::SIGTERM,
                libc::SIGHUP,
                libc::SIGQUIT,
                libc::SIGUSR1,
                libc::SIGUSR2,
            ] {
                libc::sigaddset(waited_for.as_mut_ptr(), signal);
            }
            match libc::pthread_sigmask(libc::SIG_BLOCK, waited_for.as_ptr(), before.as_mut_ptr()) {
                0 => Ok(Self {
                    waited_for: waited_for.assume_init(),
                    before: before.assume_init(),
                }),
                error => {
                    Err(io::Error::from_raw_os_error(error)).context("cannot hold signals back")
                }
            }
        }
    }

    fn restore(&self) {
        // SAFETY: the set was filled by `block`.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut())
        };
    }

    /// Waits for `child`, passes on signals meanwhile, and returns its exit code as a shell would tell it.
    ///
    /// Makes system calls only, so that it may run after a fork.
    fn attend(&self, child: Pid, reap_all: bool) -> i32 {
        loop {
            while let Ok(Some((pid, status))) = rustix::process::waitpid(
                if reap_all { None } else { Some(child) },
                WaitOptions::NOHANG,
            ) {
                if pid == child {
                    return match (status.exit_status(), status.terminating_signal()) {
                        (Some(code), _) => code,
                        (None, Some(signal)) => 128 + signal,
                        (None, None) => 1,
                    };
                }
            }
            let mut info = MaybeUninit::<libc::siginfo_t>::uninit();
            // SAFETY: the set was filled by `block`; `info` is read only where the call filled it.
            let (signal, code) = unsafe {
                match libc::sigwaitinfo(&raw const self.waited_for, info.as_mut_ptr()) {
                    -1 => continue,
                    signal => (signal, info.assume_init_ref().si_code),
                }
            };
            // A terminal sends its signals to the child as well.
            if signal != libc::SIGCHLD
                && code != libc::SI_KERNEL
                && let Some(signal) = Signal::from_named_raw(signal)
            {
                let _ = rustix::process::kill_process(child, signal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn the_guard_refuses_the_computers_own_network() {
        // Tests run natively, so this is the real thing.
        let error = guard().unwrap_err().to_string();
        assert!(error.contains("own network namespace"), "{error}");
        assert!(!is_inside());
    }

    #[test]
    fn a_mark_alone_does_not_get_past_the_guard() {
        let own = fs::read_link("/proc/self/ns/net").unwrap();
        assert!(compare(Some(own.clone().into()), own.as_os_str()).is_err());
        assert!(compare(None, own.as_os_str()).is_err());
        assert!(compare(Some("net:[1]".into()), OsStr::new("net:[2]")).is_ok());
    }

    #[test]
    fn an_interface_that_is_up_is_seen() {
        // A computer that runs these tests without any network is a rare one, but it is one.
        let listed = interfaces_up().unwrap();
        let known = fs::read_dir("/sys/class/net").unwrap().count();
        assert!(listed.len() < known.max(1), "{listed:?}");
        assert!(!listed.contains(&"lo".to_string()));
    }
}
