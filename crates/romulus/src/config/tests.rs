//! Tests of whole machine files.

use super::*;
use proptest::prelude::*;

const FULL: &str = r#"
name = "registrar"
vcpus = 2
memory = "512 MiB"
entropy = false
on_reboot = "exit"
on_panic = "restart"
stop_timeout = "1500 ms"

[boot]
kernel = "vmlinuz"
initrd = "/images/initrd.img"
command_line = "console=ttyS0 quiet"
kernel_cache = "cache"

[console]
log = "logs/registrar.log"
max_size = "1 MiB"
keep = 5

[[nic]]
tap = "tap0"
bridge = "br0"
mac = "52:54:00:aa:00:01"
mtu = 9000
offload = false

[[nic]]
tap = "tap1"

[[disk]]
path = "disk.img"
serial = "ROOT"

[[disk]]
path = "/data.img"
read_only = true
"#;

fn parse(text: &str) -> Result<MachineFile, ConfigError> {
    MachineFile::parse(text, Path::new("machine.toml"), Path::new("/etc/romulus"))
}

/// A file that is right but for what `change` does to it.
fn changed(from: &str, to: &str) -> ConfigError {
    assert!(FULL.contains(from), "{from}");
    parse(&FULL.replacen(from, to, 1)).expect_err("must be refused")
}

#[test]
fn every_key_is_read() {
    let file = parse(FULL).unwrap_or_else(|error| panic!("{error}"));
    let machine = &file.machine;
    assert_eq!(
        (machine.name.as_str(), machine.vcpus, machine.memory),
        ("registrar", 2, 512 << 20)
    );
    assert_eq!(machine.kernel, Path::new("/etc/romulus/vmlinuz"));
    assert_eq!(
        machine.initrd.as_deref(),
        Some(Path::new("/images/initrd.img"))
    );
    assert_eq!(
        machine.kernel_cache.as_deref(),
        Some(Path::new("/etc/romulus/cache"))
    );
    assert_eq!(machine.command_line, "console=ttyS0 quiet");
    assert!(!machine.entropy);
    assert_eq!(machine.nics.len(), 2);
    assert_eq!(machine.nics[0].mac, [0x52, 0x54, 0, 0xaa, 0, 1]);
    assert_eq!(
        (machine.nics[0].mtu, machine.nics[0].offload),
        (9000, false)
    );
    assert_eq!(machine.nics[0].bridge.as_deref(), Some("br0"));
    assert_eq!(machine.nics[1].mac, values::derive_mac("registrar", 1));
    assert_eq!((machine.nics[1].mtu, machine.nics[1].offload), (1500, true));
    assert_eq!(machine.disks[0].path, Path::new("/etc/romulus/disk.img"));
    assert_eq!(
        (machine.disks[0].read_only, machine.disks[0].serial.as_str()),
        (false, "ROOT")
    );
    assert_eq!(
        (machine.disks[1].read_only, machine.disks[1].serial.as_str()),
        (true, "disk1")
    );
    let log = LogFile {
        path: "/etc/romulus/logs/registrar.log".into(),
        max_size: 1 << 20,
        keep: 5,
    };
    assert_eq!(file.console, ConsoleLog::File(log));
    assert_eq!(
        (file.on_reboot, file.on_panic),
        (After::Exit, After::Restart)
    );
    assert_eq!(file.stop_timeout, Duration::from_millis(1500));
}

#[test]
fn what_is_left_out_has_a_default() {
    let file = parse("name = 'a'\nmemory = '1 GiB'\nboot.kernel = '/k'\n")
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((file.machine.vcpus, file.machine.entropy), (1, true));
    assert_eq!(file.machine.command_line, "console=ttyS0");
    assert_eq!(file.console, ConsoleLog::Stdio);
    assert_eq!(
        (file.on_reboot, file.on_panic),
        (After::Restart, After::Exit)
    );
    assert_eq!(file.stop_timeout, Duration::from_secs(30));
}

#[test]
fn a_misspelt_key_is_shown_with_the_right_one() {
    let error = changed("memory = ", "memroy = ");
    let shown = error.to_string();
    assert!(
        shown.contains("machine.toml:4:1: unknown key `memroy`; did you mean `memory`?"),
        "{shown}"
    );
    assert!(
        shown.contains("   4 | memroy = \"512 MiB\"\n       | ^^^^^^\n"),
        "{shown}"
    );
    assert_eq!(error.messages().len(), 2, "{shown}");
    assert!(shown.contains("`memory` is missing"), "{shown}");
}

#[test]
fn a_misspelt_section_or_key_in_one_is_found() {
    let shown = changed("[[disk]]\npath", "[[dsik]]\npath").to_string();
    assert!(
        shown.contains("unknown key `dsik`; did you mean `disk`?"),
        "{shown}"
    );
    let shown = changed("read_only", "readonly").to_string();
    assert!(
        shown.contains("unknown key `readonly` in [[disk]]; did you mean `read_only`?"),
        "{shown}"
    );
    let shown = changed("offload", "colour").to_string();
    assert!(
        shown.contains(
            "unknown key `colour` in [[nic]]; known here: tap, bridge, mac, mtu, offload"
        ),
        "{shown}"
    );
}

