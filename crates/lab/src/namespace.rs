//! Namespaces: processes of their own, and network namespaces that others can be put into.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;

use crate::links::{ip, tool};
use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace, kept alive by being held.
#[derive(Debug)]
pub(crate) struct NetworkNamespace(OwnedFd);

impl NetworkNamespace {
    /// Makes a new one, with nothing in it but a loopback interface.
    pub(crate) fn new() -> Result<Self> {
        // A thread is the unit that has a network namespace: this one takes the new one and ends, the descriptor stays.
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    // SAFETY: CLONE_NEWNET changes nothing but the namespace of this thread, which ends here.
                    unsafe {
                        rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET)?;
                    }
                    io::Result::Ok(Self(File::open("/proc/thread-self/ns/net")?.into()))
                })
                .join()
                .map_err(|_| io::Error::other("the thread panicked"))?
        })
        .context("cannot make a network namespace")
    }

    /// Takes an interface of the lab's own namespace, and gives it another name.
    pub(crate) fn adopt(&self, interface: &str, name: &str) -> Result<()> {
        // `ip` finds the namespace through the descriptor of this process, which is its parent.
        let namespace = format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd());
        ip(&["link", "set", interface, "netns", &namespace, "name", name])
    }

    /// Runs `ip` in this namespace.
    pub(crate) fn ip(&self, arguments: &[&str]) -> Result<()> {
        let mut command = self.command("ip")?;
        command.args(arguments);
        tool(command).map(drop)
    }

    /// A command that will run in this namespace, and dies with the lab.
    pub(crate) fn command(&self, program: &str) -> io::Result<Command> {
        let mut command = Command::new(program);
        let namespace = self.0.try_clone()?;
        // SAFETY: between fork and exec only one system call is made, which allocates nothing and takes no lock.
        unsafe {
            command.pre_exec(move || {
                Ok(move_into_link_name_space(
                    namespace.as_fd(),
                    Some(LinkNameSpaceType::Network),
                )?)
            });
        }
        Ok(command)
    }

    /// Does `work` on a thread in this namespace.
    pub(crate) fn visit<T: Send>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send,
    ) -> io::Result<T> {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))?;
                    work()
                })
                .join()
                .map_err(|_| io::Error::other("the thread panicked"))?
        })
    }
}

impl AsFd for NetworkNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Who a new process is to be in its own user namespace.
pub(crate) struct Identity {
    user: u32,
    group: u32,
}

impl Identity {
    /// `None` for root, who needs no user namespace.
    pub(crate) fn unless_root() -> Option<Self> {
        let user = rustix::process::geteuid();
        (!user.is_root()).then(|| Self {
            user: user.as_raw(),
            group: rustix::process::getegid().as_raw(),
        })
    }
}

/// A process to be started as the first one of new namespaces: mounts, network, processes, host name and System V objects.
pub(crate) struct First<'a> {
    /// Where not root: the identity that becomes root inside.
    pub(crate) identity: Option<Identity>,
    /// The network namespace that it enters; `None` for a new one.
    pub(crate) network: Option<BorrowedFd<'a>>,
    /// Whether the process is killed when the *thread* that starts it ends, however that ends.
    pub(crate) tied: bool,
    /// What the process mounts before it goes on, in order.
    pub(crate) mounts: Vec<Mount>,
    /// The directory in `mounts` that becomes its root.
    pub(crate) root: Option<CString>,
    /// What it does then. It runs after a fork: it may make system calls, and must neither allocate nor take a lock.
    pub(crate) work: &'a mut dyn FnMut() -> i32,
}

/// One file system to be mounted.
pub(crate) struct Mount {
    pub(crate) what: CString,
    pub(crate) target: CString,
    pub(crate) kind: CString,
    pub(crate) options: CString,
    pub(crate) bind: bool,
}

impl Mount {
    pub(crate) fn new(kind: &str, target: &str, options: &str) -> Result<Self> {
        Ok(Self {
            what: CString::new(kind)?,
            target: CString::new(target)?,
            kind: CString::new(kind)?,
            options: CString::new(options)?,
            bind: false,
        })
    }

    pub(crate) fn bind(from: &str, target: &str) -> Result<Self> {
        Ok(Self {
            what: CString::new(from)?,
            bind: true,
            ..Self::new("none", target, "")?
        })
    }

    fn apply(&self) -> rustix::io::Result<()> {
        if self.bind {
            return rustix::mount::mount_bind_recursive(&self.what, &self.target);
        }
        mount(
            &self.what,
            &self.target,
            &self.kind,
            MountFlags::empty(),
            self.options.as_c_str(),
        )
    }
}

