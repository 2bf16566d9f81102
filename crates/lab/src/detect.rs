//! What hosts on this computer are to be made of.

use std::env;

use anyhow::{Result, bail};

use crate::config::Kind;

/// Overrides what [`detect`] finds out: `qemu` or `namespaces`.
const OVERRIDE: &str = "ROMULUS_LAB";

/// Finds out what hosts on this computer are made of: namespaces where its KVM runs a stock kernel, QEMU elsewhere.
///
/// # Errors
/// Where the environment variable `ROMULUS_LAB` says something that is neither `qemu` nor `namespaces`.
pub fn detect() -> Result<Kind> {
    chosen(env::var(OVERRIDE).ok().as_deref(), || false)
}

fn chosen(wish: Option<&str>, kvm_is_real: impl FnOnce() -> bool) -> Result<Kind> {
    match wish {
        Some("qemu") => Ok(Kind::Qemu),
        Some("namespaces") => Ok(Kind::Namespaces),
        None | Some("") => Ok(if kvm_is_real() { Kind::Namespaces } else { Kind::Qemu }),
        Some(other) => bail!("{OVERRIDE}={other}: it can be qemu or namespaces"),
    }
}
