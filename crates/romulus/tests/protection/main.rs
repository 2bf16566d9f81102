//! Identities, the arbiter, `create` and a takeover with the built binary, over 127.0.0.1. All but the takeover needs no KVM.

mod etcd;
mod site;
mod takeover;

use site::{Silence, Site, UUID, any, code, json, stderr, stdout};
use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

#[test]
fn pair_makes_one_identity_and_never_another() {
    let site = Site::new();
    let first = site.romulus(&["pair", "--identity", "deep/er/key"]);
    assert_eq!(code(&first), 0, "{}", stderr(&first));
    let mode = fs::metadata(site.path("deep/er/key"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = json(&site.romulus(&["pair", "--json", "--identity", "deep/er/key"]));
    assert_eq!(second["new"], false);
    let identity = second["identity"].as_str().unwrap();
    assert!(stdout(&first).contains(identity), "{}", stdout(&first));
    assert!(stdout(&first).contains("[[protection.host]]"));

    fs::write(site.path("junk"), "something else\n").unwrap();
    fs::set_permissions(site.path("junk"), fs::Permissions::from_mode(0o600)).unwrap();
    let junk = site.romulus(&["pair", "--identity", "junk"]);
    assert_eq!(code(&junk), 66, "{}", stderr(&junk));
    assert_eq!(
        fs::read_to_string(site.path("junk")).unwrap(),
        "something else\n"
    );
    fs::set_permissions(site.path("keys/alba"), fs::Permissions::from_mode(0o644)).unwrap();
    let open = site.romulus(&["pair", "--identity", "keys/alba"]);
    assert_eq!(code(&open), 77, "{}", stderr(&open));
}

#[test]
fn create_makes_the_record_once_and_the_arbiter_keeps_it() {
    let site = Site::new();
    let mut court = site.arbiter(any());
    let file = site.machine("alba", court.address, Some(UUID));
    let created = site.romulus(&["create", &file, "--json"]);
    assert_eq!(code(&created), 0, "{}", stderr(&created));
    let answer = json(&created);
    assert_eq!(
        (&answer["created"], &answer["generation"]),
        (&true.into(), &1.into())
    );
    assert_eq!(answer["uuid"], UUID);
    assert!(site.path("state-alba/sidecar").exists());
    assert!(!site.path("state-alba/creating").exists());

    // What it answered survives its death.
    court.child.kill().unwrap();
    court.child.wait().unwrap();
    let _court = site.arbiter(court.address);
    let again = site.romulus(&["create", &file]);
    assert_eq!(code(&again), 0, "{}", stderr(&again));
    assert!(
        stdout(&again).contains("exists already"),
        "{}",
        stdout(&again)
    );

    // A host that has nothing of it cannot make a second beginning.
    fs::remove_dir_all(site.path("state-alba")).unwrap();
    let other = site.romulus(&["create", &file]);
    assert_eq!(code(&other), 1, "{}", stderr(&other));
    assert!(
        stderr(&other).contains("a record of machine"),
        "{}",
        stderr(&other)
    );
    assert!(!site.path("state-alba/sidecar").exists());
}

#[test]
fn an_interrupted_create_goes_on_with_the_same_creator() {
    let site = Site::new();
    let silence = Silence::new();
    let file = site.machine("alba", silence.address(), Some(UUID));
    let unanswered = site.romulus(&["create", &file, "--timeout", "100ms"]);
    assert_eq!(code(&unanswered), 69, "{}", stderr(&unanswered));
    assert!(
        stderr(&unanswered).contains("does not answer"),
        "{}",
        stderr(&unanswered)
    );
    let written = fs::read(site.path("state-alba/creating/sidecar")).unwrap();

    let court = site.arbiter(any());
    let file = site.machine("alba", court.address, Some(UUID));
    assert_eq!(code(&site.romulus(&["create", &file])), 0);
    assert_eq!(fs::read(site.path("state-alba/sidecar")).unwrap(), written);

    // As if the process had died before the sidecar was written: the record is its own.
    fs::create_dir(site.path("state-alba/creating")).unwrap();
    fs::rename(
        site.path("state-alba/sidecar"),
        site.path("state-alba/creating/sidecar"),
    )
    .unwrap();
    let finished = site.romulus(&["create", &file, "--json"]);
    assert_eq!(code(&finished), 0, "{}", stderr(&finished));
    assert_eq!(json(&finished)["created"], true);
    assert_eq!(fs::read(site.path("state-alba/sidecar")).unwrap(), written);
}

#[test]
fn an_arbiter_that_lost_its_store_is_told() {
    let site = Site::new();
    let court = site.arbiter(any());
    let file = site.machine("alba", court.address, Some(UUID));
    assert_eq!(code(&site.romulus(&["create", &file])), 0);
    drop(court);
    fs::remove_dir_all(site.path("store")).unwrap();
    let court = site.arbiter(any());
    let file = site.machine("alba", court.address, Some(UUID));
    let lost = site.romulus(&["create", &file]);
    assert_eq!(code(&lost), 1, "{}", stderr(&lost));
    assert!(
        stderr(&lost).contains("has lost its store"),
        "{}",
        stderr(&lost)
    );
}

#[test]
fn a_machine_is_created_on_its_first_host_only() {
    let site = Site::new();
    let silence = Silence::new();
    let file = site.machine("berta", silence.address(), Some(UUID));
    let output = site.romulus(&["create", &file]);
    assert_eq!(code(&output), 1, "{}", stderr(&output));
    assert!(
        stderr(&output).contains("starts on the first host of its file, alba"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_file_without_uuid_gets_one_that_works() {
    let site = Site::new();
    let silence = Silence::new();
    let file = site.machine("alba", silence.address(), None);
    let run = site.romulus(&["run", "--check", &file]);
    assert_eq!(code(&run), 78, "{}", stderr(&run));
    let output = site.romulus(&["create", &file, "--json"]);
    assert_eq!(code(&output), 78, "{}", stderr(&output));
    let uuid = json(&output)["uuid"].as_str().unwrap().to_owned();
    assert!(
        stderr(&output).contains(&format!("uuid = \"{uuid}\"")),
        "{}",
        stderr(&output)
    );
    let file = site.machine("alba", silence.address(), Some(&uuid));
    let run = site.romulus(&["run", "--check", &file]);
    assert_eq!(code(&run), 0, "{}", stderr(&run));
    let other = site.romulus(&[
        "create",
        &site.machine("alba", silence.address(), None),
        "--json",
    ]);
    assert_ne!(json(&other)["uuid"], uuid, "each file gets its own");
}

#[test]
fn who_is_not_allowed_is_not_answered_until_he_is() {
    let site = Site::new();
    fs::write(site.path("allowed"), format!("{}\n", site.berta)).unwrap();
    let court = site.arbiter(any());
    let file = site.machine("alba", court.address, Some(UUID));
    let refused = site.romulus(&["create", &file, "--timeout", "300ms"]);
    assert_eq!(code(&refused), 69, "{}", stderr(&refused));

    // A list that is wrong changes nothing, a right one does.
    let pid = rustix::process::Pid::from_child(&court.child);
    let hangup = || rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    fs::write(site.path("allowed"), "nonsense\n").unwrap();
    hangup();
    fs::write(
        site.path("allowed"),
        format!("{}\n{}\n", site.alba, site.berta),
    )
    .unwrap();
    hangup();
    let created = site.romulus(&["create", &file]);
    assert_eq!(code(&created), 0, "{}", stderr(&created));
}

#[test]
fn an_arbiter_ends_in_order_and_refuses_what_is_wrong() {
    let site = Site::new();
    let mut court = site.arbiter(any());
    let second = site.romulus(&[
        "arbiter",
        "--listen",
        "127.0.0.1:0",
        "--store",
        "store",
        "--identity",
        "keys/court",
        "--allow",
        "allowed",
    ]);
    assert_eq!(code(&second), 73, "{}", stderr(&second));
    let pid = rustix::process::Pid::from_child(&court.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(court.child.wait().unwrap().code(), Some(0));

    fs::write(site.path("allowed"), "romulus-1:abc\n").unwrap();
    let arguments = |identity: &'static str| {
        [
            "arbiter",
            "--listen",
            "127.0.0.1:0",
            "--store",
            "store",
            "--identity",
            identity,
            "--allow",
            "allowed",
        ]
    };
    let wrong = site.romulus(&arguments("keys/court"));
    assert_eq!(code(&wrong), 78, "{}", stderr(&wrong));
    assert!(stderr(&wrong).contains("allowed:1: "), "{}", stderr(&wrong));
    let none = site.romulus(&arguments("keys/none"));
    assert_eq!(code(&none), 66, "{}", stderr(&none));
    assert!(
        stderr(&none).contains("romulus pair --identity keys/none"),
        "{}",
        stderr(&none)
    );
}

#[test]
fn run_says_when_this_is_neither_host() {
    let site = Site::new();
    let silence = Silence::new();
    let file = site.machine("alba", silence.address(), Some(UUID));
    fs::copy(site.path("keys/court"), site.path("keys/stranger")).unwrap();
    let text = fs::read_to_string(site.path(&file)).unwrap();
    fs::write(
        site.path("stranger.toml"),
        text.replace("keys/alba", "keys/stranger"),
    )
    .unwrap();
    let output = site.romulus(&["run", "stranger.toml"]);
    assert_eq!(code(&output), 78, "{}", stderr(&output));
    assert!(
        stderr(&output).contains("this host is neither alba nor berta"),
        "{}",
        stderr(&output)
    );
    assert!(stderr(&output).contains(&site.court), "{}", stderr(&output));

    fs::remove_file(site.path("keys/stranger")).unwrap();
    let output = site.romulus(&["run", "stranger.toml"]);
    assert_eq!(code(&output), 66, "{}", stderr(&output));
    assert!(
        stderr(&output).contains("romulus pair --identity"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn monitoring_learns_that_nothing_is_protected() {
    let site = Site::new();
    assert_eq!(code(&site.romulus(&["status"])), 0);
    assert_eq!(code(&site.romulus(&["status", "--require-protected"])), 1);
    assert_eq!(
        code(&site.romulus(&["status", "registrar", "--require-protected"])),
        15
    );
    assert_eq!(
        code(&site.romulus(&["promote", "registrar"])),
        2,
        "needs --accept-loss"
    );
    assert_eq!(
        code(&site.romulus(&["promote", "registrar", "--accept-loss"])),
        15
    );
}

/// What the documents show can be typed.
#[test]
fn the_documents_show_the_commands_as_they_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let site = Site::new();
    let help = site.romulus(&["arbiter", "--help"]);
    let options: Vec<&str> = stdout(&help)
        .lines()
        .filter_map(|line| line.trim().strip_prefix("--")?.split(' ').next())
        .filter(|option| option.chars().all(|c| c == '-' || c.is_ascii_lowercase()))
        .filter(|option| *option != "help")
        .collect();
    assert!(options.contains(&"listen") && options.contains(&"etcd-ca"));
    for file in ["romulus-arbiter.service", "romulus-arbiter-etcd.conf"] {
        let unit = fs::read_to_string(root.join("packaging/systemd").join(file)).unwrap();
        let mut starts = unit
            .lines()
            .filter(|line| line.contains("romulus arbiter --"));
        assert!(starts.next().is_some(), "{file} starts no arbiter");
        for word in unit.split_whitespace() {
            if let Some(option) = word.trim_start_matches("#   ETCD=").strip_prefix("--") {
                assert!(options.contains(&option), "{file}: --{option}");
            }
        }
    }
    let docs = fs::read_to_string(root.join("docs/arbiter.md")).unwrap();
    for option in options {
        assert!(
            docs.contains(&format!("`--{option} ")) || docs.contains(&format!("`--{option}`")),
            "docs/arbiter.md lacks --{option}"
        );
    }
}
