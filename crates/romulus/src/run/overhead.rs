//! How much memory the process needs beyond its guest's.

use std::{fs, io};

/// Resident memory of this process beyond its guest's, in bytes, as the kernel counts it (proc(5), `smaps`).
pub(super) fn measure(guest: u64) -> io::Result<u64> {
    Ok(beyond(&fs::read_to_string("/proc/self/smaps")?, guest))
}

/// Guest memory is by far the largest that is mapped: the largest mappings, until they cover it, are the guest's.
fn beyond(smaps: &str, guest: u64) -> u64 {
    let mut mappings: Vec<(u64, u64)> = Vec::new();
    for line in smaps.lines() {
        if let Some(size) = kilobytes(line, "Size:") {
            mappings.push((size, 0));
        } else if let (Some(resident), Some(last)) = (kilobytes(line, "Rss:"), mappings.last_mut())
        {
            last.1 = resident;
        }
    }
    mappings.sort_unstable_by(|a, b| b.cmp(a));
    let mut covered = 0;
    mappings
        .into_iter()
        .skip_while(|(size, _)| {
            let skip = covered < guest;
            covered += size;
            skip
        })
        .map(|(_, resident)| resident)
        .sum()
}

fn kilobytes(line: &str, key: &str) -> Option<u64> {
    let number = line.strip_prefix(key)?.trim().strip_suffix("kB")?.trim();
    Some(number.parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_mappings_do_not_count() {
        let smaps = "\
7f0000000000-7f0020000000 rw-p 00000000 00:00 0
Size:             524288 kB
Rss:              400000 kB
Anonymous:        400000 kB
555500000000-555500400000 r-xp 00000000 08:01 1 /usr/bin/romulus
Size:               4096 kB
Rss:                3000 kB
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0 [stack]
Size:                132 kB
Rss:                  40 kB
";
        assert_eq!(beyond(smaps, 512 << 20), 3040 << 10);
        assert_eq!(beyond(smaps, 0), 403_040 << 10);
    }

    #[test]
    fn this_process_can_be_measured() {
        assert!(measure(0).unwrap() > 100 << 10);
    }
}
