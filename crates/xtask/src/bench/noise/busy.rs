//! A host that has other things to do: a busy loop that gets a share of its one processor, no more and no less if it can be had.

use crate::report::ProcessorTimes;
use anyhow::{Context as _, Result};
use lab::{Host, Remote};

/// The kernel's period for shares, in microseconds: with 90 % the loop runs for up to 90 ms at a time, which is worse for
/// others than the short turns of a load that sleeps.
const PERIOD_US: u32 = 100_000;

/// A busy loop in a host. Dropping it ends it.
pub(super) struct Busy<'lab> {
    host: &'lab Host,
    /// Lives as long as this does.
    _remote: Remote,
    began: ProcessorTimes,
}

impl<'lab> Busy<'lab> {
    /// Starts the loop. The kernel's own control of shares holds it to `percent` of a processor.
    ///
    /// # Errors
    /// The host can't be reached, or its kernel has no such control.
    pub(super) fn start(host: &'lab Host, percent: u32) -> Result<Self> {
        let quota = PERIOD_US / 100 * percent;
        host.sh(&format!(
            "cd /sys/fs/cgroup && echo +cpu > cgroup.subtree_control && mkdir -p busy && \
             echo '{quota} {PERIOD_US}' > busy/cpu.max"
        ))
        .context("holding a load to a share of the processor")?;
        let script = "echo $$ > /sys/fs/cgroup/busy/cgroup.procs; exec sh -c 'while :; do :; done'";
        let remote = host.spawn(&["sh", "-euc", script])?;
        Ok(Self {
            host,
            _remote: remote,
            began: times(host)?,
        })
    }

    /// How busy the host's processor was since the start, in percent: the loop and all else.
    ///
    /// # Errors
    /// The host can't be reached.
    pub(super) fn percent(&self) -> Result<Option<f64>> {
        Ok(times(self.host)?.busy_since(&self.began))
    }
}

fn times(host: &Host) -> Result<ProcessorTimes> {
    let text = host.sh("head -1 /proc/stat")?;
    ProcessorTimes::parse(&text).with_context(|| format!("{} gives {text:?}", host.name()))
}
