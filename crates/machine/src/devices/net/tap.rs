//! A tap on the operator's bridge.
//!
//! Everything here is a blocking system call: a takeover waits for it, and it must not depend on anything else.

use super::{
    super::ring::{PARTS_MAX, Part},
    link::{HEADER, Header, Link, Offload, vectors},
    writer::TapWriter,
};
use crate::Error;
use std::{
    ffi::CString,
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
    time::{Duration, Instant},
};

/// How long a tap may be busy, in case the process that had it has just died.
const BUSY_MAX: Duration = Duration::from_secs(2);
/// How often a busy tap is tried.
const BUSY_STEP: Duration = Duration::from_millis(2);
/// "Join an interface to a bridge" (`linux/sockios.h`; libc has it for Android only).
const SIOCBRADDIF: libc::c_ulong = 0x89a2;
/// "Take an interface out of a bridge".
const SIOCBRDELIF: libc::c_ulong = 0x89a3;

/// A tap, opened.
pub(crate) struct Tap {
    file: File,
    name: String,
    /// Kept from call to call, so that none allocates.
    vectors: Vectors,
}

/// Reused space for the kernel's vectors.
#[derive(Default)]
struct Vectors(Vec<libc::iovec>);

// SAFETY: the pointers are stale between calls and never followed; each call fills them anew.
unsafe impl Send for Vectors {}

impl Tap {
    /// Opens (and, if it is missing, makes) the tap of a card, sets its MTU and joins it to its bridge. It does not bring
    /// it up, which [`open`] does; one that is `shut` is down and empty on return, even if it was up before.
    ///
    /// # Errors
    /// What is missing, busy or forbidden, and what to do about it.
    pub(crate) fn new(nic: &crate::config::Nic, shut: bool) -> Result<Self, Error> {
        let name = &nic.tap;
        let mut request = request(name).ok_or_else(|| {
            Error::Invalid(format!(
                "\"{name}\" is no name for a tap: it must have 1 to {} bytes, without '/' and white space",
                libc::IFNAMSIZ - 1
            ))
        })?;
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(|source| {
                let advice = match source.kind() {
                    io::ErrorKind::NotFound => {
                        "/dev/net/tun is missing; load the module with \"modprobe tun\""
                    }
                    io::ErrorKind::PermissionDenied => {
                        "/dev/net/tun may not be opened by this user"
                    }
                    _ => "/dev/net/tun",
                };
                Error::Host {
                    what: format!("tap {name}: {advice}"),
                    source,
                }
            })?;
        request.ifr_ifru.ifru_flags =
            (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        attach(&file, &mut request, name)?;

        let fail = |what: String| move |source| Error::Host { what, source };
        let header = HEADER as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one int.
        let done = unsafe {
            libc::ioctl(
                file.as_raw_fd(),
                libc::TUNSETVNETHDRSZ as _,
                &raw const header,
            )
        };
        check(done).map_err(fail(format!("tap {name}: header of {HEADER} bytes")))?;
        let mut tap = Self {
            file,
            name: name.clone(),
            vectors: Vectors::default(),
        };
        tap.offload(Offload::default())
            .map_err(fail(format!("tap {name}: offloads off")))?;

        let socket = control_socket().map_err(fail(format!("tap {name}: socket")))?;
        set_mtu(&socket, name, nic.mtu).map_err(fail(format!(
            "tap {name}: MTU {} (this needs the capability CAP_NET_ADMIN)",
            nic.mtu
        )))?;
        if shut {
            tap.shut(&socket)?;
        }
        if let Some(bridge) = &nic.bridge {
            join(&socket, name, bridge)?;
        }
        Ok(tap)
    }

    /// Takes the tap down and drops the frames that came while it was up: they would be stale when the machine runs. A
    /// tap that is down gets no more of them.
    fn shut(&mut self, socket: &OwnedFd) -> Result<(), Error> {
        set_up(socket, &self.name, false).map_err(|source| Error::Host {
            what: format!(
                "tap {}: shutting it until the machine runs here (this needs the capability CAP_NET_ADMIN)",
                self.name
            ),
            source,
        })?;
        let mut byte = [0];
        // A frame is dropped whole, however little of it is read.
        while self.receive_copy(&mut byte).is_ok() {}
        Ok(())
    }

    fn offload(&self, offload: Offload) -> io::Result<()> {
        let mut bits = 0;
        for (wanted, bit) in [
            (offload.checksum, libc::TUN_F_CSUM),
            (offload.tso4, libc::TUN_F_TSO4),
            (offload.tso6, libc::TUN_F_TSO6),
            (offload.ecn, libc::TUN_F_TSO_ECN),
        ] {
            if wanted {
                bits |= bit;
            }
        }
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        check(unsafe {
            libc::ioctl(
                self.file.as_raw_fd(),
                libc::TUNSETOFFLOAD as _,
                libc::c_ulong::from(bits),
            )
        })
    }
}

impl Link for Tap {
    fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn writer(&self) -> io::Result<TapWriter> {
        Ok(TapWriter::new(self.file.try_clone()?))
    }

