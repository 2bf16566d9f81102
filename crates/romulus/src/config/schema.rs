//! The keys of a machine file. `docs/machine.md` explains each to operators: change both together.

use super::{
    After, ConsoleLog, LogFile, MachineFile,
    problem::Problem,
    reader::{Problems, Section, Value},
    values::{self, derive_mac, format_mac},
};
use romulus_machine::config::{Config, Disk, MTU_MAX, Nic};
use std::{
    collections::HashMap,
    fmt::Display,
    hash::Hash,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};
use toml::{Spanned, de::DeTable};

/// Wait for an orderly stop where the file gives none. A guest with a telephony server needs seconds, not minutes.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// Size at which a console log rotates where the file gives none.
const LOG_MAX_SIZE: u64 = 10 << 20;
/// Older console logs kept where the file gives none.
const LOG_KEEP: u32 = 3;
/// Longest kernel command line that x86 Linux takes (`COMMAND_LINE_SIZE` less its end).
const COMMAND_LINE_MAX: usize = 2047;
/// MTU of Ethernet.
const MTU_DEFAULT: u16 = 1500;
/// Smallest MTU of IPv4 (RFC 791).
const MTU_MIN: u16 = 68;
/// What a protected machine's file may lack; `romulus create` then makes one up.
pub(super) const NO_UUID: &str = "a protected machine needs a `uuid`, above the first section; `romulus create` makes one up for this file";
/// What the guest needs to talk to the serial console.
const COMMAND_LINE: &str = "console=ttyS0";

/// Parses a machine file; `base` is what its relative paths are relative to.
pub(super) fn parse(text: &str, base: &Path) -> Result<MachineFile, Vec<Problem>> {
    let problems = Problems::default();
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let message = format!("not valid TOML: {}", error.message());
        match error.span() {
            Some(span) => problems.at::<()>(span, message),
            None => problems.missing(message),
        };
    }
    if !errors.is_empty() {
        // What a half-parsed file lacks would only mislead.
        return Err(problems.into_inner());
    }
    let file = Reader {
        base,
        problems: &problems,
    }
    .file(table.into_inner());
    match (file, problems.into_inner()) {
        (Some(file), problems) if problems.is_empty() => Ok(file),
        (_, problems) => Err(problems),
    }
}

/// What every part of the file is read with.
pub(super) struct Reader<'a> {
    /// What relative paths are relative to.
    pub(super) base: &'a Path,
    /// Where problems are noted.
    pub(super) problems: &'a Problems,
}

