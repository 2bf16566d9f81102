//! The disk, driven as a guest drives it, on a file.

use super::super::{
    hostile::seal,
    testing::{DATA, Driver, Guest, INDIRECT, WRITE, clean, config, dirty, until},
};
use super::*;
use crate::{
    Error,
    config::Disk as Configured,
    state::{Reader, Writer},
};
use std::{fs, os::unix::fs::FileExt, path::Path};
use tempfile::{NamedTempFile, TempDir};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

const SECTORS: u64 = 2048;
const PLAIN: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_BLK_F_FLUSH;
const STATUS: u64 = DATA + 0x8_0000;

fn image() -> NamedTempFile {
    let image = NamedTempFile::new().unwrap();
    image.as_file().set_len(SECTORS * SECTOR).unwrap();
    image
}

fn guest(path: &Path, read_only: bool) -> Guest {
    let mut config = config();
    config.disks = vec![Configured {
        path: path.to_owned(),
        read_only,
        serial: "serial-1".into(),
    }];
    Guest::new(&config, Vec::new())
}

/// A running disk.
struct Rig {
    guest: Guest,
    queue: Driver,
}

fn rig(path: &Path, read_only: bool, features: u64) -> Rig {
    let guest = guest(path, read_only);
    assert!(guest.negotiate(0, features));
    let queue = guest.queue(0, 0, 16, 0x1000, false);
    guest.ready(0);
    guest.devices.run().unwrap();
    Rig { guest, queue }
}

impl Rig {
    /// Offers a request whose data is (address, length, flags), from descriptor `first` on.
    fn offer(&mut self, first: u16, kind: u32, sector: u64, data: &[(u64, u32, u16)]) {
        let at = DATA + 0x4_0000 + u64::from(first) * 16;
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.queue.put(at, &header);
        self.queue.put(STATUS + u64::from(first), &[0xaa]);
        let mut buffers = vec![(at, 16, 0)];
        buffers.extend_from_slice(data);
        buffers.push((STATUS + u64::from(first), 1, WRITE));
        self.queue.chain(first, &buffers);
        self.queue.offer(first);
    }

    /// Does one request: its status and its length.
    #[track_caller]
    fn request(&mut self, kind: u32, sector: u64, data: &[(u64, u32, u16)]) -> (u32, u32) {
        self.offer(0, kind, sector, data);
        self.guest.kick(0, 0);
        let (head, length) = self.queue.wait();
        assert_eq!(head, 0);
        (self.queue.bytes(STATUS, 1)[0].into(), length)
    }
}

#[test]
fn what_is_written_is_in_the_file_and_is_read_back() {
    let image = image();
    let mut rig = rig(image.path(), false, PLAIN);
    let data: Vec<u8> = (0..4096u32).map(|at| (at * 7 + at / 256) as u8).collect();
    rig.queue.put(DATA, &data);
    let pieces = [(DATA, 1000, 0), (DATA + 1000, 3096, 0)];
    assert_eq!(
        rig.request(VIRTIO_BLK_T_OUT, 9, &pieces),
        (VIRTIO_BLK_S_OK, 1)
    );
    let mut there = vec![0; 4096];
    image
        .as_file()
        .read_exact_at(&mut there, 9 * SECTOR)
        .unwrap();
    assert_eq!(there, data);

    assert_eq!(
        rig.request(VIRTIO_BLK_T_FLUSH, 0, &[]),
        (VIRTIO_BLK_S_OK, 1)
    );
    let (one, two) = (DATA + 0x1_0000, DATA + 0x2_0f00);
    clean(&rig.guest.ram);
    let pieces = [(one, 512, WRITE), (two, 4096 - 512, WRITE)];
    assert_eq!(
        rig.request(VIRTIO_BLK_T_IN, 9, &pieces),
        (VIRTIO_BLK_S_OK, 4097)
    );
    let mut got = rig.queue.bytes(one, 512);
    got.extend(rig.queue.bytes(two, 4096 - 512));
    assert_eq!(got, data);
    for page in [one, two, two + 0x1000, STATUS] {
        assert!(dirty(&rig.guest.ram, page), "page of {page:#x} is marked");
    }
    assert_eq!(
        rig.guest.devices.statistics().disks,
        [[1, 4096, 1, 4096, 1, 0]]
    );
}

