//! A machine that outlives the process that runs it: two `romulus run`, an arbiter, and a guest of a few instructions.

use super::etcd::Node;
use super::site::{Running, Site, UUID, any, code, stderr};
use std::{
    fs::{self, File},
    io::Write as _,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::{Duration, Instant},
};

/// No step takes this long, on a busy computer either.
const LONG: Duration = Duration::from_mins(1);

/// A kernel, as an ELF file: again and again it prints the byte that was typed last (`.` at first), and does something
/// else for a while. `o` typed switches the machine off.
fn kernel() -> Vec<u8> {
    const BASE: u64 = 0x10_0000;
    const OFFSET: u64 = 0x1000;
    let mut code: Vec<u8> = vec![
        0x48, 0xc7, 0xc3, 0x00, 0x00, 0x20, 0x00, // mov rbx, 0x200000
        0xc6, 0x03, b'.', // mov byte [rbx], '.'
    ];
    let again = code.len();
    code.extend([
        0x8a, 0x03, // mov al, [rbx]
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xee, // out dx, al
        0x48, 0xc7, 0xc1, 0x20, 0x4e, 0x00, 0x00, // mov rcx, 20000
        0x48, 0xff, 0xc9, // dec rcx
        0x75, 0xfb, // jnz to the dec
        0x66, 0xba, 0xfd, 0x03, // mov dx, 0x3fd
        0xec, // in al, dx
        0xa8, 0x01, // test al, 1: is there input?
    ]);
    let back = |code: &mut Vec<u8>, jump: u8| {
        let distance = again.wrapping_sub(code.len() + 2);
        code.extend([jump, distance.to_le_bytes()[0]]);
    };
    back(&mut code, 0x74); // jz again
    code.extend([
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xec, // in al, dx
        0x88, 0x03, // mov [rbx], al
        0x3c, b'r', // cmp al, 'r'
        0x75, 0x06, // jne over the reset
        0xb0, 0xfe, 0xe6, 0x64, // the keyboard controller's reset line
        0xeb, 0xfe, // jmp here
        0x3c, b'o', // cmp al, 'o'
    ]);
    back(&mut code, 0x75); // jne again
    code.extend([
        0x66, 0xba, 0x00, 0x06, // mov dx, 0x600: the sleep control register
        0xb0, 0x34, // sleep type 5, enable
        0xee, // out dx, al
        0xeb, 0xfe, // jmp here
    ]);
    let length = code.len() as u64;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0];
    file.resize(16, 0);
    for half in [2_u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1_u32.to_le_bytes());
    for word in [BASE, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for word in [1_u32, 7] {
        file.extend(word.to_le_bytes());
    }
    for word in [OFFSET, BASE, BASE, length, length, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.resize(0x1000, 0);
    file.extend(code);
    file
}

/// An address that nobody else uses, for both TCP and UDP: a host number made of this process's
/// id, and a port below those that the kernel gives to clients. One that was only found free could
/// be taken, by any other process, before it is listened at.
fn address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(10_000);
    let [_, b, c, d] = std::process::id().to_be_bytes();
    let host = Ipv4Addr::new(127, b + 1, c, d);
    (host, NEXT.fetch_add(1, Ordering::Relaxed)).into()
}

/// One `romulus run`.
struct Host<'s> {
    site: &'s Site,
    name: &'static str,
    child: Child,
}

