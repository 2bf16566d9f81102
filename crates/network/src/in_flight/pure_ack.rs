//! TCP segments that do nothing but acknowledge.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use std::net::IpAddr;

/// Both ends of a TCP connection, as the one end that sends names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Connection {
    from: (IpAddr, u16),
    to: (IpAddr, u16),
}

/// The connection of a frame (without its virtio-net header) that carries an acknowledgement and nothing else: no data, no
/// flag but ACK.
pub(super) fn of(frame: &[u8]) -> Option<Connection> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let Some(TransportSlice::Tcp(tcp)) = &packet.transport else {
        return None;
    };
    let others = [
        tcp.syn(),
        tcp.fin(),
        tcp.rst(),
        tcp.psh(),
        tcp.urg(),
        tcp.ece(),
        tcp.cwr(),
        tcp.ns(),
    ];
    if !tcp.payload().is_empty() || !tcp.ack() || others.contains(&true) {
        return None;
    }
    let (from, to): (IpAddr, IpAddr) = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        Some(NetSlice::Ipv6(ip)) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        _ => return None,
    };
    Some(Connection {
        from: (from, tcp.source_port()),
        to: (to, tcp.destination_port()),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::of;
    use etherparse::PacketBuilder;

    const ALICE: [u8; 4] = [192, 0, 2, 1];
    const BOB: [u8; 4] = [192, 0, 2, 2];

    /// A segment of so many bytes from the machine's port to a peer's.
    pub(in crate::in_flight) fn segment(
        ports: [u16; 2],
        acknowledges: u32,
        data: usize,
    ) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4(ALICE, BOB, 64)
            .tcp(ports[0], ports[1], 7, 1000)
            .ack(acknowledges);
        let mut frame = Vec::new();
        builder.write(&mut frame, &vec![1; data]).unwrap();
        frame
    }

    #[test]
    fn only_what_does_nothing_else_is_a_pure_acknowledgement() {
        let pure = segment([5060, 4000], 1, 0);
        assert!(of(&pure).is_some());
        assert_eq!(of(&pure), of(&segment([5060, 4000], 2, 0)));
        assert_ne!(of(&pure), of(&segment([5060, 4001], 1, 0)));
        assert_ne!(of(&pure), of(&segment([5061, 4000], 1, 0)));
        assert!(of(&segment([5060, 4000], 1, 1)).is_none());
        for cut in 0..pure.len() {
            assert!(of(&pure[..cut]).is_none(), "cut to {cut} bytes");
        }
        // What follows the packet is padding of the shortest Ethernet frame.
        let mut padded = pure.clone();
        padded.resize(60, 0);
        assert_eq!(of(&padded), of(&pure));
        for flag in [0x01, 0x02, 0x04, 0x08, 0x20, 0x40, 0x80] {
            let mut other = pure.clone();
            other[14 + 20 + 13] |= flag;
            assert!(of(&other).is_none(), "flag {flag:#x}");
        }
        let mut silent = pure;
        silent[14 + 20 + 13] = 0;
        assert!(of(&silent).is_none());
    }

    #[test]
    fn other_packets_are_none() {
        let mut udp = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4(ALICE, BOB, 64)
            .udp(5060, 5060)
            .write(&mut udp, &[])
            .unwrap();
        assert!(of(&udp).is_none());
        let mut six = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv6([1; 16], [2; 16], 64)
            .tcp(5060, 4000, 7, 1000)
            .ack(9)
            .write(&mut six, &[])
            .unwrap();
        assert!(of(&six).is_some());
        assert_ne!(of(&six), of(&segment([5060, 4000], 9, 0)));
    }
}
