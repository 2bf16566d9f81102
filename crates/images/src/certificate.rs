//! Self-signed certificates for test guests.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::{self, Digest};
use crate::recipe::Certificate;
use crate::run;

/// Certificate and key in PEM form, generated at the first call for these names and the same ever after, for as long
/// as the cache is kept.
pub(crate) fn generate(wanted: &Certificate) -> Result<(Vec<u8>, Vec<u8>)> {
    let Some(subject) = wanted.names.first() else {
        bail!("a certificate needs a name")
    };
    let mut alternatives = String::from("subjectAltName=");
    let mut digest = Digest::new("certificate 1");
    // Writing to a string cannot fail.
    for name in &wanted.names {
        let _ = write!(alternatives, "DNS:{name},");
    }
    for address in &wanted.addresses {
        let _ = write!(alternatives, "IP:{address},");
    }
    let alternatives = alternatives.trim_end_matches(',');
    let name = format!("{subject}-{}", digest.add(alternatives).short());
    let entry = cache::entry(&cache::cache_dir(), "certificate", &name, |directory| {
        let mut openssl = Command::new("openssl");
        openssl.args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-noenc",
        ]);
        openssl.args([
            "-days",
            "3650",
            "-subj",
            &format!("/CN={subject}"),
            "-addext",
            alternatives,
        ]);
        openssl
            .arg("-keyout")
            .arg(directory.join("key.pem"))
            .arg("-out")
            .arg(directory.join("certificate.pem"));
        run::quiet(&mut openssl, "openssl req")
    })?;
    let read = |file: &str| {
        fs::read(entry.join(file))
            .with_context(|| format!("cannot read {file} in {}", entry.display()))
    };
    Ok((read("certificate.pem")?, read("key.pem")?))
}