    fn interface(&self) -> Option<String> {
        Some(self.name.clone())
    }

    fn set_offload(&mut self, offload: Offload) -> io::Result<()> {
        tracing::debug!(tap = %self.name, ?offload, "offloads");
        self.offload(offload)
    }

    fn send(&mut self, header: &Header, frame: &[Part<'_>]) -> io::Result<()> {
        let list = &mut self.vectors.0;
        list.clear();
        list.push(libc::iovec {
            iov_base: header.as_ptr().cast_mut().cast(),
            iov_len: HEADER,
        });
        list.extend(vectors(frame));
        // SAFETY: the first vector is `header`, which writev only reads; the others are parts of guest memory, which stays
        // mapped as long as they are borrowed.
        let sent = unsafe {
            libc::writev(
                self.file.as_raw_fd(),
                list.as_ptr(),
                list.len() as libc::c_int,
            )
        };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    fn receive(&mut self, parts: &[Part<'_>]) -> io::Result<usize> {
        debug_assert!(parts.len() <= PARTS_MAX, "one readv takes no more");
        let list = &mut self.vectors.0;
        list.clear();
        list.extend(vectors(parts));
        // SAFETY: the vectors are parts of guest memory, which stays mapped as long as they are borrowed and holds plain
        // bytes only.
        let got = unsafe {
            libc::readv(
                self.file.as_raw_fd(),
                list.as_ptr(),
                list.len() as libc::c_int,
            )
        };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }

    fn receive_copy(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// A request about a network interface; `None` if the name cannot be one.
fn request(name: &str) -> Option<libc::ifreq> {
    let fits = (1..libc::IFNAMSIZ).contains(&name.len())
        && name != "."
        && name != ".."
        && !name
            .bytes()
            .any(|byte| byte == b'/' || byte == 0 || byte == b':' || byte.is_ascii_whitespace());
    if !fits {
        return None;
    }
    // SAFETY: all zeros is a value of this plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Some(request)
}

/// Attaches the descriptor to the tap. While the tap is busy this waits a little.
fn attach(file: &File, request: &mut libc::ifreq, name: &str) -> Result<(), Error> {
    let deadline = Instant::now() + BUSY_MAX;
    loop {
        // SAFETY: TUNSETIFF reads and writes one ifreq.
        let result = check(unsafe {
            libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut *request)
        });
        let Err(source) = result else { return Ok(()) };
        let code = source.raw_os_error();
        if code == Some(libc::EBUSY) && Instant::now() < deadline {
            std::thread::sleep(BUSY_STEP);
            continue;
        }
        let what = match code {
            Some(libc::EBUSY) => format!(
                "tap {name} is in use by another process; give this machine a tap of its own"
            ),
            Some(libc::EPERM | libc::EACCES) => format!(
                "tap {name} may not be made or opened: this needs the capability CAP_NET_ADMIN, or a tap made beforehand \
                 with \"ip tuntap add {name} mode tap vnet_hdr user USER\""
            ),
            Some(libc::EINVAL) => format!(
                "{name} cannot be opened as a tap: an interface of this name is there already and is none, or is a tap with \
                 several queues; choose another name"
            ),
            _ => format!("tap {name}"),
        };
        return Err(Error::Host { what, source });
    }
}

/// A socket to ask the kernel about interfaces. It carries no traffic.
fn control_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers are involved.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    check(fd)?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn named(name: &str) -> io::Result<libc::ifreq> {
    request(name).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}

fn set_mtu(socket: &OwnedFd, name: &str, mtu: u16) -> io::Result<()> {
    let mut request = named(name)?;
    request.ifr_ifru.ifru_mtu = mtu.into();
    let mut now = request;
    // SAFETY: SIOCGIFMTU writes one ifreq, here a copy.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU as _, &raw mut now) })?;
    // A user who may open the tap but not change it is content with one that is right already.
    // SAFETY: the call succeeded and wrote this member.
    if unsafe { now.ifr_ifru.ifru_mtu } == i32::from(mtu) {
        return Ok(());
    }
    // SAFETY: SIOCSIFMTU reads one ifreq.
    check(unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFMTU as _,
            &raw const request,
        )
    })
}

/// Brings the tap named `name` up, so that frames pass. One that is up already is left alone.
///
/// # Errors
/// It is gone, or this user may not.
pub(crate) fn open(name: &str) -> Result<(), Error> {
    control_socket()
        .and_then(|socket| set_up(&socket, name, true))
        .map_err(|source| Error::Host {
            what: format!("tap {name}: bringing it up (this needs the capability CAP_NET_ADMIN)"),
            source,
        })
}

/// Checks that the tap named `name`, to which `writer` leads, has not been deleted.
///
/// # Errors
/// It has.
pub(crate) fn check_attached(name: &str, writer: &TapWriter) -> Result<(), Error> {
    // SAFETY: all zeros is a value of this plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one ifreq.
    let asked = unsafe {
        libc::ioctl(
            writer.as_fd().as_raw_fd(),
            libc::TUNGETIFF as _,
            &raw mut request,
        )
    };
    check(asked).map_err(|source| Error::Host {
        what: format!("tap {name} has been deleted; the machine needs it to run here"),
        source,
    })
}

fn set_up(socket: &OwnedFd, name: &str, wanted: bool) -> io::Result<()> {
    let mut request = named(name)?;
    // SAFETY: SIOCGIFFLAGS writes one ifreq.
    check(unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCGIFFLAGS as _,
            &raw mut request,
        )
    })?;
    // SAFETY: the call succeeded and wrote this member.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let up = libc::IFF_UP as libc::c_short;
    if (flags & up != 0) == wanted {
        return Ok(());
    }
    request.ifr_ifru.ifru_flags = if wanted { flags | up } else { flags & !up };
    // SAFETY: SIOCSIFFLAGS reads one ifreq.
    check(unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as _,
            &raw const request,
        )
    })
}

