//! `romulus arbiter`: the keeper of the records, in the foreground.

use crate::{
    cli,
    exit::{Code, Failure, OrExit as _},
    pair,
};
use anyhow::Context as _;
use romulus_engine::{
    arbiter::{Files, Records, Server, ServerConfig, ServerError},
    identity::{Public, Secret},
};
use romulus_etcd::{Etcd, EtcdConfig, EtcdError, User};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM},
    flag,
    low_level::pipe,
};
use std::{
    fs, io,
    io::Read as _,
    net::SocketAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// What `--store` says when the records are in etcd. A directory of that name is `./etcd`.
const ETCD: &str = "etcd";
/// What the keys begin with.
const PREFIX: &str = "/romulus/";

/// Where the records are to be.
enum Store {
    Directory(PathBuf),
    Etcd(EtcdConfig),
}

/// Answers until it is told to end.
pub(crate) fn arbiter(args: &cli::Arbiter) -> Result<Code, Failure> {
    let store = store(args)?;
    let secret = pair::load(&args.identity)?;
    let mut allowed = allowed(&args.allow)?;
    let mut signals = Watch::new().context("cannot watch signals")?;
    let mut listen = args.listen.clone();
    loop {
        let server = open(&store, listen, &secret, allowed.clone())?;
        // A port that the system chose stays.
        listen = server.addresses().to_vec();
        let addresses: Vec<String> = server.addresses().iter().map(ToString::to_string).collect();
        tracing::info!(
            "answers {} identities at {}",
            allowed.len(),
            addresses.join(", ")
        );
        server.run(&signals.news).or_exit(Code::Failed)?;
        if signals.heard().context("cannot watch signals")? {
            tracing::info!("ended by a signal");
            return Ok(Code::Done);
        }
        // Hosts ask again what the moment between two servers swallows.
        allowed = match self::allowed(&args.allow) {
            Ok(list) => list,
            Err(failure) => {
                tracing::error!("{:#}; the identities from before hold on", failure.error);
                allowed
            }
        };
    }
}

/// Reads the options.
fn store(args: &cli::Arbiter) -> Result<Store, Failure> {
    let etcd = &args.etcd;
    if args.store != Path::new(ETCD) {
        let given = [
            ("--etcd-endpoint", !etcd.endpoints.is_empty()),
            ("--etcd-prefix", etcd.prefix.is_some()),
            ("--etcd-ca", etcd.ca.is_some()),
            ("--etcd-cert", etcd.cert.is_some()),
            ("--etcd-user", etcd.user.is_some()),
            ("--etcd-plain", etcd.plain),
        ];
        if let Some((name, _)) = given.iter().find(|(_, given)| *given) {
            return Err(anyhow::anyhow!(
                "{name} says where the records are, and so does --store {}; write --store etcd, or leave {name} out",
                args.store.display()
            ))
            .or_exit(Code::Config);
        }
        return Ok(Store::Directory(args.store.clone()));
    }
    let certificate = etcd.cert.clone().zip(etcd.key.clone());
    let user = etcd.user.clone().zip(etcd.password_file.clone());
    Ok(Store::Etcd(EtcdConfig {
        endpoints: etcd.endpoints.clone(),
        prefix: etcd.prefix.clone().unwrap_or_else(|| PREFIX.to_owned()),
        ca: etcd.ca.clone(),
        certificate,
        user: user.map(|(name, password)| User { name, password }),
        plain: etcd.plain,
    }))
}

fn open(
    store: &Store,
    listen: Vec<SocketAddr>,
    secret: &Secret,
    allowed: Vec<Public>,
) -> Result<Server, Failure> {
    let config = ServerConfig {
        listen,
        records: records(store)?,
        secret: secret.clone(),
        allowed,
    };
    Server::open(config).map_err(|error| {
        let code = match &error {
            ServerError::Host { .. } | ServerError::Alike(..) => Code::Config,
            _ => Code::Unavailable,
        };
        Failure {
            code,
            error: error.into(),
        }
    })
}

fn records(store: &Store) -> Result<Box<dyn Records + Send>, Failure> {
    match store {
        Store::Directory(path) => Ok(Box::new(Files::open(path).or_exit(Code::CannotCreate)?)),
        Store::Etcd(config) => match Etcd::open(config) {
            Ok(etcd) => Ok(Box::new(etcd)),
            Err(error @ EtcdError::System(_)) => Err(error).or_exit(Code::Unavailable),
            Err(error) => Err(error).or_exit(Code::Config),
        },
    }
}

/// Reads who is answered.
fn allowed(file: &Path) -> Result<Vec<Public>, Failure> {
    let text = fs::read_to_string(file)
        .with_context(|| {
            format!(
                "cannot read {}, the list of identities that are answered",
                file.display()
            )
        })
        .or_exit(Code::Config)?;
    parse(&text)
        .map_err(|error| anyhow::anyhow!("{}:{error}", file.display()))
        .or_exit(Code::Config)
}

/// One identity a line; `#` begins a comment. The error begins with the line's number.
fn parse(text: &str) -> Result<Vec<Public>, String> {
    let mut allowed = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let word = line.split('#').next().unwrap_or_default().trim();
        if word.is_empty() {
            continue;
        }
        let public: Public = word.parse().map_err(|error| {
            format!("{number}: {error}; one identity a line, `#` begins a comment")
        })?;
        if allowed.contains(&public) {
            return Err(format!("{number}: this identity is in the file twice"));
        }
        allowed.push(public);
    }
    if allowed.is_empty() {
        return Err(
            "1: no identity is allowed; write those of the hosts, one a line (`romulus pair` prints them)"
                .to_owned(),
        );
    }
    Ok(allowed)
}

/// Signals, as a socket that becomes readable.
struct Watch {
    news: UnixStream,
    end: Arc<AtomicBool>,
}

impl Watch {
    fn new() -> io::Result<Self> {
        let (news, teller) = UnixStream::pair()?;
        news.set_nonblocking(true)?;
        let end = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT, SIGQUIT] {
            // The flag first: who wakes up looks at it.
            flag::register(signal, Arc::clone(&end))?;
            pipe::register(signal, teller.try_clone()?)?;
        }
        pipe::register(SIGHUP, teller)?;
        Ok(Self { news, end })
    }

    /// Takes note of the signals that came; returns whether one of them means the end.
    fn heard(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 64];
        loop {
            match self.news.read(&mut buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.end.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(directory: &Path, name: &str) -> Public {
        *Secret::create(&directory.join(name)).unwrap().public()
    }

    #[test]
    fn the_list_has_comments_and_knows_its_lines() {
        let directory = tempfile::tempdir().unwrap();
        let (alba, berta) = (
            identity(directory.path(), "alba"),
            identity(directory.path(), "berta"),
        );
        let text = format!("# hosts\n\n  {alba}  # alba\n{berta}\n");
        assert_eq!(parse(&text).unwrap(), [alba, berta]);
        let error = parse(&format!("{alba}\n{alba}\n")).unwrap_err();
        assert!(
            error.starts_with("2: ") && error.contains("twice"),
            "{error}"
        );
        let error = parse(&format!("# one\n{alba}x\n")).unwrap_err();
        assert!(error.starts_with("2: "), "{error}");
        assert!(parse("# nobody\n").unwrap_err().contains("romulus pair"));
    }
}
