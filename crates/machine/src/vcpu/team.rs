//! The threads of all vCPUs of one machine.

use super::{
    Bus, Vcpu, cpuid,
    gate::{Gate, Order},
    help::Help,
    run,
    sleep::Sleep,
};
use crate::{
    Error,
    exit::ExitLatch,
    state::{Fields, Reader, Writer, kind},
    vcpu::state,
};
use kvm_bindings::{CpuId, kvm_cpuid_entry2};
#[cfg(test)]
use std::os::fd::AsRawFd;
use std::{
    convert::Infallible,
    io,
    os::unix::thread::JoinHandleExt,
    sync::{
        Arc, Mutex, MutexGuard, Once, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// Where a thread is reached while it is inside `KVM_RUN`.
struct Kick {
    thread: libc::pthread_t,
    /// `kvm_run.immediate_exit`, in the page that the thread's vCPU shares with KVM.
    immediate_exit: *mut u8,
}

// SAFETY: both are addresses; `Shared::kick` says why they are valid when they are used.
unsafe impl Send for Kick {}

impl Kick {
    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the page is mapped as long as the vCPU exists, and the vCPU goes only when its thread is joined. Before any
        // thread is joined, the team forgets all kicks, under the lock that whoever uses one holds. The kernel only reads the
        // byte.
        unsafe { AtomicU8::from_ptr(self.immediate_exit) }
    }
}

/// What a thread and the owner hand each other.
#[derive(Default)]
struct Mailbox {
    /// The payload of the vCPU's section.
    payload: Vec<u8>,
    /// What the vCPU is to be from now on.
    cpuid: Option<CpuId>,
    failure: Option<Error>,
}

struct Shared {
    gate: Gate,
    help: Help,
    boxes: Vec<Mutex<Mailbox>>,
    exits: Vec<Counter>,
    /// Empty before all threads are there, and again when they are to be joined.
    kicks: Mutex<Vec<Kick>>,
    latch: Arc<ExitLatch>,
}

/// A counter with a cache line of its own.
#[repr(align(64))]
#[derive(Default)]
struct Counter(AtomicU64);

/// The vCPU threads of one machine. Dropping it ends and joins them.
pub(crate) struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Vcpu>>,
    /// Each vCPU's time of sleep, where the kernel counts it.
    sleeps: Vec<Option<Sleep>>,
    /// Saving was ordered and not waited for.
    saving: bool,
    /// To ask KVM itself what became of an order.
    #[cfg(test)]
    fds: Vec<std::os::fd::RawFd>,
}

impl Team {
    /// Starts a thread for each vCPU; on return all are parked.
    ///
    /// # Errors
    /// A thread cannot be had.
    pub(crate) fn start(
        vcpus: Vec<Vcpu>,
        bus: &Bus,
        latch: Arc<ExitLatch>,
        name: &str,
    ) -> Result<Self, Error> {
        install_handler()?;
        let n = vcpus.len();
        let shared = Arc::new(Shared {
            gate: Gate::new(n),
            help: Help::default(),
            boxes: (0..n).map(|_| Mutex::default()).collect(),
            exits: (0..n).map(|_| Counter::default()).collect(),
            kicks: Mutex::default(),
            latch,
        });
        let mut team = Self {
            shared,
            threads: Vec::with_capacity(n),
            sleeps: vcpus.iter().map(|vcpu| Sleep::of(&vcpu.fd)).collect(),
            saving: false,
            #[cfg(test)]
            fds: vcpus.iter().map(|v| v.fd.as_raw_fd()).collect(),
        };
        let mut kicks = Vec::with_capacity(n);
        for mut vcpu in vcpus {
            let immediate_exit = &raw mut vcpu.fd.get_kvm_run().immediate_exit;
            let (shared, bus) = (Arc::clone(&team.shared), bus.clone());
            let thread = thread::Builder::new()
                .name(format!("{name} vcpu{}", vcpu.index))
                .spawn(move || shared.work(vcpu, &bus))
                .map_err(|source| Error::Host {
                    what: "a thread for a vCPU".into(),
                    source,
                })?;
            kicks.push(Kick {
                thread: thread.as_pthread_t(),
                immediate_exit,
            });
            team.threads.push(thread);
        }
        *team.shared.kicks() = kicks;
        if team.shared.gate.wait_done() {
            Ok(team)
        } else {
            Err(team.stopped())
        }
    }

