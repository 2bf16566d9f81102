//! Waiting for what a pair is to become: protected, taken over.

use super::{Pair, Status};
use crate::{live, process};
use anyhow::{Context as _, Result};
use images::Step;
use std::time::{Duration, Instant};

/// How long the machine may take to be protected: an emulated host copies and encodes some tens of MiB a second.
const PROTECTED_WITHIN: Duration = Duration::from_mins(5);
/// How long a takeover may take before it counts as none. How long it really takes is measured elsewhere.
const TAKEOVER_WITHIN: Duration = Duration::from_mins(1);
/// From one look at a host to the next.
const LOOK: Duration = Duration::from_millis(250);

impl Pair<'_> {
    /// Waits until the machine is protected, if it is not, without a word; gives the host that runs it.
    ///
    /// # Errors
    /// It is not within `limit`.
    pub(crate) fn protected_runner(&self, limit: Duration) -> Result<usize> {
        process::poll(limit, LOOK, || {
            let Some(runner) = self.runner()? else {
                return Ok(None);
            };
            let status = self.status(runner)?;
            Ok(status
                .is_some_and(|status| status.is_protected_here())
                .then_some(runner))
        })?
        .with_context(|| format!("the machine is not protected within {} s", limit.as_secs()))
    }

    /// Waits until the machine is protected, and tells meanwhile how far it is. Gives the host that runs it.
    ///
    /// # Errors
    /// It is not in time, or a process ended.
    pub(crate) fn wait_protected(&mut self, step: Option<&Step>) -> Result<usize> {
        let mut last = String::from("nobody runs it");
        let mut told = Instant::now();
        let seen = process::poll(PROTECTED_WITHIN, LOOK, || {
            self.arbiter.still_runs()?;
            for side in 0..2 {
                if !self.is_up(side) {
                    continue;
                }
                let Some(status) = self.status(side)? else {
                    continue;
                };
                if status.is_protected_here() {
                    return Ok(Some(side));
                }
                if let Some(cover) = status.cover().filter(|_| status.runs()) {
                    last = match cover.copied {
                        Some(copied) => {
                            format!("{} of {} pages copied", copied.done, copied.all)
                        }
                        None => "it runs, and no copy has begun".to_owned(),
                    };
                    if let Some(step) = step
                        && told.elapsed() >= Duration::from_secs(1)
                    {
                        told = Instant::now();
                        live::tell(step, &last);
                    }
                }
            }
            Ok(None)
        })?;
        let runner = seen.with_context(|| {
            format!(
                "the machine is not protected within {} s: {last}",
                PROTECTED_WITHIN.as_secs()
            )
        })?;
        for side in &mut self.sides {
            if side.host.is_on() {
                side.remember_machine(&self.file)?;
            }
        }
        Ok(runner)
    }

    /// Waits until the given host runs the machine.
    ///
    /// # Errors
    /// It does not in time, or its process ended.
    pub(crate) fn wait_runs(&self, side: usize) -> Result<Status> {
        process::poll(TAKEOVER_WITHIN, LOOK, || {
            Ok(self.status(side)?.filter(Status::runs))
        })?
        .with_context(|| {
            format!(
                "{} does not run the machine within {} s",
                self.sides[side].host.name(),
                TAKEOVER_WITHIN.as_secs()
            )
        })
    }

    /// Waits until what a host says of the machine is as wanted.
    ///
    /// # Errors
    /// It is not within `limit`; `what` names it.
    pub(crate) fn wait_status(
        &self,
        side: usize,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&Status) -> bool,
    ) -> Result<Status> {
        let mut last = None;
        let seen = process::poll(limit, LOOK, || {
            last = self.status(side)?;
            Ok(last.clone().filter(|status| wanted(status)))
        })?;
        seen.with_context(|| {
            format!(
                "{}: not {what} within {} s; last seen {last:?}",
                self.sides[side].host.name(),
                limit.as_secs()
            )
        })
    }
}
