//! The written forms of single values: names, sizes, times, addresses. Each error says what is allowed.

use romulus_machine::config::{MEMORY_MIN, VCPUS_MAX};
use romulus_protocol::id::MachineId;
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// Longest name of a machine. It is part of a socket's path, which is at most 107 bytes.
const NAME_MAX: usize = 48;
/// Longest name of a network interface (the kernel's `IFNAMSIZ` less its end).
const INTERFACE_MAX: usize = 15;
/// Memory is backed in steps of a large page.
const MEMORY_STEP: u64 = 2 << 20;
/// More memory than any host has is a slip of the unit.
const MEMORY_MAX: u64 = 4 << 40;
/// Longest wait that a machine file may ask for.
const DURATION_MAX: Duration = Duration::from_hours(24);

/// Fewest and most vCPUs.
pub(super) const VCPUS: (u64, u64) = (1, VCPUS_MAX as u64);

/// Checks the name of a machine: it names files and sockets.
///
/// # Errors
/// Says what a name is.
pub fn check_name(name: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let starts = name
        .chars()
        .next()
        .is_some_and(|c| c.is_ascii_alphanumeric());
    if starts && name.len() <= NAME_MAX && name.chars().all(allowed) {
        Ok(name.to_owned())
    } else {
        Err(format!(
            "{name:?} is not a name: 1 to {NAME_MAX} letters, digits, `-`, `_` or `.`, beginning with a letter or digit"
        ))
    }
}

/// Checks the name of a network interface.
pub(super) fn check_interface(name: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':' | '%');
    if (1..=INTERFACE_MAX).contains(&name.len())
        && name.chars().all(allowed)
        && name != "."
        && name != ".."
    {
        Ok(name.to_owned())
    } else {
        Err(format!(
            "{name:?} is not an interface name: 1 to {INTERFACE_MAX} visible ASCII characters, none of them `/`, `:` or `%`"
        ))
    }
}

/// Checks a disk's serial number.
pub(super) fn check_serial(serial: &str) -> Result<String, String> {
    if serial.len() <= 20 && serial.chars().all(|c| c.is_ascii_graphic()) {
        Ok(serial.to_owned())
    } else {
        Err(format!(
            "{serial:?} is not a serial number: at most 20 visible ASCII characters"
        ))
    }
}

/// A size in bytes: `512 MiB`, `2 GiB`, `10 MB`, `4096`.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!(
            "{text:?} is not a size: a number and a unit (B, KiB, MiB, GiB, TiB, kB, MB, GB, TB), such as \"512 MiB\""
        )
    };
    let trimmed = text.trim();
    let digits = trimmed.len()
        - trimmed
            .trim_start_matches(|c: char| c.is_ascii_digit())
            .len();
    let (number, unit) = trimmed.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let scale: u64 = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(scale).ok_or_else(wrong)
}

/// The machine's memory in bytes.
pub(super) fn parse_memory(text: &str) -> Result<u64, String> {
    let size = parse_size(text)?;
    if !(MEMORY_MIN..=MEMORY_MAX).contains(&size) {
        let (least, most) = (MEMORY_MIN >> 20, MEMORY_MAX >> 40);
        return Err(format!(
            "{text:?} is out of range: at least {least} MiB, at most {most} TiB"
        ));
    }
    if !size.is_multiple_of(MEMORY_STEP) {
        let below = (size - size % MEMORY_STEP) >> 20;
        return Err(format!(
            "{text:?} is not a multiple of 2 MiB; the nearest below is \"{below} MiB\""
        ));
    }
    Ok(size)
}

/// The size at which a log rotates, in bytes.
pub(super) fn parse_log_size(text: &str) -> Result<u64, String> {
    let size = parse_size(text)?;
    if size < 4096 {
        return Err(format!("{text:?} is too small: at least 4 KiB"));
    }
    Ok(size)
}

