//! Work that the threads of parked vCPUs take part in. In a pause their processors have nothing else to do, and what
//! takes the longest there, copying, is soon done by two.
//!
//! Nobody is woken for it and nobody is waited for who has not begun: a thread that looks for its next order looks for
//! work as well. So it costs nothing where there is no processor for it.

use std::{
    hint,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

/// Turns of a loop in which a helper is waited for before the owner lets others run.
const SPINS: u32 = 10_000;

/// Work, as its owner lent it: not for as long as its type says, see [`Help::offer`].
type Work = &'static (dyn Fn() + Sync);

/// A piece of work at a time, offered to some threads.
#[derive(Default)]
pub(super) struct Help {
    /// For a look without the lock.
    offered: AtomicBool,
    work: Mutex<Option<Work>>,
    /// Threads that do it now. Rises only with the lock held and work in it.
    busy: AtomicUsize,
    panicked: AtomicBool,
}

impl Help {
    /// Does `work` in this thread, and meanwhile in every other that comes to [`Self::join`]. On return all have
    /// returned.
    ///
    /// # Panics
    /// `work` has, in any of them.
    pub(super) fn offer(&self, work: &(dyn Fn() + Sync)) {
        // SAFETY: only the lifetime changes. Nobody gets at it after `Closing` was dropped, which happens before this
        // function returns, also by a panic: it is taken back under the lock, and who took it before is waited for.
        let lent =
            unsafe { std::mem::transmute::<&(dyn Fn() + Sync), &'static (dyn Fn() + Sync)>(work) };
        *self.lock() = Some(lent);
        let closing = Closing(self);
        self.offered.store(true, Ordering::Release);
        work();
        drop(closing);
        assert!(
            !self.panicked.swap(false, Ordering::AcqRel),
            "work that was shared has panicked in another thread"
        );
    }

    /// Takes part in what is offered, if anything is.
    pub(super) fn join(&self) {
        if !self.offered.load(Ordering::Acquire) {
            return;
        }
        let offered = self.lock();
        let Some(work) = *offered else { return };
        self.busy.fetch_add(1, Ordering::Relaxed);
        drop(offered);
        // It was still offered when this thread became busy, so its owner waits for this thread.
        let result = catch_unwind(AssertUnwindSafe(work));
        if result.is_err() {
            self.panicked.store(true, Ordering::Release);
        }
        self.busy.fetch_sub(1, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Work>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes an offer back.
struct Closing<'a>(&'a Help);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let help = self.0;
        help.offered.store(false, Ordering::Relaxed);
        *help.lock() = None;
        let mut spins = 0;
        // With it, all that the others have done is seen.
        while help.busy.load(Ordering::Acquire) > 0 {
            if spins < SPINS {
                spins += 1;
                hint::spin_loop();
            } else {
                thread::yield_now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// A thread that joins whatever is offered until it is told to end.
    fn helper(help: &Arc<Help>, end: &Arc<AtomicBool>) -> thread::JoinHandle<()> {
        let (help, end) = (Arc::clone(help), Arc::clone(end));
        thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                help.join();
                thread::yield_now();
            }
        })
    }

    #[test]
    fn what_was_lent_is_not_touched_after_the_return() {
        let (help, end) = (Arc::<Help>::default(), Arc::<AtomicBool>::default());
        let helpers: Vec<_> = (0..3).map(|_| helper(&help, &end)).collect();
        for _ in 0..2000 {
            // Freed at the end of each round: whoever still uses it then is seen by any checker of memory.
            let pieces = Mutex::new((0..64usize).collect::<Vec<_>>());
            let done: Vec<AtomicUsize> = (0..64).map(|_| AtomicUsize::new(0)).collect();
            let inside = AtomicUsize::new(0);
            help.offer(&|| {
                inside.fetch_add(1, Ordering::Relaxed);
                while let Some(piece) = { pieces.lock().unwrap().pop() } {
                    done[piece].fetch_add(1, Ordering::Relaxed);
                }
                inside.fetch_sub(1, Ordering::Relaxed);
            });
            assert_eq!(inside.load(Ordering::Relaxed), 0, "somebody is still at it");
            assert!(done.iter().all(|times| times.load(Ordering::Relaxed) == 1));
        }
        end.store(true, Ordering::Relaxed);
        for helper in helpers {
            helper.join().unwrap();
        }
    }

    #[test]
    fn another_thread_takes_part_and_is_waited_for() {
        let (help, end) = (Arc::<Help>::default(), Arc::<AtomicBool>::default());
        let owner = thread::current().id();
        let helper = helper(&help, &end);
        let (come, gone) = (AtomicBool::new(false), AtomicBool::new(false));
        help.offer(&|| {
            if thread::current().id() == owner {
                while !come.load(Ordering::Acquire) {
                    thread::yield_now();
                }
                return;
            }
            if !come.swap(true, Ordering::AcqRel) {
                thread::sleep(std::time::Duration::from_millis(20));
                gone.store(true, Ordering::Release);
            }
        });
        assert!(gone.load(Ordering::Acquire), "the owner went on before");
        end.store(true, Ordering::Relaxed);
        helper.join().unwrap();
    }

    #[test]
    fn a_panic_elsewhere_is_the_owners() {
        let (help, end) = (Arc::<Help>::default(), Arc::<AtomicBool>::default());
        let owner = thread::current().id();
        let helper = helper(&help, &end);
        let come = AtomicBool::new(false);
        let work = || {
            if thread::current().id() == owner {
                while !come.load(Ordering::Acquire) {
                    thread::yield_now();
                }
            } else if !come.swap(true, Ordering::AcqRel) {
                panic!("on purpose");
            }
        };
        assert!(catch_unwind(AssertUnwindSafe(|| help.offer(&work))).is_err());
        // The thread lives on and helps again.
        come.store(false, Ordering::Release);
        let again = AtomicUsize::new(0);
        help.offer(&|| {
            again.fetch_add(1, Ordering::Relaxed);
            while thread::current().id() == owner && again.load(Ordering::Relaxed) < 2 {
                thread::yield_now();
            }
        });
        end.store(true, Ordering::Relaxed);
        helper.join().unwrap();
    }
}
