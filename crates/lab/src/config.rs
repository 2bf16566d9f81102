//! What a lab is to be.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::image::HostImage;

/// What hosts are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// QEMU emulates an AMD processor with SVM: a real kernel with a real `/dev/kvm`, on any computer.
    Qemu,
    /// Namespaces on this computer, whose own `/dev/kvm` the hosts use.
    Namespaces,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Qemu => "qemu",
            Self::Namespaces => "namespaces",
        })
    }
}

/// What a lab is to be.
#[derive(Clone, Debug)]
pub struct LabConfig {
    /// How many hosts, 1 to [`MAX_HOSTS`](crate::MAX_HOSTS).
    pub hosts: usize,
    /// The memory of each, in MiB. Hosts keep their files in it too.
    pub host_memory_mib: u32,
    /// Files that every host has from its start: where they are here, and their absolute path there.
    pub payload: Vec<(PathBuf, String)>,
    /// What the hosts are made of; `None` for what fits this computer ([`detect`](crate::detect)).
    pub kind: Option<Kind>,
    /// The host image, from [`prepare`](crate::prepare); `None` to prepare it now, which needs the computer's network where
    /// something is not in the cache.
    pub image: Option<HostImage>,
    /// Where the hosts' serial logs go; `None` for a new directory in the cache, of which the last few are kept.
    pub logs: Option<PathBuf>,
}

impl Default for LabConfig {
    fn default() -> Self {
        Self {
            hosts: 2,
            host_memory_mib: 2048,
            payload: Vec::new(),
            kind: None,
            image: None,
            logs: None,
        }
    }
}
