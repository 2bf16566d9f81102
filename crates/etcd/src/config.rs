//! Which etcd, and how it is spoken to.

use std::fmt;
use std::fs::{self, File};
use std::io::Read as _;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use hyper::Uri;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;

use super::fault::Fault;

/// etcd's port for clients.
const PORT: u16 = 2379;
/// Far longer than any password or certificate, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// Where a node of etcd answers clients: `https://203.0.113.21:2379`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Whether it speaks TLS.
    pub tls: bool,
    /// Its address or name, an IPv6 address without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// Text that is no [`Endpoint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{0}; write https://ADDRESS:2379 (or http://127.0.0.1:2379)")]
pub struct EndpointError(&'static str);

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Endpoint, EndpointError> {
        let uri: Uri = text.parse().map_err(|_| EndpointError("this is no URL"))?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => {
                return Err(EndpointError(
                    "this begins with neither https:// nor http://",
                ));
            }
        };
        let host = uri.host().unwrap_or_default();
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        if authority.contains('@') {
            return Err(EndpointError("user and password do not belong in here"));
        }
        if authority != host && uri.port_u16().is_none() {
            return Err(EndpointError("its port is no number"));
        }
        let host = host
            .strip_prefix('[')
            .and_then(|h| h.strip_suffix(']'))
            .unwrap_or(host);
        if host.is_empty() {
            return Err(EndpointError("this names no host"));
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(EndpointError("there is something behind the port"));
        }
        Ok(Endpoint {
            tls,
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(PORT),
        })
    }
}

impl Endpoint {
    /// What the HTTP header says of it.
    pub(super) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Whether nothing that is sent there leaves this computer.
    fn is_here(&self) -> bool {
        match self.host.parse::<IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => self.host.eq_ignore_ascii_case("localhost"),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority())
    }
}

/// Who an arbiter is to etcd, where etcd asks for a name and a password.
#[derive(Clone, Debug)]
pub struct User {
    /// The name.
    pub name: String,
    /// The file of the password: its first line.
    pub password: PathBuf,
}

/// Which etcd an arbiter uses.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// Nodes of one cluster, in any number.
    pub endpoints: Vec<Endpoint>,
    /// What all keys begin with; it ends with a slash.
    pub prefix: String,
    /// The file of the certificates (PEM) that a node's certificate must be signed by.
    pub ca: Option<PathBuf>,
    /// The files of a certificate of the arbiter's own, and of its key (PEM).
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Name and password.
    pub user: Option<User>,
    /// Whether nodes on other computers may be spoken to without TLS.
    pub plain: bool,
}

/// Why an arbiter cannot use etcd.
#[derive(Debug, Error)]
pub enum EtcdError {
    /// There is no node.
    #[error("no node of etcd is given; add --etcd-endpoint https://ADDRESS:2379")]
    NoEndpoint,
    /// The prefix is none.
    #[error("the prefix {0:?} of the keys does not begin and end with a slash; write /romulus/")]
    Prefix(String),
    /// A node on another computer is to be spoken to without TLS.
    #[error(
        "whoever can reach {0}, or the way to it, could say who runs every machine; write https:// and give --etcd-ca, or say --etcd-plain if nobody else can"
    )]
    Plain(Endpoint),
    /// Nothing says who signs the nodes' certificates.
    #[error(
        "{0} cannot be told from another without --etcd-ca, the certificate that signs those of etcd"
    )]
    NoCa(Endpoint),
    /// A file cannot be used.
    #[error("{path} cannot be used: {why}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A secret is none any more.
    #[error("others may read {path} (mode {mode:03o}), and it is a secret; say: chmod o= {path}")]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// etcd does not let the arbiter in, or not to its keys.
    #[error(transparent)]
    Refused(Fault),
    /// The operating system refuses a thread or a descriptor.
    #[error("the arbiter cannot speak to etcd: {0}")]
    System(#[from] std::io::Error),
}

