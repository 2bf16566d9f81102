//! Tests of `[protection]` in whole machine files.

use super::*;
use proptest::prelude::*;
use romulus_network::in_flight::Keep;
use romulus_network::mode::{Media, Mode, Rule, default_rules};
use romulus_protocol::{control::Limits, timing::Timing};

/// The example that operators start from.
const FILE: &str = include_str!("../../../../docs/examples/protected.toml");
const ALBA: &str = "romulus-1:4llXnEGko9G8OePz_xVT0pAu3LwmFbd_A84713WQ99NMHvCq5cYCQbjsIzA2hRoIq4-0eIzsmlP_gH8vUJERMi3iPuE";
const BERTA: &str = "romulus-1:cAkDpQSLl14qfPfO06SRdoAqrIRp7ixyoPPEYT8p1HNvxLYX-Nhth-lz3xUq7MzJq6NWH-706oPghQAOr216UvXeAUs";
const ARBITER: &str = "romulus-1:klqrGppSEbECe8RI8m9eDXXrqxFMUMltBuPl0-Y310TzVSPMcvi8qyon15EH5kHe1A4RgWWyPFVzWLf5zhLWQGXtUE8";

fn parse(text: &str) -> Result<MachineFile, ConfigError> {
    MachineFile::parse(text, Path::new("machine.toml"), Path::new("/etc/romulus"))
}

/// The example with more keys in `[protection]`.
fn with(keys: &str) -> String {
    FILE.replace("[protection]\n", &format!("[protection]\n{keys}\n"))
}

fn protection(text: &str) -> Protection {
    parse(text)
        .unwrap_or_else(|error| panic!("{error}"))
        .protection
        .expect("there is a [protection]")
}

fn refused(text: &str) -> ConfigError {
    parse(text).expect_err("must be refused")
}

#[test]
fn the_example_is_read_with_its_defaults() {
    let file = parse(FILE).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(
        file.uuid.map(|uuid| uuid.to_string()).as_deref(),
        Some("6ba7b810-9dad-41d1-80b4-00c04fd430c8")
    );
    let protection = file.protection.expect("there is a [protection]");
    let [alba, berta] = &protection.hosts;
    assert_eq!((&*alba.name, &*berta.name), ("alba", "berta"));
    assert_eq!(alba.identity.to_string(), ALBA);
    assert_eq!(berta.identity.to_string(), BERTA);
    assert_eq!(protection.arbiter_identity.to_string(), ARBITER);
    assert_eq!(protection.arbiter, "203.0.113.9:7400".parse().unwrap());
    assert_eq!(alba.replication, "198.51.100.1:7401".parse().unwrap());
    assert_eq!(berta.control, Some("203.0.113.2:7401".parse().unwrap()));
    assert_eq!(protection.state, Path::new("/var/lib/romulus/registrar"));
    assert_eq!(protection.identity, Path::new("/etc/romulus/identity"));
    assert_eq!((protection.insecure, protection.lock_memory), (false, true));
    assert_eq!((protection.shadow, protection.queue), (512 << 20, 32 << 20));
    assert_eq!(protection.keep, Keep::default());
    assert_eq!(protection.uplink, [""; 0]);
    assert_eq!(protection.rehearse, Some(Duration::from_mins(1)));
    assert_eq!(protection.timing, Timing::default());
    assert_eq!(protection.limits, Limits::default());
    assert_eq!(protection.warnings(), [""; 0]);
}

#[test]
fn every_key_is_read() {
    let text = with(
        r#"mode = "net"
state = "state"
identity = "/secret"
insecure = true
lock_memory = false
resend_output = false
forward_input = false
rehearse = "never"
shadow = "64 MiB"
queue = "8 MiB"
t_b = "200ms"
t_b_max = "1s"
t_p = "100ms"
t_a = "120ms"
t_closed = "50ms"
t_c = "3s"
t_cold = "4s"
heartbeat = "10ms"
stall = "60ms"
retry = "70ms"
poll = "700ms"
uplink = ["eth1", "bond0.7"]
t_uplink = "300ms"
t_hold = "20s"
rho_ppm = 200
epoch_shortest = "20ms"
epoch_longest = "200ms"
epoch_idle = "500ms"
epoch_fixed = "40ms"
guest_share = 0.7"#,
    );
    let protection = protection(&text);
    assert_eq!(protection.state, Path::new("/etc/romulus/state"));
    assert_eq!(protection.identity, Path::new("/secret"));
    assert_eq!((protection.insecure, protection.lock_memory), (true, false));
    assert_eq!((protection.shadow, protection.queue), (64 << 20, 8 << 20));
    assert!(!protection.keep.output && !protection.keep.input);
    assert_eq!(protection.rehearse, None);
    let ms = Duration::from_millis;
    let timing = &protection.timing;
    assert_eq!(
        [
            timing.t_b,
            timing.t_b_max,
            timing.t_p,
            timing.t_a,
            timing.t_closed,
            timing.t_c
        ],
        [200, 1000, 100, 120, 50, 3000].map(ms)
    );
    assert_eq!(
        [
            timing.t_cold,
            timing.heartbeat,
            timing.stall,
            timing.retry,
            timing.poll
        ],
        [4000, 10, 60, 70, 700].map(ms)
    );
    assert_eq!(protection.uplink, ["eth1", "bond0.7"]);
    assert_eq!([timing.t_uplink, timing.t_hold], [300, 20_000].map(ms));
    assert_eq!(timing.rho_ppm, 200);
    let limits = &protection.limits;
    assert_eq!(
        [limits.shortest, limits.longest, limits.idle],
        [20, 200, 500].map(ms)
    );
    assert_eq!(limits.fixed, Some(ms(40)));
    assert!((limits.share - 0.7).abs() < 1e-9);
}

