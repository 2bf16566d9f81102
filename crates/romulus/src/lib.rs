//! What of the binary others may use: the machine file, read by nothing but this, so that it can be tried with anything.

#![forbid(unsafe_code)]

pub mod config;