/// A length of time: `30 s`, `1500 ms`, `2 min`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration <= DURATION_MAX => Ok(duration),
        Ok(_) => Err(format!("{text:?} is out of range: at most 24 h")),
        Err(_) => Err(format!(
            "{text:?} is not a length of time: a number and a unit (ms, s, min, h), such as \"30 s\""
        )),
    }
}

/// An interval or time-out of the protocol: a length of time that is not zero.
pub(super) fn parse_interval(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(Duration::ZERO) => Err("zero is no interval; write for example \"100 ms\"".to_owned()),
        other => other,
    }
}

/// A machine's uuid, as RFC 9562 writes it.
pub(super) fn parse_uuid(text: &str) -> Result<MachineId, String> {
    let wrong = || {
        format!(
            "{text:?} is not a uuid: 32 hexadecimal digits in groups of 8, 4, 4, 4 and 12, such as \"6ba7b810-9dad-41d1-80b4-00c04fd430c8\""
        )
    };
    let groups: Vec<&str> = text.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    let digits = groups.concat();
    // from_str_radix would take a sign.
    if lengths != [8, 4, 4, 4, 12] || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    match u128::from_str_radix(&digits, 16) {
        Ok(0) => Err(format!("{text:?} is no machine's: every digit is zero")),
        Ok(number) => Ok(MachineId(number)),
        Err(_) => Err(wrong()),
    }
}

/// The address of one process of one host: an IP address and a port.
pub(super) fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| {
        format!(
            "{text:?} is not an address: an IP address and a port, such as \"203.0.113.9:7400\" or \"[2001:db8::9]:7400\""
        )
    })?;
    let ip = address.ip().to_canonical();
    if address.port() == 0 {
        Err(format!(
            "{text:?} has port 0, which stands for any; give one, such as 7400"
        ))
    } else if ip.is_unspecified() {
        Err(format!(
            "{text:?} stands for any address; give one address of the host"
        ))
    } else if ip.is_multicast() || ip == IpAddr::from([255; 4]) {
        Err(format!(
            "{text:?} is the address of many; give one address of the host"
        ))
    } else {
        Ok(SocketAddr::new(ip, address.port()))
    }
}

/// A MAC address of one card: `52:54:00:aa:00:01`.
pub(super) fn parse_mac(text: &str) -> Result<[u8; 6], String> {
    let wrong = || {
        format!(
            "{text:?} is not a MAC address: six pairs of hexadecimal digits, such as \"52:54:00:aa:00:01\""
        )
    };
    let mut mac = [0; 6];
    let mut pairs = text.split(':');
    for byte in &mut mac {
        let pair = pairs.next().ok_or_else(wrong)?;
        // from_str_radix would take a sign.
        if pair.len() != 2 || !pair.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
    }
    if pairs.next().is_some() {
        return Err(wrong());
    }
    if mac[0] & 1 != 0 {
        return Err(format!(
            "{text:?} is a group address: the first byte of a card's address must be even"
        ));
    }
    if mac == [0; 6] {
        return Err(format!("{text:?} is no card's address"));
    }
    Ok(mac)
}

/// The address of a card whose file gives none: always the same for the same machine and card, locally administered
/// (second bit of the first byte set, IEEE 802), so that the same file means the same machine on every host.
pub(super) fn derive_mac(name: &str, index: usize) -> [u8; 6] {
    let mut hasher =
        blake3::Hasher::new_derive_key("Romulus 2026-11-22 MAC address of a network card");
    hasher.update(name.as_bytes());
    hasher.update(&[0]);
    hasher.update(&(index as u64).to_le_bytes());
    let mut mac = [0; 6];
    hasher.finalize_xof().fill(&mut mac);
    mac[0] = 0x02;
    mac
}