#[test]
fn other_time_outs_follow_t_b() {
    let timing = protection(&with("t_b = '250ms'\npoll = '1s'")).timing;
    let default = Timing::default();
    assert_eq!(
        [
            timing.heartbeat,
            timing.t_p,
            timing.t_a,
            timing.t_b,
            timing.t_b_max,
            timing.t_c
        ],
        [
            default.heartbeat,
            default.t_p,
            default.t_a,
            default.t_b,
            default.t_b_max,
            default.t_c
        ]
        .map(|time| time * 5 / 2)
    );
    assert_eq!(timing.poll, Duration::from_secs(1), "what is given is kept");
}

#[test]
fn what_leaves_less_cover_is_warned_about() {
    let one_path = FILE
        .replace("control = \"203.0.113.1:7401\"\n", "")
        .replace("control = \"203.0.113.2:7401\"\n", "");
    let warnings = protection(&one_path).warnings();
    assert_eq!(warnings.len(), 2);
    assert!(
        warnings[0].contains("alba has no `control`"),
        "{warnings:?}"
    );
    let same = FILE.replace("203.0.113.1:7401", "198.51.100.1:7402");
    assert!(protection(&same).warnings()[0].contains("one path, not two"));
    assert!(protection(&with("insecure = true")).warnings()[0].contains("plain text"));
}

#[test]
fn what_is_wrong_is_refused_with_its_reason() {
    let changes: &[(&str, &str, &str)] = &[
        (
            "203.0.113.9:7400",
            "203.0.113.9",
            "an IP address and a port",
        ),
        ("203.0.113.9:7400", "0.0.0.0:7400", "stands for any address"),
        ("203.0.113.9:7400", "203.0.113.9:0", "port 0"),
        ("203.0.113.9:7400", "239.1.2.3:7400", "the address of many"),
        (
            "203.0.113.9:7400",
            "203.0.113.1:7400",
            "the arbiter must lie on neither",
        ),
        (
            "203.0.113.9:7400",
            "[2001:db8::9]:7400",
            "one is IPv4, the other IPv6",
        ),
        (
            "198.51.100.2:7401",
            "198.51.100.1:7401",
            "host alba's address already",
        ),
        (
            "198.51.100.2:7401",
            "198.51.100.1:7402",
            "host alba's address already",
        ),
        (
            "198.51.100.2:7401",
            "[2001:db8::2]:7401",
            "both ends of a path need the same",
        ),
        (
            "203.0.113.2:7401",
            "198.51.100.2:7401",
            "host berta's address already",
        ),
        ("control = \"203.0.113.2:7401\"\n", "", "for one host only"),
        (
            "name = \"berta\"",
            "name = \"alba\"",
            "both hosts are called alba",
        ),
        (BERTA, ALBA, "the identity of host alba already"),
        (BERTA, ARBITER, "the identity of the arbiter already"),
        (BERTA, "romulus-1:abc", "incomplete or mistyped"),
        (BERTA, "secret", "begins with `romulus-1:`"),
        (
            "replication = \"198.51.100.2:7401\"\n",
            "",
            "`replication` is missing in [[protection.host]]",
        ),
        (
            "arbiter = ",
            "arbitre = ",
            "unknown key `arbitre` in [protection]; did you mean `arbiter`?",
        ),
        (
            "control = ",
            "controll = ",
            "unknown key `controll` in [[protection.host]]; did you mean `control`?",
        ),
        (
            "[protection]",
            "[protektion]",
            "unknown key `protektion`; did you mean `protection`?",
        ),
        ("6ba7b810-", "6ba7b81-", "is not a uuid"),
    ];
    for (from, to, expected) in changes {
        assert!(FILE.contains(from), "{from}");
        let error = refused(&FILE.replacen(from, to, 1));
        assert!(error.to_string().contains(expected), "{to}: {error}");
    }
}

