//! A protected machine goes before the ordinary work of its host. The other host cannot tell one whose threads wait for their
//! turn from one that has failed.

use rustix::process::{getpriority_process, setpriority_process};

/// Against one ordinary task on the same processor it gets nine tenths of it (sched(7)), and it hardly waits for its turn. No
/// real-time priority: a guest that runs wild must leave its host to others.
const NICE: i32 = -10;

/// From now on this thread, and those that it starts, are urgent. Where the operator has chosen a nice value, that one stays;
/// without the right to, all stays as it is.
pub(super) fn raise() {
    if getpriority_process(None) != Ok(0) {
        return;
    }
    if let Err(error) = setpriority_process(None, NICE) {
        tracing::debug!("the machine has no priority over other work of this host: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::{NICE, getpriority_process, raise, setpriority_process};
    use std::thread;

    #[test]
    fn a_machine_is_urgent_unless_the_operator_says_otherwise() {
        // A nice value belongs to a thread.
        let seen = thread::spawn(|| {
            let ours = getpriority_process(None);
            // Neither may be allowed here.
            if ours != Ok(0) || setpriority_process(None, NICE).is_err() {
                return None;
            }
            setpriority_process(None, 0).unwrap();
            raise();
            let raised = getpriority_process(None);
            let inherited = thread::spawn(|| getpriority_process(None)).join().unwrap();
            setpriority_process(None, 3).unwrap();
            raise();
            Some([raised, inherited, getpriority_process(None)])
        });
        match seen.join().unwrap() {
            Some(seen) => assert_eq!(seen, [Ok(NICE), Ok(NICE), Ok(3)]),
            None => eprintln!("skipped: nice values can't be chosen here"),
        }
    }
}
