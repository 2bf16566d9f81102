//! `cargo xtask lab up`.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use images::Progress;
use lab::control::{Claim, Session, Status};
use lab::{Lab, LabConfig};

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many hosts
    #[arg(long, default_value_t = 2)]
    hosts: usize,
    /// Each host's memory in MiB; its files are in it too
    #[arg(long, default_value_t = 2048)]
    memory: u32,
    /// A file that every host has from the start, and its path there: `FILE:PATH`
    #[arg(long, value_name = "FILE:PATH", value_parser = payload)]
    payload: Vec<(PathBuf, String)>,
    /// Stay in the foreground; the lab ends with this process
    #[arg(long)]
    foreground: bool,
}

fn payload(text: &str) -> Result<(PathBuf, String)> {
    match text.rsplit_once(':') {
        Some((file, path)) if path.starts_with('/') && !file.is_empty() => {
            Ok((file.into(), path.into()))
        }
        _ => bail!("{text:?} is not FILE:PATH with an absolute path in the host"),
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.foreground {
        stay(args)
    } else {
        start(args)
    }
}

/// This process becomes the lab.
fn stay(args: &Args) -> Result<()> {
    let progress = Progress::new();
    let image = lab::inside(|| {
        // Before the long work: another lab is a reason not to begin.
        drop(Claim::take()?);
        lab::prepare(&progress)
    })?;
    let claim = Claim::take()?;
    let config = LabConfig {
        hosts: args.hosts,
        host_memory_mib: args.memory,
        payload: args.payload.clone(),
        image: Some(image),
        ..LabConfig::default()
    };
    let lab = Lab::start(&config, &progress)?;
    super::print_table(&Status::of(&lab));
    claim.serve(lab)
}

/// Another process becomes the lab; this one waits until it is up.
fn start(args: &Args) -> Result<()> {
    drop(Claim::take()?);
    let progress = Progress::new();
    // Here, so that people see how it goes; the lab itself then finds everything in the cache.
    lab::prepare(&progress)?;
    let kind = lab::detect()?;
    let step = progress.step(format!("booting {} hosts ({kind})", args.hosts));
    let path = images::cache_dir().join("lab").join("log");
    let log = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args([
        "lab",
        "up",
        "--foreground",
        "--hosts",
        &args.hosts.to_string(),
        "--memory",
        &args.memory.to_string(),
    ]);
    for (file, destination) in &args.payload {
        let mut text = std::path::absolute(file)?.into_os_string();
        text.push(":");
        text.push(destination);
        command.arg("--payload").arg(text);
    }
    command
        .env("ROMULUS_LAB", kind.to_string())
        .env("RUST_BACKTRACE", "0");
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0);
    let mut lab = command.spawn().context("cannot start the lab")?;
    let session = wait(&mut lab, &path)?;
    step.done("the lab is up");
    super::print_table(&session.status()?);
    std::io::stdout().flush()?;
    Ok(())
}

/// Waits until the lab answers. It either does, or ends with an error: its hosts have their own time limit.
fn wait(lab: &mut Child, log: &std::path::Path) -> Result<Session> {
    loop {
        if let Ok(session) = Session::open() {
            return Ok(session);
        }
        if let Some(status) = lab.try_wait()? {
            let said = fs::read_to_string(log).unwrap_or_default();
            bail!("the lab did not start ({status}):\n{}", said.trim_end());
        }
        thread::sleep(Duration::from_millis(50));
    }
}