    /// Parks all vCPUs.
    ///
    /// # Errors
    /// The machine has stopped by itself.
    pub(crate) fn park(&mut self) -> Result<(), Error> {
        self.shared.gate.order(Order::Park);
        self.shared.kick();
        self.wait()
    }

    /// How long even the vCPU that slept least has slept since this was last asked.
    pub(crate) fn slept(&mut self) -> Duration {
        let each = self.sleeps.iter_mut();
        let each = each.map(|sleep| sleep.as_mut().map_or(Duration::ZERO, Sleep::since_last));
        each.min().unwrap_or_default()
    }

    /// Lets all vCPUs run. They must be parked.
    pub(crate) fn run(&mut self, forgive: bool) -> Result<(), Error> {
        self.finish_saving()?;
        for kick in self.shared.kicks().iter() {
            // Only here: a vCPU thread that cleared it itself could clear the next pause's.
            kick.immediate_exit().store(0, Ordering::Relaxed);
        }
        self.shared.gate.order(Order::Run { forgive });
        Ok(())
    }

    /// Begins to save every vCPU's state, each in its own thread. To be called when all are parked and no device can
    /// raise an interrupt any more: an interrupt between two vCPUs would be lost if one were saved before the other stood.
    pub(crate) fn begin_save(&mut self) {
        self.shared.gate.order(Order::Save);
        self.saving = true;
    }

    /// Does `work` in this thread and in those of parked vCPUs that have nothing else to do and have not gone to sleep.
    pub(crate) fn together(&self, work: &(dyn Fn() + Sync)) {
        self.shared.help.offer(work);
    }

