//! Telephony on top of the machines: what is measured of calls and of their media.

pub mod random;
pub mod report;
pub mod sipstone;
