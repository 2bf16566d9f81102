//! Who is let in: by names and passwords, and by certificates.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use romulus_etcd::{EtcdConfig, EtcdError, User};
use romulus_protocol::arbiter::Ask;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

use crate::node::{Node, Nodes, is_here};
use crate::running::{Running, ask, heard, request, run};

fn secret_file(path: &Path, text: &str) -> PathBuf {
    fs::write(path, text).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o640)).expect("set");
    path.to_owned()
}

fn error(config: &EtcdConfig) -> EtcdError {
    match Running::start(config) {
        Ok(_) => panic!("it must not start"),
        Err(error) => error,
    }
}

/// Makes a name for the arbiter that may do what it needs, one that may do nothing, and switches
/// authentication on.
fn close(node: &Node) {
    let say = |path: &str, what: &Value| {
        let answer = node.post(path, what, None);
        assert!(matches!(answer, Some((200, _))), "{path}: {answer:?}");
    };
    let range = json!({
        "name": "records",
        "perm": {
            "permType": "READWRITE",
            "key": STANDARD.encode("/romulus/"),
            "range_end": STANDARD.encode("/romulus0"),
        },
    });
    say("/v3/auth/role/add", &json!({ "name": "root" }));
    say("/v3/auth/role/add", &json!({ "name": "records" }));
    say("/v3/auth/role/grant", &range);
    for (name, role) in [
        ("root", Some("root")),
        ("romulus", Some("records")),
        ("guest", None),
    ] {
        say(
            "/v3/auth/user/add",
            &json!({ "name": name, "password": "sesame" }),
        );
        if let Some(role) = role {
            say(
                "/v3/auth/user/grant",
                &json!({ "user": name, "role": role }),
            );
        }
    }
    say("/v3/auth/enable", &json!({}));
}

#[test]
fn names_and_passwords() {
    if !is_here() {
        return;
    }
    let mut nodes = Nodes::start(1);
    let path = |name: &str| nodes.directory.path().join(name);
    let user = |name: &str, file: &Path| EtcdConfig {
        user: Some(User {
            name: name.to_owned(),
            password: file.to_owned(),
        }),
        ..nodes.config(0)
    };
    let good = secret_file(&path("good"), "sesame\n");
    let wrong = secret_file(&path("wrong"), "mustard\n");
    // Where etcd lets everybody in, a name does no harm.
    let server = Running::start(&user("romulus", &good)).expect("opened");
    let mut client = server.client(0, 1);
    assert_eq!(ask(&mut client, 1, Ask::Create), (1, Some(1), None));

    close(&nodes.nodes[0]);
    let said = error(&nodes.config(0)).to_string();
    assert!(said.contains("give --etcd-user"), "{said}");
    let said = error(&user("romulus", &wrong)).to_string();
    assert!(said.contains("check --etcd-user (romulus)"), "{said}");
    let said = error(&user("guest", &good)).to_string();
    assert!(said.contains("grant-permission"), "{said}");
    let empty = secret_file(&path("empty"), "\n");
    let said = error(&user("romulus", &empty)).to_string();
    assert!(
        said.contains("/empty") && said.contains("is empty"),
        "{said}"
    );
    fs::set_permissions(&wrong, fs::Permissions::from_mode(0o644)).expect("set");
    let said = error(&user("romulus", &wrong)).to_string();
    assert!(said.contains("chmod o= "), "{said}");
    let said = error(&user("romulus", &path("none"))).to_string();
    assert!(said.contains("/none cannot be used"), "{said}");

    // The one that was there before has a name, and needs a token now.
    assert_eq!(ask(&mut client, 2, run(1)), (2, Some(2), None));
    let other = Running::start(&user("romulus", &good)).expect("opened");
    assert_eq!(ask(&mut other.client(0, 2), 3, run(2)), (3, Some(3), None));
    // A node that starts anew knows no token any more.
    nodes.nodes[0].kill();
    nodes.nodes[0].start();
    let end = Instant::now() + Duration::from_mins(1);
    let mut number = 10;
    let answer = loop {
        number += 1;
        client.send(&request(number, Ask::Read));
        if let Some(answer) = heard(&mut client, Duration::from_secs(4)) {
            break answer;
        }
        assert!(Instant::now() < end, "it is not let in again");
    };
    assert_eq!(answer.record.map(|record| record.generation.0), Some(3));
    server.stop();
    other.stop();
}

/// Certificates as an operator makes them.
struct Certificates(PathBuf);

impl Certificates {
    fn openssl(&self, arguments: &str) {
        let output = Command::new("openssl")
            .current_dir(&self.0)
            .args(arguments.split(' '))
            .output()
            .expect("openssl");
        assert!(output.status.success(), "{arguments}: {output:?}");
    }

