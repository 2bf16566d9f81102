//! Lab hosts anew between two measurements: they remember nothing.

use anyhow::Result;
use lab::Lab;
use std::thread;

/// All at once: each takes seconds.
///
/// # Errors
/// One does not come up.
pub(super) fn hosts(lab: &Lab) -> Result<()> {
    thread::scope(|scope| {
        let restarts: Vec<_> = lab
            .hosts()
            .iter()
            .map(|host| {
                scope.spawn(|| {
                    host.power_off()?;
                    host.power_on()
                })
            })
            .collect();
        restarts
            .into_iter()
            .try_for_each(|restart| match restart.join() {
                Ok(result) => result,
                Err(_) => anyhow::bail!("the thread that restarts a host panicked"),
            })
    })
}