impl Reader<'_> {
    /// Reads everything before it gives up on anything, so that all problems are found.
    fn file(&self, table: DeTable<'_>) -> Option<MachineFile> {
        let mut top = Section::new("", None, table, self.problems);
        let name = top
            .require("name", "\"registrar\"")
            .and_then(|v| top.parse("name", v, values::check_name));
        let uuid = or(top.take("uuid"), None, |v| {
            top.parse("uuid", v, values::parse_uuid)
                .map(|uuid| Some(uuid.into_inner()))
        });
        let vcpus = or(top.take("vcpus"), 1, |v| {
            top.integer("vcpus", v, values::VCPUS.0, values::VCPUS.1)
        });
        let memory = top
            .require("memory", "\"512 MiB\"")
            .and_then(|v| top.parse("memory", v, values::parse_memory));
        let entropy = or(top.take("entropy"), true, |v| top.boolean("entropy", v));
        let on_reboot = or(top.take("on_reboot"), After::Restart, |v| {
            after(&top, "on_reboot", v)
        });
        let on_panic = or(top.take("on_panic"), After::Exit, |v| {
            after(&top, "on_panic", v)
        });
        let stop_timeout = or(top.take("stop_timeout"), STOP_TIMEOUT, |v| {
            top.parse("stop_timeout", v, values::parse_duration)
                .map(Spanned::into_inner)
        });
        let boot = self.boot(top.section("boot"));
        let console = self.console(top.section("console"));
        let nics = self.nics(
            top.sections("nic"),
            name.as_ref().map_or("", |name| name.get_ref()),
        );
        let protection = top.optional_section("protection");
        let disks = self.disks(top.sections("disk"));
        let protection = match protection {
            None => Some(None),
            Some(section) => {
                if uuid == Some(None) {
                    self.problems.at::<()>(section.span(), NO_UUID);
                }
                let name = name.as_ref().map_or("", |name| name.get_ref());
                let memory = memory.as_ref().map_or(u64::MAX, |memory| *memory.get_ref());
                self.protection(section, name, memory).map(Some)
            }
        };
        top.finish();

        let boot = boot?;
        let machine = Config {
            name: name?.into_inner(),
            vcpus: u8::try_from(vcpus?).ok()?,
            memory: memory?.into_inner(),
            kernel: boot.kernel,
            initrd: boot.initrd,
            command_line: boot.command_line,
            kernel_cache: boot.kernel_cache,
            nics: nics?,
            disks: disks?,
            entropy: entropy?,
        };
        Some(MachineFile {
            machine,
            console: console?,
            on_reboot: on_reboot?,
            on_panic: on_panic?,
            stop_timeout: stop_timeout?,
            uuid: uuid?,
            protection: protection?,
        })
    }

    fn boot(&self, mut boot: Section<'_, '_>) -> Option<Boot> {
        let kernel = boot
            .require("kernel", "\"vmlinuz\"")
            .and_then(|v| self.path(&boot, "kernel", v));
        let initrd = or(boot.take("initrd"), None, |v| {
            self.path(&boot, "initrd", v).map(Some)
        });
        let kernel_cache = or(boot.take("kernel_cache"), None, |v| {
            self.path(&boot, "kernel_cache", v).map(Some)
        });
        let command_line = or(boot.take("command_line"), COMMAND_LINE.to_owned(), |v| {
            boot.parse("command_line", v, check_command_line)
                .map(Spanned::into_inner)
        });
        boot.finish();
        Some(Boot {
            kernel: kernel?.into_inner(),
            initrd: initrd?.map(Spanned::into_inner),
            kernel_cache: kernel_cache?.map(Spanned::into_inner),
            command_line: command_line?,
        })
    }

    fn console(&self, mut console: Section<'_, '_>) -> Option<ConsoleLog> {
        let log = or(console.take("log"), None, |v| {
            let text = console.string("log", v)?;
            match text.get_ref().as_str() {
                "stdio" => Some(None),
                _ => self.checked_path("log", &text).map(Some),
            }
        });
        let max_size = or(console.take("max_size"), None, |v| {
            console
                .parse("max_size", v, values::parse_log_size)
                .map(Some)
        });
        let keep = or(console.take("keep"), u64::from(LOG_KEEP), |v| {
            console.integer("keep", v, 0, 99)
        });
        console.finish();
        let (log, max_size, keep) = (log?, max_size?, u32::try_from(keep?).ok()?);
        match (log, max_size) {
            (None, None) => Some(ConsoleLog::Stdio),
            (None, Some(size)) => self.problems.at(
                size.span(),
                "`max_size` needs a log file; add `log = \"FILE\"` to [console]",
            ),
            (Some(path), size) => {
                let max_size = size.map_or(LOG_MAX_SIZE, Spanned::into_inner);
                Some(ConsoleLog::File(LogFile {
                    path: path.into_inner(),
                    max_size,
                    keep,
                }))
            }
        }
    }

    fn nics(&self, sections: Vec<Section<'_, '_>>, name: &str) -> Option<Vec<Nic>> {
        let mut taps = Seen::new("tap");
        let mut macs = Seen::new("mac");
        let mut nics = Vec::new();
        let count = sections.len();
        for (index, mut nic) in sections.into_iter().enumerate() {
            let tap = nic
                .require("tap", "\"tap0\"")
                .and_then(|v| nic.parse("tap", v, values::check_interface));
            let bridge = or(nic.take("bridge"), None, |v| {
                nic.parse("bridge", v, values::check_interface).map(Some)
            });
            let mac = or(nic.take("mac"), None, |v| {
                nic.parse("mac", v, values::parse_mac).map(Some)
            });
            let mtu = or(nic.take("mtu"), u64::from(MTU_DEFAULT), |v| {
                nic.integer("mtu", v, u64::from(MTU_MIN), u64::from(MTU_MAX))
            });
            let offload = or(nic.take("offload"), true, |v| nic.boolean("offload", v));
            if let Some(tap) = &tap {
                taps.check(
                    self.problems,
                    tap.get_ref().clone(),
                    tap.get_ref(),
                    tap.span(),
                );
            }
            let mac = mac.map(|mac| {
                mac.unwrap_or_else(|| Spanned::new(nic.span(), derive_mac(name, index)))
            });
            if let Some(mac) = &mac {
                macs.check(
                    self.problems,
                    *mac.get_ref(),
                    format_mac(*mac.get_ref()),
                    mac.span(),
                );
            }
            nic.finish();
            let read = || {
                Some(Nic {
                    tap: tap?.into_inner(),
                    bridge: bridge?.map(Spanned::into_inner),
                    mac: mac?.into_inner(),
                    mtu: u16::try_from(mtu?).ok()?,
                    offload: offload?,
                })
            };
            nics.extend(read());
        }
        (nics.len() == count).then_some(nics)
    }

    fn disks(&self, sections: Vec<Section<'_, '_>>) -> Option<Vec<Disk>> {
        let mut paths = Seen::new("path");
        let mut disks = Vec::new();
        let count = sections.len();
        for (index, mut disk) in sections.into_iter().enumerate() {
            let path = disk
                .require("path", "\"disk.img\"")
                .and_then(|v| self.path(&disk, "path", v));
            let read_only = or(disk.take("read_only"), false, |v| {
                disk.boolean("read_only", v)
            });
            let serial = or(disk.take("serial"), format!("disk{index}"), |v| {
                disk.parse("serial", v, values::check_serial)
                    .map(Spanned::into_inner)
            });
            if let Some(path) = &path {
                paths.check(
                    self.problems,
                    path.get_ref().clone(),
                    path.get_ref().display(),
                    path.span(),
                );
            }
            disk.finish();
            let read = || {
                Some(Disk {
                    path: path?.into_inner(),
                    read_only: read_only?,
                    serial: serial?,
                })
            };
            disks.extend(read());
        }
        (disks.len() == count).then_some(disks)
    }

    /// A path, relative to the file's directory.
    pub(super) fn path<'i>(
        &self,
        section: &Section<'i, '_>,
        key: &str,
        value: Value<'i>,
    ) -> Option<Spanned<PathBuf>> {
        self.checked_path(key, &section.string(key, value)?)
    }

    fn checked_path(&self, key: &str, text: &Spanned<String>) -> Option<Spanned<PathBuf>> {
        let span = text.span();
        match text.get_ref().as_str() {
            "" => self
                .problems
                .at(span, format!("`{key}` is empty; give the path of a file")),
            text if text.contains('\0') => self
                .problems
                .at(span, format!("`{key}`: a path holds no zero byte")),
            text => Some(Spanned::new(span, self.base.join(text))),
        }
    }
}

