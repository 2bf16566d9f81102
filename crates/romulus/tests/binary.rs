//! The built binary as operators and supervisors meet it. Nothing here needs KVM.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tempfile::TempDir;

/// A directory of a test's own, for its files and as its runtime directory.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory for the test"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect("a file for the test");
        path
    }

    fn romulus(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_romulus"))
            .args(arguments)
            .env("ROMULUS_RUNTIME_DIR", self.path("run"))
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env_remove("RUST_LOG")
            .current_dir(self.0.path())
            .output()
            .expect("romulus starts")
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("ended by itself")
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("text")
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("text")
}

const MACHINE: &str = "name = 'a'\nmemory = '128 MiB'\nboot.kernel = 'vmlinuz'\n";

#[test]
fn a_typo_ends_with_78_and_shows_the_line_and_the_right_key() {
    let place = Place::new();
    let text = MACHINE.replace("memory", "memroy");
    place.file("a.toml", &text);
    for arguments in [
        &["run", "a.toml"][..],
        &["run", "--check", "a.toml"],
        &["stop", "a.toml"],
    ] {
        let output = place.romulus(arguments);
        assert_eq!(code(&output), 78, "{arguments:?}");
        let shown = stderr(&output);
        assert!(
            shown.contains("a.toml:2:1: unknown key `memroy`; did you mean `memory`?"),
            "{shown}"
        );
        assert!(shown.contains("   2 | memroy = '128 MiB'"), "{shown}");
    }
}

