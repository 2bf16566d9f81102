//! The whole state of one vCPU: saved and restored in the order that the kernel needs.

use super::msrs;
use crate::{
    Error,
    error::kvm,
    ioctl::{self, MsrBuffer, Sregs2, XSAVE_MIN},
    state::{Fields, Reader, StateError, kind},
};
use kvm_bindings::{
    CpuId, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_vcpu_events,
    kvm_xcrs,
};
use kvm_ioctls::{Cap, SyncReg, VcpuExit, VcpuFd, VmFd};
use std::{io, sync::Arc};
use zerocopy::IntoBytes;

/// Version of a vCPU's section.
pub(crate) const VERSION: u16 = 1;

/// What [`Vcpu::registers`] takes with one call: `KVM_SYNC_X86_REGS`, `…_SREGS` and `…_EVENTS`.
const TOGETHER: i32 = 0b111;
/// The same.
const SYNCED: [SyncReg; 3] = [
    SyncReg::Register,
    SyncReg::SystemRegister,
    SyncReg::VcpuEvents,
];

/// What the vCPUs of one machine have in common.
#[derive(Debug)]
pub(crate) struct Caps {
    /// Bytes of the extended processor state.
    pub(crate) xsave: usize,
    /// MSRs that are saved, in the order of restoring.
    pub(crate) msrs: Vec<u32>,
    /// All that KVM lists.
    listed: Vec<u32>,
    /// KVM gives registers and events with a return from `KVM_RUN`.
    together: bool,
}

impl Caps {
    /// Asks the host. `first` is the machine's first vCPU, with its CPUID set.
    pub(crate) fn new(vm: &VmFd, first: &VcpuFd, listed: &[u32]) -> Result<Self, Error> {
        let size = vm.check_extension_int(Cap::Xsave2);
        Ok(Self {
            xsave: usize::try_from(size)
                .unwrap_or(0)
                .max(XSAVE_MIN)
                .next_multiple_of(8),
            msrs: msrs::choose(first, listed).map_err(kvm("KVM_GET_MSRS"))?,
            listed: listed.to_vec(),
            together: vm.check_extension_int(Cap::SyncRegs) & TOGETHER == TOGETHER,
        })
    }
}

/// One vCPU with the room that saving it takes.
pub(crate) struct Vcpu {
    pub(crate) fd: VcpuFd,
    pub(crate) index: u8,
    caps: Arc<Caps>,
    msrs: MsrBuffer,
    xsave: Vec<u8>,
    /// The time stamp counter's rate, 0 if it is not known. Only restoring changes it, and each call counts in a pause.
    tsc_khz: u32,
}

impl Vcpu {
    pub(crate) fn new(fd: VcpuFd, index: u8, caps: Arc<Caps>) -> Self {
        Self {
            msrs: msrs::buffer(&caps.msrs),
            xsave: vec![0; caps.xsave],
            tsc_khz: fd.get_tsc_khz().unwrap_or(0),
            fd,
            index,
            caps,
        }
    }

    /// Changes what the guest sees of its processors, and with it the MSRs that it has. Only before it first runs.
    pub(crate) fn set_cpuid(&mut self, cpuid: &CpuId) -> Result<(), Error> {
        self.fd.set_cpuid2(cpuid).map_err(kvm("KVM_SET_CPUID2"))?;
        let chosen = msrs::choose(&self.fd, &self.caps.listed).map_err(kvm("KVM_GET_MSRS"))?;
        self.msrs = msrs::buffer(&chosen);
        self.caps = Arc::new(Caps {
            xsave: self.caps.xsave,
            msrs: chosen,
            listed: self.caps.listed.clone(),
            together: self.caps.together,
        });
        Ok(())
    }

    /// Moves the time stamp counter far from any that a guest has.
    ///
    /// KVM takes a counter that is written within a second of where the machine's last written one would be now for the
    /// same, and gives it that one's value instead. So state that is loaded after other state of the same guest would get a
    /// counter that is up to a second off, backwards as well. All vCPUs must be moved away before the first is restored;
    /// among those that are restored together, KVM's guess is what keeps them equal.
    pub(crate) fn forget_time(&mut self) -> Result<(), Error> {
        /// Decades of running, at any clock rate.
        const FAR: u64 = 1 << 62;
        let far = kvm_msr_entry {
            index: msrs::TSC,
            data: FAR,
            ..Default::default()
        };
        match ioctl::set_msrs(&self.fd, &MsrBuffer::new(&[far])) {
            Ok(1) => Ok(()),
            Ok(_) => Err(kvm("KVM_SET_MSRS")(io::Error::other(
                "the time stamp counter cannot be set",
            ))),
            Err(error) => Err(kvm("KVM_SET_MSRS")(error)),
        }
    }

