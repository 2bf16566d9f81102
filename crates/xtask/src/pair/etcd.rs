//! Three nodes of etcd beside the hosts, for an arbiter that has its records there.

use crate::{assets::Etcd, process};
use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tempfile::TempDir;

/// How many nodes there are: as many as the documents advise, of which one may fail.
const NODES: u16 = 3;
/// Where the first of them answers clients, and where it talks to the others, as etcd does by itself.
const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
/// From one node's ports to the next one's.
const PORTS: u16 = 10;
/// How long they may take to agree on who leads: many times etcd's own time-outs.
const LIMIT: Duration = Duration::from_mins(1);
/// How often they are asked.
const LOOK: Duration = Duration::from_millis(100);

/// A cluster of etcd that runs on this computer, inside the lab's namespaces. Dropping it ends it.
pub(crate) struct Nodes {
    programs: Etcd,
    /// What the nodes have on their disks, which goes with them.
    folder: TempDir,
    logs: PathBuf,
    /// `None` while a node has no power.
    children: [Option<Child>; NODES as usize],
}

/// What `etcdctl endpoint status` says of a node.
#[derive(Debug, Deserialize)]
struct Said {
    #[serde(rename = "Endpoint")]
    endpoint: String,
    #[serde(rename = "Status")]
    status: Status,
}

#[derive(Debug, Deserialize)]
struct Status {
    header: Header,
    /// The member that leads; 0 if none does.
    #[serde(default)]
    leader: u64,
}

#[derive(Debug, Deserialize)]
struct Header {
    member_id: u64,
}

impl Nodes {
    /// Starts three nodes with nothing in them, and waits until they have a leader. Each logs to `logs`.
    ///
    /// # Errors
    /// They can't be started.
    pub(crate) fn start(programs: &Etcd, logs: &Path) -> Result<Self> {
        let mut nodes = Self {
            programs: programs.clone(),
            folder: tempfile::Builder::new().prefix("romulus-etcd-").tempdir()?,
            logs: logs.to_owned(),
            children: [const { None }; NODES as usize],
        };
        for index in 0..nodes.children.len() {
            nodes.start_again(index)?;
        }
        nodes.leader()?;
        Ok(nodes)
    }

    /// Starts a node with what it has on its disk.
    ///
    /// # Errors
    /// It can't be started. Whether it answers shows later.
    pub(crate) fn start_again(&mut self, index: usize) -> Result<()> {
        let name = |index: usize| format!("etcd-{}", index + 1);
        let log = self.logs.join(format!("{}.log", name(index)));
        let output = File::options().append(true).create(true).open(log)?;
        let client = url(CLIENT_PORT, index);
        let peer = url(PEER_PORT, index);
        let all: Vec<String> = (0..self.children.len())
            .map(|index| format!("{}={}", name(index), url(PEER_PORT, index)))
            .collect();
        let child = Command::new(&self.programs.node)
            .args(["--name", &name(index)])
            .arg("--data-dir")
            .arg(self.folder.path().join(name(index)))
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &all.join(",")])
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("starting a node of etcd")?;
        self.children[index] = Some(child);
        Ok(())
    }

    /// Ends a node as a loss of power would.
    pub(crate) fn kill(&mut self, index: usize) {
        if let Some(mut child) = self.children[index].take() {
            process::kill(&mut child);
        }
    }

    /// All nodes but one.
    pub(crate) fn all_but(&self, one: usize) -> Vec<usize> {
        (0..self.children.len())
            .filter(|index| *index != one)
            .collect()
    }

    /// Where nodes answer clients, as it is typed.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = String> {
        (0..self.children.len()).map(|index| url(CLIENT_PORT, index))
    }

    /// Waits until all nodes that run agree on one of them as their leader, and gives it.
    ///
    /// # Errors
    /// They do not, or one has ended.
    pub(crate) fn leader(&mut self) -> Result<usize> {
        process::poll(LIMIT, LOOK, || {
            for child in self.children.iter_mut().flatten() {
                if let Some(status) = child.try_wait()? {
                    bail!("a node of etcd ended with {status}");
                }
            }
            let running: Vec<String> = self
                .endpoints()
                .zip(&self.children)
                .filter_map(|(endpoint, node)| node.is_some().then_some(endpoint))
                .collect();
            let said = self.status(&running)?;
            Ok(agreed(&running, &said)
                .and_then(|leader| self.endpoints().position(|endpoint| endpoint == leader)))
        })?
        .context("the nodes of etcd do not agree on a leader")
    }

    /// What these nodes say; of one that does not answer nothing.
    fn status(&self, endpoints: &[String]) -> Result<Vec<Said>> {
        let mut command = Command::new(&self.programs.control);
        command
            .env("ETCDCTL_API", "3")
            .args(["endpoint", "status", "--command-timeout", "2s"])
            .args(["--write-out", "json", "--endpoints", &endpoints.join(",")])
            .stdin(Stdio::null());
        // It fails if one node does not answer, and tells of the others all the same.
        let output = process::output_within(&mut command, LIMIT)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let text = text.trim();
        if text.is_empty() || text == "null" {
            return Ok(Vec::new());
        }
        serde_json::from_str(text)
            .with_context(|| format!("`etcdctl endpoint status` printed {text}"))
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for index in 0..self.children.len() {
            self.kill(index);
        }
    }
}

/// Where a node answers, of those of its kind of port.
fn url(first: u16, index: usize) -> String {
    let port = first + PORTS * u16::try_from(index).unwrap_or(NODES);
    format!("http://{}", SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
}

/// The endpoint of the node that all these name as their leader.
fn agreed<'a>(running: &[String], said: &'a [Said]) -> Option<&'a str> {
    let answered = |endpoint: &String| said.iter().any(|one| one.endpoint == *endpoint);
    let leader = said.first()?.status.leader;
    let all = running.iter().all(answered) && said.iter().all(|one| one.status.leader == leader);
    let leads = |one: &&Said| one.status.header.member_id == leader;
    said.iter()
        .find(leads)
        .filter(|_| all)
        .map(|one| one.endpoint.as_str())
}

#[cfg(test)]
mod tests {
    use super::{Said, agreed, url};

    fn said(json: &str) -> Vec<Said> {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn nodes_that_name_one_of_them_have_a_leader() {
        let running: Vec<String> = (0..2).map(|index| url(2379, index)).collect();
        let of = |endpoint: usize, member: u64, leader: &str| {
            format!(
                r#"{{"Endpoint":"{}","Status":{{"header":{{"cluster_id":1,"member_id":{member}}},"version":"3.4.23"{leader}}}}}"#,
                running[endpoint]
            )
        };
        let both = |first: &str, second: &str| {
            said(&format!("[{},{}]", of(0, 7, first), of(1, 8, second)))
        };
        let eight = r#","leader":8"#;
        assert_eq!(
            agreed(&running, &both(eight, eight)),
            Some("http://127.0.0.1:2389")
        );
        assert_eq!(
            agreed(&running, &both(eight, r#","leader":7"#)),
            None,
            "they differ"
        );
        assert_eq!(agreed(&running, &both("", "")), None, "nobody leads");
        let one = said(&format!("[{}]", of(1, 8, eight)));
        assert_eq!(agreed(&running, &one), None, "one does not answer");
        assert_eq!(agreed(&running[1..], &one), Some("http://127.0.0.1:2389"));
        let gone = r#","leader":9"#;
        assert_eq!(
            agreed(&running, &both(gone, gone)),
            None,
            "the leader is gone"
        );
    }
}
