//! What is on the lab's wires: they are the witness, not the hosts.

use crate::process;
use anyhow::{Context as _, Result, bail, ensure};
use lab::{Client, Host, Network};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tempfile::TempDir;

/// How long tcpdump may take to begin or end.
const LIMIT: Duration = Duration::from_secs(20);

/// tcpdump's options for a line on standard output for each frame, with its time, as soon as it is seen.
pub(crate) const IN_LINES: [&str; 4] = [
    "-l",
    "-n",
    "-tt",
    // Else the kernel keeps what it has seen back for up to a second.
    "--immediate-mode",
];

/// tcpdump at the lab's end of a line. Dropping it ends it.
pub(crate) struct Capture {
    child: Child,
    folder: TempDir,
    /// It reads all that its filter lets through, whichever way it goes; else the kernel counts frames that it leaves out.
    both_ways: bool,
}

impl Capture {
    /// Begins to watch for frames that `host` sends on `network` with the source address `mac`.
    ///
    /// # Errors
    /// tcpdump can't be run.
    pub(crate) fn start(host: &Host, network: Network, mac: &str) -> Result<Self> {
        let mut command = Command::new("tcpdump");
        command
            .args(["-e", "-Q", "in", "-i", &host.port(network)])
            .args(["ether", "src", mac]);
        Self::run(command, false)
    }

    /// Begins to watch for what the client sends and gets, as far as it fits `filter` (pcap-filter(7)).
    ///
    /// # Errors
    /// tcpdump can't be run.
    pub(crate) fn at_client(client: &Client, filter: &str) -> Result<Self> {
        let mut command = client.command("tcpdump")?;
        command.args(["-i", Network::Service.interface(), filter]);
        Self::run(command, true)
    }

    /// Begins to keep the frames themselves that come to the client and fit `filter`: for [`Self::finish_file`].
    ///
    /// # Errors
    /// tcpdump can't be run.
    pub(crate) fn file_at_client(client: &Client, filter: &str) -> Result<Self> {
        let mut command = client.command("tcpdump")?;
        command.args(["-i", Network::Service.interface()]).args([
            "-w",
            "-",
            "-U",
            "--time-stamp-precision=nano",
            filter,
        ]);
        Self::run(command, true)
    }

    fn run(mut command: Command, both_ways: bool) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("romulus-capture-")
            .tempdir()?;
        let errors = folder.path().join("errors");
        let child = command
            .args(IN_LINES)
            .args(["-s", "2048", "-B", "16384"])
            .stdin(Stdio::null())
            .stdout(File::create(folder.path().join("frames"))?)
            .stderr(File::create(&errors)?)
            .spawn()
            .context("running tcpdump (Debian package tcpdump)")?;
        let mut capture = Self {
            child,
            folder,
            both_ways,
        };
        let listening = process::poll(LIMIT, Duration::from_millis(10), || {
            let said = fs::read_to_string(&errors)?;
            if let Some(status) = capture.child.try_wait()? {
                bail!("tcpdump ended with {status}: {}", said.trim());
            }
            Ok(said.contains("listening on").then_some(()))
        })?;
        listening.context("tcpdump does not begin to listen")?;
        Ok(capture)
    }

    /// Ends it and gives a line for each frame that it saw.
    ///
    /// # Errors
    /// tcpdump does not end, or lost frames.
    pub(crate) fn finish(mut self) -> Result<Vec<String>> {
        self.end()?;
        let frames = fs::read_to_string(self.frames())?;
        // Its own last word is an empty line.
        let lines = frames.lines().filter(|line| !line.is_empty());
        Ok(lines.map(str::to_owned).collect())
    }

    /// Ends it and gives `read` the file with the frames that it kept.
    ///
    /// # Errors
    /// tcpdump does not end, or lost frames; those of `read`.
    pub(crate) fn finish_file<T>(mut self, read: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        self.end()?;
        read(&self.frames())
    }

    fn frames(&self) -> PathBuf {
        self.folder.path().join("frames")
    }

    fn end(&mut self) -> Result<()> {
        if self.both_ways {
            self.catch_up()?;
        }
        self.signal("-INT")?;
        process::wait_within(&mut self.child, LIMIT)?.context("tcpdump does not end")?;
        let said = fs::read_to_string(self.errors())?;
        let [_, _, lost] = counts(&said).context("tcpdump does not say what it lost")?;
        ensure!(lost == 0, "tcpdump lost {lost} packets");
        Ok(())
    }

    /// Waits until it has read all that it saw: told to end it leaves alone what it has not read yet.
    fn catch_up(&self) -> Result<()> {
        let read = process::poll(LIMIT, Duration::from_millis(20), || {
            self.signal("-USR1")?;
            let counts = counts(&fs::read_to_string(self.errors())?);
            Ok(counts
                .is_some_and(|[read, seen, lost]| read + lost >= seen)
                .then_some(()))
        })?;
        read.context("tcpdump does not come to the end of what it saw")
    }

    fn signal(&self, signal: &str) -> Result<()> {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status()?;
        ensure!(sent.success(), "tcpdump has ended: no {signal} can be sent");
        Ok(())
    }

    fn errors(&self) -> PathBuf {
        self.folder.path().join("errors")
    }
}

/// How many packets tcpdump has read, its filter has let through, and the kernel has dropped, by the last that it said.
fn counts(said: &str) -> Option<[u64; 3]> {
    let of = |what: &str| -> Option<u64> {
        let (before, _) = said.rsplit_once(what)?;
        before.split_whitespace().rev().nth(1)?.parse().ok()
    };
    Some([
        of(" captured")?,
        of(" received by filter")?,
        of(" dropped by kernel")?,
    ])
}

impl Drop for Capture {
    fn drop(&mut self) {
        process::kill(&mut self.child);
    }
}

#[cfg(test)]
mod tests {
    use super::counts;

    #[test]
    fn the_last_word_counts() {
        let asked = "listening on eth0\ntcpdump: 3 packets captured, 5 packets received by filter, 0 packets dropped by kernel\n";
        assert_eq!(counts(asked), Some([3, 5, 0]));
        let ended = format!(
            "{asked}\n5 packets captured\n5 packets received by filter\n1 packet dropped by kernel\n"
        );
        assert_eq!(counts(&ended), Some([5, 5, 1]));
        assert_eq!(counts("listening on eth0"), None);
    }
}
