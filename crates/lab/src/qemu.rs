//! Hosts that are QEMU machines: an emulated AMD processor with SVM.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::image::HostImage;
use crate::network::Network;
use crate::process::Watched;

const PROGRAM: &str = "qemu-system-x86_64";
/// All that QEMU can emulate, but for two things that make kernels slower under it. Fast string instructions (ERMS) have them
/// clear and copy pages a byte at a time, for each of which the emulator goes round; with SMAP every access to a program's
/// memory leaves the emulator's cache of translations.
const CPU: &str = "max,-erms,-smap";

/// How a QEMU host is started.
#[derive(Debug)]
pub(crate) struct Qemu {
    pub(crate) n: usize,
    pub(crate) memory_mib: u32,
    pub(crate) image: HostImage,
    /// Has no name; QEMU opens it through this process.
    pub(crate) initrd: Arc<File>,
    /// What the host's kernel and init say.
    pub(crate) serial: PathBuf,
    /// A directory with a short name: a socket's path is limited.
    pub(crate) sockets: PathBuf,
}

impl Qemu {
    /// Turns the power on.
    pub(crate) fn start(&self, at_end: impl FnOnce(&str) + Send + 'static) -> Result<Watched> {
        let errors = File::options()
            .create(true)
            .append(true)
            .open(self.errors())?;
        let mut command = self.command();
        command
            .stdin(Stdio::null())
            .stdout(errors.try_clone()?)
            .stderr(errors);
        // A socket left over from the last time answers nobody.
        let _ = fs::remove_file(self.qmp());
        Watched::start(&mut command, at_end).with_context(|| {
            format!(
                "QEMU is missing? (on Debian: apt-get install {})",
                "qemu-system-x86"
            )
        })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        let n = self.n;
        command.args([
            "-name",
            &format!("h{n}"),
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
        ]);
        command.args([
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            CPU,
            "-smp",
            "1",
            "-m",
            &self.memory_mib.to_string(),
        ]);
        command.args([
            "-chardev",
            &format!("file,id=serial,append=on,path={}", escaped(&self.serial)),
        ]);
        command.args([
            "-serial",
            "chardev:serial",
            "-qmp",
            &format!("unix:{},server=on,wait=off", escaped(&self.qmp())),
        ]);
        command.arg("-kernel").arg(&self.image.kernel);
        command.args([
            "-initrd",
            &format!(
                "/proc/{}/fd/{}",
                std::process::id(),
                self.initrd.as_raw_fd()
            ),
        ]);
        command.args([
            "-append",
            // Without no_timer_check a kernel panics that finds its timer standing still, which on a busy computer it does.
            &format!(
                "console=ttyS0 reboot=t panic=-1 quiet mitigations=off no_timer_check lab.host={n}"
            ),
        ]);
        for network in Network::ALL {
            let port = network.port(n);
            command.args([
                "-netdev",
                &format!("tap,id={network},ifname={port},script=no,downscript=no,vhost=off"),
            ]);
            command.args([
                "-device",
                &format!(
                    "virtio-net-pci,id=nic-{network},romfile=,netdev={network},mac={}",
                    network.mac(n)
                ),
            ]);
        }
        command
    }

    fn qmp(&self) -> PathBuf {
        self.sockets.join(format!("h{}.qmp", self.n))
    }

    /// Where QEMU itself complains.
    fn errors(&self) -> PathBuf {
        self.serial.with_extension("qemu")
    }

    /// What is known about a host that did not come up.
    pub(crate) fn last_words(&self) -> String {
        let mut text = tail(&self.errors(), 10);
        text.push_str(&tail(&self.serial, 20));
        text
    }

    /// Pulls a network's plug, or puts it in again: the host's kernel sees it.
    pub(crate) fn set_link(&self, network: Network, up: bool) -> Result<()> {
        self.ask(
            "set_link",
            &json!({"name": format!("nic-{network}"), "up": up}),
        )
        .map(drop)
    }

    /// Asks QEMU by its machine protocol, QMP.
    fn ask(&self, command: &str, arguments: &Value) -> Result<Value> {
        let ask = || {
            let stream = UnixStream::connect(self.qmp())?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            let mut from = BufReader::new(&stream);
            let greeting = next(&mut from)?;
            ensure!(greeting.get("QMP").is_some(), "no greeting: {greeting}");
            execute(&stream, &mut from, "qmp_capabilities", &json!({}))?;
            execute(&stream, &mut from, command, arguments)
        };
        ask().with_context(|| format!("QEMU of host h{} did not do {command}", self.n))
    }
}

fn execute(
    mut to: &UnixStream,
    from: &mut impl BufRead,
    command: &str,
    arguments: &Value,
) -> Result<Value> {
    to.write_all(
        json!({"execute": command, "arguments": arguments})
            .to_string()
            .as_bytes(),
    )?;
    loop {
        let mut answer = next(from)?;
        // Between question and answer there may be events, which nobody here waits for.
        if let Some(value) = answer.get_mut("return") {
            return Ok(value.take());
        }
        if let Some(error) = answer.get("error") {
            bail!(
                "{}",
                error["desc"]
                    .as_str()
                    .unwrap_or("an error without a description")
            );
        }
    }
}

fn next(from: &mut impl BufRead) -> Result<Value> {
    let mut line = String::new();
    ensure!(from.read_line(&mut line)? > 0, "QEMU closed the connection");
    Ok(serde_json::from_str(&line)?)
}

/// In QEMU's options a comma separates, and two are one.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// The last lines of a file; nothing where there is none.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..]
        .iter()
        .flat_map(|line| [line, "\n"])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_of_a_log_is_its_last_lines() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        assert_eq!(tail(&path, 3), "");
        fs::write(&path, "1\n2\n3\n4").unwrap();
        assert_eq!(tail(&path, 2), "3\n4\n");
        assert_eq!(tail(&path, 9), "1\n2\n3\n4\n");
    }

    #[test]
    fn qmp_answers_are_found_among_events() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (&theirs)
            .write_all(b"{\"event\": \"X\"}\n{\"return\": {\"a\": 1}}\n{\"error\": {\"desc\": \"no such device\"}}\n")
            .unwrap();
        let mut from = BufReader::new(&ours);
        assert_eq!(
            execute(&ours, &mut from, "x", &json!({})).unwrap(),
            json!({"a": 1})
        );
        let error = execute(&ours, &mut from, "x", &json!({}))
            .unwrap_err()
            .to_string();
        assert_eq!(error, "no such device");
        drop(theirs);
    }

    #[test]
    fn a_comma_in_a_path_does_not_become_an_option() {
        assert_eq!(escaped(Path::new("/a,b")), "/a,,b");
    }
}
