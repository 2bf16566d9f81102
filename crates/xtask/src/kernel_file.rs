//! The kernel inside a distribution's kernel file, for QEMU, which does not unpack it by itself.

use anyhow::{Context as _, Result, bail, ensure};
use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

/// Writes the unpacked kernel of the bzImage `from` to `to`.
///
/// # Errors
/// The file is no bzImage, or packed in a way that we don't know, or the unpacking program is missing.
pub(crate) fn unpack(from: &Path, to: &Path) -> Result<()> {
    let image = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    let payload = payload(&image).with_context(|| format!("{} is no bzImage", from.display()))?;
    let Some(program) = unpacker(payload) else {
        bail!(
            "the kernel in {} is packed in an unknown way",
            from.display()
        );
    };
    let mut child = Command::new(program)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(File::create(to)?)
        .spawn()
        .with_context(|| format!("running {program}; install the Debian package of that name"))?;
    let mut input = child.stdin.take().context("the program has no input")?;
    input.write_all(payload)?;
    drop(input);
    ensure!(
        child.wait()?.success(),
        "{program} can't unpack the kernel in {}",
        from.display()
    );
    Ok(())
}

/// The packed kernel in a bzImage, by its setup header (Linux: Documentation/arch/x86/boot.rst). The kernel's build
/// appends the unpacked size, which is left out.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let four =
        |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize);
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let setup_sectors = usize::from(*image.get(0x1f1)?);
    let start = (setup_sectors + 1) * 512 + four(0x248)?;
    let length = four(0x24c)?.checked_sub(4)?;
    image.get(start..start.checked_add(length)?)
}

/// The program that unpacks data which begins like this.
fn unpacker(payload: &[u8]) -> Option<&'static str> {
    const KNOWN: [(&[u8], &str); 4] = [
        (&[0x02, 0x21, 0x4c, 0x18], "lz4"),
        (&[0xfd, b'7', b'z', b'X', b'Z'], "xz"),
        (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
        (&[0x1f, 0x8b], "gzip"),
    ];
    KNOWN
        .iter()
        .find(|(magic, _)| payload.starts_with(magic))
        .map(|(_, program)| *program)
}

#[cfg(test)]
mod tests {
    use super::{payload, unpack, unpacker};

    fn bzimage(packed: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        let length = u32::try_from(packed.len() + 4).unwrap();
        image[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
        image.extend([0; 16]);
        image.extend(packed);
        image.extend([0; 4]);
        image
    }

    #[test]
    fn the_payload_is_where_the_header_says() {
        assert_eq!(payload(&bzimage(b"packed")), Some(&b"packed"[..]));
        assert_eq!(unpacker(&[0x02, 0x21, 0x4c, 0x18, 9]), Some("lz4"));
    }

    #[test]
    fn foreign_and_truncated_files_are_refused() {
        let whole = bzimage(b"packed");
        for length in [0, 0x203, 0x24d, whole.len() - 5] {
            assert_eq!(payload(&whole[..length]), None, "{length}");
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x");
        std::fs::write(&file, whole).unwrap();
        let error = unpack(&file, &folder.path().join("out")).unwrap_err();
        assert!(error.to_string().contains("unknown way"), "{error}");
    }
}
