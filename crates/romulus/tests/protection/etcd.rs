//! The arbiter in front of etcd, as it is typed. What it does when nodes die is tested in `romulus-etcd`.

use crate::site::{Site, UUID, any, code, json, stderr, stdout};
use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// One node of etcd.
pub(crate) struct Node {
    child: Child,
    address: SocketAddr,
    _directory: TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Node {
    /// A node that answers; none if there is no etcd on this computer.
    pub(crate) fn start() -> Option<Self> {
        if Command::new("etcd").arg("--version").output().is_err() {
            eprintln!("not tested: there is no etcd on this computer (package etcd-server)");
            return None;
        }
        for _ in 0..5 {
            let free = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
            let [client, peer] = free.map(|listener| listener.local_addr().unwrap());
            let directory = tempfile::tempdir().unwrap();
            let child = Command::new("setpriv")
                .args(["--pdeathsig", "KILL", "etcd", "--data-dir"])
                .arg(directory.path().join("data"))
                .args([
                    format!("--listen-client-urls=http://{client}"),
                    format!("--advertise-client-urls=http://{client}"),
                    format!("--listen-peer-urls=http://{peer}"),
                    format!("--initial-advertise-peer-urls=http://{peer}"),
                    format!("--initial-cluster=default=http://{peer}"),
                ])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let mut node = Self {
                child,
                address: client,
                _directory: directory,
            };
            let end = Instant::now() + Duration::from_mins(1);
            // Somebody else may have taken a port: then it ends.
            while node.child.try_wait().unwrap().is_none() {
                if node
                    .post("/v3/kv/range", r#"{"key":"eA=="}"#)
                    .is_some_and(|a| a.contains(" 200 "))
                {
                    return Some(node);
                }
                assert!(Instant::now() < end, "etcd does not answer");
                thread::sleep(Duration::from_millis(20));
            }
        }
        panic!("etcd does not start");
    }

    /// As it is typed.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    fn post(&self, path: &str, body: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        let length = body.len();
        write!(
            stream,
            "POST {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }
}

#[test]
fn records_in_etcd_outlive_the_arbiter() {
    let Some(node) = Node::start() else {
        return;
    };
    let site = Site::new();
    let endpoint = node.endpoint();
    let store = [
        "--store",
        "etcd",
        "--etcd-endpoint",
        &endpoint,
        "--etcd-prefix",
        "/site/",
    ];
    let court = site.arbiter_with(any(), &store);
    let file = site.machine("alba", court.address, Some(UUID));
    let created = site.romulus(&["create", &file, "--json"]);
    assert_eq!(code(&created), 0, "{}", stderr(&created));
    assert_eq!(json(&created)["generation"], 1);
    assert!(!site.path("etcd").exists(), "it is no directory");
    drop(court);

    // Two others, neither of which has anything from the first.
    let courts = [any(), any()].map(|listen| site.arbiter_with(listen, &store));
    for court in &courts {
        let file = site.machine("alba", court.address, Some(UUID));
        let again = site.romulus(&["create", &file]);
        assert_eq!(code(&again), 0, "{}", stderr(&again));
        assert!(
            stdout(&again).contains("exists already"),
            "{}",
            stdout(&again)
        );
    }

    // In base64: /site/record/UUID, and a value that is no record.
    let wrong = format!(
        r#"{{"key":"{}","value":"eA=="}}"#,
        base64(&format!("/site/record/{UUID}"))
    );
    assert!(node.post("/v3/kv/put", &wrong).unwrap().contains(" 200 "));
    let file = site.machine("alba", courts[0].address, Some(UUID));
    let damaged = site.romulus(&["create", &file]);
    assert_eq!(code(&damaged), 1, "{}", stderr(&damaged));
    assert!(
        stderr(&damaged).contains("cannot read its record"),
        "{}",
        stderr(&damaged)
    );

    drop(node);
    let silent = site.romulus(&["create", &file, "--timeout", "2s"]);
    assert_eq!(code(&silent), 69, "{}", stderr(&silent));
}

/// RFC 4648.
fn base64(text: &str) -> String {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for three in text.as_bytes().chunks(3) {
        let mut bits = [0; 3];
        bits[..three.len()].copy_from_slice(three);
        let bits = u32::from_be_bytes([0, bits[0], bits[1], bits[2]]);
        for place in 0..4_usize {
            out.push(if place <= three.len() {
                char::from(digits[(bits >> (18 - 6 * place) & 63) as usize])
            } else {
                '='
            });
        }
    }
    out
}

#[test]
fn options_for_etcd_that_cannot_be_meant_are_refused() {
    let site = Site::new();
    let run = |options: &[&str]| {
        site.command(&[
            "arbiter",
            "--listen",
            "127.0.0.1:0",
            "--identity",
            "keys/court",
            "--allow",
            "allowed",
        ])
        .args(options)
        .output()
        .unwrap()
    };
    let etcd = |more: &[&str]| run(&[&["--store", "etcd"], more].concat());
    let here = ["--etcd-endpoint", "http://127.0.0.1:1"];
    for (output, exit, says) in [
        (etcd(&[]), 78, "add --etcd-endpoint"),
        (
            etcd(&["--etcd-endpoint", "http://192.0.2.1"]),
            78,
            "--etcd-plain",
        ),
        (
            etcd(&["--etcd-endpoint", "https://192.0.2.1"]),
            78,
            "--etcd-ca",
        ),
        (
            etcd(&["--etcd-endpoint", "192.0.2.1:2379"]),
            2,
            "write https://",
        ),
        (
            etcd(&[&here[..], &["--etcd-ca", "none"]].concat()),
            78,
            "none cannot be used",
        ),
        (
            etcd(&[&here[..], &["--etcd-ca", "allowed"]].concat()),
            78,
            "no certificate in PEM",
        ),
        (
            etcd(&[&here[..], &["--etcd-prefix", "romulus"]].concat()),
            78,
            "write /romulus/",
        ),
        (
            etcd(&[&here[..], &["--etcd-cert", "x"]].concat()),
            2,
            "--etcd-key",
        ),
        (
            etcd(&[&here[..], &["--etcd-user", "x"]].concat()),
            2,
            "--etcd-password-file",
        ),
        (
            run(&[&["--store", "store"], &here[..]].concat()),
            78,
            "write --store etcd",
        ),
    ] {
        assert_eq!(code(&output), exit, "{}", stderr(&output));
        assert!(stderr(&output).contains(says), "{}", stderr(&output));
    }
}