#[test]
fn a_file_that_is_not_there_or_no_text_ends_with_78() {
    let place = Place::new();
    let output = place.romulus(&["run", "none.toml"]);
    assert_eq!(code(&output), 78);
    assert!(
        stderr(&output).contains("none.toml: cannot read the machine file"),
        "{}",
        stderr(&output)
    );
    fs::write(place.path("binary.toml"), b"name = '\xff\xfe'").unwrap();
    let output = place.romulus(&["run", "binary.toml"]);
    assert_eq!(code(&output), 78);
    assert!(
        stderr(&output).contains("byte 8 is not UTF-8"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_right_file_passes_the_check() {
    let place = Place::new();
    place.file("a.toml", MACHINE);
    let output = place.romulus(&["run", "--check", "a.toml"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stdout(&output).contains("machine a"));
    assert!(!place.path("run").exists(), "a check leaves nothing behind");
}

#[test]
fn a_missing_kernel_is_named_and_nothing_is_left_behind() {
    let place = Place::new();
    place.file("a.toml", MACHINE);
    let output = place.romulus(&["run", "a.toml"]);
    let shown = stderr(&output);
    // Where there is no KVM at all, that is what is missing first.
    if Path::new("/dev/kvm").exists() {
        assert_eq!(code(&output), 66, "{shown}");
        assert!(
            shown.contains("vmlinuz") && shown.contains("correct the path in the machine file"),
            "{shown}"
        );
    } else {
        assert!([66, 69].contains(&code(&output)), "{shown}");
    }
    let left: Vec<_> = fs::read_dir(place.path("run")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_console_log_that_cannot_be_made_ends_with_73() {
    let place = Place::new();
    place.file("not-a-directory", "");
    place.file(
        "a.toml",
        &format!("{MACHINE}[console]\nlog = 'not-a-directory/log'\n"),
    );
    let output = place.romulus(&["run", "a.toml"]);
    assert_eq!(code(&output), 73, "{}", stderr(&output));
    assert!(
        stderr(&output).contains("cannot open the console log"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_second_process_is_told_the_pid_of_the_first() {
    let place = Place::new();
    place.file("a.toml", MACHINE);
    fs::create_dir(place.path("run")).unwrap();
    let lock = fs::File::create(place.path("run/a.lock")).unwrap();
    rustix::fs::fcntl_lock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let output = place.romulus(&["run", "a.toml"]);
    assert_eq!(code(&output), 14, "{}", stderr(&output));
    let pid = format!("(pid {})", std::process::id());
    assert!(stderr(&output).contains(&pid), "{}", stderr(&output));
}

#[test]
fn commands_for_a_machine_that_does_not_run_end_with_15() {
    let place = Place::new();
    for arguments in [
        &["stop", "a"][..],
        &["status", "a"],
        &["console", "a"],
        &["console", "--log", "a"],
    ] {
        let output = place.romulus(arguments);
        assert_eq!(code(&output), 15, "{arguments:?}: {}", stderr(&output));
        assert!(
            stderr(&output).contains("no machine a runs"),
            "{}",
            stderr(&output)
        );
    }
    let output = place.romulus(&["stop", "not a name"]);
    assert_eq!(code(&output), 78, "{}", stderr(&output));
}

#[test]
fn status_lists_nothing_and_what_a_killed_process_left() {
    let place = Place::new();
    let output = place.romulus(&["status"]);
    assert_eq!(code(&output), 0);
    assert!(
        stdout(&output).contains("no machine runs"),
        "{}",
        stdout(&output)
    );
    assert_eq!(stdout(&place.romulus(&["status", "--json"])).trim(), "[]");

    fs::create_dir(place.path("run")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(place.path("run/dead.sock")).unwrap());
    let output = place.romulus(&["status", "--json"]);
    assert_eq!(code(&output), 0);
    let list: serde_json::Value = serde_json::from_str(stdout(&output)).unwrap();
    assert_eq!(
        (&list[0]["name"], &list[0]["state"]),
        (&"dead".into(), &"gone".into()),
        "{list}"
    );
    assert!(stdout(&place.romulus(&["status"])).contains("gone"));
}

#[test]
fn doctor_reports_in_a_form_for_programs() {
    let place = Place::new();
    let output = place.romulus(&["doctor", "--json"]);
    let report: serde_json::Value = serde_json::from_str(stdout(&output)).unwrap();
    let findings = report["findings"].as_array().unwrap();
    assert!(
        findings
            .iter()
            .any(|finding| finding["check"] == "kvm-device")
    );
    let mut problems = 0;
    for finding in findings {
        let level = finding["level"].as_str().unwrap();
        assert!(["ok", "warning", "problem"].contains(&level), "{finding}");
        assert!(!finding["text"].as_str().unwrap().is_empty(), "{finding}");
        assert_eq!(finding["advice"].is_null(), level == "ok", "{finding}");
        problems += usize::from(level == "problem");
    }
    assert_eq!(report["can_run"], problems == 0);
    assert_eq!(code(&output), i32::from(problems > 0));
    let text = place.romulus(&["doctor"]);
    assert!(stdout(&text).contains("This host can"), "{}", stdout(&text));
}

#[test]
fn help_has_examples_and_exit_codes() {
    let place = Place::new();
    for command in ["run", "stop", "console", "status", "doctor", "completions"] {
        let output = place.romulus(&[command, "--help"]);
        assert_eq!(code(&output), 0, "{command}");
        assert!(
            stdout(&output).contains("Example"),
            "{command}: {}",
            stdout(&output)
        );
    }
    assert!(stdout(&place.romulus(&["run", "--help"])).contains("78  the machine file is wrong"));
    assert_eq!(code(&place.romulus(&["nonsense"])), 2);
}

#[test]
fn completions_are_made_for_each_shell() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish"] {
        let output = place.romulus(&["completions", shell]);
        assert_eq!(code(&output), 0);
        assert!(stdout(&output).contains("doctor"), "{shell}");
    }
}

/// Every exit code that `--help` promises is explained to operators, and the unit does not restart what no restart mends.
#[test]
fn the_documents_know_every_exit_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let running = fs::read_to_string(root.join("docs/running.md")).unwrap();
    let unit = fs::read_to_string(root.join("packaging/systemd/romulus@.service")).unwrap();
    let help = Place::new().romulus(&["run", "--help"]);
    let codes = stdout(&help).lines().filter_map(|line| {
        let (number, text) = line.trim_start().split_once("  ")?;
        Some((number.parse::<u8>().ok()?, text.to_owned()))
    });
    let mut seen = 0;
    for (number, text) in codes {
        assert!(
            running.contains(&format!("| {number} |")),
            "docs/running.md lacks {number}: {text}"
        );
        seen += 1;
    }
    assert!(seen >= 12, "{seen}");
    let never = unit
        .lines()
        .find_map(|line| line.strip_prefix("RestartPreventExitStatus="))
        .unwrap();
    for number in ["2", "12", "14", "66", "77", "78"] {
        assert!(
            never.split(' ').any(|word| word == number),
            "{never} lacks {number}"
        );
    }
}

/// The example files are read by the program that they are for.
#[test]
fn the_examples_are_right() {
    let place = Place::new();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/examples");
    let mut seen = 0;
    for entry in fs::read_dir(examples).unwrap() {
        let path = entry.unwrap().path();
        let output = place.romulus(&["run", "--check", path.to_str().unwrap()]);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        seen += 1;
    }
    assert!(seen >= 2, "{seen}");
}
