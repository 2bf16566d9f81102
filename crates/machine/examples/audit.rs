//! Boots a machine and audits its checkpoints: after every epoch all of guest memory is compared with a replica that
//! only ever got the pages of the harvests. A page that differs was missed by dirty tracking.
//!
//! Runs where a guest's kernel can run: on hardware, or in a host of the lab.
//!
//! ```text
//! audit --kernel vmlinuz --initrd initrd.img --append "console=ttyS0" [--tap tap0] [--disk disk.img]
//!       [--memory MiB] [--vcpus N] [--wait TEXT] [--seconds S] [--every MS] [--type COMMAND]...
//!       [--handover DIR] [--from DIR]
//! ```
//!
//! With `--handover`, the machine is captured into files at the end; with `--from`, another process goes on from there.
//! Exit status: 0 all pages were seen, 1 some were missed, 2 something failed.

use romulus_machine::{
    Error, Exit, Handle, Machine, Memory, PageSet, Paused, WarmPages,
    config::{Config, Disk, Nic},
    memory::PAGE,
};
use std::{
    collections::{HashMap, VecDeque},
    env,
    error::Error as StdError,
    fs::{self, File},
    io::{self, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

type Result<T> = std::result::Result<T, Box<dyn StdError>>;

/// What the command line asks for.
struct Options {
    config: Config,
    marker: String,
    seconds: u64,
    every: Duration,
    commands: Vec<String>,
    handover: Option<PathBuf>,
    from: Option<PathBuf>,
}

impl Options {
    fn parse() -> Result<Self> {
        let mut options = Self {
            config: Config {
                name: "audit".into(),
                vcpus: 1,
                memory: 512 << 20,
                kernel: PathBuf::new(),
                initrd: None,
                command_line: "console=ttyS0 reboot=t panic=-1 quiet clocksource=kvm-clock".into(),
                kernel_cache: None,
                nics: Vec::new(),
                disks: Vec::new(),
                entropy: true,
            },
            marker: "GUEST UP".into(),
            seconds: 10,
            every: Duration::from_millis(25),
            commands: Vec::new(),
            handover: None,
            from: None,
        };
        let mut arguments = env::args().skip(1);
        while let Some(name) = arguments.next() {
            let value = arguments
                .next()
                .ok_or_else(|| format!("{name} wants a value"))?;
            let config = &mut options.config;
            match name.as_str() {
                "--kernel" => config.kernel = value.into(),
                "--initrd" => config.initrd = Some(value.into()),
                "--append" => config.command_line = value,
                "--cache" => config.kernel_cache = Some(value.into()),
                "--memory" => config.memory = value.parse::<u64>()? << 20,
                "--vcpus" => config.vcpus = value.parse()?,
                "--tap" => config.nics.push(Nic {
                    tap: value,
                    bridge: None,
                    mac: [0x52, 0x54, 0, 0x12, 0x34, 0x56],
                    mtu: 1500,
                    offload: true,
                }),
                "--disk" => config.disks.push(Disk {
                    path: value.into(),
                    read_only: false,
                    serial: "audit".into(),
                }),
                "--wait" => options.marker = value,
                "--seconds" => options.seconds = value.parse()?,
                "--every" => options.every = Duration::from_millis(value.parse()?),
                "--type" => options.commands.push(value),
                "--handover" => options.handover = Some(value.into()),
                "--from" => options.from = Some(value.into()),
                other => return Err(format!("unknown option {other}").into()),
            }
        }
        Ok(options)
    }
}

/// The guest's console: shown on standard output and kept for a while, so that text in it can be waited for.
#[derive(Clone, Default)]
struct Console {
    seen: Arc<(Mutex<Vec<u8>>, Condvar)>,
}

impl Console {
    /// Bytes that are kept to be searched.
    const KEPT: usize = 64 << 10;

    /// Waits until the guest has printed `text`.
    fn wait(&self, text: &str, handle: &Handle, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let (seen, changed) = &*self.seen;
        let mut guard = seen.lock().map_err(|_| "console lost")?;
        while !guard.windows(text.len()).any(|w| w == text.as_bytes()) {
            if let Some(exit) = handle.wait_exit(Duration::ZERO) {
                return Err(format!("the guest stopped: {exit:?}").into());
            }
            if Instant::now() > deadline {
                return Err(format!("the guest did not print {text:?} in {timeout:?}").into());
            }
            guard = changed
                .wait_timeout(guard, Duration::from_millis(100))
                .map_err(|_| "console lost")?
                .0;
        }
        Ok(())
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()?;
        let (seen, changed) = &*self.seen;
        let mut seen = seen.lock().map_err(|_| io::Error::other("console lost"))?;
        let excess = (seen.len() + bytes.len())
            .saturating_sub(Self::KEPT)
            .min(seen.len());
        seen.drain(..excess);
        seen.extend_from_slice(bytes);
        changed.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The other side: memory that only ever gets what the harvests say. Pages of zeroes take no room, so that a machine
/// nearly as large as its host can be audited.
struct Replica {
    pages: HashMap<usize, Box<[u8; PAGE]>>,
}

impl Replica {
    fn of(memory: &Memory) -> Self {
        let mut replica = Self {
            pages: HashMap::new(),
        };
        for page in 0..memory.pages() {
            replica.take(memory, page);
        }
        replica
    }

    fn agrees(&self, memory: &Memory, page: usize) -> bool {
        memory.page_is(page, self.pages.get(&page).map_or(&[0; PAGE], |p| p))
    }

    fn take(&mut self, memory: &Memory, page: usize) -> bool {
        let changed = !self.agrees(memory, page);
        if changed {
            memory.read_page(
                page,
                self.pages
                    .entry(page)
                    .or_insert_with(|| Box::new([0; PAGE])),
            );
        }
        changed
    }

    /// Pages that differ; they are taken, so that each is told once.
    fn audit(&mut self, memory: &Memory) -> Vec<usize> {
        let missed: Vec<usize> = (0..memory.pages())
            .filter(|p| !self.agrees(memory, *p))
            .collect();
        for page in &missed {
            self.take(memory, *page);
        }
        missed
    }
}

/// Types the commands into the guest's shell, a bit at a time as its port takes them.
struct Typist {
    rest: VecDeque<u8>,
}

impl Typist {
    fn go_on(&mut self, handle: &Handle) {
        let taken = handle.console_input(self.rest.make_contiguous());
        self.rest.drain(..taken);
    }
}

#[derive(Default)]
struct Sums {
    epochs: u64,
    pages: u64,
    missed: u64,
    pause: Duration,
    harvest: Duration,
    capture: Duration,
    state: usize,
}

/// How long pages stay writable after their last change, in epochs, so that all ways of a page are gone: a page gets warm,
/// stays, rests, and is noted again.
const PATIENCE: u32 = 4;
/// How many pages stay writable.
const WARM: usize = 4096;

/// Runs the epochs.
fn audit(mut machine: Machine, options: &Options) -> Result<(Paused, Sums)> {
    let handle = machine.handle();
    let mut typist = Typist {
        rest: options
            .commands
            .iter()
            .flat_map(|c| c.bytes().chain([b'\n']))
            .collect(),
    };
    let mut paused = machine.pause()?;
    paused.start_tracking()?;
    let mut replica = Replica::of(paused.memory());
    let mut dirty = PageSet::new(paused.memory());
    let mut warm = WarmPages::new(paused.memory(), PATIENCE, WARM);
    let (mut harvested, mut changed) = (Vec::new(), Vec::new());
    let mut state = Vec::new();
    let mut sums = Sums::default();
    let end = Instant::now() + Duration::from_secs(options.seconds);
    while Instant::now() < end {
        machine = paused.resume()?;
        typist.go_on(&handle);
        if let Some(exit) = handle.wait_exit(options.every) {
            return Err(format!("the guest stopped: {exit:?}").into());
        }
        let start = Instant::now();
        paused = machine.pause()?;
        let parked = Instant::now();
        paused.harvest_but(&mut dirty, warm.pages())?;
        let read = Instant::now();
        state.clear();
        paused.capture(&mut state)?;
        let captured = Instant::now();
        harvested.clear();
        changed.clear();
        for page in dirty.iter() {
            let number = u32::try_from(page)?;
            harvested.push(number);
            if replica.take(paused.memory(), page) {
                changed.push(number);
            }
        }
        warm.judge(&harvested, &changed);
        let missed = replica.audit(paused.memory());
        if !missed.is_empty() {
            let shown: Vec<_> = missed
                .iter()
                .take(8)
                .filter_map(|p| paused.memory().address(*p))
                .collect();
            eprintln!(
                "\n[audit] epoch {}: missed {} pages: {shown:#x?}",
                sums.epochs,
                missed.len()
            );
        }
        sums.epochs += 1;
        sums.pages += dirty.count() as u64;
        sums.missed += missed.len() as u64;
        sums.pause += parked - start;
        sums.harvest += read - parked;
        sums.capture += captured - read;
        sums.state = state.len();
    }
    Ok((paused, sums))
}

fn hand_over(paused: &mut Paused, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)?;
    let mut state = Vec::new();
    paused.capture(&mut state)?;
    fs::write(directory.join("state"), &state)?;
    let mut memory = io::BufWriter::new(File::create(directory.join("memory"))?);
    let mut page = [0; PAGE];
    for number in 0..paused.memory().pages() {
        paused.memory().read_page(number, &mut page);
        memory.write_all(&page)?;
    }
    memory.flush()?;
    Ok(())
}

fn take_over(options: &Options, directory: &Path, console: Console) -> Result<Paused> {
    let state = fs::read(directory.join("state"))?;
    let file = File::open(directory.join("memory"))?;
    Ok(Paused::restore(
        &options.config,
        Box::new(console),
        &state,
        |memory| {
            let mut file = BufReader::with_capacity(1 << 20, file);
            let mut page = [0; PAGE];
            for number in 0..memory.pages() {
                file.read_exact(&mut page).map_err(|source| Error::File {
                    what: "captured memory",
                    path: directory.join("memory"),
                    source,
                })?;
                if page != [0; PAGE] {
                    memory.write_page(number, &page);
                }
            }
            Ok(())
        },
    )?)
}

/// Resident memory of this process in KiB, without what is mapped for the guest.
fn own_memory() -> Result<u64> {
    let mut own = 0;
    let mut guest = false;
    for line in fs::read_to_string("/proc/self/smaps")?.lines() {
        if let Some((range, _)) = line.split_once(' ')
            && let Some((from, to)) = range.split_once('-')
            && let (Ok(from), Ok(to)) = (u64::from_str_radix(from, 16), u64::from_str_radix(to, 16))
        {
            guest = to - from >= 128 << 20;
        } else if let Some(rss) = line.strip_prefix("Rss:")
            && !guest
        {
            own += rss.trim().trim_end_matches(" kB").parse::<u64>()?;
        }
    }
    Ok(own)
}

fn run() -> Result<u64> {
    let start = Instant::now();
    let options = Options::parse()?;
    let console = Console::default();
    let paused = match &options.from {
        Some(directory) => take_over(&options, directory, console.clone())?,
        None => Paused::boot(&options.config, Box::new(console.clone()))?,
    };
    let made = start.elapsed();
    let machine = paused.resume()?;
    let handle = machine.handle();
    if options.from.is_none() {
        console.wait(&options.marker, &handle, Duration::from_mins(2))?;
        eprintln!(
            "\n[audit] made in {made:?}, {:?} after {:?}, {} exits, {} KiB of our own",
            options.marker,
            start.elapsed(),
            handle.statistics().exits,
            own_memory()?
        );
    } else {
        eprintln!("\n[audit] taken over in {made:?}");
    }
    if options.seconds == 0 {
        return Ok(0);
    }
    let exits = handle.statistics().exits;
    let (mut paused, sums) = audit(machine, &options)?;
    let epochs = u32::try_from(sums.epochs.max(1))?;
    eprintln!(
        "\n[audit] {} epochs, {} pages dirtied, {} missed; a mean of {:?} to pause, {:?} to harvest, {:?} to capture \
         {} bytes; {} exits",
        sums.epochs,
        sums.pages,
        sums.missed,
        sums.pause / epochs,
        sums.harvest / epochs,
        sums.capture / epochs,
        sums.state,
        handle.statistics().exits - exits
    );
    if let Some(directory) = &options.handover {
        hand_over(&mut paused, directory)?;
        eprintln!("[audit] handed over in {}", directory.display());
    } else {
        // One more thing that a machine must do: stop in order.
        let machine = paused.resume()?;
        handle.press_power_button();
        let exit: Option<Exit> = handle.wait_exit(Duration::from_secs(2));
        eprintln!("[audit] after the power button: {exit:?}");
        drop(machine);
    }
    Ok(sums.missed)
}

fn main() -> ExitCode {
    match run() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("\n[audit] {error}");
            ExitCode::from(2)
        }
    }
}
