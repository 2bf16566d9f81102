//! The "newc" cpio format in which the kernel takes its initial RAM file system
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::io::{self, Write};

use crate::tree::{Node, Tree};

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
/// A segment ends on a block, so that another can follow it.
const BLOCK: usize = 512;

/// Writes `tree` as one uncompressed segment. Owner, times and inode numbers depend on nothing but the tree.
pub(crate) fn write(tree: &Tree, out: &mut impl Write) -> io::Result<()> {
    let mut out = Counted { out, written: 0 };
    for (number, (path, node)) in tree.nodes().enumerate() {
        let (mode, links, content) = match node {
            Node::Directory { mode } => (DIRECTORY | mode, 2, [].as_slice()),
            Node::File { mode, content } => (FILE | mode, 1, content.as_slice()),
            Node::Symlink { target } => (SYMLINK | 0o777, 1, target.as_bytes()),
        };
        entry(&mut out, number + 1, mode, links, path, content)?;
    }
    entry(&mut out, 0, 0, 1, "TRAILER!!!", &[])?;
    out.pad(BLOCK)?;
    out.out.flush()
}

fn entry(
    out: &mut Counted<impl Write>,
    inode: usize,
    mode: u32,
    links: u32,
    name: &str,
    content: &[u8],
) -> io::Result<()> {
    let size = u32::try_from(content.len()).map_err(|_| {
        io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("{name}: cpio ends at 4 GiB a file"),
        )
    })?;
    let name_size = name.len() + 1;
    // magic, inode, mode, uid, gid, links, mtime, size, device ×2, special device ×2, name size, checksum (unused)
    write!(
        out,
        "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{links:08x}{0:08x}{size:08x}",
        0
    )?;
    write!(
        out,
        "{0:08x}{0:08x}{0:08x}{0:08x}{name_size:08x}{0:08x}{name}\0",
        0
    )?;
    out.pad(4)?;
    out.write_all(content)?;
    out.pad(4)
}

struct Counted<'a, W: Write> {
    out: &'a mut W,
    written: usize,
}

impl<W: Write> Counted<'_, W> {
    fn pad(&mut self, to: usize) -> io::Result<()> {
        let short = self.written.next_multiple_of(to) - self.written;
        self.write_all(&[0; BLOCK][..short])
    }
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.written += count;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
