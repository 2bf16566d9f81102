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
///
/// What they were busy with the kernel samples at its ticks, and work that begins with a tick and ends before the next is
/// not seen at all: of an emulated host half of it, so that one process seemed to use twice what all of its host did. What
/// they idled is measured, by any kernel that stops its ticks then (`get_cpu_idle_time_us`), and the rest is what they did.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Kernel {
    /// Since its start.
    up: f64,
    processors: f64,
    /// Idling, waiting for a disk, and taken by others.
    idle: f64,
    softirq: f64,
}

/// What a kernel's processors did in some time, in seconds, all processors together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Busy {
    /// Anything but idling and waiting for a disk; time that others took is not in it.
    pub(crate) all: f64,
    /// Of it, in software interrupts: bridge, taps and the network's protocols. Sampled.
    pub(crate) softirq: f64,
}

impl Kernel {
    /// Writes what [`Self::parse`] reads, in any shell.
    pub(crate) const SCRIPT: &str = "cat /proc/uptime && grep ^cpu /proc/stat";

    /// Reads a host's.
    ///
    /// # Errors
    /// The host can't be reached.
    pub(crate) fn of(host: &Host) -> Result<Self> {
        let text = host.sh(Self::SCRIPT)?;
        Self::parse(&text).with_context(|| format!("{}'s /proc/stat: {text}", host.name()))
    }

    /// What was used since `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Busy {
        let all = (self.up - earlier.up) * self.processors - (self.idle - earlier.idle);
        Busy {
            all: all.max(0.0),
            softirq: (self.softirq - earlier.softirq).max(0.0),
        }
    }

    /// `/proc/uptime`, and of `/proc/stat` (proc(5)) the line of all processors and a line for each: user, nice, system, idle,
    /// iowait, irq, softirq, steal.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let up = text.split_whitespace().next()?.parse().ok()?;
        let mut lines = text.lines().skip_while(|line| !line.starts_with("cpu "));
        let times = lines.next()?.split_whitespace().skip(1).map(str::parse);
        let times = times.collect::<Result<Vec<u32>, _>>().ok()?;
        let [_, _, _, idle, wait, _, softirq, stolen] = *times.get(..8)?.first_chunk()?;
        let seconds = |ticks: u32| f64::from(ticks) / TICKS;
        let processors = lines.filter(|line| line.starts_with("cpu")).count();
        Some(Self {
            up,
            processors: f64::from(u32::try_from(processors).ok().filter(|count| *count > 0)?),
            idle: seconds(idle) + seconds(wait) + seconds(stolen),
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
        let at = |up: u32, idle: u32, wait: u32, softirq: u32, stolen: u32| {
            let text = format!(
                "{up}.50 0.01\ncpu  100 10 20 {idle} {wait} 5 {softirq} {stolen} 50 0\n\
                 cpu0 1 1 1 1 1 1 1 1 1 1\ncpu1 1 1 1 1 1 1 1 1 1 1\n"
            );
            Kernel::parse(&text).unwrap()
        };
        // Of 20 s in 10 s, 6 were idle, one was waited, and 2 were taken.
        let used = at(20, 1600, 200, 25, 900).since(&at(10, 1000, 100, 10, 700));
        assert!((used.all - 11.0).abs() < 1e-9, "{used:?}");
        assert!((used.softirq - 0.15).abs() < 1e-9, "{used:?}");
        let earlier = at(10, 1000, 100, 10, 700);
        assert!(earlier.since(&at(20, 1600, 200, 25, 900)).all < 1e-9);
        for odd in [
            "1.0 1\ncpu 1 2 3\ncpu0 1\n",
            "1.0 1\ncpu 1 2 3 4 5 6 7 8\n",
            "",
        ] {
            assert_eq!(Kernel::parse(odd), None, "{odd}");
        }
    }
}
