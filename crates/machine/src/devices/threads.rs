//! The threads that serve the devices.
//!
//! One thread serves every network card and the entropy device: it waits for kicks and frames in one epoll set. Each disk
//! has a thread of its own, because file input and output blocks.

use super::{
    block::Worker,
    device::Work,
    gate::{Gate, Phase},
    transport::Function,
};
use std::{
    io,
    os::fd::AsRawFd,
    sync::Arc,
    thread::{Builder, JoinHandle},
};
use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    eventfd::{EFD_NONBLOCK, EventFd},
};

/// Token of the event that makes the thread look at everything.
const LOOK: u64 = u64::MAX;
/// In a token's low byte: the device's event source rather than a queue.
const SOURCE: u64 = 0xff;

/// A device as the thread sees it.
struct Served {
    function: Arc<Function>,
    /// Whether its event source is in the epoll set.
    watched: bool,
}

/// The thread of the cards.
pub(crate) struct Io {
    epoll: Epoll,
    look: Arc<EventFd>,
    gate: Arc<Gate>,
    served: Vec<Served>,
    /// Queues that have more to do than one turn allowed: (device, queue).
    unfinished: Vec<(usize, usize)>,
}

impl Io {
    /// Sets up the epoll set. Nothing runs yet.
    ///
    /// # Errors
    /// Descriptors run out.
    pub(crate) fn new(functions: Vec<Arc<Function>>, gate: Arc<Gate>) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let look = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        epoll.ctl(
            ControlOperation::Add,
            look.as_raw_fd(),
            EpollEvent::new(EventSet::IN, LOOK),
        )?;
        for (device, function) in functions.iter().enumerate() {
            for (queue, kick) in function.kicks().iter().enumerate() {
                let token = (device as u64) << 8 | queue as u64;
                epoll.ctl(
                    ControlOperation::Add,
                    kick.as_raw_fd(),
                    EpollEvent::new(EventSet::IN, token),
                )?;
            }
        }
        let served = functions.into_iter().map(|function| Served {
            function,
            watched: false,
        });
        Ok(Self {
            epoll,
            look,
            gate,
            served: served.collect(),
            unfinished: Vec::new(),
        })
    }

    /// What makes the thread look at every queue, or notice that it is to end.
    pub(crate) fn look(&self) -> Arc<EventFd> {
        Arc::clone(&self.look)
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn start(mut self, name: &str) -> io::Result<JoinHandle<()>> {
        Builder::new().name(short(name, "io")).spawn(move || {
            if let Err(error) = self.work() {
                tracing::error!(%error, "the network cards stop: the host's epoll failed");
            }
        })
    }

    fn work(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::default(); 32];
        loop {
            let timeout = if self.unfinished.is_empty() { -1 } else { 0 };
            let count = match self.epoll.wait(timeout, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            // While the machine is paused the events stay where they are, unread.
            if !self.gate.pass() {
                return Ok(());
            }
            for (device, queue) in std::mem::take(&mut self.unfinished) {
                self.turn(device, queue)?;
            }
            for event in &events[..count] {
                self.handle(event.data())?;
            }
        }
    }

    fn handle(&mut self, token: u64) -> io::Result<()> {
        if token == LOOK {
            clear(&self.look);
            self.unfinished.clear();
            for device in 0..self.served.len() {
                for queue in 0..self.served[device].function.kicks().len() {
                    self.turn(device, queue)?;
                }
            }
            return Ok(());
        }
        let device = (token >> 8) as usize;
        let queue = if token & 0xff == SOURCE {
            0
        } else {
            (token & 0xff) as usize
        };
        if token & 0xff != SOURCE {
            clear(&self.served[device].function.kicks()[queue]);
        }
        self.turn(device, queue)
    }

    /// A turn of work at one queue, and what follows from it.
    fn turn(&mut self, device: usize, queue: usize) -> io::Result<()> {
        let served = &mut self.served[device];
        let (work, listens) = served.function.process(queue);
        if work == Work::More && !self.unfinished.contains(&(device, queue)) {
            self.unfinished.push((device, queue));
        }
        let Some(source) = served.function.event_source() else {
            return Ok(());
        };
        if served.watched != listens {
            // Taken out altogether: a broken descriptor would report errors even with no event asked for.
            let operation = if listens {
                ControlOperation::Add
            } else {
                ControlOperation::Delete
            };
            let token = (device as u64) << 8 | SOURCE;
            self.epoll
                .ctl(operation, source, EpollEvent::new(EventSet::IN, token))?;
            served.watched = listens;
        }
        Ok(())
    }
}

/// Starts the thread of a disk. It serves queue 0 of `function`, whose requests `worker` does.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn start_disk(
    name: &str,
    function: Arc<Function>,
    worker: Arc<Worker>,
    gate: Arc<Gate>,
) -> io::Result<JoinHandle<()>> {
    Builder::new().name(short(name, "disk")).spawn(move || {
        let Some(kick) = function.kicks().first() else {
            return;
        };
        while gate.pass() {
            // Takes what the guest offers and hands back what is done, if the machine runs.
            function.process(0);
            // Does one request. This goes on even while the machine is paused: no guest memory is involved.
            if worker.work() {
                continue;
            }
            if let Err(error) = wait(kick) {
                tracing::error!(%error, "the disk stops: the host's poll failed");
                return;
            }
        }
    })
}

/// Waits until an event is signalled and clears it.
fn wait(event: &EventFd) -> io::Result<()> {
    let mut poll = libc::pollfd {
        fd: event.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: poll reads and writes one pollfd.
    if unsafe { libc::poll(&raw mut poll, 1, -1) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    clear(event);
    Ok(())
}

/// Clears an event. It fails only when there is nothing to clear.
fn clear(event: &EventFd) {
    let _ = event.read();
}

/// Ends the threads.
pub(crate) fn end(
    gate: &Gate,
    events: &[Arc<EventFd>],
    functions: &[Arc<Function>],
    threads: Vec<JoinHandle<()>>,
) {
    gate.set(Phase::Ended);
    for event in events {
        // It fails only when the counter is full, and then the thread is awake anyway.
        let _ = event.write(1);
    }
    for function in functions {
        function.kick_all();
    }
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a device's thread panicked");
        }
    }
}

/// A thread's name: the kernel keeps 15 bytes.
fn short(name: &str, what: &str) -> String {
    let mut name = name.to_owned();
    let room = 15 - 1 - what.len();
    while name.len() > room {
        name.pop();
    }
    format!("{name}-{what}")
}