#[test]
fn a_request_in_an_indirect_table_works() {
    let image = image();
    let mut rig = rig(image.path(), false, PLAIN);
    let table = DATA + 0x5_0000;
    rig.queue.put(DATA, &[0; 16]);
    rig.queue
        .describe_at(table, DATA, 16, super::super::testing::NEXT, 1);
    rig.queue.describe_at(
        table + 16,
        DATA + 0x1000,
        512,
        WRITE | super::super::testing::NEXT,
        2,
    );
    rig.queue.describe_at(table + 32, STATUS, 1, WRITE, 0);
    rig.queue.describe(3, table, 48, INDIRECT, 0);
    rig.queue.offer(3);
    rig.guest.kick(0, 0);
    assert_eq!(rig.queue.wait(), (3, 513));
    assert_eq!(rig.queue.bytes(STATUS, 1), [0]);
}

#[test]
fn the_serial_number_is_told() {
    let image = image();
    let mut rig = rig(image.path(), false, PLAIN);
    assert_eq!(
        rig.request(VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 20, WRITE)]),
        (VIRTIO_BLK_S_OK, 21)
    );
    assert_eq!(rig.queue.bytes(DATA, 9), b"serial-1\0");
}

#[test]
fn requests_beyond_the_end_and_nonsense_get_an_error() {
    let image = image();
    let mut rig = rig(image.path(), false, PLAIN);
    for (kind, sector, length, flags) in [
        (VIRTIO_BLK_T_IN, SECTORS, 512, WRITE),
        (VIRTIO_BLK_T_IN, SECTORS - 1, 1024, WRITE),
        (VIRTIO_BLK_T_IN, u64::MAX, 512, WRITE),
        (VIRTIO_BLK_T_IN, u64::MAX / SECTOR, 512, WRITE),
        (VIRTIO_BLK_T_IN, 0, 100, WRITE),
        (VIRTIO_BLK_T_IN, 0, 512, 0),
        (VIRTIO_BLK_T_OUT, SECTORS, 512, 0),
        (VIRTIO_BLK_T_OUT, 0, 512, WRITE),
        (VIRTIO_BLK_T_OUT, 0, 513, 0),
        (VIRTIO_BLK_T_GET_ID, 0, 19, WRITE),
    ] {
        let answer = rig.request(kind, sector, &[(DATA, length, flags)]);
        assert_eq!(
            answer,
            (VIRTIO_BLK_S_IOERR, 1),
            "{kind} {sector} {length} {flags}"
        );
    }
    assert_eq!(
        rig.request(77, 0, &[(DATA, 512, WRITE)]),
        (VIRTIO_BLK_S_UNSUPP, 1)
    );
    assert_eq!(fs::metadata(image.path()).unwrap().len(), SECTORS * SECTOR);
    // No room for a status, no header: handed back with nothing written.
    rig.queue.chain(0, &[(DATA, 16, 0)]);
    rig.queue.offer(0);
    rig.queue.chain(2, &[(DATA, 15, 0), (STATUS, 1, WRITE)]);
    rig.queue.offer(2);
    rig.guest.kick(0, 0);
    assert_eq!(rig.queue.wait(), (0, 0));
    assert_eq!(rig.queue.wait(), (2, 1));
    assert_eq!(
        rig.request(VIRTIO_BLK_T_IN, 0, &[(DATA, 512, WRITE)]).0,
        VIRTIO_BLK_S_OK
    );
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let image = image();
    let mut rig = rig(image.path(), true, PLAIN | 1 << VIRTIO_BLK_F_RO);
    assert_eq!(
        rig.request(VIRTIO_BLK_T_OUT, 0, &[(DATA, 512, 0)]),
        (VIRTIO_BLK_S_IOERR, 1)
    );
    assert_eq!(rig.guest.offered(0) & 1 << VIRTIO_BLK_F_DISCARD, 0);
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zeros() {
    let image = image();
    image.as_file().write_all_at(&vec![7; 64 << 10], 0).unwrap();
    let probe = guest(image.path(), false).offered(0);
    let both = 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
    assert_eq!(
        probe & both,
        both,
        "the file system of the tests punches holes"
    );
    let mut rig = rig(image.path(), false, PLAIN | both);
    let range = |sector: u64, count: u32, flags: u32| {
        let mut range = sector.to_le_bytes().to_vec();
        range.extend_from_slice(&count.to_le_bytes());
        range.extend_from_slice(&flags.to_le_bytes());
        range
    };
    let cases = [
        (VIRTIO_BLK_T_DISCARD, range(8, 8, 0), VIRTIO_BLK_S_OK),
        (VIRTIO_BLK_T_WRITE_ZEROES, range(32, 3, 0), VIRTIO_BLK_S_OK),
        (VIRTIO_BLK_T_WRITE_ZEROES, range(40, 8, 1), VIRTIO_BLK_S_OK),
        (VIRTIO_BLK_T_DISCARD, range(8, 8, 1), VIRTIO_BLK_S_UNSUPP),
        (
            VIRTIO_BLK_T_DISCARD,
            range(SECTORS - 1, 2, 0),
            VIRTIO_BLK_S_IOERR,
        ),
        (
            VIRTIO_BLK_T_DISCARD,
            range(u64::MAX, 2, 0),
            VIRTIO_BLK_S_IOERR,
        ),
        (
            VIRTIO_BLK_T_DISCARD,
            range(0, u32::MAX, 0),
            VIRTIO_BLK_S_IOERR,
        ),
        (VIRTIO_BLK_T_DISCARD, vec![0; 15], VIRTIO_BLK_S_IOERR),
    ];
    for (kind, bytes, status) in cases {
        rig.queue.put(DATA, &bytes);
        let answer = rig.request(kind, 0, &[(DATA, bytes.len() as u32, 0)]);
        assert_eq!(answer, (status, 1), "{kind} {bytes:?}");
    }
    let file = fs::read(image.path()).unwrap();
    assert_eq!(file.len() as u64, SECTORS * SECTOR);
    for (sector, bytes) in file.chunks(512).take(128).enumerate() {
        let zero =
            (8..16).contains(&sector) || (32..35).contains(&sector) || (40..48).contains(&sector);
        assert!(
            bytes.iter().all(|byte| *byte == if zero { 0 } else { 7 }),
            "sector {sector}"
        );
    }
}

/// The image of a machine that is rehearsed: its guest is told that all went well, and finds what was there before.
#[test]
fn a_rehearsal_reads_and_writes_nothing() {
    let image = image();
    let before = fs::read(image.path()).unwrap();
    let _locked = Disk::open(image.path(), false).unwrap();
    let disk = Disk::rehearse(&crate::config::Disk {
        path: image.path().into(),
        read_only: false,
        serial: String::new(),
    })
    .unwrap();
    assert_eq!(disk.length, before.len() as u64);
    let counters = Arc::<super::super::counters::BlockCounters>::default();
    let worker = Worker::new(disk.file, "rehearsed".into(), counters, None).pretending();
    let range = worker::Range {
        at: 0,
        length: SECTOR,
        unmap: true,
    };
    let durable = true;
    for task in [
        Task::Write { at: 0, durable },
        Task::Zero(vec![range]),
        Task::Discard(vec![range]),
        Task::Flush,
        Task::Read { at: 0 },
    ] {
        let data = vec![0xaa; 512];
        worker.todo(Job {
            era: 0,
            task,
            data,
            status: 0,
        });
    }
    let mut last = Vec::new();
    while worker.work() {
        let job = worker.done().unwrap();
        assert_eq!(job.status, VIRTIO_BLK_S_OK, "{:?}", job.task);
        last = job.data;
    }
    assert_eq!(last, before[..512]);
    assert_eq!(fs::read(image.path()).unwrap(), before);
}

#[test]
fn a_full_host_gives_an_error_not_a_dead_process() {
    let disk = Disk {
        file: fs::File::options()
            .write(true)
            .read(true)
            .open("/dev/full")
            .unwrap(),
        length: SECTORS * SECTOR,
        read_only: false,
        discard: false,
        zero: false,
        physical_exponent: 3,
        pretends: false,
    };
    let counters = Arc::<super::super::counters::BlockCounters>::default();
    let worker = Worker::new(disk.file, "full".into(), Arc::clone(&counters), None);
    for _ in 0..2 {
        worker.todo(Job {
            era: 0,
            task: Task::Write {
                at: 0,
                durable: false,
            },
            data: vec![1; 512],
            status: 0,
        });
        assert!(worker.work());
        assert_eq!(worker.done().unwrap().status, VIRTIO_BLK_S_IOERR);
    }
    assert_eq!(counters.all(), [0, 0, 0, 0, 0, 2]);
}

/// What a log was told.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    Wrote(usize, u64, Vec<u8>),
    Zeroed(usize, u64, u64),
    Flushed(usize),
}

