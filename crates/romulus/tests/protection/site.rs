//! The files of two hosts and an arbiter, and the commands on them.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    thread,
};
use tempfile::TempDir;

/// The files of two hosts and an arbiter.
pub(crate) struct Site {
    files: TempDir,
    pub(crate) alba: String,
    pub(crate) berta: String,
    pub(crate) court: String,
}

/// An arbiter that runs.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Site {
    pub(crate) fn new() -> Self {
        let mut site = Self {
            files: tempfile::tempdir().unwrap(),
            alba: String::new(),
            berta: String::new(),
            court: String::new(),
        };
        let pair = |name: &str| {
            let output = site.romulus(&["pair", "--json", "--identity", name]);
            assert_eq!(code(&output), 0, "{}", stderr(&output));
            json(&output)["identity"].as_str().unwrap().to_owned()
        };
        let [alba, berta, court] = ["keys/alba", "keys/berta", "keys/court"].map(pair);
        (site.alba, site.berta, site.court) = (alba, berta, court);
        let allowed = format!("# the pair\n{}\n{} # berta\n", site.alba, site.berta);
        fs::write(site.path("allowed"), allowed).unwrap();
        site
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_romulus"));
        command
            .args(arguments)
            .env("ROMULUS_RUNTIME_DIR", self.path("run"))
            .env_remove("RUST_LOG")
            .env_remove("JOURNAL_STREAM")
            .current_dir(self.files.path());
        command
    }

    pub(crate) fn romulus(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("romulus starts")
    }

    /// Starts the arbiter and waits until it says where it answers.
    pub(crate) fn arbiter(&self, listen: SocketAddr) -> Running {
        self.arbiter_with(listen, &["--store", "store"])
    }

    /// The same with other records.
    pub(crate) fn arbiter_with(&self, listen: SocketAddr, store: &[&str]) -> Running {
        let listen = listen.to_string();
        let mut child = self
            .command(&[
                "arbiter",
                "--listen",
                &listen,
                "--identity",
                "keys/court",
                "--allow",
                "allowed",
            ])
            .args(store)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the arbiter starts");
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut seen = String::new();
        let address = loop {
            let mut line = String::new();
            let length = log.read_line(&mut line).unwrap();
            assert!(length > 0, "the arbiter ended: {seen}");
            seen.push_str(&line);
            if let Some((_, address)) = line.trim().rsplit_once("identities at ") {
                break address.parse().unwrap();
            }
        };
        // A full pipe would stop it.
        thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Running { child, address }
    }

    /// The machine's file as it lies on a host: only the paths differ, so that both can be played on one computer.
    pub(crate) fn machine(&self, host: &str, arbiter: SocketAddr, uuid: Option<&str>) -> String {
        let uuid = uuid.map_or_else(String::new, |uuid| format!("uuid = '{uuid}'\n"));
        let (alba, berta, court) = (&self.alba, &self.berta, &self.court);
        let text = format!(
            "name = 'registrar'\nmemory = '128 MiB'\n{uuid}boot.kernel = 'vmlinuz'
[protection]
arbiter = '{arbiter}'
arbiter_identity = '{court}'
state = 'state-{host}'
identity = 'keys/{host}'
[[protection.host]]
name = 'alba'
identity = '{alba}'
replication = '127.0.0.1:1'
control = '127.0.0.1:2'
[[protection.host]]
name = 'berta'
identity = '{berta}'
replication = '127.0.0.1:3'
control = '127.0.0.1:4'
"
        );
        let name = format!("{host}.toml");
        fs::write(self.path(&name), text).unwrap();
        name
    }
}

pub(crate) fn code(output: &Output) -> i32 {
    output.status.code().expect("ended by itself")
}

pub(crate) fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("text")
}

pub(crate) fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("text")
}

pub(crate) fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}{}", stdout(output), stderr(output));
    })
}

pub(crate) const UUID: &str = "6ba7b810-9dad-41d1-80b4-00c04fd430c8";

pub(crate) fn any() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Nobody answers there: the socket is bound and never read.
pub(crate) struct Silence(std::net::UdpSocket);

impl Silence {
    pub(crate) fn new() -> Self {
        Self(std::net::UdpSocket::bind(any()).unwrap())
    }
    pub(crate) fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }
}