/// The name and password that etcd is told.
#[derive(Clone)]
pub(super) struct Login {
    pub(super) name: String,
    pub(super) password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The password stays out of logs.
        f.debug_struct("Login")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl EtcdConfig {
    /// Looks at everything that can be looked at without etcd.
    pub(super) fn check(&self) -> Result<(), EtcdError> {
        if self.endpoints.is_empty() {
            return Err(EtcdError::NoEndpoint);
        }
        let prefix = &self.prefix;
        if !prefix.starts_with('/') || !prefix.ends_with('/') {
            return Err(EtcdError::Prefix(prefix.clone()));
        }
        for endpoint in &self.endpoints {
            if endpoint.tls && self.ca.is_none() {
                return Err(EtcdError::NoCa(endpoint.clone()));
            }
            if !endpoint.tls && !self.plain && !endpoint.is_here() {
                return Err(EtcdError::Plain(endpoint.clone()));
            }
        }
        Ok(())
    }

    /// What TLS needs, if any node speaks it.
    pub(super) fn tls(&self) -> Result<Option<Arc<ClientConfig>>, EtcdError> {
        let Some(ca) = &self.ca else {
            return Ok(None);
        };
        let unusable = |path: &Path, why: &dyn fmt::Display| EtcdError::File {
            path: path.to_owned(),
            why: why.to_string(),
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(ca)? {
            roots.add(certificate).map_err(|why| unusable(ca, &why))?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .map_err(|why| unusable(ca, &why))?
            .with_root_certificates(roots);
        let config = match &self.certificate {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let text = secret(key)?;
                let secret = PrivateKeyDer::from_pem_slice(&text)
                    .map_err(|why| unusable(key, &format!("no key in PEM is in it ({why})")))?;
                builder
                    .with_client_auth_cert(certificates(chain)?, secret)
                    .map_err(|why| unusable(key, &why))?
            }
        };
        Ok(Some(Arc::new(config)))
    }

    /// Name and password, if there are any.
    pub(super) fn login(&self) -> Result<Option<Login>, EtcdError> {
        let Some(user) = &self.user else {
            return Ok(None);
        };
        let unusable = |why: &str| EtcdError::File {
            path: user.password.clone(),
            why: why.to_owned(),
        };
        let text =
            String::from_utf8(secret(&user.password)?).map_err(|_| unusable("it is not text"))?;
        let password = text.lines().next().unwrap_or_default();
        if password.is_empty() {
            return Err(unusable(
                "its first line is to be the password, and is empty",
            ));
        }
        Ok(Some(Login {
            name: user.name.clone(),
            password: password.to_owned(),
        }))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, EtcdError> {
    let unusable = |why: String| EtcdError::File {
        path: path.to_owned(),
        why,
    };
    let list: Vec<_> = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<_, _>>()
        .map_err(|why| unusable(why.to_string()))?;
    if list.is_empty() {
        return Err(unusable("no certificate in PEM is in it".to_owned()));
    }
    Ok(list)
}

/// Reads a file that only its owner and group may read.
fn secret(path: &Path) -> Result<Vec<u8>, EtcdError> {
    let text = read(path)?;
    let mode = fs::metadata(path)
        .map_err(|why| EtcdError::File {
            path: path.to_owned(),
            why: why.to_string(),
        })?
        .permissions()
        .mode()
        & 0o777;
    if mode & 0o007 != 0 {
        return Err(EtcdError::Mode {
            path: path.to_owned(),
            mode,
        });
    }
    Ok(text)
}

fn read(path: &Path) -> Result<Vec<u8>, EtcdError> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_MAX).read_to_end(&mut text))
        .map_err(|why| EtcdError::File {
            path: path.to_owned(),
            why: why.to_string(),
        })?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_urls_and_nothing_else() {
        for (text, shown) in [
            ("https://203.0.113.21:2379", "https://203.0.113.21:2379"),
            ("http://localhost/", "http://localhost:2379"),
            ("https://[2001:db8::1]:4001", "https://[2001:db8::1]:4001"),
            ("https://etcd.example", "https://etcd.example:2379"),
        ] {
            let endpoint: Endpoint = text.parse().expect(text);
            assert_eq!(endpoint.to_string(), shown);
            assert_eq!(shown.parse(), Ok(endpoint));
        }
        for text in [
            "",
            "203.0.113.21:2379",
            "ftp://203.0.113.21",
            "https://",
            "https:///v3",
            "https://203.0.113.21/v3",
            "https://203.0.113.21?x",
            "https://user:password@203.0.113.21",
            "https://203.0.113.21:port",
            "https://203.0.113.21:",
            "https://203.0.113.21:99999",
        ] {
            let error = text.parse::<Endpoint>().expect_err(text);
            assert!(error.to_string().contains("write https://"), "{error}");
        }
    }

    #[test]
    fn here_is_loopback_only() {
        for (text, here) in [
            ("http://127.0.0.1", true),
            ("http://127.9.9.9", true),
            ("http://[::1]", true),
            ("http://LocalHost", true),
            ("http://localhost.example", false),
            ("http://192.0.2.1", false),
            ("http://[::]", false),
            ("http://0.0.0.0", false),
        ] {
            let endpoint: Endpoint = text.parse().expect(text);
            assert_eq!(endpoint.is_here(), here, "{text}");
        }
    }
}
