//! System calls of media: the clock that both ends share, and datagrams with the time at which the kernel had them.

use rustix::{
    io::Errno,
    thread::{ClockId as SleepClock, clock_nanosleep_absolute},
    time::{ClockId, Timespec, clock_gettime},
};
use std::{
    io,
    mem::{MaybeUninit, size_of},
    net::UdpSocket,
    os::fd::AsRawFd as _,
    ptr,
    time::Duration,
};

/// `CLOCK_MONOTONIC`, counted from the moment at which a run began.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    zero: Duration,
}

impl Clock {
    /// Begins to count.
    pub fn start() -> Self {
        Self {
            zero: read(ClockId::Monotonic),
        }
    }

    /// The time since [`Self::start`].
    pub fn now(&self) -> Duration {
        read(ClockId::Monotonic).saturating_sub(self.zero)
    }

    /// Seconds since 1970 at a moment of this clock, by what the computer's calendar says now.
    pub fn unix_seconds(&self, moment: Duration) -> f64 {
        let ago = self.now().as_secs_f64() - moment.as_secs_f64();
        read(ClockId::Realtime).as_secs_f64() - ago
    }

    /// Sleeps until a moment, to the accuracy of the kernel's timers.
    pub fn sleep_until(&self, moment: Duration) {
        let Ok(until) = Timespec::try_from(self.zero + moment) else {
            return;
        };
        // Only a signal can end it early, and then it goes on.
        while clock_nanosleep_absolute(SleepClock::Monotonic, &until) == Err(Errno::INTR) {}
    }

    /// A moment of the calendar's clock, not long ago, as one of this clock's.
    fn of_calendar(&self, moment: Duration) -> Duration {
        let ago = read(ClockId::Realtime).saturating_sub(moment);
        self.now().saturating_sub(ago)
    }
}

fn read(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    // Neither is negative, and the second is below a second.
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), nanoseconds)
}

/// Lets the calling thread run when its time has come, as far as this user may: before all ordinary threads, and by timers that
/// fire when they are due (by default the kernel may take 50 µs more). Whoever calls it must sleep most of the time.
pub fn on_time() {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameters live during the call; 0 is the calling thread.
    let _ = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) };
    // Where either is refused, the pacing report shows what that costs.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
}

/// Lets the kernel note when each datagram arrives: the receiver may have to wait for a processor.
///
/// # Errors
/// The kernel does not.
pub fn note_arrivals(socket: &UdpSocket) -> io::Result<()> {
    #[allow(clippy::cast_possible_truncation, reason = "the size of an integer")]
    const LENGTH: libc::socklen_t = size_of::<libc::c_int>() as libc::socklen_t;
    let on: libc::c_int = 1;
    // SAFETY: the option's value is an integer that lives during the call, and its length is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_TIMESTAMPNS,
            ptr::from_ref(&on).cast(),
            LENGTH,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Receives a datagram; gives its length and when it arrived. Longer ones are cut to `buffer`.
///
/// # Errors
/// Those of the system call; `WouldBlock` where nothing is there.
pub fn receive(
    socket: &UdpSocket,
    clock: &Clock,
    buffer: &mut [u8],
) -> io::Result<(usize, Duration)> {
    /// Room for one control message with a time, and its alignment.
    #[repr(align(8))]
    struct Control([u8; 64]);
    let mut control = Control([0; 64]);
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: all-zero is a valid `msghdr`: null pointers with lengths of zero.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    // SAFETY: all pointers in `message` lead to live memory of the lengths given, which nothing else uses meanwhile.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let Ok(length) = usize::try_from(length) else {
        return Err(io::Error::last_os_error());
    };
    let arrived = stamp(&message).map(|moment| clock.of_calendar(moment));
    Ok((length, arrived.unwrap_or_else(|| clock.now())))
}

/// The time of arrival in a received message.
fn stamp(message: &libc::msghdr) -> Option<Duration> {
    // SAFETY: the kernel has filled the control buffer, and set its length.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give whole headers within the buffer, or null.
        let (level, kind, data) = unsafe {
            (
                (*header).cmsg_level,
                (*header).cmsg_type,
                libc::CMSG_DATA(header),
            )
        };
        if level == libc::SOL_SOCKET && kind == libc::SCM_TIMESTAMPNS {
            // SAFETY: such a message holds a `timespec`; it may be unaligned.
            let time: libc::timespec = unsafe { ptr::read_unaligned(data.cast()) };
            let seconds = u64::try_from(time.tv_sec).ok()?;
            return Some(Duration::new(seconds, u32::try_from(time.tv_nsec).ok()?));
        }
        // SAFETY: `header` is one of `message`'s.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{Clock, note_arrivals, receive};
    use std::{net::UdpSocket, thread, time::Duration};

    #[test]
    fn the_time_is_that_of_arrival_and_not_of_reading() {
        let clock = Clock::start();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        note_arrivals(&socket).unwrap();
        // The kernel begins to note a little after it was asked to.
        let noted = (0..50).any(|_| {
            socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
            let sent = clock.now();
            thread::sleep(Duration::from_millis(50));
            let (length, arrived) = receive(&socket, &clock, &mut [0; 9]).unwrap();
            assert_eq!(length, 1);
            arrived < sent + Duration::from_millis(40)
        });
        assert!(noted);
    }

    #[test]
    fn it_sleeps_until_the_moment_and_not_at_all_for_one_that_has_passed() {
        let clock = Clock::start();
        clock.sleep_until(Duration::from_millis(20));
        assert!(clock.now() >= Duration::from_millis(20));
        clock.sleep_until(Duration::from_millis(1));
    }
}