/// The keys of `[boot]`.
struct Boot {
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    kernel_cache: Option<PathBuf>,
    command_line: String,
}

/// Values that may occur only once in a file, with where each was first.
struct Seen<T> {
    key: &'static str,
    first: HashMap<T, Range<usize>>,
}

impl<T: Hash + Eq> Seen<T> {
    fn new(key: &'static str) -> Self {
        Self {
            key,
            first: HashMap::new(),
        }
    }

    fn check(&mut self, problems: &Problems, value: T, text: impl Display, span: Range<usize>) {
        if self.first.insert(value, span.clone()).is_some() {
            let key = self.key;
            problems.at::<()>(
                span,
                format!("`{key}` {text} is given twice; each must be different"),
            );
        }
    }
}

/// What the file says, else a default; `None` where the file says something wrong.
pub(super) fn or<'i, T>(
    value: Option<Value<'i>>,
    default: T,
    read: impl FnOnce(Value<'i>) -> Option<T>,
) -> Option<T> {
    value.map_or(Some(default), read)
}

fn after<'i>(section: &Section<'i, '_>, key: &str, value: Value<'i>) -> Option<After> {
    let read = |text: &str| match text {
        "restart" => Ok(After::Restart),
        "exit" => Ok(After::Exit),
        other => Err(format!("{other:?} is not allowed; \"restart\" or \"exit\"")),
    };
    section.parse(key, value, read).map(Spanned::into_inner)
}

fn check_command_line(text: &str) -> Result<String, String> {
    if text.len() > COMMAND_LINE_MAX {
        return Err(format!(
            "{} bytes are too many; the kernel takes {COMMAND_LINE_MAX}",
            text.len()
        ));
    }
    match text.chars().find(|c| c.is_control() && !c.is_whitespace()) {
        Some(c) => Err(format!("the kernel takes no control character {c:?}")),
        // A long line may be written over several in the file.
        None => Ok(text.trim().replace(char::is_whitespace, " ")),
    }
}