    /// Writes the payload of this vCPU's section into `out`, which is emptied first.
    ///
    /// The multiprocessing state comes first, because reading it may still change others.
    pub(crate) fn save(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        out.clear();
        let mut put = |bytes: &[u8]| out.extend_from_slice(bytes);
        let mp_state = self.fd.get_mp_state().map_err(kvm("KVM_GET_MP_STATE"))?;
        put(mp_state.as_bytes());
        let (regs, sregs, events) = self.registers()?;
        let fd = &self.fd;
        put(regs.as_bytes());
        put(sregs.as_bytes());
        ioctl::get_xsave(fd, &mut self.xsave).map_err(kvm("KVM_GET_XSAVE2"))?;
        put(u32::try_from(self.xsave.len())
            .expect("a few pages")
            .as_bytes());
        put(&self.xsave);
        put(fd.get_xcrs().map_err(kvm("KVM_GET_XCRS"))?.as_bytes());
        put(fd
            .get_debug_regs()
            .map_err(kvm("KVM_GET_DEBUGREGS"))?
            .as_bytes());
        put(fd.get_lapic().map_err(kvm("KVM_GET_LAPIC"))?.as_bytes());
        let read = ioctl::get_msrs(fd, &mut self.msrs).map_err(kvm("KVM_GET_MSRS"))?;
        if let Some(index) = self.caps.msrs.get(read) {
            return Err(kvm("KVM_GET_MSRS")(io::Error::other(format!(
                "MSR {index:#x} is not readable any more"
            ))));
        }
        put(u32::try_from(read).expect("few MSRs").as_bytes());
        put(self.msrs.as_bytes());
        put(self.tsc_khz.as_bytes());
        put(events.as_bytes());
        Ok(())
    }

    /// The general and the special registers and the events, with one call where KVM can, because each costs microseconds of every
    /// pause: an entry that ends before it begins gives them with its return (`KVM_CAP_SYNC_REGS`). The vCPU must be parked.
    fn registers(&mut self) -> Result<(kvm_regs, Sregs2, kvm_vcpu_events), Error> {
        if self.caps.together {
            for part in SYNCED {
                self.fd.set_sync_valid_reg(part);
            }
            // It is set already, but for a vCPU that has never run; whoever lets it run clears it.
            self.fd.set_kvm_immediate_exit(1);
            let entered = match self.fd.run() {
                Ok(VcpuExit::Intr) => Ok(()),
                Err(error) if error.errno() == libc::EINTR => Ok(()),
                Err(error) => Err(io::Error::from_raw_os_error(error.errno())),
                Ok(_) => Err(io::Error::other("it entered the guest")),
            };
            for part in SYNCED {
                self.fd.clear_sync_valid_reg(part);
            }
            entered.map_err(kvm("KVM_RUN"))?;
            let synced = self.fd.sync_regs();
            // Only its own call gives what paging with PAE and 32 bits has besides.
            if let Some(sregs) = Sregs2::of(&synced.sregs) {
                return Ok((synced.regs, sregs, synced.events));
            }
        }
        let fd = &self.fd;
        Ok((
            fd.get_regs().map_err(kvm("KVM_GET_REGS"))?,
            ioctl::get_sregs2(fd).map_err(kvm("KVM_GET_SREGS2"))?,
            fd.get_vcpu_events().map_err(kvm("KVM_GET_VCPU_EVENTS"))?,
        ))
    }