#[test]
fn wrong_values_say_what_is_allowed() {
    for (from, to, expected) in [
        (
            "vcpus = 2",
            "vcpus = 5",
            "`vcpus` must be a whole number from 1 to 4",
        ),
        (
            "vcpus = 2",
            "vcpus = -1",
            "`vcpus` must be a whole number from 1 to 4",
        ),
        (
            "vcpus = 2",
            "vcpus = \"two\"",
            "`vcpus` must be a whole number from 1 to 4, not string",
        ),
        ("512 MiB", "512 mb", "such as \"512 MiB\""),
        ("512 MiB", "64 MiB", "at least 128 MiB"),
        ("512 MiB", "129 MiB", "multiple of 2 MiB"),
        (
            "mtu = 9000",
            "mtu = 9001",
            "`mtu` must be a whole number from 68 to 9000",
        ),
        (
            "mtu = 9000",
            "mtu = 67",
            "`mtu` must be a whole number from 68 to 9000",
        ),
        (
            "52:54:00:aa:00:01",
            "52:54:00:aa:00",
            "six pairs of hexadecimal digits",
        ),
        ("52:54:00:aa:00:01", "53:54:00:aa:00:01", "group address"),
        (
            "on_reboot = \"exit\"",
            "on_reboot = \"stop\"",
            "\"restart\" or \"exit\"",
        ),
        ("1500 ms", "soon", "such as \"30 s\""),
        ("1500 ms", "9999 days", "at most 24 h"),
        ("\"registrar\"", "\"a/b\"", "is not a name"),
        (
            "\"tap0\"",
            "\"a very long tap name\"",
            "is not an interface name",
        ),
        (
            "entropy = false",
            "entropy = \"no\"",
            "`entropy` must be true or false, not string",
        ),
        (
            "serial = \"ROOT\"",
            "serial = \"a serial number that is too long\"",
            "at most 20",
        ),
        ("\"1 MiB\"", "\"1 kB\"", "at least 4 KiB"),
        (
            "keep = 5",
            "keep = 100",
            "`keep` must be a whole number from 0 to 99",
        ),
        ("kernel = \"vmlinuz\"", "kernel = \"\"", "`kernel` is empty"),
        (
            "[[nic]]\ntap = \"tap1\"",
            "[nic2]",
            "unknown key `nic2`; did you mean `nic`?",
        ),
    ] {
        let error = changed(from, to);
        assert!(
            error
                .messages()
                .iter()
                .any(|message| message.contains(expected)),
            "{to}: {error}"
        );
    }
}

#[test]
fn what_must_differ_is_checked() {
    let shown = changed("\"tap1\"", "\"tap0\"").to_string();
    assert!(shown.contains("`tap` tap0 is given twice"), "{shown}");
    let shown = changed(
        "tap = \"tap1\"",
        "tap = \"tap1\"\nmac = \"52:54:00:AA:00:01\"",
    )
    .to_string();
    assert!(
        shown.contains("`mac` 52:54:00:aa:00:01 is given twice"),
        "{shown}"
    );
    let shown = changed("\"/data.img\"", "\"/etc/romulus/disk.img\"").to_string();
    assert!(
        shown.contains("`path` /etc/romulus/disk.img is given twice"),
        "{shown}"
    );
}

#[test]
fn one_bracket_too_few_is_explained() {
    let error =
        parse("name='a'\nmemory='1 GiB'\nboot.kernel='k'\n[nic]\ntap='tap0'\n").unwrap_err();
    assert!(
        error
            .to_string()
            .contains("each written [[nic]] with two brackets"),
        "{error}"
    );
}

#[test]
fn all_problems_are_told_at_once_in_the_files_order() {
    let text = FULL
        .replace("vcpus = 2", "vcpus = 9")
        .replace("mtu = 9000", "mtu = 1")
        .replace("keep", "kept");
    let error = parse(&text).unwrap_err();
    let messages = error.messages();
    assert_eq!(messages.len(), 3, "{error}");
    assert!(
        messages[0].contains("vcpus")
            && messages[1].contains("kept")
            && messages[2].contains("mtu"),
        "{error}"
    );
}

#[test]
fn broken_toml_is_shown_with_its_line() {
    let shown = changed("vcpus = 2", "vcpus = = 2").to_string();
    assert!(
        shown.starts_with("machine.toml:3:") && shown.contains("not valid TOML"),
        "{shown}"
    );
    assert!(shown.contains("vcpus = = 2"), "{shown}");
}

#[test]
fn an_empty_file_lacks_what_is_needed() {
    let error = parse("").unwrap_err();
    assert_eq!(error.messages().len(), 3, "{error}");
    assert!(
        error
            .to_string()
            .contains("`kernel` is missing in [boot]; write for example `kernel = \"vmlinuz\"`"),
        "{error}"
    );
}

#[test]
fn a_file_cannot_write_to_the_operators_terminal() {
    let shown = parse("\"\u{1b}[2J\" = 1\nname = \"\u{7}")
        .unwrap_err()
        .to_string();
    assert!(!shown.contains(['\u{1b}', '\u{7}']), "{shown:?}");
}

proptest! {
    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = parse(&text).map_err(|error| error.to_string());
    }

    #[test]
    fn no_damage_to_a_file_panics(at in 0..FULL.len(), length in 0usize..40, with in ".{0,12}") {
        let end = (at + length).min(FULL.len());
        let text = format!("{}{with}{}", &FULL[..at], &FULL[end..]);
        let _ = parse(&text).map_err(|error| error.to_string());
    }

    #[test]
    fn no_value_panics(key in "name|vcpus|memory|stop_timeout|boot|nic|disk|console", value in "-?[0-9]{1,25}|\"[^\"\\\\\n]{0,30}\"|\\[\\]|\\{\\}|1979-05-27|0x[0-9a-f]{1,20}|nan|\\[\\{tap = 1\\}\\]") {
        let _ = parse(&format!("{key} = {value}")).map_err(|error| error.to_string());
    }
}
