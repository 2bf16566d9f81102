//! The kernel of a host, unpacked beforehand: an emulated processor takes a second for what this one does in a tenth.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use images::Kernel;

/// Where the setup header of a bzImage has its fields (Documentation/arch/x86/boot.rst).
const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// How compressed kernels begin, and what unpacks them.
const TOOLS: [(&[u8], &str); 4] = [
    (&[0x02, 0x21, 0x4c, 0x18], "lz4"),
    (&[0xfd, b'7', b'z', b'X', b'Z'], "xz"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
    (&[0x1f, 0x8b], "gzip"),
];

/// The kernel as the ELF file that is packed in its bzImage, out of the cache where it is there; the bzImage itself, which
/// QEMU boots as well, where it cannot be unpacked.
///
/// # Errors
/// Where the kernel cannot be read or the cache not be written.
pub(crate) fn unpacked(kernel: &Kernel) -> Result<PathBuf> {
    let directory = images::cache_dir().join("lab").join("kernel");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    // The directory of an unpacked kernel bears the digest of its package.
    let name = kernel.root.file_name().context("a kernel without a name")?;
    let path = directory.join(name);
    if path.try_exists()? {
        return Ok(path);
    }
    let image = fs::read(&kernel.vmlinuz)
        .with_context(|| format!("cannot read {}", kernel.vmlinuz.display()))?;
    let Ok(elf) = payload(&image).and_then(|(tool, payload)| unpack(tool, payload)) else {
        return Ok(kernel.vmlinuz.clone());
    };
    write(&path, &elf).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Written beside and renamed: what is in the cache is whole.
fn write(path: &Path, content: &[u8]) -> Result<()> {
    let unfinished = path.with_extension(std::process::id().to_string());
    fs::write(&unfinished, content)
        .and_then(|()| fs::rename(&unfinished, path))
        .inspect_err(|_| drop(fs::remove_file(&unfinished)))?;
    Ok(())
}

/// The packed kernel in a bzImage, and what unpacks it.
fn payload(image: &[u8]) -> Result<(&'static str, &[u8])> {
    ensure!(
        image.get(MAGIC..MAGIC + 4) == Some(b"HdrS"),
        "this is no bzImage"
    );
    let word = |at: usize| -> Result<usize> {
        let bytes = image.get(at..at + 4).context("too short a header")?;
        Ok(usize::try_from(u32::from_le_bytes(bytes.try_into()?))?)
    };
    // Zero stands for four, for the sake of very old boot loaders.
    let sectors = match image[SETUP_SECTORS] {
        0 => 4,
        n => usize::from(n),
    };
    let start = (sectors + 1) * 512 + word(PAYLOAD_OFFSET)?;
    // Its last four bytes are the unpacked length.
    let end = (start + word(PAYLOAD_LENGTH)?).saturating_sub(4);
    let payload = image
        .get(start..end)
        .context("the packed kernel lies outside of the file")?;
    for (magic, tool) in TOOLS {
        if payload.starts_with(magic) {
            return Ok((tool, payload));
        }
    }
    bail!("the kernel is packed in an unknown way")
}

fn unpack(tool: &str, payload: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new(tool)
        .args(["-d", "-c", "-q"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot run {tool}"))?;
    let mut input: File = std::os::fd::OwnedFd::from(child.stdin.take().context("no pipe")?).into();
    let output = thread::scope(|scope| {
        // The tool may refuse; its status tells.
        scope.spawn(move || input.write_all(payload));
        child.wait_with_output()
    })?;
    ensure!(
        output.stdout.starts_with(b"\x7fELF"),
        "{tool} gave no kernel"
    );
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 0x400];
        image[SETUP_SECTORS] = 1;
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16_u32.to_le_bytes());
        let length = u32::try_from(payload.len() + 4).unwrap();
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        image.extend_from_slice(&[0; 16]);
        image.extend_from_slice(payload);
        image.extend_from_slice(&[0; 4]);
        image
    }

    #[test]
    fn the_packed_kernel_is_found() {
        let packed = [0x1f, 0x8b, 1, 2, 3];
        assert_eq!(
            payload(&image(&packed)).unwrap(),
            ("gzip", packed.as_slice())
        );
        assert!(payload(&image(b"nonsense")).is_err());
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let whole = image(&[0x1f, 0x8b, 1, 2, 3]);
        for length in 0..whole.len() - 4 {
            assert!(payload(&whole[..length]).is_err(), "{length}");
        }
        let mut huge = whole;
        huge[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].fill(0xff);
        assert!(payload(&huge).is_err());
        assert!(unpack("gzip", b"\x1f\x8b nothing").is_err());
    }
}