/// Joins a tap to a bridge, if it is not there already.
fn join(socket: &OwnedFd, tap: &str, bridge: &str) -> Result<(), Error> {
    let fail = |what: String, source| Error::Host { what, source };
    let mut to = request(bridge)
        .ok_or_else(|| Error::Invalid(format!("\"{bridge}\" is no name for a bridge")))?;
    let name = CString::new(tap).map_err(|error| fail(format!("tap {tap}"), error.into()))?;
    // SAFETY: the name is a C string.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(fail(
            format!("tap {tap}: its number"),
            io::Error::last_os_error(),
        ));
    }
    to.ifr_ifru.ifru_ifindex = index.cast_signed();
    let call = |what: libc::c_ulong| {
        // SAFETY: SIOCBRADDIF and SIOCBRDELIF read one ifreq.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), what as _, &raw const to) })
    };
    let mut result = call(SIOCBRADDIF);
    match result.as_ref().err().and_then(io::Error::raw_os_error) {
        // It is in some bridge: if it can be taken out of this one, it was in this one.
        Some(libc::EBUSY) if call(SIOCBRDELIF).is_ok() => result = call(SIOCBRADDIF),
        // This user may not join it, but somebody has done so already.
        Some(libc::EPERM) if member(tap, bridge) => return Ok(()),
        _ => (),
    }
    result.map_err(|source| {
        let what = match source.raw_os_error() {
            Some(libc::ENODEV) => format!(
                "there is no bridge {bridge} for tap {tap}; make it with \"ip link add {bridge} type bridge\" and give it the \
                 network's card"
            ),
            Some(libc::EOPNOTSUPP) => format!("{bridge} is no bridge, so that tap {tap} cannot join it"),
            Some(libc::EPERM) => format!("tap {tap} may not join bridge {bridge}: this needs the capability CAP_NET_ADMIN"),
            Some(libc::EBUSY) => format!(
                "tap {tap} belongs to another bridge already; take it out with \"ip link set {tap} nomaster\""
            ),
            _ => format!("tap {tap} cannot join bridge {bridge}"),
        };
        fail(what, source)
    })
}

/// Whether a tap is in a bridge, as far as this user can see.
fn member(tap: &str, bridge: &str) -> bool {
    let brport = Path::new("/sys/class/net").join(tap).join("brport/bridge");
    std::fs::read_link(brport)
        .is_ok_and(|target| target.file_name().is_some_and(|name| name == bridge))
}

#[cfg(test)]
#[path = "tap_tests.rs"]
mod tests;