#[derive(Default)]
struct Book(std::sync::Mutex<Vec<Told>>);

impl Book {
    fn add(&self, told: Told) {
        self.0.lock().unwrap().push(told);
    }

    fn read(&self) -> Vec<Told> {
        self.0.lock().unwrap().clone()
    }
}

impl crate::ports::DiskLog for Book {
    fn wrote(&self, disk: usize, at: u64, data: &[u8]) {
        self.add(Told::Wrote(disk, at, data.to_vec()));
    }

    fn zeroed(&self, disk: usize, at: u64, length: u64) {
        self.add(Told::Zeroed(disk, at, length));
    }

    fn flushed(&self, disk: usize) {
        self.add(Told::Flushed(disk));
    }
}

fn logged(path: &Path, features: u64) -> (Rig, Arc<Book>) {
    let book = Arc::<Book>::default();
    let ports = crate::ports::Ports {
        disks: Some(Arc::clone(&book) as _),
        ..Default::default()
    };
    let mut config = config();
    config.disks = vec![Configured {
        path: path.to_owned(),
        read_only: false,
        serial: "serial-1".into(),
    }];
    let memory = super::super::testing::memory();
    let guest = Guest::with_ports(&config, Vec::new(), memory, &ports);
    assert!(guest.negotiate(0, features));
    let queue = guest.queue(0, 0, 16, 0x1000, false);
    guest.ready(0);
    (Rig { guest, queue }, book)
}

