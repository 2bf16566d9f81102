//! Which threads go before whatever else a busy host runs.

/// Of the heartbeats: nothing of this process may keep them waiting.
pub(crate) const HEARTBEATS: libc::c_int = 10;
/// Of the epoch loop: its turning is what heartbeats attest, and the guest waits for its work, which is short. Whoever holds the
/// machine must not share a processor with strangers meanwhile.
pub(crate) const EPOCHS: libc::c_int = 5;

/// Gives the calling thread real-time priority; the threads that it starts have none. Without the permission it stays as it
/// is.
pub(crate) fn raise(priority: libc::c_int) {
    let priority = libc::sched_param {
        sched_priority: priority,
    };
    let policy = libc::SCHED_RR | libc::SCHED_RESET_ON_FORK;
    // SAFETY: the structure is valid for the call; only this thread (0) is concerned.
    let done = unsafe { libc::sched_setscheduler(0, policy, &raw const priority) };
    if done != 0 {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or_default();
        tracing::debug!("the thread {name} runs without real-time priority");
    }
}
