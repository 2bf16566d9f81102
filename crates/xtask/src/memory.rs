//! How much memory a process holds beyond that of its guest.

/// Resident KiB of a process without its guest's memory, from the text of `/proc/PID/smaps`.
///
/// The guest's memory is told by its size: mappings of at least `guest_bytes_min` are the guest's. (The two parts of a
/// guest's memory around the hole below 4 GiB are each larger than anything else that a process maps and fills.)
pub(crate) fn resident_beyond_guest_kib(smaps: &str, guest_bytes_min: u64) -> u64 {
    let mut size = 0;
    let mut resident = 0;
    for line in smaps.lines() {
        if let Some(bytes) = mapping_size(line) {
            size = bytes;
        } else if size < guest_bytes_min
            && let Some(kib) = line.strip_prefix("Rss:")
        {
            resident += kib
                .trim()
                .trim_end_matches("kB")
                .trim()
                .parse::<u64>()
                .unwrap_or(0);
        }
    }
    resident
}

/// The size of a mapping, if `line` begins one (`from-to rwxp …`, hexadecimal).
fn mapping_size(line: &str) -> Option<u64> {
    let (from, to) = line.split(' ').next()?.split_once('-')?;
    let (from, to) = (
        u64::from_str_radix(from, 16).ok()?,
        u64::from_str_radix(to, 16).ok()?,
    );
    to.checked_sub(from)
}

#[cfg(test)]
mod tests {
    use super::resident_beyond_guest_kib;

    const SMAPS: &str = "\
559d00000000-559d00100000 r-xp 00000000 00:01 12 /bin/romulus
Size:               1024 kB
Rss:                 700 kB
VmFlags: rd ex mr
7f0000000000-7f0020000000 rw-p 00000000 00:00 0
Size:             524288 kB
Rss:              400000 kB
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0 [stack]
Rss:                  16 kB
Pss:                  16 kB
";

    #[test]
    fn the_guests_memory_is_left_out() {
        assert_eq!(resident_beyond_guest_kib(SMAPS, 512 << 20), 716);
        assert_eq!(resident_beyond_guest_kib(SMAPS, 1 << 40), 400_716);
        assert_eq!(resident_beyond_guest_kib("", 1), 0);
    }
}