impl Drop for Host<'_> {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl<'s> Host<'s> {
    fn run(site: &'s Site, name: &'static str) -> Self {
        let log = File::options()
            .create(true)
            .append(true)
            .open(site.path(&format!("{name}.messages")))
            .unwrap();
        let child = site
            .command(&["run", &format!("{name}.toml")])
            .env("ROMULUS_RUNTIME_DIR", site.path(&format!("run-{name}")))
            .stderr(log)
            .spawn()
            .expect("romulus starts");
        Self { site, name, child }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.site.command(arguments);
        let directory = self.site.path(&format!("run-{}", self.name));
        command.env("ROMULUS_RUNTIME_DIR", directory);
        command
    }

    fn ask(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("romulus starts")
    }

    fn console(&self) -> String {
        let log = self.site.path(&format!("{}.console", self.name));
        String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned()
    }

    fn messages(&self) -> String {
        fs::read_to_string(self.site.path(&format!("{}.messages", self.name))).unwrap()
    }

    fn wait(&self, what: &str, mut there: impl FnMut() -> bool) {
        let deadline = Instant::now() + LONG;
        while !there() {
            assert!(
                Instant::now() < deadline,
                "{}: {what}: never; it says\n{}{}\nand its console ends with {:?}",
                self.name,
                self.messages(),
                self.status(),
                self.console().chars().rev().take(20).collect::<String>()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_protected(&self) {
        let check = ["status", "registrar", "--require-protected"];
        self.wait("protected", || code(&self.ask(&check)) == 0);
    }

    fn status(&self) -> serde_json::Value {
        let output = self.ask(&["status", "registrar", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// Types at the console, and waits until something is so.
    fn type_until(&self, letter: u8, what: &str, there: impl FnMut() -> bool) {
        let mut console = self
            .command(&["console", "registrar"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("romulus starts");
        console.stdin.take().unwrap().write_all(&[letter]).unwrap();
        self.wait(what, there);
        // It follows the console for as long as the machine runs.
        let _ = console.kill();
        let _ = console.wait();
    }
}

/// Whether machines can run here.
fn has_kvm() -> bool {
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    if kvm.is_err() {
        eprintln!("skipped: this computer has no KVM that may be used");
    }
    kvm.is_ok()
}

#[test]
fn a_machine_outlives_the_process_that_runs_it() {
    if has_kvm() {
        let site = Site::new();
        let court = site.arbiter(any());
        outlives(&site, &court);
    }
}

#[test]
fn it_does_so_with_its_record_in_etcd() {
    if has_kvm()
        && let Some(node) = Node::start()
    {
        let site = Site::new();
        let endpoint = node.endpoint();
        let court = site.arbiter_with(any(), &["--store", "etcd", "--etcd-endpoint", &endpoint]);
        outlives(&site, &court);
    }
}

fn outlives(site: &Site, court: &Running) {
    fs::write(site.path("vmlinuz"), kernel()).unwrap();
    let addresses = [(); 4].map(|()| address().to_string());
    for name in ["alba", "berta"] {
        let file = site.machine(name, court.address, Some(UUID));
        let mut text = fs::read_to_string(site.path(&file)).unwrap();
        for (index, address) in (1..).zip(&addresses) {
            text = text.replace(&format!("'127.0.0.1:{index}'"), &format!("'{address}'"));
        }
        // Tests share their computer: long time-outs, but a short wait before a first start.
        let text = text.replace(
            "[protection]\n",
            &format!("console.log = '{name}.console'\n[protection]\nlock_memory = false\nt_b = '1s'\nt_b_max = '1s'\nt_cold = '1s'\nt_c = '2s'\n"),
        );
        fs::write(site.path(&file), text).unwrap();
    }
    let created = site.romulus(&["create", "alba.toml"]);
    assert_eq!(code(&created), 0, "{}", stderr(&created));

    let alba = Host::run(site, "alba");
    let berta = Host::run(site, "berta");
    alba.wait_protected();
    berta.wait_protected();
    assert_eq!(berta.status()["state"], "standby");
    alba.type_until(b'K', "what was typed", || alba.console().ends_with("KKK"));
    // That the guest knows it is in an epoch that is committed.
    let epoch = alba.status()["protection"]["epoch"].as_u64().unwrap();
    alba.wait("two more epochs", || {
        alba.status()["protection"]["epoch"].as_u64() >= Some(epoch + 2)
    });

    // Killed, not stopped: the guest carries on over there with what it knew.
    drop(alba);
    berta.wait("a takeover", || {
        berta.console().contains("took over in term")
    });
    berta.wait("the guest's voice", || berta.console().ends_with("KKK"));
    let after = berta.console();
    let (_, said) = after.split_once(" on berta ---\r\n").expect("the mark");
    assert!(said.chars().all(|c| c == 'K'), "{said}");
    assert_eq!(code(&berta.ask(&["status", "--require-protected"])), 1);

    // The host that returns becomes the backup by itself.
    let mut alba = Host::run(site, "alba");
    berta.wait_protected();
    assert_eq!(alba.status()["protection"]["role"], "backup");

    // A guest's reset is a new life on the same host, which its backup then follows.
    berta.type_until(b'r', "a restart", || {
        let status = berta.status();
        status["restarts"] == 1 && status["state"] == "running"
    });
    berta.wait_protected();
    assert!(
        berta.console().ends_with("..."),
        "it has forgotten what was typed"
    );

    // A guest that is switched off is off on both, and stays so.
    berta.type_until(b'o', "the end", || {
        code(&berta.ask(&["status", "registrar"])) == 15
    });
    let mut berta = berta;
    assert_eq!(
        berta.child.wait().unwrap().code(),
        Some(0),
        "{}",
        berta.messages()
    );
    // Longer than a takeover or a cold start would take.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(3) {
        assert_eq!(alba.status()["state"], "standby", "{}", alba.messages());
        thread::sleep(Duration::from_millis(100));
    }
    let stopped = alba.ask(&["stop", "registrar"]);
    assert_eq!(code(&stopped), 0, "{}", stderr(&stopped));
    assert_eq!(
        alba.child.wait().unwrap().code(),
        Some(0),
        "{}",
        alba.messages()
    );
    assert!(!Path::new(&site.path("run-alba/registrar.sock")).exists());
}