#[test]
fn a_log_learns_of_writes_in_order_and_of_nothing_else() {
    let image = image();
    let features = PLAIN | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
    let (mut rig, book) = logged(image.path(), features);
    rig.guest.devices.run().unwrap();
    rig.queue.put(DATA, &[5; 1024]);
    rig.request(VIRTIO_BLK_T_OUT, 3, &[(DATA, 1024, 0)]);
    rig.request(VIRTIO_BLK_T_IN, 3, &[(DATA + 0x1000, 512, WRITE)]);
    // Refused: not a write.
    rig.request(VIRTIO_BLK_T_OUT, SECTORS, &[(DATA, 512, 0)]);
    rig.request(VIRTIO_BLK_T_FLUSH, 0, &[]);
    let mut ranges = Vec::new();
    for (sector, count) in [(8u64, 8u32), (32, 1)] {
        ranges.extend_from_slice(&sector.to_le_bytes());
        ranges.extend_from_slice(&count.to_le_bytes());
        ranges.extend_from_slice(&[0; 4]);
    }
    rig.queue.put(DATA, &ranges);
    rig.request(VIRTIO_BLK_T_DISCARD, 0, &[(DATA, 32, 0)]);
    rig.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[(DATA, 16, 0)]);
    let zeroed = |sector, count| Told::Zeroed(0, sector * SECTOR, count * SECTOR);
    assert_eq!(
        book.read(),
        [
            Told::Wrote(0, 3 * SECTOR, vec![5; 1024]),
            Told::Flushed(0),
            zeroed(8, 8),
            zeroed(32, 1),
            zeroed(8, 8)
        ]
    );
}

