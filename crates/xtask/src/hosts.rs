//! Something done with all hosts of a lab at once.

use anyhow::{Result, bail};
use lab::{Host, Lab};
use std::{sync::Arc, thread};

/// Does something with all hosts at once: each takes seconds.
///
/// # Errors
/// Those of `work`.
pub(crate) fn at_once(
    hosts: &[Arc<Host>],
    work: impl Fn(&Host) -> Result<()> + Sync,
) -> Result<()> {
    thread::scope(|scope| {
        let threads: Vec<_> = hosts
            .iter()
            .map(|host| scope.spawn(|| work(host)))
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| match thread.join() {
                Ok(result) => result,
                Err(_) => bail!("a thread with a host panicked"),
            })
    })
}

/// Makes them anew, between two measurements: they remember nothing.
///
/// # Errors
/// One does not come up.
pub(crate) fn restart(lab: &Lab) -> Result<()> {
    at_once(lab.hosts(), |host| {
        host.power_off()?;
        host.power_on()
    })
}
