//! What hosts on this computer are to be made of.

use std::env;
use std::fs;
use std::ptr;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};

use crate::config::Kind;

/// Overrides what [`detect`] finds out: `qemu` or `namespaces`.
const OVERRIDE: &str = "ROMULUS_LAB";

/// How often the guest of the trial goes round.
const ROUNDS: u32 = 100_000;

/// How long that may take. A processor that runs it by itself needs a tenth of a millisecond, one that emulates every instruction
/// hundreds.
const AT_SPEED: Duration = Duration::from_millis(10);

/// When the trial is given up.
const GIVEN_UP: Duration = Duration::from_secs(5);

/// Finds out what hosts on this computer are made of: namespaces where its own KVM runs a stock kernel at speed, QEMU
/// elsewhere. The environment variable `ROMULUS_LAB` (`qemu` or `namespaces`) overrides it.
///
/// # Errors
/// Where `ROMULUS_LAB` says anything else.
pub fn detect() -> Result<Kind> {
    chosen(env::var(OVERRIDE).ok().as_deref(), || own_kvm().is_ok())
}

fn chosen(wish: Option<&str>, kvm_is_real: impl FnOnce() -> bool) -> Result<Kind> {
    match wish {
        Some("qemu") => Ok(Kind::Qemu),
        Some("namespaces") => Ok(Kind::Namespaces),
        None | Some("") => Ok(if kvm_is_real() {
            Kind::Namespaces
        } else {
            Kind::Qemu
        }),
        Some(other) => bail!("{OVERRIDE}={other}: it can be qemu or namespaces"),
    }
}

/// Whether this computer's own KVM runs a stock kernel at speed.
///
/// # Errors
/// Where it does not; the text says why.
pub fn own_kvm() -> Result<()> {
    let processor = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    ensure!(
        virtualises(&processor),
        "the processor has neither vmx nor svm"
    );
    let kvm = Kvm::new().context("cannot open /dev/kvm")?;
    let (done, wait) = channel();
    // On a thread, because a guest that does not get on cannot be called back; if so, the thread is left behind.
    thread::Builder::new()
        .name("trial".into())
        .spawn(move || done.send(trial(&kvm)))?;
    let time = wait
        .recv_timeout(GIVEN_UP)
        .context("a tiny guest does not end")??;
    ensure!(
        time <= AT_SPEED,
        "{ROUNDS} rounds of a tiny guest take {time:?}: privileged code is emulated"
    );
    Ok(())
}

fn virtualises(processor: &str) -> bool {
    let mut flags = processor
        .lines()
        .filter(|line| line.starts_with("flags"))
        .flat_map(str::split_whitespace);
    flags.any(|flag| flag == "vmx" || flag == "svm")
}

/// Memory for the trial's guest: one page.
struct Page(*mut libc::c_void);

const PAGE: usize = 4096;

impl Page {
    fn new(content: &[u8]) -> Result<Self> {
        ensure!(content.len() <= PAGE, "more than a page");
        // SAFETY: a new private mapping of this process, which nothing else knows of.
        let page = unsafe {
            libc::mmap(
                ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        ensure!(page != libc::MAP_FAILED, "no memory for a tiny guest");
        // SAFETY: the mapping is a page long, the content is no longer than that, and they do not overlap.
        unsafe { ptr::copy_nonoverlapping(content.as_ptr(), page.cast(), content.len()) };
        Ok(Self(page))
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and the machine that used it is gone.
        unsafe { libc::munmap(self.0, PAGE) };
    }
}

/// Runs a guest in real mode, at the highest privilege, that counts down and halts; tells how long it took.
fn trial(kvm: &Kvm) -> Result<Duration> {
    // mov ecx, ROUNDS; again: dec ecx; jnz again; hlt
    let mut code = vec![0x66, 0xb9];
    code.extend_from_slice(&ROUNDS.to_le_bytes());
    code.extend_from_slice(&[0x66, 0x49, 0x75, 0xfc, 0xf4]);
    let page = Page::new(&code)?;
    let machine = kvm.create_vm()?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: PAGE as u64,
        userspace_addr: page.0 as u64,
    };
    // SAFETY: the page outlives the machine, and nothing else uses it meanwhile.
    unsafe { machine.set_user_memory_region(region)? };
    let processor = machine.create_vcpu(0)?;
    let time = count_down(processor);
    drop(machine);
    drop(page);
    time
}

fn count_down(mut processor: VcpuFd) -> Result<Duration> {
    let mut segments = processor.get_sregs()?;
    segments.cs.base = 0;
    segments.cs.selector = 0;
    processor.set_sregs(&segments)?;
    let mut registers = processor.get_regs()?;
    registers.rip = 0;
    registers.rflags = 2;
    processor.set_regs(&registers)?;
    let started = Instant::now();
    match processor.run()? {
        VcpuExit::Hlt => Ok(started.elapsed()),
        exit => bail!("a tiny guest ended with {exit:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_not_questioned() {
        assert_eq!(chosen(Some("qemu"), || true).unwrap(), Kind::Qemu);
        assert_eq!(
            chosen(Some("namespaces"), || false).unwrap(),
            Kind::Namespaces
        );
        assert!(
            chosen(Some("xen"), || true)
                .unwrap_err()
                .to_string()
                .contains("xen")
        );
    }

    #[test]
    fn without_a_wish_the_trial_decides() {
        assert_eq!(chosen(None, || true).unwrap(), Kind::Namespaces);
        assert_eq!(chosen(Some(""), || false).unwrap(), Kind::Qemu);
    }

    #[test]
    fn the_processors_flags_are_read_as_words() {
        assert!(virtualises("processor : 0\nflags\t\t: fpu vmx sse\n"));
        assert!(virtualises("flags : svm\n"));
        assert!(!virtualises(
            "flags : fpu svm_lock sse\nbugs : vmx\nmodel name : svm\n"
        ));
    }

    #[test]
    fn the_trial_ends_with_a_time_or_a_reason() {
        // What it is depends on the computer; that it comes does not. Where there is a KVM of any kind, the guest halts.
        match Kvm::new() {
            Ok(kvm) => assert!(trial(&kvm).unwrap() > Duration::ZERO),
            Err(_) => assert!(own_kvm().is_err()),
        }
    }
}