#[test]
fn a_write_that_must_be_durable_is_told_as_flushed() {
    let image = image();
    let (mut rig, book) = logged(image.path(), 1 << VIRTIO_F_VERSION_1);
    rig.guest.devices.run().unwrap();
    rig.queue.put(DATA, &[5; 512]);
    rig.request(VIRTIO_BLK_T_OUT, 0, &[(DATA, 512, 0)]);
    assert_eq!(
        book.read(),
        [Told::Wrote(0, 0, vec![5; 512]), Told::Flushed(0)]
    );
}

#[test]
fn a_log_learns_of_a_write_before_its_answer_can_be_seen() {
    let image = image();
    let (mut rig, book) = logged(image.path(), PLAIN);
    rig.queue.put(DATA, &[5; 512]);
    rig.offer(0, VIRTIO_BLK_T_OUT, 0, &[(DATA, 512, 0)]);
    // No thread runs, the test takes turns itself.
    let function = Arc::clone(&rig.guest.devices.disks[0].0);
    let worker = Arc::clone(&rig.guest.devices.disks[0].1);
    rig.guest.devices.gate.set(super::super::gate::Phase::Open);
    function.process(0);
    assert_eq!(book.read(), [], "taken, but not written");
    assert!(worker.work());
    let told = book.read();
    assert_eq!(rig.queue.used_index(), 0, "the answer comes later");
    assert_eq!(told, [Told::Wrote(0, 0, vec![5; 512])]);
    function.process(0);
    assert_eq!(rig.queue.wait(), (0, 1));
    assert_eq!(book.read(), told, "told once");
}

#[test]
fn requests_in_flight_at_a_pause_are_done_again_after_a_restore() {
    let image = image();
    let guest = guest(image.path(), false);
    assert!(guest.negotiate(0, PLAIN));
    let queue = guest.queue(0, 0, 16, 0x1000, false);
    guest.ready(0);
    let mut rig = Rig { guest, queue };
    image.as_file().write_all_at(&[1; 512], 0).unwrap();
    rig.queue.put(DATA, &[2; 512]);
    rig.offer(0, VIRTIO_BLK_T_IN, 0, &[(DATA + 0x1000, 512, WRITE)]);
    rig.offer(3, VIRTIO_BLK_T_OUT, 5, &[(DATA, 512, 0)]);
    // Taken, and one of them done, but not answered: no thread runs, the test takes turns itself.
    let function = Arc::clone(&rig.guest.devices.disks[0].0);
    let worker = Arc::clone(&rig.guest.devices.disks[0].1);
    rig.guest.devices.gate.set(super::super::gate::Phase::Open);
    function.process(0);
    rig.guest.devices.quiesce();
    assert!(worker.work());
    clean(&rig.guest.ram);
    function.process(0);
    assert_eq!(
        rig.queue.used_index(),
        0,
        "nothing is answered while quiesced"
    );
    assert!(
        !dirty(&rig.guest.ram, DATA + 0x1000),
        "nothing is copied while quiesced"
    );
    let mut state = Vec::new();
    rig.guest.devices.save(&mut Writer::new(&mut state));
    let Rig { guest, mut queue } = rig;
    let ram = guest.ram.clone();
    drop((guest, function, worker));

    let mut config = config();
    config.disks = vec![Configured {
        path: image.path().to_owned(),
        read_only: false,
        serial: "serial-1".into(),
    }];
    let other = Guest::with_memory(&config, Vec::new(), ram);
    other.devices.restore(&mut Reader::new(&state)).unwrap();
    other.devices.run().unwrap();
    assert_eq!(queue.wait(), (0, 513));
    assert_eq!(queue.wait(), (3, 1));
    assert_eq!(queue.bytes(DATA + 0x1000, 512), [1; 512]);
    let mut there = [0; 512];
    image
        .as_file()
        .read_exact_at(&mut there, 5 * SECTOR)
        .unwrap();
    assert_eq!(there, [2; 512]);
}

