//! Unpacks the payload of a packed kernel (the kernel's `scripts/Makefile.lib` says how each is made).

use std::io::{self, Read};

/// No kernel unpacks to more.
pub(super) const SIZE_MAX: usize = 512 << 20;

/// Unpacks `payload` into exactly `size` bytes. `Ok(None)` if its form is none that is known here.
///
/// # Errors
/// The payload is damaged.
pub(super) fn unpack(payload: &[u8], size: usize) -> io::Result<Option<Vec<u8>>> {
    if size > SIZE_MAX {
        return Err(invalid(format!("it says that it unpacks to {size} bytes")));
    }
    let unpacked = match payload {
        [0x1f, 0x8b, ..] => from_reader(flate2::read::GzDecoder::new(payload), size)?,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            from_reader(lzma_rust2::XzReader::new(payload, true), size)?
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(payload)
                .map_err(|e| invalid(e.to_string()))?;
            from_reader(decoder, size)?
        }
        [0x02, 0x21, 0x4c, 0x18, blocks @ ..] => lz4_legacy(blocks, size)?,
        _ => return Ok(None),
    };
    if unpacked.len() != size {
        return Err(invalid(format!(
            "it unpacks to {} bytes instead of {size}",
            unpacked.len()
        )));
    }
    Ok(Some(unpacked))
}

fn from_reader(reader: impl Read, size: usize) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(size);
    // One byte more than there should be, so that too much is noticed without unpacking all of it.
    reader.take(size as u64 + 1).read_to_end(&mut out)?;
    Ok(out)
}

/// The LZ4 tool's old format: blocks of a length and packed bytes, each unpacking to at most 8 MiB.
fn lz4_legacy(mut rest: &[u8], size: usize) -> io::Result<Vec<u8>> {
    const BLOCK_MAX: usize = 8 << 20;
    let mut out = vec![0; size];
    let mut at = 0;
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let (block, after) = after
            .split_at_checked(length)
            .ok_or_else(|| invalid("an LZ4 block is truncated".into()))?;
        let room = (size - at).min(BLOCK_MAX);
        at += lz4_flex::block::decompress_into(block, &mut out[at..at + room])
            .map_err(|e| invalid(e.to_string()))?;
        rest = after;
    }
    out.truncate(at);
    Ok(out)
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn legacy(data: &[u8]) -> Vec<u8> {
        let mut out = vec![0x02, 0x21, 0x4c, 0x18];
        for chunk in data.chunks(8 << 20) {
            let packed = lz4_flex::block::compress(chunk);
            out.extend(u32::try_from(packed.len()).unwrap().to_le_bytes());
            out.extend(packed);
        }
        out
    }

    fn sample() -> Vec<u8> {
        (0..9 << 20)
            .map(|n: u32| u8::try_from(n / 100 % 256).unwrap())
            .collect()
    }

    #[test]
    fn lz4_in_several_blocks() {
        let data = sample();
        assert!(unpack(&legacy(&data), data.len()).unwrap().unwrap() == data);
    }

    #[test]
    fn gzip() {
        use std::io::Write;
        let data = sample();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&data).unwrap();
        assert!(
            unpack(&encoder.finish().unwrap(), data.len())
                .unwrap()
                .unwrap()
                == data
        );
    }

    #[test]
    fn damage_and_wrong_sizes_are_refused() {
        let data = sample();
        let packed = legacy(&data);
        assert!(unpack(&packed, data.len() + 1).is_err());
        assert!(unpack(&packed, data.len() - 1).is_err());
        assert!(unpack(&packed, SIZE_MAX + 1).is_err());
        for cut in [5, 100, packed.len() - 1] {
            assert!(unpack(&packed[..cut], data.len()).is_err());
        }
        for magic in [
            &[0x1f, 0x8b][..],
            &[0xfd, b'7', b'z', b'X', b'Z', 0],
            &[0x28, 0xb5, 0x2f, 0xfd],
            &[0x02, 0x21, 0x4c, 0x18],
        ] {
            let mut noise = magic.to_vec();
            noise.extend((0..1000u32).map(|n| u8::try_from(n * 7 % 251).unwrap()));
            assert!(unpack(&noise, 5000).is_err(), "{magic:?}");
        }
    }

    #[test]
    fn an_unknown_form_is_not_an_error() {
        assert_eq!(unpack(b"BZh9 and so on", 100).unwrap(), None);
        assert_eq!(unpack(&[], 100).unwrap(), None);
    }
}
