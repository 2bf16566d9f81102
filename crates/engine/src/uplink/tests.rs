//! Datagrams as the kernel makes them, and others.

use super::links::{Links, News};
use proptest::prelude::*;

const UP: u32 = 1 | 0x40 | 0x1_0000;
const NO_CARRIER: u32 = 1;
const BRIDGE: u8 = 7;

fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + body.len()).unwrap();
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend([0; 10]);
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn link(kind: u16, family: u8, index: u32, name: &str, flags: u32) -> Vec<u8> {
    let mut body = vec![family, 0, 1, 0];
    body.extend(index.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body.extend([0; 4]);
    // Its MTU, then its name.
    body.extend([8, 0, 4, 0, 0xdc, 5, 0, 0]);
    let length = u16::try_from(5 + name.len()).unwrap();
    body.extend(length.to_ne_bytes());
    body.extend(3_u16.to_ne_bytes());
    body.extend(name.as_bytes());
    body.push(0);
    body.resize(body.len().next_multiple_of(4), 0);
    message(kind, &body)
}

fn new(index: u32, name: &str, flags: u32) -> Vec<u8> {
    link(16, 0, index, name, flags)
}

fn done() -> Vec<u8> {
    message(3, &[0; 4])
}

fn watched() -> Links {
    Links::new(&["eth1".to_owned(), "bond0".to_owned()])
}

/// After its list the first is up, and the second does not exist.
fn listed() -> Links {
    let mut links = watched();
    links.begin_list();
    let list = [new(1, "lo", UP), new(2, "eth1", UP), new(3, "eth10", UP)].concat();
    assert_eq!(links.read(&list), News::Followed);
    assert!(links.is_listing());
    assert_eq!(links.read(&done()), News::Followed);
    assert!(!links.is_listing());
    assert_eq!(links.up(), [true, false]);
    links
}

#[test]
fn carriers_come_and_go() {
    let mut links = listed();
    links.read(&new(2, "eth1", NO_CARRIER));
    assert_eq!(links.up(), [false, false]);
    links.read(&[new(9, "bond0", UP), new(2, "eth1", UP)].concat());
    assert_eq!(links.up(), [true, true]);
    // Taken down by the operator.
    links.read(&new(9, "bond0", UP & !1));
    assert_eq!(links.up(), [true, false]);
}

#[test]
fn who_is_removed_or_renamed_is_gone() {
    let mut links = listed();
    links.read(&link(17, 0, 2, "eth1", UP));
    assert_eq!(links.up(), [false, false]);
    links.read(&new(4, "eth1", UP));
    assert_eq!(links.up(), [true, false]);
    links.read(&new(4, "bond0", UP));
    assert_eq!(links.up(), [false, true]);
}

#[test]
fn a_port_that_leaves_its_bridge_is_not_gone() {
    let mut links = listed();
    links.read(&link(17, BRIDGE, 2, "eth1", UP));
    links.read(&link(16, BRIDGE, 2, "eth1", NO_CARRIER));
    assert_eq!(links.up(), [true, false]);
}

#[test]
fn what_is_in_no_new_list_is_gone() {
    let mut links = listed();
    links.begin_list();
    links.read(&new(1, "lo", UP));
    assert_eq!(links.up(), [true, false], "the list has not ended");
    links.read(&done());
    assert_eq!(links.up(), [false, false]);
}

#[test]
fn what_cannot_be_followed_is_asked_for_again() {
    let mut links = listed();
    assert_eq!(links.read(&message(4, &[])), News::Missed);
    assert_eq!(links.read(&[0; 7]), News::Missed);
    let whole = new(2, "eth1", NO_CARRIER);
    assert_eq!(links.read(&whole[..whole.len() - 8]), News::Missed);
    assert_eq!(links.up(), [true, false]);
}

/// On this computer's own kernel: every one has a loopback interface, and none of this name.
#[test]
fn the_kernel_tells() {
    let names = ["lo".to_owned(), "no-such-link".to_owned()];
    let watch = super::Watch::open(&names).expect("the kernel lists its links");
    assert_eq!(watch.up().len(), 2);
    assert!(!watch.up()[1]);
    let flags = std::fs::read_to_string("/sys/class/net/lo/flags").expect("there is a loopback");
    let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap();
    assert_eq!(watch.up()[0], flags & 1 != 0);
}

proptest! {
    #[test]
    fn no_datagram_is_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut links = listed();
        links.read(&bytes);
        links.read(&message(16, &bytes));
        links.read(&message(17, &bytes));
    }
}