#[test]
fn a_reset_forgets_what_is_in_flight() {
    let image = image();
    let mut rig = rig(image.path(), false, PLAIN);
    rig.guest.devices.quiesce();
    rig.offer(0, VIRTIO_BLK_T_IN, 0, &[(DATA, 512, WRITE)]);
    let function = Arc::clone(&rig.guest.devices.disks[0].0);
    let worker = Arc::clone(&rig.guest.devices.disks[0].1);
    // As if it had been taken and were being done while the driver resets the device.
    worker.todo(Job {
        era: 0,
        task: Task::Read { at: 0 },
        data: vec![0; 512],
        status: 0,
    });
    rig.guest.write(0, 0x70, 0);
    assert!(!worker.work(), "what had not begun is dropped");
    rig.guest.devices.run().unwrap();
    function.process(0);
    assert_eq!(rig.queue.used_index(), 0);
    assert_eq!(rig.guest.read(0, 0x70), 0);
}

#[test]
fn images_that_are_none_are_refused_with_the_reason() {
    let directory = TempDir::new().unwrap();
    let refused = |name: &str, content: Option<&[u8]>| {
        let path = directory.path().join(name);
        if let Some(content) = content {
            fs::write(&path, content).unwrap();
        }
        Disk::open(&path, false).unwrap_err().to_string()
    };
    assert!(refused("missing", None).contains("No such file"));
    assert!(refused(".", None).contains("directory"));
    assert!(refused("empty", Some(b"")).contains("empty"));
    assert!(refused("short", Some(&[0; 1000])).contains("1000 bytes is no multiple of 512"));
    assert!(refused("image", Some(b"QFI\xfb")).contains("qcow2"));
}

#[test]
fn two_machines_cannot_have_one_image_but_readers_share() {
    let image = image();
    let first = Disk::open(image.path(), false).unwrap();
    let Err(Error::Invalid(why)) = Disk::open(image.path(), false) else {
        panic!("the image was given twice");
    };
    assert!(why.contains("another machine"), "{why}");
    assert!(Disk::open(image.path(), true).is_err());
    drop(first);
    let _one = Disk::open(image.path(), true).unwrap();
    let _two = Disk::open(image.path(), true).unwrap();
    assert!(Disk::open(image.path(), false).is_err());
}

#[test]
fn state_of_another_disk_is_refused_with_its_difference() {
    let image = image();
    let mut state = Vec::new();
    let saved = guest(image.path(), false);
    saved.devices.save(&mut Writer::new(&mut state));
    drop(saved);
    image.as_file().set_len(SECTORS * SECTOR * 2).unwrap();
    let refused = guest(image.path(), false)
        .devices
        .restore(&mut Reader::new(&state))
        .unwrap_err();
    assert!(refused.to_string().contains("2048 sectors"), "{refused}");
    until("the lock is free again", || {
        Disk::open(image.path(), false).is_ok()
    });
}

#[test]
fn a_disk_that_was_neither_writable_nor_read_only_is_refused() {
    let image = image();
    let mut state = Vec::new();
    let saved = guest(image.path(), false);
    saved.devices.save(&mut Writer::new(&mut state));
    let disk = state
        .windows(8)
        .position(|bytes| bytes == SECTORS.to_le_bytes())
        .unwrap();
    assert_eq!(state[disk + 8], 0, "it is writable");
    state[disk + 8] = 2;
    seal(&mut state);
    let refused = saved.devices.restore(&mut Reader::new(&state)).unwrap_err();
    assert!(
        refused.to_string().contains("was neither writable nor"),
        "{refused}"
    );
}