#[test]
fn a_wrong_choice_is_refused_alone() {
    let keys: &[(&str, &str)] = &[
        ("insecure = 'no'", "must be true or false"),
        ("queue = '1 KiB'", "at least 1 MiB"),
        ("rehearse = '1 s'", "at least 5 s"),
        ("rehearse = 'no'", "or \"never\""),
        ("shadow = 'much'", "is not a size"),
        ("t_b = '0s'", "zero is no interval"),
        ("t_b = 100", "must be text in quotes"),
        (
            "t_p = '90ms'",
            "the primary must stop output before it claims",
        ),
        ("t_p = '100ms'\nt_a = '100ms'", "too close to T_b"),
        ("heartbeat = '20ms'", "fewer than ten heartbeats"),
        ("t_b_max = '10s'", "the highest T_b must be at most T_c"),
        ("stall = '1s'", "the stall limit must be at most T_b"),
        ("rho_ppm = 1000000", "from 1 to 999999"),
        ("rho_ppm = 300000", "too close to T_b"),
        ("mode = 'fast'", "is no mode"),
        ("mode = 'net'\nunsafe = true", "in `mode = \"no-net\"` only"),
        ("mode = 'no-net'\nunsafe = 1", "must be true or false"),
        ("guest_share = 1", "must be above 0 and at most 0.99"),
        ("guest_share = nan", "must be above 0 and at most 0.99"),
        ("guest_share = '80 %'", "a number, such as 0.8"),
        ("epoch_longest = '10ms'", "epoch intervals must grow"),
    ];
    for (key, expected) in keys {
        let error = refused(&with(key));
        assert!(error.to_string().contains(expected), "{key}: {error}");
        assert_eq!(error.messages().len(), 1, "{key}: {error}");
    }
}

#[test]
fn a_problem_of_time_outs_is_shown_where_it_was_made() {
    let text = with("t_p = '90ms'");
    let line = text
        .lines()
        .position(|line| line.starts_with("t_p"))
        .unwrap()
        + 1;
    let shown = refused(&text).to_string();
    assert!(
        shown.starts_with(&format!("machine.toml:{line}:7: ")),
        "{shown}"
    );
}

#[test]
fn there_are_exactly_two_hosts() {
    let cut = FILE.rfind("[[protection.host]]").unwrap();
    let shown = refused(&FILE[..cut]).to_string();
    assert!(
        shown.contains("exactly two [[protection.host]] sections, not 1"),
        "{shown}"
    );
    let third = format!(
        "{FILE}[[protection.host]]\nname = 'cara'\nidentity = '{}'\nreplication = '198.51.100.3:7401'\ncontrol = '203.0.113.3:7401'\n",
        "romulus-1:4xF4n9ng4mpIjOOVJ5H-cX5qMRrP8QFx72ejkvloVze3zbSUInKpTVNq-IJjvSIwrxAXvlhOv1ERo_LMA8bHfYzCSxM"
    );
    let shown = refused(&third).to_string();
    assert!(shown.contains("sections, not 3"), "{shown}");
}

#[test]
fn a_missing_uuid_can_be_told_from_other_faults() {
    let without = FILE.replace("uuid = ", "# uuid = ");
    let error = refused(&without);
    assert!(error.lacks_only_uuid(), "{error}");
    assert!(error.to_string().contains("`romulus create`"), "{error}");
    let worse = refused(&without.replace("\"alba\"", "\"al ba\""));
    assert!(!worse.lacks_only_uuid(), "{worse}");
}

#[test]
fn on_one_computer_hosts_may_differ_in_the_port() {
    let text = FILE
        .replace("203.0.113.9:7400", "127.0.0.1:1")
        .replace("198.51.100.1:7401", "127.0.0.1:2")
        .replace("203.0.113.1:7401", "127.0.0.1:3")
        .replace("198.51.100.2:7401", "127.0.0.1:4")
        .replace("203.0.113.2:7401", "127.0.0.1:5");
    protection(&text);
    let error = refused(&text.replace("127.0.0.1:5", "127.0.0.1:2"));
    assert!(
        error.to_string().contains("host alba's address already"),
        "{error}"
    );
}

proptest! {
    #[test]
    fn no_damage_to_a_file_panics(at in 0..FILE.len(), length in 0usize..40, with in ".{0,12}") {
        let end = (at + length).min(FILE.len());
        if FILE.is_char_boundary(at) && FILE.is_char_boundary(end) {
            let text = format!("{}{with}{}", &FILE[..at], &FILE[end..]);
            let _ = parse(&text).map_err(|error| error.to_string());
        }
    }

    #[test]
    fn no_value_panics(key in "mode|unsafe|t_b|t_p|heartbeat|rho_ppm|guest_share|epoch_idle|shadow|queue|host|state", value in "-?[0-9]{1,25}|[0-9]{1,9}\\.[0-9]{1,9}e[0-9]{1,4}|inf|nan|'[0-9]{1,20}(ns|ms|s|h|y)'|\\[\\]|\\{\\}|\\[1\\]") {
        let _ = parse(&with(&format!("{key} = {value}"))).map_err(|error| error.to_string());
    }
}

