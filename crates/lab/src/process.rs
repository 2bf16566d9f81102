//! A process of the lab that is watched: its end is noticed, and it is never signalled after it.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, WaitOptions};

/// A child process and the thread that waits for its end.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    pid: Pid,
    shared: Arc<(Mutex<Option<String>>, Condvar)>,
}

impl Watched {
    /// Starts `command`. `at_end` is called once, on another thread, with how the process ended.
    pub(crate) fn start(
        command: &mut Command,
        at_end: impl FnOnce(&str) + Send + 'static,
    ) -> Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        // A group of its own, so that what a terminal sends to the lab does not end a host behind its back.
        let child = command
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        Self::watch(Pid::from_child(&child), at_end)
    }

    /// Watches a child that nobody else waits for.
    pub(crate) fn watch(pid: Pid, at_end: impl FnOnce(&str) + Send + 'static) -> Result<Self> {
        let shared = Arc::new((Mutex::new(None), Condvar::new()));
        let watched = Self {
            pid,
            shared: Arc::clone(&shared),
        };
        thread::Builder::new().name("watch".into()).spawn(move || {
            // Only looks: until the lock is held, the number must not become another process's.
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            let status = loop {
                match rustix::process::waitid(WaitId::Pid(pid), options) {
                    Err(rustix::io::Errno::INTR) => {}
                    status => break status,
                }
            };
            let how = match status {
                Ok(Some(status)) => describe(&status),
                _ => "nobody knows how".into(),
            };
            let (end, changed) = &*shared;
            {
                let mut end = end.lock().unwrap_or_else(PoisonError::into_inner);
                let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
                *end = Some(how.clone());
            }
            changed.notify_all();
            at_end(&how);
        })?;
        Ok(watched)
    }

    fn end(&self) -> MutexGuard<'_, Option<String>> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&self) -> Option<String> {
        self.end().clone()
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends a signal, unless it has ended.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let end = self.end();
        match &*end {
            Some(how) => bail!("it is not running: {how}"),
            None => Ok(rustix::process::kill_process(self.pid, signal)?),
        }
    }

    /// Kills it, unless it has ended, and waits until it is gone.
    pub(crate) fn kill(&self) -> Result<()> {
        // If it has ended already, that is what is wanted.
        let _ = self.signal(Signal::KILL);
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut end = self.end();
        while end.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("process {} does not die", self.pid.as_raw_nonzero());
            }
            end = self
                .shared
                .1
                .wait_timeout(end, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        Ok(())
    }
}

fn describe(status: &WaitIdStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (_, Some(signal)) => format!("ended by signal {signal}"),
        _ => "ended".into(),
    }
}
