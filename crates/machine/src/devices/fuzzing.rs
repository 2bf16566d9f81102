//! Devices whose card leads nowhere.

use super::{
    Devices, InterruptLine,
    block::Disk,
    net::{
        TapWriter,
        link::{Header, Link, Offload},
    },
    ring::Part,
};
use crate::{Error, config::Config, memory::Ram, ports::Ports};
use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
};
use vm_memory::GuestAddress;

/// Length of guest memory: low addresses are inside, all others outside.
const MEMORY: usize = 4 << 20;

/// A link without another end.
struct Nowhere(File);

impl Link for Nowhere {
    fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn writer(&self) -> io::Result<TapWriter> {
        self.0.try_clone().map(TapWriter::new)
    }

    fn interface(&self) -> Option<String> {
        None
    }

    fn set_offload(&mut self, _: Offload) -> io::Result<()> {
        Ok(())
    }

    fn send(&mut self, _: &Header, _: &[Part<'_>]) -> io::Result<()> {
        Ok(())
    }

    fn receive(&mut self, _: &[Part<'_>]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn receive_copy(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

/// Interrupts that nobody hears.
struct Unheard;

impl InterruptLine for Unheard {
    fn pulse(&self, _: u32) {}
}

/// The devices of `config`, whose cards need no taps.
pub(crate) fn devices(config: &Config) -> Result<Devices, Error> {
    let host = |source| Error::Host {
        what: "devices without a machine".into(),
        source,
    };
    let ram = Ram::from_ranges(&[(GuestAddress(0), MEMORY)])
        .map_err(|error| host(io::Error::other(error.to_string())))?;
    let mut links: Vec<Box<dyn Link>> = Vec::new();
    for _ in &config.nics {
        links.push(Box::new(Nowhere(File::open("/dev/null").map_err(host)?)));
    }
    let disks = Disk::open_all(config)?;
    Devices::with(
        config,
        ram,
        Arc::new(Unheard),
        links,
        disks,
        &Ports::default(),
    )
}