    /// Takes a payload as [`Self::save`] writes it.
    pub(crate) fn restore(&mut self, fields: Fields<'_>) -> Result<(), Error> {
        let state = Parsed::read(fields, self.xsave.len())?;
        let fd = &self.fd;
        let here = self.tsc_khz;
        if state.tsc_khz != 0 && here != 0 && here != state.tsc_khz {
            // Within 250 ppm KVM takes any rate.
            fd.set_tsc_khz(state.tsc_khz).map_err(|errno| {
                kvm("KVM_SET_TSC_KHZ")(io::Error::other(format!(
                    "the guest's clock runs at {} kHz, this host's processor at {here} kHz and cannot scale it \
                     ({errno}): a pair needs processors of one rate, or such that scale (TSC_CONTROL in `romulus doctor`)",
                    state.tsc_khz
                )))
            })?;
            self.tsc_khz = state.tsc_khz;
        }
        ioctl::set_sregs2(fd, &state.sregs).map_err(kvm("KVM_SET_SREGS2"))?;
        fd.set_regs(&state.regs).map_err(kvm("KVM_SET_REGS"))?;
        self.xsave.copy_from_slice(state.xsave);
        ioctl::set_xsave(fd, &self.xsave).map_err(kvm("KVM_SET_XSAVE"))?;
        fd.set_xcrs(&state.xcrs).map_err(kvm("KVM_SET_XCRS"))?;
        fd.set_debug_regs(&state.debug)
            .map_err(kvm("KVM_SET_DEBUGREGS"))?;
        // After the special registers, which hold its base, and before the MSR of its timer.
        fd.set_lapic(&state.lapic).map_err(kvm("KVM_SET_LAPIC"))?;
        let set = ioctl::set_msrs(fd, &MsrBuffer::new(&state.msrs)).map_err(kvm("KVM_SET_MSRS"))?;
        if let Some(refused) = state.msrs.get(set) {
            return Err(kvm("KVM_SET_MSRS")(io::Error::other(format!(
                "this host's processor does not take {:#x} in MSR {:#x}",
                refused.data, refused.index
            ))));
        }
        fd.set_mp_state(state.mp).map_err(kvm("KVM_SET_MP_STATE"))?;
        // After the registers, whose setting clears pending exceptions.
        fd.set_vcpu_events(&state.events)
            .map_err(kvm("KVM_SET_VCPU_EVENTS"))
    }
}

/// Takes section `index` of the vCPUs.
pub(crate) fn section<'a>(reader: &mut Reader<'a>, index: u8) -> Result<Fields<'a>, StateError> {
    reader.section(kind::VCPU, index.into(), VERSION)
}

/// A payload, taken apart and checked before anything is set.
struct Parsed<'a> {
    mp: kvm_mp_state,
    regs: kvm_regs,
    sregs: Sregs2,
    xsave: &'a [u8],
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    tsc_khz: u32,
    events: kvm_vcpu_events,
}

impl<'a> Parsed<'a> {
    /// No host has more MSRs than this in its list.
    const MSRS_MAX: u32 = 1024;

    fn read(mut fields: Fields<'a>, xsave_here: usize) -> Result<Self, StateError> {
        let mp = fields.get()?;
        let regs = fields.get()?;
        let sregs = fields.get()?;
        let length: u32 = fields.get()?;
        if length as usize != xsave_here {
            return Err(fields.invalid(format!(
                "{length} bytes of extended processor state; this host's processors have {xsave_here}"
            )));
        }
        let xsave = fields.bytes(xsave_here)?;
        let xcrs = fields.get()?;
        let debug = fields.get()?;
        let lapic = fields.get()?;
        let count: u32 = fields.get()?;
        if count > Self::MSRS_MAX {
            return Err(fields.invalid(format!("{count} MSRs")));
        }
        let msrs = (0..count).map(|_| fields.get()).collect::<Result<_, _>>()?;
        let tsc_khz = fields.get()?;
        let events = fields.get()?;
        fields.finish()?;
        Ok(Self {
            mp,
            regs,
            sregs,
            xsave,
            xcrs,
            debug,
            lapic,
            msrs,
            tsc_khz,
            events,
        })
    }
}

/// Whether a payload is one where processors have `xsave` bytes of extended state.
#[cfg(feature = "fuzzing")]
pub(crate) fn check(fields: Fields<'_>, xsave: usize) -> Result<(), StateError> {
    Parsed::read(fields, xsave).map(|_| ())
}

/// Writes the payload of a vCPU that is all zeroes but for one MSR, with `xsave` bytes of extended state.
#[cfg(feature = "fuzzing")]
pub(crate) fn put_reset(payload: &mut crate::state::Payload<'_>, xsave: usize) {
    payload.put(&kvm_mp_state::default());
    payload.put(&kvm_regs::default());
    payload.put(&Sregs2::default());
    payload.put(&u32::try_from(xsave).expect("a few pages"));
    payload.put(&vec![0u8; xsave][..]);
    payload.put(&kvm_xcrs::default());
    payload.put(&kvm_debugregs::default());
    payload.put(&kvm_lapic_state::default());
    payload.put(&1u32);
    payload.put(&kvm_msr_entry {
        index: msrs::TSC,
        ..Default::default()
    });
    payload.put(&0u32);
    payload.put(&kvm_vcpu_events::default());
}