impl First<'_> {
    /// Starts the process.
    pub(crate) fn start(self) -> Result<Pid> {
        let maps = self
            .identity
            .as_ref()
            .map(|id| (format!("0 {} 1", id.user), format!("0 {} 1", id.group)));
        let (failure, tell) = pipe_with(PipeFlags::CLOEXEC)?;
        let (alive, hold) = pipe_with(PipeFlags::CLOEXEC)?;
        let mut flags =
            libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;
        if self.network.is_none() {
            flags |= libc::CLONE_NEWNET;
        }
        if maps.is_some() {
            flags |= libc::CLONE_NEWUSER;
        }
        let flags = libc::c_ulong::from((flags | libc::SIGCHLD).cast_unsigned());
        // SAFETY: without CLONE_VM and with no stack given this is fork(2) into new namespaces. The child below allocates
        // nothing and takes no lock, as the other threads of this process do not exist in it.
        let pid = unsafe {
            libc::syscall(
                libc::SYS_clone,
                flags,
                0,
                ptr::null::<u8>(),
                ptr::null::<u8>(),
                0,
            )
        };
        if pid == 0 {
            drop(hold);
            let (step, error) = match self.set_up(maps.as_ref(), alive.as_fd()) {
                Ok(()) => {
                    drop(tell);
                    exit_now((self.work)());
                }
                Err(failed) => failed,
            };
            let mut report = [step; 5];
            report[1..].copy_from_slice(&error.raw_os_error().to_ne_bytes());
            let _ = rustix::io::write(&tell, &report);
            exit_now(1);
        }
        let pid = i32::try_from(pid)
            .ok()
            .filter(|pid| *pid > 0)
            .and_then(Pid::from_raw);
        let Some(pid) = pid else {
            return Err(io::Error::last_os_error()).context(
                "cannot make new namespaces (without root, `sysctl kernel.unprivileged_userns_clone=1` may be needed)",
            );
        };
        drop(tell);
        let mut report = Vec::new();
        File::from(failure).read_to_end(&mut report)?;
        drop(hold);
        if let [step, code @ ..] = report.as_slice() {
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
            let error = io::Error::from_raw_os_error(i32::from_ne_bytes(code.try_into()?));
            return Err(error).with_context(|| {
                format!(
                    "a process in new namespaces cannot {}",
                    self.describe(*step)
                )
            });
        }
        Ok(pid)
    }

    fn set_up(
        &self,
        maps: Option<&(String, String)>,
        parent: BorrowedFd<'_>,
    ) -> Result<(), (u8, rustix::io::Errno)> {
        if let Some((users, groups)) = maps {
            for (path, text) in [
                (c"/proc/self/setgroups", "deny"),
                (c"/proc/self/uid_map", users),
                (c"/proc/self/gid_map", groups),
            ] {
                write_file(path, text).map_err(|error| (STEP_IDENTITY, error))?;
            }
        }
        if self.tied {
            tie(parent).map_err(|error| (STEP_PARENT, error))?;
        }
        if let Some(network) = self.network {
            move_into_link_name_space(network, Some(LinkNameSpaceType::Network))
                .map_err(|error| (STEP_NETWORK, error))?;
        }
        mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )
        .map_err(|error| (STEP_PRIVATE, error))?;
        for (step, mount) in (STEP_MOUNTS..).zip(&self.mounts) {
            mount.apply().map_err(|error| (step, error))?;
        }
        if let Some(root) = &self.root {
            let change = || {
                rustix::process::chdir(root)?;
                rustix::process::pivot_root(c".", c".")?;
                rustix::mount::unmount(c".", rustix::mount::UnmountFlags::DETACH)?;
                rustix::process::chdir(c"/")
            };
            change().map_err(|error| (STEP_ROOT, error))?;
        }
        Ok(())
    }

    fn describe(&self, step: u8) -> String {
        match step {
            STEP_IDENTITY => "become root in its user namespace".into(),
            STEP_PARENT => "be tied to its parent".into(),
            STEP_NETWORK => "enter its network namespace".into(),
            STEP_PRIVATE => "make its mounts private".into(),
            STEP_ROOT => "change its root directory".into(),
            step => match self.mounts.get(usize::from(step - STEP_MOUNTS)) {
                Some(mount) => format!(
                    "mount {} on {}",
                    mount.kind.to_string_lossy(),
                    mount.target.to_string_lossy()
                ),
                None => "be set up".into(),
            },
        }
    }
}

const STEP_IDENTITY: u8 = 0;
const STEP_PARENT: u8 = 1;
const STEP_PRIVATE: u8 = 2;
const STEP_ROOT: u8 = 3;
const STEP_NETWORK: u8 = 4;
const STEP_MOUNTS: u8 = 5;

/// Lets the kernel kill this process when its parent ends.
fn tie(parent: BorrowedFd<'_>) -> rustix::io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    // If the parent died before that, its end of the pipe is closed.
    let mut fds = [PollFd::from_borrowed_fd(parent, PollFlags::IN)];
    if poll(
        &mut fds,
        Some(&Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }),
    )? > 0
    {
        return Err(rustix::io::Errno::SRCH);
    }
    Ok(())
}

fn write_file(path: &std::ffi::CStr, text: &str) -> rustix::io::Result<()> {
    use rustix::fs::{Mode, OFlags, open};
    let file = open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(file, text.as_bytes()).map(drop)
}

/// Ends this process without any of the handlers that belong to the one from which it was forked.
fn exit_now(code: i32) -> ! {
    // SAFETY: _exit does nothing but end the process.
    unsafe { libc::_exit(code) }
}
