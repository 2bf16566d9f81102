//! The serial console: a ring of its latest output, a log that rotates, terminals.

pub(crate) mod hub;
pub(crate) mod keys;
pub(crate) mod log;
pub(crate) mod ring;
pub(crate) mod sink;
pub(crate) mod terminal;
