//! Hosts that are namespaces of this computer, for where its own KVM runs a stock kernel.
//!
//! Such a host has its own root (an overlay: what is written in it stays in it), processes, network and name, and shares
//! the computer's kernel and `/dev/kvm`.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::ptr;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};

use crate::host::suffix;
use crate::links::{Port, add_bridge, add_veth, cidr, ip};
use crate::namespace::{First, Mount, NetworkNamespace};
use crate::network::Network;
use crate::process::Watched;
use crate::protocol::PORT;
use crate::qemu::tail;

/// How a namespace host is started.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) n: usize,
    pub(crate) agent: PathBuf,
    pub(crate) payload: Vec<(PathBuf, String)>,
    /// What the host's first process says.
    pub(crate) log: PathBuf,
    /// Where the host's root is put together; not on the computer's disk.
    pub(crate) directory: PathBuf,
}

impl Space {
    /// Turns the power on.
    pub(crate) fn start(&self, at_end: impl FnOnce(&str) + Send + 'static) -> Result<Watched> {
        let network = self.connect()?;
        let root = self.new_root()?;
        let log = File::options().create(true).append(true).open(&self.log)?;
        let name = format!("h{}", self.n);
        let script = format!(
            "lab-agent {}:{PORT}; :",
            Network::Control.address(suffix(self.n))
        );
        let arguments = [c"sh".to_owned(), c"-c".to_owned(), CString::new(script)?];
        let arguments: Vec<_> = arguments
            .iter()
            .map(|text| text.as_ptr())
            .chain([ptr::null()])
            .collect();
        let environment = [
            c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            c"HOME=/root",
        ];
        let environment: Vec<_> = environment
            .iter()
            .map(|text| text.as_ptr())
            .chain([ptr::null()])
            .collect();
        let nothing = File::open("/dev/null")?;
        let mut work = || {
            let prepared = || {
                rustix::system::sethostname(name.as_bytes())?;
                rustix::process::setsid()?;
                rustix::stdio::dup2_stdin(&nothing)?;
                rustix::stdio::dup2_stdout(&log)?;
                rustix::stdio::dup2_stderr(&log)
            };
            if prepared().is_err() {
                return 126;
            }
            // SAFETY: both are arrays of strings that end with a null pointer and live until here.
            unsafe {
                libc::execve(
                    c"/bin/sh".as_ptr(),
                    arguments.as_ptr(),
                    environment.as_ptr(),
                )
            };
            127
        };
        let first = First {
            identity: None,
            network: Some(network.as_fd()),
            tied: false,
            mounts: self.mounts(&root)?,
            root: Some(CString::new(path(&root)?)?),
            work: &mut work,
        };
        Watched::watch(
            first
                .start()
                .with_context(|| format!("cannot start host h{}", self.n))?,
            at_end,
        )
    }

    /// An empty directory in which the root is put together, and what of it is the host's own.
    fn new_root(&self) -> Result<PathBuf> {
        if self.directory.exists() {
            // What a host had before the power went was in its memory.
            fs::remove_dir_all(&self.directory)
                .with_context(|| format!("cannot clear {}", self.directory.display()))?;
        }
        let root = self.directory.join("root");
        let upper = self.directory.join("upper");
        for directory in [&root, &upper, &self.directory.join("work")] {
            fs::create_dir_all(directory)
                .with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let agent = (self.agent.clone(), "/usr/bin/lab-agent".to_string());
        for (from, to) in self.payload.iter().chain([&agent]) {
            let to = upper.join(to.trim_start_matches('/'));
            fs::create_dir_all(to.parent().unwrap_or(&upper))?;
            fs::copy(from, &to)
                .with_context(|| format!("cannot copy {} into the host", from.display()))?;
        }
        Ok(root)
    }

    fn mounts(&self, root: &Path) -> Result<Vec<Mount>> {
        let directory = path(&self.directory)?;
        let overlay = format!("lowerdir=/,upperdir={directory}/upper,workdir={directory}/work");
        let root = path(root)?;
        Ok(vec![
            Mount::new("overlay", root, &overlay)?,
            Mount::bind("/dev", &format!("{root}/dev"))?,
            Mount::new(
                "devpts",
                &format!("{root}/dev/pts"),
                "newinstance,mode=620,ptmxmode=666",
            )?,
            Mount::new("tmpfs", &format!("{root}/dev/shm"), "mode=1777")?,
            Mount::new("proc", &format!("{root}/proc"), "")?,
            Mount::new("sysfs", &format!("{root}/sys"), "")?,
            Mount::new("tmpfs", &format!("{root}/run"), "mode=755")?,
            Mount::new("tmpfs", &format!("{root}/tmp"), "mode=1777")?,
        ])
    }

    /// Makes the host's network namespace with all that is in it.
    fn connect(&self) -> Result<NetworkNamespace> {
        let host = NetworkNamespace::new()?;
        host.ip(&["link", "set", "lo", "up"])?;
        host.ip(&add_bridge("br0"))?;
        for network in Network::ALL {
            let port = Port::new(network, self.n);
            let (other, interface) = (format!("{}-in", port.name()), network.interface());
            port.delete();
            add_veth(port.name(), &other)?;
            ip(&["link", "set", port.name(), "master", network.bridge(), "up"])?;
            ip(&["link", "set", &other, "address", &network.mac(self.n)])?;
            host.adopt(&other, interface)?;
            let address = cidr(network, suffix(self.n));
            let device = if network == Network::Service {
                host.ip(&["link", "set", interface, "master", "br0", "up"])?;
                "br0"
            } else {
                interface
            };
            host.ip(&["addr", "add", &address, "dev", device])?;
            host.ip(&["link", "set", device, "up"])?;
        }
        Ok(host)
    }

    /// Power loss: the ports go first, so that no connection of the host gets to say that it ends.
    pub(crate) fn kill(&self, process: &Watched) -> Result<()> {
        for network in Network::ALL {
            Port::new(network, self.n).delete();
        }
        process.kill()
    }

    pub(crate) fn set_link(&self, network: Network, up: bool) -> Result<()> {
        ip(&[
            "link",
            "set",
            Port::new(network, self.n).name(),
            if up { "up" } else { "down" },
        ])
    }

    /// Stops or continues every process of the host.
    pub(crate) fn signal_all(&self, process: &Watched, signal: Signal) -> Result<()> {
        let host = fs::read_link(pid_namespace(process.pid()))?;
        // A process may fork while the list is read: until a round finds nothing new, there may be one more.
        let mut told: Vec<i32> = Vec::new();
        for _ in 0..100 {
            let before = told.len();
            for entry in fs::read_dir("/proc")?.flatten() {
                let Some(pid) = entry
                    .file_name()
                    .to_str()
                    .and_then(|name| name.parse().ok())
                    .and_then(Pid::from_raw)
                else {
                    continue;
                };
                // A process that ended meanwhile is not one of interest.
                if told.contains(&pid.as_raw_nonzero().get())
                    || fs::read_link(pid_namespace(pid)).ok().as_ref() != Some(&host)
                {
                    continue;
                }
                if rustix::process::kill_process(pid, signal).is_ok() {
                    told.push(pid.as_raw_nonzero().get());
                }
            }
            if told.len() == before {
                return Ok(());
            }
        }
        bail!(
            "host h{} starts processes faster than they can be stopped",
            self.n
        )
    }

    pub(crate) fn last_words(&self) -> String {
        tail(&self.log, 20)
    }
}

fn pid_namespace(pid: Pid) -> PathBuf {
    format!("/proc/{}/ns/pid", pid.as_raw_nonzero()).into()
}

fn path(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}
