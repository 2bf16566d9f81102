use super::*;

const MIB: u64 = 1 << 20;

#[test]
fn an_initrd_goes_as_high_as_the_kernel_accepts() {
    let end = 0x300_0000;
    assert_eq!(initrd_start(MIB, 0, end, 128 * MIB), Ok(127 * MIB));
    assert_eq!(
        initrd_start(MIB + 1, 0, end, 128 * MIB),
        Ok(127 * MIB - 4096)
    );
    assert_eq!(initrd_start(MIB, 0, end, LOW_END), Ok(0x8000_0000 - MIB));
    assert_eq!(
        initrd_start(MIB, 0x3fff_ffff, end, LOW_END),
        Ok(0x4000_0000 - MIB)
    );
}

#[test]
fn an_initrd_that_does_not_fit_is_refused() {
    let end = 100 * MIB;
    assert!(initrd_start(28 * MIB, 0, end, 128 * MIB).is_ok());
    assert!(
        initrd_start(28 * MIB + 1, 0, end, 128 * MIB)
            .unwrap_err()
            .contains("28 fit")
    );
    assert!(initrd_start(u64::MAX, 0, end, 128 * MIB).is_err());
    assert!(
        initrd_start(0, 0, end, 128 * MIB)
            .unwrap_err()
            .contains("empty")
    );
}

#[test]
fn the_memory_map_shows_both_ranges() {
    let map = memory_map(&Memory::new(3074 * MIB).unwrap());
    assert_eq!(map[2], (0x10_0000, 0xbff0_0000, USABLE));
    assert_eq!(map[3], (1 << 32, 2 * MIB, USABLE));
    assert_eq!(memory_map(&Memory::new(128 * MIB).unwrap()).len(), 3);
}

#[test]
fn a_command_line_is_checked() {
    let memory = Memory::new(128 * MIB).unwrap();
    let write = |text: &str| write_command_line(memory.ram(), text, &mut image::default_header());
    write(&"x".repeat(2047)).unwrap();
    assert_eq!(
        memory
            .ram()
            .read_obj::<u16>(GuestAddress(COMMAND_LINE + 2046))
            .unwrap(),
        u16::from(b'x')
    );
    assert!(
        write(&"x".repeat(2048))
            .unwrap_err()
            .to_string()
            .contains("takes 2047")
    );
    assert!(write("a\0b").is_err());
}

fn try_kernel(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kernel");
    std::fs::write(&path, bytes).unwrap();
    let config = Config {
        name: "test".into(),
        vcpus: 1,
        memory: 128 * MIB,
        kernel: path,
        initrd: None,
        command_line: String::new(),
        kernel_cache: None,
        nics: Vec::new(),
        disks: Vec::new(),
        entropy: false,
    };
    let memory = Memory::new(config.memory).unwrap();
    match load_kernel(&config, &memory) {
        Ok(loaded) => format!("entry {:#x}", loaded.entry),
        Err(error) => error.to_string(),
    }
}

/// An ELF file with one segment of `data` bytes at `address`.
fn elf(address: u64, data: &[u8]) -> Vec<u8> {
    let mut file = vec![0u8; 120];
    file[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(16, &2u16.to_le_bytes());
    put(18, &62u16.to_le_bytes());
    put(24, &address.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &1u16.to_le_bytes());
    put(64, &1u32.to_le_bytes());
    put(64 + 8, &120u64.to_le_bytes());
    put(64 + 24, &address.to_le_bytes());
    put(64 + 32, &(data.len() as u64).to_le_bytes());
    put(64 + 40, &(data.len() as u64).to_le_bytes());
    file.extend(data);
    file
}

/// A bzImage whose protected-mode part is `payload` behind 16 bytes.
fn bzimage(payload: &[u8], unpacked: usize) -> Vec<u8> {
    let mut file = vec![0u8; 1024];
    let mut code = vec![0u8; 16];
    code.extend(payload);
    code.extend(u32::try_from(unpacked).unwrap().to_le_bytes());
    let length = u32::try_from(code.len() - 16).unwrap();
    code.resize(code.len().next_multiple_of(16), 0);
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(
        0x1f4,
        &u32::try_from(code.len() / 16).unwrap().to_le_bytes(),
    );
    put(0x1fe, &0xaa55u16.to_le_bytes());
    put(0x200, &[0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &0x20fu16.to_le_bytes());
    put(0x236, &1u16.to_le_bytes());
    put(0x248, &16u32.to_le_bytes());
    put(0x24c, &length.to_le_bytes());
    put(0x258, &0x100_0000u64.to_le_bytes());
    file.extend(code);
    file
}

fn lz4(data: &[u8]) -> Vec<u8> {
    let packed = lz4_flex::block::compress(data);
    let mut out = vec![0x02, 0x21, 0x4c, 0x18];
    out.extend(u32::try_from(packed.len()).unwrap().to_le_bytes());
    out.extend(packed);
    out
}

#[test]
fn a_vmlinux_is_loaded() {
    assert_eq!(try_kernel(&elf(0x100_0000, &[1; 5000])), "entry 0x1000000");
}

#[test]
fn a_packed_kernel_is_unpacked() {
    let inner = elf(0x120_0000, &[1; 5000]);
    assert_eq!(
        try_kernel(&bzimage(&lz4(&inner), inner.len())),
        "entry 0x1200000"
    );
}

#[test]
fn a_kernel_packed_in_an_unknown_way_unpacks_itself() {
    assert_eq!(
        try_kernel(&bzimage(b"BZh91AY&SY and so on", 5000)),
        "entry 0x1000200"
    );
}

#[test]
fn what_is_no_kernel_is_refused_with_its_reason() {
    let inner = elf(0x100_0000, &[1; 5000]);
    let whole = bzimage(&lz4(&inner), inner.len());
    for (bytes, why) in [
        (vec![], "only 0 bytes"),
        (vec![b'x'; 5000], "no Linux kernel"),
        (whole[..whole.len() - 20].to_vec(), "truncated"),
        (whole[..600].to_vec(), "only 600 bytes"),
        (
            bzimage(&lz4(&inner[..2000]), inner.len()),
            "unpacks to 2000 bytes",
        ),
        (
            bzimage(&lz4(b"not an ELF file at all, but long enough"), 39),
            "truncated",
        ),
        (inner[..inner.len() - 1].to_vec(), "truncated"),
        (inner[..100].to_vec(), "truncated"),
        (elf(0x1000, &[1; 5000]), "no kernel"),
        (elf(0x7ff_f000, &[1; 5000]), "ELF"),
        (elf(0x8000_0000, &[1; 5000]), "ELF"),
    ] {
        let text = try_kernel(&bytes);
        assert!(
            text.contains(why) || text.contains("Unable to read kernel image"),
            "{why}: {text}"
        );
        assert!(!text.starts_with("entry"), "{why}");
    }
}

#[test]
fn a_32_bit_bzimage_is_refused() {
    let mut bytes = bzimage(b"BZh9", 100);
    bytes[0x236] = 0;
    assert!(try_kernel(&bytes).contains("64-bit"));
}
