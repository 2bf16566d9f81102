//! Processor time of a process in a lab host, by what its threads do, and of a whole kernel: a host's or a guest's.

use anyhow::{Context as _, Result};
use lab::Host;

/// Clock ticks a second in `/proc`: the same on every Linux that has a user space (`sysconf(_SC_CLK_TCK)`).
const TICKS: f64 = 100.0;

/// Processor time of romulus's threads, in seconds since the process's start.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Threads {
    /// Those that are the guest's own processors; they also help to copy while the guest is paused.
    pub(crate) vcpus: f64,
    /// Network cards and disks.
    pub(crate) devices: f64,
    /// The epoch loop: it pauses, copies and encodes.
    pub(crate) checkpoint: f64,
    /// What sends to the other host.
    pub(crate) sender: f64,
    /// All others: heartbeats, the link's receiver, the control interface.
    pub(crate) other: f64,
}

impl Threads {
    /// Reads those of process `pid`.
    ///
    /// # Errors
    /// The host can't be reached, or there is no such process.
    pub(crate) fn of(host: &Host, pid: i32) -> Result<Self> {
        let text = host.sh(&format!("cat /proc/{pid}/task/*/stat"))?;
        Self::parse(&text).with_context(|| format!("the threads of process {pid}: {text}"))
    }

    /// All together.
    pub(crate) fn all(&self) -> f64 {
        self.vcpus + self.devices + self.checkpoint + self.sender + self.other
    }

    /// What was used since `earlier`. A thread that has ended meanwhile took its time with it.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let used = |now: f64, before: f64| (now - before).max(0.0);
        Self {
            vcpus: used(self.vcpus, earlier.vcpus),
            devices: used(self.devices, earlier.devices),
            checkpoint: used(self.checkpoint, earlier.checkpoint),
            sender: used(self.sender, earlier.sender),
            other: used(self.other, earlier.other),
        }
    }

    /// Sums user and system time over `/proc/PID/task/*/stat` (proc(5)). A thread's name, in parentheses, may hold
    /// anything; the kernel keeps its first 15 bytes.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut threads = Self::default();
        for line in text.lines() {
            let (head, rest) = line.rsplit_once(')')?;
            let fields: Vec<&str> = rest.split_whitespace().collect();
            let ticks =
                fields.get(11)?.parse::<u32>().ok()? + fields.get(12)?.parse::<u32>().ok()?;
            let name = head.split_once('(')?.1;
            let sum = if name.contains(" vcpu") {
                &mut threads.vcpus
            } else if name.ends_with("-io") || name.ends_with("-disk") {
                &mut threads.devices
            } else if name.contains(" drive") {
                &mut threads.checkpoint
            } else if name.contains(" sende") {
                &mut threads.sender
            } else {
                &mut threads.other
            };
            *sum += f64::from(ticks) / TICKS;
        }
        (threads.all() > 0.0).then_some(threads)
    }
}

/// What a kernel's processors did, in seconds since its start, all processors together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Kernel {
    /// Anything but idling and waiting for a disk; time that others took is not in it.
    pub(crate) busy: f64,
    /// Of it, in software interrupts: bridge, taps and the network's protocols.
    pub(crate) softirq: f64,
}

impl Kernel {
    /// Reads a host's.
    ///
    /// # Errors
    /// The host can't be reached.
    pub(crate) fn of(host: &Host) -> Result<Self> {
        let text = host.sh("head -n 1 /proc/stat")?;
        Self::parse(&text).with_context(|| format!("{}'s /proc/stat: {text}", host.name()))
    }

    /// What was used since `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self {
            busy: (self.busy - earlier.busy).max(0.0),
            softirq: (self.softirq - earlier.softirq).max(0.0),
        }
    }

    /// The first line of `/proc/stat` (proc(5)): user, nice, system, idle, iowait, irq, softirq, steal. Times of guests are in
    /// user and nice.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let times = line.split_whitespace().map(str::parse);
        let times = times.collect::<Result<Vec<u32>, _>>().ok()?;
        let [user, nice, system, _, _, irq, softirq] = *times.get(..7)?.first_chunk()?;
        let seconds = |ticks: u32| f64::from(ticks) / TICKS;
        Some(Self {
            busy: seconds(user) + seconds(nice) + seconds(system) + seconds(irq) + seconds(softirq),
            softirq: seconds(softirq),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Kernel, Threads};

    #[test]
    fn threads_are_told_by_their_names() {
        let line = |name: &str, user: u32, system: u32| {
            format!("7 ({name}) S 1 1 1 0 -1 0 0 0 0 0 {user} {system} 0 0 20 0 9 0 7\n")
        };
        let text = [
            line("romulus", 30, 12),
            line("registrar vcpu0", 100, 1),
            line("registrar drive", 7, 0),
            line("registrar sende", 0, 5),
            line("registrar-io", 3, 0),
            line("registrar-disk", 3, 0),
            line("a) b", 1, 0),
        ]
        .concat();
        let threads = Threads::parse(&text).unwrap();
        let near = |value: f64, wanted: f64| assert!((value - wanted).abs() < 1e-9, "{threads:?}");
        near(threads.vcpus, 1.01);
        near(threads.checkpoint, 0.07);
        near(threads.sender, 0.05);
        near(threads.devices, 0.06);
        near(threads.other, 0.43);
        near(threads.all(), 1.62);
        near(threads.since(&threads).all(), 0.0);
        assert_eq!(Threads::parse(""), None);
        assert_eq!(Threads::parse("7 (romulus) S 1"), None);
    }

    #[test]
    fn idling_and_what_others_took_is_not_busy() {
        let text = "cpu  100 10 20 9000 800 5 15 700 50 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        let kernel = Kernel::parse(text).unwrap();
        assert!((kernel.busy - 1.5).abs() < 1e-9 && (kernel.softirq - 0.15).abs() < 1e-9);
        assert_eq!(Kernel::parse("cpu 1 2 3\n"), None);
        assert_eq!(Kernel::parse(""), None);
    }
}
