//! The loop that runs a vCPU and answers its exits.

use super::{Vcpu, gate::Gate};
use crate::{chipset::Chipset, devices::Devices, exit::Exit};
use kvm_bindings::{KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::VcpuExit;
use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// What lies around the vCPUs: who answers their exits.
#[derive(Clone)]
pub(crate) struct Bus {
    pub(crate) chipset: Arc<Chipset>,
    pub(crate) devices: Arc<Devices>,
}

/// What to do after an exit was answered.
enum Next {
    Enter,
    Interrupted,
    Stop(Exit),
    Fail(String),
}

/// Runs the guest until there is an order newer than `seen`. `Err` says why the machine must stop instead.
///
/// It returns only when `KVM_RUN` was interrupted: by then KVM has finished the port or memory access that the last
/// exit was about, so that the registers are whole.
pub(super) fn run(
    vcpu: &mut Vcpu,
    bus: &Bus,
    gate: &Gate,
    seen: u64,
    exits: &AtomicU64,
) -> Result<(), Exit> {
    loop {
        let next = enter(vcpu, bus);
        // One writer: no need for an exchange between processors.
        exits.store(exits.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        match next {
            Next::Interrupted if gate.is_newer(seen) => return Ok(()),
            Next::Enter | Next::Interrupted => {}
            Next::Stop(exit) => return Err(exit),
            Next::Fail(why) => return Err(Exit::Failed(describe(vcpu, &why))),
        }
    }
}

/// Enters the guest once and answers its exit.
fn enter(vcpu: &mut Vcpu, bus: &Bus) -> Next {
    match vcpu.fd.run() {
        Ok(VcpuExit::MmioWrite(address, data)) => bus.devices.mmio_write(address, data),
        Ok(VcpuExit::MmioRead(address, data)) => bus.devices.mmio_read(address, data),
        Ok(VcpuExit::IoOut(port, data)) => {
            if let Some(exit) = bus.chipset.port_write(port, data) {
                return Next::Stop(exit);
            }
        }
        Ok(VcpuExit::IoIn(port, data)) => bus.chipset.port_read(port, data),
        Ok(VcpuExit::Intr) => return Next::Interrupted,
        // A triple fault: how x86 systems reset when nothing else works.
        Ok(VcpuExit::Shutdown) => return Next::Stop(Exit::Reset),
        Ok(VcpuExit::SystemEvent(event, _)) => match event {
            KVM_SYSTEM_EVENT_SHUTDOWN => return Next::Stop(Exit::PoweredOff),
            KVM_SYSTEM_EVENT_RESET => return Next::Stop(Exit::Reset),
            KVM_SYSTEM_EVENT_CRASH => return Next::Stop(Exit::Panicked),
            other => return Next::Fail(format!("KVM reports system event {other}")),
        },
        Ok(VcpuExit::FailEntry(reason, cpu)) => {
            return Next::Fail(format!(
                "the processor {cpu} refused to enter the guest (reason {reason:#x})"
            ));
        }
        Ok(VcpuExit::InternalError) => return Next::Fail("KVM internal error".into()),
        Ok(other) => return Next::Fail(format!("an exit that is not expected: {other:?}")),
        Err(error) if error.errno() == libc::EINTR => return Next::Interrupted,
        // A vCPU that waits for its start-up message was woken.
        Err(error) if error.errno() == libc::EAGAIN => {}
        Err(error) => return Next::Fail(format!("KVM_RUN: {error}")),
    }
    Next::Enter
}

/// Adds what helps to understand why a vCPU failed.
fn describe(vcpu: &mut Vcpu, why: &str) -> String {
    let mut text = format!("vCPU {}: {why}", vcpu.index);
    if why.starts_with("KVM internal") {
        // SAFETY: after an exit for an internal error, this member of the union is the one that was written.
        let internal = unsafe { vcpu.fd.get_kvm_run().__bindgen_anon_1.internal };
        let used = (internal.ndata as usize).min(internal.data.len());
        let _ = write!(
            text,
            " {} {:#x?}",
            internal.suberror,
            &internal.data[..used]
        );
    }
    match vcpu.fd.get_regs() {
        Ok(r) => {
            let _ = write!(
                text,
                "; rip {:#x} rflags {:#x} rsp {:#x} rax {:#x} rbx {:#x} rcx {:#x} rdx {:#x} rsi {:#x} rdi {:#x}",
                r.rip, r.rflags, r.rsp, r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi
            );
        }
        Err(error) => {
            let _ = write!(text, "; no registers: {error}");
        }
    }
    if let Ok(s) = vcpu.fd.get_sregs() {
        let _ = write!(
            text,
            " cs {:#x} cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x}",
            s.cs.selector, s.cr0, s.cr2, s.cr3, s.cr4, s.efer
        );
    }
    text
}
