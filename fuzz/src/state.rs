//! A machine's captured state, loaded before a trial or a takeover: shape, CPUID, a vCPU's fields, and the virtio devices. (What
//! of it goes to KVM unseen is KVM's to judge.)
//!
//! The input is a byte that says whether checksums are made right, and the state.

use crate::memory::bounded;
use romulus_machine::{fuzzing::Loader, state::kind};

/// Length of a section's header.
const HEADER: usize = 16;
/// Registers of virtio's MMIO transport (virtio 1.2, section 4.2.2).
const QUEUE_SELECT: u64 = 0x30;
const QUEUE_SIZE: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const QUEUE_DESCRIPTORS: u64 = 0x80;
const QUEUE_DRIVER: u64 = 0x90;
const QUEUE_DEVICE: u64 = 0xa0;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SELECT: u64 = 0x24;
const STATUS: u64 = 0x70;

/// The card, the disk and the entropy device, with the number of their queues.
const DEVICES: [(usize, u32); 3] = [(0, 2), (1, 1), (2, 1)];

/// Devices, and the state that they had at first.
struct Scene {
    loader: Loader,
    fresh: Vec<u8>,
}

impl Scene {
    fn new() -> Self {
        let loader = Loader::new().expect("memory and a temporary file");
        let fresh = loader.capture();
        Self { loader, fresh }
    }
}

thread_local! {
    static SCENE: Scene = Scene::new();
}

/// Loads state.
///
/// # Panics
/// A promise is broken.
pub fn body(bytes: &[u8]) {
    let Some((how, bytes)) = bytes.split_first() else {
        return;
    };
    let bytes = if *how == 0 {
        bytes.to_vec()
    } else {
        seal(bytes)
    };
    SCENE.with(|scene| {
        let Scene { loader, fresh } = scene;
        if bounded(8 * bytes.len(), || loader.load(&bytes)).is_ok() {
            // What was taken can be captured and taken again, and is the same then.
            let taken = loader.capture();
            loader.load(&taken).expect("what was captured is taken");
            assert!(loader.capture() == taken, "loaded again it is another");
            same_devices(&bytes, &taken);
        }
        // Whatever came, other state can still be loaded.
        loader.load(fresh).expect("a fresh machine's state");
        assert!(loader.capture() == *fresh, "something is left of it");
    });
}

/// The devices' sections that were given, and those that were captured afterwards, say the same.
fn same_devices(given: &[u8], taken: &[u8]) {
    let (given, taken) = (sections(given), sections(taken));
    assert_eq!(given.len(), taken.len());
    // Shape, CPUID, one vCPU.
    for ((header, given), (_, taken)) in given.iter().zip(&taken).skip(3) {
        assert_eq!(given.len(), taken.len());
        for (at, (given, taken)) in given.iter().zip(*taken).enumerate() {
            let loose = match u32::from(header[0]) {
                kind::TRANSPORT => is_loose(at),
                // Whether it is read-only: a whole word for a yes or no.
                kind::BLOCK => (8..12).contains(&at),
                _ => false,
            };
            assert!(given == taken || loose, "byte {at} of {header:?}");
        }
    }
}

/// Whether a byte of a transport's section may come back otherwise: what the device offered (here it may offer more), and the
/// words of each queue that are a yes or no.
fn is_loose(at: usize) -> bool {
    const OFFERED: usize = 28;
    const QUEUES: usize = 46;
    const QUEUE: usize = 36;
    let in_queue = at.checked_sub(QUEUES).map(|at| at % QUEUE);
    (OFFERED..OFFERED + 8).contains(&at) || in_queue.is_some_and(|at| (8..12).contains(&at))
}

/// Headers and payloads.
fn sections(mut rest: &[u8]) -> Vec<(&[u8; HEADER], &[u8])> {
    let mut sections = Vec::new();
    while let Some((header, body)) = rest.split_first_chunk::<HEADER>() {
        let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        let (body, after) = body.split_at(length as usize);
        sections.push((header, body));
        rest = after;
    }
    sections
}

/// State whose sections have the checksums that belong to their bytes.
pub(crate) fn seal(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let mut rest = &mut bytes[..];
    while let Some((header, body)) = rest.split_first_chunk_mut::<HEADER>() {
        let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        let length = length.min(u32::try_from(body.len()).unwrap_or(u32::MAX));
        header[8..12].copy_from_slice(&length.to_le_bytes());
        let (body, after) = body.split_at_mut(length as usize);
        header[12..].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
        rest = after;
    }
    bytes
}

/// A driver's start: features (the lower half first), queues, ready.
fn drive(loader: &Loader, device: usize, queues: u32, features: [u32; 2]) {
    for status in [0, 1, 3] {
        loader.write(device, STATUS, status);
    }
    for (half, word) in (0..).zip(features) {
        loader.write(device, DRIVER_FEATURES_SELECT, half);
        loader.write(device, DRIVER_FEATURES, word);
    }
    loader.write(device, STATUS, 0xb);
    let rings = [0x1_0000, 0x2_0000, 0x3_0000][device];
    for queue in 0..queues {
        let at = rings + 0x1000 * queue;
        loader.write(device, QUEUE_SELECT, queue);
        loader.write(device, QUEUE_SIZE, 16);
        loader.write(device, QUEUE_DESCRIPTORS, at);
        loader.write(device, QUEUE_DRIVER, at + 0x100);
        loader.write(device, QUEUE_DEVICE, at + 0x200);
        loader.write(device, QUEUE_READY, 1);
    }
    loader.write(device, STATUS, 0xf);
    assert_eq!(loader.read(device, STATUS), 0xf, "the device is ready");
}

/// A machine at its start, in use, and in between.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    /// `EVENT_IDX`, and `VERSION_1`.
    const FEATURES: [u32; 2] = [1 << 29, 1];
    let mut seeds = Vec::new();
    let loader = Loader::new().expect("memory and a temporary file");
    let mut seed = |name: &str, state: &[u8]| {
        seeds.push((name.to_owned(), [&[1], state].concat()));
    };
    let fresh = loader.capture();
    seed("fresh", &fresh);
    seed("cut", &fresh[..fresh.len() - 40]);
    for (device, queues) in DEVICES {
        drive(&loader, device, queues, FEATURES);
        seed(&format!("driven-{device}"), &loader.capture());
    }
    loader.write(0, STATUS, 0);
    loader.write(1, STATUS, 0x80 | 0xf);
    loader.write(2, QUEUE_SELECT, 7);
    seed("between", &loader.capture());
    seeds
}
