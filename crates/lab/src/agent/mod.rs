//! The agent: the small program in each host that does what the lab asks.

mod files;
mod programs;

use std::io::{self, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, bail};

use crate::protocol::{Frame, Request, Welcome};
use programs::Programs;

/// Answers requests on `address` until the process ends.
///
/// # Errors
/// Where the address cannot be had.
pub fn serve(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address)
        .with_context(|| format!("the agent cannot listen on {address}"))?;
    answer(&listener);
    Ok(())
}

fn answer(listener: &TcpListener) {
    let programs = Arc::new(Programs::default());
    for stream in listener.incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                eprintln!("lab-agent: a connection was lost before it was accepted: {error}");
                continue;
            }
        };
        let programs = Arc::clone(&programs);
        let started = thread::Builder::new()
            .name("connection".into())
            .spawn(move || {
                if let Err(error) = converse(&stream, &programs) {
                    // The lab may be gone already; then nobody needs the reason.
                    let _ = Frame::Failed(format!("{error:#}")).write(&stream);
                }
            });
        if let Err(error) = started {
            eprintln!("lab-agent: no thread for a connection: {error}");
        }
    }
}

/// Answers the one request of a connection.
fn converse(stream: &TcpStream, programs: &Arc<Programs>) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut from = BufReader::with_capacity(64 << 10, stream);
    match Frame::read(&mut from)? {
        None => Ok(()),
        Some(Frame::Request(Request::Hello)) => Ok(Frame::Welcome(welcome()?).write(stream)?),
        Some(Frame::Request(Request::Run(program))) => programs.run(&program, &mut from, stream),
        Some(Frame::Request(Request::Signal { pid, signal })) => {
            programs.signal(pid, signal)?;
            Ok(Frame::Done(0).write(stream)?)
        }
        Some(Frame::Request(Request::Put { path, mode, size })) => {
            files::put(Path::new(&path), mode, size, &mut from)?;
            Ok(Frame::Done(mode).write(stream)?)
        }
        Some(Frame::Request(Request::Get { path })) => files::get(Path::new(&path), stream),
        Some(_) => bail!("a connection begins with a request"),
    }
}

fn welcome() -> io::Result<Welcome> {
    let uptime = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let milliseconds = uptime.tv_sec * 1000 + uptime.tv_nsec / 1_000_000;
    let clock = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let microseconds = clock.tv_sec * 1_000_000 + clock.tv_nsec / 1000;
    Ok(Welcome {
        name: rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
        uptime_ms: u64::try_from(milliseconds).unwrap_or(0),
        clock_us: u64::try_from(microseconds).unwrap_or(0),
        kvm: Path::new("/dev/kvm").try_exists()?,
    })
}

#[cfg(test)]
mod tests;
