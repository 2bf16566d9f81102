//! The control interface of a running machine: HTTP/1.1 over a unix socket. `docs/api.yaml` describes it.

pub(crate) mod client;
pub(crate) mod model;
pub(crate) mod server;