    /// Writes the vCPUs' sections, waiting for what [`Self::begin_save`] began.
    pub(crate) fn save(&mut self, writer: &mut Writer<'_>) -> Result<(), Error> {
        if !self.saving {
            self.begin_save();
        }
        self.finish_saving()?;
        for (mailbox, index) in self.shared.boxes.iter().zip(0..) {
            let mut mailbox = lock(mailbox);
            if let Some(error) = mailbox.failure.take() {
                return Err(error);
            }
            let result = writer.section(kind::VCPU, index, state::VERSION, |p| {
                p.put(&mailbox.payload[..]);
                Ok::<_, Infallible>(())
            });
            match result {
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Takes the vCPUs' sections, and before them a new CPUID if there is one (only before they first run).
    pub(crate) fn restore(
        &mut self,
        reader: &mut Reader<'_>,
        cpuid: Option<&[kvm_cpuid_entry2]>,
    ) -> Result<(), Error> {
        self.finish_saving()?;
        for (mailbox, index) in self.shared.boxes.iter().zip(0..) {
            let fields = state::section(reader, index)?;
            let mut mailbox = lock(mailbox);
            mailbox.payload.clear();
            mailbox.payload.extend_from_slice(fields.rest());
            mailbox.cpuid = cpuid.map(|common| cpuid::of_vcpu(common, index));
        }
        self.order_and_check(Order::Clear)?;
        self.order_and_check(Order::Restore)
    }

    /// Gives an order that can fail, and waits until all have obeyed.
    fn order_and_check(&self, order: Order) -> Result<(), Error> {
        self.shared.gate.order(order);
        self.wait()?;
        let failures = self.shared.boxes.iter().map(|b| lock(b).failure.take());
        // All are taken, the first is told.
        match failures.fold(None, |first: Option<Error>, next| first.or(next)) {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    /// A way to the exit counters that outlives the team.
    pub(crate) fn exit_counter(&self) -> impl Fn() -> u64 + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move || {
            shared
                .exits
                .iter()
                .map(|c| c.0.load(Ordering::Relaxed))
                .sum()
        }
    }

    /// The CPUID of vCPU number `index`, which must be parked, as KVM has it.
    #[cfg(test)]
    pub(crate) fn cpuid_of(&self, index: usize) -> CpuId {
        crate::ioctl::get_cpuid2(&self.fds[index]).unwrap()
    }

    fn finish_saving(&mut self) -> Result<(), Error> {
        if std::mem::take(&mut self.saving) {
            self.wait()
        } else {
            Ok(())
        }
    }

    fn wait(&self) -> Result<(), Error> {
        if self.shared.gate.wait_done() {
            Ok(())
        } else {
            Err(self.stopped())
        }
    }

    fn stopped(&self) -> Error {
        Error::Stopped(self.shared.latch.get().expect("latched before the halt"))
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.gate.order(Order::Stop);
        self.shared.kick();
        // A thread that is still about to say that its vCPU has failed kicks the others, some of which are joined by then.
        self.shared.kicks().clear();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a vCPU thread panicked");
            }
        }
    }
}

impl Shared {
    fn kicks(&self) -> MutexGuard<'_, Vec<Kick>> {
        self.kicks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gets every thread out of `KVM_RUN`, and keeps it from going back in.
    fn kick(&self) {
        let kicks = self.kicks();
        for kick in kicks.iter() {
            kick.immediate_exit().store(1, Ordering::Release);
        }
        for kick in kicks.iter() {
            // SAFETY: the threads are joined only by the team's drop, which takes the kicks away before that, so the id is
            // valid; the signal's handler does nothing.
            unsafe { libc::pthread_kill(kick.thread, SIGRTMIN()) };
        }
    }

    /// A vCPU thread's life. The vCPU is returned, so that it stays until the thread is joined.
    fn work(&self, mut vcpu: Vcpu, bus: &Bus) -> Vcpu {
        unblock_kicks();
        let index = usize::from(vcpu.index);
        let mut seen = 0;
        loop {
            match self.gate.next(&mut seen, || self.help.join()) {
                Order::Run { forgive } => {
                    if forgive {
                        // Refused where the guest does not use this clock: then nothing is lost.
                        let _ = vcpu.fd.kvmclock_ctrl();
                    }
                    if let Err(exit) =
                        run::run(&mut vcpu, bus, &self.gate, seen, &self.exits[index].0)
                    {
                        self.latch.set(exit);
                        self.gate.halt();
                        self.kick();
                        return vcpu;
                    }
                }
                Order::Park => self.gate.done(seen),
                Order::Save => {
                    let mut mailbox = lock(&self.boxes[index]);
                    mailbox.failure = vcpu.save(&mut mailbox.payload).err();
                    drop(mailbox);
                    self.gate.done(seen);
                }
                Order::Clear => {
                    let mut mailbox = lock(&self.boxes[index]);
                    let set = match mailbox.cpuid.take() {
                        Some(cpuid) => vcpu.set_cpuid(&cpuid),
                        None => Ok(()),
                    };
                    mailbox.failure = set.and_then(|()| vcpu.forget_time()).err();
                    drop(mailbox);
                    self.gate.done(seen);
                }
                Order::Restore => {
                    let mut mailbox = lock(&self.boxes[index]);
                    let fields = Fields::of(kind::VCPU, vcpu.index.into(), &mailbox.payload);
                    mailbox.failure = vcpu.restore(fields).err();
                    drop(mailbox);
                    self.gate.done(seen);
                }
                Order::Stop => return vcpu,
            }
        }
    }
}

fn lock(mailbox: &Mutex<Mailbox>) -> MutexGuard<'_, Mailbox> {
    mailbox.lock().unwrap_or_else(PoisonError::into_inner)
}

extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Makes the kick's signal harmless: it is only there to interrupt `KVM_RUN`.
fn install_handler() -> Result<(), Error> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| result = register_signal_handler(SIGRTMIN(), nothing));
    result.map_err(|e| Error::Host {
        what: "a signal handler".into(),
        source: e.into(),
    })
}

/// A program that blocks signals in its main thread gives that mask to this one: the kick must come through.
fn unblock_kicks() {
    // SAFETY: the set is initialised by sigemptyset before it is used, and only this thread's mask changes.
    let result = unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, SIGRTMIN());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut())
    };
    if result != 0 {
        tracing::error!(error = %io::Error::from_raw_os_error(result), "cannot unblock the vCPU signal");
    }
}