/// A protected machine's file with flows.
fn with_flows(mode: &str, flows: &str) -> String {
    let flows = flows.replace("[flow]", "[[protection.flow]]");
    format!("{}\n{flows}", with(mode))
}

#[test]
fn modes_say_what_is_held() {
    let mode = |mode: &str, flows: &str| protection(&with_flows(mode, flows)).mode;
    assert_eq!(mode("", ""), Mode::Net);
    assert_eq!(mode("mode = 'net'", ""), Mode::Net);
    assert_eq!(mode("mode = 'no-net'", ""), Mode::NoNet { tcp: false });
    assert_eq!(
        mode("mode = 'no-net'\nunsafe = true", ""),
        Mode::NoNet { tcp: true }
    );
    assert_eq!(mode("mode = 'split'", ""), Mode::Split(default_rules()));
    let flows = "[flow]\naction = 'hold'\nprotocol = 'rtcp'\n[flow]\naction = 'pass'\nprotocol = 'rtp'\n\
                 ports = '10000-19999'\ndscp = 46\n[flow]\naction = 'pass'\nports = '7'";
    let rule = |pass, media, ports, dscp| Rule {
        pass,
        media,
        ports,
        dscp,
    };
    assert_eq!(
        mode("mode = 'split'", flows),
        Mode::Split(vec![
            rule(false, Media::Rtcp, 0..=u16::MAX, None),
            rule(true, Media::Rtp, 10_000..=19_999, Some(46)),
            rule(true, Media::Any, 7..=7, None),
        ])
    );
}

#[test]
fn what_gives_up_safety_is_warned_of() {
    let warnings = |mode: &str| protection(&with(mode)).warnings().join("; ");
    let plain = warnings("");
    assert_eq!(warnings("mode = 'split'"), plain);
    assert!(warnings("mode = 'no-net'").contains("go back in time"));
    assert!(warnings("mode = 'no-net'\nunsafe = true").contains("TCP connections break"));
}

#[test]
fn wrong_flows_are_refused() {
    for (mode, flow, expected) in [
        ("split", "action = 'drop'", "neither \"pass\" nor \"hold\""),
        ("split", "ports = '1-2'", "`action` is missing"),
        ("split", "action = 'pass'\nprotocol = 'tcp'", "always held"),
        ("split", "action = 'pass'\nprotocol = 'udp'", "always held"),
        ("split", "action = 'pass'\nports = '9-8'", "above the last"),
        ("split", "action = 'pass'\nports = '65536'", "no port"),
        ("split", "action = 'pass'\ndscp = 64", "from 0 to 63"),
        (
            "split",
            "action = 'pass'\nport = '7'",
            "did you mean `ports`",
        ),
        ("net", "action = 'pass'", "in `mode = \"split\"` only"),
        ("no-net", "action = 'pass'", "in `mode = \"split\"` only"),
    ] {
        let error = refused(&with_flows(
            &format!("mode = '{mode}'"),
            &format!("[flow]\n{flow}"),
        ));
        assert!(error.to_string().contains(expected), "{flow}: {error}");
    }
}

#[test]
fn uplinks_are_interfaces_and_their_times_stay_what_they_are() {
    let timing = protection(&with("t_b = '250ms'")).timing;
    let default = Timing::default();
    assert_eq!(
        [timing.t_uplink, timing.t_hold],
        [default.t_uplink, default.t_hold],
        "a longer T_b makes no cable slower"
    );
    let slow = protection(&with("t_uplink = '30s'")).timing;
    assert_eq!(slow.t_hold, slow.t_uplink);
    for (keys, expected) in [
        ("uplink = 'eth1'", "must be a list"),
        ("uplink = [1]", "must be text"),
        ("uplink = ['eth1', 'a/b']", "not an interface name"),
        ("uplink = ['eth1', 'eth1']", "twice"),
        (
            "t_uplink = '2s'\nt_hold = '1s'",
            "t_uplink must be at most t_hold",
        ),
        ("t_uplink = '0s'", "t_uplink"),
    ] {
        let error = refused(&with(keys)).to_string();
        assert!(error.contains(expected), "{keys}: {error}");
    }
    let many: Vec<String> = (0..17).map(|n| format!("'eth{n}'")).collect();
    let error = refused(&with(&format!("uplink = [{}]", many.join(", ")))).to_string();
    assert!(error.contains("at most 16"), "{error}");
}
