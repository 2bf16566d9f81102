//! Machine files: any text.

use crate::memory::bounded;
use romulus::config::{MachineFile, check_name};
use romulus_machine::config::{MEMORY_MIN, MTU_MAX, VCPUS_MAX};
use std::path::Path;

/// Memory that a file's every byte may take: a TOML tree with places, and a message for each thing that is wrong.
const EACH: usize = 1024;
/// Memory that any file may take: room for what a machine has by default, and one message with all known keys.
const ANY: usize = 64 << 10;
/// What the file is called in messages.
const NAME: &str = "m.toml";

/// Parses a text. What is no UTF-8 is not given to the parser by anybody.
///
/// # Panics
/// A promise is broken.
pub fn body(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let parse = || MachineFile::parse(text, Path::new(NAME), Path::new("/etc/romulus"));
    match bounded(ANY + EACH * text.len(), parse) {
        Ok(file) => plausible(&file),
        Err(error) => {
            let said = error.to_string();
            placed(text, &said);
        }
    }
}

/// What the rest of the program relies on.
fn plausible(file: &MachineFile) {
    let machine = &file.machine;
    assert_eq!(check_name(&machine.name).as_deref(), Ok(&*machine.name));
    assert!((1..=VCPUS_MAX).contains(&machine.vcpus));
    assert!(machine.memory >= MEMORY_MIN && machine.memory.is_multiple_of(2 << 20));
    assert!(machine.kernel.is_absolute());
    assert!(!machine.command_line.contains('\0'));
    for (index, nic) in machine.nics.iter().enumerate() {
        assert!((1..16).contains(&nic.tap.len()) && !nic.tap.contains('/'));
        assert!((68..=MTU_MAX).contains(&nic.mtu));
        assert_eq!(nic.mac[0] & 1, 0, "a card has an address of its own");
        for other in &machine.nics[..index] {
            assert_ne!(other.tap, nic.tap);
            assert_ne!(other.mac, nic.mac);
        }
    }
    for disk in &machine.disks {
        assert!(disk.path.is_absolute() && disk.serial.len() <= 20);
    }
    if let Some(protection) = &file.protection {
        assert!(file.uuid.is_some(), "a protected machine has a uuid");
        assert!(protection.state.is_absolute() && protection.identity.is_absolute());
        assert_ne!(protection.hosts[0].name, protection.hosts[1].name);
        assert_ne!(protection.hosts[0].identity, protection.hosts[1].identity);
        protection.timing.check().expect("safe time-outs");
        protection.warnings();
    }
}

/// Each problem names a place that the text has, or something that the whole file lacks; and nothing in it is a terminal's
/// command.
fn placed(text: &str, said: &str) {
    let strange = said
        .chars()
        .find(|c| c.is_control() && !"\n\t".contains(*c));
    assert_eq!(strange, None, "a control character in {said:?}");
    let lines: Vec<&str> = text.split('\n').collect();
    let mut problems = 0;
    let mut next = said.lines().peekable();
    while let Some(line) = next.next() {
        let problem = line
            .strip_prefix(NAME)
            .and_then(|rest| rest.strip_prefix(':'));
        let problem =
            problem.unwrap_or_else(|| panic!("no problem begins with {line:?}: {said:?}"));
        problems += 1;
        if let Some(message) = problem.strip_prefix(' ') {
            let whole = message.contains("is missing")
                || message.starts_with("and ") && message.ends_with(" more problems");
            assert!(whole, "a problem without a place: {message:?}");
            continue;
        }
        let mut place = problem.splitn(3, ':');
        let mut number = || place.next()?.parse::<usize>().ok();
        let (row, column) = number().zip(number()).expect("a line and a column");
        let source = lines.get(row.wrapping_sub(1)).expect("a line of the text");
        assert!(
            (1..=source.chars().count() + 1).contains(&column),
            "column {column} of {source:?}"
        );
        // The line itself, and a mark below it.
        let shown = next.next().expect("the line is shown");
        assert!(shown.contains(" | "), "{shown:?}");
        let mark = next.next().expect("the place is marked");
        assert!(
            mark.trim_start().starts_with('|') && mark.contains('^'),
            "{mark:?}"
        );
    }
    assert!(problems > 0, "an error without a problem");
}

/// The example that operators start from.
const PROTECTED: &str = include_str!("../../docs/examples/protected.toml");

const PLAIN: &str = r#"name = "registrar"
memory = "512 MiB"
vcpus = 2

[boot]
kernel = "vmlinuz"
initrd = "initrd.img"
command_line = "console=ttyS0 root=/dev/vda"

[console]
log = "console.log"
max_size = "1 MiB"

[[nic]]
tap = "tap0"
bridge = "br0"
mac = "02:00:00:00:00:01"
mtu = 1500

[[disk]]
path = "disk.img"
serial = "one"
"#;

/// More keys of `[protection]`, and what follows the file.
const MODES: &[(&str, &str, &str)] = &[
    ("net", "mode = \"net\"", ""),
    ("no-net", "mode = \"no-net\"\nunsafe = true", ""),
    (
        "split",
        "mode = \"split\"",
        "[[protection.flow]]\naction = \"pass\"\nprotocol = \"rtp\"\nports = \"10000-20000\"\ndscp = 46\n",
    ),
    (
        "times",
        "t_b = \"200ms\"\nt_p = \"100ms\"\nt_a = \"120ms\"\nrho_ppm = 200\nepoch_idle = \"500ms\"\nguest_share = 0.7",
        "",
    ),
];

const FAULTS: &[(&str, &str)] = &[
    ("nothing", ""),
    ("no-toml", "name = \"a\nmemory = ["),
    (
        "types",
        "name = 7\nmemory = true\nvcpus = \"2\"\nboot = []\nnic = {}\n",
    ),
    (
        "misspelt",
        "nmae = \"a\"\nmemroy = \"1 GiB\"\n[boot]\nkernal = \"k\"\n",
    ),
    (
        "ranges",
        "name = \"-\"\nmemory = \"1 B\"\nvcpus = 99\n[[nic]]\ntap = \"\"\nmac = \"ff:ff\"\nmtu = 1\n",
    ),
    (
        "letters",
        "name = \"na\u{ef}ve \u{1f4de}\"\n# \u{a0}\n\"k\\u001b[2J\" = 1\n",
    ),
];

/// Files that are good, and such with faults.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut seeds = vec![("plain".to_owned(), PLAIN.as_bytes().to_vec())];
    // Without what is only for people, so that there is less to look at.
    let protected: String = PROTECTED
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .flat_map(|line| [line, "\n"])
        .collect();
    for (name, keys, more) in MODES {
        let text = protected.replace("[protection]\n", &format!("[protection]\n{keys}\n"));
        seeds.push((
            format!("protected-{name}"),
            format!("{text}{more}").into_bytes(),
        ));
    }
    let nameless: String = protected
        .split_inclusive('\n')
        .filter(|line| !line.starts_with("uuid"))
        .collect();
    seeds.push(("protected-no-uuid".into(), nameless.into_bytes()));
    let twice = PLAIN.replace(
        "[[disk]]",
        "[[nic]]\ntap = \"tap0\"\nmac = \"02:00:00:00:00:01\"\n\n[[disk]]",
    );
    seeds.push(("twice".into(), twice.into_bytes()));
    for (name, text) in FAULTS {
        seeds.push(((*name).to_owned(), text.as_bytes().to_vec()));
    }
    seeds
}
