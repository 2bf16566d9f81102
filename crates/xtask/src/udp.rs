//! UDP sockets of the lab's client.

use anyhow::{Context as _, Result, bail};
use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, SocketAddrV4, UdpSocket},
};

/// A socket of the lab's client. It is bound to the client's own address, which no other network has: nothing can go
/// anywhere else.
///
/// # Errors
/// The client's network can't be used.
pub(crate) fn client_socket(client: &lab::Client) -> Result<UdpSocket> {
    let address = client.address();
    client
        .visit(|| UdpSocket::bind((address, 0)))
        .with_context(|| format!("opening a socket at the lab client's address {address}"))
}

/// Where a socket is bound.
///
/// # Errors
/// It is not bound, or its address is not IPv4.
pub(crate) fn bound_to(socket: &UdpSocket) -> Result<SocketAddrV4> {
    match socket.local_addr()? {
        SocketAddr::V4(address) => Ok(address),
        SocketAddr::V6(_) => bail!("the socket's address is not IPv4"),
    }
}

/// `None` for the errors that only say that nobody is there yet.
pub(crate) fn unless_absent(result: io::Result<usize>) -> Result<Option<usize>> {
    match result {
        Ok(length) => Ok(Some(length)),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::WouldBlock
                    | ErrorKind::TimedOut
                    | ErrorKind::ConnectionRefused
                    | ErrorKind::HostUnreachable
                    | ErrorKind::NetworkUnreachable
                    | ErrorKind::Interrupted
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// A socket of this computer for a test, and its address.
#[cfg(test)]
pub(crate) fn local() -> (UdpSocket, SocketAddrV4) {
    let socket = UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = bound_to(&socket).unwrap();
    (socket, address)
}
