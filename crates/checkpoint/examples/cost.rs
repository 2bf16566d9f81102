//! What a page costs: `cargo run --release -p romulus-checkpoint --example cost`.
//!
//! For each case it prints nanoseconds a page for the copy in the pause, for encoding, and for taking in and applying, and
//! the bytes that go over the wire.

use romulus_checkpoint::{Encoder, PAGE, Pages, Replica, Staging};
use std::convert::Infallible;
use std::time::{Duration, Instant};

/// Pages dirtied in an epoch, and epochs.
const DIRTY: usize = 500;
const EPOCHS: u32 = 40;
const PAGES: usize = 16 << 10;

/// Bytes without a pattern, quickly.
fn noise(state: &mut u64, page: &mut [u8; PAGE]) {
    for word in page.as_chunks_mut::<8>().0 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *word = state.to_le_bytes();
    }
}

fn text(page: &mut [u8; PAGE], seed: u64) {
    for (number, line) in (seed..).zip(page.chunks_mut(32)) {
        let text = format!(
            "Call-ID: {:016x}@192.0.2.1\r\n",
            number.wrapping_mul(0x9e37_79b9)
        );
        line.copy_from_slice(&text.as_bytes()[..line.len()]);
    }
}

fn case(name: &str, shadow: bool, mut change: impl FnMut(u64, &mut [u8; PAGE])) {
    let (memory, copy) = [(); 2].map(|()| Ram::new()).into();
    let mut encoder = Encoder::new(PAGES, if shadow { PAGES * PAGE } else { 0 });
    let mut replica = Replica::new(PAGES, 1 << 30);
    let mut staging = Staging::new(DIRTY);
    let mut state = 0x1234_5678;
    let mut page = [0; PAGE];
    let mut times = [Duration::ZERO; 3];
    let mut bytes = 0;
    for epoch in 0..=EPOCHS {
        let dirty = (0..DIRTY).map(|n| n * (PAGES / DIRTY));
        for number in dirty.clone() {
            memory.read(number, &mut page);
            if epoch == 0 {
                noise(&mut state, &mut page);
            } else {
                change(u64::from(epoch), &mut page);
            }
            memory.write(number, &page);
        }
        staging.clear();
        let start = Instant::now();
        staging.copy(&memory, dirty);
        let copied = Instant::now();
        let mut parts = Vec::new();
        let Ok(sealed) = encoder.encode(&staging, &mut |_, part: &[u8]| {
            parts.push(part.to_vec());
            Ok::<_, Infallible>(())
        });
        let made = Instant::now();
        for (index, part) in (0..).zip(&parts) {
            replica
                .part(epoch.into(), index, part)
                .expect("it was just made");
        }
        replica
            .verify(epoch.into(), sealed.parts, sealed.digest)
            .expect("it is whole");
        assert!(replica.apply(&copy).is_some());
        if epoch > 0 {
            times[0] += copied - start;
            times[1] += made - copied;
            times[2] += made.elapsed();
            bytes += sealed.bytes;
        }
    }
    let pages = u64::from(EPOCHS) * DIRTY as u64;
    let [copy, encode, apply] = times.map(|time| time.as_nanos() / u128::from(pages));
    println!(
        "{name:<32} {copy:>8} {encode:>8} {apply:>8} {:>6}.{}",
        bytes / pages,
        bytes * 10 / pages % 10
    );
}

/// Guest memory.
struct Ram(romulus_machine::Memory);

impl Ram {
    fn new() -> Self {
        let memory = romulus_machine::Memory::new((PAGES * PAGE) as u64).expect("64 MiB");
        Self(memory)
    }
}

impl Pages for Ram {
    fn count(&self) -> usize {
        self.0.count()
    }

    fn read(&self, page: usize, into: &mut [u8; PAGE]) {
        self.0.read(page, into);
    }

    fn write(&self, page: usize, from: &[u8; PAGE]) {
        self.0.write(page, from);
    }
}

fn main() {
    let mut random = 99;
    println!(
        "{:<32} {:>8} {:>8} {:>8} {:>8}",
        "a page, ns and bytes", "copy", "encode", "apply", "wire"
    );
    case("the same", true, |_, _| ());
    case("8 bytes changed", true, |epoch, page| {
        page[1000..1008].copy_from_slice(&epoch.to_le_bytes());
    });
    case("four times 8 bytes changed", true, |epoch, page| {
        for at in [8, 1000, 2000, 4000] {
            page[at..at + 8].copy_from_slice(&(!epoch).to_le_bytes());
        }
    });
    case("every 64th byte changed", true, |epoch, page| {
        for byte in page.iter_mut().step_by(64) {
            *byte = byte.wrapping_add(epoch.to_le_bytes()[0]);
        }
    });
    case("an eighth changed, random", true, |_, page| {
        let mut fresh = [0; PAGE];
        noise(&mut random, &mut fresh);
        page[1024..1536].copy_from_slice(&fresh[..512]);
    });
    case("cleared or set", true, |epoch, page| {
        page.fill(0);
        if epoch % 2 == 0 {
            page[40..48].fill(1);
        }
    });
    case("new text", true, |epoch, page| text(page, epoch << 20));
    case("new random data", true, |_, page| noise(&mut random, page));
    case("not in the shadow, text", false, |epoch, page| {
        text(page, epoch << 20);
    });
    case("not in the shadow, random", false, |_, page| {
        noise(&mut random, page);
    });
}
