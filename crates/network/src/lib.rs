//! The network around a machine.