    fn authority(&self, name: &str) {
        self.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={name} -keyout {name}.key -out {name}.pem"
        ));
    }

    fn certificate(&self, name: &str, authority: &str, usage: &str) {
        fs::write(
            self.0.join("ext"),
            format!("subjectAltName=IP:127.0.0.1\nextendedKeyUsage={usage}\n"),
        )
        .expect("written");
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /O={name} -keyout {name}.key -out {name}.csr"
        ));
        self.openssl(&format!(
            "x509 -req -days 2 -in {name}.csr -CA {authority}.pem -CAkey {authority}.key -CAcreateserial -extfile ext -out {name}.pem"
        ));
    }
}

#[test]
fn certificates() {
    if !is_here() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    let make = Certificates(directory.path().to_owned());
    make.authority("ca");
    make.authority("others");
    // etcd's gateway speaks to etcd itself with the node's certificate.
    make.certificate("node", "ca", "serverAuth,clientAuth");
    make.certificate("arbiter", "ca", "clientAuth");
    make.certificate("stranger", "others", "clientAuth");
    let nodes = Nodes::with(1, "https", |_| {
        [
            ("cert-file", "node.pem"),
            ("key-file", "node.key"),
            ("trusted-ca-file", "ca.pem"),
        ]
        .map(|(option, file)| format!("--{option}={}", path(file).display()))
        .into_iter()
        .chain(["--client-cert-auth".to_owned()])
        .collect()
    });
    let endpoint = format!("https://{}", nodes.nodes[0].address);
    let config = |ca: &str, own: Option<&str>| EtcdConfig {
        endpoints: vec![endpoint.parse().expect("an endpoint")],
        ca: Some(path(ca)),
        certificate: own.map(|own| (path(&format!("{own}.pem")), path(&format!("{own}.key")))),
        ..nodes.config(0)
    };
    let good = Running::start(&config("ca.pem", Some("arbiter"))).expect("opened");
    let mut client = good.client(0, 1);
    let end = Instant::now() + Duration::from_mins(1);
    let mut number = 0;
    let answer = loop {
        number += 1;
        client.send(&request(number, Ask::Create));
        if let Some(answer) = heard(&mut client, Duration::from_secs(4)) {
            break answer;
        }
        assert!(Instant::now() < end, "etcd does not answer");
    };
    assert_eq!(answer.record.map(|record| record.generation.0), Some(1));
    // A node that another authority vouches for is not spoken to, and neither does the node speak to
    // an arbiter without a certificate, or with another authority's.
    for config in [
        config("others.pem", Some("arbiter")),
        config("ca.pem", None),
        config("ca.pem", Some("stranger")),
    ] {
        let server = Running::start(&config).expect("opened all the same");
        let mut client = server.client(0, 1);
        client.send(&request(1, Ask::Read));
        assert_eq!(heard(&mut client, Duration::from_secs(4)), None);
        server.stop();
    }
    assert_eq!(ask(&mut client, 1000, run(1)), (1000, Some(2), None));
    good.stop();

    let said = error(&EtcdConfig {
        ca: None,
        ..config("ca.pem", None)
    });
    assert!(matches!(said, EtcdError::NoCa(_)), "{said}");
    let said = error(&config("node.key", None)).to_string();
    assert!(
        said.contains("node.key") && said.contains("no certificate"),
        "{said}"
    );
}

#[test]
fn an_arbiter_does_not_start_with_options_that_cannot_be_meant() {
    let config = |endpoint: &str| EtcdConfig {
        endpoints: vec![endpoint.parse().expect("an endpoint")],
        prefix: "/romulus/".to_owned(),
        ca: None,
        certificate: None,
        user: None,
        plain: false,
    };
    for there in [
        "http://192.0.2.1:2379",
        "http://etcd.example",
        "http://[2001:db8::1]",
    ] {
        let said = error(&config(there));
        assert!(matches!(said, EtcdError::Plain(_)), "{said}");
        assert!(said.to_string().contains("--etcd-plain"), "{said}");
    }
    let said = error(&EtcdConfig {
        endpoints: Vec::new(),
        ..config("http://localhost")
    });
    assert!(said.to_string().contains("--etcd-endpoint"), "{said}");
    for prefix in ["", "romulus/", "/romulus"] {
        let said = error(&EtcdConfig {
            prefix: prefix.to_owned(),
            ..config("http://127.0.0.1:1")
        });
        assert!(matches!(said, EtcdError::Prefix(_)), "{prefix}: {said}");
    }
}