/// A MAC address as it is written.
pub fn format_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("512 MiB"), Ok(512 << 20));
        assert_eq!(parse_size("2GiB"), Ok(2 << 30));
        assert_eq!(parse_size(" 10 MB "), Ok(10_000_000));
        assert_eq!(parse_size("4096"), Ok(4096));
        for wrong in [
            "",
            "MiB",
            "-1 MiB",
            "1.5 GiB",
            "12 Mib",
            "99999999999 TiB",
            "184467440737095516160",
        ] {
            assert!(parse_size(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn memory_keeps_to_its_range_and_step() {
        assert_eq!(parse_memory("128 MiB"), Ok(128 << 20));
        assert!(
            parse_memory("126 MiB")
                .unwrap_err()
                .contains("at least 128 MiB")
        );
        let odd = parse_memory("513 MiB").unwrap_err();
        assert!(
            odd.contains("multiple of 2 MiB") && odd.contains("512 MiB"),
            "{odd}"
        );
        assert!(parse_memory("1000 TiB").is_err());
    }

    #[test]
    fn macs_are_strict() {
        assert_eq!(
            parse_mac("52:54:00:AA:00:01"),
            Ok([0x52, 0x54, 0, 0xaa, 0, 1])
        );
        for wrong in [
            "",
            "52:54:00:aa:00",
            "52:54:00:aa:00:01:02",
            "52-54-00-aa-00-01",
            "+2:54:00:aa:00:01",
            "5:54:0:a:0:1",
        ] {
            assert!(
                parse_mac(wrong).unwrap_err().contains("six pairs"),
                "{wrong:?}"
            );
        }
        assert!(
            parse_mac("01:00:5e:00:00:01")
                .unwrap_err()
                .contains("group")
        );
        assert!(parse_mac("00:00:00:00:00:00").is_err());
    }

    #[test]
    fn uuids_are_strict() {
        let text = "0123abcd-4567-89ab-cdef-0123456789ab";
        assert_eq!(parse_uuid(text).unwrap().to_string(), text);
        for wrong in [
            "",
            "0123abcd456789abcdef0123456789ab",
            "0123abcd-4567-89ab-cdef-0123456789a",
            "+123abcd-4567-89ab-cdef-0123456789ab",
            "0123abc-d4567-89ab-cdef-0123456789ab",
            "00000000-0000-0000-0000-000000000000",
        ] {
            assert!(parse_uuid(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn addresses_are_of_one_host() {
        assert!(parse_address("203.0.113.9:7400").is_ok());
        assert!(parse_address("[2001:db8::9]:7400").is_ok());
        for (wrong, why) in [
            ("arbiter:7400", "is not an address"),
            ("203.0.113.9", "is not an address"),
            ("203.0.113.9:0", "port 0"),
            ("0.0.0.0:7400", "any address"),
            ("[::]:7400", "any address"),
            ("[::ffff:0.0.0.0]:7400", "any address"),
            ("224.0.0.1:7400", "of many"),
            ("255.255.255.255:7400", "of many"),
            ("[ff02::1]:7400", "of many"),
        ] {
            assert!(parse_address(wrong).unwrap_err().contains(why), "{wrong:?}");
        }
    }

    #[test]
    fn derived_macs_are_local_stable_and_distinct() {
        let first = derive_mac("registrar", 0);
        assert_eq!(first, derive_mac("registrar", 0));
        assert_eq!(first[0] & 0b11, 0b10, "locally administered, one card");
        assert_ne!(first, derive_mac("registrar", 1));
        assert_ne!(first, derive_mac("registrar2", 0));
    }

    #[test]
    fn names_are_safe_for_paths() {
        assert!(check_name("registrar-1.example_b").is_ok());
        for wrong in ["", ".", "..", "-v", "a/b", "a b", "é", &"x".repeat(49)] {
            assert!(check_name(wrong).is_err(), "{wrong:?}");
        }
        assert!(check_interface("tap0").is_ok());
        for wrong in ["", "a/b", "tap 0", "tap%d", "sixteencharacter", ".."] {
            assert!(check_interface(wrong).is_err(), "{wrong:?}");
        }
    }
}