/// The time stamp counter in a payload.
#[cfg(test)]
pub(crate) fn counter(fields: &Fields<'_>) -> u64 {
    let room = fields.rest().len();
    let parsed = (XSAVE_MIN..room)
        .step_by(8)
        .find_map(|xsave| {
            let again = Fields::of(kind::VCPU, fields.name().index, fields.rest());
            Parsed::read(again, xsave).ok()
        })
        .expect("a payload of some size of extended state");
    parsed
        .msrs
        .iter()
        .find(|msr| msr.index == msrs::TSC)
        .expect("it is always saved")
        .data
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::registers::{CR0_ET, CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME};
    use std::time::{Duration, Instant};

    /// A vCPU that has never run; nothing where there is no KVM.
    fn vcpu() -> Option<(VmFd, Vcpu)> {
        let Ok(kvm) = kvm_ioctls::Kvm::new() else {
            eprintln!("skipped: there is no /dev/kvm here");
            return None;
        };
        let vm = kvm.create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        let fd = vm.create_vcpu(0).unwrap();
        let supported = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES);
        fd.set_cpuid2(&supported.unwrap()).unwrap();
        let caps = Caps::new(&vm, &fd, &[msrs::TSC]).unwrap();
        Some((vm, Vcpu::new(fd, 0, Arc::new(caps))))
    }

    /// That it takes its registers with one call, and that it takes them with three.
    fn ways(vcpu: &Vcpu) -> [Arc<Caps>; 2] {
        [true, false].map(|together| {
            Arc::new(Caps {
                together,
                xsave: vcpu.caps.xsave,
                msrs: vcpu.caps.msrs.clone(),
                listed: Vec::new(),
            })
        })
    }

    #[test]
    fn registers_are_the_same_with_one_call_as_with_three() {
        let Some((_vm, mut vcpu)) = vcpu() else {
            return;
        };
        if !vcpu.caps.together {
            eprintln!("skipped: this KVM has no KVM_CAP_SYNC_REGS");
            return;
        }
        let paging = CR0_ET | CR0_PE | CR0_PG;
        let long = EFER_LME | EFER_LMA;
        // Real mode, long mode, paging with PAE outside of it.
        let modes = [
            (CR0_ET, 0, 0),
            (paging, CR4_PAE, long),
            (paging, CR4_PAE, 0),
        ];
        for (number, (cr0, cr4, efer)) in (0..).zip(modes) {
            let mut regs = vcpu.fd.get_regs().unwrap();
            (regs.rax, regs.rip, regs.r15) = (0x1234 + number, 0x4000, u64::MAX);
            vcpu.fd.set_regs(&regs).unwrap();
            let mut sregs = ioctl::get_sregs2(&vcpu.fd).unwrap();
            (sregs.cr0, sregs.cr2, sregs.cr3) = (cr0, 0xabc0, 0x7000);
            (sregs.cr4, sregs.efer) = (cr4, efer);
            sregs.cs.l = u8::from(efer != 0);
            if let Err(error) = ioctl::set_sregs2(&vcpu.fd, &sregs) {
                eprintln!("this KVM does not do mode {number}: {error}");
                continue;
            }
            let mut events = vcpu.fd.get_vcpu_events().unwrap();
            events.nmi.masked = 1;
            vcpu.fd.set_vcpu_events(&events).unwrap();
            let [one, three] = ways(&vcpu).map(|caps| {
                vcpu.caps = caps;
                vcpu.registers().unwrap()
            });
            assert_eq!(one.0, three.0, "mode {number}");
            assert_eq!(one.1.as_bytes(), three.1.as_bytes(), "mode {number}");
            assert_eq!(one.2, three.2, "mode {number}");
            assert_eq!((one.0.rax, one.1.cr2), (0x1234 + number, 0xabc0));
            assert_eq!(one.2.nmi.masked, 1);
        }
    }

    #[test]
    #[ignore = "it measures"]
    fn one_call_is_cheaper_than_three() {
        let Some((_vm, mut vcpu)) = vcpu() else {
            return;
        };
        let mut times: [Vec<Duration>; 2] = Default::default();
        let ways = ways(&vcpu);
        for _ in 0..3000 {
            for (caps, times) in ways.iter().zip(&mut times) {
                vcpu.caps = Arc::clone(caps);
                let begun = Instant::now();
                vcpu.registers().unwrap();
                times.push(begun.elapsed());
            }
        }
        for (times, name) in times.iter_mut().zip(["one call", "three"]) {
            times.sort_unstable();
            eprintln!("{name}: {:?}", times[times.len() / 2]);
        }
    }
}
