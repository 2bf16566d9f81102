//! Arbiters in front of real nodes of etcd, on this computer's own addresses.

mod entry;
mod node;
mod one;
mod running;
mod three;
mod unknown;
