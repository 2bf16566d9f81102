//! A vCPU thread that is to park is in a hurry: the guest stands still, and the epoch loop waits for it. On a busy host it would
//! wait for its turn among strangers first.

use std::sync::atomic::{AtomicBool, Ordering};

/// Below the epoch loop's own, which waits meanwhile.
const PRIORITY: libc::c_int = 4;

/// Whether one thread is in a hurry now.
#[derive(Default)]
pub(super) struct Haste {
    now: AtomicBool,
    /// This process may not give real-time priority.
    refused: AtomicBool,
}

impl Haste {
    /// Gives `thread` real-time priority until [`Self::end`]. One to which the operator has given a policy keeps it.
    ///
    /// # Safety
    /// The thread has not been joined.
    pub(super) unsafe fn begin(&self, thread: libc::pthread_t) {
        if self.refused.load(Ordering::Relaxed) {
            return;
        }
        let (mut policy, mut param) = (0, libc::sched_param { sched_priority: 0 });
        // SAFETY: the caller's promise; both pointers are valid for the call. A thread that has ended is an error.
        let known =
            unsafe { libc::pthread_getschedparam(thread, &raw mut policy, &raw mut param) } == 0;
        if !known || policy != libc::SCHED_OTHER {
            return;
        }
        param.sched_priority = PRIORITY;
        // SAFETY: as above.
        match unsafe { libc::pthread_setschedparam(thread, libc::SCHED_RR, &raw const param) } {
            0 => self.now.store(true, Ordering::Release),
            libc::EPERM => self.refused.store(true, Ordering::Relaxed),
            _ => {}
        }
    }

    /// The calling thread, which is the one that was hastened, takes its turn again like all others.
    pub(super) fn end(&self) {
        if self.now.swap(false, Ordering::Acquire) {
            let param = libc::sched_param { sched_priority: 0 };
            // SAFETY: the pointer is valid for the call, and this thread runs. It cannot fail: to give up a priority is
            // always allowed.
            unsafe {
                libc::pthread_setschedparam(
                    libc::pthread_self(),
                    libc::SCHED_OTHER,
                    &raw const param,
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Haste, Ordering};
    use std::{
        os::unix::thread::JoinHandleExt as _,
        sync::{Arc, Barrier},
        thread,
    };

    fn policy() -> i32 {
        // SAFETY: it only reads the calling thread's own policy.
        unsafe { libc::sched_getscheduler(0) }
    }

    #[test]
    fn who_is_hastened_returns_to_its_own_pace() {
        let haste = Arc::<Haste>::default();
        let barrier = Arc::new(Barrier::new(2));
        let (its, met) = (Arc::clone(&haste), Arc::clone(&barrier));
        let thread = thread::spawn(move || {
            met.wait();
            let hurried = policy();
            its.end();
            let after = policy();
            its.end();
            (hurried, after, policy())
        });
        // SAFETY: the thread is joined below.
        unsafe { haste.begin(thread.as_pthread_t()) };
        barrier.wait();
        let (hurried, after, again) = thread.join().unwrap();
        assert_eq!((after, again), (libc::SCHED_OTHER, libc::SCHED_OTHER));
        if haste.refused.load(Ordering::Relaxed) {
            eprintln!("skipped: no right to real-time priority here");
        } else {
            assert_eq!(hurried, libc::SCHED_RR);
        }
    }
}
