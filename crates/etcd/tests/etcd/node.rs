//! Nodes of etcd on this computer's own addresses, each in a directory that goes with it.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use romulus_etcd::EtcdConfig;

/// How long nodes may take for what they surely do.
const PATIENCE: Duration = Duration::from_mins(1);

/// One node. It is killed with its owner.
pub(crate) struct Node {
    name: String,
    directory: PathBuf,
    arguments: Vec<String>,
    pub(crate) address: SocketAddr,
    child: Option<Child>,
}

/// A cluster.
pub(crate) struct Nodes {
    pub(crate) nodes: Vec<Node>,
    pub(crate) directory: tempfile::TempDir,
}

/// Whether etcd is there to be started. `cargo xtask test` installs it.
pub(crate) fn is_here() -> bool {
    let here = Command::new("etcd").arg("--version").output().is_ok();
    if !here {
        eprintln!("not tested: there is no etcd on this computer (package etcd-server)");
    }
    here
}

/// Ports that were free a moment ago.
fn ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound"));
    listeners.map(|listener| listener.local_addr().expect("bound").port())
}

impl Nodes {
    /// As many nodes as that, when they answer.
    pub(crate) fn start(count: usize) -> Nodes {
        for _ in 0..5 {
            let mut nodes = Nodes::with(count, "http", |_| Vec::new());
            if nodes.answer() {
                return nodes;
            }
            // Somebody else may have taken a port.
        }
        panic!("etcd does not start");
    }

    /// Nodes that speak `scheme` to clients, with further arguments.
    pub(crate) fn with(count: usize, scheme: &str, more: impl Fn(&Path) -> Vec<String>) -> Nodes {
        let directory = tempfile::tempdir().expect("a directory");
        let ports: Vec<[u16; 2]> = (0..count).map(|_| ports()).collect();
        let here = Ipv4Addr::LOCALHOST;
        let members: Vec<String> = (0..count)
            .map(|n| format!("n{n}=http://{here}:{}", ports[n][1]))
            .collect();
        let nodes = (0..count).map(|n| {
            let name = format!("n{n}");
            let path = directory.path().join(&name);
            let [client, peer] = ports[n];
            let mut arguments: Vec<String> = [
                ("name", name.clone()),
                ("data-dir", path.display().to_string()),
                ("listen-client-urls", format!("{scheme}://{here}:{client}")),
                (
                    "advertise-client-urls",
                    format!("{scheme}://{here}:{client}"),
                ),
                ("listen-peer-urls", format!("http://{here}:{peer}")),
                (
                    "initial-advertise-peer-urls",
                    format!("http://{here}:{peer}"),
                ),
                ("initial-cluster", members.join(",")),
                ("initial-cluster-token", path.display().to_string()),
            ]
            .map(|(name, value)| format!("--{name}={value}"))
            .to_vec();
            // One token for all: what makes them one cluster.
            arguments.pop();
            arguments.push(format!(
                "--initial-cluster-token={}",
                directory.path().display()
            ));
            arguments.extend(more(directory.path()));
            let mut node = Node {
                name,
                directory: directory.path().to_owned(),
                arguments,
                address: (here, client).into(),
                child: None,
            };
            node.start();
            node
        });
        Nodes {
            nodes: nodes.collect(),
            directory,
        }
    }

    /// Waits until all answer; not, if one has ended.
    pub(crate) fn answer(&mut self) -> bool {
        for node in &mut self.nodes {
            let end = Instant::now() + PATIENCE;
            while !node.answers() {
                let child = node.child.as_mut().expect("started");
                if child.try_wait().expect("asked").is_some() || Instant::now() > end {
                    return false;
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
        true
    }

    /// An arbiter's configuration that names all nodes, beginning with the one at `first`.
    pub(crate) fn config(&self, first: usize) -> EtcdConfig {
        let count = self.nodes.len();
        let endpoints = (0..count).map(|n| {
            let address = self.nodes[(first + n) % count].address;
            format!("http://{address}").parse().expect("an endpoint")
        });
        EtcdConfig {
            endpoints: endpoints.collect(),
            prefix: "/romulus/".to_owned(),
            ca: None,
            certificate: None,
            user: None,
            plain: false,
        }
    }

    /// The node that leads, as soon as one does and says so itself.
    pub(crate) fn leader(&self) -> usize {
        let end = Instant::now() + PATIENCE;
        loop {
            for (index, node) in self.nodes.iter().enumerate() {
                if let Some((200, status)) = node.post("/v3/maintenance/status", &json!({}), None)
                    && status["leader"].is_string()
                    && status["leader"] == status["header"]["member_id"]
                {
                    return index;
                }
            }
            assert!(Instant::now() < end, "nobody leads");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Node {
    /// Starts it, with what it has on its disk.
    pub(crate) fn start(&mut self) {
        let log = fs::File::options()
            .append(true)
            .create(true)
            .open(self.directory.join(format!("{}.log", self.name)))
            .expect("a log");
        // It does not outlive the thread that started it, however that ends.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "etcd"])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.child = Some(child.expect("started"));
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("killed");
            child.wait().expect("gone");
        }
    }

    /// Removes its disk.
    pub(crate) fn forget(&mut self) {
        fs::remove_dir_all(self.directory.join(&self.name)).expect("removed");
    }

    /// What is under a key.
    pub(crate) fn get(&self, key: &str) -> Option<Vec<u8>> {
        let what = json!({ "key": STANDARD.encode(key) });
        let (status, answer) = self.post("/v3/kv/range", &what, None).expect("an answer");
        assert_eq!(status, 200, "{answer}");
        // An empty value is left out.
        let pair = answer["kvs"].get(0)?;
        let value = pair["value"].as_str().unwrap_or_default();
        Some(STANDARD.decode(value).expect("base64"))
    }

    /// Whether it answers, with others if it needs them.
    fn answers(&self) -> bool {
        let what = json!({ "key": STANDARD.encode("/x") });
        let answer = self.post("/v3/kv/range", &what, None);
        matches!(answer, Some((200, _)))
    }

    /// Puts something under a key.
    pub(crate) fn put(&self, key: &str, value: &[u8]) {
        let what = json!({ "key": STANDARD.encode(key), "value": STANDARD.encode(value) });
        let answer = self.post("/v3/kv/put", &what, None);
        assert!(matches!(answer, Some((200, _))), "{answer:?}");
    }

    /// Asks etcd itself.
    pub(crate) fn post(
        &self,
        path: &str,
        what: &Value,
        token: Option<&str>,
    ) -> Option<(u16, Value)> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        let body = what.to_string();
        let token = token.map_or_else(String::new, |t| format!("Authorization: {t}\r\n"));
        write!(
            stream,
            "POST {path} HTTP/1.0\r\nContent-Length: {}\r\n{token}\r\n{body}",
            body.len()
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, serde_json::from_str(body).ok()?))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
